"""A monitor reads held-out prompts along a training and leaves the training as it is; it stops one that
over-optimises, and goes on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_tiny
from toy_policy import GROUPS, prompts, share_of_vowels, toy_base

from rlaif.config import load_recipe, parse_recipe
from rlaif.config.grpo import GrpoConfig
from rlaif.config.monitor import MonitorSettings
from rlaif.config.ppo import PpoConfig
from rlaif.engines.journaled import NullMemo
from rlaif.errors import ConfigError, DataError, RunError
from rlaif.jobs.context import RunContext
from rlaif.jobs.ppo import PpoJob
from rlaif.jobs.tracking import Trackers
from rlaif.models.shared_base import SharedBase
from rlaif.models.start import Start
from rlaif.pipeline.run import run_recipe
from rlaif.progress import NoProgress
from rlaif.results.monitor import MonitorReading
from rlaif.reward.functions import FunctionReward, RewardSum
from rlaif.rl.learner import POLICY
from rlaif.rl.step import Metrics
from rlaif.stages import monitor as stage_monitor
from rlaif.stages.grpo import train_grpo
from rlaif.stages.monitor import Monitor
from rlaif.stages.on_policy import OnPolicyResult
from rlaif.stages.ppo import train_ppo
from rlaif.types import Completion, Prompt

SETTINGS: dict[str, Any] = {
    "steps": 5,
    "episodes": 8,
    "samples_per_prompt": 2,
    "max_new_tokens": 4,
    "lora_rank": 4,
    "lora_alpha": 8.0,
    "learning_rate": 1e-2,
    "anneal": False,
    "checkpoint_every": 2,
}
WATCH: dict[str, Any] = {"gold": {"kind": "function", "function": "toy_policy:share_of_vowels"}, "every": 2}


RECIPE = """
name: watched
model: {model}
dtype: float32
stages:
  - stage: ppo
    prompts: {prompts}
    limit: {limit}
    steps: 2
    episodes: 4
    max_new_tokens: 4
    lora_rank: 2
    reward: {{vowels: {{kind: function, function: toy_policy:share_of_vowels}}}}
    monitor:
      gold: {{kind: function, function: toy_policy:share_of_vowels, weight: -1}}
      every: 1
      prompts: 3
      patience: {patience}
"""


class Notes(NoProgress):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


class Killed(Exception):
    """Stands for the process's end."""


def consonants(prompt: Prompt, completion: Completion) -> float:
    return 1 - share_of_vowels(prompt, completion)


def watcher(
    told: list[tuple[MonitorReading, bool]],
    gold: Callable[[Prompt, Completion], float] = share_of_vowels,
    killed_at: int = -1,
    **settings: Any,
) -> Monitor:
    def on_reading(reading: MonitorReading, alarm: bool) -> None:
        told.append((reading, alarm))
        if reading.step == killed_at:
            raise Killed

    return Monitor(
        prompts=prompts(24)[16:],
        proxy=FunctionReward(share_of_vowels, name="proxy"),
        gold=FunctionReward(gold, name="gold"),
        settings=MonitorSettings(**WATCH | settings),
        on_reading=on_reading,
    )


def train(
    base: SharedBase,
    monitor: Monitor | None,
    folder: Path | None = None,
    *,
    start: Start | None = None,
    **changed: Any,
) -> OnPolicyResult:
    watched = {"monitor": monitor.settings.model_dump()} if monitor else {}
    return train_ppo(
        prompts(6),
        base=base,
        reward=FunctionReward(share_of_vowels),
        config=PpoConfig(**SETTINGS | watched | changed),
        seed=7,
        checkpoint_folder=folder,
        monitor=monitor,
        start=start,
    )


def weights(base: SharedBase) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in base.trainable(POLICY)]


