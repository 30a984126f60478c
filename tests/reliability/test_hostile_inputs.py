"""Files that are spoiled in every way: each command ends in time, in words, and leaves its inputs alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile_inputs import KINDS, Case, Workshop, cases, try_case

SEED = 3


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.mark.parametrize("case", cases(len(KINDS), seed=SEED), ids=lambda case: f"{case.kind}, {case.way}")
def test_a_hostile_file_ends_in_words(workshop: Workshop, tmp_path: Path, case: Case) -> None:
    found = try_case(workshop, case, tmp_path / "case", seed=SEED)
    assert not found.wrong, f"{found.wrong}\n{found.said}"
