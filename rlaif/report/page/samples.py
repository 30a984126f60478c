"""The rows of a page's sample browser: evaluated prompts with the policies side by side, and labelled pairs.

Files are read a line at a time; rows are taken evenly from all of a file until there are `MOST_ROWS` of them
or `MOST_BYTES`, and all are counted.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rlaif.errors import DataError
from rlaif.files import open_regular, read_lines
from rlaif.report.page.model import Asked, Flag, SampleRow, Samples, Side
from rlaif.results.evaluation import REWARD, WIN, Evaluation, PolicyResult, pair_id
from rlaif.text import one_line, visible

__all__ = [
    "MOST_BYTES",
    "MOST_ROWS",
    "Keeper",
    "asked_of",
    "evaluated_rows",
    "json_rows",
    "label_row",
    "prompts_of",
    "verdicts_of",
]

MOST_ROWS = 2000
MOST_BYTES = 5_000_000
PLACES: Mapping[str, str] = {
    "ab": "first",
    "ba": "second",
    "chosen_first": "first",
    "rejected_first": "second",
    "alone": "alone",
}
"""Where the completion that P is of was shown, by the order of a verdict."""
FACTS: Mapping[str, str] = {REWARD: "reward", "kl": "KL", "tokens": "tokens"}


class Keeper:
    """Takes rows from a stream of known length, evenly, up to a number of rows and of bytes.

    Args:
        expected: Rows that will be offered.
    """

    def __init__(self, expected: int, *, rows: int, size: int) -> None:
        self._step = max(1, -(-expected // max(rows, 1)))
        self._rows, self._size = rows, size
        self.offered, self.size = 0, 0
        self.kept: list[str] = []

    def offer(self, row: Callable[[], SampleRow]) -> None:
        """Count a row; make and keep it, if it is one of those that are shown."""
        wanted = self.offered % self._step == 0 and len(self.kept) < self._rows
        self.offered += 1
        if not wanted:
            return
        text = json.dumps(row().as_dict(), ensure_ascii=False, separators=(",", ":"))
        size = len(text.encode("utf-8"))
        if self.size + size <= self._size:
            self.kept.append(text)
            self.size += size

    @classmethod
    def together(cls, keepers: Iterable[Keeper]) -> Samples:
        """What several kept."""
        found = list(keepers)
        return Samples(
            rows=tuple(text for each in found for text in each.kept),
            total=sum(each.offered for each in found),
        )


def json_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a file of JSON lines, or of Parquet, one after the other.

    Raises:
        DataError: A line is no JSON object.
        OSError: It cannot be read.
    """
    if path.suffix == ".parquet":
        import pyarrow.parquet

        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
        return
    with open_regular(path) as file:
        for number, line in read_lines(file):
            try:
                values = json.loads(line or b"")
            except ValueError as error:
                raise DataError("this is no JSON", where=f"{path.name}, line {number}") from error
            if not isinstance(values, dict):
                raise DataError("this is no JSON object", where=f"{path.name}, line {number}")
            yield values


# Labelled pairs ---------------------------------------------------------------------------------------------


def label_row(row: Mapping[str, Any], stage: str) -> SampleRow:
    """A row of preferences: the chosen and the rejected completion, and all verdicts."""
    asked = asked_of("chosen", row.get("verdicts") or (), p="p_chosen")
    p = f"P(better) {row['p_chosen']:.3f}"
    return SampleRow(
        id=one_line(f"{stage}/{row['id']}"),
        kind="labels",
        prompt=_turns(row["prompt"]),
        sides=(
            Side("chosen", _facts(p, row.get("chosen_policy")), _last(row["chosen"])),
            Side("rejected", _facts("", row.get("rejected_policy")), _last(row["rejected"])),
        ),
        asked=asked,
        flags=_verdict_flags(asked),
    )


def _facts(*parts: Any) -> str:
    return one_line(", ".join(str(part) for part in parts if part))


# Evaluated prompts ------------------------------------------------------------------------------------------


def evaluated_rows(found: Evaluation, folder: Path, stage: str, keeper: Keeper) -> None:
    """Offer a row for each prompt and number of completion: all policies side by side.

    Args:
        folder: Of the stage: prompts and verdicts are read there, where they are.
    """
    prompts = prompts_of(folder, {id for each in found.policies for id in each.rows.prompts})
    verdicts = verdicts_of(folder)
    places = _places(found.policies)
    for key, rows in places.items():
        keeper.offer(partial(_evaluated, found, key, rows, stage, prompts, verdicts))


def _places(policies: Sequence[PolicyResult]) -> dict[tuple[str, int], dict[str, int]]:
    """By prompt and number, the place of each policy's completion among its rows."""
    found: dict[tuple[str, int], dict[str, int]] = defaultdict(dict)
    for policy in policies:
        numbers: dict[str, int] = {}
        for place, prompt in enumerate(policy.rows.prompts):
            number = numbers[prompt] = numbers.get(prompt, -1) + 1
            found[prompt, number][policy.name] = place
    return found


