"""The models that answer and judge in a run, each loaded once and asked through the journal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rlaif.config.labelling import ServerConfig
from rlaif.engines.api.costs import Budget, Prices
from rlaif.engines.base import Engine, EngineCard
from rlaif.engines.journaled import JournaledEngine, Memo
from rlaif.engines.openai import ApiSettings
from rlaif.models.open import Served, open_engine
from rlaif.runs.spending import Spending, Spent

__all__ = ["Engines"]


class Engines:
    """Engines by the name the user gave; the same name is loaded once, whatever roles it plays.

    Args:
        spending: The account of the run; those behind servers share what it may cost.
    """

    def __init__(
        self,
        memo: Memo,
        *,
        dtype: str,
        device: str,
        server: ServerConfig,
        note: Callable[[str], None],
        spending: Spending,
    ) -> None:
        self.memo = memo
        self._served = _served(server, spending)
        self._dtype = dtype
        self._device = device
        self._note = note
        self._engines: dict[str, JournaledEngine] = {}

    def get(self, spec: str) -> JournaledEngine:
        """The engine of `spec`, loaded on first use, behind the journal."""
        if spec not in self._engines:
            self._engines[spec] = JournaledEngine(self._open(spec), self.memo)
        return self._engines[spec]

    def _open(self, spec: str) -> Engine:
        return open_engine(spec, dtype=self._dtype, device=self._device, served=self._served, log=self._note)

    def card(self, spec: str) -> EngineCard:
        """Who answers under `spec`."""
        return self.get(spec).card

    def asked(self) -> dict[str, int]:
        """Answers computed and answers taken from the journal, over all engines."""
        engines = self._engines.values()
        return {
            "asked": sum(sum(engine.asked.values()) for engine in engines),
            "reused": sum(sum(engine.reused.values()) for engine in engines),
        }


def _served(server: ServerConfig, spending: Spending) -> Served:
    def note(model: str, prompt_tokens: int, completion_tokens: int, cost: float) -> None:
        spending.add(Spent(model, 1, prompt_tokens, completion_tokens, cost))

    settings = ApiSettings(
        concurrency=server.concurrency,
        timeout=server.timeout,
        prices=Prices(input=server.price_input, output=server.price_output),
        max_cost=server.max_cost,
        api=server.api,
        reads=server.reads,
        votes=server.votes,
        top_logprobs=server.top_logprobs,
        label_tokens=server.label_tokens,
        continues=server.continues,
        extra_body=server.extra_body,
        retries=server.retries,
        backoff=server.backoff,
        give_up_after=server.give_up_after,
    )
    key_file = Path(server.api_key_file) if server.api_key_file else None
    return Served(
        base_urls=server.base_urls,
        api_key_env=server.api_key_env,
        api_key_file=key_file,
        settings=settings,
        budget=Budget(server.max_cost, spent=spending.cost, note=note),
    )
