"""For every test: `tests/tiny.py` can be imported, and the hub is out of bounds unless HF_HUB_OFFLINE=0 is
set on purpose."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))
