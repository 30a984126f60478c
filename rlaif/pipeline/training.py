"""The training stages as jobs of a run: reward model and PPO."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rlaif.config.stages import BaseStage
from rlaif.config.training import PreferenceFile, RewardConfig
from rlaif.config.training_ppo import FormatPart, FunctionPart, JudgePart, LengthPart, ModelPart, PatternPart, PpoConfig, RewardPart
from rlaif.digest import digest
from rlaif.errors import DataError
from rlaif.models.reward_files import save_reward_model
from rlaif.pipeline.context import Context
from rlaif.pipeline.inputs import load_prompts, prompts_digest
from rlaif.pipeline.jobs import Outcome, settings_digest, usable
from rlaif.report.training import ppo_markdown, reward_markdown
from rlaif.rl.learner import POLICY
from rlaif.rl.ppo import StepReport
from rlaif.rl.rewards import (
    FormatReward,
    FunctionReward,
    JudgeReward,
    LengthReward,
    PatternReward,
    RewardFunction,
    RewardSum,
    ScoredReward,
    import_function,
)
from rlaif.runs.tables import read_table
from rlaif.runs.writers import RowWriter, write_text
from rlaif.stages.ppo import train_ppo
from rlaif.stages.preferences import PreferencePair, pairs_from_rows
from rlaif.stages.reward import train_reward
from rlaif.types import Completion, Message, Prompt

__all__ = ["PpoJob", "RewardJob", "conversations", "read_pairs", "reward_of"]

SAMPLES_KEPT = 4
"""Completions of each PPO step that are written out, to read how the policy changes."""


class RewardJob:
    """Preferences in, a reward model out: `model/`, `report.json`, `metrics.jsonl`."""

    def __init__(self, config: RewardConfig, context: Context) -> None:
        self.config = config
        self.context = context
        self.base = context.model(config.model)

    @cached_property
    def pairs(self) -> list[PreferencePair]:
        """What is learned from: the label stage's preferences and the files', each with its weight."""
        found: list[PreferencePair] = []
        for file in self._files():
            found += read_pairs(file.file, weight=file.weight, hard=self.config.labels == "hard")
        return found

    @cached_property
    def human(self) -> list[PreferencePair]:
        """Pairs that people labelled, for the report."""
        return read_pairs(self.config.human) if self.config.human else []

    def parts(self) -> dict[str, str]:
        """See `Job`."""
        return {
            "settings": settings_digest(self.config, "input", "files", "human", "model"),
            "preferences": digest([_pair_digest(pair) for pair in self.pairs]),
            "human labels": digest([_pair_digest(pair) for pair in self.human]),
            "base": self.context.base(self.base).identity, "seed": str(self.context.seed(self.config)),
            "constitution": self.context.constitution.digest,
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return {"reward": f"{self.base}@{self.context.base(self.base).identity}"}

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        context = self.context
        with RowWriter(folder / "metrics.jsonl", "jsonl") as metrics:
            result = train_reward(
                self.pairs, base=context.base(self.base), config=self.config, seed=context.seed(self.config), role=self.config.name,
                human=self.human, constitution=context.constitution.digest, progress=context.progress,
                log=lambda step: metrics.write(step._asdict()),
            )
        note = {"constitution": context.constitution.name, "preferences": self.parts()["preferences"]}
        save_reward_model(result.model, folder / "model", probes=result.probes, note=note)
        context.rewards[self.config.name] = result.model
        report = result.report.as_dict()
        write_text(folder / "report.json", json.dumps(report, indent=2) + "\n")
        write_text(folder / "samples.md", reward_markdown(report))
        counts = {"pairs": len(self.pairs), "human_pairs": len(self.human), "steps": len(result.steps)}
        return Outcome(counts=counts, rows={"report.json": 1, "metrics.jsonl": metrics.rows})

    def _files(self) -> Iterator[PreferenceFile]:
        if self.config.input or not self.config.files:
            folder = self.context.folder_of(self.config, "label", self.config.input)
            yield PreferenceFile(file=str(next(path for path in sorted(folder.iterdir()) if path.stem == "preferences")))
        yield from self.config.files


class PpoJob:
    """Prompts and a reward in, a policy out: `adapter/`, `metrics.jsonl`, `completions.jsonl`."""

    def __init__(self, config: PpoConfig, context: Context) -> None:
        self.config = config
        self.context = context
        self.prompts = load_prompts(config, own_split="rl", seed=context.seed(config), progress=context.progress)
        context.claim_prompts("rl", self.prompts)

    def parts(self) -> dict[str, str]:
        """See `Job`."""
        return {
            "settings": settings_digest(self.config, "prompts", "prompt_column", "context_column", "split", "limit"),
            "prompts": prompts_digest(self.prompts), "base": self.context.base().identity,
            "rewards": digest([self._reward_digest(part) for part in self.config.reward.values()]),
            "templates": self.context.library.digest("policy"), "seed": str(self.context.seed(self.config)),
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return {"policy": f"{self.context.recipe.model}@{self.context.base().identity}"}

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        context, base = self.context, self.context.base()
        reward = RewardSum({name: (part.weight, reward_of(part, self.config, context)) for name, part in self.config.reward.items()})
        context.progress.begin(f"PPO, {self.config.steps} steps of {self.config.episodes} episodes", self.config.steps)
        try:
            with RowWriter(folder / "metrics.jsonl", "jsonl") as metrics, RowWriter(folder / "completions.jsonl", "jsonl") as samples:
                result = train_ppo(
                    self.prompts, base=base, reward=reward, config=self.config, seed=context.seed(self.config),
                    messages=context.library.policy, on_step=lambda step: self._told(step, metrics.write),
                    on_rollout=lambda report: _keep_samples(report, samples.write),
                    checkpoint_folder=context.work_folder(self.config.name),
                )
            base.save_adapter(POLICY, folder / "adapter")
        finally:
            if POLICY in base.roles:
                base.drop_adapter(POLICY)
        if result.stopped:
            context.progress.note(f"{self.config.name}: stopped early at {result.stopped}")
        write_text(folder / "samples.md", ppo_markdown(result.history))
        counts = {"prompts": len(self.prompts), "steps": result.steps, "episodes": result.steps * self.config.episodes}
        return Outcome(counts=counts, rows={"metrics.jsonl": metrics.rows, "completions.jsonl": samples.rows})

    def _told(self, step: Mapping[str, Any], write: Callable[[Mapping[str, Any]], None]) -> None:
        write(dict(step))
        self.context.progress.advance()

    def _reward_digest(self, part: RewardPart) -> list[object]:
        """The part's settings, and what stands behind its name."""
        behind = self.context.reward_digest(self.config, part.reward) if isinstance(part, ModelPart) else ""
        if isinstance(part, JudgePart):
            behind = self.context.engines.card(self.context.model(part.judge)).label + self.context.constitution.digest
        return [part.model_dump(mode="json"), behind]


