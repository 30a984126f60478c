"""How long so many tokens take: shared beginnings are read once, and models that run elsewhere have no
estimate."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlaif.cli.dry_run import estimate_line
from rlaif.config import load_recipe
from rlaif.jobs import estimate
from rlaif.models import speed as speed_module
from rlaif.models.speed import Speed
from rlaif.pipeline.dry_run import plan_recipe


@pytest.mark.parametrize(
    ("groups", "share"),
    [
        ([], 1.0),
        ([["abcd"]], 1.0),
        ([["abcd", "abcd"]], 0.5),
        ([["abcd", "abxy"], ["abcd"]], 10 / 12),
        ([["abx", "b", "aby", "a"]], 5 / 8),
    ],
)
def test_a_beginning_is_read_once_within_a_group(groups: list[list[str]], share: float) -> None:
    assert estimate.shared(groups) == pytest.approx(share)


def test_models_that_run_elsewhere_have_no_estimate() -> None:
    for model in ("scripted", "openai:some/model"):
        assert estimate.seconds(model, dtype="auto", device="cpu", read=1e6) is None


def test_reading_learning_and_writing_cost_what_the_formulas_say(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = Speed(flops=1e12, weights=1e9, elements=1e10, starts=1e5)
    monkeypatch.setattr(estimate, "machine_speed", lambda dtype, device: speed)

    def seconds(**work: float) -> float:
        found = estimate.seconds("smollm2-135m", dtype="auto", device="cpu", **{"read": 0, **work})  # type: ignore[arg-type]
        assert found is not None
        return found

    layers, head = 106.2e6, 28.3e6
    units = 30 * 576 / 1e10
    assert seconds(read=1000) == pytest.approx(1000 * (2 * layers / 1e12 + 55 * units), rel=0.01)
    assert seconds(learned=1000) == pytest.approx(1000 * (4 * layers / 1e12 + 1000 * units), rel=0.01)
    assert seconds(logits=1000) == pytest.approx(1000 * 2 * head / 1e12, rel=0.01)
    step = (layers + head) / 1e9 + 1.35 * 2 * (layers + head) * 32 / 1e12 + 330 * 30 / 1e5
    assert seconds(write=32 * 40, rows=32) == pytest.approx(40 * step, rel=0.01)
    assert seconds(write=32 * 40, rows=64) < seconds(write=32 * 40, rows=32)  # steps wait less


def test_the_speed_of_this_machine_is_that_of_the_work_it_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that stands at each piece of work: the rates follow from it and from nothing else."""
    now = iter(range(1000))
    monkeypatch.setattr(speed_module.time, "perf_counter", lambda: float(next(now)))
    found = speed_module.machine_speed.__wrapped__("float32", "cpu")
    # The look at the clock after one piece of work is a second later, which is past every share.
    assert found == Speed(
        flops=2.0 * 512 * 576 * 1536 / 2, weights=576 * 1536 / 2, elements=512 * 576 / 2, starts=100 / 2
    )


BFLOAT16 = Speed(flops=1.76e11, weights=2.83e9, elements=5.17e9, starts=3.24e5)
"""Of one thread of the machine of docs/LOG.md, in processor seconds."""
FLOAT32 = Speed(flops=8.42e10, weights=2.33e9, elements=9.5e9, starts=3.2e5)
"""The same with AVX2 alone."""
MEASURED: list[tuple[Speed, dict[str, float], float]] = [
    (BFLOAT16, {"write": 4, "rows": 4}, 0.085),
    (BFLOAT16, {"write": 16, "rows": 16}, 0.110),
    (BFLOAT16, {"write": 32, "rows": 32}, 0.147),
    (BFLOAT16, {"write": 64, "rows": 64}, 0.215),
    (BFLOAT16, {"read": 1024}, 1.396),
    (BFLOAT16, {"learned": 1024, "logits": 2 * 384}, 5.873),
    (FLOAT32, {"write": 4, "rows": 4}, 0.103),
    (FLOAT32, {"write": 16, "rows": 16}, 0.149),
    (FLOAT32, {"write": 32, "rows": 32}, 0.216),
    (FLOAT32, {"write": 64, "rows": 64}, 0.366),
    (FLOAT32, {"read": 1024}, 2.698),
    (FLOAT32, {"learned": 1024, "logits": 2 * 384}, 7.782),
]
"""Processor seconds of SmolLM2-135M (docs/LOG.md)."""


@pytest.mark.parametrize(("speed", "work", "took"), MEASURED)
def test_what_was_measured_is_estimated(
    monkeypatch: pytest.MonkeyPatch, speed: Speed, work: dict[str, float], took: float
) -> None:
    monkeypatch.setattr(estimate, "machine_speed", lambda dtype, device: speed)
    found = estimate.seconds("smollm2-135m", dtype="auto", device="cpu", **{"read": 0, **work})  # type: ignore[arg-type]
    assert found == pytest.approx(took, rel=0.12)


def test_every_stage_of_the_quickstart_is_estimated_as_it_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Processor seconds of one thread in bfloat16 (docs/LOG.md)."""
    took = {
        "sample": 31.6,
        "revise": 7.7,
        "audit": 18.9,
        "label": 40.0,
        "reward": 16.4,
        "best-of-k": 137.0,
        "ppo": 244.0,
        "evaluate": 204.0,
    }
    monkeypatch.setattr(estimate, "machine_speed", lambda dtype, device: BFLOAT16)
    plan = plan_recipe(load_recipe("quickstart"))
    for stage in plan.stages:
        if stage.seconds is not None:
            assert stage.seconds == pytest.approx(took[stage.name], rel=0.27), stage.name
    assert plan.seconds == pytest.approx(sum(took.values()), rel=0.12)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose speed does not depend on what else it does."""
    monkeypatch.setattr(estimate, "machine_speed", lambda dtype, device: Speed(1e12, 1e10, 1e10, 1e5))


def test_a_plan_has_a_time_for_every_stage_of_the_quickstart_that_runs_a_model(fast: None) -> None:
    plan = plan_recipe(load_recipe("quickstart"))
    times = {stage.name: stage.seconds for stage in plan.stages}
    assert times.pop("compare") is None
    assert all(time is not None and time > 0.1 for time in times.values())
    assert plan.seconds == pytest.approx(sum(time for time in times.values() if time is not None))


def test_what_makes_a_stage_longer_is_in_its_estimate(fast: None) -> None:
    more = {"reward": "keep=lora", "best-of-k": "epochs=6", "ppo": "epochs=2", "evaluate": "judged=3"}
    plain, longer = (
        {each.name: each.seconds or 0 for each in plan_recipe(load_recipe("quickstart", changes)).stages}
        for changes in ([], [f"stages.{stage}.{setting}" for stage, setting in more.items()])
    )
    for stage in more:
        assert longer.pop(stage) > 1.02 * plain.pop(stage)
    assert longer == plain


def test_the_line_before_a_run_is_of_the_stages_that_are_ahead(fast: None, tmp_path: Path) -> None:
    recipe, noted = load_recipe("quickstart"), list[str]()
    line = estimate_line(recipe, tmp_path, note=noted.append)
    assert line.startswith("about ")
    assert "sample " in line
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / "manifest.json").write_text("{}")
    assert "sample " not in estimate_line(recipe, tmp_path, note=noted.append)
    assert estimate_line(load_recipe("quickstart", ["model=scripted"]), tmp_path, note=noted.append) == ""