def same(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def figures(reading: MonitorReading) -> dict[str, Any]:
    return {name: value for name, value in reading.as_row().items() if name != "seconds"}


def metrics(result: OnPolicyResult) -> list[Metrics]:
    return [
        {name: value for name, value in step.items() if not name.startswith("seconds/")}
        for step in result.history
    ]


def test_a_watched_training_makes_the_same_policy() -> None:
    watched, alone = toy_base(), toy_base()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    told: list[tuple[MonitorReading, bool]] = []
    result = train(watched, watcher(told))
    assert torch.equal(torch.get_rng_state(), before)
    assert metrics(result) == metrics(train(alone, None))
    assert same(weights(watched), weights(alone))
    assert [reading.step for reading, _ in told] == [0, 2, 4, 5]
    first, last = told[0][0], told[-1][0]
    assert first.kl < 1e-6 < last.kl
    assert last.proxy.value > first.proxy.value
    # The gold measure is the proxy here, so both are read alike.
    assert all(reading.proxy == reading.gold for reading, _ in told)
    assert not any(alarm for _, alarm in told)
    assert result.monitor is not None
    assert result.monitor.readings == tuple(reading for reading, _ in told)


def test_grpo_is_watched_too_and_a_reading_is_of_the_policy_of_its_step() -> None:
    settings = {**GROUPS, "episodes": 16, "samples_per_prompt": 4, "steps": 2}
    base, alone, told = toy_base(), toy_base(), []
    monitor = watcher(told, every=5)
    for each, watch in ((base, monitor), (alone, None)):
        more = {"monitor": monitor.settings.model_dump()} if watch else {}
        train_grpo(
            prompts(8),
            base=each,
            reward=FunctionReward(share_of_vowels),
            config=GrpoConfig(**settings | more),
            seed=7,
            monitor=watch,
        )
    assert same(weights(base), weights(alone))
    assert [reading.step for reading, _ in told] == [0, 2]


def test_at_the_alarm_the_policy_of_the_best_gold_reading_is_back() -> None:
    base, told = toy_base(), []
    result = train(base, watcher(told, gold=consonants, every=1, patience=2, stop=True), steps=8)
    assert told[-1][1]
    assert result.monitor is not None
    report = result.monitor
    assert report.kept == 0, "the gold measure is the proxy's opposite, so the start policy is best"
    assert report.alarms == (told[-1][0].step,)
    assert result.steps == told[-1][0].step < 8
    assert "the policy of step 0 is back" in result.stopped
    assert any("stopped early; the policy is that of step 0" in each for each in report.words)
    untrained = toy_base()
    train(untrained, None, steps=1, learning_rate=1e-12)
    assert all(
        torch.allclose(a, b, atol=1e-9) for a, b in zip(weights(base), weights(untrained), strict=True)
    )


def test_a_training_that_runs_away_says_which_policy_is_left(tmp_path: Path) -> None:
    base, untrained, resumed = toy_base(), toy_base(), toy_base()
    report = train(base, watcher([], every=1), tmp_path, max_kl=1e-6, checkpoint_every=1).monitor
    train(untrained, None, steps=1, learning_rate=1e-12)
    again = train(resumed, watcher([], every=1), tmp_path, max_kl=1e-6, checkpoint_every=1)
    assert again.first_step == 1
    for found, own in ((report, base), (again.monitor, resumed)):
        assert found is not None
        assert [each.step for each in found.readings] == [0, 1]
        assert found.kept == 0
        pairs = zip(weights(own), weights(untrained), strict=True)
        assert all(torch.allclose(a, b, atol=1e-9) for a, b in pairs)


def test_a_policy_that_a_runaway_returns_to_is_read_if_it_was_not() -> None:
    kls = [float(step["kl"] or 0) for step in train(toy_base(), None).history]
    assert kls[1] < kls[2], "the third rollout is the first that is too far"
    told: list[tuple[MonitorReading, bool]] = []
    base, one_step = toy_base(), toy_base()
    report = train(base, watcher(told, every=5), max_kl=(kls[1] + kls[2]) / 2).monitor
    train(one_step, watcher([], every=5), steps=1, anneal=False)
    assert report is not None
    assert report.kept == 1
    assert [each.step for each in report.readings] == [each.step for each, _ in told] == [0, 1]
    assert same(weights(base), weights(one_step))
    assert "stopped early; the policy is that of step 1, " in report.words[0]


def test_an_alarm_alone_stops_nothing() -> None:
    told: list[tuple[MonitorReading, bool]] = []
    result = train(toy_base(), watcher(told, gold=consonants, every=1, patience=2))
    assert result.stopped == ""
    assert result.steps == 5
    assert result.monitor is not None
    assert result.monitor.kept is None
    assert result.monitor.alarms


@pytest.mark.parametrize("at", [0, 5])
def test_a_killed_training_goes_on_with_its_readings(tmp_path: Path, at: int) -> None:
    undisturbed: list[tuple[MonitorReading, bool]] = []
    whole = toy_base()
    train(whole, watcher(undisturbed, every=1, stop=True))
    with pytest.raises(Killed):
        train(toy_base(), watcher([], every=1, stop=True, killed_at=at), tmp_path)
    resumed = toy_base()
    result = train(resumed, watcher([], every=1, stop=True), tmp_path)
    assert result.first_step == max(0, at - 1) // 2 * 2
    assert result.monitor is not None
    assert [figures(each) for each in result.monitor.readings] == [figures(each) for each, _ in undisturbed]
    assert same(weights(resumed), weights(whole))


def test_a_killed_training_still_returns_to_a_policy_from_before(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"gold": consonants, "every": 1, "patience": 4, "stop": True}
    straight, resumed = toy_base(), toy_base()
    expected = train(straight, watcher([], **settings))
    with pytest.raises(Killed):
        train(toy_base(), watcher([], **settings, killed_at=3), tmp_path)
    result = train(resumed, watcher([], **settings), tmp_path)
    assert result.first_step == 2
    assert result.stopped == expected.stopped != ""
    assert same(weights(resumed), weights(straight))


def test_the_curve_of_a_policy_that_is_trained_further_begins_where_its_reference_is(tmp_path: Path) -> None:
    base = toy_base()
    train(base, None, steps=2)
    base.save_adapter(POLICY, tmp_path / "adapter")
    for held in (True, False):
        report = train(
            toy_base(), watcher([], every=5), steps=1, start=Start(tmp_path / "adapter", held=held)
        ).monitor
        assert report is not None
        assert report.further is not held
        assert (report.readings[0].kl < 1e-6) is held


def test_a_part_of_weight_0_is_measured_and_not_learned() -> None:
    def trained(parts: dict[str, tuple[float, Any]]) -> tuple[list[torch.Tensor], OnPolicyResult]:
        base = toy_base()
        config = PpoConfig(**SETTINGS | {"steps": 2})
        result = train_ppo(prompts(6), base=base, reward=RewardSum(parts), config=config, seed=7)
        return weights(base), result

    own = {"own": (1.0, FunctionReward(share_of_vowels))}
    alone, _ = trained(own)
    beside, result = trained({**own, "other": (0.0, FunctionReward(consonants))})
    assert same(alone, beside)
    for step in result.history:
        assert step["reward"] == pytest.approx(step["reward/own"])
        assert step["reward/other"] == pytest.approx(1 - float(step["reward/own"] or 0))


def test_settings_with_a_monitor_need_one() -> None:
    with pytest.raises(ConfigError, match="no held-out prompts were given"):
        train_ppo(
            prompts(6),
            base=toy_base(),
            reward=FunctionReward(share_of_vowels),
            config=PpoConfig(**SETTINGS, monitor=WATCH),
            seed=7,
        )


def written(folder: Path, *, limit: int = 3, patience: int = 1) -> Path:
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    asked = folder / "prompts.jsonl"
    asked.write_text("".join(json.dumps({"prompt": f"Say {word}."}) + "\n" for word in words))
    recipe = folder / "recipe.yaml"
    model = save_tiny(folder / "tiny") if not (folder / "tiny").exists() else folder / "tiny"
    recipe.write_text(RECIPE.format(model=model, prompts=asked, limit=limit, patience=patience))
    return recipe


@pytest.mark.usefixtures("one_thread")
def test_a_comparison_shows_what_the_monitor_of_a_policy_read(tmp_path: Path) -> None:
    recipe, held_out = written(tmp_path), tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps({"prompt": f"Count {at}."}) + "\n" for at in range(3)))
    measured = (
        f"  - {{stage: evaluate, prompts: {held_out}, samples: 1, max_new_tokens: 4, win_rate: false, "
        "gold: 'toy_policy:letters'}\n  - {stage: compare, resamples: 100}\n"
    )
    recipe.write_text(recipe.read_text() + measured)
    out = tmp_path / "run"
    run_recipe(load_recipe(recipe), out=out)
    rows = [json.loads(line) for line in (out / "ppo" / "monitor.jsonl").read_text().splitlines()]
    found = json.loads((out / "compare" / "comparison.json").read_text())
    watched = found["monitors"]["ppo"]
    assert [(each["step"], each["gold"]["value"]) for each in watched["readings"]] == [
        (row["step"], row["gold"]) for row in rows
    ]
    [table] = [
        each for each in found["tables"] if each["title"] == "Over-optimisation along the training of ppo"
    ]
    assert [row[0] for row in table["rows"]] == ["0", "1", "2"]
    assert f"## {table['title']}" in (out / "compare" / "comparison.md").read_text()
    assert any(line.startswith("The monitor of `ppo`'s training: ") for line in found["verdict"])
    (out / "evaluate" / "monitors.json").write_text('{"ppo": {"readings": [{}], "statistics": {}}}')
    with pytest.raises(RunError, match="what the monitor of 'ppo' read is damaged"):
        run_recipe(parse_recipe(compared(out), source="test"), out=tmp_path / "again")


