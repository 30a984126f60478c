"""The protocol and the judge that a name calls for."""

from __future__ import annotations

from rlaif.engines.base import LEAST_SHARE, Engine
from rlaif.judging.judge import Judge, PrincipleMode
from rlaif.judging.protocols import JudgingProtocol, protocol_named
from rlaif.judging.reasoning import CLAMP, REASONING_TOKENS, ChainOfThought, ReasoningJudge
from rlaif.progress import Progress
from rlaif.prompts import PromptLibrary
from rlaif.types import Constitution

__all__ = ["open_judge", "open_protocol"]


def open_protocol(
    name: str,
    *,
    library: PromptLibrary,
    constitution: Constitution,
    clamp: float = CLAMP,
    least_share: float = LEAST_SHARE,
) -> JudgingProtocol:
    """The protocol called `name`: `pairwise`, `pointwise` or `cot` (which alone reads `clamp`).

    Args:
        least_share: Least probability that the labels must hold together for a verdict to be valid.
    """
    if name == ChainOfThought.name:
        return ChainOfThought(library, constitution, clamp=clamp, least_share=least_share)
    return protocol_named(name, library=library, constitution=constitution, least_share=least_share)


def open_judge(
    engine: Engine,
    protocol: JudgingProtocol,
    constitution: Constitution,
    *,
    principles: PrincipleMode,
    seed: int,
    progress: Progress | None = None,
    reasoning_tokens: int = REASONING_TOKENS,
) -> Judge:
    """A judge that asks by `protocol`; one that reasons first where the protocol wants reasons."""
    if isinstance(protocol, ChainOfThought):
        return ReasoningJudge(
            engine,
            protocol,
            constitution,
            principles=principles,
            seed=seed,
            progress=progress,
            max_new_tokens=reasoning_tokens,
        )
    return Judge(engine, protocol, constitution, principles=principles, seed=seed, progress=progress)
