"""What training a policy took, noted by its stage for the comparison: `cost.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlaif.errors import RunError
from rlaif.runs.disk import write_whole

__all__ = ["COST", "read_cost", "write_cost"]

COST = "cost.json"


def write_cost(folder: Path, cost: Mapping[str, Any]) -> None:
    """Note a training cost, as JSON values.

    Raises:
        RunError: The disk refuses.
    """
    write_whole(folder / COST, json.dumps(dict(cost), indent=2) + "\n")


def read_cost(folder: Path) -> dict[str, Any] | None:
    """What `write_cost` noted; `None` where the stage noted nothing.

    Raises:
        RunError: The file is damaged.
    """
    path = folder / COST
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"the stage's costs are damaged ({error})", where=str(path), remedy="run the stage again") from error
    return found
