"""What is served: one base, its policies by name, and the reward model that may choose among samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from rlaif.engines.chat import ChatFormat
from rlaif.errors import ConfigError
from rlaif.models.heap import bound_kernels
from rlaif.models.policy_files import base_of, find_policy, policy_revision
from rlaif.models.shared_base import REFERENCE, SharedBase
from rlaif.reward.files import load_reward_model
from rlaif.reward.model import RewardModel
from rlaif.serving.lane import check_joining

__all__ = ["Residents", "open_residents"]


@dataclass(frozen=True)
class Residents:
    """A base in memory, and what runs on it.

    Attributes:
        roles: The role of every model name that requests may use.
        revisions: What answers under every name, in a few digits that change with it.
    """

    base: SharedBase
    roles: Mapping[str, str]
    reward: RewardModel | None = None
    revisions: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def form(self) -> ChatFormat:
        """How prompts are rendered."""
        return ChatFormat(self.base.tokenizer, name=self.base.name)


def open_residents(
    model: str | None,
    policies: Sequence[str],
    reward: Path | None = None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    log: Callable[[str], None] = lambda line: None,
) -> Residents:
    """Load a base with adapters.

    Args:
        model: The base, served under this name; the base of the first policy when left out.
        policies: Folders of adapters or of the stages that trained them, each `FOLDER` or `NAME=FOLDER`.
        reward: Folder of a reward model, or of the stage that trained it.

    Raises:
        ConfigError: Nothing is named, a folder holds no policy, or two have one name.
        ModelError: The model, an adapter or the reward model cannot be loaded, or is of another base.
    """
    named = dict(_named(policies))
    spec = _base(model, list(named.values()))
    _check_names(spec, policies, named)
    bound_kernels()
    base = SharedBase.load(spec, dtype=dtype, device=device, log=log)
    roles, revisions = {spec: REFERENCE}, {spec: base.identity}
    for number, (name, folder) in enumerate(named.items()):
        roles[name] = f"policy-{number}"
        base.load_adapter(roles[name], folder)
        revisions[name] = policy_revision(folder, base.identity)
    check_joining(base)
    scores = None if reward is None else load_reward_model(base, _reward_folder(reward), log=log)
    return Residents(base=base, roles=roles, reward=scores, revisions=revisions)


def _named(policies: Sequence[str]) -> list[tuple[str, Path]]:
    """Name and folder of each adapter; the name is the folder as it was given when none is."""
    found = []
    for text in policies:
        name, equals, spec = text.partition("=")
        if not equals or find_policy(text) is not None:
            name = spec = text
        folder = find_policy(spec)
        if folder is None or not name:
            raise ConfigError(
                f"there is no policy in {spec!r}",
                where="--policy",
                remedy="name the folder of an adapter, or the stage's that trained it; a whole model is "
                "served with --model",
            )
        found.append((name, folder))
    return found


def _check_names(spec: str, policies: Sequence[str], named: Mapping[str, Path]) -> None:
    """Refuse names that stand for two models.

    Raises:
        ConfigError: There are such.
    """
    remedy = "give each policy a name: --policy NAME=FOLDER"
    if len(named) < len(policies):
        raise ConfigError("two policies have one name", where="--policy", remedy=remedy)
    if spec in named:
        what = f"the base and a policy are both called {spec!r}"
        raise ConfigError(what, where="--policy", remedy=remedy)


def _base(model: str | None, folders: Sequence[Path]) -> str:
    """The name of the model to load."""
    if model is None and not folders:
        raise ConfigError("there is nothing to serve", remedy="name a --model, or a --policy on its base")
    if model is None:
        return base_of(folders[0])
    if find_policy(model) is not None:
        raise ConfigError(
            f"{model} is an adapter, not a base", where="--model", remedy=f"serve it with --policy {model}"
        )
    if model.startswith(("openai:", "scripted")):
        raise ConfigError(
            f"{model} does not run in this process", where="--model", remedy="name a model that does"
        )
    return model


def _reward_folder(folder: Path) -> Path:
    """Where the reward model is: the folder itself, or `model/` in a stage's."""
    inside = folder / "model"
    return inside if inside.is_dir() else folder
