"""The stage `rubric`: prompts in, a draft of a rubric for each out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from rlaif.config.labelling import RubricConfig
from rlaif.digest import digest
from rlaif.errors import DataError
from rlaif.io.writers import write_rows, write_text
from rlaif.jobs.base import (
    BUILTIN_LIMIT,
    TO_READ,
    AnyJob,
    Job,
    Outcome,
    settings_digest,
    transient_among,
    write_refused,
)
from rlaif.jobs.context import RunContext
from rlaif.jobs.inputs import load_prompts, prompts_digest
from rlaif.jobs.lengths import TEMPLATE, Device, Lengths, sampled_work
from rlaif.jobs.planning import StagePlan, counter_of, estimated_seconds, tokens_of
from rlaif.models.memory import StageWork
from rlaif.report.rubrics import rubrics_markdown
from rlaif.report.shown import Shown, Texts
from rlaif.results.rows import columns_for_judges, rubric_row
from rlaif.runs.manifest import Manifest
from rlaif.stages.rubric import Draft, draft_request, draft_rubrics
from rlaif.stages.sample import check_refused_rate

__all__ = ["RUBRICS", "RubricJob"]

RUBRICS = "rubrics.jsonl"
SHOWN = 3
"""Drafts shown at the end."""


class RubricJob(Job[RubricConfig]):
    """Prompts in, drafts of their rubrics out: `rubrics.jsonl`, which every stage reads as prompts, and
    `undrafted.jsonl`, what was written where no criterion could be read."""

    def __init__(self, config: RubricConfig, context: RunContext) -> None:
        super().__init__(config, context)
        self.prompts = load_prompts(
            config,
            own_split="label",
            own_limit=BUILTIN_LIMIT,
            seed=context.seed(config),
            progress=context.progress,
            left_out=partial(context.leave_out, config.name),
        )
        self.writer = context.model(config.writer)

    def key_parts(self) -> dict[str, str]:
        """See `Job`."""
        card = self.context.engines.card(self.writer)
        return {
            "settings": settings_digest(
                self.config, "writer", "prompts", "prompt_column", "context_column", "split", "limit"
            ),
            "prompts": prompts_digest(self.prompts),
            "writer": digest([card.name, card.identity()]),
            "constitution": self.context.constitution.digest,
            "templates": self.context.library.digest("rubric"),
            "seed": str(self.context.seed(self.config)),
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return {"writer": self.context.engines.card(self.writer).label}

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        context = self.context
        drafts = draft_rubrics(
            self.prompts,
            writer=context.engines.get(self.writer),
            library=context.library,
            constitution=context.constitution,
            config=self.config,
            seed=context.seed(self.config),
            progress=context.progress,
        )
        reasons = [draft.refused for draft in drafts if draft.refused]
        check_refused_rate(reasons, len(drafts), self.config.max_refused, what="rubrics")
        columns = columns_for_judges(self.prompts) | {"rubric"}
        rows = [rubric_row(draft.prompt, draft.rubric, columns) for draft in drafts if draft.rubric]
        empty = [draft for draft in drafts if not draft.rubric and not draft.refused]
        if not rows:
            raise DataError(
                f"none of {len(drafts)} drafts holds a criterion; the first is {drafts[0].text[:200]!r}",
                where=self.config.name,
                remedy="take a larger writer, or more tokens (max_new_tokens)",
            )
        texts = [{"prompt_id": draft.prompt.id, "text": draft.text} for draft in empty]
        written = {
            RUBRICS: write_rows(folder / RUBRICS, rows, "jsonl").rows,
            "undrafted.jsonl": write_rows(folder / "undrafted.jsonl", texts, "jsonl").rows,
        }
        written |= write_refused(folder, [(each.prompt.id, each.refused) for each in drafts if each.refused])
        write_text(folder / "samples.md", rubrics_markdown(rows[:TO_READ]))
        return Outcome(counts=self._counts(drafts), rows=written, gaps=transient_among(reasons))

    def _counts(self, drafts: Sequence[Draft]) -> dict[str, int]:
        had = sum(bool(draft.prompt.rubric) for draft in drafts)
        return {
            "prompts": len(drafts),
            "drafted": sum(bool(draft.rubric) for draft in drafts) - had,
            "had_a_rubric": had,
            "undrafted": sum(not draft.rubric and not draft.refused for draft in drafts),
            "criteria": sum(len(draft.rubric) for draft in drafts if not draft.prompt.rubric),
            "lines_left_out": sum(draft.skipped for draft in drafts),
        }

    def summary(self, folder: Path, manifest: Manifest) -> Sequence[Shown]:
        """See `Job`."""
        with (folder / RUBRICS).open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line, _ in zip(lines, range(SHOWN), strict=False)]
        return [
            f"drafts to read and edit: {folder / RUBRICS}",
            *(
                Texts(
                    row["id"],
                    "1 criterion" if len(row["rubric"]) == 1 else f"{len(row['rubric'])} criteria",
                    [("prompt", row["prompt"][-1]["content"])]
                    + [
                        ("must" if each["must"] else f"{each['points']:g}", each["text"])
                        for each in row["rubric"]
                    ],
                )
                for row in rows
            ),
        ]

    def dry_run(self, earlier: Mapping[str, AnyJob]) -> StagePlan:
        """See `Job`."""
        config, context, counter = self.config, self.context, counter_of(self.writer)
        asked = [
            draft_request(prompt, context.library, context.constitution, config)
            for prompt in self.prompts
            if not prompt.rubric
        ]
        read, write = tokens_of(counter, asked), len(asked) * config.max_new_tokens
        return StagePlan(
            name=config.name,
            kind=config.stage,
            model=self.writer,
            read=read,
            write=write,
            seconds=estimated_seconds(self.writer, context, read, write),
            counts={"prompts": len(self.prompts), "rubrics": len(asked)},
            example={"rubric": counter.render(asked[0])} if asked else {},
        )

    def memory_work(self, lengths: Lengths, device: Device) -> StageWork | None:
        """See `Job`."""
        principles = TEMPLATE * (1 + len(self.context.constitution.principles))
        longest = lengths.prompts(self.config.name) + principles
        rows = min(device.rows, lengths.count(self.config.name))
        return sampled_work(rows, longest, self.config.max_new_tokens)
