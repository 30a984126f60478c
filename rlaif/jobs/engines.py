"""The models that answer and judge in a run, each loaded once and asked through the journal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from rlaif.config.labelling import ServerConfig
from rlaif.engines.api.costs import Budget, Prices
from rlaif.engines.base import Engine, EngineCard
from rlaif.engines.hf import HFEngine
from rlaif.engines.journaled import JournaledEngine, Memo
from rlaif.engines.openai import ApiSettings
from rlaif.engines.ranked import AskedByFirst, DividedEngine, undivided
from rlaif.errors import ModelError
from rlaif.models.open import Served, is_served, open_engine
from rlaif.models.places import known_as
from rlaif.ranks import current
from rlaif.runs.spending import Spending, Spent

__all__ = ["Engines"]


class Engines:
    """Engines by the name the user gave; the same name is loaded once, whatever roles it plays.

    Args:
        shard: Whether models in this process are held in parts, one on each rank.
        server: Where models behind servers are, but for those in `servers`, by name; the former share what
            may be spent, each of the latter has its own.
        spending: The account of the run.
        model: The run's own; a trained judge that reads with it shares it, by whatever path it names it.
    """

    def __init__(
        self,
        memo: Memo,
        *,
        dtype: str,
        device: str,
        shard: bool = False,
        server: ServerConfig,
        servers: Mapping[str, ServerConfig] | None = None,
        note: Callable[[str], None],
        spending: Spending,
        model: str = "",
    ) -> None:
        self.memo = memo
        self._model = model
        own = dict(servers or {})
        others = [each for each in spending.models if f"openai:{each.model}" not in own]
        self._server = _served(server, spending, spent=math.fsum(each.cost for each in others))
        self._servers = {
            name: _served(each, spending, spent=spending.cost_of(name.removeprefix("openai:")))
            for name, each in own.items()
        }
        self._dtype = dtype
        self._device = device
        self._shard = shard
        self._note = note
        self._engines: dict[str, Engine] = {}
        self._journaled: list[JournaledEngine] = []
        self.ranks = current()

    def get(self, spec: str) -> Engine:
        """The engine of `spec`, loaded on first use, behind the journal; all ranks ask it together."""
        if spec not in self._engines:
            if is_served(spec):
                self._engines[spec] = self.asked_by_first(lambda: self._open(spec))
            else:
                self._engines[spec] = self.journaled(self._open(spec))
        return self._engines[spec]

    def asked_by_first(self, make: Callable[[], Engine]) -> Engine:
        """The engine that `make` makes on the first rank, which asks it for all, behind the journal."""
        return (
            self.journaled(make(), asked_by_first=True)
            if self.ranks.first
            else AskedByFirst(None, self.ranks)
        )

    def journaled(self, engine: Engine, *, asked_by_first: bool = False) -> Engine:
        """`engine` behind the journal, as all ranks ask it."""
        own = JournaledEngine(engine, self.memo)
        self._journaled.append(own)
        if self.ranks.count == 1:
            return own
        return AskedByFirst(own, self.ranks) if asked_by_first else DividedEngine(own, self.ranks)

    def in_process(self, spec: str) -> HFEngine | None:
        """The engine of `spec` itself, if it runs in this process."""
        engine, _ = undivided(self.get(spec))
        inner = engine.engine if isinstance(engine, JournaledEngine) else None
        return inner if isinstance(inner, HFEngine) else None

    def _open(self, spec: str) -> Engine:
        return open_engine(
            spec,
            dtype=self._dtype,
            device=self._device,
            shard=self._shard,
            served=self._servers.get(spec, self._server),
            resident=self._resident,
            log=self._note,
        )

    def _resident(self, base: str) -> HFEngine:
        engine = self.in_process(known_as(base, (*filter(None, [self._model]), *self._engines)))
        if engine is None:
            raise ModelError(
                f"{base} does not run in this process", remedy="train the judge on a model that does"
            )
        return engine

    def card(self, spec: str) -> EngineCard:
        """Who answers under `spec`."""
        return self.get(spec).card

    def asked(self) -> dict[str, int]:
        """Answers computed and answers taken from the journal, over all engines."""
        return {
            "asked": self._total(lambda engine: engine.asked),
            "reused": self._total(lambda engine: engine.reused),
        }

    def _total(self, counts: Callable[[JournaledEngine], Mapping[str, int]]) -> int:
        return sum(self.ranks.gather(sum(sum(counts(engine).values()) for engine in self._journaled)))


def _served(server: ServerConfig, spending: Spending, *, spent: float) -> Served:
    """Where models are served.

    Args:
        spent: What was spent there before.
    """

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
        budget=Budget(server.max_cost, spent=spent, note=note),
    )
