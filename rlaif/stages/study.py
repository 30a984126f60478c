"""Put the evaluations of several seeds, and of several settings, into one table.

A policy's figure is the mean over seeds; its interval is over seeds and prompts, both drawn: `rlaif.crossed`.
Differences are paired by seed and by prompt: what makes either differ cancels. A policy that a setting does
not touch, being the same texts under all of them, stands once, by its plain name.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import combinations
from types import MappingProxyType
from typing import NamedTuple

from rlaif.crossed import crossed_mean
from rlaif.errors import DataError
from rlaif.results.costs import TrainingCost
from rlaif.results.evaluation import REWARD, WIN, CompletionRows, Evaluation, PolicyResult
from rlaif.results.monitor import MonitorReading
from rlaif.results.study import MeanCost, SeedDifference, Study, StudyCurve, StudyPolicy
from rlaif.stages.study_curves import best_of_k_over_seeds, monitored_over_seeds
from rlaif.stats import Estimate
from rlaif.text import count_of

__all__ = ["SeedRun", "study"]

FEW_SEEDS = 5
"""Below this the reader is told that the interval rests on little."""


class SeedRun(NamedTuple):
    """A finished run: what was evaluated in it, and what training took.

    Attributes:
        setting: What the grid set, as `ppo.beta=0.05`; empty where there is no grid.
        readings: Of each policy that was monitored in training, what was read.
    """

    setting: str
    seed: int
    evaluation: Evaluation
    costs: Mapping[str, TrainingCost]
    readings: Mapping[str, Sequence[MonitorReading]] = MappingProxyType({})


Arm = dict[int, PolicyResult]
"""One policy under one setting: its result by seed."""


def study(
    runs: Sequence[SeedRun],
    *,
    name: str,
    failed: Mapping[str, str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Study:
    """One table over the seeds of `runs`.

    Args:
        failed: Runs that are missing, with the reason.
        seed: Of the bootstrap.

    Raises:
        DataError: Fewer than two seeds have finished, or the evaluations do not fit together.
    """
    first = _checked(runs)
    arms = _arms(runs)
    start = next(iter(arms))
    measures = _compared(arms, first.gold)
    policies = tuple(
        StudyPolicy(
            name=each,
            seeds=tuple(sorted(arm)),
            by_seed=_by_seed(arm),
            estimates=_estimates(arm, resamples=resamples, seed=seed),
            places=_places(arms, measures[0])[each],
            cost=_mean_cost(runs, arm),
        )
        for each, arm in arms.items()
    )
    met = {
        (measure, one, other): _paired(arms[one], arms[other], measure)
        for measure in measures
        for one, other in _meetings(list(arms))
    }
    differences = tuple(
        _difference(one, other, values, measure, resamples=resamples, seed=seed)
        for (measure, one, other), values in met.items()
        if _enough(values)
    )
    apart = [key for key, values in met.items() if not _enough(values)]
    return Study(
        name=name,
        headline=measures[0],
        gold=first.gold,
        start=start,
        seeds=tuple(sorted({run.seed for run in runs})),
        prompts=len(
            {prompt for arm in arms.values() for each in arm.values() for prompt in each.rows.prompts}
        ),
        policies=policies,
        differences=differences,
        failed=dict(failed or {}),
        notes=(*_notes(runs), *(_not_compared(*key) for key in apart)),
        curves=_curves(runs, first.gold),
    )


def _checked(runs: Sequence[SeedRun]) -> Evaluation:
    """The first evaluation, if all of them can stand in one table."""
    seeds = {run.seed for run in runs}
    if len(seeds) < 2:
        raise DataError(
            f"a study needs two finished seeds, and has {len(seeds)}",
            remedy="see why the others failed, or ask for more with --seeds",
        )
    first = runs[0].evaluation
    for run in runs:
        for what in ("start", "gold", "samples", "max_new_tokens", "temperature"):
            mine, theirs = getattr(first, what), getattr(run.evaluation, what)
            if mine != theirs:
                raise DataError(
                    f"the evaluations differ in `{what}`: {mine} and {theirs} (seed {run.seed})",
                    remedy="a grid cannot change how policies are evaluated; leave that out of it",
                )
    return first


# Arms


def _arms(runs: Sequence[SeedRun]) -> dict[str, Arm]:
    """Every policy under every setting, the start policy first; one that is the same under all settings
    once."""
    found: dict[str, dict[str, Arm]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        for policy in run.evaluation.policies:
            found[policy.name][run.setting][run.seed] = policy
    start = runs[0].evaluation.start
    named: dict[str, Arm] = {}
    for policy_name in sorted(found, key=lambda each: each != start):
        settings = found[policy_name]
        if _same(list(settings.values())):
            named[policy_name] = {seed: each for arm in settings.values() for seed, each in arm.items()}
        else:
            named |= {f"{policy_name} ({setting})": arm for setting, arm in settings.items()}
    return named


def _same(arms: Sequence[Arm]) -> bool:
    """Whether these are one policy, seed by seed: the same texts, or a single arm."""
    texts: dict[int, set[tuple[str, ...]]] = defaultdict(set)
    for arm in arms:
        for seed, each in arm.items():
            texts[seed].add(each.rows.texts)
    return len(arms) == 1 or all(len(each) == 1 for each in texts.values())


def _meetings(names: Sequence[str]) -> list[tuple[str, str]]:
    """Every policy against the first, then every other pair."""
    start, *others = names
    return [*((each, start) for each in others), *combinations(others, 2)]


def _compared(arms: Mapping[str, Arm], gold: str | None) -> list[str]:
    """The measures that every policy has, the one that decides first."""
    wanted = [name for name in (gold, WIN, REWARD) if name]
    found = [
        name
        for name in wanted
        if all(any(_measured(each, name) for each in arm.values()) for arm in arms.values())
    ]
    if not found:
        raise DataError(
            "the evaluations have no measure to decide by",
            remedy="evaluate with a gold metric, a judge or a reward model",
        )
    return found


# Figures


def _measured(result: PolicyResult, measure: str) -> dict[Hashable, float]:
    """The mean over the completions of each prompt."""
    return {
        prompt: math.fsum(values) / len(values) for prompt, values in result.rows.measured(measure).items()
    }


def _by_seed(arm: Arm) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for seed, each in sorted(arm.items()):
        for measure in each.rows.measures:
            if values := _measured(each, measure):
                found[measure][seed] = math.fsum(values.values()) / len(values)
    return dict(found)


def _estimates(arm: Arm, *, resamples: int, seed: int) -> dict[str, Estimate]:
    measures = dict.fromkeys(measure for each in arm.values() for measure in each.rows.measures)
    found = {}
    for measure in measures:
        values: dict[Hashable, dict[Hashable, float]] = {
            of: cells for of, each in arm.items() if (cells := _measured(each, measure))
        }
        if _enough(values):
            found[measure] = crossed_mean(values, resamples=resamples, seed=seed)
    return found


def _enough(values: Mapping[Hashable, Mapping[Hashable, float]]) -> bool:
    return len(values) > 1 and len({prompt for cells in values.values() for prompt in cells}) > 1


def _paired(mine: Arm, theirs: Arm, measure: str) -> dict[Hashable, dict[Hashable, float]]:
    """By seed and prompt, what `mine` has more than `theirs`, where both were measured."""
    values: dict[Hashable, dict[Hashable, float]] = {}
    for of in sorted(set(mine) & set(theirs)):
        ours, base = _measured(mine[of], measure), _measured(theirs[of], measure)
        if both := {prompt: ours[prompt] - base[prompt] for prompt in ours if prompt in base}:
            values[of] = both
    return values


def _not_compared(measure: str, one: str, other: str) -> str:
    return (
        f"`{one}` and `{other}` are not compared on {measure}: fewer than two seeds (or prompts) have both."
    )


def _difference(
    one: str,
    other: str,
    values: Mapping[Hashable, Mapping[Hashable, float]],
    measure: str,
    *,
    resamples: int,
    seed: int,
) -> SeedDifference:
    means = [math.fsum(cells.values()) / len(cells) for cells in values.values()]
    return SeedDifference(
        policy=one,
        against=other,
        measure=measure,
        prompts=len({prompt for cells in values.values() for prompt in cells}),
        estimate=crossed_mean(values, resamples=resamples, seed=seed),
        seeds=len(values),
        above=sum(mean > 0 for mean in means),
    )


def _places(arms: Mapping[str, Arm], measure: str) -> dict[str, tuple[int, ...]]:
    """How often each policy took each place, over the seeds in which all were measured."""
    figures = {name: _by_seed(arm).get(measure, {}) for name, arm in arms.items()}
    shared = set.intersection(*(set(each) for each in figures.values()))
    taken = {name: [0] * len(arms) for name in arms}
    for seed in shared:
        for name in arms:
            better = sum(figures[other][seed] > figures[name][seed] for other in arms)
            taken[name][better] += 1
    return {name: tuple(each) for name, each in taken.items()}


def _mean_cost(runs: Sequence[SeedRun], arm: Arm) -> MeanCost | None:
    """The mean cost of training over the runs that `arm` is from; `None` where it was not trained."""
    costs = [
        run.costs[policy.name]
        for run in runs
        for policy in run.evaluation.policies
        if policy.name in run.costs and arm.get(run.seed) is policy
    ]
    if not costs:
        return None

    def mean(of: Callable[[TrainingCost], float | None]) -> float | None:
        values = [value for value in map(of, costs) if value is not None]
        return math.fsum(values) / len(values) if len(values) == len(costs) else None

    return MeanCost(
        tokens=mean(lambda each: each.tokens) or 0.0,
        seconds=mean(lambda each: each.seconds) or 0.0,
        flops=mean(lambda each: each.flops),
        peak_bytes=mean(lambda each: each.peak_bytes),
    )


def _curves(runs: Sequence[SeedRun], gold: str | None) -> tuple[StudyCurve, ...]:
    """Of each policy under each setting that was monitored, and of the best of K of the start policy."""
    monitored: dict[str, dict[int, Sequence[MonitorReading]]] = defaultdict(dict)
    starts: dict[int, CompletionRows] = {}
    for run in runs:
        for policy in run.evaluation.policies:
            if policy.name == run.evaluation.start:
                starts.setdefault(run.seed, policy.rows)
            elif policy.name in run.readings:
                name = f"{policy.name} ({run.setting})" if run.setting else policy.name
                monitored[name][run.seed] = run.readings[policy.name]
    found = [monitored_over_seeds(name, readings) for name, readings in monitored.items()]
    if gold is not None:
        found.append(best_of_k_over_seeds(starts, gold))
    return tuple(each for each in found if each is not None)


def _notes(runs: Sequence[SeedRun]) -> tuple[str, ...]:
    notes = dict.fromkeys(note for run in runs for note in run.evaluation.notes)
    seeds = len({run.seed for run in runs})
    if seeds < FEW_SEEDS:
        notes[f"Intervals over {count_of(seeds, 'seed')} rest on little; run at least {FEW_SEEDS}."] = None
    return tuple(notes)
