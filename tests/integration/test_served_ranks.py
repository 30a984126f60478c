"""Two processes with servers do what one does: each asks for its share, and the first alone publishes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import load_file
from served_policy import FakeVllm
from spine import ROOT, call, rows
from tiny import save_tiny
from toy_policy import prompts, toy_base

from rlaif.config.rollout import RolloutSettings
from rlaif.models.shared_base import LoraSettings, SharedBase
from rlaif.ranks import Ranks
from rlaif.rl.learner import POLICY
from rlaif.rl.served import ServedSampler

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Of PEFT, as it reads adapters for the stand-in.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

T = TypeVar("T")
RECIPE = """
name: served
model: {model}
dtype: float32
stages:
  - {{stage: sample, prompts: "builtin:everyday", limit: 5, k: 3, max_new_tokens: 5, rollout: {rollout}}}
  - stage: best_of_k
    name: best-of-k
    limit: 5
    k: 3
    max_new_tokens: 4
    lora_rank: 2
    reward: {{vowels: {{kind: function, function: "toy_policy:share_of_vowels"}}}}
    rollout: {rollout}
  - stage: grpo
    limit: 5
    steps: 2
    episodes: 6
    samples_per_prompt: 2
    max_new_tokens: 5
    lora_rank: 2
    reward: {{vowels: {{kind: function, function: "toy_policy:share_of_vowels"}}}}
    rollout: {rollout}
  - {{stage: evaluate, limit: 5, samples: 2, max_new_tokens: 5, win_rate: false, rollout: {rollout}}}
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, Path], dict[int, FakeVllm]]:
    """The run folders of one process and of two, each with a server of its own, and the servers."""
    model = save_tiny(tmp_path_factory.mktemp("model"), context=8192)
    runs, servers = dict[int, Path](), dict[int, FakeVllm]()
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"of-{processes}")
        runs[processes], recipe = folder / "run", folder / "recipe.yaml"
        with FakeVllm(SharedBase.load(str(model), dtype="float32")) as server:
            servers[processes] = server
            rollout = json.dumps({"base_urls": [server.url]})
            recipe.write_text(RECIPE.format(model=model, rollout=rollout))
            arguments = ["run", recipe, "--out", runs[processes]]
            if processes == 1:
                said = call(*arguments)
                assert said.status == 0, said.err
            else:
                run_in_two(arguments, folder)
    return runs, servers


def run_in_two(arguments: list[Any], folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rlaif", *map(str, arguments), "--processes", "2"],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_two_processes_draw_what_one_draws(both: tuple[dict[int, Path], dict[int, FakeVllm]]) -> None:
    runs, _ = both
    completions = [(runs[count] / "sample" / "completions.jsonl").read_bytes() for count in (1, 2)]
    assert completions[0] == completions[1]
    for file in ("best-of-k/kept.jsonl", "grpo/completions.jsonl"):
        one, two = ([row["completion"] for row in rows(runs[count] / file)] for count in (1, 2))
        assert one == two, file
    one, two = (json.loads((runs[count] / "evaluate/evaluation.json").read_text()) for count in (1, 2))
    for mine, theirs in zip(one["policies"], two["policies"], strict=True):
        assert mine["rows"]["texts"] == theirs["rows"]["texts"]


@pytest.mark.parametrize("stage", ["best-of-k", "grpo"])
def test_two_processes_train_what_one_trains(
    both: tuple[dict[int, Path], dict[int, FakeVllm]], stage: str
) -> None:
    one, two = (
        load_file(both[0][count] / stage / "adapter" / "adapter_model.safetensors") for count in (1, 2)
    )
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-5)


def test_nothing_is_published_or_asked_for_twice(both: tuple[dict[int, Path], dict[int, FakeVllm]]) -> None:
    _, servers = both
    for server in servers.values():
        assert server.adapters == {}
        assert len(server.loaded) == len(set(server.loaded))
    assert len(servers[2].loaded) == len(servers[1].loaded)
    asked = [
        Counter((tuple(body["prompt"]), body["seed"], body["n"]) for body in servers[count].asked)
        for count in (1, 2)
    ]
    assert asked[0] == asked[1]


class Second(Ranks):
    """The second rank of two, as far as a draw needs it: the first is given by what it publishes."""

    def __init__(self, published: Any) -> None:
        super().__init__(index=1, count=2)
        self.published = published

    def from_first(self, make: Callable[[], T]) -> T:
        found: T = self.published
        return found


def test_a_rank_asks_for_its_share_as_what_the_first_published(tmp_path: Path) -> None:
    first, second = toy_base(), toy_base()
    settings = {"max_new_tokens": 6, "temperature": 1.0, "folder": tmp_path}
    with FakeVllm(toy_base()) as server:
        rollout = RolloutSettings(base_urls=(server.url,))
        samplers = []
        for base in (first, second):
            base.add_adapter(POLICY, LoraSettings(rank=4), seed=0)
            samplers.append(ServedSampler(base, rollout, **settings))  # type: ignore[arg-type]
        asked = [samplers[0].question(prompt, prompt.messages) for prompt in prompts(5)]
        with first.role(POLICY), second.role(POLICY):
            whole = samplers[0].sample(asked, samples=2, seed=0)
            second.ranks = Second(samplers[0].publish())
            server.asked.clear()
            share = samplers[1].sample(asked, samples=2, seed=0)
        assert len(server.asked) == 3
        assert server.loaded == [f"{samplers[0].run}-v1"]
        for sampler in samplers:
            sampler.close()
    texts = [row.completion.text for row in whole.rows]
    assert [row.completion.text for row in share.rows] == texts[4:]
