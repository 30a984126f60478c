"""What people would say of a policy's completions, by a few labels of theirs and all of the judge's."""

from __future__ import annotations

from dataclasses import dataclass

from rlaif.audit.grade import share
from rlaif.prediction_powered import PoweredMean
from rlaif.text import count_of

__all__ = ["PeopleRate"]


@dataclass(frozen=True, slots=True)
class PeopleRate:
    """How often people prefer a policy's completions to the start policy's.

    Attributes:
        rate: The share of pairs whose texts differ, a tie counted half.
    """

    policy: str
    against: str
    rate: PoweredMean

    @property
    def words(self) -> str:
        """One sentence: both together, people alone, the judge alone."""
        found = self.rate
        half = "excludes" if found.both.low > 0.5 or found.both.high < 0.5 else "includes"
        return (
            f"By {count_of(found.labels, 'label')} of people and {found.items:,} of the judge's, people "
            f"prefer `{self.policy}` to `{self.against}` in {share(found.both)} of the pairs that differ "
            f"(the interval {half} one half; the judge counts with weight {found.weight:.2f}, and both are "
            f"worth {found.effective:.0f} labels of people); people's labels alone say "
            f"{share(found.people)}, the judge's alone {share(found.judge)}."
        )
