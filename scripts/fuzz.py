"""Fuzz one reader with atheris, which is led by the branches that an input reaches.

    pip install atheris                      # in an environment of its own: it is no dependency of rlaif
    python scripts/fuzz.py reply -max_total_time=600
    python scripts/fuzz.py                   # lists the readers

The readers and what counts as a defect are those of `tests/reliability/fuzz_targets.py`, which the test suite
feeds with Hypothesis.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "reliability")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> None:
    """Fuzz the reader that the command line names, until libFuzzer's own options end it."""
    import atheris

    with atheris.instrument_imports(include=["rlaif"]):
        from fuzz_targets import SEEDS, TARGETS, run_target
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"name a reader: {', '.join(TARGETS)}")
    name = sys.argv.pop(1)
    corpus = Path(os.environ.get("RLAIF_FUZZ_CORPUS", "fuzz-corpus")) / name.replace(" ", "-")
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS.get(name, SEEDS["prompts"])):
        (corpus / f"seed-{number}").write_bytes(seed)

    def one(data: bytes) -> None:
        run_target(name, data)

    atheris.Setup([sys.argv[0], str(corpus), *sys.argv[1:]], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
