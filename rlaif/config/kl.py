"""How PPO holds the policy near its reference: one set of settings for each kind of KL controller."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from rlaif.config.labelling import SettingNotice, Settings

__all__ = [
    "AdaptiveKlSettings",
    "FixedKlSettings",
    "KlSettings",
    "LagrangianKlSettings",
    "with_kl_as_settings",
]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class FixedKlSettings(Settings):
    """The same coefficient throughout."""

    kind: Literal["fixed"] = "fixed"

    beta: NotNegative = 0.05
    """Coefficient of the per-token KL penalty; 0 means no penalty."""


class AdaptiveKlSettings(Settings):
    """Proportional control (Ziegler et al. 2019) that settles at a KL."""

    kind: Literal["adaptive"] = "adaptive"

    beta: Positive = 0.05
    """Coefficient of the per-token KL penalty, to start with."""

    target: Positive = 6.0
    """KL to settle at, in nats per completion."""

    horizon: Annotated[int, Field(ge=1)] = 10_000
    """Completions over which β may change by a factor of about e^0.2."""


class LagrangianKlSettings(Settings):
    """A multiplier by dual ascent that keeps the KL below a limit."""

    kind: Literal["lagrangian"] = "lagrangian"

    beta: Positive = 0.05
    """Coefficient of the per-token KL penalty, to start with."""

    target: Positive = 6.0
    """Greatest KL wanted, in nats per completion."""

    rate: Positive = 0.1
    """Most that log β moves in one update."""


KlSettings = Annotated[
    FixedKlSettings | AdaptiveKlSettings | LagrangianKlSettings, Field(discriminator="kind")
]

KINDS: Mapping[str, type[Settings]] = {
    "fixed": FixedKlSettings,
    "adaptive": AdaptiveKlSettings,
    "lagrangian": LagrangianKlSettings,
}
FLAT: Mapping[str, tuple[str, float]] = {
    "beta": ("beta", 0.05),
    "kl_target": ("target", 6.0),
    "kl_horizon": ("horizon", 10_000),
    "kl_rate": ("rate", 0.1),
}
"""Version 0.1.0's flat settings, what they are now inside `kl`, and the default that its recipes wrote
out."""


def with_kl_as_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` of a PPO stage with the flat spelling of version 0.1.0 (`kl: adaptive`, `kl_target: 10`) read
    as `kl: {kind: adaptive, target: 10}`, and a notice.

    Raises:
        ValueError: A flat setting is of another controller than the one named, where it could not act.
    """
    kind, flat = values.get("kl", "fixed"), {name: values[name] for name in FLAT if name in values}
    if not flat and not isinstance(kind, str):
        return dict(values)
    if not isinstance(kind, str):
        raise ValueError(
            f"{', '.join(flat)}: write this inside `kl`, as {', '.join(FLAT[each][0] for each in flat)}"
        )
    known = KINDS[kind].model_fields if kind in KINDS else {}
    settings: dict[str, Any] = {"kind": kind}
    for old, value in flat.items():
        name, default = FLAT[old]
        if name in known or kind not in KINDS:
            settings[name] = value
        elif value != default:
            able = " or ".join(each for each, found in KINDS.items() if name in found.model_fields)
            raise ValueError(
                f"{old} does nothing with the {kind} controller: write `kl: "
                f"{{kind: {able}, {name}: {value}}}`"
            )
    if flat or "kl" in values:
        shown = ", ".join(f"{name}: {value}" for name, value in settings.items())
        warnings.warn(
            f"the spelling of kl is that of version 0.1.0; write kl: {{{shown}}}", SettingNotice, stacklevel=2
        )
    return {**{name: value for name, value in values.items() if name not in FLAT}, "kl": settings}
