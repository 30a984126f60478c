"""The stage `judge`: preferences in, a trained judge out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from rlaif.config.finetune import FinetuneSettings
from rlaif.config.judge import JudgeConfig
from rlaif.engines.base import Engine, LabelRequest
from rlaif.engines.hf import HFEngine
from rlaif.engines.scripted import load_scripted
from rlaif.errors import ConfigError
from rlaif.io.writers import write_text
from rlaif.jobs.base import AnyJob, Job, Outcome, read_typed, settings_digest, usable
from rlaif.jobs.cards import judges_of, write_card
from rlaif.jobs.context import RunContext
from rlaif.jobs.estimate import shared
from rlaif.jobs.learned_rows import label_files, pairs_digest, read_preferences, skipper, with_texts
from rlaif.jobs.lengths import Adapters, Device, Lengths, sampled_work
from rlaif.jobs.planning import COUNTED, StagePlan, counter_of, estimated_seconds, tokens_of
from rlaif.jobs.trust import audit_command
from rlaif.judging.judge import Judge
from rlaif.judging.reasoning import ReasoningJudge
from rlaif.judging.table import PROTOCOLS, open_judge, open_protocol
from rlaif.models.heap import rounded
from rlaif.models.memory import StageWork
from rlaif.models.probe import Probe, StateReader, layer_count, probe_layer
from rlaif.models.probe_files import Adapter, save_judge
from rlaif.models.shared_base import SharedBase
from rlaif.report.judge import judge_markdown, judge_shown, told_from_chance
from rlaif.report.shown import Shown
from rlaif.results.judge import JudgeReport
from rlaif.results.preferences import PreferencePair
from rlaif.runs.manifest import Manifest
from rlaif.stages.judge import comparison_of, train_judge
from rlaif.stages.judge_generative import train_generative_judge
from rlaif.stages.judge_lora import train_lora_judge
from rlaif.types import Message

__all__ = ["JudgeJob"]

ROLE = "judge"
"""Of the adapter, while it is trained."""


class _Trained(NamedTuple):
    """A judge, what it is worth, and a few questions with its log-odds."""

    judge: Probe | Adapter
    report: JudgeReport
    questions: Sequence[tuple[LabelRequest, float]]


class JudgeJob(Job[JudgeConfig]):
    """Preferences in, a trained judge out: `model/`, `report.json`, `samples.md`."""

    method = (
        "a judge: a closed-form head on the states of its questions, or an adapter that answers them, with "
        "reasons or without"
    )
    loading = "By rlaif: `rlaif label --judge FOLDER`, `rlaif audit --judge FOLDER`."

    def __init__(self, config: JudgeConfig, context: RunContext) -> None:
        super().__init__(config, context)
        self.base = context.model(config.model)
        learnable = _is_reasoned if config.kind == "generative" else _is_learnable
        able = list(filter(learnable, PROTOCOLS))
        name = config.asked_by(context.constitution.protocol)
        if name not in able:
            raise ConfigError(
                f"no judge of the kind {config.kind} can be trained for {name} questions",
                remedy=f"name one of {', '.join(able)}"
                + (", or train a judge that reasons: kind generative" if _is_reasoned(name) else ""),
            )
        # Unclamped: a temperature is fitted to what the judge is sure of, and clamped answers hide that.
        self.protocol = open_protocol(
            name, library=context.library, constitution=context.constitution, clamp=1.0
        )
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

    def _asker(self, engine: Engine, *, reasonings: int = 1) -> Judge:
        return open_judge(
            engine,
            self.protocol,
            self.constitution,
            principles=self.config.principles,
            seed=self.context.seed(self.config),
            progress=self.context.progress,
            reasoning_tokens=self.config.reasoning_tokens,
            reasonings=reasonings,
        )

    def _reasoner(self, engine: Engine) -> ReasoningJudge:
        """The judge that samples what a generative one learns from."""
        found = self._asker(engine, reasonings=self.config.reasonings)
        assert isinstance(found, ReasoningJudge)
        return found

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
            "settings": settings_digest(
                self.config,
                "input",
                "files",
                "model",
                "protocol",
                *(
                    ("kind", "held_out", *FinetuneSettings.model_fields)
                    if self.config.kind == "probe"
                    else ()
                ),
                *(() if self.config.kind == "generative" else ("reasonings", "reasoning_tokens")),
            ),
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
        base = self.context.bases.get(self.base)
        try:
            trained = self._train(base)
            report = trained.report
            self._save(folder, trained, base)
        finally:
            if ROLE in base.roles:
                base.drop_adapter(ROLE)
        write_text(folder / "report.json", json.dumps(report.as_dict(), indent=2) + "\n")
        write_text(folder / "samples.md", judge_markdown(report))
        counts = {"pairs": report.pairs, "pairs_refused": sum(report.refused.values())}
        return Outcome(counts=counts, rows={"report.json": 1})

    def _train(self, base: SharedBase) -> _Trained:
        """The judge of the kind that the settings ask for."""
        train = {"probe": self._probe, "lora": self._lora, "generative": self._generative}[self.config.kind]
        return train(base)

    def _probe(self, base: SharedBase) -> _Trained:
        engine = self._engine()
        result = train_judge(
            self.pairs,
            judge=self._asker(self._untrained),
            protocol=self.protocol,
            weights=self._weights,
            reader=StateReader(
                engine, layer=self.config.layer or probe_layer(engine), quoted=self.protocol.quoted
            ),
            layers=layer_count(engine),
            config=self.config,
            seed=self.context.seed(self.config),
            progress=self.context.progress,
        )
        return _Trained(result.probe, result.report, result.questions)

    def _lora(self, base: SharedBase) -> _Trained:
        result = train_lora_judge(
            self.pairs,
            judge=self._asker(self._untrained),
            protocol=self.protocol,
            weights=self._weights,
            engine=self._engine(),
            base=base,
            config=self.config,
            seed=self.context.seed(self.config),
            role=ROLE,
            progress=self.context.progress,
        )
        return _Trained(Adapter(base, ROLE, result.scale), result.report, result.questions)

    def _generative(self, base: SharedBase) -> _Trained:
        result = train_generative_judge(
            self.pairs,
            reasoner=self._reasoner(self._untrained),
            asker=lambda other: self._asker(other or self._untrained),
            protocol=self.protocol,
            engine=self._engine(),
            base=base,
            config=self.config,
            seed=self.context.seed(self.config),
            role=ROLE,
            progress=self.context.progress,
        )
        adapter = Adapter(base, ROLE, result.scale, kind=self.config.kind)
        return _Trained(adapter, result.report, result.questions)

    @property
    def _untrained(self) -> Engine:
        return self.context.engines.get(self.base)

    @property
    def _weights(self) -> Mapping[str, float]:
        return {principle.id: principle.weight for principle in self.constitution.principles}

    def _save(self, folder: Path, trained: _Trained, base: SharedBase) -> None:
        parts = self.key_parts()
        teachers = judges_of(file for file, _ in self._files())
        scored = trained.report.as_dict()["found"]["trained"]
        save_judge(
            folder / "model",
            trained.judge,
            engine=self._engine(),
            protocol=self.protocol.name,
            constitution=self.context.constitution.digest,
            templates=self.templates,
            questions=trained.questions,
            note={
                "preferences": parts["preferences"],
                "labelled by": teachers or "people",
                "measured": scored,
            },
        )
        write_card(folder / "model", self, base=base, parts=parts, judge=teachers, results=scored)

    def summary(self, folder: Path, manifest: Manifest) -> Sequence[Shown]:
        """See `Job`."""
        report = read_typed(folder / "report.json", JudgeReport)
        shown = judge_shown(report)
        judge = str(folder / "model")
        if told_from_chance(report):
            label = ["rlaif", "label", "--judge", judge, "--constitution", self.context.recipe.constitution]
            return [*shown, f"use it: {shlex.join(label)} --responses YOUR_PAIRS.jsonl"]
        return [
            *shown,
            f"measure it on other pairs: {audit_command(judge, self.context)} --principles sample",
        ]

    def dry_run(self, earlier: Mapping[str, AnyJob]) -> StagePlan:
        """See `Job`."""
        config, counter = self.config, counter_of(self.base)
        judge = self._asker(load_scripted("scripted"))
        pairs = self.pairs if config.files and not config.input else []
        groups = [judge.requests(comparison_of(pair)) for pair in pairs]
        requests = [request for group in groups for request in group]
        once = shared([counter.render(each.messages) for each in group] for group in groups[:COUNTED])
        read = tokens_of(counter, [request.messages for request in requests])
        write = 0
        if config.kind == "generative":
            # All are read; what is held out is judged twice, the rest sampled and learned from.
            sampled = config.reasonings * (1 - config.held_out) + 2 * config.held_out
            write = round(len(requests) * sampled * config.reasoning_tokens)
            read, once = round(read * (sampled + 3 * config.epochs * (1 - config.held_out))), 1.0
        elif config.kind == "lora":
            read, once = read * 3 * config.epochs, 1.0  # an update reads each question by itself
        elif config.compare:
            read *= 2
        return StagePlan(
            name=config.name,
            kind=config.stage,
            model=self.base,
            counts={"pairs": len(pairs), "questions": len(requests)},
            read=read,
            write=write,
            seconds=estimated_seconds(self.base, self.context, read * once, write),
            example={self.protocol.template: counter.render(requests[0].messages)} if requests else {},
        )

    def memory_work(self, lengths: Lengths, device: Device) -> StageWork | None:
        """See `Job`."""
        config = self.config
        if config.kind == "probe":
            return StageWork(read_tokens=device.tokens, read_logits=device.asked)
        longest = self._longest_question(lengths.rows(config))
        if config.kind == "generative":
            new = config.reasoning_tokens
            row = rounded(min(longest + new, config.max_tokens or 1 << 30))
            return sampled_work(device.rows, longest, new)._replace(
                micro_tokens=config.micro_batch * row,
                logit_tokens=config.micro_batch * new,
                read_tokens=device.tokens,
                read_logits=device.asked,
                checkpointing=config.gradient_checkpointing,
            )
        per_pair = self.protocol.asks * (
            len(self.constitution.principles) if config.principles == "all" else 1
        )
        row = rounded(min(longest, config.max_tokens or 1 << 30))
        return StageWork(
            micro_tokens=per_pair * config.micro_batch * row,
            logit_tokens=per_pair * config.micro_batch,
            checkpointing=config.gradient_checkpointing,
        )

    def _longest_question(self, row: int) -> int:
        """Tokens of a question about a pair whose prompt and completion have at most `row`: those of one
        about nothing, and the row for each completion that a question shows."""
        judge, counter = self._asker(load_scripted("scripted")), counter_of(self.base)
        nothing = comparison_of(PreferencePair("", (Message("user", ""),), "", "-"))
        asked = judge.requests(nothing)
        return max(counter.count(each.messages) for each in asked) + len(self.protocol.quoted) * row

    def adapters(self) -> Adapters:
        """See `Job`."""
        own = () if self.config.kind == "probe" else (ROLE,)
        return Adapters(own, tuple(self.context.reward_adapters(self.config)), self.config.lora_rank)


def _is_learnable(protocol: str) -> bool:
    """Whether a pair's label is a sum over questions that need nothing but the pair."""
    asked = PROTOCOLS[protocol]
    return bool(asked.parts) and not asked.needs and not asked.commits


def _is_reasoned(protocol: str) -> bool:
    """Whether the judge reasons about a pair, in both orders, before its label is read."""
    asked = PROTOCOLS[protocol]
    return asked.reasons and asked.orders and not asked.needs
