"""Calibrate a judge on a few human labels: P(a is better) = sigmoid(slope · log-odds + intercept).

*Temperature* (Guo et al. 2017, arXiv 1706.04599, section 4.2) fits the slope alone. It is the default: a
label must say the same of a comparison and of its swap, and only without an intercept it does. *Platt* (Platt
1999) also fits an intercept, for log-odds that were read in one fixed order. Both are logistic regressions,
fitted by Newton's method (iteratively reweighted least squares), with Platt's targets (n+1)/(n+2) and 1/(n+2)
in place of 1 and 0, which keep the slope finite for a judge that is always right. A slope below 0 is set to
0: a judge that is wrong more often than right is not turned round but silenced.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rlaif.audit.agreement import loss
from rlaif.digest import unit_from
from rlaif.errors import DataError

__all__ = ["Calibration", "fit_calibration"]

Method = Literal["temperature", "platt"]
Floats = NDArray[np.float64]

FOLDS = 5
STEPS = 100


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted calibration, and for which judge it holds.

    Attributes:
        slope: 1 / temperature.
        intercept: 0 for `temperature`.
        rows: Human labels that it was fitted on.
        nll_before: Mean negative log-likelihood of human labels as the judge gives them, nats.
        nll_after: The same calibrated, each pair by a fit on the other folds.
        judge_revision, constitution_digest, template_digest, protocol, principles: The judge that it was
        fitted for.
    """

    method: Method
    slope: float
    intercept: float
    rows: int
    nll_before: float
    nll_after: float
    judge_revision: str = ""
    constitution_digest: str = ""
    template_digest: str = ""
    protocol: str = ""
    principles: str = ""

    @property
    def temperature(self) -> float:
        """What log-odds are divided by; infinite when the judge is silenced."""
        return 1 / self.slope if self.slope else math.inf

    def apply(self, logit: float) -> float:
        """The calibrated log-odds."""
        return self.slope * logit + self.intercept

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str = "") -> Calibration:
        """Read back what `rlaif.audit.cases.plain` wrote.

        Raises:
            DataError: A value is missing, unknown, or of another kind.
        """
        names = cls.__dataclass_fields__
        texts = (
            "method",
            "judge_revision",
            "constitution_digest",
            "template_digest",
            "protocol",
            "principles",
        )
        for name in names:
            kind: type | tuple[type, ...] = str if name in texts else (int, float)
            if not isinstance(values.get(name), kind) or isinstance(values.get(name), bool):
                raise DataError(
                    f"a calibration has no proper `{name}`",
                    where=where,
                    remedy="write it anew with --save-calibration",
                )
        if unknown := sorted(set(values) - set(names)):
            raise DataError(
                f"a calibration has no `{unknown[0]}`",
                where=where,
                remedy="write it anew with --save-calibration",
            )
        return cls(**values)


def fit_calibration(
    logits: Sequence[float],
    a_wins: Sequence[float],
    groups: Sequence[str],
    *,
    method: Method = "temperature",
    seed: int = 0,
    **judge: str,
) -> Calibration:
    """Fit on human labels, and tell what it gains on labels that a fit has not seen (cross-validated in five
    folds).

    Args:
        logits: Log-odds that `a` is better, one per pair (nats).
        a_wins: 1 where people chose `a`, 0 where they chose `b`.
        groups: Prompt of each pair; a prompt is never in two folds.
        judge: `judge_revision`, `constitution_digest`, `template_digest`, `protocol`, `principles`.

    Raises:
        DataError: Fewer than ten pairs, or pairs of fewer than `FOLDS` prompts.
    """
    folds = _folds(groups, seed)
    if len(logits) < 2 * FOLDS or len(set(folds)) < FOLDS:
        raise DataError(
            f"{len(logits)} human labels on {len(set(groups))} prompts are too few to calibrate on",
            remedy="give 50 or more, on as many prompts",
        )
    held_out: list[float] = []
    for fold in range(FOLDS):
        seen = [row for row, each in enumerate(folds) if each != fold]
        slope, intercept = fit_slope(
            [logits[row] for row in seen], [a_wins[row] for row in seen], method=method
        )
        held_out += [
            loss(slope * logits[row] + intercept, a_wins[row])
            for row, each in enumerate(folds)
            if each == fold
        ]
    slope, intercept = fit_slope(logits, a_wins, method=method)
    before = math.fsum(loss(logit, won) for logit, won in zip(logits, a_wins, strict=True)) / len(logits)
    return Calibration(
        method=method,
        slope=slope,
        intercept=intercept,
        rows=len(logits),
        nll_before=before,
        nll_after=math.fsum(held_out) / len(held_out),
        **judge,
    )


def fit_slope(logits: Sequence[float], a_wins: Sequence[float], *, method: Method) -> tuple[float, float]:
    """Slope and intercept that minimise the negative log-likelihood of Platt's targets."""
    x = np.asarray(logits, dtype=np.float64)
    won = np.asarray(a_wins, dtype=np.float64)
    if method == "temperature":
        # The pair and its swap carry the same news. Told so that the human label is always the first, all are
        # wins.
        signed = np.where(won > 0.5, x, -x)
        slope = _newton(signed[:, None], np.full(len(x), (len(x) + 1) / (len(x) + 2)))[0]
        return max(float(slope), 0.0), 0.0
    wins = float(won.sum())
    losses = len(won) - wins
    targets = won * (wins + 1) / (wins + 2) + (1 - won) / (losses + 2)
    slope, intercept = _newton(np.column_stack([x, np.ones_like(x)]), targets)
    if slope >= 0:
        return float(slope), float(intercept)
    return 0.0, float(_newton(np.ones((len(x), 1)), targets)[0])


def _newton(x: Floats, targets: Floats) -> Floats:
    """Coefficients θ that minimise Σ log(1 + e^z) − t z, z = xθ; x (rows, k), targets (rows,) in (0, 1).

    Each step is halved while it does not lower the loss. A column of zeros has coefficient 0.
    """

    def total(theta: Floats) -> float:
        z = x @ theta
        return float(np.sum(np.logaddexp(0, z) - targets * z))

    theta = np.zeros(x.shape[1])
    now = total(theta)
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ theta, -700, 700)))
        hessian = (x.T * (p * (1 - p))) @ x
        step = np.linalg.lstsq(hessian, x.T @ (p - targets), rcond=None)[0]
        while (then := total(theta - step)) > now and float(np.abs(step).max()) > 1e-12:
            step = step / 2
        if then > now:
            break
        theta, now = theta - step, then
        if float(np.abs(step).max()) < 1e-10:
            break
    return theta


def _folds(groups: Sequence[str], seed: int) -> list[int]:
    """A fold for each row: the groups in hash order, dealt out in turn."""
    ranked = sorted(set(groups), key=lambda group: unit_from(seed, "fold", group))
    fold = {group: place % FOLDS for place, group in enumerate(ranked)}
    return [fold[group] for group in groups]
