"""Verdicts from a server that fails and lies: each is the truth, or invalid for a reason that is told."""

from __future__ import annotations

from faulty_verdicts import FAULTS, ask


def test_every_verdict_is_the_truth_or_invalid_for_the_right_reason() -> None:
    tally = ask(400, seed=7)
    assert not tally.wrong, tally.wrong[:5]
    assert tally.asked == 400
    assert tally.valid > 300
    assert len(tally.sent) > 0.8 * len(FAULTS), "too few kinds of fault were drawn for the test to say much"
