"""One base, several roles: switching, gradients, files, merging, and the arithmetic of the adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlaif.errors import ModelError
from rlaif.models.low_rank import LowRankLinear
from rlaif.models.shared_base import REFERENCE, LoraSettings, SharedBase


def tiny_model(seed: int = 0, **options: Any) -> LlamaForCausalLM:
    sizes = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(**{**sizes, "num_key_value_heads": 2, "max_position_embeddings": 128, **options})
    )


def tiny_base(**options: Any) -> SharedBase:
    return SharedBase.from_model(tiny_model(**options), tokenizer=None)


def stir(base: SharedBase, role: str, seed: int = 1) -> None:
    """Give the adapter's B weights, so that the role differs from the reference."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in base.trainable(role):
            parameter.add_(torch.randn_like(parameter) * 0.1)


PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IDS = torch.arange(12).view(2, 6) + 5
MASK = torch.ones_like(IDS)


def states(base: SharedBase, role: str) -> torch.Tensor:
    with torch.no_grad(), base.role(role):
        return base.hidden(IDS, MASK)


def test_roles_differ_and_the_reference_is_the_base() -> None:
    base = tiny_base()
    before = states(base, REFERENCE)
    for role in ("policy", "reward"):
        base.add_adapter(role, seed=3)
        assert torch.equal(states(base, role), before)
        stir(base, role, seed=ord(role[0]))
    assert not torch.allclose(states(base, "policy"), states(base, "reward"))
    assert torch.equal(states(base, REFERENCE), before)
    assert base.active == REFERENCE


def test_the_former_role_returns_also_after_an_exception() -> None:
    base = tiny_base()
    base.add_adapter("policy")
    base.add_adapter("reward")
    with base.role("policy"):
        with pytest.raises(RuntimeError, match="inside"), base.role("reward"), base.role(REFERENCE):
            raise RuntimeError("inside")
        assert base.active == "policy"
    assert base.active == REFERENCE
    with pytest.raises(ModelError, match="no adapter 'value'"), base.role("value"):
        pass


def test_only_the_roles_named_are_trainable_whatever_is_active() -> None:
    base = tiny_base()
    base.add_adapter("policy")
    base.add_adapter("reward", train=False)
    base.assert_only_trainable(["policy"])
    with base.role("reward"):
        base.assert_only_trainable(["policy"])
    with pytest.raises(ModelError, match="must not be"):
        base.assert_only_trainable(["reward"])
    base.train_role("reward", True)
    base.assert_only_trainable(["policy", "reward"])


def test_gradients_reach_the_active_adapter_only() -> None:
    base = tiny_base()
    base.add_adapter("policy")
    base.add_adapter("reward")
    with base.role("policy"):
        base.hidden(IDS, MASK).square().mean().backward()
    assert any(
        parameter.grad is not None and bool(parameter.grad.any()) for parameter in base.trainable("policy")
    )
    assert all(parameter.grad is None for parameter in base.trainable("reward"))
    assert all(parameter.grad is None for parameter in base.model.parameters() if not parameter.requires_grad)


