"""Texts that are nearly the same: MinHash signatures of character n-grams, found in bands (Broder 1997;
Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, ch. 3)."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

__all__ = ["NearDuplicates", "normalised", "shingles"]

HASHES, BANDS = 128, 32
"""Signatures are 128 numbers in 32 bands of 4: pairs with a Jaccard similarity of 0.6 meet in a band with
probability 0.99, of 0.3 with 0.23."""
GRAM = 5
PRIME = (1 << 61) - 1


def normalised(text: str) -> str:
    """The text as it is compared: compatibility forms, without case, punctuation and spaces beside one."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(letter if letter.isalnum() else " " for letter in folded)
    return " ".join(kept.split())


def shingles(text: str, size: int = GRAM) -> frozenset[str]:
    """The n-grams of characters of the normalised text; the text itself where it is shorter."""
    plain = normalised(text)
    return frozenset(plain[at : at + size] for at in range(max(1, len(plain) - size + 1)))


class NearDuplicates:
    """Remembers texts, and finds one among them that is nearly the same as another.

    Args:
        threshold: Jaccard similarity of the n-grams from which two texts are nearly the same; it is computed
            exactly for those that meet in a band.
    """

    def __init__(self, threshold: float = 0.6) -> None:
        self.threshold = threshold
        self._bands: list[dict[bytes, list[Hashable]]] = [defaultdict(list) for _ in range(BANDS)]
        self._grams: dict[Hashable, frozenset[str]] = {}
        draws = np.random.default_rng(0).integers(1, PRIME, size=(2, HASHES), dtype=np.uint64)
        self._a, self._b = draws[0], draws[1]

    def add(self, name: Hashable, text: str) -> None:
        """Remember a text under a name."""
        grams = shingles(text)
        self._grams[name] = grams
        for band, key in zip(self._bands, self._keys(grams), strict=True):
            band[key].append(name)

    def find(self, text: str) -> Hashable | None:
        """The name of the most similar text that is nearly the same; `None` where there is none."""
        grams = shingles(text)
        met = {
            name
            for band, key in zip(self._bands, self._keys(grams), strict=True)
            for name in band.get(key, ())
        }
        alike = [(_jaccard(grams, self._grams[name]), name) for name in met]
        near = [pair for pair in alike if pair[0] >= self.threshold]
        return max(near, key=lambda pair: (pair[0], str(pair[1])))[1] if near else None

    def _keys(self, grams: frozenset[str]) -> list[bytes]:
        values = np.array([_hashed(gram) for gram in grams], dtype=np.uint64)
        mixed: NDArray[np.uint64] = self._a[:, None] * values[None, :] + self._b[:, None]
        signature = (mixed ^ (mixed >> np.uint64(29))).min(axis=1)
        rows = HASHES // BANDS
        return [signature[at * rows : (at + 1) * rows].tobytes() for at in range(BANDS)]


def _hashed(gram: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(gram.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)
