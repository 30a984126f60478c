"""How often something took how long, in the text that Prometheus reads."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["SECONDS", "Histogram"]

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds of the buckets of times."""


class Histogram:
    """How many observations were at most each of `bounds`."""

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        self.buckets = [0] * len(self.bounds)
        self.count = 0
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Add an observation."""
        self.count += 1
        self.sum += seconds
        for at, bound in enumerate(self.bounds):
            self.buckets[at] += seconds <= bound

    def lines(self, name: str) -> list[str]:
        """The samples as Prometheus reads them."""
        buckets = [
            f'{name}_bucket{{le="{bound:g}"}} {count}'
            for bound, count in zip(self.bounds, self.buckets, strict=True)
        ]
        return [
            *buckets,
            f'{name}_bucket{{le="+Inf"}} {self.count}',
            f"{name}_sum {self.sum:.6f}",
            f"{name}_count {self.count}",
        ]
