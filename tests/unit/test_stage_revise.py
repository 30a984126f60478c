"""Revise: every text is kept, a principle is drawn a round, and a chain that fails says where."""

from __future__ import annotations

from collections import Counter

from rlaif.config import ReviseConfig
from rlaif.engines.base import GenerationRequest
from rlaif.engines.scripted import ScriptedEngine
from rlaif.prompts import PromptLibrary
from rlaif.results.revisions import Revision
from rlaif.results.rows import revision_row, sft_rows
from rlaif.stages.revise import revise
from rlaif.types import Constitution, Message, Principle, Prompt

LIBRARY = PromptLibrary()
RULES = Constitution(
    name="c",
    principles=tuple(
        Principle(
            id=f"p{number}",
            critique=f"Find fault number {number}.",
            revision=f"Mend fault number {number}.",
            weight=weight,
        )
        for number, weight in enumerate((1.0, 3.0))
    ),
)
PROMPTS = [
    Prompt(id=f"q{number}", messages=(Message("user", f"Question {number}?"),), tags=("t",))
    for number in range(20)
]


def revised(
    engine: ScriptedEngine, *, rounds: int = 2, seed: int = 0, prompts: list[Prompt] = PROMPTS
) -> list[Revision]:
    config = ReviseConfig(rounds=rounds, max_new_tokens=50)
    return revise(prompts, policy=engine, library=LIBRARY, constitution=RULES, config=config, seed=seed)


def echo(request: GenerationRequest) -> str:
    """Says which step it is asked for, by the words of its prompt."""
    text = request.messages[-1].content
    step = "revision" if "Mend fault" in text else "critique" if "Find fault" in text else "answer"
    return f" {step} {request.seed % 100_000} "


def test_the_steps_come_in_order_and_read_what_was_before() -> None:
    seen: list[str] = []

    def generate(request: GenerationRequest) -> str:
        seen.append(request.messages[-1].content)
        return echo(request)

    (found,) = revised(ScriptedEngine(generate), prompts=PROMPTS[:1])
    assert found.initial.startswith("answer")
    assert [step.critique.split()[0] for step in found.rounds] == ["critique", "critique"]
    assert [step.revision.split()[0] for step in found.rounds] == ["revision", "revision"]
    assert found.final == found.rounds[1].revision
    answer, critique, revision, again, last = seen
    assert answer == "Question 0?"
    assert found.initial in critique
    assert found.initial in revision
    assert found.rounds[0].critique in revision
    assert found.rounds[0].revision in again
    assert found.initial not in again
    assert found.rounds[1].critique in last


def test_critique_and_revision_of_a_round_share_the_principle_that_was_drawn() -> None:
    seen: list[str] = []

    def generate(request: GenerationRequest) -> str:
        seen.append(request.messages[-1].content)
        return echo(request)

    found = revised(ScriptedEngine(generate), rounds=8, prompts=PROMPTS[:1])[0]
    for number, step in enumerate(found.rounds):
        critique, revision = seen[1 + 2 * number : 3 + 2 * number]
        assert f"Find fault number {step.principle_id[1]}." in critique
        assert f"Mend fault number {step.principle_id[1]}." in revision


def test_principles_are_drawn_by_weight_and_anew_each_round() -> None:
    found = revised(ScriptedEngine(echo), rounds=16)
    drawn = Counter(step.principle_id for each in found for step in each.rounds)
    assert 0.65 < drawn["p1"] / 320 < 0.85
    assert any(len({step.principle_id for step in each.rounds}) == 2 for each in found)


def test_more_rounds_keep_the_first_ones() -> None:
    two, four = revised(ScriptedEngine(echo), rounds=2), revised(ScriptedEngine(echo), rounds=4)
    assert all(long.rounds[:2] == short.rounds for short, long in zip(two, four, strict=True))


def test_an_empty_revision_is_recorded_and_does_not_replace_the_text() -> None:
    seen: list[str] = []

    def generate(request: GenerationRequest) -> str:
        seen.append(request.messages[-1].content)
        return " \n" if len(seen) == 3 else echo(request)

    (found,) = revised(ScriptedEngine(generate), prompts=PROMPTS[:1])
    assert found.rounds[0].revision == ""
    assert found.initial in seen[3], "the second critique is of the first completion"
    assert found.rounds[1].revision
    assert [row["round"] for row in sft_rows(found, LIBRARY, {})] == [2]


def test_a_refused_step_ends_its_chain_and_no_other() -> None:
    long = Prompt(id="long", messages=(Message("user", "word " * 500),))
    engine = ScriptedEngine(lambda request: "text " * 40, context=300)
    found = revised(engine, prompts=[PROMPTS[0], long, PROMPTS[1]])
    assert [each.failed for each in found] == ["", "initial: prompt_too_long", ""]
    assert [len(each.rounds) for each in found] == [2, 0, 2]
    assert found[1].final == ""


def test_a_chain_that_fails_midway_keeps_what_it_has() -> None:
    (found,) = revised(ScriptedEngine(echo, context=20), prompts=PROMPTS[:1])
    assert found.failed == "critique 0: prompt_too_long"
    assert found.initial
    assert found.final == found.initial
    assert revision_row(found)["failed"] == found.failed


def test_the_row_keeps_every_text() -> None:
    (found,) = revised(ScriptedEngine(echo), prompts=PROMPTS[:1])
    row = revision_row(found)
    assert row["initial"] == found.initial
    assert [(step["critique"], step["revision"]) for step in row["rounds"]] == [
        (s.critique, s.revision) for s in found.rounds
    ]
    assert (row["final"], row["failed"], row["tags"], row["prompt_id"]) == (found.final, "", ["t"], "q0")


def test_sft_rows_are_the_revisions_without_repeats() -> None:
    same = ScriptedEngine(lambda request: "the same")
    (found,) = revised(same, rounds=3, prompts=PROMPTS[:1])
    (row,) = sft_rows(found, LIBRARY, {"seed": 7})
    assert row["completion"] == [{"role": "assistant", "content": "the same"}]
    assert row["prompt"] == [{"role": "user", "content": "Question 0?"}]
    assert (row["id"], row["round"], row["seed"]) == ("q0/r1", 1, 7)
