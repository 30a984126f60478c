"""The pictures of a report as matplotlib figures, each drawn from values of `rlaif.results`.

    from rlaif import plot

    plot.training({"ppo": steps}).savefig("ppo.png")

Needs `pip install 'rlaif-toolkit[report]'`; importing this does not import matplotlib yet.
"""

from rlaif.plot.judge import flips_by_principle, label_strength, reward_calibration, strength_counts
from rlaif.plot.policies import (
    over_rounds,
    over_seeds,
    overoptimization,
    overoptimization_over_seeds,
    policy_points,
    readings,
    training,
    training_columns,
    win_rate_by_length,
)
from rlaif.plot.style import GRID, INK, SERIES, available, style

__all__ = [
    "GRID",
    "INK",
    "SERIES",
    "available",
    "flips_by_principle",
    "label_strength",
    "over_rounds",
    "over_seeds",
    "overoptimization",
    "overoptimization_over_seeds",
    "policy_points",
    "readings",
    "reward_calibration",
    "strength_counts",
    "style",
    "training",
    "training_columns",
    "win_rate_by_length",
]
