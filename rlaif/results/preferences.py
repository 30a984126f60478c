"""Preference rows read for training: checked, told apart by prompt, and encoded once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rlaif.audit.grade import GRADES
from rlaif.digest import digest, unit_from
from rlaif.errors import DataError, Problem
from rlaif.judging.aggregate import TIE
from rlaif.labels import MOST_LOG_ODDS, log_odds_of, sigmoid
from rlaif.text import count_of
from rlaif.types import Message

__all__ = ["PreferencePair", "Said", "pairs_from_rows", "split_by_prompt"]

SHOWN_PROBLEMS = 20
LEAST_WEIGHT, MOST_WEIGHT = 1e-6, 1e6
"""Bounds of a row's weight that is not 0."""

AGREES = 1e-3
"""`p_chosen` and `log_odds` of one row say the same up to this, in probability: files round."""


class Said(NamedTuple):
    """What a row tells of how its label came about; nothing, where people labelled.

    Attributes:
        tie: Whether the row's own label is within `TIE` of one half, however it is read.
        flips: Of the questions with a valid answer in `both_orders`, those whose answers disagree.
        grade: Of the judge, as the row has it in `audit`.
    """

    tie: bool = False
    verdicts: int = 0
    invalid: int = 0
    both_orders: int = 0
    flips: int = 0
    grade: str = ""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt, the completion that was chosen, the one that was not, and how sure the judge was.

    Attributes:
        log_odds: Of the chosen one being better, in nats; `MOST_LOG_ODDS`, certain, where the row does not
            say.
        weight: Relative weight in the loss.
        principles: Ids of the principles that were asked.
        source: Which file or stage it is from, for reports.
        said: How the label came about; no part of what is learned.
    """

    id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    log_odds: float = MOST_LOG_ODDS
    weight: float = 1.0
    principles: tuple[str, ...] = ()
    source: str = ""
    constitution: str = ""
    group: str = field(default="", compare=False)
    """Digest of the prompt: pairs of one prompt stay on one side of a split."""
    said: Said = field(default=Said(), compare=False, repr=False)

    @property
    def p_chosen(self) -> float:
        """P(the chosen one is better), 0 to 1."""
        return sigmoid(self.log_odds)

    def conversation(self, completion: str) -> tuple[Message, ...]:
        """The prompt with a completion."""
        return (*self.prompt, Message(role="assistant", content=completion))


def pairs_from_rows(
    rows: Iterable[Mapping[str, Any]],
    *,
    source: str = "",
    weight: float = 1.0,
    hard: bool = False,
    skipped: Callable[[Sequence[Problem]], None] | None = None,
    places: Sequence[str] = (),
) -> list[PreferencePair]:
    """Preference rows, in TRL's conversational format with our columns where they are there, as pairs.

    Args:
        source: Named in errors and reports.
        weight: Multiplies the `weight` of each row (1 where there is none).
        hard: Read every label as certain.
        places: Where each row stands; by its number when left out.
        skipped: Told of the rows that cannot be trained on, which are then left out; without it they are an
            error.

    Raises:
        DataError: Rows that cannot be trained on; the message lists them all.
    """
    pairs: list[PreferencePair] = []
    problems: list[Problem] = []
    for number, row in enumerate(rows, start=1):
        try:
            pairs.append(_pair(row, source, weight, hard))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            said = f"column {error} is missing" if isinstance(error, KeyError) else str(error)
            where = places[number - 1] if places else f"{source or 'preferences'}, row {number}"
            problems.append(Problem(said, where=where))
    if problems and pairs and skipped is not None:
        skipped(problems)
    elif problems:
        raise DataError(
            f"{len(problems)} of {len(pairs) + len(problems)} preferences cannot be trained on",
            problems=problems[:SHOWN_PROBLEMS],
            remedy="each needs prompt, two different completions chosen and rejected, and p_chosen, if "
            "given, between 0 and 1; "
            "or go on without them: --skip-bad-rows (skip_bad_rows: true)",
        )
    return pairs


def split_by_prompt(
    pairs: Sequence[PreferencePair], share: float, *, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Training pairs and held-out pairs: `share` of the prompts, at least one, drawn by hash, with all their
    pairs.

    Raises:
        DataError: Fewer than three prompts: two are needed to learn from, one to hold out.
    """
    groups = sorted({pair.group for pair in pairs}, key=lambda group: unit_from(seed, "held out", group))
    if len(groups) < 3:
        raise DataError(
            f"preferences on {count_of(len(groups), 'prompt')} are too few: two are needed to learn from, "
            "and one to hold out",
            remedy="label more prompts",
        )
    held = set(groups[: min(len(groups) - 2, max(1, round(share * len(groups))))])
    return [pair for pair in pairs if pair.group not in held], [pair for pair in pairs if pair.group in held]


