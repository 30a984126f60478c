"""Sample K completions per prompt from a policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rlaif.config import SampleConfig
from rlaif.digest import seed_from
from rlaif.engines.base import Engine, Generation, GenerationRequest, Sampling
from rlaif.errors import ModelError
from rlaif.progress import NoProgress, Progress
from rlaif.prompts import PromptLibrary
from rlaif.text import answer_of
from rlaif.types import Completion, Prompt

__all__ = ["Samples", "check_refused_rate", "generate_all", "sample", "sample_requests"]


@dataclass
class Samples:
    """What was sampled.

    Attributes:
        completions: In the order of the prompts, K each, without the refused.
        refused: `(prompt id, reason)` of every completion that could not be sampled.
        reasoned: Completions with reasoning, kept or stripped.
    """

    completions: list[Completion]
    refused: list[tuple[str, str]] = field(default_factory=list)
    reasoned: int = 0

    def counts(self) -> dict[str, int]:
        """Counts for the manifest; they add up to prompts × K."""
        ends = [completion.finish for completion in self.completions]
        return {
            "completions": len(self.completions),
            "refused": len(self.refused),
            "stopped": ends.count("stop"),
            "cut_at_limit": ends.count("length"),
            "empty": sum(not completion.text for completion in self.completions),
            "with_reasoning": self.reasoned,
            "tokens": sum(completion.tokens or 0 for completion in self.completions),
        }


def sample_requests(
    prompts: Sequence[Prompt], library: PromptLibrary, config: SampleConfig, *, seed: int
) -> list[GenerationRequest]:
    """K requests per prompt. A draw's seed depends on what is asked and its index only, so more prompts or a
    larger K add draws and change none."""
    sampling = Sampling(
        max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p
    )
    return [
        GenerationRequest(
            messages=library.policy(prompt),
            sampling=sampling,
            seed=seed_from(seed, "sample", prompt.fingerprint(), index),
        )
        for prompt in prompts
        for index in range(config.k)
    ]


def sample(
    prompts: Sequence[Prompt],
    *,
    policy: Engine,
    library: PromptLibrary,
    config: SampleConfig,
    seed: int,
    progress: Progress | None = None,
) -> Samples:
    """Sample `config.k` completions for each of `prompts`."""
    progress = progress or NoProgress()
    requests = sample_requests(prompts, library, config, seed=seed)
    progress.begin(f"sampling {config.k} × {len(prompts)} completions", len(requests))
    results = generate_all(policy, requests, progress)
    samples = Samples(completions=[])
    for position, generation in enumerate(results):
        prompt, index = prompts[position // config.k], position % config.k
        if generation.finish == "refused":
            samples.refused.append((prompt.id, generation.reason))
            continue
        finish: Literal["stop", "length"] = generation.finish
        answer = answer_of(generation.text)
        samples.reasoned += answer != generation.text
        samples.completions.append(
            Completion(
                id=f"{prompt.id}/{index}",
                prompt_id=prompt.id,
                index=index,
                finish=finish,
                text=answer if config.reasoning == "strip" else generation.text,
                model=policy.card.label,
                tokens=generation.tokens,
            )
        )
    return samples


def check_refused_rate(
    reasons: Sequence[str], asked: int, limit: float, *, what: str = "completions"
) -> None:
    """Refuse a result of which too much, or everything, is missing.

    Args:
        reasons: Why, for each one that could not be sampled.
        asked: How many were asked for.

    Raises:
        ModelError: More than `limit` of them are missing, or all; the message counts the reasons.
    """
    if not reasons or (len(reasons) / asked <= limit and len(reasons) < asked):
        return
    told = ", ".join(f"{reason} {count}" for reason, count in Counter(reasons).most_common())
    raise ModelError(
        f"{len(reasons)} of {asked} {what} could not be sampled ({len(reasons) / asked:.0%}, limit "
        f"{limit:.0%}): {told}",
        remedy="correct the cause and run the same command again: what was answered is kept; or raise "
        "`max_refused`",
    )


def generate_all(
    engine: Engine, requests: Sequence[GenerationRequest], progress: Progress
) -> list[Generation]:
    """The results of all `requests`, in their order; `progress` hears of every batch."""
    found: dict[int, Generation] = {}
    for batch in engine.generate(requests):
        found.update(batch)
        progress.advance(len(batch))
    return [found[index] for index in range(len(requests))]
