"""The helpers of this folder can be imported, also by the programs that its tests start."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