def compared(run: Path) -> str:
    evaluation = str(run / "evaluate" / "evaluation.json")
    stages = [{"stage": "compare", "evaluations": [evaluation], "resamples": 100}]
    return json.dumps({"name": "again", "model": "scripted", "stages": stages})


@pytest.mark.usefixtures("one_thread")
def test_a_run_writes_its_readings_and_tells_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracked: list[dict[str, Any]] = []
    monkeypatch.setattr(Trackers, "log", lambda self, row: tracked.append(dict(row)))
    monkeypatch.setattr(stage_monitor, "is_alarming", lambda readings, patience: len(readings) == 3)
    out, notes = tmp_path / "run", Notes()
    [stage] = run_recipe(load_recipe(written(tmp_path)), out=out, progress=notes).stages
    rows = [json.loads(line) for line in (out / "ppo" / "monitor.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(row["gold"] == -row["proxy"] == -row["part/vowels"] for row in rows)
    stated = json.loads((out / "ppo" / "statistics.json").read_text())["monitor"]
    assert stated["tokens"] == sum(row["tokens"] for row in rows) == stage.manifest.counts["monitor_tokens"]
    steps = [json.loads(line) for line in (out / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert stage.manifest.counts["tokens"] == sum(step["tokens"] for step in steps)
    told = [row for row in tracked if "monitor/gold" in row]
    assert [row["monitor/gold"] for row in told] == [row["gold"] for row in rows]
    assert [row["step"] for row in told if row["monitor/alarm"]] == [2]
    assert sum("WARNING: the policy over-optimises" in line for line in notes.lines) == 1
    assert "## On held-out prompts" in (out / "ppo" / "samples.md").read_text()
    again = run_recipe(load_recipe(written(tmp_path)), out=out, progress=notes)
    assert again.stages[0].skipped
    other = run_recipe(load_recipe(written(tmp_path, patience=2)), out=out, progress=notes)
    assert not other.stages[0].skipped


def test_what_earlier_runs_trained_on_is_not_held_out(tmp_path: Path) -> None:
    written(tmp_path, limit=2)
    read = {prompt.id for prompt in held_out_of(tmp_path, first=0)}
    trained = [job_of(tmp_path, first=first).prompts for first in (0, 2, 4)]
    later = {prompt.id for prompt in held_out_of(tmp_path, first=4)}
    assert len(read) == len(later) == 3
    assert not later & {prompt.id for prompts in trained for prompt in prompts}


def job_of(folder: Path, *, first: int) -> PpoJob:
    recipe = load_recipe(folder / "recipe.yaml", (f"stages.ppo.skip={first}",))
    [config] = recipe.stages
    return PpoJob(config, RunContext(recipe, memo=NullMemo(), progress=NoProgress()))  # type: ignore[arg-type]


def held_out_of(folder: Path, *, first: int) -> tuple[Prompt, ...]:
    return job_of(folder, first=first).held_out


def test_prompts_that_are_trained_on_are_never_held_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"wants 3 prompts, and \d of the 10 are free"):
        run_recipe(load_recipe(written(tmp_path, limit=10)), out=tmp_path / "run")
