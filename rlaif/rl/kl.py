"""How far a policy may move from its reference: controllers of the KL coefficient β, and the KL of best of n.

A controller is told after each rollout how far the policy was from the reference, in nats per completion (the
sum of the per-token KL over a completion, averaged over the rollout), and answers with the β of the next one.
Its state is one frozen value, replaced at each update, so that a checkpoint holds it whole. No torch here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from rlaif.config.kl import KlSettings
from rlaif.errors import ConfigError, ModelError, RunError

__all__ = [
    "AdaptiveKL",
    "FixedKL",
    "KLController",
    "KLState",
    "LagrangianKL",
    "open_controller",
    "best_of_n_kl_bound",
    "best_of_n_kl_estimate",
]


@dataclass(frozen=True, slots=True)
class KLState:
    """All that a controller remembers: the coefficient in force, and how often it was updated."""

    beta: float
    updates: int = 0


class KLController(ABC):
    """One interface for all: read `beta`, `update` it, save it and load it."""

    def __init__(self, *, beta: float) -> None:
        self.state = KLState(beta=beta)

    @classmethod
    def open(cls, settings: Mapping[str, Any], *, episodes: int) -> Self:
        """The controller with `settings`, which are named as its arguments are."""
        return cls(**settings)

    @property
    def beta(self) -> float:
        """The coefficient for the next rollout."""
        return self.state.beta

    def update(self, kl: float) -> float:
        """The new β, given the KL of the last rollout (nats per completion; an estimate may be below 0).

        Raises:
            ModelError: `kl` is NaN or infinite; the state stays as it was.
        """
        if not math.isfinite(kl):
            raise ModelError(
                f"the KL between policy and reference is {kl}",
                remedy="the policy has run away: go on from an earlier checkpoint with a lower learning rate "
                "or a higher beta",
            )
        self.state = KLState(beta=self._next(kl), updates=self.state.updates + 1)
        return self.beta

    def state_dict(self) -> dict[str, str | float | int]:
        """The state as JSON values."""
        return {"controller": type(self).__name__, **asdict(self.state)}

    def load_state_dict(self, state: Mapping[str, str | float | int]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            RunError: It is another controller's.
        """
        if state["controller"] != type(self).__name__:
            raise RunError(
                f"the checkpoint holds a {state['controller']}, the recipe asks for {type(self).__name__}",
                remedy="continue with the recipe that the run was started with, or start a new run",
            )
        self.state = KLState(beta=float(state["beta"]), updates=int(state["updates"]))

    @abstractmethod
    def _next(self, kl: float) -> float:
        """The β that follows `self.beta`."""


class FixedKL(KLController):
    """The same β throughout (Stiennon 2020; Huang et al. 2024: .05 for TL;DR).

    Args:
        beta: 0 or more; at 0 nothing holds the policy.

    Raises:
        ConfigError: It is below 0.
    """

    def __init__(self, *, beta: float = 0.05) -> None:
        if not 0 <= beta < math.inf:
            raise ConfigError(f"beta is {beta}", remedy="give 0 or more; .05 is the usual one")
        super().__init__(beta=beta)

    def _next(self, kl: float) -> float:
        return self.beta


class AdaptiveKL(KLController):
    """Proportional control (Ziegler 2019, §2.2): β *= 1 + clip(kl / target - 1, ±clip) · episodes / horizon.

    Args:
        target: KL to settle at (nats per completion).
        episodes: Completions in a rollout, that is, an update.
        horizon: Completions in which a KL at the clip moves β by about a factor e^clip.
        beta: To start with.

    Raises:
        ConfigError: A setting is not above 0, or a rollout is so long against the horizon that β could reach
            0.
    """

    def __init__(
        self, *, target: float, episodes: int, horizon: int = 10_000, beta: float = 0.05, clip: float = 0.2
    ) -> None:
        _check_positive(target=target, episodes=episodes, horizon=horizon, beta=beta, clip=clip)
        if clip * episodes >= horizon:
            raise ConfigError(
                f"one rollout of {episodes} episodes against a horizon of {horizon} lets beta fall to 0",
                remedy=f"set the horizon above {clip * episodes:g}, best at a hundred rollouts or more",
            )
        super().__init__(beta=beta)
        self.target, self.episodes, self.horizon, self.clip = target, episodes, horizon, clip

    @classmethod
    def open(cls, settings: Mapping[str, Any], *, episodes: int) -> Self:
        """See `KLController`; this one looks at the length of a rollout, too."""
        return cls(**settings, episodes=episodes)

    def _next(self, kl: float) -> float:
        error = _clip(kl / self.target - 1, self.clip)
        return self.beta * (1 + error * self.episodes / self.horizon)


