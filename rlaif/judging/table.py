"""Every judging protocol, by its name; all that offers a choice of protocols derives it from here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rlaif.engines.base import LEAST_SHARE, Engine
from rlaif.errors import ConfigError
from rlaif.judging.commit import Commit, CommitPointwise, CommittedJudge
from rlaif.judging.judge import Judge, PrincipleMode
from rlaif.judging.listwise import Listwise
from rlaif.judging.protocols import WAYS, JudgingProtocol, Pairwise, Pointwise, Ways
from rlaif.judging.reasoning import CLAMP, REASONING_TOKENS, ChainOfThought, ReasoningJudge
from rlaif.judging.reference import Reference, ReferencePointwise
from rlaif.judging.rubric import Rubric
from rlaif.progress import Progress
from rlaif.prompts import PromptLibrary
from rlaif.types import Constitution

__all__ = ["PROTOCOLS", "OpenJudge", "open_judge", "open_protocol"]

PROTOCOLS: Mapping[str, type[JudgingProtocol]] = {
    Pairwise.name: Pairwise,
    Pointwise.name: Pointwise,
    ChainOfThought.name: ChainOfThought,
    Rubric.name: Rubric,
    Reference.name: Reference,
    ReferencePointwise.name: ReferencePointwise,
    Commit.name: Commit,
    CommitPointwise.name: CommitPointwise,
    Listwise.name: Listwise,
}

OpenJudge = Callable[..., Judge]
"""`open_judge`, or it with some of its arguments given."""


def open_protocol(
    name: str,
    *,
    library: PromptLibrary,
    constitution: Constitution,
    clamp: float = CLAMP,
    least_share: float = LEAST_SHARE,
    ways: Ways = WAYS,
) -> JudgingProtocol:
    """The protocol called `name`.

    Args:
        clamp: Highest probability of either side, for protocols that reason.
        least_share: Least probability that the labels must hold together for a verdict to be valid.
        ways: For protocols that read the prompt's rubric or reference.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in PROTOCOLS:
        raise ConfigError(
            f"there is no judging protocol {name!r}", remedy=f"the protocols are {', '.join(PROTOCOLS)}"
        )
    return PROTOCOLS[name].open(library, constitution, clamp=clamp, least_share=least_share, ways=ways)


def open_judge(
    engine: Engine,
    protocol: JudgingProtocol,
    constitution: Constitution,
    *,
    principles: PrincipleMode,
    seed: int,
    progress: Progress | None = None,
    reasoning_tokens: int = REASONING_TOKENS,
    reasonings: int = 1,
) -> Judge:
    """A judge that asks by `protocol`; one that reasons or commits first where the protocol wants that.

    Args:
        reasoning_tokens: Longest text that it writes before it is asked for labels.
        reasonings: Reasonings that are averaged for a question, where the protocol wants reasons.
    """
    if protocol.commits:
        return CommittedJudge(
            engine,
            protocol,
            constitution,
            principles=principles,
            seed=seed,
            progress=progress,
            max_new_tokens=reasoning_tokens,
        )
    if protocol.reasons:
        return ReasoningJudge(
            engine,
            protocol,
            constitution,
            principles=principles,
            seed=seed,
            progress=progress,
            max_new_tokens=reasoning_tokens,
            reasonings=reasonings,
        )
    return Judge(engine, protocol, constitution, principles=principles, seed=seed, progress=progress)
