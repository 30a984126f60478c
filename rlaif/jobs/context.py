"""What the stages of one run share: engines (each model is loaded once), templates, constitution, journal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rlaif.config import Recipe
from rlaif.config.labelling import BaseStage, ServerConfig
from rlaif.config.reward import RewardConfig
from rlaif.constitution.load import load_constitution
from rlaif.digest import digest
from rlaif.engines.api.costs import Budget, Prices
from rlaif.engines.base import Engine, EngineCard
from rlaif.engines.hf import HFEngine
from rlaif.engines.journaled import JournaledEngine, Memo
from rlaif.engines.openai import ApiSettings
from rlaif.errors import ConfigError, DataError
from rlaif.io.splits import check_disjoint
from rlaif.models.open import Served, open_engine
from rlaif.models.shared_base import SharedBase
from rlaif.progress import Progress
from rlaif.prompts import PromptLibrary
from rlaif.reward.files import load_reward_model
from rlaif.reward.model import RewardModel
from rlaif.runs.disk import read_json_object, told, write_whole
from rlaif.runs.folders import move_aside
from rlaif.runs.manifest import changed_parts
from rlaif.runs.spending import SPENDING, Spending, Spent
from rlaif.types import Constitution, Prompt

__all__ = ["Context", "EnginePool"]

WORK_PARTS = "parts.json"
"""In a folder of partial work: what that work depends on, as in the manifest of a finished stage."""


class EnginePool:
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


class Context:
    """One run's shared things.

    Args:
        recipe: The resolved recipe.
        memo: Where answers are kept.
        progress: Hears of the work.
        path: The run folder.
        spending: The account of the run; one that begins at zero and is written nowhere when left out.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        memo: Memo,
        progress: Progress,
        path: Path = Path(),
        spending: Spending | None = None,
    ) -> None:
        self.recipe = recipe
        self.path = path
        self.progress = progress
        self.engines = EnginePool(
            memo,
            dtype=recipe.dtype,
            device=recipe.device,
            server=recipe.server,
            note=progress.note,
            spending=spending or Spending(path / SPENDING),
        )
        self.jobs: dict[str, Any] = {}
        """Jobs by stage name, where a plan needs what an earlier stage will have made."""
        self.folders: dict[str, Path] = {}
        """Finished stage folders by stage name."""
        self.rewards: dict[str, RewardModel] = {}
        """Reward models on their base, by the stage that trained them."""
        # By stage, then by source: a stage may read a source more than once.
        self._left_out: dict[str, dict[str, int]] = {}
        self._bases: dict[str, SharedBase] = {}
        self._tuned: dict[str, JournaledEngine] = {}
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

    def seed(self, config: BaseStage) -> int:
        """The stage's seed, or the recipe's."""
        return self.recipe.seed if config.seed is None else config.seed

    def model(self, named: str | None) -> str:
        """The model a role names, or the recipe's."""
        return named or self.recipe.model

    def leave_out(self, stage: str, source: str, rows: int) -> None:
        """Put down that `stage` went on without that many rows of `source`, for its manifest and summary."""
        counted = self._left_out.setdefault(stage, {})
        counted[source] = max(rows, counted.get(source, 0))

    def bad_rows(self, stage: str) -> dict[str, int]:
        """The count `bad_rows` of a stage, if rows may be left out of what it reads."""
        return {"bad_rows": sum(self._left_out[stage].values())} if stage in self._left_out else {}

    def claim_prompts(self, purpose: str, prompts: Sequence[Prompt]) -> None:
        """Put down that `prompts` are used for `purpose` (`sft`, `label`, `rl`, `eval`).

        A policy tuned and judged on the same prompts looks better than it is, so sets of different purpose
        must be disjoint.

        Raises:
            DataError: A prompt is already used for another purpose, and the recipe does not allow it.
        """
        mine = self._claimed.setdefault(purpose, {})
        mine.update((prompt.fingerprint(), prompt) for prompt in prompts)
        if not self.recipe.allow_prompt_overlap:
            check_disjoint({name: list(claimed.values()) for name, claimed in self._claimed.items()})

    def earlier(self, config: BaseStage, kind: str, named: str | None) -> str:
        """The name of the stage that `config` reads from: `named`, or the last one of `kind` before it.

        Raises:
            ConfigError: There is none.
        """
        names = [stage.name for stage in self.recipe.stages]
        before = self.recipe.stages[: names.index(config.name)]
        found = [stage.name for stage in before if stage.stage == kind and named in (None, stage.name)]
        if not found:
            wanted = f"stage {named!r}" if named else f"a {kind} stage"
            remedy = f"put a stage of kind `{kind}` before it, or name one"
            raise ConfigError(f"stage {config.name!r} needs {wanted} before it", remedy=remedy)
        return found[-1]

    def before(self, config: BaseStage) -> list[BaseStage]:
        """The stages before `config`."""
        return list(self.recipe.stages[: [stage.name for stage in self.recipe.stages].index(config.name)])

    def reward_adapters(self, config: BaseStage) -> list[str]:
        """Reward stages before `config` whose model is an adapter."""
        return [
            stage.name
            for stage in self.before(config)
            if isinstance(stage, RewardConfig) and stage.keep != "head"
        ]

    def folder_of(self, config: BaseStage, kind: str, named: str | None) -> Path:
        """The folder of that stage; it must have finished."""
        return self.folders[self.earlier(config, kind, named)]

    def work_folder(self, stage: str) -> Path:
        """Where a stage keeps what lets it go on after an interruption; lies beside its folder."""
        return self.path / f".work-{stage}"

    def claim_work(self, stage: str, parts: Mapping[str, str]) -> Path:
        """The stage's folder of partial work, marked with what that work depends on.

        What was begun from other inputs (another reward, for one) is moved to `superseded/`, never gone on
        with.
        """
        work, wanted = self.work_folder(stage), dict(parts)
        found = read_json_object(work / WORK_PARTS)
        if found is not None and found != wanted:
            with told("set aside", work):
                aside = move_aside(self.path, work, f"work-{stage}")
            why = ", ".join(changed_parts({name: str(value) for name, value in found.items()}, wanted))
            self.progress.note(f"{stage}: begins anew, since {why}; what was begun is in {aside}")
        with told("make the folder of partial work", work):
            work.mkdir(parents=True, exist_ok=True)
        write_whole(work / WORK_PARTS, json.dumps(wanted, indent=1) + "\n")
        return work

    # Training -----------------------------------------------------------------------------------------------

    def base(self, spec: str | None = None) -> SharedBase:
        """The resident base of `spec`: one model for the policy, the reference, the reward, and the engine of
        that name.

        Where the recipe fine-tunes it, or holds it in 4 bits, the base has weights of its own: the judge must
        not change with it.
        """
        name = self.model(spec)
        rewards = (stage for stage in self.recipe.stages if isinstance(stage, RewardConfig))
        bits = {stage.quantization for stage in rewards if self.model(stage.model) == name}
        if name not in self._bases and (
            "4bit" in bits or any(stage.stage == "sft" for stage in self.recipe.stages)
        ):
            self._bases[name] = SharedBase.load(
                name,
                dtype=self.recipe.dtype,
                device=self.recipe.device,
                quantization="4bit" if "4bit" in bits else "none",
            )
        if name not in self._bases:
            engine = self.engines.get(name).engine
            if not isinstance(engine, HFEngine):
                remedy = "name a hub id, a folder or an alias"
                raise ConfigError(f"{name} cannot be trained: it does not run in this process", remedy=remedy)
            self._bases[name] = SharedBase.from_model(
                engine.model, engine.tokenizer, name=name, identity=engine.card.revision
            )
        return self._bases[name]

    def tuned(self, spec: str | None) -> None:
        """The base of `spec` has been fine-tuned: policies of that name sample from it from now on."""
        name, base = self.model(spec), self.base(spec)
        card = replace(self.engines.card(name), revision=base.identity)
        self._tuned[name] = JournaledEngine(HFEngine(base.model, base.tokenizer, card), self.engines.memo)

    def policy(self, named: str | None) -> JournaledEngine:
        """The engine that a policy samples with: the fine-tuned one, once there is one."""
        name = self.model(named)
        return self._tuned.get(name) or self.engines.get(name)

    def reward_source(self, config: BaseStage, named: str | None) -> tuple[str, Path]:
        """Name and folder of a reward model: of a reward stage of this run, or a folder that holds one."""
        if named and named not in {stage.name for stage in self.recipe.stages}:
            # No folder's name is a role's.
            return f"folder-{digest(str(Path(named).absolute()))}", Path(named)
        stage = self.earlier(config, "reward", named)
        return stage, self.folders[stage] / "model"

    def reward_model(self, config: BaseStage, named: str | None) -> RewardModel:
        """A reward model on its base; the one that was just trained, or loaded from its folder."""
        name, folder = self.reward_source(config, named)
        if name not in self.rewards:
            self.rewards[name] = load_reward_model(
                self.base(), folder, name=name, constitution=self.constitution.digest, log=self.progress.note
            )
        return self.rewards[name]

    def reward_digest(self, config: BaseStage, named: str | None) -> str:
        """Digest of the files of a reward model."""
        _, folder = self.reward_source(config, named)
        if not folder.is_dir():
            raise DataError(
                "there is no reward model",
                where=str(folder),
                remedy="name a reward stage, or a folder that one left",
            )
        return self.files_digest(folder)

    def files_digest(self, folder: Path) -> str:
        """Digest of all files of a folder but Markdown, which is for people and names paths."""
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md")
        return digest([[path.relative_to(folder).as_posix(), self.file_digest(path)] for path in files])

    def file_digest(self, path: Path) -> str:
        """SHA-256 of a file.

        Raises:
            DataError: It cannot be read.
        """
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            what = f"the file cannot be read ({error.strerror})"
            raise DataError(what, where=str(path), remedy="check that the path is right") from error


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
