"""Say which policy won on held-out prompts, whether the interval excludes zero, and at what cost.

Differences are paired: each bootstrap draw takes the same prompts for both sides, so that what makes prompts
differ cancels. Each interval holds 95 % by itself; with many policies some will exclude zero by luck.

Policies trained by reinforcement learning and by best of K are not comparable at equal KL (Gao et al. 2022,
2210.10760): RL spends far more of it. So the held-out gold measure stands against the proxy that was trained
on, and where training curves are known the policies are also compared at equal tokens generated and at equal
wall-clock. Those curves show the reward in training, since the held-out measures are taken at the end only;
the words say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from math import isfinite

from rlaif.config.evaluation import Budget
from rlaif.errors import DataError
from rlaif.results.comparison import AtBudget, Optimisation, PolicyComparison, PolicyDifference, Reading
from rlaif.results.costs import CurvePoint, TrainingCost
from rlaif.results.evaluation import REWARD, WIN, Evaluation, PolicyResult
from rlaif.results.monitor import MonitoredTraining
from rlaif.results.overoptimization import OptimizationPoint
from rlaif.stages.overoptimization import best_of_k_curve, fit_best_of_k, left_out_of_curve
from rlaif.stages.people import PeopleLabel, people_rates, unused
from rlaif.stats import Estimate, bootstrap_difference
from rlaif.text import count_of

__all__ = ["compare", "paired_difference"]

EACH_INTERVAL = (
    "Each is a 95 % interval by itself: of twenty true differences of zero, about one interval excludes zero."
)
MANY = 5
"""Differences on one measure above which the reader is reminded of that."""

FEW = 20
"""Prompts below which a percentile bootstrap is known to be too narrow."""

NO_CURVES = "Only the endpoints of training are compared, not equal budgets"

ROUNDING = 1e-12
"""Differences smaller than this, relative to the largest value, are of floating-point sums, not of
policies."""


def compare(
    evaluations: Sequence[Evaluation],
    costs: Mapping[str, TrainingCost] | None = None,
    *,
    people: Mapping[str, PeopleLabel] | None = None,
    monitors: Mapping[str, MonitoredTraining] | None = None,
    budgets: Sequence[Budget] = ("tokens", "seconds"),
    resamples: int = 2000,
    seed: int = 0,
) -> PolicyComparison:
    """Compare every policy with the start policy and with every other.

    Args:
        evaluations: On the same prompts, with the same start policy.
        costs: What training each policy took, by name, where it is known.
        people: Labels of people on pairs of the evaluations, by `pair_id`.
        monitors: What monitors read of the policies' trainings, by name; those of other policies are left
            out.
        budgets: At equal amounts of what to compare curves.

    Raises:
        DataError: The evaluations do not fit together, have nothing to compare, or a curve cannot be right.
    """
    merged, costs = _merged(evaluations), dict(costs or {})
    policies = merged.policies
    _check_costs(costs, policies)
    measures = [
        name
        for name in (merged.gold, WIN, REWARD)
        if name and all(name in each.estimates for each in policies)
    ]
    if not measures:
        remedy = "evaluate with a gold metric, a judge or a reward model"
        raise DataError("the evaluations have no measure to decide by", remedy=remedy)
    met = [(measure, *pair) for measure in measures for pair in _meetings(policies, merged.start)]
    differences = [
        paired_difference(ours, base, measure, resamples=resamples, seed=seed)
        for measure, ours, base in met
        if can_be_paired(ours, base, measure)
    ]
    at_budgets = _at_budgets(costs, budgets)
    best_of_k = _best_of_k(merged, resamples=resamples, seed=seed)
    rates = people_rates(merged, people) if people else ()
    notes = [
        *merged.notes,
        *unused(people or {}, rates),
        *(
            f"`{ours.name}` and `{base.name}` have fewer than two prompts in common on {measure}, so that "
            "they are not compared on it."
            for measure, ours, base in met
            if not can_be_paired(ours, base, measure)
        ),
        *([EACH_INTERVAL] if len(differences) > MANY * len(measures) else []),
    ]
    if best_of_k and merged.gold and (missing := _not_in_curve(merged, merged.gold)):
        notes.append(
            f"Best of K leaves out {count_of(missing, 'prompt')} without two completions that have both "
            "measures."
        )
    if merged.prompts < FEW:
        notes.append(
            f"Intervals over {merged.prompts} prompts are rough, and rather too narrow; evaluate on at least "
            f"{FEW}."
        )
    return PolicyComparison(
        start=merged.start,
        gold=merged.gold,
        headline=measures[0],
        prompts=merged.prompts,
        policies=policies,
        training=costs,
        differences=tuple(differences),
        optimisations=tuple(_optimisations(differences, merged)),
        at_budgets=at_budgets,
        endpoints=_endpoints_only(costs, at_budgets, policies, asked=bool(budgets)),
        people=rates,
        best_of_k=best_of_k,
        best_of_k_fit=fit_best_of_k(best_of_k) if best_of_k else None,
        monitors={each.name: monitors[each.name] for each in policies if monitors and each.name in monitors},
        notes=tuple(notes),
    )


def _meetings(policies: Sequence[PolicyResult], start: str) -> list[tuple[PolicyResult, PolicyResult]]:
    """Every policy against the start policy, then every other pair."""
    first, *others = sorted(policies, key=lambda each: each.name != start)
    return [*((each, first) for each in others), *combinations(others, 2)]


def can_be_paired(ours: PolicyResult, base: PolicyResult, measure: str) -> bool:
    """Whether both have a measure on two prompts at least: an interval needs as many."""
    return len(ours.rows.measured(measure).keys() & base.rows.measured(measure).keys()) > 1


def paired_difference(
    ours: PolicyResult, base: PolicyResult, measure: str, *, resamples: int, seed: int
) -> PolicyDifference:
    """The mean difference of a measure on the prompts that both have, with its bootstrap 95 % interval."""
    mine, theirs = ours.rows.measured(measure), base.rows.measured(measure)
    both = [prompt for prompt in mine if prompt in theirs]
    sides = [
        (
            [value for prompt in both for value in side[prompt]],
            [prompt for prompt in both for _ in side[prompt]],
        )
        for side in (mine, theirs)
    ]
    estimate = bootstrap_difference(*sides[0], *sides[1], resamples=resamples, seed=seed)
    rounding = ROUNDING * max(abs(value) for values, _ in sides for value in values)
    estimate = Estimate(*(0.0 if abs(x) <= rounding else x for x in estimate))
    return PolicyDifference(
        policy=ours.name, against=base.name, measure=measure, prompts=len(both), estimate=estimate
    )


def _optimisations(differences: Sequence[PolicyDifference], merged: Evaluation) -> list[Optimisation]:
    """Proxy and gold side by side, for every policy that has both. Without a reward model the judge stands
    for the proxy."""
    to_start = {
        (each.policy, each.measure): each.estimate for each in differences if each.against == merged.start
    }
    measured = {measure for _, measure in to_start}
    proxy = REWARD if REWARD in measured else WIN
    if merged.gold is None or proxy not in measured or merged.gold not in measured:
        return []
    shown = "reward" if proxy == REWARD else "the judge's win rate"
    return [
        Optimisation(
            policy=policy,
            proxy_name=shown,
            gold_name=merged.gold,
            proxy=estimate,
            gold=to_start[policy, merged.gold],
        )
        for (policy, measure), estimate in to_start.items()
        if measure == proxy and (policy, merged.gold) in to_start
    ]


def _best_of_k(merged: Evaluation, *, resamples: int, seed: int) -> tuple[OptimizationPoint, ...]:
    """The best of K of the start policy's samples, where they have a reward and a gold measure."""
    if merged.gold is None or merged.samples < 2:
        return ()
    rows = merged.policy(merged.start).rows
    return best_of_k_curve(rows, proxy=REWARD, gold=merged.gold, resamples=resamples, seed=seed)


