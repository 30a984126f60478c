"""What a training stage is rewarded by: the settings' parts, opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rlaif.config.finetune import BestOfKConfig
from rlaif.config.labelling import BaseStage
from rlaif.config.on_policy import OnPolicyConfig
from rlaif.config.rewards import (
    DirectivesPart,
    FormatPart,
    FunctionPart,
    JudgePart,
    LengthPart,
    ModelPart,
    ModerationPart,
    PatternPart,
    RewardPart,
    RubricPart,
)
from rlaif.digest import digest
from rlaif.directives.training import DirectiveReward
from rlaif.errors import ConfigError, DataError
from rlaif.jobs.asked import warn_of_other_questions
from rlaif.jobs.base import usable
from rlaif.jobs.context import RunContext
from rlaif.jobs.moderators import check_moderator, moderation_score, moderator_digest, open_moderator
from rlaif.judging.protocols import JudgingProtocol, Pointwise
from rlaif.judging.rubric import Rubric
from rlaif.judging.table import open_judge, open_protocol
from rlaif.metrics import load_metric
from rlaif.models.probe_files import protocol_of
from rlaif.ranks import current
from rlaif.results.costs import TrainingCost
from rlaif.reward.cohort import CohortReward
from rlaif.reward.functions import (
    FormatReward,
    FunctionReward,
    JudgeReward,
    LengthReward,
    PatternReward,
    RewardFunction,
    RewardSum,
    ScoredReward,
)
from rlaif.reward.rubric import RubricReward
from rlaif.stages.label import askable
from rlaif.types import Completion, Message, Prompt

__all__ = [
    "check_rewards",
    "check_rubrics",
    "model_reward",
    "open_reward",
    "rewards_digest",
    "with_curve_named",
]

TO_SCORE = "give them a column `rubric`, or a score in the reward's `without`"


def open_reward(parts: Mapping[str, RewardPart], config: BaseStage, context: RunContext) -> RewardSum:
    """The weighted sum that `parts` of the stage `config` describe.

    Raises:
        RlaifError: A part names a stage, folder or function that is not there, or a model of another base.
    """
    return RewardSum(
        {name: (part.weight, _opened(name, part, config, context)) for name, part in parts.items()}
    )


def _opened(name: str, part: RewardPart, config: BaseStage, context: RunContext) -> RewardFunction:
    match part:
        case ModelPart():
            return model_reward(config, part.reward, context)
        case JudgePart() if part.mode == "cohort":
            return _cohort_reward(name, part, config, context)
        case JudgePart():
            _warn(part, Pointwise, context)
            engine, rules = context.engines.get(context.model(part.judge)), usable(context, "question")
            return JudgeReward(
                engine, context.library, rules, scale=part.scale, least_share=part.min_label_share
            )
        case RubricPart():
            return RubricReward(
                context.engines.get(context.model(part.judge)),
                context.library,
                aggregate=part.aggregate,
                without=part.without,
                name=name,
                least_share=part.min_label_share,
            )
        case ModerationPart():
            return ScoredReward(
                name, partial(moderation_score, part, open_moderator(part.path, context), context)
            )
        case DirectivesPart():
            return DirectiveReward(
                context.engines.get(context.model(part.judge)),
                context.library,
                context.steered[config.name].under,
                scale=part.scale,
                name=name,
                least_share=part.min_label_share,
            )
        case FunctionPart():
            return _asked_by_first(FunctionReward(part.function, name=name))
        case LengthPart():
            return LengthReward(min_words=part.min_words, max_words=part.max_words, name=name)
        case PatternPart():
            return PatternReward(part.pattern, name=name)
        case FormatPart():
            return FormatReward(part.pattern, name=name)


def _cohort_reward(name: str, part: JudgePart, config: BaseStage, context: RunContext) -> CohortReward:
    protocol = _cohort_protocol(part, context)
    _warn(part, protocol, context)
    judge = open_judge(
        context.engines.get(context.model(part.judge)),
        protocol,
        usable(context, protocol.half),
        principles="all",
        seed=context.seed(config),
    )
    return CohortReward(judge, seed=context.seed(config), name=name)


def _warn(part: JudgePart, protocol: JudgingProtocol | type[JudgingProtocol], context: RunContext) -> None:
    judge = context.model(part.judge)
    warn_of_other_questions(judge, protocol, context.constitution, context.library, context.progress)


def _cohort_protocol(part: JudgePart, context: RunContext) -> JudgingProtocol:
    """How two completions are compared.

    Raises:
        ConfigError: By a protocol that reads a column of the prompts.
    """
    named = protocol_of(context.model(part.judge), part.protocol, context.constitution.protocol)
    protocol = open_protocol(
        named, library=context.library, constitution=context.constitution, least_share=part.min_label_share
    )
    if protocol.needs:
        raise ConfigError(
            f"a cohort cannot be compared by {named}: prompts of a rollout have no {protocol.needs} for it",
            remedy="choose pairwise, pointwise, cot or commit",
        )
    return protocol


def _asked_by_first(reward: RewardFunction) -> RewardFunction:
    """A reward of your own, called once where several ranks want its scores."""
    ranks = current()
    return (
        reward
        if ranks.count == 1
        else lambda prompts, completions: ranks.from_first(lambda: reward(prompts, completions))
    )


def check_rewards(parts: Mapping[str, RewardPart], config: BaseStage, context: RunContext) -> None:
    """Find out whether what the parts name is there, before a model is loaded for them.

    Raises:
        RlaifError: A reward model's folder is missing, no reward stage comes before, a function cannot be
            imported, or a trained judge would be asked what it was not trained for.
    """
    stages = {stage.name for stage in context.recipe.stages}
    for part in parts.values():
        if isinstance(part, ModelPart):
            if part.reward is None or part.reward in stages:
                context.earlier(config, "reward", part.reward)
            elif not Path(part.reward).is_dir():
                remedy = "name a reward stage before this one, or a folder that one left (its model/)"
                raise DataError("there is no reward model", where=part.reward, remedy=remedy)
        if isinstance(part, ModerationPart):
            check_moderator(part.path)
        if isinstance(part, FunctionPart):
            load_metric(part.function, what="reward function")
        if isinstance(part, RubricPart):
            protocol_of(context.model(part.judge), Rubric.name, Rubric.name)
        if isinstance(part, JudgePart) and part.mode == "cohort":
            _cohort_protocol(part, context)
        elif isinstance(part, JudgePart | DirectivesPart):
            protocol_of(context.model(part.judge), Pointwise.name, Pointwise.name)


def check_rubrics(
    parts: Mapping[str, RewardPart], prompts: Sequence[Prompt], config: BaseStage, context: RunContext
) -> None:
    """Find out whether the prompts have the rubrics that a part reads; how many have none is told.

    Raises:
        DataError: Some have none, and the part gives them no score.
    """
    for name, part in parts.items():
        if not isinstance(part, RubricPart):
            continue
        lacking = sum(not prompt.rubric for prompt in prompts)
        if part.without is None and lacking:
            askable(prompts, "rubric", where=f"{config.name}, reward `{name}`", remedy=TO_SCORE)
        elif lacking:
            told = f"{lacking} of {len(prompts)} prompts have no rubric"
            context.progress.note(f"{config.name}: {told}: their reward `{name}` is {part.without:g}")


def model_reward(config: BaseStage, named: str | None, context: RunContext) -> RewardFunction:
    """The scores of the reward model that `named` calls for."""
    model = context.reward_model(config, named)

    def score(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        read = [
            [*context.library.policy(prompt), Message("assistant", completion.text)]
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return model.score(read)

    return ScoredReward("model", score)


def rewards_digest(parts: Mapping[str, RewardPart], config: BaseStage, context: RunContext) -> str:
    """Digest of the parts' settings and of what stands behind their names."""

    def behind(part: RewardPart) -> str:
        if isinstance(part, ModelPart):
            return context.reward_digest(config, part.reward)
        if isinstance(part, ModerationPart):
            return moderator_digest(part.path)
        if isinstance(part, RubricPart):
            return context.engines.card(context.model(part.judge)).label + context.library.digest(
                Rubric.template
            )
        if isinstance(part, DirectivesPart):
            card = context.engines.card(context.model(part.judge))
            asked = context.steered[config.name].digest
            return card.label + asked + context.library.digest(Pointwise.template)
        if isinstance(part, JudgePart) and part.mode == "cohort":
            protocol = _cohort_protocol(part, context)
            return context.engines.card(context.model(part.judge)).label + digest(
                [context.constitution.digest, protocol.name, protocol.digest(context.library)]
            )
        if isinstance(part, JudgePart):
            return context.engines.card(context.model(part.judge)).label + context.constitution.digest
        return ""

    return digest(
        [
            [
                name,
                part.model_dump(mode="json", exclude={"reward", "judge", "path", *_new(part)}),
                behind(part),
            ]
            for name, part in parts.items()
        ]
    )


def _new(part: RewardPart) -> tuple[str, ...]:
    """Settings that rewards had not, before one set them: digests of older runs are without."""
    return ("mode", "protocol") if isinstance(part, JudgePart) and part.mode == "alone" else ()


def with_curve_named(
    cost: TrainingCost, config: OnPolicyConfig | BestOfKConfig, context: RunContext
) -> TrainingCost:
    """The cost with what its curve shows; it compares with curves of the same reward, sampling temperature
    and longest completion."""
    of_models = all(isinstance(part, ModelPart) for part in config.reward.values())
    return replace(
        cost,
        shows=f"{'reward-model score' if of_models else 'reward'} of training prompts",
        basis=digest(
            [rewards_digest(config.reward, config, context), config.temperature, config.max_new_tokens]
        ),
    )
