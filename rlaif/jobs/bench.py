"""The judges of a label stage: one, or a jury; what a stage asks of them as of one."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from rlaif.audit.grade import NOT_AUDITED
from rlaif.config import LabelConfig
from rlaif.digest import digest
from rlaif.errors import ConfigError, JudgingError
from rlaif.io.writers import write_rows
from rlaif.jobs.context import RunContext
from rlaif.jobs.planning import StagePlan
from rlaif.jobs.seat import Seat
from rlaif.jobs.trust import Standing, audit_command
from rlaif.judging.judge import Judge, Judged
from rlaif.judging.jury import Juror, Jury, JuryStatistics, audit_weight, contention
from rlaif.judging.protocols import Need
from rlaif.models.memory import StageWork
from rlaif.types import Comparison

__all__ = ["CONTESTED", "Bench", "Contested", "Panel", "why_unlabelled"]

CONTESTED = "contested.jsonl"
"""Comparisons on which the judges of a jury disagree."""
WORST_FIRST = ("do not use", NOT_AUDITED, "use with care", "trust")


@dataclass(frozen=True)
class Panel:
    """The judges opened, for one execution of the stage.

    Attributes:
        statistics: Of a jury.
    """

    judge: Judge | Jury
    calibrate: Callable[[float], float]
    statistics: JuryStatistics | None

    def count(self, judged: Judged) -> bool:
        """Count a comparison; whether judges of a jury disagree on it."""
        return self.statistics is not None and self.statistics.add(judged)

    def contention(self, judged: Judged) -> float:
        """How much a person's look at it would tell; see `rlaif.judging.jury.contention`."""
        return contention(judged.by_judge, self.statistics.weights if self.statistics else {})

    def counts(self) -> dict[str, int]:
        """For the manifest."""
        found = self.statistics
        if found is None:
            return {}
        return {"disagreements": found.disagreed, "recused": sum(found.recused.values())}


