"""What the stages of one run share: engines (each model is loaded once), templates, constitution, journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from rlaif.config import LabelConfig, Recipe, SampleConfig, StageConfig
from rlaif.config.stages import ServerConfig
from rlaif.constitution import load_constitution
from rlaif.engines.base import Engine, EngineCard
from rlaif.engines.costs import Prices
from rlaif.engines.journaled import JournaledEngine, Memo
from rlaif.engines.openai import ApiSettings
from rlaif.models.engines import Served, open_engine
from rlaif.progress import Progress
from rlaif.prompts import PromptLibrary
from rlaif.runs.splits import check_disjoint
from rlaif.types import Constitution, Prompt

__all__ = ["Context", "EnginePool"]


class EnginePool:
    """Engines by the name the user gave; the same name is loaded once, whatever roles it plays."""

    def __init__(self, memo: Memo, *, dtype: str, device: str, server: ServerConfig, note: Callable[[str], None]) -> None:
        self._memo = memo
        self._served = _served(server)
        self._dtype = dtype
        self._device = device
        self._note = note
        self._engines: dict[str, JournaledEngine] = {}

    def get(self, spec: str) -> JournaledEngine:
        """The engine of `spec`, loaded on first use, behind the journal."""
        if spec not in self._engines:
            self._engines[spec] = JournaledEngine(self._open(spec), self._memo)
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


class Context:
    """One run's shared things.

    Args:
        recipe: The resolved recipe.
        memo: Where answers are kept.
        progress: Hears of the work.
    """

    def __init__(self, recipe: Recipe, *, memo: Memo, progress: Progress) -> None:
        self.recipe = recipe
        self.progress = progress
        self.engines = EnginePool(memo, dtype=recipe.dtype, device=recipe.device, server=recipe.server, note=progress.note)
        self.folders: dict[str, Path] = {}
        """Finished stage folders by stage name."""
        self._claimed: dict[str, dict[str, Prompt]] = {}

    @cached_property
    def constitution(self) -> Constitution:
        """The constitution of the run."""
        return load_constitution(self.recipe.constitution)

    @cached_property
    def library(self) -> PromptLibrary:
        """The templates in the constitution's language."""
        folder = Path(self.recipe.prompts_dir) if self.recipe.prompts_dir else None
        return PromptLibrary(self.constitution.language, folder)

    def seed(self, config: StageConfig) -> int:
        """The stage's seed, or the recipe's."""
        return self.recipe.seed if config.seed is None else config.seed

    def model(self, named: str | None) -> str:
        """The model a role names, or the recipe's."""
        return named or self.recipe.model

    def claim_prompts(self, purpose: str, prompts: Sequence[Prompt]) -> None:
        """Put down that `prompts` are used for `purpose` (`sft`, `label`, `rl`, `eval`).

        A policy tuned and judged on the same prompts looks better than it is, so sets of different purpose must be disjoint.

        Raises:
            DataError: A prompt is already used for another purpose, and the recipe does not allow it.
        """
        mine = self._claimed.setdefault(purpose, {})
        mine.update((prompt.fingerprint(), prompt) for prompt in prompts)
        if not self.recipe.allow_prompt_overlap:
            check_disjoint({name: list(claimed.values()) for name, claimed in self._claimed.items()})

    def source_of(self, config: LabelConfig) -> str:
        """The name of the sample stage that `config` reads from: the one it names, or the last before it."""
        before = self.recipe.stages[: [stage.name for stage in self.recipe.stages].index(config.name)]
        return config.input or [stage.name for stage in before if isinstance(stage, SampleConfig)][-1]

    def sampled_by(self, config: LabelConfig) -> Path:
        """The folder of that stage; it must have finished."""
        return self.folders[self.source_of(config)]


def _served(server: ServerConfig) -> Served:
    settings = ApiSettings(
        concurrency=server.concurrency, timeout=server.timeout, prices=Prices(input=server.price_input, output=server.price_output),
        max_cost=server.max_cost,
    )
    key_file = Path(server.api_key_file) if server.api_key_file else None
    return Served(base_urls=server.base_urls, api_key_env=server.api_key_env, api_key_file=key_file, settings=settings)
