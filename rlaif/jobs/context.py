"""What the stages of one run share, and what they may ask of each other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from rlaif.config import Recipe
from rlaif.config.labelling import BaseStage
from rlaif.config.reward import RewardConfig
from rlaif.config.start import StartSettings
from rlaif.constitution.load import load_constitution
from rlaif.digest import digest
from rlaif.directives.training import Steered
from rlaif.engines.journaled import Memo
from rlaif.errors import ConfigError, DataError
from rlaif.files import folder_digest
from rlaif.io.splits import check_disjoint
from rlaif.jobs.bases import Bases
from rlaif.jobs.engines import Engines
from rlaif.jobs.merging import adapter_of
from rlaif.models.policy_files import find_policy
from rlaif.models.start import Start
from rlaif.progress import Progress
from rlaif.prompts import PromptLibrary
from rlaif.reward.model import RewardModel
from rlaif.runs.disk import read_json_object, run_errors, write_whole
from rlaif.runs.folders import move_aside
from rlaif.runs.manifest import changed_parts
from rlaif.runs.spending import Spending
from rlaif.types import Constitution, Prompt

__all__ = ["RunContext"]

WORK_PARTS = "parts.json"
"""In a folder of partial work: what that work depends on, as in the manifest of a finished stage."""


class RunContext:
    """What the stages of one run share: recipe, constitution, templates, models, folders, prompts in use.

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
        self.engines = Engines(
            memo,
            dtype=recipe.dtype,
            device=recipe.device,
            shard=recipe.shard_base,
            server=recipe.server,
            servers=recipe.servers,
            note=progress.note,
            spending=spending or Spending(None),
            model=recipe.model,
        )
        self.bases = Bases(recipe, self.engines)
        self.folders: dict[str, Path] = {}
        """Finished stage folders by stage name."""
        self.sampled: dict[str, Sequence[Prompt]] = {}
        """The prompts of each sample stage, which later stages may refuse before a model is loaded."""
        self.steered: dict[str, Steered] = {}
        """The prompts under directives of each stage that has some."""
        self.opened = ExitStack()
        """What the stage that runs has opened, to be closed with it."""
        # By stage, then by source: a stage may read a source more than once.
        self._left_out: dict[str, dict[str, int]] = {}
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

    def judge(self, named: str) -> str:
        """The judge that a role names: a model, or what a judge stage of this run trains."""
        stage = self.recipe.judge_stage(named)
        return named if stage is None else str(self.path / stage.name / "model")

    def policy(self, named: str | None) -> str:
        """The policy that a role names: a model, the folder of an adapter, or what an earlier stage of this
        run trains."""
        if named is not None and (stage := self.recipe.policy_stage(named)) is not None:
            return str(self.path / stage.name / "adapter")
        if named is not None and (merged := self.recipe.merge_stage(named)) is not None:
            return str(self.path / merged.name / "model")
        return self.model(named)

    def policy_name(self, named: str | None) -> str:
        """What a stage's key calls a policy: an adapter is known by its bytes, wherever it lies."""
        return "adapter" if find_policy(self.policy(named)) else self.model(named)

    def check_start(self, config: BaseStage) -> None:
        """Look for the policy that a stage starts from, before anything is loaded.

        Raises:
            ConfigError: It is a stage that comes later.
            DataError: There is no adapter.
        """
        named = config.policy if isinstance(config, StartSettings) else None
        if named is None:
            return
        stage = self.recipe.policy_stage(named)
        if self.recipe.merge_stage(named) is not None:
            raise ConfigError(
                f"stage {config.name!r} goes on from an adapter, and {named!r} leaves a full model",
                remedy="name the stage that trained the adapter",
            )
        if stage is None:
            adapter_of(Path(named))
        elif stage not in self.before(config):
            raise ConfigError(
                f"stage {config.name!r} starts from {named!r}, which does not come before it",
                remedy="put it before, or name an earlier one",
            )

    def start_of(self, config: StartSettings) -> Start | None:
        """The adapter that a stage trains further, if it does."""
        if config.policy is None:
            return None
        return Start(adapter_of(Path(self.policy(config.policy))), held=config.reference == "previous")

    def start_parts(self, config: StartSettings) -> dict[str, str]:
        """What a training depends on by where it starts; nothing for one that starts anew."""
        start = self.start_of(config)
        if start is None:
            return {}
        return {"start": folder_digest(start.folder), "reference": config.reference}

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

    @property
    def claimed(self) -> Mapping[str, Mapping[str, Prompt]]:
        """The prompts that stages have put down, by purpose and fingerprint."""
        return self._claimed

    def unclaimed(self, prompts: Sequence[Prompt], *, purpose: str) -> list[Prompt]:
        """Those of `prompts` that no stage so far has put down for anything but `purpose`."""
        taken = {key for name, claimed in self._claimed.items() if name != purpose for key in claimed}
        return [prompt for prompt in prompts if prompt.fingerprint() not in taken]

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
            with run_errors("set aside", work):
                aside = move_aside(self.path, work, f"work-{stage}")
            why = ", ".join(changed_parts({name: str(value) for name, value in found.items()}, wanted))
            self.progress.note(f"{stage}: starts over, since {why}; the partial work is in {aside}")
        with run_errors("make the folder of partial work", work):
            work.mkdir(parents=True, exist_ok=True)
        write_whole(work / WORK_PARTS, json.dumps(wanted, indent=1) + "\n")
        return work

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
        constitution = self.constitution.digest
        return self.bases.reward(name, folder, constitution=constitution, log=self.progress.note)

    def reward_digest(self, config: BaseStage, named: str | None) -> str:
        """Digest of the files of a reward model."""
        _, folder = self.reward_source(config, named)
        if not folder.is_dir():
            raise DataError(
                "there is no reward model",
                where=str(folder),
                remedy="name a reward stage, or a folder that one left",
            )
        return folder_digest(folder)
