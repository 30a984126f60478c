"""Critique and revise (Bai et al. 2022, section 3): the policy answers, finds fault under a principle, and
rewrites, N rounds.

All prompts go through a round together, so that the engine can batch; each prompt draws one principle a
round. Every intermediate text is kept: the paper fine-tunes on the revisions of all rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rlaif.config import ReviseConfig
from rlaif.digest import seed_from
from rlaif.engines.base import Engine, Generation, GenerationRequest, Sampling
from rlaif.judging.judge import draw_principle
from rlaif.progress import NoProgress, Progress
from rlaif.prompts import PromptLibrary
from rlaif.results.revisions import Revision, Round
from rlaif.stages.sample import generate_all
from rlaif.text import count_of
from rlaif.types import Constitution, Message, Prompt

__all__ = ["revise"]


@dataclass
class _Chain:
    """A revision under way.

    Attributes:
        current: The latest text that is not empty.
        failed: Why the chain ended early; empty while it goes on.
    """

    prompt: Prompt
    current: str = ""
    initial: str = ""
    rounds: list[Round] = field(default_factory=list)
    failed: str = ""


def revise(
    prompts: Sequence[Prompt],
    *,
    policy: Engine,
    library: PromptLibrary,
    constitution: Constitution,
    config: ReviseConfig,
    seed: int,
    progress: Progress | None = None,
) -> list[Revision]:
    """Answer each of `prompts`, then critique and revise the answer `config.rounds` times.

    An empty revision does not replace the text before it: the round is recorded with it and the chain goes on
    from the text.
    """
    progress = progress or NoProgress()
    what = f"revising {count_of(len(prompts), 'completion')}, {count_of(config.rounds, 'round')}"
    progress.begin(what, len(prompts) * (1 + 2 * config.rounds))
    chains = [_Chain(prompt) for prompt in prompts]
    asks = _Asks(policy, config, seed, progress)
    for chain, answer in asks.all(chains, "initial", [library.policy(chain.prompt) for chain in chains]):
        chain.initial = chain.current = answer
    for number in range(config.rounds):
        _one_round([chain for chain in chains if not chain.failed], number, asks, library, constitution, seed)
    return [
        Revision(prompt=c.prompt, initial=c.initial, rounds=tuple(c.rounds), failed=c.failed) for c in chains
    ]


def _one_round(
    chains: Sequence[_Chain],
    number: int,
    asks: _Asks,
    library: PromptLibrary,
    constitution: Constitution,
    seed: int,
) -> None:
    """One critique and one revision of every chain, each under a principle drawn for it."""
    drawn = {
        chain.prompt.id: draw_principle(
            constitution.principles, seed, "revise", chain.prompt.fingerprint(), number
        )
        for chain in chains
    }
    asked = [library.critique(chain.prompt, chain.current, drawn[chain.prompt.id]) for chain in chains]
    criticised = asks.all(chains, f"critique {number}", asked)
    asked = [
        library.revise(chain.prompt, chain.current, critique, drawn[chain.prompt.id])
        for chain, critique in criticised
    ]
    critiques = {chain.prompt.id: critique for chain, critique in criticised}
    for chain, text in asks.all([chain for chain, _ in criticised], f"revision {number}", asked):
        id = chain.prompt.id
        chain.rounds.append(Round(principle_id=drawn[id].id, critique=critiques[id], revision=text))
        chain.current = text or chain.current


class _Asks:
    """Sends one step of many chains to the policy."""

    def __init__(self, policy: Engine, config: ReviseConfig, seed: int, progress: Progress) -> None:
        self._policy = policy
        self._sampling = Sampling(
            max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p
        )
        self._seed = seed
        self._progress = progress

    def all(
        self, chains: Sequence[_Chain], step: str, messages: Sequence[tuple[Message, ...]]
    ) -> list[tuple[_Chain, str]]:
        """The chains that got an answer, with it; the others are marked failed with the reason."""
        requests = [
            GenerationRequest(
                messages=each,
                sampling=self._sampling,
                seed=seed_from(self._seed, step, chain.prompt.fingerprint()),
            )
            for chain, each in zip(chains, messages, strict=True)
        ]
        answered: list[tuple[_Chain, str]] = []
        for chain, generation in zip(
            chains, generate_all(self._policy, requests, self._progress), strict=True
        ):
            if generation.finish == "refused":
                chain.failed = f"{step}: {generation.reason}"
            else:
                answered.append((chain, _text(generation)))
        return answered


def _text(generation: Generation) -> str:
    return generation.text.strip()
