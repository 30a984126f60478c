"""Best of K, sample and evaluate on servers: the completions come from them, everything else is as in this process."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from served_policy import FakeVllm, Faults
from spine import call, rows
from tiny import save_tiny
from toy_policy import GROUPS, prompts, share_of_vowels, toy_base

from rlaif.config import parse_recipe
from rlaif.config.evaluation import EvaluateConfig
from rlaif.config.finetune import BestOfKConfig
from rlaif.config.grpo import GrpoConfig
from rlaif.errors import ModelError
from rlaif.models import open as models_open
from rlaif.models import shared_base
from rlaif.models.shared_base import REFERENCE, LoraSettings, SharedBase
from rlaif.pipeline.dry_run import plan_recipe
from rlaif.results.best_of_k import BestOfKResult
from rlaif.results.evaluation import Evaluation
from rlaif.reward.functions import FunctionReward
from rlaif.rl.learner import POLICY
from rlaif.rl.serving.probe import loud
from rlaif.stages.best_of_k import best_of_k
from rlaif.stages.evaluate import Metrics, PolicySource, evaluate
from rlaif.stages.grpo import train_grpo

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Of PEFT, as it reads adapters for the stand-in.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

VOWELS = FunctionReward(share_of_vowels)
BEST: dict[str, Any] = {
    "k": 8,
    "rounds": 2,
    "max_new_tokens": 6,
    "missing_eos_penalty": 0.0,
    "lora_rank": 4,
    "lora_alpha": 8.0,
    "learning_rate": 2e-2,
    "epochs": 3,
    "measure_prompts": 16,
}
MEASURE: dict[str, Any] = {"samples": 16, "max_new_tokens": 6, "win_rate": False}


def at(*servers: FakeVllm, **rest: Any) -> dict[str, Any]:
    return {"base_urls": [server.url for server in servers], "retries": 3, "backoff": 0.01, **rest}


def choose(*servers: FakeVllm, base: SharedBase | None = None, **rest: Any) -> BestOfKResult:
    config = BestOfKConfig(**{**BEST, "rollout": at(*servers) if servers else None, **rest})
    return best_of_k(prompts(24), base=base or toy_base(), reward=VOWELS, config=config, seed=0)


def measure(base: SharedBase, *servers: FakeVllm, **rest: Any) -> Evaluation:
    config = EvaluateConfig(**MEASURE, rollout=at(*servers, **rest) if servers else None)
    policies = {"start": PolicySource(base), **{name: PolicySource(base, name) for name in base.roles}}
    metrics = Metrics({"vowels_metric": share_of_vowels})
    return evaluate(prompts(24), policies, start="start", config=config, seed=0, metrics=metrics)


def with_policies(*scales: float) -> SharedBase:
    """A base with policies that are that far from the reference."""
    base = toy_base()
    for number, scale in enumerate(scales):
        base.add_adapter(f"p{number}", LoraSettings(rank=4, alpha=8.0), seed=number, train=False)
        state = loud(base.adapter_state(f"p{number}"))
        far = {name: x * scale if "lora_B" in name else x for name, x in state.items()}
        base.set_adapter_state(f"p{number}", far)
    return base


# Best of K


def test_best_of_k_learns_on_two_servers() -> None:
    base = toy_base()
    with FakeVllm(toy_base()) as one, FakeVllm(toy_base()) as other:
        result = choose(one, other, base=base)
        for server in (one, other):
            assert len(server.loaded) == 2 + 3, "the probe, the reference, and a policy after each round"
            assert sorted(server.unloaded) == sorted(server.loaded)
            asked = server.asked[4:]
            assert all(body["model"] != "base" for body in asked)
            assert {body["n"] for body in asked} == {8, 1}
    assert result.student.reward > result.student.start_reward + 0.2
    assert result.student.kl > 0.5
    (note,) = result.notes
    assert "2 vLLM servers" in note
    assert base.roles == (POLICY,)


def test_what_best_of_k_finds_is_what_it_finds_in_this_process() -> None:
    """Other draws of the same distribution: the first round's rewards agree within their errors."""
    with FakeVllm(toy_base()) as server:
        served = choose(server, rounds=1, k=32)
    own = choose(rounds=1, k=32)
    for mine, theirs in zip(served.rounds[0].growth, own.rounds[0].growth, strict=True):
        assert mine.reward == pytest.approx(theirs.reward, abs=4 * math.hypot(mine.error, theirs.error))
    assert served.rounds[0].cut / served.rounds[0].completions == pytest.approx(
        own.rounds[0].cut / own.rounds[0].completions, abs=0.08
    )
    assert own.notes == ()


