"""Chats as data to train on: prompts, preferences and thumbs, in the forms that the other commands read.

    1. Everything is put in the order of time, and the latest vote of each choice and pair is taken.
    2. A share of users is held out by a hash; who named no user is divided by prompt.
    3. Prompts that are nearly an earlier one, of either side, are left out.
    4. A vote is on the side of its users, and left out where its prompt is on the other side.
    5. Personal data are masked, and each row is written into one file, with its time and its source.

Every decision rests on what came before in time alone, so that a later export of a file that has grown holds
the same rows and more.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rlaif.chats.masks import mask
from rlaif.chats.records import Answer, Exchange, Preference, Vote, written_time
from rlaif.chats.store import ChatsFile
from rlaif.digest import digest, unit_from
from rlaif.errors import ConfigError
from rlaif.io.writers import write_rows
from rlaif.near_duplicates import NearDuplicates
from rlaif.runs.disk import run_errors
from rlaif.types import Message

__all__ = ["Export", "ExportRange", "export_chats", "gather"]

ALIKE = 0.8
"""Jaccard similarity of the last questions of two prompts from which the later one is left out."""
FILES = ("prompts", "preferences", "thumbs")
Side = Literal["train", "heldout"]
HELD_OUT: Side = "heldout"
LEFT_OUT = "left_out"
REASONS = {
    "near_duplicate": "nearly an earlier prompt",
    "no_question": "without a question at the end",
    "blocked": "about an answer that was blocked",
    "equal": "of equal answers",
    "compared": "of answers that were compared directly too",
    "other_side": "about a prompt of the other side",
}
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ExportRange:
    """What to export.

    Attributes:
        since: First day, UTC, of exchanges and of votes.
        until: Last day.
        holdout: Share of users that are held out.
    """

    since: date | None = None
    until: date | None = None
    holdout: float = 0.0

    def __post_init__(self) -> None:
        if self.since is not None and self.until is not None and self.until < self.since:
            raise ConfigError("the last day lies before the first", where="--since, --until")
        if not 0 <= self.holdout < 1:
            raise ConfigError(f"a share of {self.holdout:g} cannot be held out", where="--holdout")

    def holds(self, moment: datetime) -> bool:
        """Whether a moment lies in the range."""
        low = datetime.min.replace(tzinfo=UTC) if self.since is None else _midnight(self.since)
        high = self.until and _midnight(self.until + timedelta(days=1))
        return low <= moment and (high is None or moment < high)


@dataclass
class Export:
    """Rows by file, and what became of everything.

    Attributes:
        rows: Of each file, by its name without an ending.
        fates: Of each kind (`prompts`, `preferences`, `thumbs`), how many rows are in the range, were
            written, held out, or left out for a reason; they add up.
        masked: Pieces of personal data that were masked, by kind.
        replaced: Votes and preferences that a later one replaced or took back.
        outside: What lies outside the range, by kind.
        sides: The side of each exchange's prompt.
    """

    rows: dict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))
    fates: dict[str, Counter[str]] = field(default_factory=lambda: {kind: Counter() for kind in FILES})
    masked: Counter[str] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)
    outside: Counter[str] = field(default_factory=Counter)
    sides: Mapping[str, Side] = field(default_factory=dict)

    def put(self, kind: str, row: Row, side: Side, reason: str = "") -> None:
        """Put a row into its one file."""
        if reason:
            self.rows[LEFT_OUT].append({"kind": kind, "reason": reason, **row})
        else:
            self.rows[kind if side == "train" else f"{kind}.{HELD_OUT}"].append(row)
        self.fates[kind][reason or side] += 1

    def put_voted(self, kind: str, row: Row, voted: Sequence[_Voted], side: Side, reason: str = "") -> None:
        """As `put`, of answers to one prompt that people voted on."""
        exchange = voted[0].exchange
        if not _asks(exchange):
            reason = "no_question"
        elif any(each.answer.blocked for each in voted):
            reason = "blocked"
        elif len(voted) > 1 and voted[0].answer.text == voted[1].answer.text:
            reason = "equal"
        elif self.sides[exchange.id] != side:
            reason = "other_side"
        self.put(kind, row, side, reason)

    def hidden(self, text: str) -> str:
        """The text with masks, which are counted."""
        found = mask(text)
        self.masked.update(found.counts)
        return found.text

    @property
    def lines(self) -> list[str]:
        """All counts, in words."""
        said = []
        for kind in FILES:
            fate = self.fates[kind]
            reasons = [f"{fate[reason]:,} {words}" for reason, words in REASONS.items() if fate[reason]]
            left = sum(fate[reason] for reason in REASONS)
            why = f" ({', '.join(reasons)})" if reasons else ""
            said.append(
                f"{kind}: {fate.total():,} in the range: {fate['train']:,} to train on, "
                f"{fate[HELD_OUT]:,} held out, {left:,} left out{why}"
            )
        for what, counts in (("outside the range", self.outside), ("replaced or taken back", self.replaced)):
            if counts:
                said.append(f"{what}: {', '.join(f'{count:,} {name}' for name, count in counts.items())}")
        masked = ", ".join(f"{self.masked[kind]:,} {kind}" for kind in sorted(self.masked))
        return [*said, f"masked: {masked or 'nothing'}"]


class _Voted(NamedTuple):
    """An answer with the vote that counts."""

    exchange: Exchange
    answer: Answer
    up: bool
    time: datetime


def export_chats(file: ChatsFile, out: Path, wanted: ExportRange) -> Export:
    """Write the chats of a file into a folder; files of an earlier export are replaced.

    Raises:
        RunError: The folder cannot be written to.
    """
    found = gather(file, wanted)
    with run_errors("make the folder of the export", out):
        out.mkdir(parents=True, exist_ok=True)
    for name in (*FILES, *(f"{kind}.{HELD_OUT}" for kind in FILES), LEFT_OUT):
        path = out / f"{name}.jsonl"
        rows = found.rows.get(name, [])
        if rows or name in FILES:
            write_rows(path, rows, "jsonl")
        else:
            path.unlink(missing_ok=True)
    return found


def gather(file: ChatsFile, wanted: ExportRange) -> Export:
    """What `export_chats` writes."""
    export = Export()
    with file.reading():
        exchanges = {each.id: each for each in file.exchanges()}
        votes, preferences = file.votes(), file.preferences()
    export.sides, repeated = _sides(exchanges.values(), wanted.holdout)
    for exchange in exchanges.values():
        if _in_range(exchange.time, "prompts", wanted, export):
            reason = "near_duplicate" if exchange.id in repeated else ""
            reason = reason if _asks(exchange) else "no_question"
            export.put("prompts", _prompt_row(exchange, export), _side(exchange, wanted.holdout), reason)
    voted = _counted_votes(votes, exchanges, export)
    for each in voted:
        _put_thumb(each, wanted, export)
    compared = _counted_preferences(preferences, export)
    directly = {frozenset((each.chosen, each.rejected)) for each in compared}
    for pair in _paired(voted):
        known = not any(each.answer.choice for each in pair) and _ids(pair) in directly
        _put_pair(pair, "thumbs", 1.0, wanted, export, reason="compared" if known else "")
    for preference in compared:
        both = [exchanges[id] for id in (preference.chosen, preference.rejected)]
        chosen, rejected = (_Voted(each, each.answers[0], True, preference.time) for each in both)
        _put_pair((chosen, rejected), "a/b", 0.5 if preference.tie else 1.0, wanted, export)
    return export


# Sides


def _side(exchange: Exchange, share: float) -> Side:
    """The side of an exchange's user, or of its prompt where nobody is named."""
    unit = exchange.user or digest([message.as_dict() for message in exchange.messages])
    return "heldout" if unit_from("chats", unit) < share else "train"


