"""The stage `moderation`: labelled texts in, a moderator out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

from rlaif.config.finetune import FinetuneSettings
from rlaif.config.moderation import ModerationConfig
from rlaif.digest import digest
from rlaif.engines.hf import HFEngine
from rlaif.errors import ConfigError, DataError
from rlaif.io.labelled_texts import ANY, LabelledTexts, read_benign, read_labelled, read_verdicts
from rlaif.io.writers import write_text
from rlaif.jobs.base import AnyJob, Job, Outcome, read_typed, settings_digest
from rlaif.jobs.cards import write_card
from rlaif.jobs.context import RunContext
from rlaif.jobs.learned_rows import with_texts
from rlaif.jobs.lengths import Adapters, Device, Lengths
from rlaif.jobs.planning import StagePlan, counter_of, estimated_seconds, tokens_of
from rlaif.models.heap import rounded
from rlaif.models.memory import StageWork
from rlaif.models.shared_base import SharedBase
from rlaif.moderation.examples import Example
from rlaif.moderation.files import save_moderator
from rlaif.report.moderation import moderation_markdown, moderation_shown
from rlaif.report.shown import Shown
from rlaif.results.moderation import ModerationReport
from rlaif.runs.manifest import Manifest
from rlaif.stages.moderation import ModerationResult, train_moderation_probe
from rlaif.stages.moderation_lora import train_moderation_lora
from rlaif.text import count_of
from rlaif.types import Message

__all__ = ["ModerationJob"]

ROLE = "moderator"
"""Of the adapter, while it is trained."""
VERDICTS = "verdicts.jsonl"
REVISIONS = "revisions.jsonl"
LOOKED_AT = 64
"""Texts, the longest in characters, whose tokens are counted."""
THREE = (1, 2, 3)
"""As many layers as a probe reads by default."""
MANY = 1 << 30
"""Tokens of texts that are not there yet: as many as states are kept of."""


class ModerationJob(Job[ModerationConfig]):
    """Labelled texts in, a moderator out: `model/`, `report.json`, `samples.md`."""

    method = "a moderator, linear heads on states (heads.safetensors) of the base, with an adapter or without"
    loading = "By rlaif: `rlaif moderate FILE --moderation FOLDER`, `rlaif serve --moderation FOLDER`."

    def __init__(self, config: ModerationConfig, context: RunContext) -> None:
        super().__init__(config, context)
        self.base = context.model(config.model)
        self.principles = tuple(principle.id for principle in context.constitution.principles)
        if config.input or not config.files:
            context.earlier(config, "label", config.input)
        if self._is_at_hand:
            _ = self.examples  # what cannot be read is told before a model is loaded

    @property
    def _is_at_hand(self) -> bool:
        """Whether all that is learned from is there before the run."""
        config = self.config
        return bool(config.files) and not config.input and not self._revise_stages() & {*config.benign}

    def _revise_stages(self) -> set[str]:
        return {stage.name for stage in self.context.before(self.config) if stage.stage == "revise"}

    @cached_property
    def examples(self) -> list[Example]:
        """What is learned from: the label stage's verdicts, the files', and what only looks bad."""
        found = [each for file, weight in self._files() for each in self._labelled(file, weight)]
        categories = self._categories_of(found)
        for named in self.config.benign:
            read = read_benign(self._benign(named), skip_bad_rows=self.config.skip_bad_rows)
            self._tell(named, read)
            found += [
                Example(
                    text.messages,
                    dict.fromkeys(categories, 0.0),
                    source="look-alike",
                    look_alike=True,
                    where=text.where,
                )
                for text in read.texts
            ]
        return found

    @property
    def categories(self) -> tuple[str, ...]:
        """The principles that some text is labelled for, in the constitution's order."""
        return self._categories_of(self.examples)

    def _categories_of(self, examples: Sequence[Example]) -> tuple[str, ...]:
        known = {name for each in examples for name in each.broken}
        return tuple(name for name in (*self.principles, ANY) if name in known)

    def _files(self) -> list[tuple[str, float]]:
        """Every file of labels with its weight."""
        config, found = self.config, []
        if config.input or not config.files:
            found.append((str(self.context.folder_of(config, "label", config.input) / VERDICTS), 1.0))
        return [*found, *((each.file, each.weight) for each in config.files)]

    def _labelled(self, file: str, weight: float) -> list[Example]:
        """The texts of a file of people's labels, or of a judge's verdicts.

        Raises:
            DataError: It cannot be read, or none of its labels is of a principle of the constitution.
        """
        path = Path(file) / VERDICTS if (Path(file) / VERDICTS).is_file() else Path(file)
        if path.stem == "preferences" and (beside := path.with_name(VERDICTS)).is_file():
            path = beside
        by_judge = path.name == VERDICTS
        read = (
            read_verdicts(path, Path(with_texts(str(path))), centred=self.config.verdicts == "centred")
            if by_judge
            else read_labelled(file, self.principles, skip_bad_rows=self.config.skip_bad_rows)
        )
        self._tell(file, read)
        wanted = {*self.principles, ANY}
        found = [
            Example(
                text.messages,
                {name: value for name, value in text.broken.items() if name in wanted},
                weight=weight,
                source="judge" if by_judge else "people",
                look_alike=text.look_alike,
                where=text.where,
            )
            for text in read.texts
        ]
        if not any(each.broken for each in found):
            raise DataError(
                f"no label is of a principle of {self.context.constitution.name}",
                where=file,
                remedy="name the constitution that the labels were given under: --constitution",
            )
        return found

    def _benign(self, named: str) -> str:
        """The file that an entry of `benign` stands for: of a revise stage its revisions."""
        if named == "builtin":
            return named
        folder = self.context.folders[named] if named in self._revise_stages() else Path(named)
        return str(folder / REVISIONS) if (folder / REVISIONS).is_file() else str(folder)

    def _tell(self, source: str, read: LabelledTexts) -> None:
        """Nothing is left out in silence."""
        name = self.config.name
        for note in read.notes:
            self.context.progress.note(f"{source}: {note}")
        if self.config.skip_bad_rows:
            self.context.leave_out(name, source, len(read.problems))
        if read.problems:
            told = f"{source}: {count_of(len(read.problems), 'row')} left out (skip_bad_rows)"
            self.context.progress.note(f"{name}: {told}; the first: {read.problems[0]}")

    def _engine(self) -> HFEngine:
        engine = self.context.engines.in_process(self.base)
        if engine is None:
            raise ConfigError(
                f"{self.base} cannot be read: it does not run in this process",
                remedy="name a hub id, a folder or an alias",
            )
        return engine

    def key_parts(self) -> dict[str, str]:
        """See `Job`."""
        tuned = ("held_out", *FinetuneSettings.model_fields) if self.config.kind == "probe" else ()
        return {
            "settings": settings_digest(self.config, "input", "files", "benign", "model", *tuned),
            "labels": digest(
                [
                    [[m.as_dict() for m in each.messages], dict(each.broken), each.weight, each.look_alike]
                    for each in self.examples
                ]
            ),
            "base": self._engine().card.revision,
            "constitution": self.context.constitution.digest,
            "seed": str(self.context.seed(self.config)),
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return {"base": self._engine().card.label}

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        base = self.context.bases.get(self.base)
        try:
            found = self._train(base)
            self._save(folder, found, base)
        finally:
            if ROLE in base.roles:
                base.drop_adapter(ROLE)
        report = found.report
        for place in (folder, folder / "model"):
            write_text(place / "report.json", json.dumps(report.as_dict(), indent=2) + "\n")
        write_text(folder / "samples.md", moderation_markdown(report))
        write_text(folder / "model" / "report.md", moderation_markdown(report))
        counts = {
            "texts": report.texts,
            "texts_refused": sum(report.refused.values()),
            "prompts": report.prompts,
            **self.context.bad_rows(self.config.name),
        }
        return Outcome(counts=counts, rows={"report.json": 1})

    def _train(self, base: SharedBase) -> ModerationResult:
        """The moderator of the kind that the settings ask for."""
        train = (
            train_moderation_probe
            if self.config.kind == "probe"
            else partial(train_moderation_lora, role=ROLE)
        )
        return train(
            self.examples,
            self.categories,
            base=base,
            config=self.config,
            seed=self.context.seed(self.config),
            progress=self.context.progress,
        )

    def _save(self, folder: Path, found: ModerationResult, base: SharedBase) -> None:
        """The moderator with its card."""
        parts, report = self.key_parts(), found.report
        save_moderator(
            found.moderator,
            folder / "model",
            constitution=self.context.constitution.digest,
            probes=[each.messages for each in found.probes],
            note={"labels": parts["labels"], "sources": dict(report.sources)},
        )
        told = {
            f"AUROC, {each.category}, {each.reads}s": each.ways["moderator"].auroc.value
            for each in report.categories
        }
        idle = ("held_out", *FinetuneSettings.model_fields) if self.config.kind == "probe" else ()
        write_card(
            folder / "model",
            self,
            base=base,
            parts=parts,
            judge=", ".join(name for name in report.sources if name != "look-alike"),
            results={**told, "to know": " ".join(report.words)},
            adapter=False,
            silent=idle,
        )

    def summary(self, folder: Path, manifest: Manifest) -> Sequence[Shown]:
        """See `Job`."""
        report = read_typed(folder / "report.json", ModerationReport)
        use = f"use it: rlaif moderate FILE --moderation {folder / 'model'}"
        return [*moderation_shown(report), use]

    def dry_run(self, earlier: Mapping[str, AnyJob]) -> StagePlan:
        """See `Job`."""
        config, counter = self.config, counter_of(self.base)
        examples = self.examples if self._is_at_hand else []
        read = tokens_of(counter, [each.messages for each in examples])
        passes = 3 * config.epochs if config.kind == "lora" else 1
        return StagePlan(
            name=config.name,
            kind=config.stage,
            model=self.base,
            counts={"texts": len(examples), "principles": len(self._categories_of(examples))},
            read=read * passes,
            write=0,
            seconds=estimated_seconds(self.base, self.context, read * passes, 0),
            example={"text": counter.render(examples[0].messages)} if examples else {},
        )

    def memory_work(self, lengths: Lengths, device: Device) -> StageWork | None:
        """See `Job`."""
        config, counter = self.config, counter_of(self.base)
        examples = self.examples if self._is_at_hand else []
        known = [each.messages for each in examples]
        scored = [(Message("user", messages[-1].content),) for messages in known]
        tokens = tokens_of(counter, scored) if scored else MANY
        if config.kind == "lora":
            longest = sorted(known, key=lambda messages: -sum(len(m.content) for m in messages))[:LOOKED_AT]
            row = max(map(counter.count, longest)) if longest else lengths.rows(config)
            return StageWork(
                micro_tokens=config.micro_batch * rounded(min(row, config.max_tokens or row)),
                read_tokens=device.tokens,
                kept_states=tokens,  # of the last layer, while the heads are fitted
                checkpointing=config.gradient_checkpointing,
            )
        return StageWork(read_tokens=device.tokens, kept_states=len(config.layers or THREE) * tokens)

    def adapters(self) -> Adapters:
        """See `Job`."""
        own = () if self.config.kind == "probe" else (ROLE,)
        return Adapters(own, tuple(self.context.reward_adapters(self.config)), self.config.lora_rank)