@PEFT_WARNS
def test_the_adapter_computes_what_peft_computes_with_the_same_gradients() -> None:
    ours, theirs = tiny_base(), tiny_model()
    ours.add_adapter("policy", LoraSettings(rank=4, alpha=6))
    stir(ours, "policy")
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(theirs, config, adapter_name="policy")
    peft.set_peft_model_state_dict(wrapped, ours.adapter_state("policy"), adapter_name="policy")
    expected = wrapped(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states[-1]
    with ours.role("policy"):
        got = ours.hidden(IDS, MASK)
    torch.testing.assert_close(got, expected)
    got.square().mean().backward()
    expected.square().mean().backward()
    other = {name: p.grad for name, p in wrapped.named_parameters() if p.requires_grad}
    for (_, grad), parameter in zip(sorted(other.items()), sorted_parameters(ours), strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def sorted_parameters(base: SharedBase) -> list[torch.nn.Parameter]:
    return [p for _, p in sorted((name, p) for name, p in base.model.named_parameters() if p.requires_grad)]


def test_the_fused_layer_passes_gradcheck() -> None:
    torch.manual_seed(0)
    layer = LowRankLinear(torch.nn.Linear(5, 4), "policy", peft.LoraConfig(r=2), r=2, lora_alpha=3).double()
    torch.nn.init.normal_(layer.lora_B["policy"].weight)
    layer.base_layer.requires_grad_(False)
    x = torch.randn(2, 3, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, a, b: layer(x), (x, layer.lora_A["policy"].weight, layer.lora_B["policy"].weight)
    )


def test_adapters_stay_fp32_on_a_bfloat16_base() -> None:
    base = SharedBase.from_model(tiny_model().bfloat16(), tokenizer=None)
    base.add_adapter("policy")
    stir(base, "policy")
    assert {parameter.dtype for parameter in base.trainable("policy")} == {torch.float32}
    with base.role("policy"):
        hidden = base.hidden(IDS, MASK)
    hidden.float().square().mean().backward()
    assert hidden.dtype == torch.bfloat16
    assert {parameter.grad.dtype for parameter in base.trainable("policy") if parameter.grad is not None} == {
        torch.float32
    }


def test_padding_on_either_side_changes_nothing() -> None:
    base = tiny_base()
    pad = torch.zeros(2, 3, dtype=torch.long)
    for order in (lambda x: torch.cat([pad, x], 1), lambda x: torch.cat([x, pad], 1)):
        padded = base.hidden(order(IDS), order(MASK))
        torch.testing.assert_close(
            padded[order(MASK).bool()].view(2, 6, -1), base.hidden(IDS, MASK), rtol=1e-5, atol=1e-5
        )


@PEFT_WARNS
def test_a_saved_adapter_is_a_peft_adapter_and_comes_back(tmp_path: Path) -> None:
    base = tiny_base()
    base.add_adapter("policy", LoraSettings(rank=4))
    stir(base, "policy")
    base.save_adapter("policy", tmp_path / "a")
    expected = states(base, "policy")
    again = tiny_base()
    again.load_adapter("other", tmp_path / "a")
    assert torch.equal(states(again, "other"), expected)
    again.assert_only_trainable([])
    foreign = peft.PeftModel.from_pretrained(tiny_model(), str(tmp_path / "a"))
    torch.testing.assert_close(
        foreign(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states[-1], expected
    )


def test_merging_makes_the_role_the_reference_and_changes_the_identity() -> None:
    base = tiny_base()
    base.add_adapter("sft")
    stir(base, "sft")
    expected, identity = states(base, "sft"), base.identity
    base.merge("sft")
    torch.testing.assert_close(states(base, REFERENCE), expected, rtol=1e-4, atol=1e-5)
    assert base.roles == ()
    assert base.identity != identity
    base.add_adapter("policy")
    torch.testing.assert_close(states(base, "policy"), expected, rtol=1e-4, atol=1e-5)
    base.assert_only_trainable(["policy"])


def test_merging_beside_other_adapters_is_refused() -> None:
    base = tiny_base()
    base.add_adapter("sft")
    base.add_adapter("policy")
    with pytest.raises(ModelError, match="cannot be merged now"):
        base.merge("sft")


def test_dropping_an_adapter_leaves_the_others() -> None:
    base = tiny_base()
    base.add_adapter("policy")
    base.add_adapter("reward")
    stir(base, "reward")
    expected = states(base, "reward")
    with base.role("policy"), pytest.raises(ModelError, match="active"):
        base.drop_adapter("policy")
    base.drop_adapter("policy")
    assert base.roles == ("reward",)
    assert torch.equal(states(base, "reward"), expected)
    base.assert_only_trainable(["reward"])
    base.drop_adapter("reward")
    assert base.roles == ()
    assert states(base, REFERENCE).isfinite().all()


def test_an_adapter_of_another_base_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    base = tiny_base(hidden_size=16)
    base.add_adapter("policy")
    base.save_adapter("policy", tmp_path / "a")
    other = tiny_base()
    with pytest.raises(ModelError, match="does not fit"):
        other.load_adapter("policy", tmp_path / "a")
    assert other.roles == ()


@pytest.mark.parametrize("damage", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_adapter_folder_is_refused(tmp_path: Path, damage: str) -> None:
    base = tiny_base()
    base.add_adapter("policy")
    base.save_adapter("policy", tmp_path)
    content = (tmp_path / damage).read_bytes()
    (tmp_path / damage).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"cannot be read|is damaged"):
        tiny_base().load_adapter("policy", tmp_path)
    (tmp_path / damage).unlink()
    with pytest.raises(ModelError, match="is missing"):
        tiny_base().load_adapter("policy", tmp_path)


def test_an_adapter_of_another_kind_is_refused(tmp_path: Path) -> None:
    base = tiny_base()
    base.add_adapter("policy")
    base.save_adapter("policy", tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3", "task_type": "CAUSAL_LM"}))
    with pytest.raises(ModelError, match="not a LoRA adapter"):
        tiny_base().load_adapter("policy", tmp_path)


@pytest.mark.parametrize("name", ["reference", "a.b", "policy", ""])
def test_names_taken_reserved_or_unfit_are_refused(name: str) -> None:
    base = tiny_base()
    base.add_adapter("policy")
    with pytest.raises(ModelError, match="cannot be named"):
        base.add_adapter(name)


def test_the_same_seed_gives_the_same_adapter_and_leaves_the_global_generator_alone() -> None:
    one, two = tiny_base(), tiny_base()
    torch.manual_seed(5)
    expected = torch.rand(())
    torch.manual_seed(5)
    one.add_adapter("policy", seed=7)
    assert torch.equal(torch.rand(()), expected)
    two.add_adapter("reward", seed=8)
    two.add_adapter("policy", seed=7)
    for a, b in zip(one.trainable("policy"), two.trainable("policy"), strict=True):
        assert torch.equal(a, b)


def test_adapter_state_is_a_copy_that_can_be_put_back() -> None:
    base = tiny_base()
    base.add_adapter("policy")
    stir(base, "policy")
    good, expected = base.adapter_state("policy"), states(base, "policy")
    stir(base, "policy", seed=2)
    assert not torch.equal(states(base, "policy"), expected)
    base.set_adapter_state("policy", good)
    assert torch.equal(states(base, "policy"), expected)
    base.assert_only_trainable(["policy"])


def test_logits_are_the_models_own() -> None:
    base = tiny_base()
    torch.testing.assert_close(
        base.logits_at(base.hidden(IDS, MASK)), base.model(input_ids=IDS, attention_mask=MASK).logits
    )


def test_logits_scaled_in_an_unknown_way_are_noticed() -> None:
    model = tiny_model()
    model.lm_head.register_forward_hook(lambda module, args, out: out)
    plain = model.forward

    def scaled(**inputs: Any) -> Any:
        out = plain(**inputs)
        out.logits = out.logits * 3
        return out

    model.forward = scaled
    with pytest.raises(ModelError, match="LM head"):
        SharedBase.from_model(model, tokenizer=None)


def test_recomputed_layers_give_the_same_gradients() -> None:
    grads = []
    for recompute in (False, True):
        base = tiny_base()
        base.add_adapter("policy", seed=1)
        stir(base, "policy")
        base.checkpoint_layers(recompute)
        with base.role("policy"):
            base.hidden(IDS, MASK).square().mean().backward()
        grads.append([parameter.grad for parameter in base.trainable("policy")])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