def test_a_student_of_another_base_is_measured_here() -> None:
    base, student = toy_base(), toy_base(seed=1)
    config = BestOfKConfig(**{**BEST, "rounds": 1, "student": "another"})
    with FakeVllm(toy_base()) as server:
        config = config.model_copy(update={"rollout": BestOfKConfig(rollout=at(server)).rollout})
        result = best_of_k(prompts(12), base=base, reward=VOWELS, config=config, seed=0, student=student)
        assert {body["n"] for body in server.asked} == {8}, "the student was not asked for there"
        assert len(server.loaded) == 2 + 1
    assert result.student.prompts == 12
    assert base.roles == ()


# Evaluate


def test_policies_measure_what_they_measure_in_this_process() -> None:
    base = with_policies(0.6, 1.0)
    with FakeVllm(toy_base()) as one, FakeVllm(toy_base()) as other:
        served = measure(base, one, other)
        assert len(one.loaded) == len(set(one.loaded))
        assert one.adapters == other.adapters == {}
    own = measure(base)
    assert [policy.name for policy in served.policies] == ["start", "p0", "p1"]
    for mine, theirs in zip(served.policies, own.policies, strict=True):
        for name in ("vowels_metric", "kl", "tokens"):
            x, y = mine.estimates[name], theirs.estimates[name]
            apart = math.hypot(x.high - x.low, y.high - y.low)
            assert x.value == pytest.approx(y.value, abs=apart + 1e-9), (mine.name, name)
    assert served.policies[0].estimates["kl"].value == 0.0
    assert served.policies[2].estimates["kl"].value > served.policies[1].estimates["kl"].value > 0.1
    assert [note.split(":")[0] for note in served.notes] == ["start", "p0", "p1"]
    assert all("2 vLLM servers" in note for note in served.notes)
    assert base.roles == ("p0", "p1")


def test_the_reference_is_asked_for_as_an_adapter() -> None:
    base = with_policies(1.0)
    with FakeVllm(toy_base(), Faults(base_as_adapter=True)) as server:
        found = measure(base, server)
        by_name = [body for body in server.asked if body["model"] == "base"]
    assert len(by_name) == 1, "the probe's"
    assert found.policies[0].estimates["kl"].value == 0.0
    assert base.active == REFERENCE


