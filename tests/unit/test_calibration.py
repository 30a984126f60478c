"""Calibration on human labels: recovers a known temperature, refuses too little, and goes through JSON."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from rlaif.audit.calibration import Calibration, fit_calibration, fit_slope
from rlaif.audit.cases import plain
from rlaif.errors import DataError
from rlaif.jobs.audit_files import load_calibration, save_calibration
from rlaif.labels import sigmoid


def drawn(
    count: int, *, slope: float, intercept: float = 0.0, seed: int = 1
) -> tuple[list[float], list[float]]:
    """Log-odds and outcomes with P(a wins) = sigmoid(slope · logit + intercept)."""
    random_ = random.Random(seed)
    logits = [random_.gauss(0, 2) for _ in range(count)]
    return logits, [float(random_.random() < sigmoid(slope * logit + intercept)) for logit in logits]


def test_the_temperature_is_recovered() -> None:
    logits, won = drawn(4000, slope=0.5)
    slope, intercept = fit_slope(logits, won, method="temperature")
    assert slope == pytest.approx(0.5, abs=0.05)
    assert intercept == 0.0


def test_platt_recovers_the_intercept_too() -> None:
    logits, won = drawn(4000, slope=0.7, intercept=-1.0)
    assert fit_slope(logits, won, method="platt") == pytest.approx((0.7, -1.0), abs=0.12)


def test_the_fit_is_where_the_gradient_vanishes() -> None:
    logits, won = drawn(50, slope=1.0)
    slope, _ = fit_slope(logits, won, method="temperature")
    target = 51 / 52
    signed = [logit if w else -logit for logit, w in zip(logits, won, strict=True)]
    assert math.fsum((sigmoid(slope * x) - target) * x for x in signed) == pytest.approx(0.0, abs=1e-6)


def test_a_judge_that_is_always_right_has_a_finite_slope() -> None:
    slope, _ = fit_slope([1.0, -1.0, 1.0], [1.0, 0.0, 1.0], method="temperature")
    assert slope == pytest.approx(math.log(4), abs=1e-6)  # sigmoid(slope) = Platt's target 4/5


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_a_judge_that_is_wrong_is_silenced_not_turned_round(method) -> None:
    logits, won = drawn(500, slope=-1.0)
    slope, intercept = fit_slope(logits, won, method=method)
    assert slope == 0.0
    assert intercept == pytest.approx(0.0, abs=0.3)


def test_log_odds_of_zero_say_nothing() -> None:
    assert fit_slope([0.0] * 20, [1.0] * 20, method="temperature") == (0.0, 0.0)


def test_an_overconfident_judge_gains_on_held_out_labels() -> None:
    logits, won = drawn(400, slope=0.2)
    found = fit_calibration(logits, won, [str(row) for row in range(400)], protocol="pairwise")
    assert found.nll_after < found.nll_before
    assert found.temperature == pytest.approx(5.0, rel=0.3)
    assert found.apply(2.0) == pytest.approx(2.0 * found.slope)
    assert found.rows == 400
    assert Calibration("temperature", 0.0, 0.0, 1, 1.0, 1.0).temperature == math.inf


def test_too_few_labels_are_refused() -> None:
    with pytest.raises(DataError, match="too few"):
        fit_calibration([1.0] * 9, [1.0] * 9, [str(row) for row in range(9)])
    with pytest.raises(DataError, match="2 prompts"):
        fit_calibration([1.0] * 40, [1.0] * 40, [str(row % 2) for row in range(40)])


def test_through_a_file(tmp_path: Path) -> None:
    logits, won = drawn(40, slope=1.0)
    found = fit_calibration(
        logits, won, [str(row) for row in range(40)], judge_revision="r", protocol="pairwise"
    )
    save_calibration(tmp_path / "new" / "calibration.json", found)
    assert load_calibration(tmp_path / "new" / "calibration.json") == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slope": "1"}, "`slope`"),
        ({"rows": True}, "`rows`"),
        ({"method": None}, "`method`"),
        ({"more": 1}, "no `more`"),
    ],
)
def test_a_damaged_calibration_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    good = plain(Calibration("temperature", 1.0, 0.0, 10, 0.7, 0.6))
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(good | change))
    with pytest.raises(DataError, match=message):
        load_calibration(path)


def test_what_is_no_calibration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text("[1]")
    with pytest.raises(DataError, match=r"not a calibration|is damaged"):
        load_calibration(path)
    path.write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        load_calibration(path)
    with pytest.raises(DataError, match="cannot be read"):
        load_calibration(tmp_path / "none.json")
