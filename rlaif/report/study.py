"""`study.md`, and the same tables as rows for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlaif.audit.grade import share
from rlaif.report.comparison import LABELS, NONE, SHARES
from rlaif.report.markdown import sentence, table
from rlaif.report.shown import Table
from rlaif.results.comparison import interval
from rlaif.results.evaluation import REWARD, WIN
from rlaif.results.study import MeanCost, Study, StudyPolicy
from rlaif.text import count_of

__all__ = ["curve_table", "measure_title", "study_markdown", "study_tables"]

BESIDE = ("kl", "tokens", "distinct_2", "refusal")
"""Measures that stand beside those that are compared."""
SHORT: Mapping[str, str] = {WIN: "judge's win rate", REWARD: LABELS[REWARD], "kl": "KL (nats)"}


def study_markdown(found: Study) -> str:
    """The verdict in words, then the figures."""
    over = f"{count_of(len(found.seeds), 'seed')} and {count_of(found.prompts, 'held-out prompt')}"
    parts = [f"# Study {found.name}: {len(found.policies)} policies over {over}\n"]
    parts += [f"- {sentence(line)}" for line in found.verdict]
    parts += [f"- {sentence(each.words)}" for each in found.curves]
    parts += [f"\n## {each.title}\n\n{table(each.header, each.rows)}" for each in study_tables(found)]
    ending = (
        "\nIntervals hold 95 %: a two-level bootstrap over seeds and prompts, widened for few seeds "
        "(`rlaif.crossed`). Seeds: " + ", ".join(map(str, found.seeds)) + ".\n"
    )
    return "\n".join(parts) + ending


def study_tables(found: Study) -> tuple[Table, ...]:
    """The policies, their differences, each seed, and what training took; tables without rows are left
    out."""
    tables = (_policies(found), _differences(found), _seeds(found), curve_table(found), _costs(found))
    return tuple(each for each in tables if each.rows)


def _policies(found: Study) -> Table:
    compared = list(dict.fromkeys(each.measure for each in found.differences))
    measures = [
        name for name in (*compared, *BESIDE) if any(name in each.estimates for each in found.policies)
    ]
    header = (
        "policy",
        *(measure_title(name, found.gold) for name in measures),
        f"first of {sum(found.policies[0].places)}",
    )
    rows = [
        (each.name, *(_cell(each, name) for name in measures), str(each.places[0])) for each in found.policies
    ]
    return Table(title="Policies over seeds", header=header, rows=rows)


def measure_title(measure: str, gold: str | None) -> str:
    """What a measure is called in headings."""
    return f"{measure} (gold)" if measure == gold else SHORT.get(measure, LABELS.get(measure, measure))


def _cell(policy: StudyPolicy, measure: str) -> str:
    estimate = policy.estimates.get(measure)
    if estimate is None:
        return NONE
    return share(estimate) if measure in SHARES or measure == WIN else interval(estimate)


def _differences(found: Study) -> Table:
    rows = [
        (
            measure_title(each.measure, found.gold),
            f"{each.policy} − {each.against}",
            interval(each.estimate, signed=True),
            "yes" if each.estimate.excludes_zero else "no",
            f"{each.above} of {each.seeds}",
        )
        for each in found.differences
    ]
    header = ("measure", "policies", "difference", "interval excludes zero", "seeds above zero")
    return Table(title="Differences, paired by seed and prompt", header=header, rows=rows)


def _seeds(found: Study) -> Table:
    rows = [
        (
            each.name,
            *(_figure(each.by_seed.get(found.headline, {}), seed) for seed in found.seeds),
            _places(each),
        )
        for each in found.policies
    ]
    header = ("policy", *(f"seed {seed}" for seed in found.seeds), "places (1st, 2nd, …)")
    return Table(title=f"Each seed: {measure_title(found.headline, found.gold)}", header=header, rows=rows)


def _figure(values: Mapping[int, float], seed: int) -> str:
    return f"{values[seed]:.3g}" if seed in values else NONE


def _places(policy: StudyPolicy) -> str:
    return ", ".join(map(str, policy.places))


def curve_table(found: Study) -> Table:
    """Every point of the study's curves."""
    rows = [
        (
            each.name,
            point.name,
            f"{point.kl:.3g}",
            interval(point.proxy, signed=True),
            interval(point.gold, signed=True),
        )
        for each in found.curves
        for point in each.points[1:]
    ]
    header = ("curve", "point", "KL (nats)", "gain in proxy", "gain in gold")
    return Table(title="Proxy and gold along the KL, mean gain over seeds", header=header, rows=rows)


def _costs(found: Study) -> Table:
    trained = [(each.name, each.cost) for each in found.policies if each.cost is not None]
    rows = [(name, *_spent(cost)) for name, cost in trained]
    header = ("policy", "tokens generated", "FLOPs", "time (s)", "peak memory (GB)")
    return Table(title="Training, mean over seeds", header=header, rows=rows)


def _spent(cost: MeanCost) -> Sequence[str]:
    return (
        f"{cost.tokens:,.0f}",
        NONE if cost.flops is None else f"{cost.flops:.3g}",
        f"{cost.seconds:.0f}",
        NONE if cost.peak_bytes is None else f"{cost.peak_bytes / 1e9:.2f}",
    )
