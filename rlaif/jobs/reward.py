"""The stage `reward`: preferences in, a reward model out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from rlaif.config.reward import PreferenceFile, RewardConfig
from rlaif.errors import DataError
from rlaif.files import folder_digest
from rlaif.io.writers import RowWriter, write_text
from rlaif.jobs.base import SCORED, AnyJob, Job, Outcome, read_typed, settings_digest
from rlaif.jobs.cards import judges_of, write_card
from rlaif.jobs.context import RunContext
from rlaif.jobs.label import LabelJob
from rlaif.jobs.learned_rows import label_files, pairs_digest, read_preferences, renderable, skipper
from rlaif.jobs.lengths import MICRO_TOKENS, Adapters, Device, Lengths
from rlaif.jobs.planning import StagePlan, counter_of, estimated_seconds, tokens_of
from rlaif.models.memory import StageWork
from rlaif.report.shown import Shown
from rlaif.report.training import reward_markdown, reward_shown
from rlaif.results.preferences import PreferencePair
from rlaif.results.reward import RewardReport
from rlaif.reward.files import load_reward_model, save_reward_model
from rlaif.reward.model import RewardModel
from rlaif.runs.manifest import Manifest
from rlaif.stages.reward import train_reward
from rlaif.types import Comparison, Message

__all__ = ["RewardJob"]


class RewardJob(Job[RewardConfig]):
    """Preferences in, a reward model out: `model/`, `report.json`, `metrics.jsonl`."""

    method = "a reward model on preference labels"
    loading = "With its head, by rlaif: `rlaif ppo --reward FOLDER`, `rlaif evaluate --reward FOLDER`."

    def __init__(self, config: RewardConfig, context: RunContext) -> None:
        super().__init__(config, context)
        self.base = context.model(config.model)

    @cached_property
    def pairs(self) -> list[PreferencePair]:
        """What is learned from: the label stage's preferences and the files', each with its weight."""
        found: list[PreferencePair] = []
        for file in self._files():
            found += read_preferences(
                file.file,
                weight=file.weight,
                hard=self.config.labels == "hard",
                skipped=skipper(self.config, file.file, self.context),
                note=self.context.progress.note,
            )
        return found

    def _files(self) -> Iterator[PreferenceFile]:
        return label_files(self.config, self.config.input, self.config.files, self.context)

    def _fresh(self) -> str:
        """The preferences of the label stage; empty where only files are learned from, which an earlier model
        may know."""
        labelled = self.config.input or not self.config.files
        return next(self._files()).file if labelled else ""

    @cached_property
    def human(self) -> list[PreferencePair]:
        """Pairs that people labelled, for the report."""
        if not self.config.human:
            return []
        found = read_preferences(
            self.config.human,
            skipped=skipper(self.config, self.config.human, self.context),
            note=self.context.progress.note,
        )
        learned = {_content(pair) for pair in self.pairs}
        if shared := sum(_content(pair) in learned for pair in found):
            raise DataError(
                f"{shared} of {len(found)} pairs of `human` are among the preferences that are learned from",
                where=self.config.human,
                remedy="give pairs that were held out: an accuracy on what was learned says nothing",
            )
        return found

    def key_parts(self) -> dict[str, str]:
        """See `Job`."""
        return {
            "settings": settings_digest(
                self.config, "input", "files", "human", "model", "uninformative", "previous"
            ),
            "preferences": pairs_digest(self.pairs),
            "human labels": pairs_digest(self.human),
            "base": self.context.bases.get(self.base).identity,
            "seed": str(self.context.seed(self.config)),
            "constitution": self.context.constitution.digest,
            **({"previous": folder_digest(Path(previous))} if (previous := self.config.previous) else {}),
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return {"reward": f"{self.base}@{self.context.bases.get(self.base).identity}"}

    def dry_run(self, earlier: Mapping[str, AnyJob]) -> StagePlan:
        """See `Job`. Labels that a stage of the run will give are counted; those of files are not."""
        plan, config = super().dry_run(earlier), self.config
        jobs = [job for job in earlier.values() if isinstance(job, LabelJob)]
        named = [job for job in jobs if config.input in (None, job.config.name)]
        if config.files or not named:
            return plan
        pairs = named[-1].planned(earlier)
        prompt, completion = self._tokens(pairs)
        texts = {(each.prompt.id, side.index) for each in pairs for side in (each.a, each.b)}
        read = prompt * len({each.prompt.id for each in pairs}) + completion * len(texts)
        learned = 0 if config.keep == "head" else config.epochs * len(pairs) * (prompt + 2 * completion)
        time = estimated_seconds(
            self.base, self.context, SCORED * read, 0, learned=learned * config.ensemble.members
        )
        return replace(plan, counts=plan.counts | {"pairs": len(pairs)}, read=round(read), seconds=time)

    def _tokens(self, pairs: Sequence[Comparison]) -> tuple[float, float]:
        """Of a prompt, and of a completion behind it, on average."""
        counter, policy = counter_of(self.base), self.context.library.policy
        prompts = [policy(each.prompt) for each in pairs]
        whole = [
            (*messages, Message("assistant", each.a.text))
            for messages, each in zip(prompts, pairs, strict=True)
        ]
        few, many = (tokens_of(counter, each) / max(1, len(pairs)) for each in (prompts, whole))
        return few, many - few

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        context = self.context
        pairs, human = (
            renderable(each, context.bases.get(self.base), self.config, context)
            for each in (self.pairs, self.human)
        )
        with self._previous() as previous, RowWriter(folder / "metrics.jsonl", "jsonl") as metrics:
            result = train_reward(
                pairs,
                base=context.bases.get(self.base),
                config=self.config,
                seed=context.seed(self.config),
                role=self.config.name,
                human=human,
                previous=previous,
                fresh=self._fresh(),
                constitution=context.constitution.digest,
                progress=context.progress,
                log=lambda step: metrics.write(step._asdict()),
            )
        parts, judge = self.key_parts(), judges_of(file.file for file in self._files())
        note = {
            "constitution": context.constitution.name,
            "preferences": parts["preferences"],
            "judge": judge,
        }
        save_reward_model(result.model, folder / "model", probes=result.probes, note=note)
        context.bases.keep_reward(self.config.name, result.model)
        report = result.report.as_dict()
        kept = report["held_out"][report["kept"]]
        results = {name: kept[name] for name in ("pairs", "accuracy", "low", "high", "loss", "ece")}
        write_card(
            folder / "model",
            self,
            base=context.bases.get(self.base),
            parts=parts,
            judge=judge,
            results=results,
        )
        write_text(folder / "report.json", json.dumps(report, indent=2) + "\n")
        write_text(folder / "samples.md", reward_markdown(result.report))
        counts = {"pairs": len(pairs), "human_pairs": len(human), "steps": len(result.steps)}
        return Outcome(counts=counts, rows={"report.json": 1, "metrics.jsonl": metrics.rows})

    @contextmanager
    def _previous(self) -> Iterator[RewardModel | None]:
        """The earlier model that the settings name, on the base as long as the block."""
        if self.config.previous is None:
            yield None
            return
        base = self.context.bases.get(self.base)
        model = load_reward_model(
            base,
            Path(self.config.previous),
            name=f"{self.config.name}-before",
            constitution=self.context.constitution.digest,
            log=self.context.progress.note,
        )
        try:
            yield model
        finally:
            for role in {member.role for member in model.members} & set(base.roles):
                base.drop_adapter(role)

    def summary(self, folder: Path, manifest: Manifest) -> Sequence[Shown]:
        """See `Job`."""
        return reward_shown(read_typed(folder / "report.json", RewardReport))

    def memory_work(self, lengths: Lengths, device: Device) -> StageWork | None:
        """See `Job`."""
        config = self.config
        micro = config.micro_tokens or MICRO_TOKENS.get(device.kind, 1024)
        return StageWork(
            micro_tokens=micro if config.keep != "head" else 0,
            read_tokens=device.tokens,
            checkpointing=config.gradient_checkpointing,
        )

    def adapters(self) -> Adapters:
        """See `Job`."""
        trained = ("reward",) if self.config.keep != "head" else ()
        earlier = sorted(Path(self.config.previous).glob("adapter-*")) if self.config.previous else ()
        read = (
            *self.context.reward_adapters(self.config),
            *(f"{each.name} of `previous`" for each in earlier),
        )
        return Adapters(trained, read, self.config.lora_rank)


def _content(pair: PreferencePair) -> tuple[object, ...]:
    """What is compared, whoever won."""
    return pair.group, *sorted((pair.chosen, pair.rejected))
