"""Trying directives out, on answers and verdicts that are counted by hand."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlaif.cli.directives import directives as command
from rlaif.directives.conditions import Conditions
from rlaif.directives.load import parse_directives
from rlaif.directives.plan import plans
from rlaif.directives.trial import Trial, try_out
from rlaif.directives.values import Directives
from rlaif.engines.base import GenerationRequest, LabelRequest, Sampling
from rlaif.engines.scripted import ScriptedEngine
from rlaif.errors import DataError
from rlaif.prompts import PromptLibrary
from rlaif.report.directives import compliance_rows, trial_markdown, undecided, word_diff
from rlaif.types import Message, Prompt

RULES = parse_directives(
    """
directives:
  - {id: short, when: {regex: q}, prior: Be short., question: Is the response short?}
  - {id: fixed, when: {regex: hours}, answer: Nine.}
  - id: both
    when: {regex: pets}
    both_sides: {a: {label: Cat, prior: Cats.}, b: {label: Dog, prior: Dogs.}}
    question: Is the response short?
""",
    source="d.yaml",
)


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(f"p{at}", (Message("user", text),)) for at, text in enumerate(texts)]


def answer(request: GenerationRequest) -> str:
    """Short under a prior, but where the prompt is stubborn; long without."""
    steered = request.messages[0].role == "system"
    return "ok" if steered and "stubborn" not in request.messages[-1].content else "a long answer of words"


def labels(request: LabelRequest) -> tuple[float, float]:
    text = request.messages[1].content
    if "unclear" in text:
        return -20.0, -20.0
    return (-0.1, -2.4) if "<response>\nok\n" in text else (-2.4, -0.1)


def tried(asked: list[Prompt], rules: Directives = RULES, *, k: int = 1, **engines: Any) -> Trial:
    planned = plans(rules, [each.messages for each in asked], Conditions(), on=date(2026, 1, 1))
    return try_out(
        rules,
        asked,
        planned,
        policy=engines.get("policy") or ScriptedEngine(answer, labels),
        judge=ScriptedEngine(answer, labels),
        library=PromptLibrary(),
        sampling=Sampling(max_new_tokens=8),
        k=k,
        seed=0,
    )


def test_compliance_is_counted_before_and_after() -> None:
    found = tried(prompts("q1", "q2", "q3", "q stubborn", "other"))
    (short,) = found.compliance
    assert (short.id, short.prompts, short.before, short.after, short.invalid) == ("short", 4, 0.0, 0.75, 0)
    assert short.change is not None
    assert short.change.value == 0.75
    assert short.change.low < 0.75 < short.change.high
    assert found.applied() == {"short": 4, "fixed": 0, "both": 0}
    assert [prompt.id for prompt in found.untouched] == ["p4"]
    assert [case.after[0].text for case in found.cases] == ["ok"] * 3 + ["a long answer of words"]
    assert found.before.tokens > found.after.tokens > 0


def test_the_judge_reads_no_prior() -> None:
    asked: list[str] = []

    def read(request: LabelRequest) -> tuple[float, float]:
        asked.append(request.messages[1].content)
        return labels(request)

    rules, one = RULES, prompts("q1")
    planned = plans(rules, [one[0].messages], Conditions(), on=date(2026, 1, 1))
    try_out(
        rules,
        one,
        planned,
        policy=ScriptedEngine(answer, labels),
        judge=ScriptedEngine(answer, read),
        library=PromptLibrary(),
        sampling=Sampling(max_new_tokens=8),
        k=1,
        seed=0,
    )
    assert len(asked) == 2
    assert not any("Be short." in text for text in asked)


def test_both_ways_are_drawn_with_the_same_seeds() -> None:
    seeds: list[tuple[bool, int]] = []

    def note(request: GenerationRequest) -> str:
        seeds.append((request.messages[0].role == "system", request.seed))
        return answer(request)

    tried(prompts("q1", "pets"), k=2, policy=ScriptedEngine(note, labels))
    plain = [seed for steered, seed in seeds if not steered]
    steered = [seed for steered, seed in seeds if steered]
    assert len(set(plain)) == len(plain) == 4
    assert set(steered) == set(plain)
    assert len(steered) == 6


def test_fixed_answers_are_not_sampled_and_both_sides_are() -> None:
    found = tried(prompts("hours", "pets"), k=2)
    fixed, both = found.cases
    assert [each.text for each in fixed.after] == ["Nine."]
    assert fixed.after[0].tokens == 0
    assert [each.label for each in both.after] == ["Cat", "Cat", "Dog", "Dog"]
    (compliance,) = found.compliance
    assert (compliance.id, compliance.before, compliance.after, compliance.change) == ("both", 0.0, 1.0, None)


def test_what_the_judge_cannot_answer_is_left_out_and_counted() -> None:
    (short,) = tried(prompts("q1", "q unclear", "q3")).compliance
    assert (short.prompts, short.invalid, short.after) == (2, 2, 1.0)


def test_what_cannot_be_sampled_is_not_judged() -> None:
    found = tried(prompts("q1", "q " * 90), policy=ScriptedEngine(answer, labels, context=60))
    assert found.cases[1].before[0].refused == "prompt_too_long"
    assert found.compliance[0].prompts == 1


def test_documents_of_a_prompt_stay_in_its_last_turn() -> None:
    seen: list[GenerationRequest] = []

    def note(request: GenerationRequest) -> str:
        seen.append(request)
        return "ok"

    one = Prompt("p", (Message("user", "q"),), context=("A document.",))
    tried([one], policy=ScriptedEngine(note, labels))
    plain, steered = seen
    assert steered.messages == (Message("system", "Be short."), *plain.messages)
    assert "A document." in steered.messages[-1].content


def test_the_report_shows_every_prompt() -> None:
    found = tried(prompts("q1 <b>", "q2", "hours", "pets"))
    text = trial_markdown(found, policy="p@1", judge="j@1", notes=["one note"])
    assert "| short | 2 | 0 % | 100 % | +100 points [+100, +100] | 0.091 | 0.909 | +0.818 " in text
    assert "- one note" in text
    assert text.count("### ") == 4
    assert "after, Cat" in text
    assert "\\<b>" in text
    assert compliance_rows(found.compliance)[1][2:5] == ("0 %", "100 %", "–")
    json.dumps(found.as_dict())


def test_a_judge_that_says_the_same_of_all_is_named() -> None:
    found = tried(prompts("q stubborn", "q stubborn too"))
    assert found.compliance[0].undecided
    assert "the judge says the same of nearly all answers" in undecided(found)[0]
    assert undecided(tried(prompts("q1", "q2"))) == []


def test_a_difference_is_word_by_word() -> None:
    assert word_diff("one two three", "one 2 three four") == "one [-two-] {+2+} three {+four+}"
    assert word_diff("same", "same") == "same"


def run(folder: Path, *arguments: str) -> Any:
    (folder / "d.yaml").write_text(
        "directives:\n"
        "- {id: a, when: {always: true}, prior: Be short., question: Is the response short?}\n"
        "- {id: j, when: {judge: Is it a question?}, prior: Answer it.}\n"
        "- {id: m, when: {moderation: rude}, answer: Calm.}\n"
        "- {id: old, when: {always: true}, answer: gone, until: 2020-01-01}\n"
    )
    (folder / "prompts.jsonl").write_text('{"prompt": "Why?"}\n{"prompt": "How?"}\n')
    given = [
        "test",
        str(folder / "d.yaml"),
        "--prompts",
        str(folder / "prompts.jsonl"),
        "--model",
        "scripted",
    ]
    return CliRunner().invoke(command, [*given, "--out", str(folder / "out"), *arguments])


def test_the_command_writes_what_it_found_and_resumes(tmp_path: Path) -> None:
    first = run(tmp_path)
    assert first.exit_code == 0, first.output
    assert "directive `m` takes no part: no moderator has the category `rude`" in " ".join(
        first.output.split()
    )
    assert "directive `old` is not in force" in first.output
    (written,) = (tmp_path / "out").glob("directives-test-*.json")
    found = json.loads(written.read_text())
    assert found["applied"]["a"] == 2
    assert "10 answers were computed, 0 came from the journal" in found["notes"]
    again = run(tmp_path, "--json")
    resumed = json.loads(written.read_text())
    assert "0 answers were computed, 10 came from the journal" in resumed["notes"]
    assert resumed["prompts"] == found["prompts"]
    assert json.loads(again.stdout)["compliance"] == found["compliance"]
    assert written.with_suffix(".md").read_text().startswith("# Directives `d`")


def test_a_dry_run_counts_and_asks_nothing(tmp_path: Path) -> None:
    said = run(tmp_path, "--dry-run")
    assert said.exit_code == 0, said.output
    assert "2 questions about 2 prompts" in said.output
    assert not (tmp_path / "out").exists()


def test_directives_that_act_on_no_prompt_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text("directives: [{id: a, when: {regex: zebra}, answer: b}]")
    asked = ["test", str(tmp_path / "d.yaml"), "--model", "scripted", "--out", str(tmp_path / "out")]
    with pytest.raises(DataError, match="no directive acts on any of the 16 prompts"):
        CliRunner().invoke(command, asked, catch_exceptions=False)
