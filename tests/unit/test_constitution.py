"""Reading constitutions: what is accepted, and one clear problem with its line for everything else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlaif.constitution import load as module
from rlaif.constitution.load import load_constitution, parse_constitution, require, to_yaml
from rlaif.errors import ConfigError, ConstitutionError
from rlaif.resources import names
from rlaif.types import Answers, Constitution, Example, Message, Principle

FULL = """\
# a comment
name: courtesy
description: How to be polite.
language: en
protocol: pointwise
principles:
  - id: polite
    critique: Identify where the assistant's last response is rude.
    revision: >-
      Rewrite the response
      so that it is polite.
    comparison: Which response is more polite?
    question: Is the response polite?
    answers: [Yes, No]
    weight: 2.5
    tags: [tone, manners]
  - id: brief
    comparison: "Which response is shorter?"
examples:
  - conversation: Where is the station?
    a: Straight on.
    b: Look at a map, will you.
    principle: polite
    answer: A
  - conversation:
      - {role: system, content: Be short.}
      - {role: user, content: Hello}
      - {role: assistant, content: Hi.}
      - {role: user, content: Bye}
    a: See you.
    b: Goodbye to you and all of yours.
    principle: Which one is shorter?
    answer: A
"""


def parse(text: str) -> Constitution:
    return parse_constitution(text, source="c.yaml")


def problems(text: str) -> list[tuple[int, str, str]]:
    """Line, what, and remedy of every problem of a text."""
    with pytest.raises(ConstitutionError) as caught:
        parse(text)
    located = [problem for problem in caught.value.problems if problem.where]
    assert all(problem.where.startswith("c.yaml:") for problem in located)
    return [(int(problem.where.split(":")[1]), problem.what, problem.remedy) for problem in located]


def test_every_field_is_read() -> None:
    constitution = parse(FULL)
    asked = (Message("user", "Where is the station?"),)
    assert constitution.name == "courtesy"
    assert constitution.description == "How to be polite."
    assert (constitution.language, constitution.protocol) == ("en", "pointwise")
    assert constitution.principles[0] == Principle(
        id="polite",
        critique="Identify where the assistant's last response is rude.",
        revision="Rewrite the response so that it is polite.",
        comparison="Which response is more polite?",
        question="Is the response polite?",
        answers=Answers("Yes", "No"),
        weight=2.5,
        tags=("tone", "manners"),
    )
    assert constitution.principles[1] == Principle(id="brief", comparison="Which response is shorter?")
    assert constitution.examples[0] == Example(
        conversation=asked,
        a="Straight on.",
        b="Look at a map, will you.",
        principle="Which response is more polite?",
        answer="A",
    )
    assert [message.role for message in constitution.examples[1].conversation] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert constitution.examples[1].principle == "Which one is shorter?"


def test_what_may_be_left_out() -> None:
    constitution = parse("principles: [{id: a, comparison: Which?}]")
    assert (constitution.name, constitution.language, constitution.protocol) == ("c", "en", "pairwise")
    assert constitution.principles[0].weight == 1.0
    assert constitution.examples == ()


@pytest.mark.parametrize(
    ("written", "read"), [("[Yes, No]", ("Yes", "No")), ("[on, off]", ("on", "off")), ("[1, 0]", ("1", "0"))]
)
def test_unquoted_booleans_and_numbers_are_texts_where_text_is_due(
    written: str, read: tuple[str, str]
) -> None:
    answers = parse(f"principles: [{{id: a, question: Is it?, answers: {written}}}]").principles[0].answers
    assert answers == Answers(*read)


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + FULL.replace("\n", "\r\n").encode())
    assert load_constitution(path) == parse(FULL)


@pytest.mark.parametrize("name", names("constitutions"))
def test_every_shipped_constitution_loads_whole(name: str) -> None:
    constitution = load_constitution(name)
    assert constitution.name == name
    for half in ("critique_revision", "comparison", "question"):
        assert require(constitution, half) == constitution.principles  # type: ignore[arg-type]


def test_the_shipped_files_are_as_documented() -> None:
    assert {"concise", "default", "default.zh", "warmth"} <= set(names("constitutions"))
    english, chinese = load_constitution("default"), load_constitution("default.zh")
    assert len(english.principles) >= 16
    assert [principle.id for principle in chinese.principles] == [
        principle.id for principle in english.principles
    ]
    assert chinese.language == "zh"
    assert {principle.answers for principle in chinese.principles} == {Answers("是", "否")}
    assert load_constitution("warmth").protocol == "pointwise"
    for name in names("constitutions"):
        text = (module.find("constitutions", name)).read_text("utf-8")
        assert text.startswith("# yaml-language-server: $schema=../docs/reference/constitution.schema.json\n")


P = "principles:\n  - id: a\n    comparison: Which?\n"

CASES = {
    "empty file": ("", 1, "the file is empty", "principles"),
    "comments only": ("# nothing\n", 1, "the file is empty", "principles"),
    "null document": ("---\n~\n", 1, "the file is empty", "principles"),
    "a list": ("- a\n", 1, "the file is of the wrong type: read a list", "mapping"),
    "a text": ("hello\n", 1, "the file is of the wrong type: read `hello`", "mapping"),
    "no principles": ("name: x\n", 1, "no `principles`", "principles:"),
    "empty list": ("name: x\nprinciples: []\n", 2, "`principles` is empty", "at least one"),
    "nothing after the key": ("principles:\n", 1, "`principles` is empty", "at least one"),
    "principles a mapping": (
        "principles:\n  a: b\n",
        2,
        "`principles` is of the wrong type: read a mapping",
        "list",
    ),
    "bare text": ("principles:\n  - Be kind.\n", 2, "principle 1 is a bare text: `Be kind.`", "- id:"),
    "nothing as principle": ("principles:\n  -\n", 2, "principle 1 is of the wrong type", "mapping"),
    "unknown top key": ("nmae: x\n" + P, 1, "the file has an unknown key `nmae`", "did you mean `name`?"),
    "unknown key": (
        P + "    critiqe: Find.\n",
        4,
        "principle 1 has an unknown key `critiqe`",
        "did you mean `critique`?",
    ),
    "no near key": (P + "    zzz: Find.\n", 4, "unknown key `zzz`", "its keys are id, critique"),
    "merge key": (P + "    <<: {id: b}\n", 4, "a YAML merge key `<<`", "write the keys out"),
    "repeated key": (
        P + "    comparison: Which one?\n",
        4,
        "the key `comparison` appears twice, first in line 3",
        "keep one",
    ),
    "list as key": (P + "    ? [x]\n    : y\n", 4, "a list for a key", "write `name: value`"),
    "repeated id": (
        P + "  - id: a\n    question: Is it?\n",
        4,
        "the id `a` is taken by the principle at line 2",
        "its own id",
    ),
    "repeated id, one line": (
        "principles: [{id: a, question: x?}, {id: a, question: y?}]",
        1,
        "the id `a` is taken",
        "its own id",
    ),
    "no id": ("principles:\n  - comparison: Which?\n", 2, "principle 1 has no `id`", "write `id:`"),
    "capital in id": (
        "principles: [{id: Ab, question: x?}]",
        1,
        "the id `Ab` of principle 1 is not a plain name",
        "small letters",
    ),
    "space in id": ("principles: [{id: a b, question: x?}]", 1, "the id `a b`", "small letters"),
    "dot first in id": ("principles: [{id: .a, question: x?}]", 1, "the id `.a`", "a letter or digit first"),
    "no text": (
        "principles:\n  - id: a\n    weight: 2\n",
        2,
        "principle `a` has no text",
        "critique, revision, comparison",
    ),
    "empty text": (P + "    question:\n", 4, "`question` of principle `a` is empty", "write its text"),
    "null text": (P + "    question: ~\n", 4, "`question` of principle `a` is empty", "write its text"),
    "blank text": (
        P + '    question: " \\t "\n',
        4,
        "`question` of principle `a` is empty",
        "write its text",
    ),
    "blank name": ("name: ''\n" + P, 1, "`name` is empty", "write its text"),
    "list for text": (
        P + "    question: [a]\n",
        4,
        "`question` of principle `a` is of the wrong type: read a list",
        "one text",
    ),
    "mapping for text": (P + "    question: {a: b}\n", 4, "wrong type: read a mapping", "one text"),
    "control character": (
        P + '    question: "a\\0b"\n',
        4,
        "`question` of principle `a` contains a control character",
        "escape",
    ),
    "raw control character": (P + "    question: a\x07b\n", 4, "a control character (U+0007)", "delete"),
    "answers alone": (P + "    answers: [y, n]\n", 4, "`answers` but no `question`", "write the question"),
    "equal answers": (
        P + "    question: Is it?\n    answers: [Yes, yes]\n",
        5,
        "are equal: `Yes`, `yes`",
        "tell apart",
    ),
    "three answers": (
        P + "    question: Is it?\n    answers: [a, b, c]\n",
        5,
        "has 3 items; expected two",
        "good answer",
    ),
    "answers of a mapping": (
        P + "    question: Is it?\n    answers: [{a: b}, c]\n",
        5,
        "the first of `answers` of principle `a` is of the wrong type: read a mapping",
        "one text",
    ),
    "answers a text": (
        P + "    question: Is it?\n    answers: Yes\n",
        5,
        "wrong type: read `Yes`",
        "good answer",
    ),
    "empty answer": (
        P + "    question: Is it?\n    answers: [Yes, '']\n",
        5,
        "the second of `answers` of principle",
        "text",
    ),
    "weight 0": (P + "    weight: 0\n", 4, "`weight` of principle `a` is `0`", "from 1e-06 to 1,000,000"),
    "weight below 0": (
        P + "    weight: -1\n",
        4,
        "`weight` of principle `a` is `-1`",
        "from 1e-06 to 1,000,000",
    ),
    "weight infinite": (P + "    weight: .inf\n", 4, "`weight` of principle `a` is `.inf`", "from 1e-06"),
    "weight too large": (P + "    weight: 1e999\n", 4, "`weight` of principle `a` is `1e999`", "from 1e-06"),
    "weight not a number": (P + "    weight: .nan\n", 4, "`weight` of principle `a` is `.nan`", "from 1e-06"),
    "weight a text": (P + "    weight: high\n", 4, "wrong type: read `high`", "a number"),
    "weight quoted": (P + '    weight: "2"\n', 4, "wrong type: read `2`", "without quotes"),
    "weight a list": (P + "    weight: [2]\n", 4, "wrong type: read a list", "a number"),
    "tags a text": (
        P + "    tags: tone\n",
        4,
        "`tags` of principle `a` is of the wrong type: read `tone`",
        "[one, two]",
    ),
    "empty tag": (P + "    tags: ['']\n", 4, "a tag of principle `a` is empty", "write its text"),
    "protocol": ("protocol: both\n" + P, 1, "`protocol` is `both`", "write pairwise or pointwise"),
    "language": ("language: ../zh\n" + P, 1, "`language` is `../zh`", "en, zh"),
    "tab indentation": ("principles:\n\t- id: a\n", 2, "a tab in the indentation", "spaces"),
    "colon in text": (
        P + "    question: Is it: good?\n",
        4,
        "not valid YAML: mapping values",
        "quote a text that holds",
    ),
    "open quotation": (P + "    question: 'Is it\n", 5, "not valid YAML", "close the quotation"),
    "open bracket": (P + "    tags: [a\n", 5, "not valid YAML", "bracket"),
    "bad indentation": ("principles:\n  - id: a\n   comparison: x\n", 3, "not valid YAML", "indentation"),
    "at sign": (P + "    question: @x\n", 4, "not valid YAML", "quote a text that begins with @"),
    "unknown escape": (P + '    question: "\\q"\n', 4, "not valid YAML", "look at this line"),
    "anchor": (P + "    question: &x Is it?\n", 4, "a YAML anchor `&x`", "take it out"),
    "alias": (P + "    question: *x\n", 4, "a YAML alias `*x`", "write the text out"),
    "python tag": (
        P + "    question: !!python/object:os.system x\n",
        4,
        "a YAML tag `tag:yaml.org,2002:python/",
        "take it out",
    ),
    "tagged list": (P + "    tags: !!set {a}\n", 4, "a YAML tag `tag:yaml.org,2002:set`", "take it out"),
    "second document": (P + "---\nname: x\n", 4, "a second YAML document begins here", "one document"),
    "deep": ("principles: " + "[" * 100_000, 1, "nested more than 32 levels deep", "quote"),
    "examples a text": (P + "examples: none\n", 4, "`examples` is of the wrong type", "a list"),
    "example a text": (P + "examples: [none]\n", 4, "example 1 is of the wrong type", "mapping"),
}

EXAMPLE = (
    P + "examples:\n  - conversation: Hi\n    a: Hello.\n    b: Go away.\n    principle: a\n    answer: A\n"
)

CASES |= {
    "example key": (
        EXAMPLE.replace("answer:", "anwser:"),
        9,
        "example 1 has an unknown key `anwser`",
        "did you mean `answer`?",
    ),
    "example without b": (
        EXAMPLE.replace("    b: Go away.\n", ""),
        5,
        "example 1 has no `b`",
        "conversation, a, b",
    ),
    "example answer": (
        EXAMPLE.replace("answer: A", "answer: C"),
        9,
        "`answer` of example 1 is `C`",
        "A or B",
    ),
    "example id": (
        EXAMPLE.replace("principle: a", "principle: ab"),
        8,
        "names a principle `ab`",
        "did you mean `a`?",
    ),
    "example half": (
        EXAMPLE.replace("comparison", "question"),
        8,
        "names `a`, which has no `comparison`",
        "give it one",
    ),
    "example empty": (EXAMPLE.replace("a: Hello.", "a:"), 6, "`a` of example 1 is empty", "text"),
    "no turn": (
        EXAMPLE.replace("conversation: Hi", "conversation: []"),
        5,
        "does not end with the user's turn",
        "answer",
    ),
    "assistant last": (
        EXAMPLE.replace(": Hi", ": [{role: assistant, content: Hi}]"),
        5,
        "does not end with the user's",
        "end it",
    ),
    "role": (
        EXAMPLE.replace(": Hi", ": [{role: human, content: Hi}]"),
        5,
        "`role` in",
        "system or user or assistant",
    ),
    "content empty": (
        EXAMPLE.replace(": Hi", ": [{role: user, content: }]"),
        5,
        "`content` in `conversation` of example 1 is empty",
        "text",
    ),
    "message key": (
        EXAMPLE.replace(": Hi", ": [{role: user, content: Hi, contents: x}]"),
        5,
        "a message of example 1 has an unknown key `contents`",
        "did you mean `content`? its keys are role, content",
    ),
    "no content": (EXAMPLE.replace(": Hi", ": [{role: user}]"), 5, "has no `content`", "both"),
    "message a text": (
        EXAMPLE.replace(": Hi", ": [Hi]"),
        5,
        "a message of example 1 is of the wrong type",
        "role",
    ),
    "conversation a mapping": (EXAMPLE.replace(": Hi", ": {role: user}"), 5, "read a mapping", "a list"),
}


@pytest.mark.parametrize(("text", "line", "what", "remedy"), CASES.values(), ids=list(CASES))
def test_each_problem_has_its_line_what_was_read_and_a_remedy(
    text: str, line: int, what: str, remedy: str
) -> None:
    found = problems(text)
    assert any(at == line and what in said and remedy in advice for at, said, advice in found), found


def test_the_good_example_is_good() -> None:
    assert parse(EXAMPLE).examples[0].principle == "Which?"


def test_every_problem_is_reported_at_once() -> None:
    head = "nmae: x\nlanguage: '?'\nprinciples:\n"
    text = head + "  - id: A\n    critique:\n  - weight: 0\n  - id: b\n    tags: x\n    answers: [a, a]\n"
    lines = [line for line, _, _ in problems(text)]
    assert lines == [1, 2, 4, 5, 6, 6, 6, 7, 8, 9, 9]


def test_of_many_wrong_fields_fifty_are_told_and_all_are_counted() -> None:
    with pytest.raises(ConstitutionError) as caught:
        parse("principles:\n" + "".join(f"  - {{id: a{n}, question: []}}\n" for n in range(60)))
    assert [problem.where for problem in caught.value.problems[:50]] == [f"c.yaml:{n}" for n in range(2, 52)]
    assert str(caught.value.problems[50]) == "… and 10 more"
    assert caught.value.what == "c.yaml cannot be used: 60 problems"


def test_problems_of_the_yaml_its_fields_and_between_its_keys_are_told_together() -> None:
    text = "name: &n x\nprotocol: both\nprinciples:\n  - id: a\n    answers: [y, n]\n    id: b\n"
    assert [line for line, _, _ in problems(text)] == [1, 2, 4, 5, 6]


def test_problems_beyond_fifty_are_counted() -> None:
    with pytest.raises(ConstitutionError) as caught:
        parse("principles:\n" + "  - id: a\n" * 60)
    assert len(caught.value.problems) == 51
    assert str(caught.value.problems[-1]) == "… and 69 more"
    assert caught.value.what == "c.yaml cannot be used: 119 problems"


def test_every_tab_is_reported_with_its_line() -> None:
    assert [line for line, _, _ in problems("principles:\n\t- id: a\n\t  question: x\n")] == [2, 3]


def test_a_tab_within_a_text_is_no_problem() -> None:
    text = "principles:\n  - id: a\n    question: |\n      Is it\tgood?\n      \tIs it?\n"
    assert parse(text).principles[0].question == "Is it\tgood?\n\tIs it?"


def test_an_alias_bomb_is_refused_at_once() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40))
    assert any("alias" in what for _, what, _ in problems(bomb))


def test_not_utf8_is_told_with_line_and_offset(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: x\ndescription: caf\u00e9\n".encode("latin-1"))
    with pytest.raises(ConstitutionError) as caught:
        load_constitution(path)
    assert caught.value.where == f"{path}:2"
    assert caught.value.what == "not UTF-8: byte 0xe9 at offset 24"


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_bytes(bytes(range(128)) * 100)
    with pytest.raises(ConstitutionError, match="control character"):
        load_constitution(path)


def test_a_file_over_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 1024**2)
    path = tmp_path / "large.yaml"
    path.write_bytes(b"#" * (1024**2 + 1))
    with pytest.raises(ConstitutionError, match="at most 1 MB are read"):
        load_constitution(path)


def test_a_file_that_cannot_be_opened_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(FULL)

    def refuse(*args: object, **settings: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConstitutionError, match="cannot be read: Permission denied"):
        load_constitution(path)


def test_a_folder_and_a_missing_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        load_constitution(tmp_path)
    with pytest.raises(ConfigError, match="no file"):
        load_constitution(tmp_path / "none.yaml")


def test_a_json_file_of_the_paper_is_sent_to_the_importer(tmp_path: Path) -> None:
    path = tmp_path / "Instructions.json"
    path.write_text('["Choose. Options:"]')
    with pytest.raises(ConstitutionError, match="rlaif constitution import"):
        load_constitution(path)


def test_a_json_constitution_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"principles": [{"id": "a", "question": "Is it?", "weight": 2}]}')
    assert load_constitution(path).principles[0] == Principle(id="a", question="Is it?", weight=2.0)


def test_the_digest_is_of_the_meaning() -> None:
    digest = parse(FULL).digest
    reordered = """\
