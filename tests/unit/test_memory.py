"""The memory plan: the sums are those of the config, and what it says changes with what is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import save_tiny, tiny_model

from rlaif.errors import ConfigError
from rlaif.models.memory import MemoryPlan, ModelShape, Precision, available_memory, model_shape, plan_memory, precision_of, shape_of
from rlaif.models.quantized import check_quantization
from rlaif.models.shared_base import LoraSettings, SharedBase

SHAPE = ModelShape(
    name="toy", parameters=1_000_000, layers=2, hidden=100, intermediate=300, attention=100, vocabulary=1000, adapter_sizes=5000,
)
BF16 = Precision(weights=2, activations=2)


def plan(**options: object) -> MemoryPlan:
    settings = {"precision": BF16, "rank": 8, "trained": ["policy"], "micro_tokens": 100, **options}
    return plan_memory(SHAPE, **settings)  # type: ignore[arg-type]


def sizes(made: MemoryPlan) -> dict[str, int]:
    return {item.name: item.bytes for item in made.items}


def test_weights_adapters_and_optimiser_are_counted() -> None:
    found = sizes(plan(trained=["policy", "value"], frozen=["reward"]))
    assert found["base"] == 2_000_000
    assert found["adapter policy"] == found["adapter value"] == 8 * 5000 * 16
    assert found["adapter reward"] == 8 * 5000 * 4
    assert plan().peak == sum(sizes(plan()).values())


def test_activations_grow_with_the_tokens_and_shrink_by_recomputing() -> None:
    one, two, recomputed = (sizes(plan(**o))["activations"] for o in ({}, {"micro_tokens": 200}, {"checkpointing": True}))
    assert two == pytest.approx(2 * one, abs=1)
    assert recomputed < 0.7 * one


def test_logits_and_cache_are_counted_where_there_are_any() -> None:
    found = sizes(plan(logit_tokens=50, cache_tokens=64))
    assert found["logits"] == 2 * 50 * 1000 * 2
    assert found["cache"] == 2 * 64 * 2 * 100 * 2


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
    assert precision_of("float32", "cpu") == Precision(weights=4, activations=4)
    assert precision_of("bfloat16", "cpu", quantization="4bit").weights < 1


def test_free_memory_is_known_here() -> None:
    free = available_memory(torch.device("cpu"))
    assert free is not None
    assert free > 0


def test_four_bits_are_refused_without_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="NVIDIA GPU"):
        check_quantization("cpu")
    with pytest.raises(ConfigError, match="NVIDIA GPU"):
        SharedBase.load(str(save_tiny(tmp_path)), device="cpu", quantization="4bit")
