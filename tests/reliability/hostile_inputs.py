"""Hostile files for every kind of input, and what must become of them.

A case is one *kind* of input (a recipe, a journal, an adapter …), a good example of it spoiled in one *way*
(cut, doubled, a FIFO, a number of five thousand digits …), and the command that reads it. Whatever the
content, the command must end within `SECONDS`, with exit status 0, 1 or 2, with a message where it fails,
without a traceback, and with its input as it was.

`Workshop` makes the good examples once; `cases` lists every case; `try_case` runs one in a process of its
own.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spine import call, processes
from tiny import save_tiny

__all__ = ["SECONDS", "Case", "Found", "Workshop", "cases", "try_case"]

SECONDS = 30.0
"""How long a command may take, on a machine that does something else as well."""
SCRIPTED = "scripted:spine:swift"

PROMPTS = [
    {"id": f"p{n}", "prompt": f"Say {word}."} for n, word in enumerate(["one", "two", "three", "four"])
]
RESPONSES = [{"prompt": row["prompt"], "responses": ["One it is.", "No, thank you."]} for row in PROMPTS]
PREFERENCES = [
    {
        "prompt": row["prompt"],
        "chosen": "Gladly: it is done.",
        "rejected": "No.",
        "p_chosen": 0.8,
        "id": str(n),
    }
    for n, row in enumerate(PROMPTS)
]
ROWS = [{"prompt": row["prompt"], "completion": "Gladly: it is done."} for row in PROMPTS]
CONSTITUTION = """\
name: small
principles:
  - id: kind
    comparison: Which response is kinder?
    critique: Say how the response could be kinder.
    revision: Rewrite the response to be kinder.
    weight: 2
  - id: plain
    comparison: Which response is plainer?
"""
RECIPE = """\
name: small
constitution: {constitution}
model: {model}
stages:
  - {{stage: sample, prompts: {prompts}, k: 2, max_new_tokens: 4, limit: 2}}
  - {{stage: label, principles: all}}
