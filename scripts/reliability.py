"""Try to make rlaif lose, double or invent something: kills, a server that lies, hostile files.

    python scripts/reliability.py --kills 500 --verdicts 5000 --hostile 900 --out reliability.json

Runs on a laptop, offline, in about half an hour; prints a table, writes what it found, and ends with status 1
if anything was wrong. The same checks in small are in `tests/reliability/`; the readers are fuzzed there, and
at length by `scripts/fuzz.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "reliability")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

IN_A_ROW = 4
"""Kills of one run before it may end."""


def kills(count: int, *, seed: int, folder: Path) -> dict[str, Any]:
    """Kill runs of every scenario until there were `count` kills."""
    from kills import SCENARIOS, Yard

    found: list[Any] = []
    with Yard(folder / "yard") as yard:
        while sum(each.kills for each in found) < count:
            scenario = SCENARIOS[len(found) % len(SCENARIOS)]
            name = f"run-{len(found)}"
            found.append(
                yard.harass(scenario, kills=IN_A_ROW, rng=random.Random(f"{seed}/{name}"), name=name)
            )
            _progress(f"kills: {sum(each.kills for each in found)} of {count}")
            shutil.rmtree(folder / "yard" / name, ignore_errors=True)
    scenarios = {
        scenario.name: {
            "runs": sum(each.scenario == scenario.name for each in found),
            "killed at file operations": sum(
                each.at_operations for each in found if each.scenario == scenario.name
            ),
            "killed at times": sum(each.at_times for each in found if each.scenario == scenario.name),
        }
        for scenario in SCENARIOS
    }
    wrong = [f"{each.scenario}, {'; '.join(each.points)}: {line}" for each in found for line in each.wrong]
    return {
        "kills": sum(each.kills for each in found),
        "runs": len(found),
        "scenarios": scenarios,
        "wrong": wrong,
    }


def verdicts(count: int, *, seed: int) -> dict[str, Any]:
    """Ask a server that fails and lies for `count` verdicts."""
    from faulty_verdicts import ask

    _progress(f"verdicts: {count}")
    tally = ask(count, seed=seed)
    return {
        "verdicts": tally.asked,
        "valid": tally.valid,
        "invalid": dict(tally.invalid),
        "answers sent": sum(tally.sent.values()),
        "sent": dict(tally.sent),
        "wrong": tally.wrong,
    }


def hostile(count: int, *, seed: int, folder: Path) -> dict[str, Any]:
    """Give `count` hostile files to the commands that read them."""
    from hostile_inputs import Workshop, cases, summary, try_case

    workshop, found = Workshop(folder / "workshop"), []
    for number, case in enumerate(cases(count, seed=seed)):
        place = folder / f"case-{number}"
        found.append(try_case(workshop, case, place, seed=seed))
        _progress(f"hostile files: {number + 1} of {count}")
        shutil.rmtree(place, ignore_errors=True)
    return summary(found)


def _progress(line: str) -> None:
    print(f"\r{line:<60}", end="", file=sys.stderr, flush=True)


def main() -> int:
    """Run what was asked for; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kills", type=int, default=0, metavar="N", help="kills of runs, half of them at file operations"
    )
    parser.add_argument(
        "--verdicts", type=int, default=0, metavar="N", help="verdicts of a server that fails and lies"
    )
    parser.add_argument("--hostile", type=int, default=0, metavar="N", help="hostile files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write what was found as JSON")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="rlaif-reliability-") as name:
        folder = Path(name)
        for what, count, run in (
            ("verdicts", options.verdicts, lambda n: verdicts(n, seed=options.seed)),
            ("hostile", options.hostile, lambda n: hostile(n, seed=options.seed, folder=folder)),
            ("kills", options.kills, lambda n: kills(n, seed=options.seed, folder=folder)),
        ):
            if count:
                began = time.monotonic()
                results[what] = run(count) | {"seconds": round(time.monotonic() - began, 1)}
    _progress("")
    print()
    for what, result in results.items():
        figures = {name: value for name, value in result.items() if name not in ("wrong", "sent")}
        print(f"{what}: {json.dumps(figures)}")
        print(f"  wrong: {len(result['wrong'])}")
        for line in result["wrong"]:
            print(f"    {line}")
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return int(any(result["wrong"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
