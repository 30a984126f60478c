"""Whether a text is like prompts of real use: cosine similarity of TF-IDF vectors of character trigrams."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from rlaif.near_duplicates import shingles

__all__ = ["Likeness"]

GRAM = 3
QUANTILE = 0.1
"""A text must be as near to some real prompt as all but this share of the real prompts are to another one."""


class Likeness:
    """Knows prompts of real use, and says whether another text is near one of them.

    Args:
        texts: At least two.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        grams = [shingles(text, GRAM) for text in texts]
        counts = Counter(gram for each in grams for gram in each)
        self._weights = {gram: math.log((1 + len(texts)) / (1 + count)) + 1 for gram, count in counts.items()}
        self._vectors = [self._vector(each) for each in grams]
        nearest = sorted(
            max(_cosine(one, other) for j, other in enumerate(self._vectors) if j != i)
            for i, one in enumerate(self._vectors)
        )
        self.least = nearest[int(QUANTILE * len(nearest))]

    def is_alike(self, text: str) -> bool:
        """Whether `text` is near enough to one of the real prompts."""
        return self.nearest(text) >= self.least

    def nearest(self, text: str) -> float:
        """Cosine similarity to the nearest of them, 0 to 1."""
        own = self._vector(shingles(text, GRAM))
        return max(_cosine(own, other) for other in self._vectors)

    def _vector(self, grams: frozenset[str]) -> dict[str, float]:
        # Trigrams that no real prompt has weigh as the rarest: they make a text less like them.
        rarest = max(self._weights.values())
        weights = {gram: self._weights.get(gram, rarest) for gram in grams}
        length = math.sqrt(math.fsum(weight * weight for weight in weights.values()))
        return {gram: weight / length for gram, weight in weights.items()}


def _cosine(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    small, large = sorted((one, other), key=len)
    return math.fsum(weight * large.get(gram, 0.0) for gram, weight in small.items())
