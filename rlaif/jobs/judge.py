"""The stage `judge`: preferences in, a trained judge out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from rlaif.config.judge import JudgeConfig
from rlaif.engines.base import Engine
from rlaif.engines.hf import HFEngine
from rlaif.engines.scripted import load_scripted
from rlaif.errors import ConfigError
from rlaif.io.writers import write_text
from rlaif.jobs.base import AnyJob, Job, Outcome, read_typed, settings_digest, usable
from rlaif.jobs.cards import judges_of, write_card
from rlaif.jobs.context import RunContext
from rlaif.jobs.learned_rows import label_files, pairs_digest, read_preferences, skipper, with_texts
from rlaif.jobs.lengths import Device, Lengths
from rlaif.jobs.planning import StagePlan, counter_of, estimated_seconds, tokens_of
from rlaif.judging.judge import Judge
from rlaif.judging.table import PROTOCOLS, open_protocol
from rlaif.models.memory import StageWork
from rlaif.models.probe import StateReader, layer_count, probe_layer
from rlaif.models.probe_files import save_judge
from rlaif.report.judge import judge_markdown, judge_shown
from rlaif.report.shown import Shown
from rlaif.results.judge import JudgeReport
from rlaif.results.preferences import PreferencePair
from rlaif.runs.manifest import Manifest
from rlaif.stages.judge import comparison_of, train_judge

__all__ = ["JudgeJob"]


class JudgeJob(Job[JudgeConfig]):
    """Preferences in, a trained judge out: `model/`, `report.json`, `samples.md`."""

    method = "a judge: a closed-form head on the states of its questions"
    loading = "By rlaif: `rlaif label --judge FOLDER`, `rlaif audit --judge FOLDER`."

    def __init__(self, config: JudgeConfig, context: RunContext) -> None:
        super().__init__(config, context)
        self.base = context.model(config.model)
        name = config.protocol or context.constitution.protocol
        if not _is_learnable(name):
            can = ", ".join(filter(_is_learnable, PROTOCOLS))
            raise ConfigError(f"no judge can be trained for {name} questions", remedy=f"name one of {can}")
        self.protocol = open_protocol(name, library=context.library, constitution=context.constitution)
        self.constitution = usable(context, self.protocol.half)
        self.templates = context.library.digest(self.protocol.template)

    @cached_property
    def pairs(self) -> list[PreferencePair]:
        """What is learned from: the label stage's preferences and the files', each with its weight."""
        return [
            pair
            for file, weight in self._files()
            for pair in read_preferences(
                file,
                weight=weight,
                skipped=skipper(self.config, file, self.context),
                note=self.context.progress.note,
            )
        ]

    def _files(self) -> list[tuple[str, float]]:
        found = label_files(self.config, self.config.input, self.config.files, self.context)
        return [(with_texts(each.file), each.weight) for each in found]

    def _asker(self, engine: Engine) -> Judge:
        return Judge(
            engine,
            self.protocol,
            self.constitution,
            principles=self.config.principles,
            seed=self.context.seed(self.config),
            progress=self.context.progress,
        )

    def _engine(self) -> HFEngine:
        engine = self.context.engines.in_process(self.base)
        if engine is None:
            raise ConfigError(
                f"{self.base} cannot be trained: it does not run in this process",
                remedy="name a hub id, a folder or an alias",
            )
        return engine

    def key_parts(self) -> dict[str, str]:
        """See `Job`."""
        return {
            "settings": settings_digest(self.config, "input", "files", "model", "protocol"),
            "preferences": pairs_digest(self.pairs),
            "base": self._engine().card.revision,
            "protocol": self.protocol.name,
            "constitution": self.context.constitution.digest,
            "templates": self.templates,
            "seed": str(self.context.seed(self.config)),
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return {"judge": self._engine().card.label}

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        context, engine = self.context, self._engine()
        layer = self.config.layer or probe_layer(engine)
        result = train_judge(
            self.pairs,
            judge=self._asker(context.engines.get(self.base)),
            protocol=self.protocol,
            weights={principle.id: principle.weight for principle in self.constitution.principles},
            reader=StateReader(engine, layer=layer, quoted=self.protocol.quoted),
            layers=layer_count(engine),
            config=self.config,
            seed=context.seed(self.config),
            progress=context.progress,
        )
        parts, report = self.key_parts(), result.report
        teachers = judges_of(file for file, _ in self._files())
        scored = report.as_dict()["found"]["trained"]
        save_judge(
            folder / "model",
            result.probe,
            engine=engine,
            protocol=self.protocol.name,
            constitution=context.constitution.digest,
            templates=self.templates,
            questions=result.questions,
            note={
                "preferences": parts["preferences"],
                "labelled by": teachers or "people",
                "measured": scored,
            },
        )
        write_card(
            folder / "model",
            self,
            base=context.bases.get(self.base),
            parts=parts,
            judge=teachers,
            results=scored,
        )
        write_text(folder / "report.json", json.dumps(report.as_dict(), indent=2) + "\n")
        write_text(folder / "samples.md", judge_markdown(report))
        counts = {"pairs": report.pairs, "pairs_refused": sum(report.refused.values())}
        return Outcome(counts=counts, rows={"report.json": 1})

    def summary(self, folder: Path, manifest: Manifest) -> Sequence[Shown]:
        """See `Job`."""
        return [
            *judge_shown(read_typed(folder / "report.json", JudgeReport)),
            f"use it: rlaif label --judge {folder / 'model'}",
        ]

    def dry_run(self, earlier: Mapping[str, AnyJob]) -> StagePlan:
        """See `Job`."""
        config, counter = self.config, counter_of(self.base)
        judge = self._asker(load_scripted("scripted"))
        pairs = self.pairs if config.files and not config.input else []
        requests = [request for pair in pairs for request in judge.requests(comparison_of(pair))]
        read = tokens_of(counter, [request.messages for request in requests])
        read *= 2 if config.compare else 1
        return StagePlan(
            name=config.name,
            kind=config.stage,
            model=self.base,
            counts={"pairs": len(pairs), "questions": len(requests)},
            read=read,
            write=0,
            seconds=estimated_seconds(self.base, self.context, read, 0),
            example={self.protocol.template: counter.render(requests[0].messages)} if requests else {},
        )

    def memory_work(self, lengths: Lengths, device: Device) -> StageWork | None:
        """See `Job`."""
        return StageWork(read_tokens=device.tokens, read_logits=device.asked)


def _is_learnable(protocol: str) -> bool:
    """Whether a pair's label is a sum over questions that need nothing but the pair."""
    asked = PROTOCOLS[protocol]
    return bool(asked.parts) and not asked.needs and not asked.commits
