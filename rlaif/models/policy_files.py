"""A policy as a folder: a LoRA adapter, as rlaif, PEFT or TRL write one, opened on the base that it belongs
to."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rlaif.digest import digest
from rlaif.engines.hf import HFEngine
from rlaif.errors import ModelError
from rlaif.files import folder_digest, read_object
from rlaif.models.adapter_files import ADAPTER_CONFIG
from rlaif.models.role_engine import RoleEngine, resident_base

__all__ = ["base_of", "find_policy", "open_policy_folder", "policy_revision"]

PLACES = ("", "adapter")
"""Where in a folder that the user names an adapter lies: its own folder, its stage's."""


def find_policy(spec: str) -> Path | None:
    """The folder of the adapter that `spec` names, if it names one: that folder, or the stage's that trained
    it."""
    if not spec or spec.startswith(("openai:", "scripted")):
        return None
    places = (Path(os.path.expanduser(spec), place) for place in PLACES)
    found = (place for place in places if os.path.isfile(place / ADAPTER_CONFIG))
    # A folder with a whole model beside an adapter's config is a model.
    return next((place for place in found if not (place / "config.json").is_file()), None)


def base_of(folder: Path) -> str:
    """The model that an adapter says it belongs to, as it can be opened.

    Raises:
        ModelError: It does not say.
    """
    remedy = "it was cut short or changed: save the adapter again"
    config = read_object(
        folder / ADAPTER_CONFIG, error=ModelError, what="the adapter's config", remedy=remedy
    )
    named = config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise ModelError(
            "the adapter does not say which base it belongs to", where=str(folder), remedy=remedy
        )
    return named


def policy_revision(folder: Path, base: str) -> str:
    """16 hex digits that change when its answers do.

    Args:
        base: Identity of the base's weights.
    """
    return digest(["policy", folder_digest(folder), base])[:16]


def open_policy_folder(spec: str, folder: Path, base: Callable[[str], HFEngine]) -> RoleEngine:
    """The engine of a policy, a role of its base.

    Args:
        spec: As the user named it.
        base: Gives the engine of a model; called once, with the adapter's base.

    Raises:
        ModelError: Files are damaged, or the base is another one.
    """
    engine = base(base_of(folder))
    revision = policy_revision(folder, engine.card.revision)
    resident, role = resident_base(engine), f"policy-{revision}"
    if role not in resident.roles:
        resident.load_adapter(role, folder)
    return RoleEngine(engine, resident, role, card=replace(engine.card, name=spec, revision=revision))
