"""Evaluations as logs of Inspect, read back by Inspect itself. Not among the tests that run by themselves: `pytest
tests/inspect_logs`, with the extra `inspect`."""

from __future__ import annotations

from pathlib import Path

from inspect_ai.log import EvalLog, list_eval_logs, read_eval_log
from reported import EVIL, PROMPTS, STAGES, write_run
from spine import call

from rlaif.text import well_formed


def logs(run: Path) -> dict[str, EvalLog]:
    found = [read_eval_log(info) for info in list_eval_logs(str(run / "inspect"))]
    return {log.eval.model: log for log in found}


def test_inspect_reads_what_was_measured_and_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", text=well_formed(EVIL))
    said = call("report", run, "--inspect")
    assert said.status == 0, said.err
    assert f"inspect view --log-dir {run / 'inspect'}" in said.out
    found = logs(run)
    assert set(found) == {"rlaif/start", "rlaif/ppo"}
    log = found["rlaif/ppo"]
    assert log.status == "success"
    assert log.samples is not None
    assert [sample.id for sample in log.samples] == [f"p{number}" for number in range(PROMPTS)]
    second = log.samples[1]
    assert second.output.completion == f"ppo 1 {well_formed(EVIL)}"
    assert second.messages[0].text.startswith("asked p1 <script>")
    assert second.scores is not None
    assert {name: score.value for name, score in second.scores.items()} == {
        "reward": 1.0,
        "gold": 0.5,
        "win": 0.0,
    }
    assert "calm: shown first 0.668, shown second invalid: no label <b>" in str(
        second.scores["win"].explanation
    )
    assert log.results is not None
    means = {score.name: score.metrics["mean"].value for score in log.results.scores}
    assert means["reward"] == 1.0
    assert found["rlaif/start"].samples is not None


def test_the_same_evaluation_gives_the_same_bytes(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, text="word") for name in ("one", "two")]
    for run in runs:
        call("report", run, "--inspect")
    one, two = ({path.name: path.read_bytes() for path in (run / "inspect").iterdir()} for run in runs)
    assert one == two
    assert len(one) == 2


def test_a_run_without_an_evaluation_has_none(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", stages=STAGES[:2], text="word")
    said = call("report", run, "--inspect")
    assert said.status == 1
    assert "this run has no evaluation to write as logs" in said.err