class LagrangianKL(KLController):
    """KL ≤ target as a constraint: max E[score] - β (KL - target), β by dual ascent, log β += rate · clip(kl
    / target - 1, ±1).

    Gradient ascent on the multiplier, taken in log β so that it stays above 0 (as SAC tunes its temperature,
    Haarnoja et al. 2018, 1812.05905, §5) and with the violation relative to the target so that `rate` has no
    unit. Where the constraint does not bind β falls to `min_beta`; where it cannot be met β stops at
    `max_beta`.

    Args:
        target: Greatest KL wanted (nats per completion).
        rate: Most that log β moves at one update.
        beta: To start with.

    Raises:
        ConfigError: A setting is not above 0, or β does not lie within its bounds.
    """

    def __init__(
        self,
        *,
        target: float,
        rate: float = 0.1,
        beta: float = 0.05,
        min_beta: float = 1e-4,
        max_beta: float = 10.0,
    ) -> None:
        _check_positive(target=target, rate=rate, beta=beta, min_beta=min_beta, max_beta=max_beta)
        if not min_beta <= beta <= max_beta:
            raise ConfigError(
                f"beta is {beta}, not between {min_beta} and {max_beta}", remedy="move min_beta or max_beta"
            )
        super().__init__(beta=beta)
        self.target, self.rate, self.min_beta, self.max_beta = target, rate, min_beta, max_beta

    def _next(self, kl: float) -> float:
        moved = self.beta * math.exp(self.rate * _clip(kl / self.target - 1, 1.0))
        return min(max(moved, self.min_beta), self.max_beta)


CONTROLLERS: Mapping[str, type[KLController]] = {
    "fixed": FixedKL,
    "adaptive": AdaptiveKL,
    "lagrangian": LagrangianKL,
}
"""The controller of each kind of `kl` settings."""


def open_controller(settings: KlSettings, *, episodes: int) -> KLController:
    """The controller that the settings ask for.

    Args:
        episodes: Completions in a rollout, that is, an update.
    """
    return CONTROLLERS[settings.kind].open(settings.model_dump(exclude={"kind"}), episodes=episodes)


def best_of_n_kl_bound(n: int) -> float:
    """log n - (n - 1) / n (nats): KL(best of n ‖ reference) is at most this (Stiennon 2020, app. G.3; Beirami
    et al. 2024, 2401.01879, theorem 3.1), and close to it only where no single completion is likely.

    It is about the selection, not about a student fine-tuned on what was selected.
    """
    _check_positive(n=n)
    return math.log(n) - (n - 1) / n


def best_of_n_kl_estimate(n: int, logprob: float) -> float:
    """Beirami's estimate (2401.01879, §4) of KL(best of n ‖ reference) from one selected completion; average
    it over prompts.

    With ε the reference's probability of that completion:
    (1-ε)^n (log n + (n-1) log(1-ε) - (n-1)/n) + (1 - (1-ε)^n) log((1 - (1-ε)^n) / ε).
    At ε = 1 it is 0, as ε falls it nears the bound.

    Args:
        logprob: log ε of the whole completion (nats), at most 0.
    """
    bound, eps = best_of_n_kl_bound(n), math.exp(logprob)
    if eps == 1.0:
        return 0.0
    if n * eps < 1e-12:
        return bound
    log_none = n * math.log1p(-eps)  # log (1-ε)^n: no draw of n is this completion
    some = -math.expm1(log_none)
    return math.exp(log_none) * (bound + (n - 1) * math.log1p(-eps)) + some * (math.log(some) - logprob)


def _clip(x: float, limit: float) -> float:
    return min(max(x, -limit), limit)


def _check_positive(**settings: float) -> None:
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} is {value}", remedy=f"give a {name} above 0")
