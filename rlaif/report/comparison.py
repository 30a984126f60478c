"""`evaluation.md` and `comparison.md`, and the same tables as rows for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from rlaif.audit.grade import share
from rlaif.report.markdown import code, sentence, table
from rlaif.report.shown import Table
from rlaif.results.comparison import PolicyComparison, PolicyDifference, interval
from rlaif.results.costs import TrainingCost
from rlaif.results.evaluation import OWN_MEASURES, REWARD, RUBRIC, WIN, Evaluation, PolicyResult, WinRate
from rlaif.results.monitor import MonitoredTraining, MonitorReading, best_reading

__all__ = [
    "POLICIES",
    "comparison_markdown",
    "comparison_tables",
    "evaluation_markdown",
    "evaluation_table",
    "main_rows",
]

NONE = "–"
POLICIES = "Policies"
"""Title of the table of the policies' own figures."""
LABELS: Mapping[str, str] = {
    REWARD: "reward (proxy)",
    RUBRIC: "rubric score",
    "kl": "KL to the reference (nats)",
    "tokens": "length (tokens)",
    "words": "length (words)",
    "ended": "ended its turn",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "repetition": "repeated 4-grams",
    "refusal": "refusals",
    "boilerplate": "boilerplate",
}
SHARES = frozenset({"ended", "repetition", "refusal", "boilerplate"})
"""Measures shown in per cent."""
FLIPS = "flips between the two orders"
COSTS: Mapping[str, Callable[[PolicyResult], str]] = {
    "sampled tokens": lambda each: f"{each.cost.tokens:,}",
    "sampling FLOPs": lambda each: f"{each.cost.flops:.3g}",
    "sampling time (s)": lambda each: f"{each.cost.seconds:z.1f}",
    "peak memory (GB)": lambda each: _gigabytes(each.cost.peak_bytes),
}
"""What evaluating a policy took: rows at the end of its table."""
DETAILS = frozenset(
    LABELS[name] for name in ("words", "ended", "distinct_1", "repetition", "refusal", "boilerplate")
) | {FLIPS, *COSTS}
"""Rows of the table of policies that `main_rows` leaves out."""

MOST_READINGS = 8
"""Rows of a monitor's table at most: first, last and best are among them."""


def evaluation_markdown(found: Evaluation) -> str:
    """The figures of every policy."""
    parts = [
        f"# Evaluation on {found.prompts} held-out prompts\n",
        _about(found),
        _markdown(evaluation_table(found)),
    ]
    return "\n".join([*parts, *(f"- {sentence(note)}" for note in found.notes)]) + "\n"


def comparison_markdown(found: PolicyComparison) -> str:
    """The verdict in words, then the figures."""
    parts = [f"# Comparison of {len(found.policies)} policies on {found.prompts} held-out prompts\n"]
    parts += [f"- {sentence(line)}" for line in found.verdict]
    parts += [f"\n## {shown.title}\n\n{_markdown(shown)}" for shown in comparison_tables(found)]
    return "\n".join(parts) + "\nIntervals are 95 % bootstrap intervals over prompts.\n"


def evaluation_table(found: Evaluation) -> Table:
    """A column a policy, a row a measure: the mean and its interval."""
    return _policies(found.policies, found.gold)


def comparison_tables(found: PolicyComparison) -> tuple[Table, ...]:
    """The policies, their differences, the best of K, what monitors read and what training took. Tables
    without rows are left out."""
    tables = (
        _policies(found.policies, found.gold),
        _differences(found),
        _people(found),
        _best_of_k(found),
        *(_monitored(name, each) for name, each in found.monitors.items()),
        _training(found),
    )
    return tuple(each for each in tables if each.rows)


def main_rows(policies: Table) -> Table:
    """The table of policies as `compare` prints it: scores, win rate, KL, length, one measure of diversity.

    `rlaif evaluate` prints all of it, and `comparison.md` holds all of it.
    """
    return policies._replace(rows=tuple(row for row in policies.rows if row[0] not in DETAILS))


def _policies(policies: Sequence[PolicyResult], gold: str | None) -> Table:
    named = list(dict.fromkeys(name for each in policies for name in each.estimates))
    own = [name for name in OWN_MEASURES if name in named and name not in (REWARD, WIN)]
    scores = [
        *([gold] if gold else []),
        *(name for name in named if name not in OWN_MEASURES and name != gold),
    ]
    scores += [REWARD] if REWARD in named else []
    rows = [*_measure_rows(policies, scores, gold), *_win_rows(policies), *_measure_rows(policies, own, gold)]
    rows += [(name, *(cell(each) for each in policies)) for name, cell in COSTS.items()]
    return Table(title=POLICIES, header=("measure", *(each.name for each in policies)), rows=tuple(rows))


def _measure_rows(
    policies: Sequence[PolicyResult], names: Sequence[str], gold: str | None
) -> list[tuple[str, ...]]:
    return [
        (
            f"{name} (gold)" if name == gold else LABELS.get(name, name),
            *(_cell(each, name) for each in policies),
        )
        for name in names
    ]


