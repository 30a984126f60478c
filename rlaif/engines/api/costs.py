"""What an engine behind an API used, in tokens and money, and the stop before it uses more than was
allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from rlaif.errors import ConfigError, ModelError

__all__ = ["Budget", "CostLimitError", "Ledger", "Prices", "Usage", "money"]

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
        """What so many tokens cost. Cached prompt tokens count in full: an upper bound where a host discounts
        them."""
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


class Budget:
    """What may be spent and was spent, by every engine that shares it.

    Args:
        limit: The most that may be spent; `None` for no limit.
        spent: What was spent before: a run's limit holds over all its invocations.
        note: Hears what each answer used: prompt tokens, completion tokens, cost.
    """

    def __init__(
        self,
        limit: float | None = None,
        *,
        spent: float = 0.0,
        note: Callable[[str, int, int, float], None] | None = None,
    ) -> None:
        self.limit = limit
        self.spent = spent
        self._reserved = 0.0
        self._note = note

    def reserve(self, estimate: float) -> None:
        """Set the estimated cost of one request aside.

        Raises:
            CostLimitError: It does not fit into what is left.
        """
        if self.limit is not None and self.spent + self._reserved + estimate > self.limit:
            raise CostLimitError(
                f"the next request could cost more than is left: {money(self.spent)} of {money(self.limit)} "
                "is spent, and a request "
                f"may cost {money(estimate)}",
                remedy="raise --max-cost and run the same command again: what was answered so far is kept "
                "and costs nothing",
            )
        self._reserved += estimate

    def release(self, estimate: float) -> None:
        """The request that `reserve` was called for has ended."""
        self._reserved -= estimate

    def charge(self, model: str, prompt_tokens: int, completion_tokens: int, cost: float) -> None:
        """An answer came, and is to be paid for."""
        self.spent += cost
        if self._note is not None:
            self._note(model, prompt_tokens, completion_tokens, cost)


def money(amount: float) -> str:
    """An amount for a reader: two decimals, or as many as it takes to see something."""
    return f"{amount:.2f}" if amount >= 0.1 or amount == 0 else f"{amount:.2g}"


class Ledger:
    """Adds up usage and admits requests while their worst cost fits into what is left.

    A request is admitted on an estimate: its characters as tokens, the most by which this was too low so far
    (a chat template, a dense script), and as many new tokens as it may ask for. What is in flight counts by
    its estimate, so that the limit holds whatever the concurrency, up to the error of that estimate.

    Args:
        max_cost: The most that may be spent.
        budget: Shared with other engines, and with what was spent before; one of its own when left out.
        model: Under which name its answers are noted.
    """

    def __init__(
        self, prices: Prices, max_cost: float | None, *, budget: Budget | None = None, model: str = ""
    ) -> None:
        if max_cost is not None and (max_cost <= 0 or prices == Prices()):
            raise ConfigError(
                f"max_cost is {max_cost} with prices {prices.input} and {prices.output} a million tokens",
                remedy="give a limit above 0 and the prices of a million input and output tokens",
            )
        self.prices = prices
        self.max_cost = max_cost
        self.usage = Usage()
        self.model = model
        self.budget = budget or Budget(max_cost)
        self._excess = 0.0

    def reserve(self, characters: int, new_tokens: int) -> float:
        """Set the estimated cost of one request aside and return it.

        Raises:
            CostLimitError: It does not fit into what is left.
        """
        estimate = self.prices.of(characters / CHARACTERS_A_TOKEN + self._excess, new_tokens)
        self.budget.reserve(estimate)
        return estimate

    def release(self, estimate: float) -> None:
        """The request that `reserve` was called for has ended."""
        self.budget.release(estimate)

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
        cost = self.prices.of(prompt, completion)
        usage.cost += cost
        self.budget.charge(self.model, prompt, completion, cost)
