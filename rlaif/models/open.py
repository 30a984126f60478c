"""Open the engine that a model's name calls for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rlaif.engines.api.costs import Budget
from rlaif.engines.base import Engine, TokenCount
from rlaif.engines.hf import HFEngine
from rlaif.engines.openai import ApiSettings, open_openai
from rlaif.engines.scripted import load_scripted
from rlaif.models.load import load_engine, load_token_count, silent
from rlaif.models.policy_files import find_policy, open_policy_folder
from rlaif.models.probe_files import find_judge, open_judge_folder, weights_of

__all__ = ["Served", "is_scripted", "is_served", "open_engine", "open_token_count"]


@dataclass(frozen=True, slots=True)
class Served:
    """Where models named `openai:MODEL` are served; see `open_openai`."""

    base_urls: tuple[str, ...] = ()
    api_key_env: str = ""
    api_key_file: Path | None = None
    settings: ApiSettings = field(default_factory=ApiSettings)
    budget: Budget | None = None


def is_scripted(spec: str) -> bool:
    """Whether `spec` names functions instead of a model: `scripted` or
    `scripted:package.module:attribute`."""
    return spec == "scripted" or spec.startswith("scripted:")


def is_served(spec: str) -> bool:
    """Whether `spec` names a model behind a server: `openai:MODEL`."""
    return spec.startswith("openai:")


def open_engine(
    spec: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    shard: bool = False,
    served: Served | None = None,
    resident: Callable[[str], HFEngine] | None = None,
    log: Callable[[str], None] = silent,
) -> Engine:
    """The engine of `spec`: a hub id, folder, GGUF file or alias (torch, in process), the folder of a trained
    judge or of an adapter, `openai:MODEL`, or `scripted…`.

    Args:
        resident: Gives the engine of the base of such a folder, which may be loaded already; loads it when
            left out.
        shard: See `load_model`.

    Raises:
        ModelError: It cannot be loaded.
    """
    if is_scripted(spec):
        return load_scripted(spec)
    if is_served(spec):
        place = served or Served()
        return open_openai(
            spec,
            base_urls=place.base_urls,
            api_key_env=place.api_key_env,
            api_key_file=place.api_key_file,
            settings=place.settings,
            log=log,
            budget=place.budget,
        )

    def load(name: str) -> HFEngine:
        return load_engine(name, dtype=dtype, device=device, shard=shard, log=log)

    if (judge := find_judge(spec)) is not None:
        return open_judge_folder(spec, judge, resident or load)
    policy = find_policy(spec)
    return load(spec) if policy is None else open_policy_folder(spec, policy, resident or load)


def open_token_count(spec: str) -> TokenCount:
    """Renders and counts as the engine of `spec` would, without its weights. A served model's tokens are
    counted as words.

    Raises:
        ModelError: Its tokenizer cannot be loaded.
    """
    return (
        load_scripted("scripted" if is_served(spec) else spec)
        if is_scripted(spec) or is_served(spec)
        else load_token_count(weights_of(spec))
    )
