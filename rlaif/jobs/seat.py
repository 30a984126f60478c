"""One judge of a label stage: what it is asked by, whether it may be trusted, and what asking it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import NamedTuple

from rlaif.config import LabelConfig
from rlaif.config.jury import JudgeSeat
from rlaif.digest import digest
from rlaif.engines.base import Engine, EngineCard, TokenCount
from rlaif.engines.scripted import load_scripted
from rlaif.errors import ConfigError
from rlaif.jobs.base import usable
from rlaif.jobs.context import RunContext
from rlaif.jobs.estimate import shared
from rlaif.jobs.planning import COUNTED, StagePlan, counter_of, estimated_seconds, tokens_of
from rlaif.jobs.trust import Trust, calibration_for
from rlaif.jobs.writing import written_work
from rlaif.judging.judge import Judge
from rlaif.judging.protocols import JudgingProtocol, Ways
from rlaif.judging.table import open_judge, open_protocol
from rlaif.models.alias import ALIASES
from rlaif.models.memory import StageWork
from rlaif.models.open import is_scripted, is_served
from rlaif.models.places import one_place
from rlaif.models.probe_files import find_judge, judge_about, protocol_of
from rlaif.types import Comparison

__all__ = ["Seat"]


class Seat:
    """One judge of a label stage.

    Args:
        config: The stage's settings; where they name several judges, `seat` says which one.
    """

    def __init__(self, seat: JudgeSeat, config: LabelConfig, context: RunContext) -> None:
        self.context = context
        self.name, self.weight = seat.name, seat.weight
        self.model, self._shown = context.judge(seat.model), seat.model
        self._recused = seat.recuse
        self._weights = context.recipe.weights_of(seat.model)
        self.config = config.model_copy(
            update={"judge": self.model, "protocol": seat.protocol or config.protocol}
        )
        self.protocol: JudgingProtocol = open_protocol(
            self._asked_by(seat, context),
            library=context.library,
            constitution=context.constitution,
            clamp=config.clamp,
            least_share=config.min_label_share,
            ways=Ways(
                aggregate=config.rubric_aggregate,
                constitution_weight=config.constitution_weight,
                plain=config.lacking == "plain",
            ),
        )
        self.constitution = usable(context, self.protocol.half)
        self.templates = self.protocol.digest(context.library)
        """Digest of the judge's templates; read now, so that a broken one is found before anything is
        sampled."""
        self.trust = Trust(self.config, self.protocol, self.constitution, context)

    def _asked_by(self, seat: JudgeSeat, context: RunContext) -> str:
        """The protocol: of a judge that this run trains its own, which is not on the disk yet.

        Raises:
            ConfigError: Another one is asked for.
        """
        asked, default = self.config.protocol, context.constitution.protocol
        stage = context.recipe.judge_stage(seat.model)
        if stage is None:
            return protocol_of(self.model, asked, default)
        own = stage.asked_by(default)
        if asked not in (None, own):
            raise ConfigError(
                f"stage {stage.name!r} trains a judge for {own} questions, not {asked}",
                where=self.config.name,
                remedy="leave the protocol out, or give the judge stage the same",
            )
        return own

    @property
    def card(self) -> EngineCard:
        """Who answers."""
        return self.context.engines.card(self.model)

    @property
    def calibration(self) -> tuple[Callable[[float], float], str]:
        """What the log-odds of its labels go through, and its digest."""
        return calibration_for(self.config, self.protocol, self.card, self.context)

    def open(self, engine: Engine | None = None) -> Judge:
        """The judge; one that asks `engine` instead of its own, if that is given."""
        config, context = self.config, self.context
        return open_judge(
            engine or context.engines.get(self.model),
            self.protocol,
            self.constitution,
            principles=config.principles,
            seed=context.seed(config),
            progress=context.progress,
            reasoning_tokens=config.reasoning_tokens,
            reasonings=config.reasonings,
        )

    def may_judge(self, comparison: Comparison) -> bool:
        """Whether neither completion is by a policy that it is recused from."""
        return not any(self._is_own(each.model) for each in (comparison.a, comparison.b))

    def _is_own(self, policy: str) -> bool:
        name = base_name(policy)
        if any(fnmatchcase(name, pattern) for pattern in self._recused):
            return True
        return self.config.recuse == "base" and bool(name) and one_place(name) == self._base

    @cached_property
    def _base(self) -> str:
        """The model that it is, or was trained from."""
        folder = find_judge(self.model)
        return one_place(base_name(self._weights if folder is None else judge_about(folder).base))

    @property
    def who(self) -> tuple[str, str]:
        """What is asked, by whatever name, and by which protocol: the same for two seats of one judge."""
        model = ALIASES[self.model].hub if self.model in ALIASES else self.model
        return one_place(str(find_judge(self.model) or model)), self.protocol.name

    def plan(self, comparisons: Sequence[Comparison]) -> StagePlan:
        """What it would be asked about `comparisons`, in a dry run."""
        counter = counter_of(self._weights)
        judge = self.open(load_scripted("scripted"))
        mine = [each for each in comparisons if self.may_judge(each)]
        looked_at = mine[:COUNTED]
        groups = [judge.requests(comparison) for comparison in looked_at]
        asked = list(dict.fromkeys(request for group in groups for request in group))
        once = shared([counter.render(request.messages) for request in group] for group in groups)
        # Pairs of one prompt share pointwise questions.
        share = len(asked) / max(1, sum(map(judge.questions_about, looked_at)))
        questions = round(sum(map(judge.questions_about, mine)) * share)
        read = round(
            tokens_of(counter, [request.messages for request in asked]) / max(1, len(asked)) * questions
        )
        probes, write = self.trust.plan(counter), 0
        if self.protocol.reasons:
            config = self.config
            read, write = read * config.reasonings, questions * config.reasonings * config.reasoning_tokens
        own = self._own(mine, counter, probes=probes.probes)
        read, write = read + own.read, write + own.write + probes.write
        return StagePlan(
            name=self.config.name,
            kind=self.config.stage,
            model=self._shown,
            read=read + probes.read,
            write=write,
            seconds=estimated_seconds(self._weights, self.context, read * once + probes.read_once, write),
            counts={
                "principles": len(self.constitution.principles),
                **own.counts,
                **({"probes": probes.probes} if probes.probes else {}),
                "questions": questions + probes.questions,
            },
            example={self.protocol.template: counter.render(asked[0].messages)} if asked else {},
        )

    def _own(self, comparisons: Sequence[Comparison], counter: TokenCount, *, probes: int) -> _Own:
        """What is particular to each prompt: the criteria of its rubric, the judge's own answer to it, and to
        each of the probes."""
        prompts = {each.prompt.fingerprint(): each.prompt for each in comparisons}.values()
        criteria = sum(len(self.protocol.criteria(prompt)) for prompt in prompts)
        counts = {"criteria": criteria} if criteria else {}
        if not self.protocol.commits:
            return _Own(counts, read=0, write=0)
        tasks = [self.protocol.own_task(prompt) for prompt in prompts]
        return _Own(
            counts | {"own_answers": len(tasks) + probes},
            read=tokens_of(counter, tasks),
            write=len(tasks) * self.config.reasoning_tokens,
        )

    def writing(self, comparisons: Sequence[Comparison], rows: int) -> StageWork:
        """What it writes about `comparisons` before its labels are read; no work of this process where it is
        on a server."""
        if is_served(self._weights) or is_scripted(self._weights):
            return StageWork()
        return written_work(
            self.open(load_scripted("scripted")),
            self.protocol,
            [each for each in comparisons if self.may_judge(each)],
            counter_of(self._weights),
            rows=rows,
            tokens=self.config.reasoning_tokens,
            reasonings=self.config.reasonings,
        )

    def key(self) -> str:
        """What its labels depend on beside what all judges of the stage share."""
        return digest([self.name, self.card.name, self.card.identity(), self.weight, list(self._recused)])


class _Own(NamedTuple):
    """Counts for a dry run, and tokens that are read and written before any question."""

    counts: dict[str, int]
    read: int
    write: int


def base_name(model: str) -> str:
    """The name of a model without its revision, its server and its alias: `openai:org/m` and `org/m@1a2b` are
    one."""
    name = model.partition("@")[0].removeprefix("openai:")
    return ALIASES[name].hub if name in ALIASES else name