"""


# How a file is spoiled --------------------------------------------------------------------------------------


Spoil = Callable[[Path, random.Random], None]
"""Spoils the file at a path; a good example is there."""


def _bytes(change: Callable[[bytes, random.Random], bytes]) -> Spoil:
    return lambda path, rng: _write(path, change(path.read_bytes(), rng))


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _replace(make: Callable[[Path], object]) -> Spoil:
    def act(path: Path, _rng: random.Random) -> None:
        path.unlink()
        make(path)

    return act


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        here = os.getcwd()
        os.chdir(path.parent)  # the path of a socket has 107 bytes at most
        try:
            opened.bind(path.name)
        finally:
            os.chdir(here)


def _noise(raw: bytes, rng: random.Random) -> bytes:
    """A few bytes changed."""
    mutable = bytearray(raw or b"x")
    for _ in range(8):
        mutable[rng.randrange(len(mutable))] = rng.randrange(256)
    return bytes(mutable)


def _swap(old: bytes, new: bytes) -> Callable[[bytes, random.Random], bytes]:
    """Every `old` is `new`; the file as a whole becomes `new` where it has no `old`."""
    return lambda raw, _rng: raw.replace(old, new) if old in raw else new


WAYS: dict[str, Spoil] = {
    "empty": _bytes(lambda _raw, _rng: b""),
    "blank lines": _bytes(lambda _raw, _rng: b"\n\n \n"),
    "one NUL": _bytes(lambda _raw, _rng: b"\0"),
    "NULs inside": _bytes(lambda raw, _rng: raw[: len(raw) // 2] + b"\0" * 9 + raw[len(raw) // 2 :]),
    "noise": _bytes(lambda _raw, rng: rng.randbytes(4_096)),
    "a few bytes changed": _bytes(_noise),
    "a few other bytes changed": _bytes(_noise),
    "cut": _bytes(lambda raw, _rng: raw[: len(raw) // 2]),
    "cut at a random place": _bytes(lambda raw, rng: raw[: rng.randrange(1, max(2, len(raw)))]),
    "doubled": _bytes(lambda raw, _rng: raw + raw),
    "backwards": _bytes(lambda raw, _rng: raw[::-1]),
    "UTF-16": _bytes(lambda raw, _rng: raw.decode("utf-8", "replace").encode("utf-16")),
    "a byte order mark": _bytes(lambda raw, _rng: b"\xef\xbb\xbf" + raw),
    "Latin-1": _bytes(lambda raw, _rng: raw.replace(b"e", b"\xe9")),
    "half a character, escaped": _bytes(_swap(b"Say", b"\\ud800 Say")),
    "escapes of the terminal": _bytes(lambda raw, _rng: raw.replace(b"s", b"\x1b[2Js")),
    "deep lists": _bytes(lambda _raw, _rng: b"[" * 50_000),
    "deep mappings": _bytes(lambda _raw, _rng: b'{"a":' * 20_000),
    "a long line": _bytes(lambda _raw, _rng: b"a" * (9 << 20)),
    "many digits": _bytes(
        lambda raw, _rng: raw.replace(b"0.8", b"9" * 6_000).replace(b" 2", b" " + b"9" * 6_000)
    ),
    "a list of nothing": _bytes(lambda _raw, _rng: b"[]"),
    "a number": _bytes(lambda _raw, _rng: b"7"),
    "null": _bytes(lambda _raw, _rng: b"null"),
    "a text": _bytes(lambda _raw, _rng: b'"text"'),
    "NaN": _bytes(
        lambda raw, _rng: raw.replace(b"0.8", b"NaN").replace(b"weight: 2", b"weight: .nan") + b"NaN"
    ),
    "another JSON": _bytes(
        lambda _raw, _rng: b'{"a": {"b": [null, {}, 1e999]}, "prompt": {"x": 1}, "name": [], "stages": 7}'
    ),
    "a key twice": _bytes(
        lambda raw, _rng: (
            raw.replace(b"{", b'{"name": 1, "name": 2, ', 1) if b"{" in raw else b"name: a\nname: b\n" + raw
        )
    ),
    "lists for texts": _bytes(_swap(b'"prompt": "', b'"prompt": ["')),
    "nulls for texts": _bytes(
        lambda raw, _rng: (
            raw.replace(b'"Say one."', b"null").replace(b"kind", b"null").replace(b"sample", b"null")
        )
    ),
    "an alias bomb": _bytes(lambda _raw, _rng: b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nname: *c\n"),
    "a tag of Python": _bytes(lambda _raw, _rng: b"name: !!python/object/apply:os.system ['true']\n"),
    "missing": lambda path, _rng: path.unlink(),
    "a folder": _replace(lambda path: path.mkdir()),
    "a FIFO": _replace(lambda path: os.mkfifo(path)),
    "a socket": _replace(_socket),
    "an endless device": _replace(lambda path: path.symlink_to("/dev/zero")),
    "a link to itself": _replace(lambda path: path.symlink_to(path.name)),
    "a link to nothing": _replace(lambda path: path.symlink_to("nowhere")),
}
"""Ways to spoil a file."""


# What is spoiled, and who reads it --------------------------------------------------------------------------


class Workshop:
    """Good examples of every kind of input, made once by the tool itself.

    Attributes:
        examples: A folder of files and folders, each a good input.
    """

    def __init__(self, folder: Path) -> None:
        self.examples = folder / "examples"
        self.examples.mkdir(parents=True)
        for name, listed in {
            "prompts": PROMPTS,
            "responses": RESPONSES,
            "preferences": PREFERENCES,
            "rows": ROWS,
        }.items():
            text = "".join(json.dumps(row) + "\n" for row in listed)
            (self.examples / f"{name}.jsonl").write_text(text, encoding="utf-8")
        (self.examples / "table.csv").write_text("id,prompt\n1,Say one.\n2,Say two.\n", encoding="utf-8")
        (self.examples / "whole.json").write_text(json.dumps(PROMPTS), encoding="utf-8")
        (self.examples / "constitution.yaml").write_text(CONSTITUTION, encoding="utf-8")
        (self.examples / "key").write_text("sk-not-a-key-123456\n", encoding="utf-8")
        recipe = RECIPE.format(
            constitution=self.examples / "constitution.yaml",
            prompts=self.examples / "prompts.jsonl",
            model=SCRIPTED,
        )
        (self.examples / "recipe.yaml").write_text(recipe, encoding="utf-8")
        save_tiny(self.examples / "model")
        shutil.copytree(Path(__file__).resolve().parents[2] / "prompts", self.examples / "templates")
        self._run(
            "label",
            "--responses",
            self.file("responses.jsonl"),
            "--constitution",
            self.file("constitution.yaml"),
            "--judge",
            SCRIPTED,
            "--out",
            self.file("labelled"),
            "--journal",
            self.file("journal.sqlite"),
        )
        self._run(
            "reward",
            "--preferences",
            self.file("preferences.jsonl"),
            *self.model,
            "--set",
            "lora_rank=2",
            "--out",
            self.file("rewarded"),
        )
        self._run(
            "sft",
            "--data",
            self.file("rows.jsonl"),
            *self.model,
            "--set",
            "lora_rank=2",
            "--out",
            self.file("tuned"),
        )
        for kind in KINDS.values():
            assert self.file(kind.spoiled).is_file(), kind.spoiled

    @property
    def model(self) -> tuple[object, ...]:
        """Arguments that name the tiny model."""
        return ("--model", self.file("model"), "--dtype", "float32")

    def file(self, name: str) -> Path:
        """A good example by its name."""
        return self.examples / name

    @staticmethod
    def _run(*arguments: object) -> None:
        said = call(*arguments)
        if said.status:
            raise AssertionError(f"{arguments[0]}: {said.err}")


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        spoiled: The file that is spoiled, in the folder of examples.
        reads: Arguments of the command, given the folder in which the spoiled copy of the examples stands.
    """

    spoiled: str
    reads: Callable[[Path], tuple[object, ...]]


