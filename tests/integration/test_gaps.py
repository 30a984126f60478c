"""A server that fails and heals: a stage with unanswered questions says so, and the same command asks them
again, and only them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from killing import timeless
from misbehaving import MisbehavingServer, answer, question_of, status
from spine import call, rows
from tiny import save_tiny

from rlaif.digest import unit_from

SHARE = 0.04
"""Of the questions that get no answer while the server is ill."""

RECIPE = """
name: gaps
constitution: default
model: {model}
dtype: float32
server: {{base_urls: ["{url}"], reads: logprobs, continues: false, retries: 0, backoff: 0.01, give_up_after: 1000}}
stages:
  - {{stage: audit, judge: "openai:toy", protocol: pairwise, data: {pairs}, variants: 0, probes: none, principles: all}}
  - {{stage: label, judge: "openai:toy", responses: {pairs}, principles: all, max_invalid: 0.2}}
  - {{stage: dpo, files: [{{file: {pairs}}}], lora_rank: 2, learning_rate: 0.05, epochs: 3}}
  - stage: evaluate
    judge: "openai:toy"
    prompts: "builtin:everyday"
    limit: 4
    policies: [dpo]
    samples: 2
    max_new_tokens: 8
"""


class Illness:
    """Refuses some questions, always the same ones, until it is cured."""

    def __init__(self) -> None:
        self.cured = False
        self._good = answer()

    def __call__(self, handler: Any, body: dict[str, Any]) -> None:
        ill = not self.cured and unit_from("ill", question_of(body)) < SHARE
        (status(500) if ill else self._good)(handler, body)


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(
            json.dumps({"prompt": f"Say {n}.", "chosen": f"Gladly: {n}.", "rejected": "No."}) + "\n"
            for n in range(10)
        )
    )
    return {"pairs": pairs, "model": save_tiny(tmp_path / "model")}


def results(run: Path) -> list[Any]:
    written = [
        json.loads((run / name).read_text()) for name in ("audit/audit.json", "evaluate/evaluation.json")
    ]
    return [timeless(each) for each in written] + rows(run / "label" / "preferences.jsonl")


def gaps(run: Path) -> dict[str, int]:
    return {path.parent.name: json.loads(path.read_text())["gaps"] for path in run.glob("*/manifest.json")}


def test_only_the_gaps_are_asked_again_and_the_end_is_that_of_a_healthy_server(
    tmp_path: Path, inputs: dict[str, Path]
) -> None:
    illness = Illness()
    with MisbehavingServer(always=illness) as server:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(RECIPE.format(url=server.url, **inputs), encoding="utf-8")
        ill = tmp_path / "ill" / "run"
        said = call("run", recipe, "--out", ill)
        assert said.status == 0, said.err
        found = gaps(ill)
        assert found["audit"] > 0
        assert found["label"] > 0
        assert found["evaluate"] > 0
        assert "questions got no answer" in said.out
        asked, illness.cured = len(server.asked), True
        again = call("run", recipe, "--out", ill)
        assert again.status == 0, again.err
        assert set(gaps(ill).values()) == {0}
        assert "questions got no answer" not in again.out
        assert (
            len(server.asked) - asked
            == len({question_of(body) for body in server.asked[asked:]})
            <= sum(found.values())
        )
        healthy = tmp_path / "healthy" / "run"
        assert call("run", recipe, "--out", healthy).status == 0
        assert results(ill) == results(healthy)
        before = len(server.asked)
        assert "finished before" in call("run", recipe, "--out", ill).err
        assert len(server.asked) == before, "nothing is left to ask"


def test_an_audit_that_got_few_answers_is_refused(tmp_path: Path, inputs: dict[str, Path]) -> None:
    with MisbehavingServer(always=status(500)) as server:
        text = RECIPE.format(url=server.url, **inputs)
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(text[: text.index("  - {stage: label")], encoding="utf-8")
        said = call("run", recipe, "--out", tmp_path / "run")
    assert said.status == 1
    assert "got no answer" in said.err