def read_pairs(source: str, *, weight: float = 1.0, hard: bool = False) -> list[PreferencePair]:
    """Preferences from a file or a hub dataset.

    Raises:
        DataError: It cannot be read, or has rows that cannot be trained on; all are listed.
    """
    table = read_table(source)
    if table.problems:
        what = f"{len(table.problems)} rows cannot be read"
        raise DataError(what, where=source, problems=table.problems[:20], remedy="mend or remove them")
    return pairs_from_rows((row.values for row in table.rows), source=source, weight=weight, hard=hard)


def reward_of(part: RewardPart, config: BaseStage, context: Context) -> RewardFunction:
    """The function that a part of the reward names.

    Raises:
        ConfigError: It names a stage or function that is not there.
        ModelError: The reward model cannot be loaded, or is of another base.
    """
    match part:
        case ModelPart():
            model = context.reward_model(config, part.reward)
            return ScoredReward("model", lambda prompts, completions: model.score(conversations(prompts, completions, context)))
        case FunctionPart():
            return FunctionReward(import_function(part.function))
        case JudgePart():
            return JudgeReward(
                context.engines.get(context.model(part.judge)), context.library, usable(context, "question"), scale=part.scale
            )
        case LengthPart():
            return LengthReward(min_words=part.min_words, max_words=part.max_words)
        case PatternPart():
            return PatternReward(part.pattern)
        case FormatPart():
            return FormatReward(part.pattern)


def conversations(prompts: Sequence[Prompt], completions: Sequence[Completion], context: Context) -> list[list[Message]]:
    """What a reward model reads: the conversation as the policy read it, and the completion."""
    return [
        [*context.library.policy(prompt), Message("assistant", completion.text)]
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _pair_digest(pair: PreferencePair) -> str:
    return digest([repr(pair)])


def _keep_samples(report: StepReport, write: Callable[[Mapping[str, Any]], None]) -> None:
    for row, score in list(zip(report.episodes.rows, report.scores.total, strict=True))[:SAMPLES_KEPT]:
        write({
            "step": report.metrics["step"], "prompt_id": row.prompt.id,
            "prompt": [message.as_dict() for message in row.prompt.messages], "completion": row.completion.text, "score": score,
        })
