"""The stage `generate`: a constitution in, prompts that put it under strain out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rlaif.config.generate import GenerateConfig
from rlaif.digest import digest
from rlaif.errors import DataError
from rlaif.io.readers import BUILTIN, read_prompts
from rlaif.io.splits import FRACTIONS, split_of
from rlaif.io.writers import write_rows, write_text
from rlaif.jobs.base import TO_READ, AnyJob, Job, Outcome, read_result, settings_digest, transient_among
from rlaif.jobs.context import RunContext
from rlaif.jobs.lengths import TEMPLATE, Device, Lengths, sampled_work
from rlaif.jobs.planning import StagePlan, counter_of, estimated_seconds, tokens_of
from rlaif.models.memory import StageWork
from rlaif.report.markdown import quoted
from rlaif.report.shown import Shown, Table, Texts
from rlaif.runs.manifest import Manifest
from rlaif.situations import Situations, load_situations
from rlaif.stages.generate import Cell, Gates, Written, cells_of, coverage, generate_prompts, requests_of
from rlaif.stages.likeness import Likeness
from rlaif.stages.sample import check_refused_rate
from rlaif.text import count_of

__all__ = ["PROMPTS", "GenerateJob"]

PROMPTS, REJECTED, STATISTICS = "prompts.jsonl", "rejected.jsonl", "statistics.json"
SHOWN = 3
"""Prompts shown at the end."""
FEWEST_LIKE = 10
"""Prompts of real use that a likeness can rest on."""


class GenerateJob(Job[GenerateConfig]):
    """A constitution in, prompts out: `prompts.jsonl`, which every stage reads, `rejected.jsonl` with
    reasons, `statistics.json`."""

    def __init__(self, config: GenerateConfig, context: RunContext) -> None:
        super().__init__(config, context)
        self.writer = None if config.source == "seeds" else context.model(config.writer)
        self.situations: Situations = load_situations(context.constitution.language)
        self.cells: list[Cell] = cells_of(
            context.constitution, self.situations, config, seed=context.seed(config)
        )
        self.templates = context.library.digest("generate")

    @cached_property
    def like(self) -> tuple[str, ...]:
        """The texts of prompts of real use, if there are any.

        Raises:
            DataError: They are too few to say what real use is like.
        """
        if self.config.like is None:
            return ()
        read = read_prompts(self.config.like, prompt_column=self.config.prompt_column)
        texts = tuple(prompt.messages[-1].content for prompt in read.items)
        if len(texts) < FEWEST_LIKE:
            raise DataError(
                f"{count_of(len(texts), 'prompt')} cannot tell what real use is like",
                where=self.config.like,
                remedy=f"give at least {FEWEST_LIKE}",
            )
        return texts

    @cached_property
    def requests(self) -> list[Any]:
        """What the writer is asked."""
        context, config = self.context, self.config
        return requests_of(self.cells, context.library, config, seed=context.seed(config), like=self.like)

    def key_parts(self) -> dict[str, str]:
        """See `Job`."""
        writer = "seeds"
        if self.writer is not None:
            card = self.context.engines.card(self.writer)
            writer = digest([card.name, card.identity()])
        return {
            "settings": settings_digest(self.config, "writer", "like", "prompt_column"),
            "like": digest(list(self.like)),
            "writer": writer,
            "situations": digest(repr(self.situations)),
            "constitution": self.context.constitution.digest,
            "templates": self.templates,
            "seed": str(self.context.seed(self.config)),
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return {"writer": self.context.engines.card(self.writer).label} if self.writer else {}

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        context, config = self.context, self.config
        gates = Gates(
            self.situations.language,
            config,
            known=[prompt.messages[-1].content for prompt in read_prompts(BUILTIN).items],
            likeness=Likeness(self.like) if self.like else None,
        )
        written = generate_prompts(
            self.cells,
            writer=None if self.writer is None else context.engines.get(self.writer),
            requests=self.requests if self.writer else (),
            situations=self.situations,
            gates=gates,
            config=config,
            seed=context.seed(config),
            progress=context.progress,
        )
        refused = [each.reason.removeprefix("refused: ") for each in written if each.reason[:8] == "refused:"]
        check_refused_rate(refused, len(self.cells), config.max_refused, what="prompts")
        kept = [each for each in written if not each.reason]
        if not kept:
            raise self._nothing(written)
        statistics = _statistics(written)
        write_text(folder / STATISTICS, json.dumps(statistics, ensure_ascii=False, indent=2) + "\n")
        write_text(folder / "samples.md", _samples(kept))
        rows = {
            PROMPTS: write_rows(folder / PROMPTS, map(_row, kept), "jsonl").rows,
            REJECTED: write_rows(folder / REJECTED, _rejected(written), "jsonl").rows,
        }
        self._tell_writer(statistics)
        return Outcome(
            counts={
                "cells": len(self.cells),
                "written": len(written),
                "kept": len(kept),
                "left_out": len(written) - len(kept),
                "cells_without_a_prompt": len(self.cells) - len({each.cell.id for each in kept}),
            },
            rows=rows,
            gaps=transient_among(refused),
        )

    def _nothing(self, written: Sequence[Written]) -> DataError:
        reasons = ", ".join(
            f"{name} {count}" for name, count in Counter(x.reason for x in written).most_common()
        )
        return DataError(
            f"none of {len(written)} texts is a prompt: {reasons}; the first is {written[0].text[:200]!r}",
            where=self.config.name,
            remedy="take a larger writer, or our own list of requests (source: seeds)",
        )

    def _tell_writer(self, statistics: Mapping[str, Any]) -> None:
        by_model, reasons = statistics["by_origin"].get("model"), statistics["reasons"]
        if weak := reasons.get("weak_writer"):
            self.context.progress.note(
                f"{self.config.name}: the writer cannot write prompts: {by_model['written'] - weak} of "
                f"{by_model['written']} texts are none, and the others are not taken either; rejected.jsonl "
                "has them"
            )
        elif by_model and by_model["kept"] < by_model["written"] / 2:
            self.context.progress.note(
                f"{self.config.name}: warning: of the writer's {by_model['written']} texts only "
                f"{by_model['kept']} passed, and they may be no better: read them, or take a larger writer"
            )

    def summary(self, folder: Path, manifest: Manifest) -> Sequence[Shown]:
        """See `Job`."""
        statistics = read_result(folder / STATISTICS)
        with (folder / PROMPTS).open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line, _ in zip(lines, range(SHOWN), strict=False)]
        reasons = ", ".join(f"{name} {count}" for name, count in statistics["reasons"].items())
        splits = ", ".join(f"{name} {count}" for name, count in statistics["splits"].items())
        return [
            _coverage_table(statistics["principles"]),
            f"left out: {reasons or 'nothing'}",
            f"by split: {splits}",
            f"prompts to read and edit: {folder / PROMPTS}",
            *(Texts(row["id"], ", ".join(row["principles"]), [("prompt", row["prompt"])]) for row in rows),
        ]

    def dry_run(self, earlier: Mapping[str, AnyJob]) -> StagePlan:
        """See `Job`."""
        config, context = self.config, self.context
        principles = len(context.constitution.principles)
        counts = {"principles": principles, "cells": len(self.cells)}
        if self.writer is None:
            return StagePlan(config.name, config.stage, "seeds", counts, 0, 0, None, {})
        counter, asked = counter_of(self.writer), [request.messages for request in self.requests]
        read, write = tokens_of(counter, asked), len(asked) * config.max_new_tokens
        return StagePlan(
            name=config.name,
            kind=config.stage,
            model=self.writer,
            read=read,
            write=write,
            seconds=estimated_seconds(self.writer, context, read, write),
            counts=counts,
            example={"generate": counter.render(asked[0])},
        )

    def memory_work(self, lengths: Lengths, device: Device) -> StageWork | None:
        """See `Job`."""
        if self.writer is None:
            return None
        return sampled_work(min(device.rows, len(self.cells)), 2 * TEMPLATE, self.config.max_new_tokens)


def _row(written: Written) -> dict[str, Any]:
    prompt, cell = written.prompt, written.cell
    return {
        "id": prompt.id,
        "prompt": written.text,
        "tags": list(prompt.tags),
        "principles": [each.id for each in written.principles],
        "persona": cell.persona.noun,
        "topic": cell.topic,
        "difficulty": written.difficulty,
        "origin": written.origin,
        "split": split_of(prompt.fingerprint()),
    }


def _rejected(written: Sequence[Written]) -> Iterator[dict[str, Any]]:
    for each in written:
        if each.reason:
            yield {
                "reason": each.reason,
                "text": each.text,
                "near": each.near,
                "origin": each.origin,
                "principles": [principle.id for principle in each.principles],
                "difficulty": each.difficulty,
            }


def _statistics(written: Sequence[Written]) -> dict[str, Any]:
    kept = [each for each in written if not each.reason]
    splits = Counter(split_of(each.prompt.fingerprint()) for each in kept)
    origins = {
        origin: {
            "written": sum(each.origin == origin for each in written),
            "kept": sum(each.origin == origin for each in kept),
        }
        for origin in dict.fromkeys(each.origin for each in written)
    }
    reasons = Counter(each.reason.partition(":")[0] for each in written if each.reason)
    return {
        "principles": coverage(written),
        "reasons": dict(reasons.most_common()),
        "by_origin": origins,
        "splits": {name: splits[name] for name in FRACTIONS},
    }


def _coverage_table(principles: Mapping[str, Mapping[str, int]]) -> Table:
    fixed = ("kept", "in_conflict", "model", "seed", "left_out")
    levels = list(dict.fromkeys(name for each in principles.values() for name in each if name not in fixed))
    names = ("kept", *levels, *fixed[1:])
    rows = [
        (principle, *(str(each.get(name, 0)) for name in names)) for principle, each in principles.items()
    ]
    total = [str(sum(each.get(name, 0) for each in principles.values())) for name in names]
    header = ("principle", *(name.replace("_", " ") for name in names))
    return Table("prompts by principle", header, [*rows, ("all", *total)], total=True)


def _samples(kept: Sequence[Written]) -> str:
    step = max(1, len(kept) // TO_READ)
    parts = ["# Generated prompts\n"]
    for each in kept[::step][:TO_READ]:
        principles = " against ".join(principle.id for principle in each.principles)
        how = ", ".join(name for name in (each.difficulty, each.origin) if name)
        parts.append(f"## {principles} ({how})\n\n{quoted(each.text)}")
    return "\n".join(parts)