def _sample(name: str) -> Callable[[Path], tuple[object, ...]]:
    return lambda at: ("sample", "--prompts", at / name, "--model", SCRIPTED, "--k", 2, "--out", at / "out")


def _tiny(at: Path) -> tuple[object, ...]:
    return ("--model", at / "model", "--dtype", "float32", "--out", at / "out")


def _label(at: Path, *rest: object) -> tuple[object, ...]:
    return (
        "label",
        "--responses",
        at / "responses.jsonl",
        "--constitution",
        at / "constitution.yaml",
        "--judge",
        SCRIPTED,
        "--out",
        at / "out",
        *rest,
    )


def _ppo(at: Path, *rest: object) -> tuple[object, ...]:
    return (
        "ppo",
        "--prompts",
        at / "prompts.jsonl",
        "--reward",
        at / "rewarded" / "reward" / "model",
        "--steps",
        1,
        "--episodes",
        2,
        "--max-new-tokens",
        2,
        "--set",
        "lora_rank=2",
        *_tiny(at),
        *rest,
    )


def _evaluate(at: Path) -> tuple[object, ...]:
    return (
        "evaluate",
        "--policy",
        at / "tuned" / "sft" / "adapter",
        "--prompts",
        at / "prompts.jsonl",
        "--no-win-rate",
        "--samples",
        1,
        "--max-new-tokens",
        2,
        "--limit",
        2,
        *_tiny(at),
    )


def _generate(at: Path) -> tuple[object, ...]:
    return (
        "sample",
        "--prompts",
        at / "prompts.jsonl",
        "--k",
        1,
        "--limit",
        2,
        "--max-new-tokens",
        2,
        *_tiny(at),
    )


KINDS: dict[str, Kind] = {
    "prompts (.jsonl)": Kind("prompts.jsonl", _sample("prompts.jsonl")),
    "prompts (.csv)": Kind("table.csv", _sample("table.csv")),
    "prompts (.json)": Kind("whole.json", _sample("whole.json")),
    "responses": Kind("responses.jsonl", _label),
    "preferences for a reward model": Kind(
        "preferences.jsonl",
        lambda at: ("reward", "--preferences", at / "preferences.jsonl", "--set", "lora_rank=2", *_tiny(at)),
    ),
    "preferences for DPO": Kind(
        "preferences.jsonl",
        lambda at: ("dpo", "--preferences", at / "preferences.jsonl", "--set", "lora_rank=2", *_tiny(at)),
    ),
    "demonstrations": Kind(
        "rows.jsonl", lambda at: ("sft", "--data", at / "rows.jsonl", "--set", "lora_rank=2", *_tiny(at))
    ),
    "constitution": Kind("constitution.yaml", _label),
    "constitution, linted": Kind(
        "constitution.yaml", lambda at: ("constitution", "lint", at / "constitution.yaml")
    ),
    "recipe": Kind("recipe.yaml", lambda at: ("run", at / "recipe.yaml", "--out", at / "out")),
    "recipe, planned": Kind(
        "recipe.yaml", lambda at: ("run", at / "recipe.yaml", "--out", at / "out", "--dry-run")
    ),
    "template": Kind("templates/judge_pairwise.j2", lambda at: _label(at, "--prompts-dir", at / "templates")),
    "key file": Kind(
        "key",
        lambda at: (
            "sample",
            "--prompts",
            at / "prompts.jsonl",
            "--model",
            "openai:toy",
            "--base-url",
            "http://127.0.0.1:9/v1",
            "--api-key-file",
            at / "key",
            "--out",
            at / "out",
        ),
    ),
    "journal": Kind("journal.sqlite", lambda at: _label(at, "--journal", at / "journal.sqlite")),
    "manifest": Kind("labelled/label/manifest.json", lambda at: (*_label(at)[:-1], at / "labelled")),
    "run.json": Kind("labelled/run.json", lambda at: ("runs", "show", at / "labelled")),
    "run.json, continued": Kind("labelled/run.json", lambda at: (*_label(at)[:-1], at / "labelled")),
    "labels of a run": Kind("labelled/label/preferences.jsonl", lambda at: ("runs", "show", at / "labelled")),
    "config.json of a model": Kind("model/config.json", _generate),
    "tokenizer.json of a model": Kind("model/tokenizer.json", _generate),
    "weights of a model": Kind("model/model.safetensors", _generate),
    "weights of an adapter": Kind("tuned/sft/adapter/adapter_model.safetensors", _evaluate),
    "config of an adapter": Kind("tuned/sft/adapter/adapter_config.json", _evaluate),
    "note of a reward model": Kind("rewarded/reward/model/reward.json", _ppo),
    "head of a reward model": Kind("rewarded/reward/model/heads.safetensors", _ppo),
    "adapter of a reward model": Kind("rewarded/reward/model/adapter-0/adapter_model.safetensors", _ppo),
}


