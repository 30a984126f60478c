"""A folder in which a judge can be trained: a tiny model, a constitution about kindness, and pairs of kind and of rude
words."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from spine import call
from tiny import save_tiny

CONSTITUTION = """
name: kind
protocol: pointwise
principles:
  - id: kind
    question: Is it kind?
    comparison: Which is kinder?
  - id: warm
    question: Is it warm?
    comparison: Which is warmer?
    weight: 3
"""
KIND, RUDE = ("yes", "thanks", "please", "welcome"), ("no", "never", "stop", "bad")


def text(words: Sequence[str], seed: str) -> str:
    """Six words, most of them from `words`."""
    draw = random.Random(seed)
    return " ".join(draw.choice(words) if draw.random() < 0.8 else draw.choice(KIND + RUDE) for _ in range(6))


def write_pairs(path: Path, count: int, first: int = 0) -> Path:
    """Pairs of which the kind one is chosen."""
    lines = [
        {
            "prompt": [{"role": "user", "content": f"Say thing {at}."}],
            "chosen": [{"role": "assistant", "content": text(KIND, f"k{at}")}],
            "rejected": [{"role": "assistant", "content": text(RUDE, f"r{at}")}],
        }
        for at in range(first, first + count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


class Place:
    """A folder with a tiny model, a constitution and pairs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = save_tiny(path / "model")
        self.constitution = path / "kind.yaml"
        self.constitution.write_text(CONSTITUTION, "utf-8")
        self.pairs = write_pairs(path / "pairs.jsonl", 40)

    def train(self, out: str, *arguments: object) -> Path:
        """`rlaif judge train`; the folder of the run."""
        said = call(
            *("judge", "train", "--data", self.pairs, "--constitution", self.constitution),
            *("--model", self.model, "--dtype", "float32", "--out", self.path / out, *arguments),
        )
        assert said.status == 0, said.err
        return self.path / out
