"""Training and evaluation from Python: the stages' functions on plain texts, with models named or
resident."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rlaif.config.evaluation import EvaluateConfig
from rlaif.config.finetune import BestOfKConfig, DpoConfig, SftConfig
from rlaif.config.grpo import GrpoConfig
from rlaif.config.on_policy import OnPolicyConfig
from rlaif.config.ppo import PpoConfig
from rlaif.config.reward import RewardConfig
from rlaif.errors import ConfigError
from rlaif.interface.reward import Reward, RewardModel, as_reward
from rlaif.interface.values import Chat, as_prompts
from rlaif.io.training_rows import preference_of
from rlaif.models.shared_base import SharedBase
from rlaif.progress import Progress
from rlaif.results.best_of_k import BestOfKResult
from rlaif.results.evaluation import Evaluation
from rlaif.results.preferences import PreferencePair, pairs_from_rows
from rlaif.rl.learner import POLICY
from rlaif.stages import best_of_k as best_of_k_stage
from rlaif.stages import dpo as dpo_stage
from rlaif.stages import evaluate as evaluate_stage
from rlaif.stages import grpo as grpo_stage
from rlaif.stages import ppo as ppo_stage
from rlaif.stages import reward as reward_stage
from rlaif.stages import sft as sft_stage
from rlaif.stages.monitor import Monitor
from rlaif.stages.on_policy import OnPolicyResult
from rlaif.types import Prompt

__all__ = ["evaluate", "train_best_of_k", "train_dpo", "train_grpo", "train_ppo", "train_reward", "train_sft"]

START = "start"
Base = SharedBase | str
"""A resident base, or the name of a model to load as one."""
Method = TypeVar("Method", bound=OnPolicyConfig)


def train_reward(
    preferences: Iterable[PreferencePair | Mapping[str, Any]],
    *,
    base: Base,
    config: RewardConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[RewardModel, reward_stage.RewardResult]:
    """Train a reward model on preferences; returns the model, and the result with its report.

    Args:
        preferences: As `rlaif.read_preferences` gives them, or rows in any form that it reads.

    Raises:
        RlaifError: The preferences cannot be learned from, or the base cannot be loaded.
    """
    result = reward_stage.train_reward(
        _pairs(preferences), base=_base(base), config=config or RewardConfig(), seed=seed, progress=progress
    )
    return RewardModel(result.model), result


def train_ppo(
    prompts: Iterable[Chat | Prompt],
    *,
    base: Base,
    reward: Reward,
    config: PpoConfig | None = None,
    seed: int = 0,
    checkpoint_folder: Path | None = None,
    monitor: Monitor | None = None,
    out: str | Path | None = None,
) -> OnPolicyResult:
    """Train a policy by PPO against a reward; it is the adapter `policy` of the base.

    Args:
        reward: A reward model, a judge, a function, or a list of them with weights.
        checkpoint_folder: Checkpoints are written here, and training goes on from the newest one there.
        monitor: Looks at the policy along the way, where the settings have a `monitor`
            (`rlaif.stages.monitor.Monitor`).
        out: Folder to write the adapter to.

    Raises:
        RlaifError: See `rlaif.stages.ppo.train_ppo`.
    """
    settings = _plain(config or PpoConfig())
    resident = _base_of(base, reward)
    result = ppo_stage.train_ppo(
        as_prompts(prompts),
        base=resident,
        reward=as_reward(reward),
        config=settings,
        seed=seed,
        checkpoint_folder=checkpoint_folder,
        monitor=monitor,
    )
    _save(resident, out)
    return result


def train_grpo(
    prompts: Iterable[Chat | Prompt],
    *,
    base: Base,
    reward: Reward,
    config: GrpoConfig | None = None,
    seed: int = 0,
    checkpoint_folder: Path | None = None,
    monitor: Monitor | None = None,
    out: str | Path | None = None,
) -> OnPolicyResult:
    """Train a policy by GRPO against a reward; it is the adapter `policy` of the base.

    Args:
        reward, checkpoint_folder, monitor, out: As for `train_ppo`.

    Raises:
        RlaifError: See `rlaif.stages.grpo.train_grpo`.
    """
    settings = _plain(config or GrpoConfig())
    resident = _base_of(base, reward)
    result = grpo_stage.train_grpo(
        as_prompts(prompts),
        base=resident,
        reward=as_reward(reward),
        config=settings,
        seed=seed,
        checkpoint_folder=checkpoint_folder,
        monitor=monitor,
    )
    _save(resident, out)
    return result


def train_best_of_k(
    prompts: Iterable[Chat | Prompt],
    *,
    base: Base,
    reward: Reward,
    config: BestOfKConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    out: str | Path | None = None,
) -> BestOfKResult:
    """Fine-tune the adapter `policy` of the base on the best of K of its own samples.

    Args:
        reward, out: As for `train_ppo`.

    Raises:
        RlaifError: See `rlaif.stages.best_of_k.best_of_k`.
    """
    resident = _base_of(base, reward)
    result = best_of_k_stage.best_of_k(
        as_prompts(prompts),
        base=resident,
        reward=as_reward(reward),
        config=config or BestOfKConfig(),
        seed=seed,
        progress=progress,
    )
    _save(resident, out)
    return result


def train_sft(
    rows: Sequence[Mapping[str, Any]],
    *,
    base: Base,
    config: SftConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    out: str | Path | None = None,
) -> sft_stage.SftResult:
    """Fine-tune the adapter `policy` of the base on completions to imitate.

    Args:
        rows: With `prompt` and `completion` as lists of chat messages, and `weight` if there is one.
        out: Folder to write the adapter to.

    Raises:
        RlaifError: See `rlaif.stages.sft.train_sft`.
    """
    resident = _base(base)
    result = sft_stage.train_sft(
        rows, base=resident, config=config or SftConfig(), seed=seed, progress=progress
    )
    _save(resident, out)
    return result


def train_dpo(
    preferences: Iterable[PreferencePair | Mapping[str, Any]],
    *,
    base: Base,
    config: DpoConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    out: str | Path | None = None,
) -> dpo_stage.DpoResult:
    """Train the adapter `policy` of the base on preferences, without a reward model.

    Args:
        preferences: As for `train_reward`.
        out: Folder to write the adapter to.

    Raises:
        RlaifError: See `rlaif.stages.dpo.train_dpo`.
    """
    resident = _base(base)
    result = dpo_stage.train_dpo(
        _pairs(preferences), base=resident, config=config or DpoConfig(), seed=seed, progress=progress
    )
    _save(resident, out)
    return result


def evaluate(
    prompts: Iterable[Chat | Prompt],
    policies: Mapping[str, str | Path],
    *,
    base: Base,
    reward: Reward | None = None,
    config: EvaluateConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure policies on held-out prompts, beside the model that they were trained from.

    Args:
        policies: Folders of adapters by the names that the policies have in the result; the model without an
            adapter is `start`.
        config: `win_rate` needs a judge and is for recipes; it is off here.

    Raises:
        RlaifError: See `rlaif.stages.evaluate.evaluate`.
    """
    resident = _base(base)
    settings = config or EvaluateConfig(win_rate=False)
    with _loaded(resident, policies) as sources:
        return evaluate_stage.evaluate(
            as_prompts(prompts),
            sources,
            start=START,
            config=settings,
            seed=seed,
            reward=None if reward is None else as_reward(reward),
            progress=progress,
        )


