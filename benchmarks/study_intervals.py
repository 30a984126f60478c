"""How often the interval of a study holds the true mean, where seeds and prompts vary by known amounts.

python benchmarks/study_intervals.py [--tries 1000]
"""

from __future__ import annotations

import argparse

import numpy as np

from rlaif.crossed import crossed_mean
from rlaif.stats import bootstrap_mean

PROMPTS = 48
CASES = [(2, 0.3), (3, 0.0), (3, 0.3), (3, 1.0), (5, 0.0), (5, 0.3), (5, 1.0), (10, 0.3)]
"""Seeds, and the standard deviation between them; it is 1 between prompts, and 1 of what is left."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=1000)
    tries = parser.parse_args().tries
    print("| seeds | deviation of seeds | over seeds and prompts | over prompts alone |\n|---|---|---|---|")
    for seeds, deviation in CASES:
        rng, crossed, alone = np.random.default_rng(0), 0, 0
        for _ in range(tries):
            cells = rng.normal(0, deviation, (seeds, 1)) + rng.normal(0, 1, (1, PROMPTS))
            cells += rng.normal(0, 1, (seeds, PROMPTS))
            found = crossed_mean(
                {i: dict(enumerate(row.tolist())) for i, row in enumerate(cells)}, resamples=400
            )
            crossed += found.low <= 0 <= found.high
            found = bootstrap_mean(cells.ravel(), list(range(PROMPTS)) * seeds, resamples=400)
            alone += found.low <= 0 <= found.high
        print(f"| {seeds} | {deviation:g} | {crossed / tries:.1%} | {alone / tries:.1%} |", flush=True)


if __name__ == "__main__":
    main()
