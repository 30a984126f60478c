"""Whatever a constitution holds, YAML keeps it; whatever a file holds, reading ends in a constitution or a
`ConstitutionError`."""

from __future__ import annotations

import time
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from rlaif.constitution.load import load_constitution, parse_constitution, to_yaml
from rlaif.errors import ConstitutionError
from rlaif.types import Answers, Constitution, Example, Message, Principle
from rlaif.yaml_text import UNPRINTABLE

printable = st.text(min_size=1, max_size=40).map(lambda text: UNPRINTABLE.sub("", text).strip()).filter(bool)
# A question with a blank is never taken for the id of a principle.
questions = st.tuples(printable, printable).map(" ".join)
ids = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)
maybe = st.none() | printable


@st.composite
def principles(draw: st.DrawFn, id: str) -> Principle:
    texts = draw(st.tuples(maybe, maybe, st.none() | questions, maybe).filter(any))
    answers = st.tuples(printable, printable).filter(lambda pair: pair[0].casefold() != pair[1].casefold())
    return Principle(
        id,
        *texts,
        answers=Answers(*draw(answers)) if texts[3] is not None and draw(st.booleans()) else None,
        weight=draw(st.floats(min_value=1e-6, max_value=1e6)),
        tags=tuple(draw(st.lists(printable, max_size=3))),
    )


@st.composite
def constitutions(draw: st.DrawFn) -> Constitution:
    examples = st.builds(
        Example,
        st.builds(lambda text: (Message("user", text),), printable),
        a=printable,
        b=printable,
        principle=questions,
        answer=st.sampled_from(["A", "B"]),
    )
    names = draw(st.lists(ids, min_size=1, max_size=4, unique=True))
    return Constitution(
        name=draw(printable),
        principles=tuple(draw(principles(id)) for id in names),
        description=draw(st.just("") | printable),
        language=draw(st.sampled_from(["en", "zh", "no", "pt-BR"])),
        protocol=draw(st.sampled_from(["pairwise", "pointwise"])),
        examples=tuple(draw(st.lists(examples, max_size=2))),
    )


@given(constitutions())
def test_a_constitution_survives_yaml(constitution: Constitution) -> None:
    again = parse_constitution(to_yaml(constitution), source="c.yaml")
    assert again == constitution
    assert again.digest == constitution.digest


@given(constitutions(), printable, st.lists(printable, max_size=2))
def test_name_description_and_tags_are_not_in_the_digest(
    constitution: Constitution, text: str, tags: list[str]
) -> None:
    retagged = tuple(replace(principle, tags=tuple(tags)) for principle in constitution.principles)
    assert (
        replace(constitution, name=text, description=text, principles=retagged).digest == constitution.digest
    )


@given(constitutions(), printable)
def test_a_word_more_changes_the_digest(constitution: Constitution, word: str) -> None:
    first, *rest = constitution.principles
    changed = replace(first, critique=f"{first.critique or ''} {word}")
    assert replace(constitution, principles=(changed, *rest)).digest != constitution.digest


def ends_well(text: str) -> None:
    try:
        assert parse_constitution(text, source="c.yaml").principles
    except ConstitutionError as error:
        problems = error.problems
    else:
        return
    assert problems
    assert all(problem.what for problem in problems)


@given(st.text())
def test_any_text_ends_well(text: str) -> None:
    ends_well(text)


SHIPPED = to_yaml(load_constitution("warmth"))
PIECES = [*"\t\n[]{}'\"#~%\x00", "- ", ": ", "&a ", "*a", "!!int ", "---\n", "? ", "| ", "<<"]


@given(st.data())
def test_a_damaged_file_ends_well(data: st.DataObject) -> None:
    text = SHIPPED
    for _ in range(data.draw(st.integers(1, 4))):
        at, cut = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 5))
        text = text[:at] + data.draw(st.sampled_from(PIECES)) + text[at + cut :]
    ends_well(text)


def test_a_hundred_thousand_principles_load() -> None:
    text = "principles:\n" + "".join(
        f"  - {{id: p{n}, comparison: Which one is {n}?}}\n" for n in range(100_000)
    )
    begun = time.process_time()
    constitution = parse_constitution(text, source="c.yaml")
    assert len(constitution.principles) == 100_000
    assert constitution.principles[-1].comparison == "Which one is 99999?"
    assert time.process_time() - begun < 60  # 5 s on the machine this was written on
