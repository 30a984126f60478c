"""The memory plan: the sums are those of the config, and what it says changes with what is asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny import save_tiny, tiny_model

from rlaif.config import Recipe, load_recipe, parse_recipe
from rlaif.engines.journaled import NullMemo
from rlaif.errors import ConfigError
from rlaif.jobs.context import RunContext
from rlaif.jobs.lengths import Device, Lengths
from rlaif.jobs.table import make_job
from rlaif.models.memory import (
    CACHE_GROWTH,
    MemoryPlan,
    ModelShape,
    Precision,
    StageWork,
    available_memory,
    model_shape,
    plan_memory,
    precision_of,
    shape_of,
)
from rlaif.models.quantized import check_quantization
from rlaif.models.shared_base import LoraSettings, SharedBase
from rlaif.pipeline.memory import Machine, recipe_memory
from rlaif.progress import NoProgress

SHAPE = ModelShape(
    name="toy",
    parameters=1_000_000,
    layers=2,
    hidden=100,
    intermediate=300,
    attention=100,
    vocabulary=1000,
    adapter_sizes=5000,
)
BF16 = Precision(weights=2, activations=2)


def plan(
    *,
    trained: Sequence[str] = ("policy",),
    frozen: Sequence[str] = (),
    available: int | None = None,
    **work: int,
) -> MemoryPlan:
    done = StageWork(**{"micro_tokens": 100, **work})
    return plan_memory(
        SHAPE, done, precision=BF16, rank=8, trained=trained, frozen=frozen, available=available
    )


def sizes(made: MemoryPlan) -> dict[str, int]:
    return {item.name: item.bytes for item in made.items}


def test_weights_adapters_and_optimiser_are_counted() -> None:
    found = sizes(plan(trained=["policy", "value"], frozen=["reward"]))
    assert found["base"] == 2_000_000
    assert found["adapter policy"] == found["adapter value"] == 8 * 5000 * 16
    assert found["adapter reward"] == 8 * 5000 * 4
    assert plan().peak == sum(sizes(plan()).values())


def test_activations_grow_with_the_tokens_and_shrink_by_recomputing() -> None:
    one, two, recomputed = (
        sizes(plan(**o))["activations"] for o in ({}, {"micro_tokens": 200}, {"checkpointing": True})
    )
    assert two == pytest.approx(2 * one, abs=1)
    assert recomputed < 0.7 * one


def test_of_the_parts_of_the_work_the_largest_counts() -> None:
    trains = sizes(
        plan(
            micro_tokens=100_000,
            logit_tokens=50,
            sampled_rows=8,
            row_tokens=30,
            new_tokens=10,
            read_tokens=100,
        )
    )
    assert trains["logits"] == 2 * 50 * 1000 * 2
    assert "cache" not in trains
    assert "pass" not in trains
    samples = sizes(plan(micro_tokens=1, sampled_rows=800, row_tokens=30, new_tokens=10))
    assert samples["cache"] == CACHE_GROWTH * 2 * 800 * 30 * 2 * 100 * 2
    assert samples["logits"] == 800 * 1000 * (2 + 12)
    assert "activations" not in samples
    reads = sizes(plan(micro_tokens=0, read_tokens=5000, read_logits=40))
    assert reads["logits"] == 40 * 1000 * (2 + 12)
    assert reads["pass"] == 5000 * max(2 * (2 * 100 + 4 * 300) + 400, 2 * (2 * 100 + 6 * 100))


def test_only_so_many_logits_are_formed_at_once_in_training() -> None:
    assert sizes(plan(logit_tokens=1 << 20))["logits"] == 2 * (1 << 24) * 2


def test_a_plan_that_does_not_fit_says_what_to_change() -> None:
    tight = plan(available=1 << 20)
    assert not tight.fits
    assert "gradient_checkpointing" in tight.lines()[-1]
    assert "gradient_checkpointing" not in plan(available=1 << 20, checkpointing=True).lines()[-1]
    roomy = plan(available=1 << 40)
    assert roomy.fits
    assert roomy.lines()[-1].startswith("peak (estimate)")


def test_the_shape_is_read_from_the_config_alone(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    model = tiny_model()
    shape = model_shape(str(tmp_path))
    assert shape._replace(name="") == shape_of(model, name="")
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    base = SharedBase.from_model(model, tokenizer=None)
    base.add_adapter("policy", LoraSettings(rank=4))
    assert sum(parameter.numel() for parameter in base.trainable("policy")) == 4 * shape.adapter_sizes


def test_precision_follows_the_settings() -> None:
    assert precision_of("float32", torch.device("cpu")) == Precision(weights=4, activations=4)
    assert precision_of("bfloat16", torch.device("cpu"), quantization="4bit").weights < 1


def test_free_memory_is_known_here() -> None:
    free = available_memory(torch.device("cpu"))
    assert free is not None
    assert free > 0


def test_four_bits_are_refused_without_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="NVIDIA GPU"):
        check_quantization("cpu")
    with pytest.raises(ConfigError, match="NVIDIA GPU"):
        SharedBase.load(str(save_tiny(tmp_path)), device="cpu", quantization="4bit")


def test_a_plan_for_gpus_elsewhere_holds_the_base_in_4_bits_and_each_process_its_share(
    tmp_path: Path,
) -> None:
    model = save_tiny(tmp_path / "model")
    settings = (f"model={model}", "stages.grpo.episodes=32", "stages.grpo.max_new_tokens=512")
    four, sixteen = (
        load_recipe(
            "recipes/gpu_70b.yaml", (*settings, "shard_base=false", f"stages.reward.quantization={bits}")
        )
        for bits in ("4bit", "none")
    )

    def grpo(recipe: Recipe, processes: int) -> MemoryPlan:
        plans = recipe_memory(recipe, machine=Machine.gpu(80, processes))
        return next(each.plan for each in plans if each.kind == "grpo")

    one, eight = grpo(four, 1), grpo(four, 8)
    assert one.available == 80 << 30
    assert sizes(one)["base"] == pytest.approx(0.3 * sizes(grpo(sixteen, 1))["base"], rel=0.01)
    assert eight.peak <= one.peak


def test_a_plan_of_a_sharded_base_holds_a_part_of_the_layers_and_what_a_pass_gathers(tmp_path: Path) -> None:
    model, shape = save_tiny(tmp_path / "model"), shape_of(tiny_model(), name="")
    embeddings = 270 * 48 + 48
    assert shape.in_layers == shape.parameters - embeddings

    def grpo(shard: bool, processes: int) -> dict[str, int]:
        recipe = load_recipe("recipes/gpu_70b.yaml", (f"model={model}", f"shard_base={shard}"))
        plans = recipe_memory(recipe, machine=Machine.gpu(80, processes))
        return sizes(next(each.plan for each in plans if each.kind == "grpo"))

    whole, four = grpo(False, 4), grpo(True, 4)
    assert whole["base"] == 2 * shape.parameters
    assert "gathered" not in whole
    assert four["base"] == 2 * (embeddings + shape.in_layers // 4)
    assert four["gathered"] == 3 * 2 * (shape.in_layers // 2)
    assert {name: size for name, size in four.items() if name not in ("base", "gathered")} == {
        name: size for name, size in whole.items() if name != "base"
    }
    assert grpo(True, 1) == grpo(False, 1)


@pytest.mark.parametrize(
    ("shard", "processes", "told"),
    [
        (False, 8, "or on GPUs quantization: 4bit or shard_base: true"),
        (True, 8, "a smaller model, or more processes"),
        (True, 1, "shard_base: true, which acts in several processes only (--processes N)"),
    ],
)
def test_a_base_in_parts_that_does_not_fit_is_not_told_to_be_cut_into_parts(
    tmp_path: Path, shard: bool, processes: int, told: str
) -> None:
    model = save_tiny(tmp_path / "model")
    recipe = load_recipe("recipes/gpu_70b.yaml", (f"model={model}", f"shard_base={shard}"))
    for stage in recipe_memory(recipe, machine=Machine.gpu(0.1, processes)):
        assert stage.plan.lines()[-1].endswith(told)


@pytest.mark.parametrize("protocol", ["cot", "commit"])
def test_a_plan_counts_what_a_judge_writes_before_its_label(protocol: str, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    text = f"""
model: {model}
constitution: default
stages:
  - {{stage: audit, protocol: {protocol}, probes: on-topic, variants: 0}}
  - {{stage: sample, limit: 3, k: 2, max_new_tokens: 10}}
  - {{stage: label, protocol: {protocol}, reasoning_tokens: 5000}}