class Bench:
    """The judges of a label stage.

    Raises:
        RlaifError: One of them cannot be asked as the settings say.
    """

    def __init__(self, config: LabelConfig, context: RunContext) -> None:
        self.config, self.context = config, context
        self.seats = [Seat(each, config, context) for each in config.seats(context.recipe.model)]
        self._standings: dict[str, Standing] = {}
        known: dict[tuple[str, str], str] = {}
        for seat in self.seats:
            if (other := known.setdefault(seat.who, seat.name)) != seat.name:
                raise ConfigError(
                    f"{other!r} and {seat.name!r} are one judge, asked by the same protocol: it would be "
                    "heard twice",
                    where=config.name,
                    remedy="name it once, with the weight that it should have",
                )

    @property
    def several(self) -> bool:
        """Whether it is a jury."""
        return len(self.seats) > 1

    @property
    def needs(self) -> list[Need]:
        """What the judges read of a prompt's own."""
        return list(dict.fromkeys(seat.protocol.needs for seat in self.seats if seat.protocol.needs))

    @property
    def label(self) -> str:
        """Who judges, as `name@revision`; of several, one after the other."""
        return ", ".join(dict.fromkeys(seat.card.label for seat in self.seats))

    @property
    def protocols(self) -> str:
        """How they are asked."""
        return ", ".join(dict.fromkeys(seat.protocol.name for seat in self.seats))

    @property
    def templates(self) -> str:
        """Digest of the judges' templates."""
        digests = [seat.templates for seat in self.seats]
        return digests[0] if len(set(digests)) == 1 else digest(digests)

    def key_parts(self) -> dict[str, str]:
        """What the labels depend on beside the completions and the constitution."""
        audits = [seat.trust.key() for seat in self.seats]
        cards = [[seat.card.name, seat.card.identity()] for seat in self.seats]
        return {
            "audit": digest(audits) if self.several else audits[0],
            "calibration": self.seats[0].calibration[1],
            "judge": digest([seat.key() for seat in self.seats]) if self.several else digest(cards[0]),
            "protocol": ", ".join(seat.protocol.name for seat in self.seats)
            if self.several
            else self.protocols,
            "templates": self.templates,
        }

    def standing(self) -> Standing:
        """What is known of the judges: of several the worst grade, each with its line.

        Raises:
            JudgingError: See `Trust.standing`.
        """
        self._standings = {seat.name: seat.trust.standing() for seat in self.seats}
        found = list(self._standings.values())
        if not self.several:
            return found[0]
        worst = min(found, key=lambda each: WORST_FIRST.index(each.grade))
        said: dict[str, list[str]] = {}
        for name, each in self._standings.items():
            said.setdefault(each.line, []).append(name)
        lines = "; ".join(f"{' and '.join(names)}: {line}" for line, names in said.items())
        return Standing(grade=worst.grade, line=f"jury: {lines}", gaps=sum(each.gaps for each in found))

    def panel(self) -> Panel:
        """Open the judges; `standing` was asked before.

        Raises:
            JudgingError: Weights are to come from audits, and there is none of a judge, or no judge is better
                than a coin.
        """
        if not self.several:
            (seat,) = self.seats
            return Panel(seat.open(), seat.calibration[0], None)
        weights = self._weights()
        told = ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items())
        self.context.progress.note(f"{self.config.name}: a jury of {len(self.seats)}, by weight: {told}")
        jurors = [
            Juror(seat.name, seat.open(), weights[seat.name], may_judge=seat.may_judge) for seat in self.seats
        ]
        return Panel(
            judge=Jury(jurors, quorum=self.config.quorum),
            calibrate=lambda logit: logit,
            statistics=JuryStatistics(weights),
        )

    def _weights(self) -> dict[str, float]:
        if self.config.weights == "given":
            return {seat.name: seat.weight for seat in self.seats}
        found = {}
        for seat in self.seats:
            accuracy = self._standings[seat.name].accuracy
            if accuracy is None:
                raise JudgingError(
                    f"weights are to come from audits, and none tells the accuracy of {seat.name}",
                    where=self.config.name,
                    remedy=audit_command(seat.model, self.context, seat.protocol.name),
                )
            found[seat.name] = audit_weight(accuracy.correct, accuracy.rows) * seat.weight
        if not any(found.values()):
            raise JudgingError(
                "no judge of the jury is better than a coin, by its audit",
                where=self.config.name,
                remedy="ask others, or set the weights yourself (weights: given)",
            )
        return found

    @property
    def writes(self) -> bool:
        """Whether a judge writes something before its labels are read."""
        return any(seat.protocol.reasons or seat.protocol.commits for seat in self.seats)

    def writing(self, comparisons: Sequence[Comparison], rows: int) -> StageWork:
        """The largest sampling that a judge does before its labels are read."""
        each = [seat.writing(comparisons, rows) for seat in self.seats]
        return max(each, key=lambda work: work.sampled_rows * work.row_tokens)

    def plan(self, comparisons: Sequence[Any], counts: Mapping[str, int]) -> StagePlan:
        """What would be asked, of all judges together."""
        parts = [seat.plan(comparisons) for seat in self.seats]
        if not self.several:
            return replace(parts[0], counts={**counts, **parts[0].counts})
        known = [part.seconds for part in parts if part.seconds is not None]
        names = dict.fromkeys(name for part in parts for name in part.counts)
        shared = {"principles": max(part.counts["principles"] for part in parts)}
        summed = {name: sum(part.counts.get(name, 0) for part in parts) for name in names}
        return replace(
            parts[0],
            model=", ".join(part.model for part in parts),
            read=sum(part.read for part in parts),
            write=sum(part.write for part in parts),
            seconds=math.fsum(known) if known else None,
            counts={**counts, "judges": len(parts), **summed, **shared},
            example={name: text for part in parts for name, text in part.example.items()},
            parts=tuple(parts),
        )


def why_unlabelled(judged: Judged) -> list[str]:
    """Reasons of a comparison without a label, sorted: those of its verdicts, and of a jury that was too
    small."""
    reasons = {verdict.reason for verdict in judged.verdicts if verdict.reason}
    return sorted(reasons or {"no_judge" if not judged.verdicts else "too_few_judges"})


class Contested:
    """Collects the preferences on which judges disagree, and writes them by value, the highest first.

    Rows wait in a temporary file, so that memory holds a few numbers for each.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / CONTESTED
        self._waiting = tempfile.TemporaryFile("w+b", dir=folder)  # noqa: SIM115  # closed in __exit__
        self._places: list[tuple[float, int, int]] = []

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self._places)

    def add(self, row: Mapping[str, Any], value: float) -> None:
        """Keep a preference row with its value."""
        data = json.dumps({**row, "value": round(value, 6)}, ensure_ascii=False).encode()
        start = self._waiting.tell()
        self._waiting.write(data)
        self._places.append((value, start, len(data)))

    def __enter__(self) -> Contested:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                write_rows(self._path, self._sorted(), "jsonl")
        finally:
            self._waiting.close()

    def _sorted(self) -> Any:
        for _, start, length in sorted(self._places, key=lambda place: (-place[0], place[1])):
            self._waiting.seek(start)
            yield json.loads(self._waiting.read(length))