def _evaluated(
    found: Evaluation,
    key: tuple[str, int],
    places: Mapping[str, int],
    stage: str,
    prompts: Mapping[str, Sequence[Mapping[str, Any]]],
    verdicts: Mapping[str, Sequence[Mapping[str, Any]]],
) -> SampleRow:
    prompt, number = key
    measured = {
        policy.name: {name: column[places[policy.name]] for name, column in policy.rows.measures.items()}
        for policy in found.policies
        if policy.name in places
    }
    asked = tuple(
        each
        for name in measured
        for each in asked_of(name, verdicts.get(pair_id(name, prompt, number), ()), p="p_a")
    )
    turns = prompts.get(prompt) or [{"role": "prompt", "content": prompt}]
    return SampleRow(
        id=one_line(f"{stage}/{prompt}/{number}"),
        kind="policies",
        prompt=_turns(turns),
        sides=tuple(
            Side(
                one_line(policy.name),
                _measures(measured[policy.name], found.gold, start=policy.name == found.start),
                visible(policy.rows.texts[places[policy.name]]),
            )
            for policy in found.policies
            if policy.name in places
        ),
        asked=asked,
        flags=(*_policy_flags(found, measured), *_verdict_flags(asked)),
    )


def _policy_flags(found: Evaluation, measured: Mapping[str, Mapping[str, float | None]]) -> list[Flag]:
    start = measured.get(found.start, {})
    others = [values for name, values in measured.items() if name != found.start]
    flags: list[Flag] = []
    if any(values.get(WIN) == 0 for values in others):
        flags.append("loss")
    if found.gold and any(
        _above(values, start, REWARD) and _above(start, values, found.gold) for values in others
    ):
        flags.append("diverged")
    return flags


def _above(one: Mapping[str, float | None], other: Mapping[str, float | None], name: str) -> bool:
    high, low = one.get(name), other.get(name)
    return high is not None and low is not None and high > low


def _measures(values: Mapping[str, float | None], gold: str | None, *, start: bool) -> str:
    parts = []
    if gold and values.get(gold) is not None:
        parts.append(f"{gold} {values[gold]:.3g}")
    parts += [f"{word} {values[name]:.3g}" for name, word in FACTS.items() if values.get(name) is not None]
    win = values.get(WIN)
    if win is not None and not start:
        parts.append({1.0: "wins", 0.0: "loses"}.get(win, "ties") + " against the start policy")
    return one_line(", ".join(parts))


def prompts_of(folder: Path, wanted: set[str]) -> dict[str, Sequence[Mapping[str, Any]]]:
    """What was asked, by prompt; versions before 0.2 did not keep it with the completions."""
    found: dict[str, Sequence[Mapping[str, Any]]] = {}
    path = folder / "completions.jsonl"
    for row in json_rows(path) if path.exists() else ():
        if "prompt" not in row or len(found) == len(wanted):
            break
        found[row["prompt_id"]] = row["prompt"]
    return found


def verdicts_of(folder: Path) -> dict[str, list[Mapping[str, Any]]]:
    """What the judge said, by `pair_id`; nothing of versions before 0.2."""
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    path = folder / "verdicts.jsonl"
    for row in json_rows(path) if path.exists() else ():
        found[row["comparison_id"]].append(
            {name: row.get(name) for name in ("judge", "principle", "order", "valid", "reason", "p_a")}
        )
    return found


# What both have ---------------------------------------------------------------------------------------------


def asked_of(of: str, verdicts: Iterable[Mapping[str, Any]], *, p: str) -> tuple[Asked, ...]:
    """Rows of verdicts, a value for each principle of each judge.

    Args:
        of: Whose completion P is of.
        p: The column that holds P.
    """
    by_question: dict[tuple[str, str], dict[str, float | str]] = defaultdict(dict)
    for each in verdicts:
        answer = _answer(each, p)
        question = (one_line(each.get("judge") or ""), one_line(each["principle"]))
        by_question[question][PLACES[each["order"]]] = answer
    return tuple(
        Asked(one_line(of), judge, principle, answers, _flips(answers))
        for (judge, principle), answers in by_question.items()
    )


def _answer(verdict: Mapping[str, Any], p: str) -> float | str:
    if not verdict["valid"]:
        return f"invalid: {one_line(str(verdict['reason']))}"
    value = float(verdict[p])
    return value if math.isfinite(value) else "invalid: not a number"


def _flips(answers: Mapping[str, float | str]) -> bool:
    first, second = answers.get("first"), answers.get("second")
    return isinstance(first, float) and isinstance(second, float) and (first - 0.5) * (second - 0.5) < 0


def _verdict_flags(asked: Iterable[Asked]) -> tuple[Flag, ...]:
    said = list(asked)
    flags: list[Flag] = ["flip"] if any(each.flip for each in said) else []
    if any(isinstance(answer, str) for each in said for answer in each.answers.values()):
        flags.append("invalid")
    return tuple(flags)


def _turns(messages: Iterable[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    return tuple((one_line(str(turn["role"])), visible(str(turn["content"]))) for turn in messages)


def _last(messages: Sequence[Mapping[str, Any]]) -> str:
    return visible(str(messages[-1]["content"]))
