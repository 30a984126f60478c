"""Where a policy is sampled, if not in this process: on vLLM servers that hold the same base."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from rlaif.config.settings import Settings

__all__ = ["AskedRollout", "ComparedRollout", "RolloutSettings"]


class RolloutSettings(Settings):
    """vLLM servers that sample. The base stays where it is; they are handed the adapters of the policies."""

    base_urls: tuple[str, ...] = Field(min_length=1)
    """Addresses of the servers (`http://localhost:8000/v1`), one server a GPU; prompts are divided among
    them."""

    model: str = ""
    """Name under which the servers serve the base; the one that they list first when left out."""

    adapters: str = ""
    """Folder that this process and all servers see under the same path; adapters are written there. The
    run's own folder when left out."""

    concurrency: Annotated[int, Field(ge=1)] = 64
    """Requests at once to one server; each is a prompt with all its completions."""

    timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds for one request."""

    retries: Annotated[int, Field(ge=0, le=100)] = 6
    """Tries after the first, of a request that failed for a reason that may pass."""

    backoff: Annotated[float, Field(ge=0, le=60)] = 0.5
    """Seconds before the first of them; doubled each time, with jitter, up to half a minute."""

    cap: Annotated[float, Field(ge=1)] = 2.0
    """A token's weight in the loss of PPO and GRPO, its probability here over that on the server, is at most
    this."""

    min_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.98
    """The stage stops where the mean of these ratios over a rollout (in `best_of_k` a round, in `evaluate` a
    policy), which theory has at 1, is below."""

    max_ratio: Annotated[float, Field(gt=1)] = 1.02
    """The stage stops where it is above."""

    max_difference: Annotated[float, Field(gt=0)] = 0.05
    """The stage stops where the log-probabilities of server and trainer differ by more (mean per token, in
    nats): a stale adapter leaves the mean ratio at 1."""

    @model_validator(mode="after")
    def _servers_have_addresses(self) -> RolloutSettings:
        for number, url in enumerate(self.base_urls, start=1):
            if not _is_plain(url):  # not shown: it may hold a key
                raise ValueError(
                    f"address {number} of base_urls is no plain http or https address: write it in full, as "
                    "in http://localhost:8000/v1; a key goes into RLAIF_API_KEY"
                )
        if len({url.rstrip("/") for url in self.base_urls}) < len(self.base_urls):
            raise ValueError("a server is named twice under base_urls")
        return self


def _refuse_changed(rollout: RolloutSettings, *names: str, act: str) -> RolloutSettings:
    """`rollout`, if `names` are at their defaults.

    Args:
        act: Where they act, in words.
    """
    defaults = RolloutSettings.model_fields
    if changed := [name for name in names if getattr(rollout, name) != defaults[name].default]:
        acts, them = ("acts", "it") if len(changed) == 1 else ("act", "them")
        raise ValueError(f"{', '.join(changed)} {acts} in {act} only: leave {them} out")
    return rollout


def _without_loss(rollout: RolloutSettings) -> RolloutSettings:
    return _refuse_changed(rollout, "cap", act="`ppo` and `grpo`")


def _without_weights(rollout: RolloutSettings) -> RolloutSettings:
    bounds = ("min_ratio", "max_ratio", "max_difference")
    act = "stages that compare log-probabilities (`ppo`, `grpo`, `best_of_k`, `evaluate`)"
    return _refuse_changed(_without_loss(rollout), *bounds, act=act)


ComparedRollout = Annotated[RolloutSettings, AfterValidator(_without_loss)]
"""Of a stage that compares log-probabilities, and corrects no loss."""

AskedRollout = Annotated[RolloutSettings, AfterValidator(_without_weights)]
"""Of a stage that only asks."""


def _is_plain(url: str) -> bool:
    """Whether it is scheme, host and path, and nothing else."""
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    other = parts.username or parts.password or parts.query or parts.fragment
    return parts.scheme in ("http", "https") and named and not other