def _sides(exchanges: Iterable[Exchange], share: float) -> tuple[dict[str, Side], set[str]]:
    """The side of each exchange's prompt, which is that of the first prompt nearly like it; and the exchanges
    whose prompt is nearly an earlier one."""
    known: dict[str, NearDuplicates] = {}
    sides: dict[str, Side] = {}
    repeated = set()
    for exchange in exchanges:
        if not _asks(exchange):
            sides[exchange.id] = _side(exchange, share)
            continue
        alike = known.setdefault(_history(exchange), NearDuplicates(ALIKE))
        question = exchange.messages[-1].content
        first = alike.find(question)
        if first is None:
            alike.add(exchange.id, question)
            sides[exchange.id] = _side(exchange, share)
        else:
            repeated.add(exchange.id)
            sides[exchange.id] = sides[str(first)]
    return sides, repeated


def _asks(exchange: Exchange) -> bool:
    last = exchange.messages[-1]
    return last.role == "user" and bool(last.content.strip())


def _history(exchange: Exchange) -> str:
    """What stands before the last question: only questions after the same turns are compared."""
    return digest([message.as_dict() for message in exchange.messages[:-1]])


# Votes


def _counted_votes(votes: Sequence[Vote], exchanges: Mapping[str, Exchange], export: Export) -> list[_Voted]:
    """The last vote of every choice, in the order of time."""
    last = {(vote.exchange, vote.choice): vote for vote in votes}
    found = []
    for (id, choice), vote in last.items():
        answer = exchanges[id].answer(choice)
        if vote.vote is not None and answer is not None:
            found.append(_Voted(exchanges[id], answer, vote.vote == "up", vote.time))
    if gone := len(votes) - len(found):
        export.replaced["votes"] += gone
    return sorted(found, key=lambda each: (each.time, each.exchange.id, each.answer.choice))


