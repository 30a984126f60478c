"""What a file of chats holds, in figures: what users ask for, what they think of the answers, and when."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rlaif import stats
from rlaif.chats.records import Exchange
from rlaif.chats.store import ChatsFile
from rlaif.chats.use_cases import INSTRUCT_GPT, language_of, use_case_of
from rlaif.text import count_of, one_line

__all__ = ["ChatStats", "PolicyVotes", "chat_stats"]

LEAST_USERS = 10
"""Below so many users, an interval counts votes as independent instead of drawing users whole."""
DAYS = 14
"""Latest days that are shown."""


@dataclass
class PolicyVotes:
    """What people said about the answers of one policy.

    Attributes:
        up: A thumb of each voted answer, 1 for up, with its user.
        won: For each comparison with another policy, 1 won, 0 lost, 0.5 a tie, with its user.
    """

    exchanges: int = 0
    answers: int = 0
    blocked: int = 0
    flags: int = 0
    up: list[tuple[float, str]] = field(default_factory=list)
    won: list[tuple[float, str]] = field(default_factory=list)


class ChatStats(NamedTuple):
    """Counts over a whole file.

    Attributes:
        use_cases: Exchanges by use case.
        policies: By model name and policy digest.
        users: Users by day, those who named themselves.
        anonymous: Exchanges without a user, by day.
        flags: What was flagged, the latest first.
    """

    exchanges: int
    use_cases: Mapping[str, int]
    languages: Mapping[str, int]
    policies: Mapping[tuple[str, str], PolicyVotes]
    users: Mapping[str, int]
    anonymous: Mapping[str, int]
    flags: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        total = max(1, self.exchanges)
        return {
            "exchanges": self.exchanges,
            "use_cases": {
                name: {"count": count, "share": count / total, "instruct_gpt": INSTRUCT_GPT[name]}
                for name, count in self.use_cases.items()
            },
            "languages": dict(self.languages),
            "policies": [
                {
                    "model": model,
                    "policy": policy,
                    **{name: getattr(votes, name) for name in ("exchanges", "answers", "blocked", "flags")},
                    "votes": _as_json(votes.up),
                    "comparisons": _as_json(votes.won),
                }
                for (model, policy), votes in self.policies.items()
            ],
            "users_by_day": dict(self.users),
            "anonymous_by_day": dict(self.anonymous),
            "flags": list(self.flags),
        }

    @property
    def lines(self) -> list[str]:
        """All of it, to be read."""
        return [
            count_of(self.exchanges, "exchange"),
            *self._use_case_lines(),
            f"languages: {_counted(self.languages)}",
            *(line for key, votes in self.policies.items() for line in _policy_lines(key, votes)),
            *self._day_lines(),
            *(f"flagged: {one_line(text)}" for text in self.flags[:5]),
        ]

    def _use_case_lines(self) -> list[str]:
        lines = [
            "use cases by plain rules (English, Chinese), beside InstructGPT's (Ouyang et al. 2022, Table 1):"
        ]
        for name, theirs in INSTRUCT_GPT.items():
            count = self.use_cases.get(name, 0)
            share = _share(stats.wilson(count, self.exchanges)) if self.exchanges else "–"
            lines.append(f"  {name:14} {count:6,}  {share:23} {theirs:.1%}")
        return lines

    def _day_lines(self) -> list[str]:
        days = sorted({*self.users, *self.anonymous})
        shown = days[-DAYS:]
        title = f"users per day ({'latest ' if len(days) > DAYS else ''}{count_of(len(shown), 'day')}):"
        rows = [
            f"  {day}  {count_of(self.users.get(day, 0), 'user')}, "
            f"{count_of(self.anonymous.get(day, 0), 'exchange')} without one"
            for day in shown
        ]
        return [title, *rows] if days else []


def chat_stats(file: ChatsFile) -> ChatStats:
    """Count what a file holds."""
    with file.reading():
        exchanges = {each.id: each for each in file.exchanges()}
        votes, preferences, flags = file.votes(), file.preferences(), file.flags()
    policies: dict[tuple[str, str], PolicyVotes] = defaultdict(PolicyVotes)
    for exchange in exchanges.values():
        mine = policies[_policy(exchange)]
        mine.exchanges += 1
        mine.answers += len(exchange.answers)
        mine.blocked += sum(answer.blocked for answer in exchange.answers)
    for vote in {(each.exchange, each.choice): each for each in votes}.values():
        if vote.vote is not None:
            exchange = exchanges[vote.exchange]
            policies[_policy(exchange)].up.append((float(vote.vote == "up"), _user(exchange)))
    for each in {frozenset((each.chosen, each.rejected)): each for each in preferences}.values():
        chosen, rejected = exchanges[each.chosen], exchanges[each.rejected]
        if _policy(chosen) != _policy(rejected):
            half = 0.5 if each.tie else 0.0
            policies[_policy(chosen)].won.append((1.0 - half, _user(chosen)))
            policies[_policy(rejected)].won.append((half, _user(rejected)))
    for flag in flags:
        policies[_policy(exchanges[flag.exchange])].flags += 1
    users, anonymous = _by_day(exchanges.values())
    return ChatStats(
        exchanges=len(exchanges),
        use_cases=Counter(use_case_of(each.messages) for each in exchanges.values()),
        languages=Counter(language_of(_asked(each)) for each in exchanges.values()),
        policies=dict(sorted(policies.items())),
        users=users,
        anonymous=anonymous,
        flags=[flag.text for flag in reversed(flags)],
    )


def share_of(votes: Sequence[tuple[float, str]]) -> stats.Estimate:
    """The mean with its 95 % interval: a bootstrap that draws users whole, or Wilson's where users are
    too few or all of one mind."""
    values, users = [value for value, _ in votes], [user for _, user in votes]
    if len(set(users)) < LEAST_USERS or len(set(values)) == 1:
        return stats.wilson(sum(values), len(values))
    return stats.bootstrap_mean(values, users)


def _policy_lines(key: tuple[str, str], votes: PolicyVotes) -> list[str]:
    model, policy = key
    lines = [
        f"{one_line(model)} ({policy[:8] or 'unknown'}): {count_of(votes.exchanges, 'exchange')}, "
        f"{votes.blocked:,} of {count_of(votes.answers, 'answer')} blocked, {count_of(votes.flags, 'flag')}"
    ]
    if votes.up:
        up = sum(value for value, _ in votes.up)
        lines.append(f"  thumbs up: {up:.0f} of {len(votes.up):,}, {_share(share_of(votes.up))}")
    if votes.won:
        won = sum(value for value, _ in votes.won)
        lines.append(
            f"  preferred to other policies: {won:g} of {len(votes.won):,}, {_share(share_of(votes.won))}"
        )
    return lines


def _by_day(exchanges: Iterable[Exchange]) -> tuple[dict[str, int], dict[str, int]]:
    """Users by day, and exchanges without a user."""
    users: dict[str, set[str]] = defaultdict(set)
    anonymous: Counter[str] = Counter()
    for exchange in exchanges:
        day = exchange.time.date().isoformat()
        if exchange.user is None:
            anonymous[day] += 1
        else:
            users[day].add(exchange.user)
    return {day: len(found) for day, found in users.items()}, dict(anonymous)


def _policy(exchange: Exchange) -> tuple[str, str]:
    return exchange.model, exchange.policy


def _user(exchange: Exchange) -> str:
    """The user; an exchange that names none stands for one."""
    return exchange.user or f"of {exchange.id}"


def _asked(exchange: Exchange) -> str:
    return next((each.content for each in reversed(exchange.messages) if each.role == "user"), "")


def _as_json(votes: Sequence[tuple[float, str]]) -> dict[str, Any] | None:
    if not votes:
        return None
    share = share_of(votes)
    return {"count": len(votes), "share": share.value, "low": share.low, "high": share.high}


def _share(value: stats.Estimate) -> str:
    return f"{value.value:.1%} [{value.low:.1%}, {value.high:.1%}]"


def _counted(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{name} {count:,}" for name, count in ordered) or "none"
