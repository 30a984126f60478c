"""Other label letters and other wordings: what is changed, what is not, and what it does to the labels."""

from __future__ import annotations

from dataclasses import replace

import pytest
from judges import case, comparison, constitution, pairs, reader

from rlaif.audit.cases import judge_pairs
from rlaif.audit.sensitivity import Relabelled, Sensitivity, Variant, measure_variant, variants
from rlaif.judging.judge import Judge
from rlaif.judging.protocols import Pairwise
from rlaif.judging.table import open_protocol
from rlaif.progress import NoProgress
from rlaif.prompts import PromptLibrary
from rlaif.types import Constitution, Example, Message, Principle

LIBRARY = PromptLibrary()


def found_variants(
    name: str, rules: Constitution, library: PromptLibrary = LIBRARY
) -> list[Variant | Sensitivity]:
    return list(variants(name, library=library, constitution=rules, sample=comparison(0, "q1", "q0")))


def test_labels_are_renamed_in_the_instruction_alone() -> None:
    example = Example(
        conversation=(Message("user", "Hi"),), a="Good A.", b="B", principle="Plan A or B?", answer="A"
    )
    rules = Constitution(
        name="c", principles=(Principle(id="x", comparison="Is A or B better?"),), examples=(example,)
    )
    relabelled = Relabelled(LIBRARY, replace(rules, examples=(replace(example, answer="B"),)), ("B", "A"))
    request = relabelled.questions(comparison(0, "A said it", "B did"), rules.principles[0])[0]
    text = request.messages[-2].content
    assert [label.strip() for label in request.labels] == ["B", "A"]
    assert "B for response_a, or A for response_b" in text
    assert "Question: Is A or B better?" in text
    assert "A said it" in text
    assert "B did" in text
    assert "Good A." in text
    assert "Question: Plan A or B?\nAnswer: B" in text


def test_digits_enter_the_worked_examples_too() -> None:
    example = Example(conversation=(Message("user", "Hi"),), a="a", b="b", principle="x", answer="B")
    rules = replace(constitution("kind"), examples=(example,))
    digits = found_variants("pairwise", rules)[0]
    assert isinstance(digits, Variant)
    text = digits.protocol.questions(comparison(0, "a", "b"), rules.principles[0])[0].messages[-2].content
    assert "Answer: 2" in text
    assert "1 for response_a, or 2 for response_b" in text


def test_chinese_labels_stand_between_chinese_characters() -> None:
    rules = replace(constitution("好"), language="zh")
    digits = found_variants("pairwise", rules, PromptLibrary("zh"))[0]
    assert isinstance(digits, Variant)
    text = digits.protocol.questions(comparison(0, "a", "b"), rules.principles[0])[0].messages[-2].content
    assert "1 表示 response_a，2 表示 response_b" in text


def test_what_each_protocol_tries() -> None:
    rules = constitution("kind")
    assert [each.name for each in found_variants("pairwise", rules)] == [
        "labels 1/2 for A/B",
        "labels exchanged",
        "wording: synonyms",
        "wording: framed",
    ]
    assert [each.name for each in found_variants("pointwise", rules)] == [
        "answers exchanged",
        "wording: synonyms",
        "wording: framed",
    ]


def test_a_language_without_rewordings_says_so() -> None:
    last = found_variants("pointwise", replace(constitution("kind"), language="fr"))[-1]
    assert isinstance(last, Sensitivity)
    assert "`fr`" in last.note


def test_a_template_without_labels_after_the_fence_says_so(tmp_path) -> None:
    (tmp_path / "judge_pairwise.j2").write_text(
        "{% block user %}A or B? {{ a }} / {{ b }} {{ question }}{% endblock %}{% block labels %}\nA\nB\n{% "
        "endblock %}"
    )
    found = found_variants("pairwise", constitution("kind"), PromptLibrary(folder=tmp_path))
    notes = [each for each in found if isinstance(each, Sensitivity)]
    assert len(notes) == 2
    assert "</response_b>" in notes[0].note


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Which response is kind?", "Which of the two responses is kind?"),
        ("In which response is it?", "In which of the two responses is it?"),
        ("Choose.", "Please decide. Choose."),
    ],
)
def test_synonyms(before: str, after: str) -> None:
    rules = Constitution(name="c", principles=(Principle(id="x", comparison=before),))
    synonyms = found_variants("pairwise", rules)[2]
    assert isinstance(synonyms, Variant)
    assert synonyms.constitution.principles[0].comparison == after


@pytest.mark.parametrize("name", ["pairwise", "pointwise"])
def test_a_steady_judge_keeps_every_label(name: str) -> None:
    rules, engine = constitution("kind", "clear"), reader()
    judge = Judge(
        engine, open_protocol(name, library=LIBRARY, constitution=rules), rules, principles="all", seed=0
    )
    cases = list(judge_pairs(judge, pairs(8)))
    for each in found_variants(name, rules):
        assert isinstance(each, Variant)
        found = measure_variant(each, cases, engine=engine, seed=0, progress=NoProgress())
        assert found.rows == 8
        assert found.same_label is not None
        assert found.same_label.value == 1.0
        assert found.shift == pytest.approx(0.0, abs=1e-12)
        assert (found.accuracy, found.accuracy_before) == (1.0, 1.0)


def test_a_judge_that_hangs_on_the_wording_is_told() -> None:
    rules = constitution("kind")
    engine = reader(scale=lambda text: -1.0 if "Think about" in text else 1.0)
    judge = Judge(engine, Pairwise(LIBRARY, rules), rules, principles="all", seed=0)
    framed = found_variants("pairwise", rules)[3]
    assert isinstance(framed, Variant)
    found = measure_variant(
        framed, list(judge_pairs(judge, pairs(8))), engine=engine, seed=0, progress=NoProgress()
    )
    assert found.same_label is not None
    assert found.same_label.value == 0.0
    assert (found.accuracy, found.accuracy_before) == (0.0, 1.0)


def test_nothing_valid_is_noted() -> None:
    rules = constitution("kind")
    framed = found_variants("pairwise", rules)[3]
    assert isinstance(framed, Variant)
    found = measure_variant(
        framed, [case(0, {"kind": None}, a="q1", b="q0")], engine=reader(), seed=0, progress=NoProgress()
    )
    assert found.rows == 0
    assert "validly" in found.note
