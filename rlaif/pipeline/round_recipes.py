"""The recipe of each round, made from the recipe with `rounds`, and what is refused before the first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.config import Recipe
from rlaif.config.evaluation import CompareConfig, EvaluateConfig
from rlaif.config.finetune import DpoConfig
from rlaif.config.labelling import BaseStage, LabelConfig, PromptSettings, SampleConfig
from rlaif.config.reward import PreferenceFile, RewardConfig
from rlaif.config.rounds import RoundsConfig
from rlaif.config.start import StartSettings
from rlaif.engines.journaled import NullMemo
from rlaif.errors import ConfigError, DataError
from rlaif.io.splits import check_disjoint
from rlaif.jobs.context import RunContext
from rlaif.jobs.inputs import OWN_SPLIT, load_prompts
from rlaif.jobs.monitoring import PURPOSE as MONITOR
from rlaif.jobs.table import make_job
from rlaif.pipeline.feedback import NO_FEEDBACK, Feedback
from rlaif.progress import NoProgress
from rlaif.types import Prompt

__all__ = [
    "FRESH",
    "Former",
    "check_rounds",
    "evaluation_of",
    "learns_from_feedback_alone",
    "policy_stage_of",
    "recipe_of_round",
    "rounds_of",
]

EVAL = "eval"
"""What evaluations put their prompts down for."""
FRESH = "fresh"
"""What the name of the evaluation on fresh prompts ends with."""


class Former(NamedTuple):
    """What a round takes from the rounds before it.

    Attributes:
        policy: The adapter of the last one.
        reward: Its reward model, if it trained one.
        preferences: What each labelled, and took from elsewhere, the first round first.
    """

    policy: Path
    reward: Path | None
    preferences: tuple[tuple[PreferenceFile, ...], ...]


def check_rounds(recipe: Recipe) -> None:
    """Refuse a recipe that cannot be run in rounds, prompts that will run out, and those that are trained on
    in one round and evaluated on in the same or a later one.

    Raises:
        ConfigError: A stage has no limit, trains what no later round can start from, or one is missing.
        DataError: Prompts run out before the last round, and how many are missing; or sets overlap.
    """
    settings = rounds_of(recipe)
    evaluation_of(recipe)
    for stage in recipe.stages:
        if stage.stage == "sft":
            raise ConfigError(
                "an `sft` stage merges its policy into the model, and a later round would start from another "
                "model",
                where=stage.name,
                remedy="fine-tune first, merge (--merge) and name the result as `model`; in rounds use "
                "best_of_k",
            )
        if isinstance(stage, LabelConfig) and stage.responses:
            raise ConfigError(
                "each round labels what its policy answers, and this stage labels a file",
                where=stage.name,
                remedy="put a `sample` stage before it, and leave `responses` out",
            )
        if _draws(stage) and stage.limit is None:  # type: ignore[attr-defined]
            raise ConfigError(
                "rounds take fresh prompts each time, so the stage must say how many",
                where=stage.name,
                remedy="set its `limit`",
            )
    trained: dict[str, Prompt] = {}
    for number in range(1, settings.count + 1):
        own = recipe_of_round(recipe, number, None)
        for stage in own.stages:
            if isinstance(stage, PromptSettings) and stage.skip:
                _check_supply(stage, recipe, number)
        _check_disjoint(own, number, trained)


def _check_disjoint(own: Recipe, number: int, trained: dict[str, Prompt]) -> None:
    """Have the stages of a round put down their prompts, and add those that it trains on to `trained`."""
    context = RunContext(own, memo=NullMemo(), progress=NoProgress())
    try:
        for stage in own.stages:
            if isinstance(stage, PromptSettings):
                make_job(stage, context)
        for purpose, claimed in context.claimed.items():
            if purpose not in (EVAL, MONITOR):
                trained.update(claimed)
        if not own.allow_prompt_overlap:
            held_out = list(context.claimed.get(EVAL, {}).values())
            check_disjoint({"trained on so far": list(trained.values()), EVAL: held_out})
    except DataError as error:
        raise DataError(
            f"in round {number}: {error.what}",
            where=error.where,
            remedy=error.remedy,
            problems=error.problems,
        ) from None


def _check_supply(stage: PromptSettings, recipe: Recipe, number: int) -> None:
    assert isinstance(stage, BaseStage)
    seed = recipe.seed if stage.seed is None else stage.seed
    try:
        load_prompts(stage, own_split=OWN_SPLIT.get(stage.stage, "rl"), seed=seed, progress=NoProgress())
    except DataError as error:
        raise DataError(
            f"prompts run out in round {number}: {error.what}",
            where=f"{stage.name}: {error.where}",
            remedy=error.remedy,
        ) from None


# One round


def recipe_of_round(
    recipe: Recipe, number: int, former: Former | None, feedback: Feedback = NO_FEEDBACK
) -> Recipe:
    """The recipe of a round, counted from 1: its prompts are others, its policies start from the one before,
    and it learns from the preferences that it shall remember.

    `revise` keeps to its own `policy`, the model without any adapter where it names none: what it writes are
    demonstrations that hold a policy back (`ptx`), and they must not move along with it.
    """
    settings = rounds_of(recipe)
    stages = []
    for stage in recipe.stages:
        stages.append(_own(stage, recipe, number, former, feedback))
        if isinstance(stage, EvaluateConfig) and stage is evaluation_of(recipe) and settings.fresh:
            stages.append(_on_fresh_prompts(stages[-1], settings.fresh, number))
    return recipe.model_copy(
        update={"name": f"{recipe.name}-round-{number}"[:100], "stages": tuple(stages), "rounds": None}
    )


def _own(stage: BaseStage, recipe: Recipe, number: int, former: Former | None, feedback: Feedback) -> Any:
    settings, changed = rounds_of(recipe), dict[str, Any]()
    if _draws(stage):
        changed["skip"] = stage.skip + (number - 1) * stage.limit  # type: ignore[attr-defined]
    if isinstance(stage, CompareConfig) and not stage.evaluations and settings.fresh:
        changed["evaluations"] = (evaluation_of(recipe).name,)
    if isinstance(stage, SampleConfig) and feedback.prompts:
        changed["also"] = (*stage.also, *feedback.prompts)
    if isinstance(stage, RewardConfig | DpoConfig):
        changed |= _remembering(stage, recipe, former.preferences if former else (), feedback)
    if former is not None:
        starts = isinstance(stage, SampleConfig | StartSettings)
        if starts and stage.policy is None:  # type: ignore[attr-defined]
            changed["policy"] = str(former.policy)
            if isinstance(stage, StartSettings):
                changed["reference"] = settings.reference
        if isinstance(stage, RewardConfig) and former.reward is not None:
            changed["previous"] = str(former.reward)
            changed["further"] = settings.reward == "further"
        if isinstance(stage, EvaluateConfig):
            before = [each.name for each in _before(stage, recipe) if each.trains_policy]
            changed["policies"] = (str(former.policy), *(stage.policies or before))
    return stage.model_copy(update=changed)


def _remembering(
    stage: RewardConfig | DpoConfig,
    recipe: Recipe,
    earlier: Sequence[tuple[PreferenceFile, ...]],
    feedback: Feedback,
) -> dict[str, Any]:
    """The label stage that a stage reads, the preferences of earlier rounds, and those from elsewhere."""
    if stage.files and stage.input is None:  # it learns from files alone
        return {"files": (*stage.files, *feedback.preferences)}
    memory = rounds_of(recipe).memory
    if memory == "all":
        kept = earlier
    else:
        count = 0 if memory == "last" else memory - 1
        kept = earlier[max(0, len(earlier) - count) :]
    remembered = [file for files in kept for file in files]
    if not remembered and not feedback.preferences:
        return {}
    labelled = [each.name for each in _before(stage, recipe) if isinstance(each, LabelConfig)]
    own = stage.input or (labelled[-1] if labelled else None)
    return {"files": (*stage.files, *remembered, *feedback.preferences), "input": own}


def learns_from_feedback_alone(recipe: Recipe) -> bool:
    """Whether a stage learns from preferences, and only those from elsewhere are new in a round."""
    learning = [each for each in recipe.stages if isinstance(each, RewardConfig | DpoConfig)]
    return any(
        not each.files and not any(isinstance(stage, LabelConfig) for stage in _before(each, recipe))
        for each in learning
    )


def _on_fresh_prompts(stage: EvaluateConfig, count: int, number: int) -> EvaluateConfig:
    assert stage.limit is not None
    skip = stage.skip + stage.limit + (number - 1) * count
    return stage.model_copy(update={"name": f"{stage.name}-{FRESH}", "limit": count, "skip": skip})


def _draws(stage: BaseStage) -> bool:
    """Whether a stage takes fresh prompts each round; evaluation has the same each time."""
    return stage.stage in ("sample", "revise", "ppo", "grpo", "best_of_k")


def _before(stage: BaseStage, recipe: Recipe) -> Sequence[BaseStage]:
    return recipe.stages[: [each.name for each in recipe.stages].index(stage.name)]


def rounds_of(recipe: Recipe) -> RoundsConfig:
    """The settings of its rounds; one round where it has none."""
    return recipe.rounds or RoundsConfig(count=1)


def policy_stage_of(recipe: Recipe) -> BaseStage:
    """The stage whose policy goes on."""
    named = rounds_of(recipe).policy
    found = [each for each in recipe.stages if each.trains_policy and named in (None, each.name)]
    if not found:
        what = "a stage that trains a policy" if named is None else f"no stage {named!r} that trains a policy"
        raise ConfigError(
            f"rounds need {what}" if named is None else f"there is {what}",
            where="rounds",
            remedy="add ppo, grpo, best_of_k or dpo, and name it in `rounds.policy` where there are several",
        )
    return found[-1]


def evaluation_of(recipe: Recipe) -> EvaluateConfig:
    """The evaluation on the prompts that all rounds share."""
    after = recipe.stages[[each.name for each in recipe.stages].index(policy_stage_of(recipe).name) :]
    found = [each for each in after if isinstance(each, EvaluateConfig)]
    if not found:
        raise ConfigError(
            "rounds need an `evaluate` stage after the policy that goes on",
            where="rounds",
            remedy="add one with a `limit`, and a `gold` measure that no training signal touches",
        )
    if found[0].limit is None and rounds_of(recipe).fresh:
        raise ConfigError(
            "the prompts that all rounds are evaluated on, and the fresh ones, must be told apart",
            where=found[0].name,
            remedy="set its `limit`, or `rounds: {fresh: null}`",
        )
    return found[0]
