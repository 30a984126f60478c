"""Rewards to use from Python: a trained reward model, and any reward as a function that TRL's trainers
take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlaif.errors import ConfigError, ModelError
from rlaif.files import read_object
from rlaif.interface.judge import Judge
from rlaif.interface.values import Chat, as_completions, as_prompts
from rlaif.io.rubrics import rubric_of_row
from rlaif.judging.rubric import Rubric
from rlaif.metrics import Metric
from rlaif.models.shared_base import SharedBase
from rlaif.reward.files import ABOUT, load_reward_model
from rlaif.reward.functions import FunctionReward, RewardFunction, RewardSum, ScoredReward, Scores
from rlaif.reward.model import RewardModel as Scorer
from rlaif.types import Completion, Message, Prompt

__all__ = ["Reward", "RewardModel", "as_reward", "reward_function"]


class RewardModel:
    """A trained reward model on its base.

    Attributes:
        model: What scores conversations as messages.
    """

    def __init__(self, model: Scorer) -> None:
        self.model = model

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        base: SharedBase | str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        name: str = "reward",
    ) -> RewardModel:
        """Load the reward model that `rlaif reward` left in its `model/`.

        Args:
            base: The resident base to put it on, or the name of a model to load; the model that it was
                trained on when left out.
            name: Of its adapter on the base.

        Raises:
            ModelError: The folder holds no reward model, or the base is another one.
        """
        place = Path(folder)
        if not isinstance(base, SharedBase):
            about = read_object(
                place / ABOUT,
                error=ModelError,
                what="the note of the reward model",
                remedy="name the folder `model/` of a reward stage",
            )
            base = SharedBase.load(base or str(about["base"]["name"]), dtype=dtype, device=device)
        return cls(load_reward_model(base, place, name=name))

    @property
    def base(self) -> SharedBase:
        """The resident base that it reads through."""
        return self.model.base

    def score(
        self, prompts: Sequence[Chat | Prompt], completions: Sequence[Chat | Completion]
    ) -> list[float]:
        """The normalised reward of each completion (mean 0 and standard deviation 1 over its training data).

        Raises:
            DataError: A prompt and its completion are longer than the context.
        """
        asked = as_prompts(prompts)
        given = as_completions(asked, completions)
        return self.model.score(
            [(*p.messages, Message("assistant", c.text)) for p, c in zip(asked, given, strict=True)]
        )


Reward = Judge | RewardModel | RewardFunction | Metric | Sequence[Any]
"""What rewards a completion: a judge, a reward model, a function `(prompt, completion) -> number`, or a list
of these, each alone or as `(weight, reward)`."""


def as_reward(reward: Reward, *, name: str | None = None) -> RewardFunction:
    """`reward` in the form that training takes.

    Raises:
        ConfigError: It is none, or a list without one.
    """
    match reward:
        case Judge() | RewardModel():
            return ScoredReward(name or type(reward).__name__.lower(), reward.score)
        case ScoredReward() | RewardSum():
            return reward
        case list() | tuple():
            return _weighted(reward)
    if not callable(reward):
        raise ConfigError(
            f"{type(reward).__name__} is not a reward",
            remedy="give a judge, a reward model, a function (prompt, completion) -> number, or a list of "
            "them",
        )
    return FunctionReward(reward, name=name or getattr(reward, "__name__", "function"))  # type: ignore[arg-type]


def reward_function(reward: Reward, *, name: str | None = None) -> Callable[..., list[float]]:
    """`reward` as a function that TRL's trainers take in `reward_funcs`:
    `(prompts, completions, **columns) -> list[float]`, for texts and for chat messages alike.

    A column `rubric` of the dataset is read where a judge asks by rubrics; the others are passed by and not
    read. May be called from a running event loop.

    Args:
        name: Under which trainers log it.

    Raises:
        ConfigError: It is not a reward.
    """
    scored = as_reward(reward, name=name)

    def function(prompts: Sequence[Chat], completions: Sequence[Chat], **columns: Any) -> list[float]:
        rubrics = columns.get("rubric") if _asks_rubrics(reward) else None
        asked = _with_rubrics(as_prompts(prompts), rubrics)
        found: Scores = scored(asked, as_completions(asked, completions))
        return list(found.total)

    function.__name__ = name or str(getattr(scored, "name", "rlaif"))
    return function


def _asks_rubrics(reward: Any) -> bool:
    if isinstance(reward, list | tuple):
        return any(map(_asks_rubrics, reward))
    return isinstance(reward, Judge) and reward.protocol == Rubric.name


def _with_rubrics(prompts: Sequence[Prompt], column: Sequence[Any] | None) -> list[Prompt]:
    """The prompts of a batch with its column of rubrics, if it has one."""
    if column is None:
        return list(prompts)
    return [
        replace(prompt, rubric=rubric_of_row({"rubric": value}))
        for prompt, value in zip(prompts, column, strict=True)
    ]


def _weighted(rewards: Sequence[Any]) -> RewardSum:
    parts: dict[str, tuple[float, RewardFunction]] = {}
    for each in rewards:
        weighted = isinstance(each, tuple) and len(each) == 2 and isinstance(each[0], int | float)
        weight, reward = each if weighted else (1.0, each)
        opened = as_reward(reward)
        name = str(getattr(opened, "name", "sum"))
        parts[f"{name}_{len(parts)}" if name in parts else name] = (float(weight), opened)
    return RewardSum(parts)
