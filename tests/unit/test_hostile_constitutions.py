"""Files that are no constitutions: each ends in one message with its place, soon, and within bounded
memory."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import pytest
from spine import call

from rlaif.constitution.importers import import_cai
from rlaif.constitution.load import load_constitution
from rlaif.engines.api.api_key import read_api_key
from rlaif.errors import ConstitutionError, ModelError, RlaifError

SECONDS = 5.0
"""Of processor time; all but the largest take a hundredth of one on an idle machine."""
MEMORY = 1 << 30
A = "principles:\n  - id: a\n    question: Is it good?\n"
LAUGHS = "a: &a [x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(12)
)
HOSTILE: dict[str, str | bytes] = {
    "nothing": "",
    "comments": "# nothing\n",
    "null": "~",
    "a number": "7",
    "a text": "hello",
    "a list": "- a\n- b",
    "a key twice": A + "name: a\nname: b\n",
    "principles twice": A + A,
    "an id twice": A + "  - id: a\n    question: Is it bad?\n",
    "a key of a principle twice": A + "    question: Is it bad?\n",
    "anchors of anchors": LAUGHS,
    "itself": "principles: &a [*a]",
    "a merge": "x: &x {id: a}\nprinciples:\n  - <<: *x\n    question: Is it good?\n",
    "an object": "principles: !!python/object/apply:os.system [id]",
    "a tag": "principles: !x []",
    "a binary": "name: !!binary aGk=\n" + A,
    "depth": "[" * 5000,
    "depth of mappings": "{a: " * 5000,
    "depth by lines": "".join(" " * n + "a:\n" for n in range(500)),
    "two documents": A + "---\n" + A,
    "a tab": "principles:\n\t- id: a",
    "an open quote": 'name: "x',
    "an open bracket": "principles: [",
    "a list as key": "? [1, 2]\n: x\n" + A,
    "a mapping as key": "? {a: 1}\n: x\n" + A,
    "an unknown key": A + "principals: []\n",
    "principles as text": "principles: be good",
    "principles as mapping": "principles: {a: be good}",
    "principles as number": "principles: 3",
    "principles empty": "principles: []",
    "principles null": "principles:",
    "a principle as text": "principles: [be good]",
    "a principle as list": "principles: [[be good]]",
    "a principle as null": "principles: [~]",
    "a principle without id": "principles: [{question: Is it good?}]",
    "a principle without text": "principles: [{id: a}]",
    "an id of two lines": 'principles: [{id: "a\\nb", question: q}]',
    "an id with a slash": "principles: [{id: ../a, question: q}]",
    "an id with an escape": 'principles: [{id: "a\\e[2J", question: q}]',
    "an id with a nul": 'principles: [{id: "a\\0", question: q}]',
    "an id with half a character": 'principles: [{id: "\\ud800", question: q}]',
    "an id of another script": "principles: [{id: \u0430, question: q}]",
    "an id as list": "principles: [{id: [a], question: q}]",
    "an id of nothing": "principles: [{id: '', question: q}]",
    "a text of nothing": "principles: [{id: a, question: '  '}]",
    "a text as list": "principles: [{id: a, question: [q]}]",
    "a text as mapping": "principles: [{id: a, question: {q: r}}]",
    "a text with an escape": 'principles: [{id: a, question: "\\e[2J"}]',
    "a text with half a character": 'principles: [{id: a, question: "q \\ud800"}]',
    "weight nan": A + "    weight: .nan\n",
    "weight inf": A + "    weight: .inf\n",
    "weight 1e38": A + "    weight: 1e38\n",
    "weight 1e-38": A + "    weight: 1e-38\n",
    "weight 1e999": A + "    weight: 1e999\n",
    "weight 0": A + "    weight: 0\n",
    "weight -1": A + "    weight: -1\n",
    "weight true": A + "    weight: true\n",
    "weight as text": A + "    weight: heavy\n",
    "weight quoted": A + "    weight: '1'\n",
    "weight of digits": A + "    weight: " + "9" * 100_000 + "\n",
    "weight as list": A + "    weight: [1]\n",
    "tags as text": A + "    tags: tone\n",
    "tags of mappings": A + "    tags: [{a: b}]\n",
    "answers equal": A + "    answers: [Yes, yes]\n",
    "answers that begin alike": A + "    answers: [safe, safely]\n",
    "answers that begin alike, turned": A + "    answers: [Yes it is, 'yes']\n",
    "one answer": A + "    answers: [Yes]\n",
    "answers as text": A + "    answers: Yes, No\n",
    "answers of lists": A + "    answers: [[Yes], [No]]\n",
    "answers without a question": "principles: [{id: a, comparison: c, answers: [Yes, No]}]",
    "a lead of nothing": A + "    lead: ''\n",
    "a protocol": A + "protocol: pairs\n",
    "a language": A + "language: ../../etc\n",
    "a name as list": A + "name: [a]\n",
    "a name with an escape": A + 'name: "a\\e]0;x\\a"\n',
    "examples as text": A + "examples: hello\n",
    "an example as text": A + "examples: [hello]\n",
    "an example of nobody": A + "examples: [{conversation: c, a: a, b: b, principle: nosuch, answer: A}]\n",
    "a conversation that ends with the assistant": (
        A
        + (
            "examples: [{conversation: [{role: assistant, content: x}], a: a, b: b, principle: Which?, "
            "answer: "
            "A}]\n"
        )
    ),
    "a role": A
    + "examples: [{conversation: [{role: root, content: x}], a: a, b: b, principle: Which?, answer: A}]\n",
    "utf-16": A.encode("utf-16"),
    "utf-16 without its mark": A.encode("utf-16-le"),
    "latin-1": "name: caf\xe9\n".encode("latin-1") + A.encode(),
    "bytes": bytes(range(256)),
    "half a character": b"name: \xed\xa0\x80\n" + A.encode(),
    "nuls": b"\0" * 1000,
    "a line of megabytes": "name: " + "x" * (65 << 20),
    "brackets by the million": "[" * 1_000_000,
    "questions by the million": "? " * 200_000,
}


def spent(path: Path) -> str:
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RlaifError) as raised:
        load_constitution(path)
    assert time.process_time() - began < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
    return str(raised.value)


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_it_ends_in_one_message_soon(content: str | bytes, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    told = spent(file)
    assert "c.yaml" in told
    assert len(told) < 20_000


@pytest.mark.parametrize("kind", ["fifo", "device", "loop", "folder", "huge"])
def test_what_is_no_regular_file_is_refused_wherever_one_is_read(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    match kind:
        case "fifo":
            os.mkfifo(file)
        case "device":
            file.symlink_to("/dev/zero")
        case "loop":
            file.symlink_to(file)
        case "folder":
            file.mkdir()
        case _:
            with file.open("wb") as sparse:
                sparse.truncate(1 << 40)
    assert "c.yaml" in spent(file)
    with pytest.raises(ConstitutionError):
        import_cai([file], name="x")
    with pytest.raises(ModelError):
        read_api_key(hosts=frozenset(), file=file)


def test_a_byte_order_mark_and_many_principles_are_read(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + A.encode())
    assert load_constitution(file).principles[0].id == "a"
    file.write_text(
        "principles:\n" + "".join(f"  - id: p{n}\n    question: Is it {n}?\n" for n in range(100_000))
    )
    began = time.process_time()
    assert len(load_constitution(file).principles) == 100_000
    assert time.process_time() - began < 4 * SECONDS


def test_the_command_says_it_once(tmp_path: Path) -> None:
    file = tmp_path / "c\x1b[2J\n.yaml"
    file.write_text('principles: [{id: "a\\nb", question: q}]')
    for command in ("show", "lint"):
        said = call("constitution", command, file)
        assert said.status == 1
        assert "\x1b" not in said.err + said.out
        assert "not a plain name" in said.err