def _counted_preferences(preferences: Sequence[Preference], export: Export) -> list[Preference]:
    """The last preference of every pair."""
    last = {frozenset((each.chosen, each.rejected)): each for each in preferences}
    if gone := len(preferences) - len(last):
        export.replaced["preferences"] += gone
    return sorted(last.values(), key=lambda each: (each.time, each.chosen))


def _paired(voted: Sequence[_Voted]) -> list[tuple[_Voted, _Voted]]:
    """Each thumb with one of the other kind for the same prompt, the one up first.

    A thumb is paired when it comes: with the first of the other kind that has no pair yet, else with the one
    that has the fewest. One that nothing ever pairs with is in no pair.
    """
    asked: dict[str, dict[bool, list[_Voted]]] = defaultdict(lambda: {True: [], False: []})
    uses: Counter[tuple[str, int]] = Counter()
    pairs = []
    for each in voted:
        key = digest([message.as_dict() for message in each.exchange.messages])
        asked[key][each.up].append(each)
        if others := asked[key][not each.up]:
            other = min(others, key=lambda one: uses[_key(one)])
            uses.update((_key(each), _key(other)))
            pairs.append((each, other) if each.up else (other, each))
    return pairs


def _ids(pair: Sequence[_Voted]) -> frozenset[str]:
    return frozenset(each.exchange.id for each in pair)


def _key(voted: _Voted) -> tuple[str, int]:
    return voted.exchange.id, voted.answer.choice


# Rows


def _put_thumb(voted: _Voted, wanted: ExportRange, export: Export) -> None:
    if not _in_range(voted.time, "thumbs", wanted, export):
        return
    row = {
        "id": f"{voted.exchange.id}:{voted.answer.choice}",
        "prompt": _messages(voted.exchange.messages, export),
        "completion": _messages([Message("assistant", voted.answer.text)], export),
        "label": voted.up,
        **_from(voted.exchange, "thumb", voted.time),
    }
    export.put_voted("thumbs", row, [voted], _side(voted.exchange, wanted.holdout))


def _put_pair(
    pair: tuple[_Voted, _Voted],
    source: str,
    p_chosen: float,
    wanted: ExportRange,
    export: Export,
    *,
    reason: str = "",
) -> None:
    """A preference: held out if one of its two users is."""
    when = max(each.time for each in pair)
    if not _in_range(when, "preferences", wanted, export):
        return
    held_out = any(_side(each.exchange, wanted.holdout) == HELD_OUT for each in pair)
    chosen, rejected = ([Message("assistant", each.answer.text)] for each in pair)
    row = {
        "id": "+".join(f"{each.exchange.id}:{each.answer.choice}" for each in pair),
        "prompt": _messages(pair[0].exchange.messages, export),
        "chosen": _messages(chosen, export),
        "rejected": _messages(rejected, export),
        "p_chosen": p_chosen,
        **_from(pair[0].exchange, source, when),
    }
    export.put_voted("preferences", row, pair, HELD_OUT if held_out else "train", reason)


def _prompt_row(exchange: Exchange, export: Export) -> Row:
    prompt = _messages(exchange.messages, export)
    return {"id": exchange.id, "prompt": prompt, **_from(exchange, "chat", exchange.time)}


def _messages(messages: Iterable[Message], export: Export) -> list[dict[str, str]]:
    return [Message(each.role, export.hidden(each.content)).as_dict() for each in messages]


def _from(exchange: Exchange, source: str, when: datetime) -> Row:
    return {"time": written_time(when), "source": source, "model": exchange.model, "policy": exchange.policy}


def _in_range(when: datetime, what: str, wanted: ExportRange, export: Export) -> bool:
    if wanted.holds(when):
        return True
    export.outside[what] += 1
    return False


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