def _not_in_curve(merged: Evaluation, gold: str) -> int:
    return left_out_of_curve(merged.policy(merged.start).rows, proxy=REWARD, gold=gold)


# Equal budgets


def _at_budgets(costs: Mapping[str, TrainingCost], budgets: Sequence[Budget]) -> tuple[AtBudget, ...]:
    """The policies whose curves show the same, at the most that all of them spent."""
    alike: dict[tuple[str, str], dict[str, Sequence[CurvePoint]]] = {}
    for name, cost in costs.items():
        if cost.curve:
            alike.setdefault((cost.shows, cost.basis), {})[name] = cost.curve
    return tuple(
        _at_budget(curves, budget, shows)
        for (shows, _), curves in alike.items()
        if len(curves) > 1
        for budget in budgets
    )


def _at_budget(curves: Mapping[str, Sequence[CurvePoint]], budget: Budget, shows: str) -> AtBudget:
    amount = min(getattr(curve[-1], budget) for curve in curves.values())
    readings = {name: _reading(curve, budget, amount) for name, curve in curves.items()}
    return AtBudget(budget=budget, amount=amount, shows=shows, readings=readings)


def _reading(curve: Sequence[CurvePoint], budget: Budget, amount: float) -> Reading | None:
    """The curve at `amount`, on the straight line between its neighbours; `None` before its first point."""
    points = [(float(getattr(point, budget)), point.value) for point in curve]
    if amount < points[0][0]:
        return None
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 < amount < x1:
            return Reading(value=y0 + (y1 - y0) * (amount - x0) / (x1 - x0), between=(x0, x1))
    at, value = [point for point in points if point[0] <= amount][-1]
    return Reading(value=value, between=(at, at))