"""

    def works(text: str) -> dict[str, StageWork | None]:
        recipe = parse_recipe(text, source="r.yaml")
        context = RunContext(recipe, memo=NullMemo(), progress=NoProgress())
        jobs = [make_job(config, context) for config in recipe.stages]
        device = Device("cpu", tokens=2048, rows=8)
        return {job.config.stage: job.memory_work(Lengths(jobs, context), device) for job in jobs}

    asked = works(text)
    audit, label = asked["audit"], asked["label"]
    assert audit is not None
    assert label is not None
    # Of three prompts with a pair each: six questions with reasons, in both orders, or three answers.
    assert (label.sampled_rows, audit.sampled_rows) == (6 if protocol == "cot" else 3, 8)
    assert (label.new_tokens, audit.new_tokens, label.read_tokens) == (5000, 5000, 2048)
    assert 5000 < label.row_tokens < 8000
    plain = works(text.replace(protocol, "pairwise").replace(", reasoning_tokens: 5000", ""))
    for stage in ("audit", "label"):
        assert plain[stage] == StageWork(read_tokens=2048, read_logits=2048 // 16)


def test_a_plan_counts_what_a_monitor_samples(tmp_path: Path) -> None:
    model, trained, watched = save_tiny(tmp_path / "model"), tmp_path / "short.txt", tmp_path / "long.txt"
    trained.write_text("\n".join(f"say {at}" for at in range(4)), "utf-8")
    watched.write_text("\n".join(f"say {at} {'very ' * 40}well" for at in range(6)), "utf-8")

    def work(**monitor: object) -> StageWork:
        stage = {"stage": "ppo", "prompts": str(trained), "episodes": 4, "max_new_tokens": 10, **monitor}
        stage["reward"] = {"words": {"kind": "function", "function": "rlaif.metrics:length_words"}}
        recipe = parse_recipe(json.dumps({"model": str(model), "stages": [stage]}), source="r.json")
        context = RunContext(recipe, memo=NullMemo(), progress=NoProgress())
        [job] = [make_job(config, context) for config in recipe.stages]
        found = job.memory_work(Lengths([job], context), Device("cpu", tokens=2048, rows=8))
        assert found is not None
        return found

    gold = {"kind": "function", "function": "rlaif.metrics:length_words"}
    plain, with_it = work(), work(monitor={"gold": gold, "source": str(watched), "prompts": 6})
    assert (plain.sampled_rows, with_it.sampled_rows) == (4, 6)
    assert with_it.row_tokens > plain.row_tokens + 100
    assert with_it.micro_tokens == plain.micro_tokens


def test_a_plan_counts_adapters_of_earlier_runs(tmp_path: Path) -> None:
    model, policy = save_tiny(tmp_path / "model"), tmp_path / "policy"
    for folder in (policy, tmp_path / "reward/adapter-0"):
        folder.mkdir(parents=True)
    (policy / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
    stages = [
        {"stage": "sample", "limit": 2, "k": 2, "policy": str(policy)},
        {"stage": "label"},
        {"stage": "reward", "previous": str(tmp_path / "reward")},
    ]
    recipe = parse_recipe(
        json.dumps({"model": str(model), "constitution": "default", "stages": stages}), source="r.json"
    )
    context = RunContext(recipe, memo=NullMemo(), progress=NoProgress())
    sample, _, reward = (make_job(config, context) for config in recipe.stages)
    assert sample.adapters().read == (str(policy),)
    assert reward.adapters().read == ("adapter-0 of `previous`",)