principles:
  - weight: 2.50
    tags: []
    answers: ["Yes", 'No']
    question: Is the response polite?
    comparison: 'Which response is more polite?'   # as before
    revision: Rewrite the response so that it is polite.
    critique: Identify where the assistant's last response is rude.
    id: polite
  - {comparison: Which response is shorter?, id: brief}
"""
    same = (
        reordered + FULL[FULL.index("examples:") :] + "protocol: pointwise\nname: other\ndescription: other\n"
    )
    assert parse(same).digest == digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("more polite?", "most polite?"),
        ("[Yes, No]", "[No, Yes]"),
        ("weight: 2.5", "weight: 2"),
        ("id: brief", "id: short"),
        ("pointwise", "pairwise"),
        ("language: en", "language: fr"),
        ("Straight on.", "Straight."),
        ("answer: A\n  -", "answer: B\n  -"),
    ],
)
def test_a_changed_word_changes_the_digest(old: str, new: str) -> None:
    assert old in FULL
    assert parse(FULL.replace(old, new)).digest != parse(FULL).digest


def test_yaml_is_written_and_read_back() -> None:
    assert parse(to_yaml(parse(FULL))) == parse(FULL)


MIXED = Constitution(
    "mixed",
    (
        Principle("revise-only", critique="c", revision="r"),
        Principle("compare-only", comparison="Which?"),
        Principle("ask-only", question="Is it?"),
        Principle("half", critique="c", comparison="Which one?"),
    ),
)


def test_require_leaves_aside_what_is_for_the_other_side() -> None:
    constitution = Constitution("two lists", MIXED.principles[:2])
    assert [p.id for p in require(constitution, "comparison")] == ["compare-only"]
    assert [p.id for p in require(constitution, "critique_revision")] == ["revise-only"]


@pytest.mark.parametrize(
    ("half", "lacking"),
    [
        ("critique_revision", ["principle `half` has no `revision`"]),
        ("comparison", ["principle `ask-only` has no `comparison`"]),
        ("question", ["principle `compare-only` has no `question`", "principle `half` has no `question`"]),
    ],
)
def test_require_names_each_principle_that_lacks_the_half(half: module.Half, lacking: list[str]) -> None:
    with pytest.raises(ConstitutionError) as caught:
        require(MIXED, half, source="c.yaml")
    assert [problem.what for problem in caught.value.problems] == lacking
    assert all("add `" in problem.remedy for problem in caught.value.problems)
    assert caught.value.where == "c.yaml"


def test_require_refuses_a_constitution_with_nothing_for_the_stage() -> None:
    constitution = Constitution("judge only", (Principle("a", comparison="Which?"),) * 60)
    with pytest.raises(
        ConstitutionError, match="principle `a` has no `critique` and no `revision`"
    ) as caught:
        require(constitution, "critique_revision")
    assert str(caught.value.problems[-1]) == "… and 10 more"


def test_reading_a_constitution_does_not_import_torch() -> None:
    code = (
        "import sys, rlaif.cli.constitution; print(sorted({'torch', 'transformers', 'rich', 'datasets'} "
        "& set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


PREFIXED = "name: x\nprinciples:\n  - id: a\n    question: Is it warm?\n    answers: [warm, cold]\n"


def test_lead_is_the_older_name_of_answer_prefix() -> None:
    now = parse_constitution(PREFIXED + "    answer_prefix: This text is\n", source="s")
    before = parse_constitution(PREFIXED + "    lead: This text is\n", source="s")
    assert now == before
    assert now.principles[0].answer_prefix == "This text is"
    assert now.digest == before.digest == "0a3bf91e7d095a08"  # as version 0.1.0 has it
    assert "answer_prefix: This text is" in to_yaml(before)
    assert parse_constitution(to_yaml(before), source="s") == now
    with pytest.raises(ConstitutionError, match=r":7: principle `a` has both `answer_prefix` and `lead`"):
        parse_constitution(PREFIXED + "    answer_prefix: This text is\n    lead: This text is\n", source="s")


def test_the_digests_of_the_shipped_files_are_those_of_version_0_1_0() -> None:
    found = {name: load_constitution(name).digest for name in ("default", "warmth", "concise", "default.zh")}
    assert found == {
        "default": "991aaae64f7c186c",
        "warmth": "d8dff545b3a61c84",
        "concise": "1a43d470d9ef4779",
        "default.zh": "b8c57a30fe5be58f",
    }
