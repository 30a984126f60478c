"""PPO and GRPO on servers that sample: they learn as in this process, and what servers do wrong is noticed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from served_policy import FakeVllm, Faults
from spine import call, rows
from tiny import save_tiny
from toy_policy import GROUPS, prompts, share_of_vowels, toy_base

from rlaif.config.grpo import GrpoConfig
from rlaif.config.ppo import PpoConfig
from rlaif.config.rollout import RolloutSettings
from rlaif.errors import ModelError
from rlaif.models.shared_base import LoraSettings, SharedBase
from rlaif.reward.functions import FunctionReward
from rlaif.rl.learner import POLICY
from rlaif.rl.rollout import Sampler
from rlaif.rl.served import ServedSampler
from rlaif.rl.serving.probe import loud
from rlaif.stages.grpo import train_grpo
from rlaif.stages.on_policy import OnPolicyResult
from rlaif.stages.ppo import train_ppo

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Of PEFT, as it reads adapters for the stand-in.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

VOWELS = FunctionReward(share_of_vowels)


def at(*servers: FakeVllm, **rest: Any) -> dict[str, Any]:
    return {"base_urls": [server.url for server in servers], "retries": 3, "backoff": 0.01, **rest}


def grpo(
    *servers: FakeVllm, base: SharedBase | None = None, folder: Path | None = None, **rest: Any
) -> OnPolicyResult:
    settings = {**GROUPS, "rollout": at(*servers) if servers else None, **rest}
    return train_grpo(
        prompts(24),
        base=base or toy_base(),
        reward=VOWELS,
        config=GrpoConfig(**settings),
        seed=0,
        checkpoint_folder=folder,
    )


@contextmanager
def sampler_of(
    *servers: FakeVllm, folder: Path, temperature: float = 1.0, noisy: bool = True
) -> Iterator[ServedSampler]:
    """A sampler of a policy that is far from the reference."""
    base = toy_base()
    base.add_adapter(POLICY, LoraSettings(rank=4, alpha=8.0), seed=0)
    if noisy:
        base.set_adapter_state(POLICY, loud(base.adapter_state(POLICY)))
    with base.role(POLICY):
        sampler = ServedSampler(
            base, RolloutSettings(**at(*servers)), folder=folder, max_new_tokens=6, temperature=temperature
        )
        yield sampler
        sampler.close()


def questions(sampler: Sampler, count: int = 6) -> Any:
    return [sampler.question(prompt, prompt.messages) for prompt in prompts(count)]


def test_grpo_learns_on_two_servers() -> None:
    with FakeVllm(toy_base()) as one, FakeVllm(toy_base()) as other:
        result = grpo(one, other, steps=8)
        rewards = [float(metrics["reward"] or 0.0) for metrics in result.history]
        assert rewards[0] < 0.3
        assert rewards[-1] > 0.9
        for metrics in result.history:
            assert metrics["rollout/ratio"] == pytest.approx(1.0, abs=1e-4)
            assert metrics["rollout/kl_k3"] == pytest.approx(0.0, abs=1e-6)
            assert metrics["rollout/above_cap"] == 0.0
        for server in (one, other):
            assert len(set(server.loaded)) == len(server.loaded), "no name is used twice"
            assert len(server.loaded) == 2 + 8
            assert sorted(server.unloaded) == sorted(server.loaded), "none is left behind"
        assert abs(len(one.asked) - len(other.asked)) <= 2, "they share the prompts"


def test_ppo_learns_on_a_server() -> None:
    with FakeVllm(toy_base()) as server:
        result = train_ppo(
            prompts(24),
            base=toy_base(),
            reward=VOWELS,
            config=PpoConfig(
                **{**GROUPS, "value_learning_rate": 1e-2, "epochs": 3, "steps": 14, "rollout": at(server)}
            ),
            seed=0,
        )
    rewards = [float(metrics["reward"] or 0.0) for metrics in result.history]
    assert rewards[0] < 0.3
    assert sum(rewards[-3:]) / 3 > 0.8


def test_every_sampling_setting_is_said(tmp_path: Path) -> None:
    """So those that the base's own configuration would set do nothing."""
    with FakeVllm(toy_base(), Faults(defaults={"top_k": 2})) as server:
        with sampler_of(server, folder=tmp_path) as sampler:
            sampler.check()
            drawn = sampler.sample(questions(sampler), samples=8, seed=0)
        body = server.asked[-1]
    assert drawn.sampler_logprobs is not None
    torch.testing.assert_close(drawn.logprobs, drawn.sampler_logprobs, atol=1e-5, rtol=0)
    assert {name: body[name] for name in ("top_k", "top_p", "min_p", "repetition_penalty", "min_tokens")} == {
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "min_tokens": 0,
    }
    assert body["n"] == 8