# A case -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One kind of input spoiled in one way."""

    kind: str
    way: str


@dataclass(frozen=True)
class Found:
    """What became of a case; `wrong` is empty when all went as it must."""

    case: Case
    status: int | None
    said: str
    wrong: str


def cases(count: int, *, seed: int) -> list[Case]:
    """At most `count` cases, every kind and every way as often as any other."""
    every = [Case(kind, way) for kind in KINDS for way in WAYS]
    random.Random(seed).shuffle(every)
    every.sort(key=_Turn())
    return every[:count]


class _Turn:
    """Sorts so that the first n cases hold every kind about equally often."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def __call__(self, case: Case) -> int:
        self._seen[case.kind] = self._seen.get(case.kind, 0) + 1
        return self._seen[case.kind]


def try_case(workshop: Workshop, case: Case, folder: Path, *, seed: int) -> Found:
    """Spoil a copy of the examples in `folder`, run the command that reads it, and say what came of it."""
    kind = KINDS[case.kind]
    shutil.copytree(workshop.examples, folder, symlinks=True)
    for path in folder.rglob("*"):  # what names its own place, as the recipe does, names the copy
        if path.name == "recipe.yaml":
            path.write_text(
                path.read_text(encoding="utf-8").replace(str(workshop.examples), str(folder)),
                encoding="utf-8",
            )
    spoiled = folder / kind.spoiled
    WAYS[case.way](spoiled, random.Random(f"{seed}/{case.kind}/{case.way}"))
    before = dict(_inputs(folder))
    log = folder.with_suffix(".log")
    process = processes().start(*kind.reads(folder), said=log)
    process.join(SECONDS)
    hung = process.is_alive()
    if hung:
        process.kill()
        process.join()
    said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return Found(
        case,
        process.exitcode,
        said,
        _wrong(process.exitcode, said, hung=hung, before=before, after=dict(_inputs(folder))),
    )


def _wrong(
    status: int | None, said: str, *, hung: bool, before: dict[str, str], after: dict[str, str]
) -> str:
    if hung:
        return f"no end within {SECONDS:.0f} s"
    if "Traceback" in said:
        return "a traceback: " + said.strip().splitlines()[-1][:200]
    if status not in (0, 1, 2):
        return f"exit status {status}"
    if status and not said.strip():
        return "no message"
    if any(ord(letter) < 32 and letter not in "\n\r\t" for letter in said):
        return "a control character on the terminal"
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return f"inputs changed: {', '.join(changed[:3])}" if changed else ""


OURS = ("out", "labelled", "journal.sqlite", "nowhere")
"""What a command may write to."""


def _inputs(folder: Path) -> Iterator[tuple[str, str]]:
    """A digest of every file that a command only reads."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0].startswith(OURS) or name.parts[0].startswith("rlaif-journal"):
            continue
        if path.is_file() and not path.is_symlink():
            yield str(name), hashlib.sha256(path.read_bytes()).hexdigest()
        elif not path.is_dir():
            yield str(name), "no file"


def summary(found: list[Found]) -> dict[str, Any]:
    """Counts by exit status, and what was wrong."""
    statuses: dict[str, int] = {}
    for each in found:
        statuses[str(each.status)] = statuses.get(str(each.status), 0) + 1
    return {
        "cases": len(found),
        "status": statuses,
        "wrong": [f"{f.case.kind}, {f.case.way}: {f.wrong}" for f in found if f.wrong],
    }
