"""Best of K on held-out prompts, for every K at once, from samples that were scored by proxy and by gold."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.results.evaluation import CompletionRows
from rlaif.results.overoptimization import OptimizationFit, OptimizationPoint, expected_best
from rlaif.rl.kl import best_of_n_kl_bound
from rlaif.stats import bootstrap_mean

__all__ = ["best_of_k_curve", "fit_best_of_k", "left_out_of_curve"]


def best_of_k_curve(
    rows: CompletionRows, *, proxy: str, gold: str, resamples: int = 2000, seed: int = 0
) -> tuple[OptimizationPoint, ...]:
    """Proxy and gold of the best of K by the proxy, for K = 1, 2, 4, … up to the samples that every prompt
    has.

    Prompts without two samples that have both measures are left out: `left_out_of_curve` counts them.
    """
    scored = _scored(rows, proxy, gold)
    most = min((len(pairs) for pairs in scored.values()), default=0)
    if len(scored) < 2:
        return ()
    points = []
    for k in (2**i for i in range(most.bit_length())):
        means = [_best_of(pairs, k) for pairs in scored.values()]
        of_proxy, of_gold = (
            bootstrap_mean([mean[side] for mean in means], list(scored), resamples=resamples, seed=seed)
            for side in (0, 1)
        )
        points.append(OptimizationPoint(f"K = {k}", best_of_n_kl_bound(k), proxy=of_proxy, gold=of_gold))
    return tuple(points)


def left_out_of_curve(rows: CompletionRows, *, proxy: str, gold: str) -> int:
    """Prompts that `best_of_k_curve` leaves out."""
    return len(set(rows.prompts)) - len(_scored(rows, proxy, gold))


def fit_best_of_k(points: Sequence[OptimizationPoint]) -> OptimizationFit | None:
    """Gao et al.'s curve through the gains of `points` over the first of them, K = 1."""
    gains = [(each.distance, each.gold.value - points[0].gold.value) for each in points]
    return OptimizationFit.through("best_of_k", gains)


def _scored(rows: CompletionRows, proxy: str, gold: str) -> dict[str, list[tuple[float, float]]]:
    """Proxy and gold of every completion that has both, by prompt."""
    columns = (rows.measures.get(proxy, ()), rows.measures.get(gold, ()))
    found: dict[str, list[tuple[float, float]]] = {}
    for prompt, by_proxy, by_gold in zip(rows.prompts, *columns, strict=False):
        if by_proxy is not None and by_gold is not None:
            found.setdefault(prompt, []).append((by_proxy, by_gold))
    return {prompt: pairs for prompt, pairs in found.items() if len(pairs) > 1}


def _best_of(pairs: Sequence[tuple[float, float]], k: int) -> tuple[float, float]:
    """Proxy and gold of the best of k by the proxy."""
    proxy, gold = zip(*pairs, strict=True)
    return expected_best(proxy, proxy, k), expected_best(gold, proxy, k)
