"""What must hold of every audit: turning a comparison round changes nothing, and every figure stays in its
range."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judges import case

from rlaif.audit.agreement import agreement, baselines
from rlaif.audit.biases import habits
from rlaif.audit.calibration import fit_slope
from rlaif.audit.cases import Case, plain, turn_half
from rlaif.audit.selection import halves
from rlaif.labels import sigmoid

LOGITS = st.floats(-20, 20).filter(lambda x: x == 0 or abs(x) > 1e-6)
ROWS = st.lists(
    st.tuples(LOGITS, st.sampled_from([0.0, 1.0]), st.text("ab", min_size=1, max_size=9)),
    min_size=1,
    max_size=30,
)


def made(rows: list[tuple[float, float, str]]) -> list[Case]:
    return [case(number, {"x": logit}, won=won, a=text) for number, (logit, won, text) in enumerate(rows)]


def turned(one: Case) -> Case:
    return Case(
        pair=one.pair.swap(),
        verdicts=tuple(each.swap() for each in one.verdicts),
        logit_a=-(one.logit_a or 0.0),
    )


@given(ROWS)
def test_turning_every_pair_round_changes_no_figure(rows: list[tuple[float, float, str]]) -> None:
    cases = made(rows)
    others = [turned(each) for each in cases]
    one, other = (
        agreement([each.logit_a for each in side], [each.pair.a_wins or 0.0 for each in side])
        for side in (cases, others)
    )
    assert one is not None
    assert other is not None
    assert one.accuracy == pytest.approx(other.accuracy)
    assert one.nll == pytest.approx(other.nll)
    assert one.ece == pytest.approx(other.ece)
    assert habits(cases, own="").longer_rate == habits(others, own="").longer_rate
    assert habits(cases, own="").first_rate == habits(others, own="").first_rate
    assert baselines([each.pair for each in cases]).longer == pytest.approx(
        baselines([each.pair for each in others]).longer
    )
    assert turned(turned(cases[0])) == cases[0]


@given(ROWS)
def test_a_temperature_says_the_same_of_the_swap_and_never_changes_a_winner(
    rows: list[tuple[float, float, str]],
) -> None:
    logits, won = [row[0] for row in rows], [row[1] for row in rows]
    slope, intercept = fit_slope(logits, won, method="temperature")
    back, _ = fit_slope([-logit for logit in logits], [1 - each for each in won], method="temperature")
    assert (slope >= 0, intercept) == (True, 0.0)
    assert back == pytest.approx(slope, rel=1e-6, abs=1e-9)
    assert all(sigmoid(slope * logit) + sigmoid(-slope * logit) == pytest.approx(1.0) for logit in logits)


@given(ROWS, st.integers(0, 3))
def test_turning_half_and_dividing_lose_nothing(rows: list[tuple[float, float, str]], seed: int) -> None:
    cases = made(rows)
    pairs = turn_half([each.pair._replace(a_wins=1.0) for each in cases], seed=seed)
    assert sum(pair.a_wins == 1.0 for pair in pairs) == (len(pairs) + 1) // 2
    first, second = halves(cases, seed=seed)
    assert sorted(each.pair.comparison.id for each in [*first, *second]) == sorted(
        each.pair.comparison.id for each in cases
    )
    json.dumps(plain(habits(cases, own="")), allow_nan=False)
