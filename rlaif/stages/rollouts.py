"""Where a policy is sampled that is trained here: on the servers that the settings name."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rlaif.config.rollout import RolloutSettings
from rlaif.engines.api.api_key import read_api_key
from rlaif.errors import ConfigError, ModelError
from rlaif.rl.learner import POLICY, Config, Learner

if TYPE_CHECKING:
    from rlaif.rl.served import ServedSampler

__all__ = ["served_sampler"]


@contextmanager
def served_sampler(
    learner: Learner[Config], settings: RolloutSettings, folder: Path | None
) -> Iterator[ServedSampler]:
    """A sampler of the learner's policy on servers, which have been looked at; they forget its adapters at
    the end.

    Args:
        folder: Of the run; adapters are written into it where the settings name no other.

    Raises:
        ConfigError: The addresses cannot be right.
        ModelError: A server cannot be reached, or is not set up for this.
    """
    hosts = frozenset(_host(url) for url in settings.base_urls)
    with tempfile.TemporaryDirectory(prefix="rlaif-adapters-") as own:
        sampler: ServedSampler = _served().ServedSampler(
            learner.base,
            settings,
            folder=folder / "adapters" if folder else Path(own),
            max_new_tokens=learner.config.max_new_tokens,
            temperature=learner.config.temperature,
            key=read_api_key(hosts=hosts),
        )
        try:
            with learner.base.role(POLICY):
                learner.base.ranks.from_first(sampler.check)
            yield sampler
        finally:
            sampler.close()


def _host(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise ConfigError(
            "rollout.base_urls has what is no plain http or https address",
            remedy="write it in full, as in http://localhost:8000/v1",
        )
    return parts.hostname


def _served() -> Any:
    """The part that needs the extra; imported late, so that everything else works without it."""
    try:
        return importlib.import_module("rlaif.rl.served")
    except ImportError as error:
        if error.name not in ("openai", "tenacity"):
            raise
        raise ModelError(
            f"rollouts on servers need the package {error.name}", remedy="pip install 'rlaif-toolkit[api]'"
        ) from None