def test_policies_draw_with_the_same_seeds() -> None:
    with FakeVllm(toy_base()) as server:
        measure(with_policies(0.0), server)
        asked = [body for body in server.asked if body["n"] == 16]
    first, second = asked[: len(asked) // 2], asked[len(asked) // 2 :]
    seeds = [sorted((body["seed"], tuple(body["prompt"])) for body in half) for half in (first, second)]
    assert seeds[0] == seeds[1]
    assert len({seed for seed, _ in seeds[0]}) == 24


def test_a_policy_that_a_server_cannot_load_is_named_before_any_sampling() -> None:
    base = with_policies(1.0)
    base.add_adapter("large", LoraSettings(rank=16), train=False)
    with FakeVllm(toy_base(), Faults(max_rank=16, refuses_loads=5)) as server:
        with pytest.raises(ModelError, match=r"policy large: the adapter .* cannot be loaded"):
            measure(base, server)
        assert {body["n"] for body in server.asked} == {8}, "the probe's only"
        assert server.adapters == {}


def test_a_policy_of_another_base_is_sampled_here() -> None:
    base, other = with_policies(1.0), toy_base(seed=1)
    config = EvaluateConfig(**MEASURE)
    policies = {"start": PolicySource(base), "p0": PolicySource(base, "p0"), "other": PolicySource(other)}
    own = evaluate(prompts(8), policies, start="start", config=config, seed=0)
    with FakeVllm(toy_base()) as server:
        config = EvaluateConfig(**MEASURE, rollout=at(server))
        served = evaluate(prompts(8), policies, start="start", config=config, seed=0)
        assert len({body["model"] for body in server.asked}) == 3 + 2
    assert served.policy("other").rows.texts == own.policy("other").rows.texts
    assert served.policy("p0").rows.texts != own.policy("p0").rows.texts
    assert any(note.startswith("other: sampled in this process") for note in served.notes)


def test_a_stale_adapter_stops_an_evaluation() -> None:
    # The probe's two, one for each policy, and again from the second policy on.
    with (
        FakeVllm(toy_base(), Faults(stale=6)) as server,
        pytest.raises(ModelError, match="server and trainer do not hold the same policy"),
    ):
        measure(with_policies(0.5, 1.0, 1.5), server)


def test_a_stale_adapter_stops_best_of_k() -> None:
    with (
        FakeVllm(toy_base(), Faults(stale=4)) as server,
        pytest.raises(ModelError, match="server and trainer do not hold the same policy"),
    ):
        choose(server)


# What servers do wrong


def ask(stage: str, servers: Sequence[FakeVllm]) -> Any:
    return choose(*servers, rounds=1) if stage == "best_of_k" else measure(with_policies(1.0), *servers)


@pytest.mark.parametrize("stage", ["best_of_k", "evaluate"])
def test_a_server_started_anew_and_one_that_is_away(stage: str) -> None:
    with FakeVllm(toy_base(), Faults(forgets_after=14)) as one, FakeVllm(toy_base()) as other:
        one.faults = Faults(forgets_after=14, away=2)
        ask(stage, [one, other])
        assert len(one.loaded) > len(set(one.loaded)), "it was handed the adapter again"
        assert one.adapters == other.adapters == {}


@pytest.mark.parametrize("stage", ["best_of_k", "evaluate"])
@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (Faults(refuses_loads=3), "cannot be loaded"),
        (Faults(no_token_ids=True), "no token ids"),
        (Faults(stale=2), "does not answer as the adapter"),
        (Faults(base_weights=1.5), "holds another base"),
    ],
    ids=["refuses", "text", "stale", "base"],
)
def test_a_server_that_cannot_be_used_is_refused(stage: str, faults: Faults, words: str) -> None:
    with FakeVllm(toy_base(), faults) as server:
        with pytest.raises(ModelError, match=words):
            ask(stage, [server])
        assert server.adapters == {}


# The command line