def _cell(policy: PolicyResult, name: str) -> str:
    estimate = policy.estimates.get(name)
    if estimate is None:
        return NONE
    return share(estimate) if name in SHARES else interval(estimate)


def _win_rows(policies: Sequence[PolicyResult]) -> list[tuple[str, ...]]:
    if not any(each.win for each in policies):
        return []
    cells: Sequence[tuple[str, Callable[[WinRate], str]]] = (
        ("judge's win rate", lambda win: share(win.rate) if win.rate else NONE),
        ("… at equal length", lambda win: share(win.length_controlled) if win.length_controlled else NONE),
        (
            "wins / ties / losses / invalid",
            lambda win: f"{win.wins} / {win.ties} / {win.losses} / {win.invalid}",
        ),
        (FLIPS, lambda win: NONE if win.flip_rate is None else f"{100 * win.flip_rate:.0f} %"),
    )
    return [(name, *(cell(each.win) if each.win else NONE for each in policies)) for name, cell in cells]


def _differences(found: PolicyComparison) -> Table:
    rows = [
        (
            each.measure if each.measure != WIN else "judge's win rate",
            f"{each.policy} − {each.against}",
            interval(each.estimate, signed=True),
            _excludes(each),
            str(each.prompts),
        )
        for each in found.differences
    ]
    header = ("measure", "policies", "difference", "interval excludes zero", "prompts")
    return Table(title="Differences", header=header, rows=tuple(rows))


def _excludes(difference: PolicyDifference) -> str:
    return "yes" if difference.estimate.excludes_zero else "no"


def _people(found: PolicyComparison) -> Table:
    rows = [
        (
            f"{each.policy} over {each.against}",
            share(each.rate.both),
            f"{share(each.rate.people)} ({each.rate.labels})",
            f"{share(each.rate.judge)} ({each.rate.items})",
            f"{each.rate.weight:.2f}",
            f"{each.rate.effective:.0f}",
        )
        for each in found.people
    ]
    header = (
        "win rate by people",
        "both",
        "people alone (labels)",
        "judge alone (pairs)",
        "λ",
        "worth labels",
    )
    return Table(title="What people would say (prediction-powered)", header=header, rows=rows)


def _best_of_k(found: PolicyComparison) -> Table:
    rows = [
        (each.name, f"{each.kl:.2f}", interval(each.proxy), interval(each.gold)) for each in found.best_of_k
    ]
    header = ("best of", "KL (nats)", LABELS[REWARD], f"{found.gold} (gold)")
    return Table(
        title=f"Best of K samples of {found.start} by the reward, without training", header=header, rows=rows
    )


def _monitored(name: str, found: MonitoredTraining) -> Table:
    """Proxy and gold along a training, by the KL that it had spent."""
    best = best_reading(found.readings).step
    said = {best: "best gold", **({} if found.kept is None else {found.kept: "kept"})}
    if found.kept == best:
        said[best] = "best gold, kept"
    rows = [
        (str(each.step), f"{each.kl:.2f}", interval(each.proxy), interval(each.gold), said.get(each.step, ""))
        for each in _shown(found.readings, said)
    ]
    if (turn := found.turn) is not None:
        rows.append((NONE, f"{turn.kl:.2f}", NONE, f"{turn.gold:.3g}", "turns, by the curve"))
    header = ("step", "KL (nats)", "proxy", "gold of the monitor", "")
    return Table(title=f"Over-optimisation along the training of {name}", header=header, rows=tuple(rows))


def _shown(readings: Sequence[MonitorReading], wanted: Collection[int]) -> list[MonitorReading]:
    """At most `MOST_READINGS`, evenly spread, with the first, the last and those at the `wanted` steps."""
    last = len(readings) - 1
    must = {0, last} | {at for at, each in enumerate(readings) if each.step in wanted}
    room = MOST_READINGS - len(must)
    rest = [at for at in range(last + 1) if at not in must]
    step = max(1, -(-len(rest) // room))
    return [readings[at] for at in sorted(must | set(rest[step - 1 :: step]))]


def _training(found: PolicyComparison) -> Table:
    def cells(cost: TrainingCost) -> tuple[str, ...]:
        flops = NONE if cost.flops is None else f"{cost.flops:.3g}"
        return (
            f"{cost.tokens:,}",
            flops,
            f"{cost.seconds:.0f}",
            NONE if cost.peak_bytes is None else _gigabytes(cost.peak_bytes),
        )

    rows = [(name, *cells(cost)) for name, cost in found.training.items()]
    return Table(
        title="Training",
        header=("policy", "tokens generated", "FLOPs", "time (s)", "peak memory (GB)"),
        rows=tuple(rows),
    )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:z.2f}" if count else NONE


def _about(found: Evaluation) -> str:
    return (
        f"{found.samples} completions per prompt of at most {found.max_new_tokens} tokens, temperature "
        f"{found.temperature:g}, seed "
        f"{found.seed}; start policy {code(found.start)}. Means over completions with 95 % intervals, "
        "bootstrapped over prompts.\n"
    )


def _markdown(shown: Table) -> str:
    return table(shown.header, shown.rows)
