"""Attention by products gives the states and the gradients of torch's fused kernel, in the architectures that
people train."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import KINDS, Kind, tiny_model

from rlaif.models import attention
from rlaif.models.attention import by_products, replaceable
from rlaif.models.shared_base import LoraSettings, SharedBase


def run(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The states at real tokens, and the gradient of every weight of a sum over them."""
    model.zero_grad()
    states = model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    real = states[mask[:, -1] > 0] if mask.dim() == 4 else states[mask.bool()]
    (real * torch.linspace(-1, 1, real.numel()).view_as(real)).sum().backward()
    return real.detach(), {
        name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
    }


@pytest.mark.parametrize("tokens", [24, attention.KEPT_KEYS + 8], ids=["kept", "computed again"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gemma2"])  # it has no fused attention
def test_products_are_the_fused_kernel(kind: Kind, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(kind)
    model.set_attn_implementation("sdpa")
    ids = torch.arange(2 * tokens).view(2, tokens) % 90 + 3
    mask = torch.ones_like(ids)
    mask[1, tokens - 5 :] = 0
    calls = []
    products = attention._Products.apply
    monkeypatch.setattr(attention._Products, "apply", lambda *given: calls.append(1) or products(*given))
    fused, fused_gradients = run(model, ids, mask)
    assert not calls
    with by_products(replaceable(model), model.device):
        ours, gradients = run(model, ids, mask)
    assert len(calls) == model.config.num_hidden_layers
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(ours, fused, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == fused_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, fused_gradients[name], rtol=1e-3, atol=1e-4 * float(fused_gradients[name].abs().max())
        )


def test_a_mask_may_say_what_is_seen() -> None:
    base = SharedBase.from_model(tiny_model("llama"), tokenizer=None)
    ids = torch.arange(8).view(1, 8) + 5
    seen = torch.ones(8, 8, dtype=torch.bool).tril()[None, None]
    seen[..., 5:, 2:5] = False
    with torch.no_grad():
        ours = base.hidden(ids, seen, torch.arange(8)[None])
        fused = base.model.get_decoder()(
            input_ids=ids, attention_mask=seen, position_ids=torch.arange(8)[None], use_cache=False
        )
    torch.testing.assert_close(ours, fused.last_hidden_state, rtol=1e-4, atol=1e-4)


def test_a_model_that_chose_another_kernel_keeps_it() -> None:
    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    with by_products(replaceable(model), model.device):
        assert model.config._attn_implementation == "eager"


def test_held_adapters_give_the_same_states_and_are_let_go() -> None:
    base = SharedBase.from_model(tiny_model("llama").to(torch.bfloat16), tokenizer=None)
    base.add_adapter("policy", LoraSettings(rank=2), seed=1)
    ids = torch.arange(12).view(2, 6) + 5
    mask = torch.ones_like(ids)
    with torch.no_grad(), base.role("policy"):
        for weight in base.trainable("policy"):
            weight.add_(0.1)
        plain = base.hidden(ids, mask)
        with base.held():
            assert torch.equal(base.hidden(ids, mask), plain)
            with base.role("reference"):
                assert not torch.equal(base.hidden(ids, mask), plain)
            assert torch.equal(base.hidden(ids, mask), plain)
        for weight in base.trainable("policy"):
            weight.add_(0.1)
        assert not torch.equal(base.hidden(ids, mask), plain)