def _endpoints_only(
    costs: Mapping[str, TrainingCost],
    at_budgets: Sequence[AtBudget],
    policies: Sequence[PolicyResult],
    *,
    asked: bool,
) -> str:
    """Which trained policies are compared at their endpoints only, and why; `policies` begin with the start
    policy."""
    trained = [each.name for each in policies[1:]]
    met = {name for each in at_budgets for name in each.readings}
    if not asked:
        return "Only the endpoints of training are compared: no budget was asked for."
    if len(trained) == 1:
        return "Only the endpoint of training is compared: there is a single trained policy."
    lacking = [f"`{name}`" for name in trained if not (name in costs and costs[name].curve)]
    apart = [f"`{name}`" for name in trained if name not in met and f"`{name}`" not in lacking]
    why = [f"there is no training curve of {', '.join(lacking)}"] if lacking else []
    if apart and (met or len(apart) > 1):
        why.append(
            f"the training curve of {', '.join(apart)} shows a reward, or samples, that no other curve does"
        )
    if not why:
        return ""
    left = ", ".join([*lacking, *apart])
    return (
        f"Only the endpoint of {left} is compared: {'; '.join(why)}."
        if met
        else f"{NO_CURVES}: {'; '.join(why)}."
    )


# Checks


def _merged(evaluations: Sequence[Evaluation]) -> Evaluation:
    """One evaluation with the policies of all.

    Raises:
        DataError: They differ in what must be the same.
    """
    if not evaluations:
        raise DataError("there is no evaluation to compare", remedy="run `rlaif evaluate` first")
    first, policies = evaluations[0], dict[str, PolicyResult]()
    for each in evaluations:
        _check_alike(first, each)
        for policy in each.policies:
            known = policies.setdefault(policy.name, policy)
            if known.rows.texts != policy.rows.texts:
                remedy = "give each policy a name of its own, and evaluate with one seed"
                raise DataError(
                    f"two evaluations have other completions of the policy {policy.name!r}", remedy=remedy
                )
    if len(policies) < 2:
        raise DataError(
            "there is one policy only, so nothing to compare",
            remedy="evaluate a trained policy beside the start policy",
        )
    start, *others = sorted(policies.values(), key=lambda policy: policy.name != first.start)
    notes = dict.fromkeys(note for each in evaluations for note in each.notes)
    return Evaluation(
        start=first.start,
        gold=first.gold,
        prompts=first.prompts,
        samples=first.samples,
        max_new_tokens=first.max_new_tokens,
        temperature=first.temperature,
        seed=first.seed,
        policies=(start, *others),
        notes=tuple(notes),
    )


def _check_alike(first: Evaluation, other: Evaluation) -> None:
    for name in ("start", "gold", "samples", "max_new_tokens", "temperature", "seed"):
        mine, theirs = getattr(first, name), getattr(other, name)
        if mine != theirs:
            what = f"the evaluations differ in `{name}`: {mine} and {theirs}"
            raise DataError(what, remedy="evaluate all policies with the same settings")
    prompts = [
        {prompt for policy in each.policies for prompt in policy.rows.prompts} for each in (first, other)
    ]
    if odd := sorted(prompts[0] ^ prompts[1]):
        what = f"the evaluations are on different prompts: {len(odd)} are in one only, the first {odd[0]}"
        raise DataError(what, remedy="evaluate all policies on the same prompts")


def _check_costs(costs: Mapping[str, TrainingCost], policies: Sequence[PolicyResult]) -> None:
    if unknown := sorted(set(costs) - {each.name for each in policies}):
        names = ", ".join(each.name for each in policies)
        raise DataError(
            f"there is a training cost of {unknown[0]!r}, which was not evaluated",
            remedy=f"the policies are {names}",
        )
    for name, cost in costs.items():
        if not all(isfinite(x) for point in cost.curve for x in point):
            raise DataError(
                "the training curve has a point that is not a number",
                where=f"policy {name}",
                remedy="leave such points out",
            )
        if any(b.tokens < a.tokens or b.seconds < a.seconds for a, b in pairwise(cost.curve)):
            remedy = "give tokens and seconds as totals since the start of training, in order"
            raise DataError(
                "the training curve goes back in tokens or seconds", where=f"policy {name}", remedy=remedy
            )
