"""What an engine behind an API used, in tokens and money, and the stop before it uses more than was allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from rlaif.errors import ConfigError, ModelError

__all__ = ["CostLimitError", "Ledger", "Prices", "Usage"]

MILLION = 1_000_000
CHARACTERS_A_TOKEN = 3.0
"""A cautious guess of a prompt's length before its server has counted it (English text has about four)."""


class CostLimitError(ModelError):
    """The next request could cost more than is left of `max_cost`."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Price of a million tokens, in whatever currency `max_cost` is told in."""

    input: float = 0.0
    output: float = 0.0

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """What so many tokens cost. Cached prompt tokens count in full: an upper bound where a host discounts them."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / MILLION


@dataclass(slots=True)
class Usage:
    """Counts of what was sent and received.

    Attributes:
        requests: Answers that were received, usable or not.
        retries: Requests sent again after a failure.
        cached_tokens: Those of `prompt_tokens` that the server says it had in its prefix cache.
        unreported: Answers without a token count; theirs are guessed from the length of the text.
        cost: In the currency of the prices.
    """

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    unreported: int = 0
    cost: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """For a manifest."""
        return asdict(self)


class Ledger:
    """Adds up usage and admits requests while their worst cost fits into what is left.

    A request is admitted on an estimate: its characters as tokens, the most by which this was too low so far (a chat template, a dense
    script), and as many new tokens as it may ask for. What is in flight counts by its estimate, so that the limit holds whatever the
    concurrency, up to the error of that estimate.
    """

    def __init__(self, prices: Prices, max_cost: float | None) -> None:
        if max_cost is not None and (max_cost <= 0 or prices == Prices()):
            raise ConfigError(
                f"max_cost is {max_cost} with prices {prices.input} and {prices.output} a million tokens",
                remedy="give a limit above 0 and the prices of a million input and output tokens",
            )
        self.prices = prices
        self.max_cost = max_cost
        self.usage = Usage()
        self._reserved = 0.0
        self._excess = 0.0

    def reserve(self, characters: int, new_tokens: int) -> float:
        """Set the estimated cost of one request aside and return it.

        Raises:
            CostLimitError: It does not fit into what is left.
        """
        estimate = self.prices.of(characters / CHARACTERS_A_TOKEN + self._excess, new_tokens)
        if self.max_cost is not None and self.usage.cost + self._reserved + estimate > self.max_cost:
            raise CostLimitError(
                f"the cost limit is reached: {self.usage.cost:.4g} of {self.max_cost:.4g} spent by {self.usage.requests} requests",
                remedy="raise --max-cost and run the same command again: what was answered so far is kept",
            )
        self._reserved += estimate
        return estimate

    def release(self, estimate: float) -> None:
        """The request that `reserve` was called for has ended."""
        self._reserved -= estimate

    def record(self, counts: Mapping[str, int], *, sent: int, received: int) -> None:
        """Count one answer.

        Args:
            counts: `prompt`, `completion` and `cached` tokens, as far as the server told them.
            sent: Characters of the prompt.
            received: Characters of the answer.
        """
        usage = self.usage
        prompt = counts.get("prompt", round(sent / CHARACTERS_A_TOKEN))
        completion = counts.get("completion", max(1, round(received / CHARACTERS_A_TOKEN)))
        self._excess = max(self._excess, prompt - sent / CHARACTERS_A_TOKEN)
        usage.requests += 1
        usage.unreported += "prompt" not in counts
        usage.prompt_tokens += prompt
        usage.cached_tokens += counts.get("cached", 0)
        usage.completion_tokens += completion
        usage.cost += self.prices.of(prompt, completion)