@contextmanager
def _loaded(
    base: SharedBase, policies: Mapping[str, str | Path]
) -> Iterator[dict[str, evaluate_stage.PolicySource]]:
    """The policies as roles of the base, for as long as the block lasts."""
    roles = {name: f"evaluated-{number}" for number, name in enumerate(policies)}
    try:
        for name, folder in policies.items():
            base.load_adapter(roles[name], Path(folder))
        named = {name: evaluate_stage.PolicySource(base, role) for name, role in roles.items()}
        yield {START: evaluate_stage.PolicySource(base), **named}
    finally:
        for role in roles.values():
            if role in base.roles:
                base.drop_adapter(role)


def _plain(config: Method) -> Method:
    """The settings of a training from Python.

    Raises:
        ConfigError: They name directives, which a recipe draws prompts for.
    """
    if config.directives is not None:
        raise ConfigError(
            "`directives` act on the prompts of a recipe, and these prompts are given",
            where=config.directives.path,
            remedy="put the prompts under priors with `rlaif.directives.training.steer`, and reward them by "
            "its `DirectiveReward`",
        )
    return config


def _base(base: Base) -> SharedBase:
    return base if isinstance(base, SharedBase) else SharedBase.load(base)


def _base_of(base: Base, reward: Reward) -> SharedBase:
    """The resident base; a reward model of the same name is on it already."""
    if isinstance(reward, RewardModel) and base == reward.base.name:
        return reward.base
    return _base(base)


def _pairs(preferences: Iterable[PreferencePair | Mapping[str, Any]]) -> list[PreferencePair]:
    found: list[PreferencePair] = []
    for each in preferences:
        found += [each] if isinstance(each, PreferencePair) else pairs_from_rows([preference_of(each)])
    return found


def _save(base: SharedBase, out: str | Path | None) -> None:
    if out is not None:
        base.save_adapter(POLICY, Path(out))
