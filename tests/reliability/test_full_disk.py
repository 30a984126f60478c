"""A disk that takes no more: one message that names the file, and the same command ends as if nothing had
been when there is room."""

from __future__ import annotations

from pathlib import Path

import pytest
from killing import changed_files, results
from kills import SCENARIOS, SECONDS, Scenario, Yard
from spine import processes

LIMITS = (1_500, 12_000, 40_000)
"""Bytes that no file can grow beyond: the first stops nearly everything, the last only weights."""
CHOSEN = ("PPO", "SFT")


@pytest.mark.parametrize(
    "scenario", [each for each in SCENARIOS if each.name in CHOSEN], ids=lambda each: each.name
)
def test_a_full_disk_is_one_message_and_the_run_goes_on(
    yard: Yard, tmp_path: Path, scenario: Scenario
) -> None:
    calm, log, run = yard.calm(scenario), tmp_path / "said", tmp_path / "run"
    stopped = 0
    for limit in LIMITS:
        process = processes().start(*scenario.arguments(yard.shop, run, ""), said=log, largest_file=limit)
        process.join(SECONDS)
        said = log.read_text(encoding="utf-8")
        assert "Traceback" not in said, said
        assert process.exitcode in (0, 1), said
        if process.exitcode:
            stopped += 1
            assert sum(line.startswith("error:") for line in said.splitlines()) <= 1, said
    assert stopped >= 2
    process = processes().start(*scenario.arguments(yard.shop, run, ""), said=log)
    process.join(SECONDS)
    assert process.exitcode == 0, log.read_text(encoding="utf-8")
    assert not changed_files(calm.files, results(run))
