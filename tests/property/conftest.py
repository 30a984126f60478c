"""Hypothesis for every property test: the same examples at each run, and no deadline, since a busy machine is
not a bug."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("rlaif", derandomize=True, deadline=None)
settings.load_profile("rlaif")
