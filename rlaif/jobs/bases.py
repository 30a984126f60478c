"""The models that a run trains: one resident base per name, adapters for policy, value and reward on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rlaif.config import Recipe
from rlaif.config.finetune import SftConfig
from rlaif.config.reward import RewardConfig
from rlaif.config.rollout import RolloutSettings
from rlaif.engines.base import Engine
from rlaif.engines.hf import HFEngine
from rlaif.errors import ConfigError
from rlaif.jobs.engines import Engines
from rlaif.models.policy_files import find_policy
from rlaif.models.role_engine import resident_base
from rlaif.models.shared_base import SharedBase
from rlaif.reward.files import load_reward_model
from rlaif.reward.model import RewardModel
from rlaif.stages.rollouts import served_policy

__all__ = ["Bases"]


class Bases:
    """Resident bases by the name the user gave, the policies that were fine-tuned on them, and reward models.

    Args:
        recipe: Says which bases are fine-tuned or held in 4 bits.
        engines: Answer with the same weights where nothing changes those.
    """

    def __init__(self, recipe: Recipe, engines: Engines) -> None:
        self._recipe = recipe
        self._engines = engines
        self._bases: dict[str, SharedBase] = {}
        self._tuned: dict[str, Engine] = {}
        self._rewards: dict[str, RewardModel] = {}
        self._served: dict[str, Engine] = {}

    def get(self, spec: str | None = None) -> SharedBase:
        """The resident base of `spec`: one model for the policy, the reference, the reward, and the engine of
        that name.

        Where the recipe fine-tunes it, or holds it in 4 bits, the base has weights of its own: the judge must
        not change with it.
        """
        name = self._name(spec)
        rewards = (stage for stage in self._recipe.stages if isinstance(stage, RewardConfig))
        bits = {stage.quantization for stage in rewards if self._name(stage.model) == name}
        if name not in self._bases and (
            "4bit" in bits or any(stage.stage == "sft" for stage in self._recipe.stages)
        ):
            self._bases[name] = SharedBase.load(
                name,
                dtype=self._recipe.dtype,
                device=self._recipe.device,
                quantization="4bit" if "4bit" in bits else "none",
                shard=self._recipe.shard_base,
            )
        if name not in self._bases:
            engine = self._engines.in_process(name)
            if engine is None:
                remedy = "name a hub id, a folder or an alias"
                raise ConfigError(f"{name} cannot be trained: it does not run in this process", remedy=remedy)
            self._bases[name] = resident_base(engine)
        return self._bases[name]

    def tuned(self, spec: str | None) -> None:
        """The base of `spec` has been fine-tuned: policies of that name sample from it from now on."""
        name, base = self._name(spec), self.get(spec)
        card = replace(self._engines.card(name), revision=base.identity)
        self._tuned[name] = self._engines.journaled(HFEngine(base.model, base.tokenizer, card))

    def policy(self, named: str | None) -> Engine:
        """The engine that a policy samples with: the fine-tuned one, once there is one."""
        name = self._name(named)
        return self._tuned.get(name) or self._engines.get(name)

    def check_servable(self, named: str | None) -> None:
        """Refuse to have a policy on servers that the run itself makes.

        Raises:
            ConfigError: The run fine-tunes it, so that no server can hold it; or it is an adapter.
        """
        name = self._name(named)
        if find_policy(name) is not None:
            raise ConfigError(
                f"the servers of `rollout` hold whole models, and {name} is an adapter",
                remedy="leave `rollout` out, or merge it (rlaif push --merge) and name the merged folder",
            )
        if any(
            isinstance(stage, SftConfig) and self._name(stage.model) == name for stage in self._recipe.stages
        ):
            raise ConfigError(
                f"the servers of `rollout` cannot hold {name} as this run fine-tunes it",
                remedy="leave `rollout` out of `sample`, or serve the merged policy, and name its folder as "
                "`policy` in a recipe without `sft`",
            )

    def served_policy(self, named: str | None, settings: RolloutSettings, folder: Path) -> Engine:
        """The engine of a policy that vLLM servers hold, without its weights.

        Args:
            folder: Of the stage's partial work; adapters are written there where the settings name no folder.
        """
        name = self._name(named)
        key = f"{name} at {' '.join(settings.base_urls)}"
        if key not in self._served:
            self._served[key] = self._engines.asked_by_first(lambda: served_policy(name, settings, folder))
        return self._served[key]

    def reward(
        self, name: str, folder: Path, *, constitution: str, log: Callable[[str], None]
    ) -> RewardModel:
        """The reward model `name` on the recipe's base: the one just trained, or loaded from `folder`.

        Args:
            constitution: Digest of the run's; another one is said to `log`.
        """
        if name not in self._rewards:
            self._rewards[name] = load_reward_model(
                self.get(), folder, name=name, constitution=constitution, log=log
            )
        return self._rewards[name]

    def keep_reward(self, name: str, model: RewardModel) -> None:
        """Use `model`, which was just trained, wherever a later stage asks for the reward model `name`."""
        self._rewards[name] = model

    def _name(self, spec: str | None) -> str:
        return spec or self._recipe.model
