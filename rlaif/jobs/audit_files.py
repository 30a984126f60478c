"""Audits on disk: written whole, found again by what they hold for; and the calibrations fitted beside them.

An audit is a file `audit-ID.json` with `audit-ID.md` beside it, or `audit.json` in the folder of a run's
`audit` stage; its `protocols` each carry the key (judge revision, constitution digest, template digest,
protocol) under which `find_audit` looks it up.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.audit.calibration import Calibration
from rlaif.audit.cases import Pair, plain, turn_half
from rlaif.audit.report import AuditKey, AuditReport, ProtocolAudit
from rlaif.digest import unit_from
from rlaif.errors import DataError, RunError
from rlaif.files import read_object
from rlaif.io.readers import Read, Responses, read_responses
from rlaif.io.tables import DataTable, read_table
from rlaif.io.training_rows import preference_of
from rlaif.runs.disk import run_errors, write_whole
from rlaif.types import Comparison

__all__ = [
    "STAGE_AUDIT",
    "FoundAudit",
    "Pairs",
    "audit_file",
    "find_audit",
    "load_calibration",
    "read_audit_pairs",
    "read_probes",
    "save_calibration",
    "save_text",
]

STAGE_AUDIT = "audit.json"
"""The report of an `audit` stage, in its folder."""
PROBES = Path(__file__).resolve().parents[1] / "data" / "probes.jsonl"
"""The probes that ship with rlaif."""


class Accuracy(NamedTuple):
    """How many comparisons with a known answer a judge was right on, a tie counted half."""

    correct: float
    rows: int


class FoundAudit(NamedTuple):
    """What a file says of one judge under one protocol.

    Attributes:
        line: One line to print.
        grade: `trust`, `use with care` or `do not use`.
        pairs: Human-labelled pairs that it rests on; 0: on probes alone.
        accuracy: On those pairs, else on probes; `None` where nothing tells it.
    """

    path: Path
    line: str
    grade: str
    pairs: int
    accuracy: Accuracy | None = None


class Pairs(NamedTuple):
    """Comparisons of a file.

    Attributes:
        labelled: Whether the file says which is the better one (columns `chosen` and `rejected`).
        identical: Rows left out, as both completions are the same text.
        ties: Pairs that people found equal (`p_chosen` ½): judged, and in no figure against people.
    """

    pairs: tuple[Pair, ...]
    labelled: bool
    identical: int
    ties: int
    read: Read[Responses]


def read_audit_pairs(
    source: str | Path,
    *,
    limit: int | None = None,
    prompt_column: str = "prompt",
    skip_bad_rows: bool = False,
    seed: int = 0,
) -> Pairs:
    """Comparisons from a file of pairs: `chosen` and `rejected` (a human label), or `a` and `b` (no
    choice); half are turned.

    A file of lists of completions gives every pair of neighbours in a list, without a choice. `limit` keeps
    the first of them in a hash order, so that raising it keeps the earlier ones.

    Raises:
        DataError: The file cannot be read, or holds no two different completions of one prompt.
    """
    read = read_responses(source, prompt_column=prompt_column, skip_bad_rows=skip_bad_rows)
    table = read_table(source)
    labelled = {"chosen", "rejected"} <= set(table.columns)
    tied = _tied(table) if labelled else frozenset()
    found: list[Pair] = []
    identical = ties = 0
    for item in read.items:
        for first, second in item.pairs or [(i, i + 1) for i in range(len(item.completions) - 1)]:
            a, b = item.completions[first], item.completions[second]
            if a.text.strip() == b.text.strip():
                identical += 1
                continue
            equal = (a.text.strip(), b.text.strip()) in tied
            ties += equal
            found.append(Pair(Comparison(item.prompt, a, b), a_wins=1.0 if labelled and not equal else None))
    if not found:
        remedy = "give pairs: columns chosen and rejected, or a and b"
        raise DataError("no prompt has two different completions", where=str(source), remedy=remedy)
    drawn = (
        sorted(found, key=lambda pair: unit_from(seed, "audit", pair.comparison.id))[:limit]
        if limit
        else found
    )
    return Pairs(
        pairs=tuple(turn_half(drawn, seed=seed)), labelled=labelled, identical=identical, ties=ties, read=read
    )


def _tied(table: DataTable) -> frozenset[tuple[str, str]]:
    """The texts of the rows whose label is one half."""
    found = set()
    for row in table.rows:
        if row.values.get("p_chosen") in (0.5, "0.5"):
            with contextlib.suppress(DataError):  # told where the file is read
                values = preference_of(row.values)
                chosen, rejected = (values[name][-1]["content"].strip() for name in ("chosen", "rejected"))
                found.add((chosen, rejected))
    return frozenset(found)


def read_probes(*, seed: int = 0) -> tuple[Pair, ...]:
    """The comparisons with an obvious right answer that ship with rlaif; half are turned."""
    return read_audit_pairs(PROBES, seed=seed).pairs


def audit_file(report: AuditReport) -> str:
    """Name of a report's files, without suffix: the same judge, constitution and data keep it, other data get
    a file of their own."""
    keys = "-".join(each.key.id[:8] for each in report.protocols)
    data = re.sub(r"[^A-Za-z0-9_-]+", "-", report.data.rpartition(".")[0] or report.data).strip("-")
    return f"audit-{keys}-{data or 'probes'}"


def find_audit(folders: Sequence[Path], key: AuditKey) -> FoundAudit | None:
    """The audit in one of `folders` that holds for `key`: one on people's pairs before one on probes alone,
    then the newest.

    `None` when there is none.

    Raises:
        RunError: A file named as an audit is not one.
    """
    files = [
        path
        for folder in folders
        if folder.is_dir()
        for path in (*folder.glob("audit-*.json"), *folder.glob(STAGE_AUDIT))
    ]
    newest = sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)
    found = [
        _found(part, path, key) for path in newest for part in _parts(path) if part.get("key") == plain(key)
    ]
    return next((each for each in found if each.pairs), found[0] if found else None)


def _found(part: Mapping[str, Any], path: Path, key: AuditKey) -> FoundAudit:
    said = part["judgement"]
    rows = (part.get("ensemble") or {}).get("rows", 0)
    return FoundAudit(
        path=path,
        line=f"audit ({key.protocol}): {said['words']}",
        grade=said["grade"],
        pairs=rows,
        accuracy=_accuracy(part.get("ensemble") or (part.get("probes") or {}).get("in_scope") or {}),
    )


def accuracy_of(part: ProtocolAudit) -> Accuracy | None:
    """What an audit says of a judge's accuracy: on people's pairs, else on the probes that share a tag with
    its principles."""
    found = part.ensemble or (part.probes.in_scope if part.probes else None)
    return (
        None if found is None or not found.rows else Accuracy(found.accuracy.value * found.rows, found.rows)
    )


def _accuracy(agreement: Mapping[str, Any]) -> Accuracy | None:
    """The same from a file."""
    share, rows = (agreement.get("accuracy") or {}).get("value"), agreement.get("rows")
    if isinstance(share, int | float) and isinstance(rows, int) and rows > 0:
        return Accuracy(share * rows, rows)
    return None


def _parts(path: Path) -> Sequence[Mapping[str, Any]]:
    remedy = "move it away, and run rlaif audit again"
    parts = read_object(path, error=RunError, what="the audit", remedy=remedy).get("protocols")
    if not isinstance(parts, list) or not all(_is_part(part) for part in parts):
        raise RunError("this file is not an audit", where=str(path), remedy=remedy)
    return parts


def _is_part(part: object) -> bool:
    if not isinstance(part, dict):
        return False
    said, ensemble = part.get("judgement"), part.get("ensemble") or {}
    rows = ensemble.get("rows", 0) if isinstance(ensemble, dict) else None
    return isinstance(said, dict) and {"words", "grade"} <= said.keys() and isinstance(rows, int)


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration as JSON.

    Raises:
        RunError: The file cannot be written.
    """
    save_text(path, json.dumps(plain(calibration), indent=2) + "\n")


def load_calibration(path: Path) -> Calibration:
    """Read a calibration.

    Raises:
        DataError: The file cannot be read, or is not a calibration.
    """
    remedy = "write one with rlaif audit --save-calibration"
    values = read_object(path, error=DataError, what="the calibration", remedy=remedy)
    return Calibration.from_dict(values, where=str(path))


def save_text(path: Path, text: str) -> None:
    """Write a file whole, and its folder where there is none.

    Raises:
        RunError: It cannot be written.
    """
    with run_errors("make the folder", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
