"""For every test: `tests/tiny.py` can be imported, and the hub is out of bounds unless HF_HUB_OFFLINE=0 is
set on purpose."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers side by side have a core each
# A shell lets what it starts in the background ignore Ctrl-C, and so would every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, str(Path(__file__).parent))


_known = [0]


def pytest_runtest_teardown() -> None:
    """Each stage of each run collects garbage, and half a million objects of imported modules are none: they
    are taken out once they are there."""
    if len(sys.modules) > _known[0] + 200:
        _known[0] = len(sys.modules)
        gc.collect()
        gc.freeze()
