from __future__ import annotations

import pytest

from rlaif.constitution.lint import lint
from rlaif.constitution.load import load_constitution
from rlaif.resources import names
from rlaif.types import Answers, Constitution, Example, Message, Principle, Protocol

GOOD = "Which response is more polite?"


def advice(*principles: Principle, language: str = "en", protocol: Protocol = "pairwise") -> list[str]:
    return [
        str(problem) for problem in lint(Constitution("c", principles, language=language, protocol=protocol))
    ]


@pytest.mark.parametrize("name", names("constitutions"))
def test_nothing_is_advised_on_what_ships(name: str) -> None:
    assert lint(load_constitution(name)) == []


def test_advice_names_the_source_and_the_principle() -> None:
    problem = lint(Constitution("c", (Principle("a", comparison="Hm?"),)), source="c.yaml")[0]
    assert problem.where == "c.yaml: principle `a`"


CASES = {
    "short": (Principle("a", comparison="Which one?"), "`comparison` is very short (10 characters)"),
    "long": (
        Principle("a", comparison="Which response " + "really " * 200 + "helps?"),
        "`comparison` is very long",
    ),
    "no question mark": (
        Principle("a", comparison="Which response is more polite"),
        "does not end like a question",
    ),
    "not which": (
        Principle("a", comparison="Is the first response polite?"),
        "does not ask which response is better",
    ),
    "double negative": (
        Principle("a", comparison="Which response is not without fault?"),
        "contains a double negative",
    ),
    "contracted": (
        Principle("a", question="Isn't this response never rude?"),
        "`question` contains a double negative",
    ),
    "no revision": (
        Principle("a", critique="Identify what is rude.", comparison=GOOD),
        "has a `critique` and no `revision`",
    ),
    "no critique": (
        Principle("a", revision="Rewrite it politely.", comparison=GOOD),
        "has a `revision` and no `critique`",
    ),
    "no comparison": (
        Principle("a", question="Is this response polite?"),
        "has a `question` and no `comparison`, which the protocol",
    ),
    "open question": (
        Principle("a", question="How polite is this response?"),
        "`question` cannot be answered by Yes or No",
    ),
    "answers not named": (
        Principle("a", question="What is the tone of this text?", answers=Answers("warm", "cold")),
        "does not name its answers warm and cold",
    ),
    "alike answers": (
        Principle("a", question="Is this good or goodish?", answers=Answers("goodish", "good")),
        "answers goodish and good begin alike",
    ),
    "tiny weight": (Principle("a", comparison=GOOD, weight=1e-9), "all weights are next to nothing"),
    "script": (
        Principle("a", comparison="哪个回答更有礼貌？哪一个呢，请选出来"),
        "the texts are mostly in Cjk script",
    ),
}


@pytest.mark.parametrize(("principle", "what"), CASES.values(), ids=list(CASES))
def test_advice(principle: Principle, what: str) -> None:
    assert any(what in line for line in advice(principle)), advice(principle)


def test_a_good_principle_gets_no_advice() -> None:
    question = "Is the tone of this text positive or negative?"
    assert (
        advice(Principle("a", comparison=GOOD, question=question, answers=Answers("positive", "negative")))
        == []
    )


def test_one_negation_is_fine() -> None:
    assert (
        advice(Principle("a", comparison="Which response does not preach? Choose the one without lectures."))
        == []
    )


def test_pointwise_constitutions_need_questions() -> None:
    lines = advice(Principle("a", comparison=GOOD), protocol="pointwise")
    assert "has a `comparison` and no `question`" in lines[0]


def test_a_principle_for_revision_alone_gets_no_advice() -> None:
    assert advice(Principle("a", critique="Identify what is rude.", revision="Rewrite it politely.")) == []


@pytest.mark.parametrize(
    ("question", "what"),
    [
        ("这个回答怎么样呢？", "cannot be answered by 是 or 否"),
        ("这个回答是不是不礼貌？", "double negative"),
        ("礼貌？", "very short"),
    ],
)
def test_chinese_wording_is_checked(question: str, what: str) -> None:
    principle = Principle(
        "a", comparison="哪个回答更有礼貌？", question=question, answers=Answers("是", "否")
    )
    assert any(what in line for line in advice(principle, language="zh"))


def test_chinese_answers_must_be_named() -> None:
    principle = Principle(
        "a",
        comparison="哪个回答更有礼貌？",
        question="这个回答的语气怎么样？",
        answers=Answers("温和", "生硬"),
    )
    assert "does not name its answers 温和 and 生硬" in advice(principle, language="zh")[0]


def test_other_languages_get_no_advice_on_wording() -> None:
    assert advice(Principle("a", comparison="Quelle réponse n'est pas sans défaut?"), language="fr") == []
    assert advice(Principle("a", comparison="Nke ọzaza ka mma?"), language="ig") == []


def test_alike_principles_are_named() -> None:
    words = "Which response is more polite and respectful and kind and gentle to the person who has asked"
    lines = advice(
        Principle("a", comparison=f"{words}?"),
        Principle("b", comparison=f"{words} it?"),
        Principle("c", comparison=GOOD),
    )
    assert len(lines) == 1
    assert lines[0].startswith("principle `b`: says nearly the same as `a`")


def test_equal_principles_are_found_in_large_constitutions() -> None:
    many = tuple(
        Principle(f"p{n}", comparison=f"Which response is better at task number {n * 7919}?")
        for n in range(1000)
    )
    twin = Principle("twin", comparison="which  response is better at task number 6327281?")
    alike = [line for line in advice(*many, twin) if line.startswith("principle `twin`")]
    assert alike[0].startswith("principle `twin`: says nearly the same as `p799`")


def test_a_weight_far_below_the_others_is_named() -> None:
    lines = advice(
        Principle("a", comparison=GOOD), Principle("b", comparison="Which response is shorter?", weight=1e-4)
    )
    assert lines[0].startswith("principle `b`: weight 0.0001 is so far below the largest (1)")


def test_a_constitution_of_harmlessness_alone_may_end_in_refusals() -> None:
    harmless = Principle("a", comparison=GOOD, tags=("Harmlessness",))
    assert "none on helpfulness" in advice(harmless)[0]
    assert (
        advice(harmless, Principle("b", comparison="Which response helps more?", tags=("helpfulness",))) == []
    )


def test_examples_of_one_letter_are_named() -> None:
    example = Example((Message("user", "Hi"),), "Hello.", "Go.", GOOD, "A")
    constitution = Constitution("c", (Principle("a", comparison=GOOD),), examples=(example, example))
    assert "all 2 examples have the answer A" in str(lint(constitution)[0])
