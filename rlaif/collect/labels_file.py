"""Labels of people on disk: a row of preferences a click, and a second file for the pairs that were skipped.

A label is appended and synced before it is acknowledged. To undo one, the file is written whole without it
and put in place by a rename, so that a kill leaves either the old file or the new one. A line that a kill
cut short was never acknowledged; it is taken off when the file is opened again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

from filelock import FileLock, Timeout

from rlaif.collect.pairs import Shown, pair_key
from rlaif.errors import DataError, RunError
from rlaif.files import parse_object, sync_to_disk
from rlaif.runs.disk import run_errors, write_whole
from rlaif.types import Message

__all__ = ["Answer", "Click", "LabelsFile", "skipped_file"]

Answer = Literal["first", "second", "equal", "skip"]
"""What a person says of a pair, of its completions in the order of `Shown`."""
MINE = "write the labels to a file of their own (--out)"


class Click(NamedTuple):
    """What one annotator said of one pair.

    Attributes:
        key: Of the pair, as `Shown.key`.
        number: Counts the clicks of this annotator from 1, skips included.
    """

    key: str
    annotator: str
    answer: Answer
    number: int


class _Line(NamedTuple):
    text: str
    click: Click


def skipped_file(out: Path) -> Path:
    """The file beside `out` that holds the pairs that were skipped: `labels.skipped.jsonl`."""
    return out.with_name(f"{out.stem}.skipped{out.suffix}")


class LabelsFile:
    """The labels of a file and the skips beside it, held for this process while it is open.

    Raises:
        DataError: The file is there and holds other rows than labels that were collected.
        RunError: Another process writes to it, or the disk refuses.
    """

    def __init__(self, out: Path) -> None:
        if out.suffix != ".jsonl":
            raise DataError(
                "labels are written as JSON lines", where=str(out), remedy="end the name in .jsonl"
            )
        self.out = out
        with run_errors("make the folder", out.parent):
            out.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(out.with_name(f".{out.name}.lock"))
        with run_errors("lock the file", out):
            self._acquire()
        try:
            self._lines = {path: _read(path) for path in (out, skipped_file(out))}
        except BaseException:
            self._lock.release()
            raise

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise RunError(
                "another process collects labels into this file",
                where=str(self.out),
                remedy="stop it, or name another file (--out)",
            ) from error

    def __enter__(self) -> LabelsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    @property
    def clicks(self) -> list[Click]:
        """Of all annotators; skips come last."""
        return [line.click for lines in self._lines.values() for line in lines]

    def add(self, pair: Shown, answer: Answer, *, annotator: str, seconds: float, tie_first: bool) -> Click:
        """Append a click, and have it on the disk.

        Args:
            tie_first: Of a tie, whether the first completion stands in `chosen`.
        """
        mine = [click.number for click in self.clicks if click.annotator == annotator]
        click = Click(pair.key, annotator, answer, max(mine, default=0) + 1)
        path = skipped_file(self.out) if answer == "skip" else self.out
        text = json.dumps(_row(pair, click, seconds=seconds, tie_first=tie_first), ensure_ascii=False)
        _append(path, text)
        self._lines[path].append(_Line(text, click))
        return click

    def undo(self, annotator: str) -> Click | None:
        """Take back the last click of an annotator; `None` where there is none."""
        mine = [
            (line.click.number, path, at)
            for path, lines in self._lines.items()
            for at, line in enumerate(lines)
            if line.click.annotator == annotator
        ]
        if not mine:
            return None
        _, path, at = max(mine)
        rest = [line for place, line in enumerate(self._lines[path]) if place != at]
        write_whole(path, "".join(f"{line.text}\n" for line in rest))
        sync_to_disk(path.parent)
        gone = self._lines[path][at].click
        self._lines[path] = rest
        return gone


def _row(pair: Shown, click: Click, *, seconds: float, tie_first: bool) -> dict[str, Any]:
    about = {
        "annotator": click.annotator,
        "source_id": pair.source_id,
        "seconds": round(seconds, 1),
        "click": click.number,
    }
    if click.answer == "skip":
        return {"skipped": pair.key, **about}
    first = click.answer == "first" or (click.answer == "equal" and tie_first)
    chosen, rejected = (pair.first, pair.second) if first else (pair.second, pair.first)
    return {
        "prompt": [turn.as_dict() for turn in pair.prompt],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "p_chosen": 0.5 if click.answer == "equal" else 1.0,
        **about,
    }


def _append(path: Path, text: str) -> None:
    """Add a line; what a full disk took of it is taken off again."""
    with run_errors("write the label", path):
        new = not path.exists()
        with path.open("ab") as file:
            before = file.tell()
            try:
                file.write(f"{text}\n".encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(path, before)
                raise
        if new:
            sync_to_disk(path.parent)


def _read(path: Path) -> list[_Line]:
    """The lines of a file of ours; a last one that was cut short is taken off the file."""
    with run_errors("read the file", path):
        content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    lines: list[_Line] = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            text = line.decode()
            lines.append(_Line(text, _click(parse_object(text))))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(
                f"this is no label that was collected ({type(error).__name__}: {error})",
                where=f"{path}:{number}",
                remedy=MINE,
            ) from error
    if len(whole) < len(content):
        if not lines:
            _check_cut(content[len(whole) :], path)
        with run_errors("write the file", path):
            os.truncate(path, len(whole))
            sync_to_disk(path)
    return lines


def _check_cut(rest: bytes, path: Path) -> None:
    """Refuse to empty a file whose only line is not the beginning of one of ours."""
    begins = (b'{"prompt": [{"role"', b'{"skipped": "')
    if not any(rest[: len(begin)] == begin[: len(rest)] for begin in begins):
        raise DataError("this is no label that was collected", where=f"{path}:1", remedy=MINE)


def _click(row: Mapping[str, Any]) -> Click:
    annotator, number = row["annotator"], row["click"]
    if not isinstance(annotator, str) or not isinstance(number, int):
        raise ValueError("annotator and click are not a text and a number")
    if "skipped" in row:
        return Click(str(row["skipped"]), annotator, "skip", number)
    prompt = [Message(turn["role"], turn["content"]) for turn in row["prompt"]]
    chosen, rejected = (row[name][0]["content"] for name in ("chosen", "rejected"))
    answer: Answer = "first" if chosen < rejected else "second"
    if row["p_chosen"] == 0.5:
        answer = "equal"
    return Click(pair_key(prompt, chosen, rejected), annotator, answer, number)
