"""The helpers of this folder can be imported by its tests; the yard where runs are killed is made once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from kills import Yard


@pytest.fixture(scope="session")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    """Where runs are started, killed and compared."""
    with Yard(tmp_path_factory.mktemp("yard")) as made:
        yield made
