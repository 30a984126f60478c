"""How often prediction-powered intervals hold the truth, and how many labels a judge is worth.

    python benchmarks/people_intervals.py [--tries 1000]

People prefer a policy in 60 % of 400 pairs. The judge says the same as they in a share of pairs, and in the
others that the policy won.
"""

from __future__ import annotations

import argparse

import numpy as np

from rlaif.prediction_powered import Labelled, powered_mean

TRUTH, ITEMS = 0.6, 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=1000)
    tries = parser.parse_args().tries
    print("| judge repeats people in | labels | both hold | people hold | judge holds | worth labels |")
    print("|---|---|---|---|---|---|")
    for right in (0.95, 0.7, 0.5, 0.0):
        for people in (30, 60, 100):
            rng = np.random.default_rng(0)
            found = [powered_mean(_drawn(rng, people, right)) for _ in range(tries)]
            held = [
                sum(each.low <= TRUTH <= each.high for each in kind) / tries
                for kind in zip(*((x.both, x.people, x.judge) for x in found), strict=True)
            ]
            worth = sum(each.effective for each in found) / tries
            cells = " | ".join(f"{share:.1%}" for share in held)
            print(f"| {right:.0%} | {people} | {cells} | {worth:.0f} |", flush=True)


def _drawn(rng: np.random.Generator, people: int, right: float) -> list[Labelled]:
    truth = rng.random(ITEMS) < TRUTH
    said = np.where(rng.random(ITEMS) < right, truth, True)
    return [
        Labelled(float(f), float(y) if i < people else None, i)
        for i, (f, y) in enumerate(zip(said, truth, strict=True))
    ]


if __name__ == "__main__":
    main()
