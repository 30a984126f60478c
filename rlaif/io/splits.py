"""Divide prompts into disjoint sets by a hash of what is asked, and draw from them: no list of members to
keep or to lose.

The prompts of fine-tuning, labelling, RL and evaluation must not overlap, or the comparison at the end
measures memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from rlaif.digest import unit_from
from rlaif.errors import ConfigError, DataError, Problem
from rlaif.types import Prompt

__all__ = ["FRACTIONS", "check_disjoint", "draw_split", "split_of"]

FRACTIONS: Mapping[str, float] = {"sft": 0.25, "label": 0.35, "rl": 0.25, "eval": 0.15}
SHOWN = 5
"""Overlapping prompts that a message shows, of each two sets."""


def split_of(fingerprint: str, fractions: Mapping[str, float] = FRACTIONS) -> str:
    """The set of a prompt, from its `Prompt.fingerprint()` alone: adding prompts moves none.

    Args:
        fractions: Expected share of each set; they add up to 1.

    Raises:
        ConfigError: They do not.
    """
    if any(share < 0 for share in fractions.values()) or not math.isclose(
        math.fsum(fractions.values()), 1.0, abs_tol=1e-9
    ):
        raise ConfigError(
            f"the fractions {dict(fractions)} do not add up to 1, or one is below 0",
            remedy="give numbers from 0 that add up to 1",
        )
    place = unit_from("split", fingerprint)
    edge = 0.0
    last = ""
    for name, share in fractions.items():
        edge += share
        if share > 0:
            last = name
        if place < edge:
            return name
    return last  # rounding left the sum of shares just below `place`


def draw_split(prompts: Iterable[Prompt], limit: int | None, seed: int) -> list[Prompt]:
    """Up to `limit` prompts (all, when it is `None`), in an order that a hash of seed and content decides.

    Raising the limit keeps the earlier ones, and adding prompts does not reorder them.
    """
    return sorted(prompts, key=lambda prompt: (unit_from("draw", seed, prompt.fingerprint()), prompt.id))[
        :limit
    ]


def check_disjoint(sets: Mapping[str, Sequence[Prompt]]) -> None:
    """Refuse sets of prompts that overlap.

    Raises:
        DataError: Two sets ask the same; the message names the prompts.
    """
    members = {name: {prompt.fingerprint(): prompt for prompt in prompts} for name, prompts in sets.items()}
    problems: list[Problem] = []
    for (one, ours), (other, theirs) in combinations(members.items(), 2):
        shared = [prompt for fingerprint, prompt in ours.items() if fingerprint in theirs]
        problems += [
            Problem(f"{prompt.id!r}: {_start(prompt)}", where=f"{one} and {other}")
            for prompt in shared[:SHOWN]
        ]
        if len(shared) > SHOWN:
            problems.append(Problem(f"… and {len(shared) - SHOWN} more", where=f"{one} and {other}"))
    if problems:
        raise DataError(
            "sets of prompts that must be disjoint overlap",
            problems=problems,
            remedy="take them from different files, or from different splits of one (split: sft, label, rl, "
            "eval)",
        )


def _start(prompt: Prompt) -> str:
    text = " ".join(prompt.messages[-1].content.split())
    return text if len(text) <= 60 else text[:59] + "…"