def test_episodes_are_those_of_a_sampler_in_this_process(tmp_path: Path) -> None:
    """Other draws of the same distribution: texts, ends, states and log-probabilities fit each other."""
    with FakeVllm(toy_base()) as server, sampler_of(server, folder=tmp_path, temperature=0.7) as sampler:
        asked = questions(sampler)
        served = sampler.sample(asked, samples=40, seed=3)
        own = Sampler(sampler.base, max_new_tokens=6, temperature=0.7).sample(asked, samples=40, seed=3)
    assert [row.completion.id for row in served.rows] == [row.completion.id for row in own.rows]
    assert served.states.shape[2] == own.states.shape[2]
    assert float(served.has_eos.float().mean()) == pytest.approx(float(own.has_eos.float().mean()), abs=0.1)
    firsts = [
        torch.bincount(episodes.tokens[:, 0], minlength=20).float() / len(episodes)
        for episodes in (served, own)
    ]
    assert float((firsts[0] - firsts[1]).abs().sum()) < 0.25
    assert len({row.completion.text for row in served.rows}) > 10


def test_draws_belong_to_seed_prompt_and_index(tmp_path: Path) -> None:
    with FakeVllm(toy_base()) as server, sampler_of(server, folder=tmp_path) as sampler:
        asked = questions(sampler, 3)
        first = sampler.sample([*asked, asked[0]], samples=4, seed=0)
        again = sampler.sample([asked[2], asked[0]], samples=4, seed=0)
        other = sampler.sample(asked, samples=4, seed=1)
        assert server.loaded == [f"{sampler.run}-v1"], "the policy did not change"
    texts = [row.completion.text for row in first.rows]
    assert [row.completion.text for row in again.rows] == texts[8:12] + texts[:4]
    assert [row.completion.text for row in other.rows] != texts[:12]
    assert texts[:4] != texts[12:], "a prompt asked twice is drawn on"
    assert [row.completion.index for row in first.rows[12:]] == [4, 5, 6, 7]


def test_an_adapter_appears_as_a_whole_and_leaves(tmp_path: Path) -> None:
    with FakeVllm(toy_base()) as server, sampler_of(server, folder=tmp_path) as sampler:
        for scale in (1.0, 0.5, 0.25, 0.125):
            state = sampler.base.adapter_state(POLICY)
            sampler.base.set_adapter_state(POLICY, {name: x * scale for name, x in state.items()})
            sampler.publish()
        assert sorted(path.name for path in tmp_path.iterdir()) == [f"{sampler.run}-v3", f"{sampler.run}-v4"]
        assert sorted(server.adapters) == [f"{sampler.run}-v3", f"{sampler.run}-v4"]
    assert list(tmp_path.iterdir()) == []


def test_a_load_that_one_of_two_refuses_is_taken_back(tmp_path: Path) -> None:
    with (
        FakeVllm(toy_base()) as good,
        FakeVllm(toy_base(), Faults(refuses_loads=1)) as bad,
        sampler_of(good, bad, folder=tmp_path) as sampler,
    ):
        with pytest.raises(ModelError, match="its rank is 4, and the server takes 1 at most") as caught:
            sampler.publish()
        assert caught.value.where == bad.url
        assert good.loaded == good.unloaded == [f"{sampler.run}-v1"]
        assert list(tmp_path.iterdir()) == []
        bad.faults = Faults()
        sampler.publish()
        assert good.loaded[-1] == f"{sampler.run}-v2", "the name of the failed version is not used again"


def test_a_server_started_anew_gets_the_adapter_again() -> None:
    with FakeVllm(toy_base(), Faults(forgets_after=9)) as server:
        result = grpo(server, steps=3)
    assert result.steps == 3
    assert all(metrics["rollout/ratio"] == pytest.approx(1.0, abs=1e-4) for metrics in result.history)
    assert len(server.loaded) > len(set(server.loaded))


def test_while_one_server_is_away_the_other_answers(tmp_path: Path) -> None:
    with FakeVllm(toy_base()) as one, FakeVllm(toy_base()) as other:
        with sampler_of(one, other, folder=tmp_path) as sampler:
            sampler.publish()
            one.faults = Faults(away=3)
            drawn = sampler.sample(questions(sampler), samples=2, seed=0)
        assert len(drawn) == 12
        assert len(one.asked) + len(other.asked) == 6


