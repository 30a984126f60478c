"""Whole audits of scripted judges: the good one is trusted, the bad ones are not, and the words say why."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from judges import case, constitution, pairs, reader

from rlaif import stats
from rlaif.audit.accuracy import audit_judge, audit_key, questions_of
from rlaif.audit.agreement import Agreement, Baselines
from rlaif.audit.biases import Bias, habits
from rlaif.audit.cases import Case, Pair, plain
from rlaif.audit.grade import Basis, judgement
from rlaif.audit.report import AuditReport, audit_line
from rlaif.audit.selection import halves, mean_logit, suggest
from rlaif.audit.sensitivity import Sensitivity
from rlaif.engines.scripted import ScriptedEngine
from rlaif.progress import NoProgress
from rlaif.prompts import PromptLibrary
from rlaif.types import Constitution

LIBRARY = PromptLibrary()


class Counted(NoProgress):
    """Counts what was announced and what was done."""

    def __init__(self) -> None:
        self.total = self.done = 0

    def begin(self, what: str, total: int) -> None:
        self.total += total

    def advance(self, items: int = 1) -> None:
        self.done += items


def run(
    engine: ScriptedEngine, rules: Constitution, rows: list[Pair], probes: list[Pair], **options: object
) -> AuditReport:
    usable = dict.fromkeys(options.pop("protocols", ("pairwise", "pointwise")), rules)  # type: ignore[attr-defined]
    return audit_judge(
        engine,
        library=LIBRARY,
        constitution=rules,
        usable=usable,
        pairs=rows,
        probes=probes,
        data="rows",
        **options,  # type: ignore[arg-type]
    )


def test_a_judge_that_agrees_with_people_is_trusted() -> None:
    # Wrong in 12 of 120, and about as sure as it is right: log-odds of 2 are 88 %.
    report = run(reader(), constitution("kind", "clear"), pairs(120, right=108), pairs(20, first=200))
    assert [each.judgement.grade for each in report.protocols] == ["trust", "trust"]
    pairwise = report.protocols[0]
    assert pairwise.ensemble is not None
    assert pairwise.ensemble.accuracy.value == pytest.approx(0.9)
    assert pairwise.judgement.words.startswith(
        "fit to label with: both-order accuracy 90 % [83, 94] on 120 pairs, 0 % flips"
    )
    assert audit_line(pairwise).startswith("audit (pairwise): fit to label with")
    assert pairwise.bias.agreement == pytest.approx(1.0)
    assert pairwise.one_order == pytest.approx(0.9)
    assert report.rules is not None
    assert report.rules.first.value == 0.5
    assert report.suggestion is not None
    assert report.suggestion.confirmed


def test_a_judge_that_always_says_first_is_refused() -> None:
    engine = reader(first=8.0, strength=0.0)
    report = run(engine, constitution("kind"), pairs(60), [], protocols=("pairwise",))
    (found,) = report.protocols
    assert found.bias.first_rate is not None
    assert found.bias.first_rate.value == 1.0
    assert found.bias.flip_rate is not None
    assert found.bias.flip_rate.value == 1.0
    assert found.judgement.grade == "do not use"
    assert found.judgement.words.startswith("do not label with this: both-order accuracy 50 %")


def test_position_bias_that_both_orders_cancel_is_told_but_does_not_hurt() -> None:
    report = run(reader(first=5.0), constitution("kind"), pairs(120, right=108), [], protocols=("pairwise",))
    (found,) = report.protocols
    assert found.ensemble is not None
    assert found.ensemble.accuracy.value == pytest.approx(0.9)
    assert found.one_order == pytest.approx(0.5)
    assert found.judgement.grade == "use with care"
    assert "contradict each other in 100% of the questions" in found.judgement.words


def test_without_people_the_probes_on_topic_are_graded_and_the_best_is_care() -> None:
    rules = constitution("kind", tags={"kind": ["tone"]})
    probes = [*pairs(40, tags=["tone"]), *pairs(40, right=0, tags=["law"], first=100)]
    (found, _) = run(reader(), rules, [], probes).protocols
    assert found.probes is not None
    assert found.probes.scope == ("tone",)
    assert found.probes.in_scope is not None
    assert (found.probes.in_scope.rows, found.probes.in_scope.accuracy.value) == (40, 1.0)
    assert {tag: value.value for tag, value in found.probes.by_tag.items()} == {"law": 0.0, "tone": 1.0}
    assert set(found.probes.own_principles) == {"tone"}
    assert found.judgement.grade == "use with care"
    assert "40 built-in probes" in found.judgement.words
    assert "no human pairs were given (--data)" in found.judgement.reasons


def test_without_a_common_tag_all_probes_count() -> None:
    (found,) = run(
        reader(), constitution("kind"), [], pairs(30, tags=["tone"]), protocols=("pointwise",)
    ).protocols
    assert found.probes is not None
    assert found.probes.scope == ()
    assert found.probes.in_scope is not None
    assert found.probes.in_scope.rows == 30


def test_comparisons_without_labels_leave_the_accuracy_unknown() -> None:
    rows = [pair._replace(a_wins=None) for pair in pairs(30)]
    report = run(reader(), constitution("kind"), rows, [], protocols=("pairwise",))
    (found,) = report.protocols
    assert (found.ensemble, report.rules, report.labelled, report.suggestion) == (None, None, 0, None)
    assert found.judgement.words.startswith("label with this only with care: accuracy unknown")
    (bad,) = run(reader(first=9.0), constitution("kind"), rows, [], protocols=("pairwise",)).protocols
    assert bad.judgement.grade == "do not use"
    assert "nothing tells the accuracy" in bad.judgement.words


def test_invalid_verdicts_are_graded_and_counted() -> None:
    engine = ScriptedEngine(labels=lambda request: [math.nan, math.nan], revision="broken")
    (found,) = run(engine, constitution("kind"), pairs(10), [], protocols=("pairwise",)).protocols
    assert found.bias.invalid_rate == 1.0
    assert found.bias.invalid_reasons == {"not_finite": 20}
    assert found.judgement.grade == "do not use"
    assert "100% of the verdicts are invalid" in found.judgement.words
    assert found.principles[0].invalid == 20


def test_one_drawn_principle_a_comparison() -> None:
    report = run(
        reader(), constitution("kind", "clear"), pairs(40), [], principles="sample", protocols=("pointwise",)
    )
    assert report.suggestion is None
    (found,) = report.protocols
    assert sum(each.verdicts for each in found.principles) == 40
    assert found.bias.agreement is None


def test_the_work_is_announced_as_it_is_done_and_planned() -> None:
    rules, progress = constitution("kind", "clear"), Counted()
    run(reader(), rules, pairs(10), pairs(6, first=50), progress=progress, sensitivity_rows=5)
    planned = questions_of(
        {"pairwise": rules, "pointwise": rules}, pairs=10, probes=6, mode="all", sensitivity_rows=5
    )
    assert progress.done == progress.total == planned == 2 * (16 * 2 * 2) + 2 * 5 * (4 + 3)


def test_the_report_is_json_and_keyed() -> None:
    rules = constitution("kind")
    report = run(reader(), rules, pairs(25), [])
    text = json.dumps(plain(report), allow_nan=False)
    assert json.loads(text)["protocols"][0]["key"] == plain(audit_key(reader(), LIBRARY, rules, "pairwise"))
    assert report.protocol("pointwise") is report.protocols[1]
    assert report.protocol("cot") is None
    both = (rules, constitution("other"))
    keys = {
        audit_key(reader(), LIBRARY, each, name).id for each in both for name in ("pairwise", "pointwise")
    }
    assert len(keys) == 4


def test_the_reasoning_judge_is_audited_too() -> None:
    engine = ScriptedEngine(
        generate=lambda request: "Both are fine.", labels=reader()._labels, revision="reasons"
    )
    (found,) = run(engine, constitution("kind"), pairs(20), [], protocols=("cot",)).protocols
    assert found.ensemble is not None
    assert found.ensemble.accuracy.value == 1.0
    assert found.one_order == 1.0
    assert [each.name for each in found.sensitivity] == ["wording: synonyms", "wording: framed"]
    assert "both-order accuracy 100 %" in found.judgement.words


def test_cases_are_handed_on() -> None:
    kept: dict[str, int] = {}
    run(
        reader(),
        constitution("kind"),
        pairs(5),
        [],
        keep=lambda name, cases, _: kept.update({name: len(cases)}),
    )
    assert kept == {"pairwise": 5, "pointwise": 5}


# Suggestion


def noisy_cases(count: int = 200) -> list[Case]:
    """`good` is right in 9 of 10; `bad` is wrong in 9 of 10 and louder; the right one is the longer in half
    of them."""
    return [
        case(
            i,
            {"good": 1.0 if i % 10 else -1.0, "bad": -3.0 if i % 10 != 5 else 3.0},
            b="bbb" if i % 2 else "b",
        )
        for i in range(count)
    ]


def test_the_good_principle_is_found_and_confirmed_on_the_other_half() -> None:
    cases = noisy_cases()
    found = suggest({"pairwise": cases}, weights={"good": 1.0, "bad": 1.0}, pairs="human pairs", seed=0)
    assert found is not None
    assert found.principles == ("good",)
    assert found.confirmed
    _, confirming = halves(cases, seed=0)
    right = sum((each.by_principle["good"] or 0) > 0 for each in confirming)
    assert found.confirmed_on == stats.wilson(right, len(confirming))
    assert found.all_principles.value < 0.5
    assert found.words.startswith("use pairwise with 1 of 2 principles (good): ")


def test_the_better_protocol_is_suggested_and_a_tie_keeps_all_principles() -> None:
    good = [case(i, {"x": 1.0, "y": 1.0}) for i in range(60)]
    bad = [case(i, {"x": -1.0, "y": 1.0 if i % 3 else -1.0}) for i in range(60)]
    found = suggest(
        {"pairwise": bad, "pointwise": good}, weights={"x": 1.0, "y": 1.0}, pairs="human pairs", seed=0
    )
    assert found is not None
    assert (found.protocol, set(found.principles)) == ("pointwise", {"x", "y"})
    assert "all principles" in found.words


def test_what_length_explains_is_not_confirmed_and_little_is_advised_with_care() -> None:
    longer = [case(i, {"x": 1.0 if i % 10 else -1.0, "y": 1.0 if i % 10 else -1.0}) for i in range(100)]
    found = suggest({"pairwise": longer}, weights={"x": 1.0, "y": 1.0}, pairs="human pairs", seed=0)
    assert found is not None
    assert not found.confirmed  # right in 90 %, where always-longer is right in 100 %
    faint = [case(i, {"x": 1.0 if i % 8 < 5 else -1.0}, b="bbb" if i % 16 < 8 else "b") for i in range(400)]
    found = suggest({"pairwise": faint}, weights={"x": 1.0}, pairs="human pairs", seed=0)
    assert found is not None
    assert found.confirmed
    assert found.words.startswith("if at all, and with care, pairwise with all principles (x): 6")


def test_noise_is_not_confirmed() -> None:
    cases = [
        case(i, {f"p{k}": 1.0 if (i * (k + 3)) % 7 % 2 else -1.0 for k in range(8)}, won=float(i % 2))
        for i in range(100)
    ]
    found = suggest(
        {"pairwise": cases}, weights={f"p{k}": 1.0 for k in range(8)}, pairs="human pairs", seed=0
    )
    assert found is not None
    assert not found.confirmed
    assert found.words.startswith("no choice of protocol and principles is confirmed")


def test_too_few_pairs_or_no_label_suggest_nothing() -> None:
    assert suggest({"pairwise": noisy_cases(19)}, weights={"good": 1.0, "bad": 1.0}, pairs="", seed=0) is None
    assert (
        suggest({"pairwise": [case(i, {"x": None}) for i in range(40)]}, weights={"x": 1.0}, pairs="", seed=0)
        is None
    )


def test_the_label_of_a_subset() -> None:
    row = case(0, {"x": 1.0, "y": -2.0, "z": None})
    assert mean_logit(row, ("x", "y", "z"), {"x": 3.0, "y": 1.0, "z": 9.0}) == pytest.approx(0.25)
    assert mean_logit(row, ("z",), {"z": 1.0}) is None


# Grade


def basis(
    accuracy: float, rows: int = 200, *, longer: float = 0.5, kind: str = "pairs", ece: float = 0.05
) -> Basis:
    found = Agreement(
        rows=rows,
        unlabelled=0,
        accuracy=stats.wilson(accuracy * rows, rows),
        kappa=0.5,
        ece=ece,
        nll=0.6,
        reliability=(),
    )
    longer_, shorter, first = (stats.wilson(value * rows, rows) for value in (longer, 1 - longer, 0.5))
    rules = Baselines(longer=longer_, shorter=shorter, first=first)
    return Basis(kind=kind, found=found, rules=rules)  # type: ignore[arg-type]


def bias(*, flips: float = 0.1, invalid: float = 0.0) -> Bias:
    return replace(habits([], own=""), flip_rate=stats.Estimate(flips, flips, flips), invalid_rate=invalid)


@pytest.mark.parametrize(
    ("on", "habit", "grade", "reason"),
    [
        (basis(0.80), bias(), "trust", ""),
        (basis(0.37), bias(), "do not use", "not above always-longer (50 %)"),
        (basis(0.37, longer=0.3), bias(), "do not use", "not above always-shorter (70 %)"),
        (basis(0.52), bias(), "do not use", "not shown to be better than a coin"),
        (basis(0.80), bias(invalid=0.06), "do not use", "6% of the verdicts are invalid"),
        (basis(0.80, longer=0.85), bias(), "do not use", "not above always-longer (85 %)"),
        (basis(0.80, longer=0.78), bias(), "use with care", "not clearly above always-longer (78 %)"),
        (basis(0.62), bias(), "use with care", "the accuracy may be as low as 55%"),
        (basis(0.90, rows=60), bias(), "use with care", "only 60 human pairs"),
        (
            basis(0.80),
            bias(flips=0.4),
            "use with care",
            "the two orders contradict each other in 40% of the questions",
        ),
        (
            basis(0.80, ece=0.2),
            bias(),
            "use with care",
            "badly calibrated (error 0.20; see --save-calibration)",
        ),
        (basis(0.95, kind="probes"), bias(), "use with care", "no human pairs were given (--data)"),
        (
            None,
            bias(flips=0.6),
            "do not use",
            "the two orders contradict each other in most questions, and nothing tells the accuracy",
        ),
        (None, bias(), "use with care", "no human pairs were given (--data)"),
    ],
)
def test_thresholds(on: Basis | None, habit: Bias, grade: str, reason: str) -> None:
    found = judgement(on, habit, [], protocol="pairwise")
    assert found.grade == grade
    assert found.words.endswith(reason)
    assert (reason in found.reasons) == bool(reason)


def test_below_a_coin_is_said_so() -> None:
    assert "worse than a coin" in judgement(basis(0.3), bias(), [], protocol="pairwise").reasons


def test_labels_that_hang_on_the_wording_need_care() -> None:
    changed = Sensitivity(name="wording: framed", kind="wording", rows=100, same_label=stats.wilson(60, 100))
    found = judgement(basis(0.8), bias(), [changed], protocol="pointwise")
    assert found.grade == "use with care"
    assert found.words == (
        "label with this only with care: pointwise accuracy 80 % [74, 85] on 200 pairs, 10 % flips between "
        "orders; "
        "wording: framed: 40% of the labels change"
    )