def _pair(row: Mapping[str, Any], source: str, weight: float, hard: bool) -> PreferencePair:
    prompt = tuple(_message(turn) for turn in row["prompt"])
    chosen, rejected = (_completion(row[name], name) for name in ("chosen", "rejected"))
    if not prompt or prompt[-1].role != "user":
        raise ValueError("the prompt does not end with the user's turn")
    if chosen == rejected:
        raise ValueError("chosen and rejected are the same text, so there is nothing to learn")
    own = _number(row.get("weight"), 1.0, "weight")
    if own and not LEAST_WEIGHT <= own <= MOST_WEIGHT:
        raise ValueError(f"weight is {own:g}, neither 0 nor from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}")
    asked = dict.fromkeys(
        str(verdict["principle"]) for verdict in row.get("verdicts") or () if verdict.get("valid", True)
    )
    return PreferencePair(
        id=str(row.get("id", "")),
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        log_odds=MOST_LOG_ODDS if hard else _label(row),
        weight=weight * own,
        principles=tuple(asked),
        source=source,
        constitution=str(row.get("constitution_digest") or ""),
        group=digest([[message.role, message.content] for message in prompt]),
        said=_said(row),
    )


def _said(row: Mapping[str, Any]) -> Said:
    """What the row's verdicts tell, and whether its label is a tie."""
    log_odds, p_chosen = row.get("log_odds"), row.get("p_chosen")
    if isinstance(log_odds, int | float):
        p_chosen = sigmoid(log_odds)
    verdicts = row.get("verdicts") or ()
    orders: dict[tuple[str, str], dict[str, float]] = {}
    invalid = 0
    for verdict in verdicts:
        p = verdict.get("p_chosen")
        if not verdict.get("valid", True):
            invalid += 1
        elif isinstance(p, int | float):
            question = (str(verdict.get("judge") or ""), str(verdict["principle"]))
            orders.setdefault(question, {})[str(verdict.get("order"))] = p - 0.5
    both = [
        (asked["chosen_first"], asked["rejected_first"])
        for asked in orders.values()
        if asked.keys() >= {"chosen_first", "rejected_first"}
    ]
    return Said(
        tie=isinstance(p_chosen, int | float) and abs(p_chosen - 0.5) < TIE,
        verdicts=len(verdicts),
        invalid=invalid,
        both_orders=len(both),
        flips=sum(one * other < 0 for one, other in both),
        grade=grade if (grade := row.get("audit")) in GRADES else "",
    )


def _label(row: Mapping[str, Any]) -> float:
    """The row's label in log-odds: exact from `log_odds`, else from `p_chosen`, else certain."""
    p = None if row.get("p_chosen") is None else _number(row["p_chosen"], 1.0, "p_chosen")
    if p is not None and not 0 <= p <= 1:
        raise ValueError(f"p_chosen is {p}, not a probability")
    if row.get("log_odds") is None:
        return MOST_LOG_ODDS if p is None else log_odds_of(p)
    log_odds = _number(row["log_odds"], 0.0, "log_odds")
    if p is not None and abs(sigmoid(log_odds) - p) > AGREES:
        raise ValueError(
            f"p_chosen is {p:g}, and log_odds is {log_odds:g}, which says {sigmoid(log_odds):.3f}: keep the "
            "one that is meant"
        )
    return max(-MOST_LOG_ODDS, min(MOST_LOG_ODDS, log_odds))


def _message(turn: Mapping[str, Any]) -> Message:
    role, content = turn["role"], turn["content"]
    if role not in ("system", "user", "assistant") or not isinstance(content, str):
        raise ValueError(f"not a chat message: {str(turn)[:80]}")
    return Message(role=role, content=content)


def _completion(turns: Any, name: str) -> str:
    """The text of TRL's one-message list."""
    if not isinstance(turns, Sequence) or isinstance(turns, str) or len(turns) != 1:
        raise ValueError(f"{name} is not a list of one assistant message")
    message = _message(turns[0])
    if message.role != "assistant":
        raise ValueError(f"{name} is not the assistant's message")
    return message.content


def _number(value: Any, default: float, name: str) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}, not a finite number")
    return float(value)
