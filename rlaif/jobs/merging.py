"""Full models from the adapters of a run: which base an adapter belongs to, and what was merged into that
base before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rlaif.config import Recipe, load_recipe
from rlaif.config.labelling import BaseStage
from rlaif.errors import DataError
from rlaif.files import read_object
from rlaif.io.writers import write_text
from rlaif.models.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from rlaif.models.merged import save_merged
from rlaif.report.model_card import merged_card

__all__ = [
    "CARD",
    "MERGED",
    "Origin",
    "adapter_of",
    "merge_adapter",
    "origin_of",
    "stage_base",
    "tuned_before",
    "write_merged",
]

CARD = "README.md"
MERGED = "merged"
"""Folder of the full model, beside `adapter`."""


class Origin(NamedTuple):
    """Where an adapter comes from.

    Attributes:
        base: The model as the recipe named it.
        first: Adapters that were merged into the base before this one was trained.
    """

    base: str
    first: tuple[Path, ...]
    dtype: str
    device: str


def stage_base(config: BaseStage, recipe: Recipe) -> str:
    """The model whose adapter the stage trains."""
    return config.trained_model or recipe.model


def tuned_before(config: BaseStage, recipe: Recipe) -> tuple[str, ...]:
    """Names of the SFT stages before this one whose adapters were merged into its base."""
    before = recipe.stages[: [stage.name for stage in recipe.stages].index(config.name)]
    base = stage_base(config, recipe)
    return tuple(stage.name for stage in before if stage.stage == "sft" and stage_base(stage, recipe) == base)


def adapter_of(folder: Path) -> Path:
    """The adapter in `folder`: a stage's folder, or the adapter's own, which may be damaged.

    Raises:
        DataError: There is none.
    """
    for path in (folder / "adapter", folder):
        if any((path / name).is_file() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, "adapter_model.bin")):
            return path
    remedy = "name the folder of a stage that trained a policy, or its adapter/"
    if stages := sorted(str(path.parent) for path in folder.glob("*/adapter") if path.is_dir()):
        remedy = f"it is a run; name its stage: {', '.join(stages)}"
    raise DataError("there is no adapter", where=str(folder), remedy=remedy)


def origin_of(adapter: Path) -> Origin:
    """What the recipe beside the adapter's stage says; without one, what PEFT's config says.

    Raises:
        DataError: Neither names the base.
    """
    stage, recipe_file = adapter.absolute().parent, adapter.absolute().parent.parent / "recipe.yaml"
    if adapter.name == "adapter" and recipe_file.is_file():
        recipe = load_recipe(recipe_file)
        config = next((each for each in recipe.stages if each.name == stage.name), None)
        if config is not None:
            first = tuple(stage.parent / name / "adapter" for name in tuned_before(config, recipe))
            return Origin(
                base=stage_base(config, recipe), first=first, dtype=recipe.dtype, device=recipe.device
            )
    what, remedy = "the adapter's config", "it was cut short or changed: save the adapter again"
    try:
        named = read_object(adapter / "adapter_config.json", error=DataError, what=what, remedy=remedy)[
            "base_model_name_or_path"
        ]
    except KeyError as error:
        raise DataError(
            "the adapter does not say which base it belongs to", where=str(adapter), remedy=remedy
        ) from error
    return Origin(base=str(named), first=(), dtype="auto", device="auto")


def merge_adapter(adapter: Path, *, log: Callable[[str], None] = lambda line: None) -> Path:
    """Write `merged/` beside the adapter, unless it is there; returns that folder.

    Raises:
        RlaifError: The base, or an adapter that was merged before, cannot be loaded; or the disk refuses.
    """
    folder = adapter.parent / MERGED
    if folder.is_dir():
        log(f"{folder} is there already")
        return folder
    write_merged(adapter, folder, origin=origin_of(adapter), log=log)
    return folder


def write_merged(
    adapter: Path, folder: Path, *, origin: Origin, log: Callable[[str], None] = lambda line: None
) -> None:
    """Write the full model that `adapter` and those before it make of its base to `folder`, with its card.

    Raises:
        RlaifError: As of `merge_adapter`; or something is in the folder already.
    """
    log(f"merging {adapter} into {origin.base}")
    save_merged(
        origin.base, [*origin.first, adapter], folder, dtype=origin.dtype, device=origin.device, log=log
    )
    if (adapter / CARD).is_file():
        write_text(folder / CARD, merged_card((adapter / CARD).read_text(encoding="utf-8")))
