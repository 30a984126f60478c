"""What training policies took, noted for the comparison: `cost.json` of a stage, `training.json` beside an
evaluation of several."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlaif.errors import RunError
from rlaif.files import read_object
from rlaif.runs.disk import write_whole

__all__ = ["COST", "TRAINING", "read_cost", "write_cost"]

COST, TRAINING = "cost.json", "training.json"


def write_cost(path: Path, cost: Mapping[str, Any]) -> None:
    """Note a training cost, or several by the policy's name, as JSON values.

    Raises:
        RunError: The disk refuses.
    """
    write_whole(path, json.dumps(dict(cost), indent=2) + "\n")


def read_cost(path: Path) -> dict[str, Any] | None:
    """What `write_cost` noted; `None` where nothing was.

    Raises:
        RunError: The file is damaged.
    """
    if not path.exists():
        return None
    return read_object(
        path, error=RunError, what="the note of the stage's costs", remedy="run the stage again"
    )
