"""Metrics to the trackers that Accelerate knows (tensorboard, wandb, trackio, mlflow, …), beside
`metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from rlaif.errors import ConfigError

__all__ = ["Trackers", "check_trackers"]


def check_trackers(names: Sequence[str]) -> None:
    """Find out whether the trackers can be used, before anything is computed that they would log.

    Raises:
        ConfigError: A name is unknown, or its package is not installed.
    """
    if unknown := [name for name in names if name not in LOGGER_TYPE_TO_CLASS]:
        known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
        raise ConfigError(f"there is no tracker {', '.join(unknown)}", remedy=f"Accelerate knows {known}")
    installed = {getattr(tracker, "value", tracker) for tracker in get_available_trackers()}
    if missing := [name for name in names if name not in installed]:
        raise ConfigError(
            f"not installed: the tracker {', '.join(missing)}", remedy=f"pip install {' '.join(missing)}"
        )


class Trackers:
    """Logs numbers by step, as a context manager; does nothing when no tracker is named.

    Args:
        names: As Accelerate calls them.
        project: Name of the run.
        folder: Where trackers that write files do so.
        config: Plain settings, for the record.

    Raises:
        ConfigError: A name is unknown, or its package is not installed.
    """

    def __init__(
        self, names: Sequence[str], *, project: str, folder: Path, config: Mapping[str, Any]
    ) -> None:
        self._accelerator: Accelerator | None = None
        if not names:
            return
        check_trackers(names)
        self._accelerator = Accelerator(log_with=list(names), project_dir=str(folder))
        plain = {name: value for name, value in config.items() if isinstance(value, int | float | str | bool)}
        self._accelerator.init_trackers(project, config=plain)

    def log(self, row: Mapping[str, Any]) -> None:
        """Log the numbers of a row under its `step`."""
        if self._accelerator is not None:
            values = {
                name: value
                for name, value in row.items()
                if isinstance(value, int | float) and name != "step"
            }
            self._accelerator.log(values, step=int(row["step"]))

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._accelerator is not None:
            self._accelerator.end_training()
