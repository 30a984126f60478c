"""Metrics reach a tracker, step by step; a tracker that is not there is told before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker

from rlaif.errors import ConfigError
from rlaif.jobs import tracking
from rlaif.jobs.tracking import Trackers


class Kept(GeneralTracker):
    """Keeps what it is told, as a tracker of a user's own would."""

    name = "kept"
    requires_logging_directory = False
    told: list[tuple[int | None, dict[str, Any]]] = []  # noqa: RUF012 - of the class, to be read from outside

    def __init__(self, run_name: str, **options: Any) -> None:
        super().__init__()
        self.run_name = run_name

    @property
    def tracker(self) -> str:
        return self.run_name

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.told.append((None, values))

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        self.told.append((step, values))


def test_numbers_are_logged_by_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Accelerated:
        """What `Accelerator` does for trackers, without its process-wide state."""

        def __init__(self, log_with: list[str], project_dir: str) -> None:
            self.log_with = log_with
            self.kept = Kept(project_dir)

        def init_trackers(self, project: str, config: dict[str, Any]) -> None:
            self.kept.store_init_configuration({"project": project, **config})

        def log(self, values: dict[str, Any], step: int) -> None:
            self.kept.log(values, step)

        def end_training(self) -> None:
            self.kept.log({"ended": 1})

    monkeypatch.setattr(tracking, "Accelerator", Accelerated)
    monkeypatch.setattr(tracking, "LOGGER_TYPE_TO_CLASS", {"kept": Kept})
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["kept"])
    with Trackers(
        ["kept"], project="p", folder=tmp_path, config={"steps": 2, "kl": {"beta": 0.05}}
    ) as trackers:
        trackers.log({"step": 0, "reward": 0.5, "note": "x", "nothing": None})
        trackers.log({"step": 1, "reward": 0.7})
    assert Kept.told == [
        (None, {"project": "p", "steps": 2}),
        (0, {"reward": 0.5}),
        (1, {"reward": 0.7}),
        (None, {"ended": 1}),
    ]


def test_no_tracker_is_no_work(tmp_path: Path) -> None:
    with Trackers([], project="p", folder=tmp_path, config={}) as trackers:
        trackers.log({"step": 0})
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_tracker_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no tracker nothing"):
        Trackers(["nothing"], project="p", folder=tmp_path, config={})
