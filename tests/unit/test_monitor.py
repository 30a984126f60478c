"""What readings along a training say: the alarm, the best reading, Gao et al.'s curve, drift; and what
settings of a monitor are refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from rlaif.config.finetune import BestOfKConfig
from rlaif.config.grpo import GrpoConfig
from rlaif.config.monitor import MonitorSettings
from rlaif.config.ppo import PpoConfig
from rlaif.report.monitor import monitor_markdown, monitor_shown, reading_line
from rlaif.report.shown import Table
from rlaif.results.monitor import MonitorReading, MonitorReport, best_reading, is_alarming
from rlaif.stats import Estimate

GOLD: dict[str, Any] = {"kind": "function", "function": "rlaif.metrics:length_words"}


def reading(step: int, proxy: float, gold: float, kl: float = 0.0) -> MonitorReading:
    return MonitorReading(
        step=step,
        kl=kl,
        proxy=Estimate(proxy, proxy - 0.1, proxy + 0.1),
        gold=Estimate(gold, gold - 0.2, gold + 0.2),
        parts={"model": proxy, "rule": 2 * proxy},
        length=10.0 + step,
        distinct_2=0.5,
        refusal=0.25,
        ended=1.0,
        tokens=100,
        seconds=1.5,
        flops=1e9,
    )


def along(*pairs: tuple[float, float]) -> list[MonitorReading]:
    return [reading(at, *pair) for at, pair in enumerate(pairs)]


RISEN = ((0.0, 0.5), (0.1, 0.6), (0.2, 0.5), (0.3, 0.4), (0.4, 0.3))


@pytest.mark.parametrize(
    ("pairs", "rings"),
    [
        (RISEN, True),
        (RISEN[:4], False),  # two readings only since the best
        ((*RISEN[:3], (0.3, 0.7), (0.4, 0.3)), False),  # a better one between
        ((*RISEN[:4], (0.05, 0.3)), False),  # the proxy fell, too: no over-optimisation
        ((*RISEN[:4], (0.4, 0.6)), False),  # gold is what it was
    ],
)
def test_the_alarm_wants_proxy_up_and_gold_down_at_every_reading_since_the_best(
    pairs: tuple[tuple[float, float], ...], rings: bool
) -> None:
    assert is_alarming(along(*pairs), 3) is rings


def test_the_best_reading_is_the_earliest_of_equals() -> None:
    assert best_reading(along((0, 0.5), (1, 0.7), (2, 0.7))).step == 1


def test_an_alarm_is_told_by_the_step_at_which_it_begins() -> None:
    back = (0.5, 0.9)
    report = MonitorReport(
        tuple(along(*RISEN, (0.5, 0.2), back, (0.6, 0.8), (0.7, 0.7), (0.8, 0.6))), patience=3
    )
    assert report.alarms == (4, 9)
    assert report.words[0].startswith(
        "alarm at step 4: proxy up, gold down since step 1: proxy 0.100 → 0.400"
    )
    assert report.words[1].startswith(
        "alarm at step 9: proxy up, gold down since step 6: proxy 0.500 → 0.800"
    )


def test_the_curve_through_readings_is_the_one_that_they_lie_on() -> None:
    def gold(d: float) -> float:
        return 0.5 + d * (0.4 - 0.3 * math.log(d))

    distances = (0.5, 1.0, 2.0, 3.0)
    readings = [reading(0, 0.0, 0.5, kl=2e-8)]  # rounding: no point of the curve
    readings += [reading(at + 1, d, gold(d), kl=d * d) for at, d in enumerate(distances)]
    report = MonitorReport(tuple(readings), patience=3)
    fit = report.fit()
    assert fit is not None
    assert (fit.alpha, fit.beta) == pytest.approx((0.4, 0.3))
    assert fit.turning_point == pytest.approx(math.exp(0.4 / 0.3 - 1))
    assert "gold stops rising at a KL of about 1.9 nats" in report.words[-1]
    stated = json.loads(json.dumps(report.as_dict()))
    assert stated["fits"]["gold"]["seen"] is True
    assert stated["fits"]["gold"]["turning_kl"] == pytest.approx(math.exp(2 * (0.4 / 0.3 - 1)))
    assert stated["fits"]["proxy"]["alpha"] == pytest.approx(1.0)
    assert stated["drift"]["part/rule"] == pytest.approx(6.0)
    assert stated["drift"]["length"] == 4
    assert (stated["tokens"], stated["seconds"]) == (500, 7.5)


@pytest.mark.parametrize(
    ("golds", "said"),
    [
        ((0.9, 0.62, 0.4, 0.17), "gold falls throughout what was read"),
        ((1.3, 1.6, 1.9, 2.2), "gold does not turn within what was read"),
        ((1.05, 1.06, 1.05, 0.95), "overlap, so that this may be chance"),
        ((1.6, 1.9, 1.6, 0.9), "stops rising at a KL of about 0."),
    ],
)
def test_a_turn_is_told_only_where_it_was_read(golds: tuple[float, ...], said: str) -> None:
    readings = [reading(0, 0.0, 1.0)]
    readings += [
        reading(at + 1, d, gold, kl=d * d)
        for at, (d, gold) in enumerate(zip((0.3, 0.7, 1.1, 1.5), golds, strict=True))
    ]
    told = MonitorReport(tuple(readings), patience=3).words[-1]
    assert said in told
    assert ("overlap" in told) is ("overlap" in said)


def test_a_policy_that_is_trained_further_has_no_curve_from_a_kl_of_0() -> None:
    readings = tuple(reading(at, at, at, kl=2.0 + at) for at in range(5))
    assert MonitorReport(readings, patience=3).fit() is not None
    report = MonitorReport(readings, patience=3, further=True)
    assert report.as_dict()["fits"] == {"proxy": None, "gold": None}
    assert report.words == ("no curve: training began at a KL of 2 nats, and gold was not read at 0",)


def test_a_row_is_read_back_as_it_was() -> None:
    one = reading(5, 0.3, 0.4, kl=1.25)
    assert MonitorReading.from_row(json.loads(json.dumps(one.as_row()))) == one


@pytest.mark.parametrize(
    ("kept", "said"), [(1, "the best gold reading"), (3, "which is not the best gold reading")]
)
def test_the_policy_that_is_left_is_named(kept: int, said: str) -> None:
    report = MonitorReport(tuple(along(*RISEN)), patience=9, kept=kept)
    assert report.words[0] == f"stopped early; the policy is that of step {kept}, {said}"


def test_too_few_readings_have_no_curve_and_say_so() -> None:
    report = MonitorReport(tuple(along((0, 0.5), (0.1, 0.6))), patience=3)
    assert report.fit() is None
    assert report.as_dict()["fits"] == {"proxy": None, "gold": None}
    assert report.words == ("no curve: it needs three readings at different KL above 0",)


def test_readings_are_shown() -> None:
    report = MonitorReport(tuple(along(*RISEN)), patience=3, kept=1)
    rows = [each.as_row() for each in report.readings]
    shown, *lines = monitor_shown(rows, report.words)
    assert isinstance(shown, Table)
    assert [row[:3] for row in shown.rows] == [
        ["0", "0.000", "0.500"],
        ["1", "0.100", "0.600"],
        ["4", "0.400", "0.300"],
    ]
    assert lines[:2] == [
        "monitor: alarm at step 4: proxy up, gold down since step 1: proxy 0.100 → 0.400, gold 0.600 → 0.300",
        "monitor: stopped early; the policy is that of step 1, the best gold reading",
    ]
    assert reading_line(report.readings[1]).startswith("monitor at step 1  proxy 0.100  gold 0.600  kl 0.000")
    text = monitor_markdown(rows, report.words)
    assert text.count("\n| ") + text.count("\n|") >= len(rows)
    assert "word list" in text


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"gold": {"kind": "judge", "mode": "cohort"}}, "their mean is always 0"),
        ({"gold": {**GOLD, "weight": 0}}, "weight 0 is always 0"),
        ({"gold": GOLD, "prompts": 1}, "greater than or equal to 2"),
        ({}, "gold"),
    ],
)
def test_monitors_that_cannot_measure_are_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        MonitorSettings(**settings)


@pytest.mark.parametrize("kind", [PpoConfig, GrpoConfig, BestOfKConfig])
def test_a_reward_without_any_weight_is_refused(
    kind: type[PpoConfig] | type[GrpoConfig] | type[BestOfKConfig],
) -> None:
    parts: dict[str, Any] = {"a": {**GOLD, "weight": 0}, "b": {**GOLD, "weight": 0.0}}
    with pytest.raises(ValidationError, match=r"all parts of the reward \(a, b\) have weight 0"):
        kind(reward=parts)
    parts["b"]["weight"] = 0.5
    assert kind(reward=parts).reward["a"].weight == 0


def test_a_cohort_cannot_be_watched() -> None:
    with pytest.raises(ValidationError, match="its mean is 0 at every reading"):
        GrpoConfig(reward={"peers": {"kind": "judge", "mode": "cohort"}}, monitor={"gold": GOLD})


def test_a_judge_that_is_the_gold_measure_is_an_answering_model() -> None:
    config = PpoConfig(monitor={"gold": {"kind": "judge", "judge": "other"}})
    assert config.answering_models("own") == ("other",)
