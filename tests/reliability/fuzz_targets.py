"""What is fuzzed: a function of bytes for every reader of what comes from outside.

A target returns, or raises an `RlaifError`: that is what the command line tells in words. Anything else is a
defect. The test suite feeds them with Hypothesis, `scripts/fuzz.py` with atheris, which is led by the
branches that an input reaches.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import closing, suppress
from pathlib import Path

from rlaif.config import parse_recipe
from rlaif.constitution.load import parse_constitution
from rlaif.engines.api.label_reading import from_top, from_votes
from rlaif.engines.api.wire import Malformed, read_counts, read_reply
from rlaif.errors import RlaifError
from rlaif.files import parse_object
from rlaif.io.readers import read_prompts, read_responses
from rlaif.io.tables import read_table
from rlaif.io.training_rows import demonstration_of, preference_of
from rlaif.runs.journal import Journal
from rlaif.runs.manifest import Manifest
from rlaif.runs.run import read_run
from rlaif.runs.steps import StepLog
from rlaif.serving.chunks import Chunks, UpstreamError, event_data
from rlaif.serving.work import Delta

__all__ = ["SEEDS", "TARGETS", "run_target"]

Target = Callable[[bytes, Path], None]


def run_target(name: str, data: bytes) -> RlaifError | None:
    """Feed a target; returns what it raised on purpose.

    Raises:
        Exception: Anything else that it raised: a defect.
    """
    with tempfile.TemporaryDirectory(prefix="rlaif-fuzz-") as folder:
        try:
            TARGETS[name](data, Path(folder))
        except RlaifError as error:
            return error
    return None


def _text(data: bytes) -> str:
    """A text of any characters, half ones included."""
    return data.decode("utf-8", "surrogatepass" if data[:1] == b"\xed" else "replace")


def _file(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _table(suffix: str) -> Target:
    """Every row is read or named: none is dropped."""

    def target(data: bytes, folder: Path) -> None:
        table = read_table(_file(folder, f"rows{suffix}", data))
        if not table.rows and not table.problems:
            raise AssertionError("neither rows nor problems")

    return target


def _learned(data: bytes, folder: Path) -> None:
    for row in read_table(_file(folder, "rows.jsonl", data)).rows:
        for read in (preference_of, demonstration_of):
            try:
                read(row.values)
            except RlaifError:
                continue


def _reply(data: bytes, _folder: Path) -> None:
    try:
        payload = json.loads(data)
    except (ValueError, RecursionError):  # as the engine takes it: `bad_json`
        return
    read_counts(payload)
    try:
        reply = read_reply(payload)
    except Malformed:
        return
    for choice in reply.choices:
        reading = from_top(choice.top, ("A", "B"), tokens=1)
        if not reading.reason and not all(value <= 0.0 for value in reading.logprobs):
            raise AssertionError(f"a reading that is none: {reading}")
    from_votes([choice.text for choice in reply.choices], ("A", "B"), tokens=1)


def _upstream(data: bytes, _folder: Path) -> None:
    """What a server behind `rlaif serve` streams, in two pieces; bytes that are no events are put into some."""
    if not data.startswith(b"data:"):
        data = b"".join(b"data: " + line + b"\n\n" for line in data.splitlines())

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
            yield piece

    async def read() -> None:
        chunks = Chunks(2)
        async for each in event_data(pieces()):
            for told in chunks.read(each):
                json.dumps(told.text if isinstance(told, Delta) else told.finish, ensure_ascii=False).encode()
        chunks.finish()

    with suppress(Malformed, UpstreamError):
        asyncio.run(read())


def _journal(data: bytes, folder: Path) -> None:
    """A journal whose one answer is these bytes, then a journal that is these bytes."""
    path = folder / "journal.sqlite"
    with Journal(path) as journal:
        journal.put_many("labels", {"key": {"x": 1}})
    with closing(sqlite3.connect(path)) as connection, connection:
        (column,) = [
            row[1]
            for row in connection.execute("PRAGMA table_info(answers)")
            if row[1] in ("value", "answer", "response")
        ]
        connection.execute(f"UPDATE answers SET {column} = ?", (data.decode("latin-1"),))
    with Journal(path) as journal:
        journal.get_many(["key"])
    with Journal(_file(folder, "other.sqlite", data)) as journal:
        journal.get_many(["key"])


TARGETS: dict[str, Target] = {
    "recipe": lambda data, _folder: _ignore(parse_recipe(_text(data), source="fuzz")),
    "setting": lambda data, _folder: _ignore(
        parse_recipe(
            "stages: [{stage: sample}]\nmodel: m\nconstitution: default",
            source="fuzz",
            overrides=[_text(data)],
        )
    ),
    "constitution": lambda data, _folder: _ignore(parse_constitution(_text(data), source="fuzz")),
    "jsonl": _table(".jsonl"),
    "json": _table(".json"),
    "csv": _table(".csv"),
    "tsv": _table(".tsv"),
    "txt": _table(".txt"),
    "prompts": lambda data, folder: _ignore(read_prompts(_file(folder, "p.jsonl", data), skip_bad_rows=True)),
    "responses": lambda data, folder: _ignore(
        read_responses(_file(folder, "r.jsonl", data), skip_bad_rows=True)
    ),
    "rows to learn from": _learned,
    "reply": _reply,
    "upstream": _upstream,
    "journal": _journal,
    "manifest": lambda data, folder: _ignore(Manifest.read_json(_file(folder, "manifest.json", data))),
    "run.json": lambda data, folder: _ignore(read_run(_file(folder, "run.json", data).parent)),
    "steps": lambda data, folder: StepLog(_file(folder, "metrics.jsonl", data)).add({"step": 3}),
    "object": lambda data, _folder: _object(data),
}


def _ignore(_value: object) -> None:
    """The value of a target does not matter."""


def _object(data: bytes) -> None:
    try:
        parse_object(_text(data))
    except ValueError:
        return


SEEDS: dict[str, tuple[bytes, ...]] = {
    "recipe": (
        b"model: m\nconstitution: default\nstages:\n  - {stage: sample, k: 2}\n  - {stage: label, protocol: "
        b"cot}\n",
        b"a: &a [1]\nb: *a\n",
        b"x: 2024-13-45\n",
        b"stages: [{stage: ppo, kl: {kind: adaptive}}]\n",
    ),
    "setting": (b"stages.sample.k=3", b"seed=.inf", b"model=[1, {a: 2}]", b"=", b"stages.9.x=!!int abc"),
    "constitution": (
        b"name: a\nprinciples:\n  - {id: x, comparison: 'Which?', weight: 2}\n  - id: y\n    critique: c\n   "
        b" revision: r\n",
        b"name: [1]\nprinciples: {a: b}\n",
        b"principles: [{id: x, question: q, answers: [Yes, No]}]\nname: n\n",
    ),
    "reply": (
        b'{"choices": [{"message": {"content": "A"}, "finish_reason": "stop", "logprobs": {"content": '
        b'[{"token": "A", "logprob": -0.1,'
        b' "top_logprobs": [{"token": " A", "logprob": -0.1, "bytes": [65]}, {"token": "B", "logprob": '
        b'-2.5}]}]}}], "usage": {}}',
        b'{"choices": [{"text": "B", "logprobs": {"top_logprobs": [{" A": -1, " B": -0.5}]}}]}',
    ),
    "upstream": (
        b'data: {"choices": [{"index": 0, "delta": {"content": "A"}, "finish_reason": null}]}\n\n: alive\n'
        b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": {"prompt_tokens": '
        b"1}}\n\n",
        b'data: {"choices": [{"message": {"content": "B", "refusal": null}, "finish_reason": "length"}]}',
        b'data: {"error": {"message": "no", "code": 5}}\n\n',
    ),
    "prompts": (
        b'{"prompt": "Say one.", "id": "p", "tags": ["a"]}\n'
        b'{"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}\n',
        b'{"instruction": "Do", "input": "this", "output": "done"}\n{"system": "Be kind.", "prompt": "Hi"}\n',
        b'{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}\n',
    ),
    "responses": (
        b'{"prompt": "a", "chosen": "x", "rejected": "y", "model": "m"}\n{"prompt": "b", "chosen": "x", '
        b'"rejected": "z"}\n',
        b'{"prompt": "a", "completions": ["x", {"model": "m", "response": "y"}]}\n',
        b'{"chosen": "\\n\\nHuman: a\\n\\nAssistant: b", "rejected": "\\n\\nHuman: a\\n\\nAssistant: c"}\n',
    ),
    "csv": (
        b'id,prompt\n1,"Say ""one""."\n2,"[{""role"": ""user"", ""content"": ""x""}]"\n',
        b'a,b\n"open,1\n2,3\n',
    ),
    "manifest": (
        b'{"stage": "a", "kind": "label", "key": "k", "parts": {"a": "b"},'
        b' "config": {"x": 1}, "models": {"judge": "m"}, "started": "t",'
        b' "finished": "t", "seconds": 1.5, "counts": {"rows": 1}, "outputs": {"a": {"sha256": "x", "rows": '
        b"1}},"
        b' "git": {"revision": "r", "dirty": true}}',
    ),
    "run.json": (
        b'{"name": "a", "command": ["x"], "status": "running", "stages": ["label"], "started": "now"}',
    ),
    "steps": (b'{"step": 1, "loss": 2}\n{"step": 2}\n', b'[1]\n{"step": "x"}\n', b'{"loss": 1}\n'),
}
"""Good examples to begin from; a target without its own takes those of `prompts`."""