@pytest.fixture
def model(tmp_path: Path) -> Path:
    lines = [json.dumps({"id": f"p{at}", "prompt": f"Say {at}."}) for at in range(8)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return save_tiny(tmp_path / "model")


def test_the_command_line_names_servers_of_best_of_k_and_evaluate(tmp_path: Path, model: Path) -> None:
    common = ("--model", model, "--dtype", "float32", "--prompts", tmp_path / "prompts.jsonl")
    with FakeVllm(SharedBase.load(str(model), dtype="float32")) as server:
        said = call(
            *("best-of-k", *common, "--reward-function", "toy_policy:share_of_vowels", "--k", 4),
            *("--max-new-tokens", 5, "--rollout-url", server.url, "--out", tmp_path / "best"),
        )
        assert said.status == 0, said.err
        again = call(
            *("evaluate", *common, "--policy", tmp_path / "best" / "best-of-k", "--no-win-rate"),
            *("--samples", 2, "--max-new-tokens", 5, "--rollout-url", server.url, "--out", tmp_path / "eval"),
        )
        assert again.status == 0, again.err
        assert server.adapters == {}
    report = json.loads((tmp_path / "best" / "best-of-k" / "report.json").read_text())
    assert "1 vLLM server," in report["notes"][0]
    assert report["notes"][0] in (tmp_path / "best" / "best-of-k" / "samples.md").read_text()
    found = json.loads((tmp_path / "eval" / "evaluate" / "evaluation.json").read_text())
    assert [note.split(":")[0] for note in found["notes"]] == ["start", "best-of-k"]
    assert "vLLM server" in (tmp_path / "eval" / "evaluate" / "evaluation.md").read_text()
    assert not list(tmp_path.rglob("rlaif-*-*")), "no adapter is left"


def test_an_address_without_its_last_part_is_told_with_it() -> None:
    with FakeVllm(toy_base()) as server:
        short = server.url.removesuffix("/v1")
        with pytest.raises(ModelError, match=f"vLLM answers below /v1: write {short}/v1"):
            choose(rollout={"base_urls": [short], "retries": 0})


# Sample


def sample(model: Path, server: FakeVllm, out: Path, *rest: object) -> Any:
    return call(
        *("sample", "--model", model, "--prompts", model.parent / "prompts.jsonl", "--k", 3),
        *("--max-new-tokens", 5, "--rollout-url", server.url, "--out", out, *rest),
    )


@pytest.fixture
def weightless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights can be loaded."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(models_open, "load_engine", refuse)
    monkeypatch.setattr(shared_base, "load_model", refuse)


@pytest.fixture
def base(model: Path) -> SharedBase:
    return SharedBase.load(str(model), dtype="float32")


def test_sample_needs_no_weights_here(
    tmp_path: Path, model: Path, base: SharedBase, weightless: None
) -> None:
    with FakeVllm(base) as server:
        said = sample(model, server, tmp_path / "run")
        assert said.status == 0, said.err
        (name,) = server.loaded
        assert {body["model"] for body in server.asked} == {name}, "never the base by its own name"
        assert server.unloaded == [name]
        asked = len(server.asked)
        again = sample(model, server, tmp_path / "run")
        assert "finished before" in again.err + again.out
        assert len(server.asked) == asked == 24
    found = rows(tmp_path / "run" / "sample" / "completions.jsonl")
    assert [row["id"] for row in found] == [f"p{p}/{k}" for p in range(8) for k in range(3)]
    assert len({row["completion"][0]["content"] for row in found}) > 12
    assert all(0 < row["tokens"] <= 5 for row in found)
    assert "1 vLLM server," in (tmp_path / "run" / "sample" / "samples.md").read_text()


def test_an_interrupted_sample_asks_for_the_rest_only(
    tmp_path: Path, model: Path, base: SharedBase, weightless: None
) -> None:
    once = ("--set", "rollout.concurrency=1", "--set", "rollout.retries=0")
    with FakeVllm(base) as server:
        whole = sample(model, server, tmp_path / "whole", "--journal", tmp_path / "one", *once)
        assert whole.status == 0, whole.err
        server.asked.clear()
        server.faults = Faults(away_after=10)
        cut = sample(model, server, tmp_path / "parts", "--journal", tmp_path / "two", *once)
        assert cut.status == 1
        assert "did not answer" in cut.err
        server.faults = Faults()
        rest = sample(model, server, tmp_path / "parts", "--journal", tmp_path / "two", *once)
        assert rest.status == 0, rest.err
        assert 24 <= len(server.asked) <= 24 + 2, "what was answered is not asked again"
    files = [tmp_path / run / "sample" / "completions.jsonl" for run in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_draw_depends_on_the_prompt_and_its_index_only(
    tmp_path: Path, model: Path, base: SharedBase
) -> None:
    with FakeVllm(base) as one, FakeVllm(base) as other:
        first = sample(model, one, tmp_path / "three", "--journal", tmp_path / "one")
        more = sample(
            model, one, tmp_path / "five", "--k", 5, "--rollout-url", other.url, "--journal", tmp_path / "two"
        )
        assert first.status == more.status == 0, more.err
        assert min(len(one.asked), len(other.asked)) >= 20
    three, five = (
        {row["id"]: row["completion"] for row in rows(tmp_path / run / "sample" / "completions.jsonl")}
        for run in ("three", "five")
    )
    assert len(five) == 40
    assert three == {id: five[id] for id in three}


def test_sample_greedily_is_as_in_this_process(tmp_path: Path, model: Path, base: SharedBase) -> None:
    with FakeVllm(base) as server:
        served = sample(model, server, tmp_path / "served", "--temperature", 0, "--k", 1)
    own = call(
        *("sample", "--model", model, "--dtype", "float32", "--prompts", tmp_path / "prompts.jsonl"),
        *("--k", 1, "--temperature", 0, "--max-new-tokens", 5, "--out", tmp_path / "own"),
    )
    assert served.status == own.status == 0, served.err + own.err
    texts = [
        [
            (row["completion"], row["finish"], row["tokens"])
            for row in rows(tmp_path / run / "sample/completions.jsonl")
        ]
        for run in ("served", "own")
    ]
    assert texts[0] == texts[1]


def test_a_prompt_that_the_servers_have_no_room_for_is_refused_by_itself(
    tmp_path: Path, model: Path, base: SharedBase
) -> None:
    with (tmp_path / "prompts.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"id": "long", "prompt": "word " * 60}) + "\n")
    with FakeVllm(base, Faults(context=120)) as server:
        said = sample(model, server, tmp_path / "run", "--set", "max_refused=0.2")
    assert said.status == 0, said.err
    assert (
        rows(tmp_path / "run" / "sample" / "refused.jsonl")
        == [{"prompt_id": "long", "reason": "prompt_too_long"}] * 3
    )


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (Faults(refuses_loads=1), "cannot be loaded"),
        (Faults(no_token_ids=True), "sends no token ids"),
        (Faults(vocabulary=500), "vocabulary of 500 tokens"),
        (Faults(root="elsewhere/model"), ""),
    ],
    ids=["refuses", "text", "vocabulary", "root"],
)
def test_a_server_that_cannot_sample_is_refused(
    tmp_path: Path, model: Path, base: SharedBase, faults: Faults, words: str
) -> None:
    with FakeVllm(base, faults) as server:
        said = sample(model, server, tmp_path / "run")
        assert server.adapters == {}
    assert said.status == (1 if words else 0)
    assert words in said.err


def test_a_server_started_anew_gets_the_adapter_of_sample_again(
    tmp_path: Path, model: Path, base: SharedBase
) -> None:
    with FakeVllm(base, Faults(forgets_after=9)) as server:
        said = sample(model, server, tmp_path / "run", "--set", "rollout.backoff=0.01")
        assert said.status == 0, said.err
        assert len(server.loaded) > len(set(server.loaded)) == 1
    assert len(rows(tmp_path / "run" / "sample" / "completions.jsonl")) == 24


def test_a_policy_that_the_run_fine_tunes_is_on_no_server(tmp_path: Path, model: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: tuned\nmodel: {model}\nstages:\n  - {{stage: revise, limit: 4}}\n  - {{stage: sft}}\n"
        "  - {stage: sample, rollout: {base_urls: [http://localhost:1/v1]}}\n"
    )
    said = call("run", recipe, "--out", tmp_path / "run")
    assert said.status != 0
    assert "as this run fine-tunes it" in said.err


def test_grpo_and_an_evaluation_of_it_share_servers() -> None:
    """The same servers train and measure, one after the other."""
    base = toy_base()
    with FakeVllm(toy_base()) as server:
        train_grpo(
            prompts(24),
            base=base,
            reward=VOWELS,
            config=GrpoConfig(**{**GROUPS, "steps": 6, "rollout": at(server)}),
            seed=0,
        )
        found = measure(base, server)
        assert len(set(server.loaded)) == len(server.loaded)
        assert server.adapters == {}
    start, trained = (policy.estimates["vowels_metric"] for policy in found.policies)
    assert trained.low > start.high
    assert torch.isfinite(torch.tensor(trained.value))


@pytest.mark.parametrize("stage", ["sample", "best_of_k", "grpo", "ppo"])
def test_a_dry_run_does_not_time_what_servers_sample(stage: str, model: Path) -> None:
    """Their speed is not known here; the same stage without servers is timed."""
    reward = "reward: {own: {kind: function, function: toy_policy:share_of_vowels}}"
    own = "k: 2" if stage == "sample" else reward
    text = f"name: timed\nmodel: {model}\nstages: [{{stage: {stage}, limit: 4, {own}"
    here, there = (
        plan_recipe(parse_recipe(text + rest + "}]", source="test")).stages
        for rest in ("", ", rollout: {base_urls: [http://localhost:1/v1]}")
    )
    assert [plan.seconds is None for plan in (*here, *there)] == [False, True]
    assert [plan.write for plan in here] == [plan.write for plan in there]
