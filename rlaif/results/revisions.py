"""Chains of critiques and revisions (Bai et al. 2022, section 3), with every intermediate text."""

from __future__ import annotations

from dataclasses import dataclass

from rlaif.types import Prompt

__all__ = ["Revision", "Round"]


@dataclass(frozen=True)
class Round:
    """One critique and the revision that followed it."""

    principle_id: str
    critique: str
    revision: str


@dataclass(frozen=True)
class Revision:
    """A prompt's first completion and its rounds.

    Attributes:
        failed: Why the chain ended early (the model refused a request); empty when it ran through.
    """

    prompt: Prompt
    initial: str
    rounds: tuple[Round, ...] = ()
    failed: str = ""

    @property
    def final(self) -> str:
        """The last revision, or the first completion when there is none."""
        return self.rounds[-1].revision if self.rounds else self.initial
