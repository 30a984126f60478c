"""Where policies are sampled: on the servers that the settings name."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rlaif.config.rollout import RolloutSettings
from rlaif.engines.api.api_key import read_api_key
from rlaif.engines.base import Engine
from rlaif.errors import ModelError
from rlaif.models.shared_base import LoraSettings, SharedBase
from rlaif.rl.step import Metrics
from rlaif.text import count_of

if TYPE_CHECKING:
    from rlaif.rl.served import ServedSampler

__all__ = ["adapter_folder", "served_note", "served_policy", "served_sampler", "try_adapters"]


@contextmanager
def served_sampler(
    base: SharedBase,
    settings: RolloutSettings,
    folder: Path | None,
    *,
    max_new_tokens: int,
    temperature: float,
    lora: LoraSettings,
) -> Iterator[ServedSampler]:
    """A sampler of policies of `base` on servers, which have been looked at; they forget the adapters at the
    end.

    Args:
        folder: Of the run; adapters are written into it where the settings name no other.
        lora: Shape of the policies' adapters.

    Raises:
        ModelError: A server cannot be reached, or is not set up for this.
    """
    with adapter_folder(settings, folder) as own:
        sampler: ServedSampler = _needing("rlaif.rl.served").ServedSampler(
            base,
            settings,
            folder=own,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            key=read_api_key(hosts=_hosts(settings)),
            lora=lora,
        )
        try:
            base.ranks.from_first(sampler.check)
            yield sampler
        finally:
            sampler.close()


def try_adapters(sampler: ServedSampler, roles: Mapping[str, str]) -> None:
    """Have the servers load every policy once, before hours of sampling.

    Args:
        roles: The role of each policy by its name.

    Raises:
        ModelError: A server refuses one, which is named.
    """
    base = sampler.base
    for name, role in roles.items():
        try:
            with base.role(role):
                base.ranks.from_first(sampler.publish)
        except ModelError as error:
            raise ModelError(f"policy {name}: {error.what}", where=error.where, remedy=error.remedy) from None


def served_policy(spec: str, settings: RolloutSettings, folder: Path | None) -> Engine:
    """An engine that samples the model `spec` on servers; its weights are not loaded here.

    Args:
        folder: As of `served_sampler`.

    Raises:
        ModelError: There is no such model.
    """
    key = read_api_key(hosts=_hosts(settings))
    engine: Engine = _needing("rlaif.rl.serving.policy").ServedPolicy(
        spec, settings, folder=partial(adapter_folder, settings, folder), key=key
    )
    return engine


def served_note(settings: RolloutSettings, compared: Metrics) -> str:
    """What a reader of a report should know of completions that servers drew."""
    servers = count_of(len(settings.base_urls), "vLLM server")
    note = (
        f"completions were drawn on {servers}, with the servers' random numbers: other draws of the same "
        "distribution than this process would make"
    )
    if "rollout/difference" in compared:
        note += (
            f"; log-probabilities there and here differ by {compared['rollout/difference']:.2g} nats a token"
        )
    return note


@contextmanager
def adapter_folder(settings: RolloutSettings, folder: Path | None) -> Iterator[Path]:
    """Where adapters are written for servers: the folder that the settings name, else one below the run's,
    else one that is there as long as the block."""
    named = settings.adapters
    with tempfile.TemporaryDirectory(prefix="rlaif-adapters-") as own:
        if named:
            yield Path(named)
        else:
            yield folder / "adapters" if folder else Path(own)


def _hosts(settings: RolloutSettings) -> frozenset[str]:
    return frozenset(urlsplit(url).hostname or "" for url in settings.base_urls)


def _needing(module: str) -> Any:
    """A module that needs the extra; imported late, so that everything else works without it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name not in ("openai", "tenacity"):
            raise
        raise ModelError(
            f"rollouts on servers need the package {error.name}", remedy="pip install 'rlaif-toolkit[api]'"
        ) from None