def test_no_server_at_all() -> None:
    with FakeVllm(toy_base()) as server:
        pass
    with pytest.raises(ModelError, match="did not answer"):
        grpo(server, steps=1, rollout={"base_urls": [server.url], "retries": 0})


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (Faults(stale=2), "does not answer as the adapter"),
        (Faults(base_weights=1.5), "holds another base"),
        (Faults(raw_logprobs=True), "holds another base"),
        (Faults(no_token_ids=True), "no token ids"),
    ],
    ids=["stale", "base", "raw", "text"],
)
def test_a_server_that_cannot_be_trained_with_is_refused_at_the_start(faults: Faults, words: str) -> None:
    with FakeVllm(toy_base(), faults) as server:
        with pytest.raises(ModelError, match=words):
            grpo(server, steps=1, temperature=0.5)
        assert server.adapters == {}, "the adapters of the probe are gone"


def test_an_adapter_that_goes_stale_in_the_run_stops_it() -> None:
    with (
        FakeVllm(toy_base(), Faults(stale=4)) as server,
        pytest.raises(ModelError, match="server and trainer do not hold the same policy"),
    ):
        grpo(server, steps=6)


def test_a_base_that_answers_as_the_adapter_is_seen_and_does_no_harm(tmp_path: Path) -> None:
    for mixed in (False, True):
        with FakeVllm(toy_base(), Faults(base_as_adapter=mixed)) as server:
            with sampler_of(server, folder=tmp_path) as sampler:
                probe = sampler.check()
                sampler.sample(questions(sampler), samples=2, seed=0)
            assert probe.base_is_mixed_up == mixed
            assert server.asked[-1]["model"] == f"{sampler.run}-v1"


def test_the_probe_leaves_the_policy_as_it_was(tmp_path: Path) -> None:
    with FakeVllm(toy_base()) as server, sampler_of(server, folder=tmp_path) as sampler:
        before = sampler.base.adapter_state(POLICY)
        sampler.check()
        after = sampler.base.adapter_state(POLICY)
    for name, x in before.items():
        assert torch.equal(x, after[name])


def test_a_run_goes_on_under_new_names(tmp_path: Path) -> None:
    """Draws on the stand-in repeat bit for bit, so the weights do, too."""
    whole, parts = toy_base(), toy_base()
    with FakeVllm(toy_base()) as server:
        grpo(server, base=whole, folder=tmp_path / "whole", steps=4)
        cut_after(server, tmp_path / "parts", 2)
        result = grpo(server, base=parts, folder=tmp_path / "parts", steps=4, checkpoint_every=2)
        assert len(set(server.loaded)) == len(server.loaded)
        assert server.adapters == {}
    assert result.first_step == 2
    expected, found = whole.adapter_state(POLICY), parts.adapter_state(POLICY)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=1e-5)


def cut_after(server: FakeVllm, folder: Path, steps: int) -> None:
    """Begin a run of 4 steps, and interrupt it after `steps` and a checkpoint."""

    def stop(metrics: Any) -> None:
        if metrics["step"] == steps:
            raise KeyboardInterrupt

    settings = {**GROUPS, "steps": 4, "checkpoint_every": 2, "rollout": at(server)}
    with pytest.raises(KeyboardInterrupt):
        train_grpo(
            prompts(24),
            base=toy_base(),
            reward=VOWELS,
            config=GrpoConfig(**settings),
            seed=0,
            on_step=stop,
            checkpoint_folder=folder,
        )


def test_the_command_line_names_the_servers(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    lines = [json.dumps({"id": f"p{at}", "prompt": f"Say {at}."}) for at in range(8)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with FakeVllm(SharedBase.load(str(tmp_path / "model"), dtype="float32")) as server:
        said = call(
            *("grpo", "--model", tmp_path / "model", "--dtype", "float32"),
            *("--reward-function", "toy_policy:share_of_vowels", "--prompts", tmp_path / "prompts.jsonl"),
            *("--steps", 2, "--episodes", 8, "--samples-per-prompt", 4, "--max-new-tokens", 5),
            *("--rollout-url", server.url, "--out", tmp_path / "run"),
        )
    assert said.status == 0, said.err
    metrics = rows(tmp_path / "run" / "grpo" / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [0, 1]
    assert all(abs(row["rollout/ratio"] - 1) < 1e-3 for row in metrics)
    assert not list((tmp_path / "run").rglob("rlaif-*-v*")), "no adapter of a step is left"
    assert (tmp_path / "run" / "grpo" / "adapter" / "adapter_model.safetensors").exists()
