"""What the ranks of `test_sharded_base.py` do, in processes of their own.

    python -m torch.distributed.run --nproc_per_node 2 tests/sharded.py FOLDER [recipe.yaml ...]

Each recipe is run, beside its file. Without one, the cases below are run, and each rank writes what it found
into the folder.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny import Kind, tiny_model, tiny_tokenizer

from rlaif.cli.main import cli
from rlaif.errors import RankError
from rlaif.models.ranks import ConnectedRanks, join
from rlaif.models.sharding import load_sharded, own_part
from rlaif.models.shared_base import LoraSettings, SharedBase
from rlaif.ranks import current

DEVICE = torch.device("cpu")


def both(load: Callable[[], Any], ranks: ConnectedRanks) -> tuple[SharedBase, SharedBase]:
    """The model in parts and whole, with adapters of the same random weights."""
    sharded = load_sharded(load, ranks, device=DEVICE, name="tiny")
    bases = tuple(SharedBase.from_model(model, tiny_tokenizer()) for model in (sharded, load()))
    for base in bases:
        base.add_adapter("policy", LoraSettings(rank=2), seed=1)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for weight in base.trainable("policy"):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return bases[0], bases[1]


def frozen(kind: Kind) -> Callable[[], Any]:
    return lambda: tiny_model(kind).requires_grad_(False)


def odd() -> Any:
    """Matrices whose rows two ranks cannot halve."""
    config = transformers.LlamaConfig(
        vocab_size=270,
        hidden_size=36,
        intermediate_size=71,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=6,
    )
    torch.manual_seed(3)
    return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)


def states(base: SharedBase, number: int) -> torch.Tensor:
    ids = torch.arange(6).unsqueeze(0) + number
    return base.hidden(ids, torch.ones_like(ids))


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def gradients(base: SharedBase, number: int) -> torch.Tensor:
    for weight in base.trainable("policy"):
        weight.grad = None
    states(base, number).square().sum().backward()
    return torch.cat(
        [torch.zeros(0), *(w.grad.flatten() for w in base.trainable("policy") if w.grad is not None)]
    )


def uneven(ranks: ConnectedRanks, kind: Kind) -> list[float]:
    """The second rank makes more passes without gradient than the first, and fewer with."""
    pair = sharded, whole = both(frozen(kind), ranks)
    gaps = []
    with sharded.role("policy"), whole.role("policy"):
        for number in range(2 + 3 * ranks.index):
            with torch.inference_mode():
                gaps.append(gap(states(sharded, number), states(whole, number)))
        ranks.gather(None)
        gaps += [gap(*(gradients(base, n) for base in pair)) for n in range(2 - 2 * ranks.index)]
        if ranks.first:
            gaps.append(
                gap(states(sharded, 9).detach(), states(whole, 9).detach())
            )  # no backward pass follows
        ranks.gather(None)
        for base in (sharded, whole):
            base.checkpoint_layers(kind != "gpt2")
        gaps += [gap(*(gradients(base, n) for base in pair)) for n in range(1 + ranks.index)]
    ranks.gather(None)
    return gaps


def merged(ranks: ConnectedRanks, load: Callable[[], Any]) -> list[float]:
    """Adapters folded into parts of weights; then learning goes on."""
    sharded, whole = both(load, ranks)
    for base in (sharded, whole):
        base.merge("policy")
        base.add_adapter("policy", LoraSettings(rank=2), seed=4)
    with sharded.role("policy"), whole.role("policy"):
        found = [gap(gradients(sharded, 0), gradients(whole, 0))]
    return [*found, float(sharded.identity != whole.identity)]


def failing_pass(ranks: ConnectedRanks) -> list[float]:
    """A pass of the first rank ends with an error in its second layer, which the rank gets over."""
    sharded, whole = both(frozen("llama"), ranks)

    def stop(*_: Any) -> None:
        raise ValueError("not this one")

    if ranks.first:
        hook = sharded.model.get_decoder().layers[1].mlp.register_forward_pre_hook(stop)
        try:
            with torch.no_grad():
                states(sharded, 0)
        except ValueError:
            hook.remove()
    ranks.gather(None)
    with torch.no_grad():
        return [gap(states(sharded, 1), states(whole, 1))]


def mixed(ranks: ConnectedRanks) -> list[float]:
    """Weights of several dtypes in one layer, and a buffer of truth values, arrive as they are."""

    def load() -> Any:
        model = tiny_model().requires_grad_(False)
        for layer in model.model.layers:
            layer.mlp.down_proj.to(torch.bfloat16)
            layer.register_buffer("seen", torch.tensor([True, False, True]))
            layer.mlp.down_proj.register_forward_pre_hook(_as_bfloat16)
            layer.mlp.down_proj.register_forward_hook(_as_float)
        return model

    sharded, whole = load_sharded(load, ranks, device=DEVICE, name="mixed"), load()
    wrong = 0
    for mine, theirs in zip(sharded.model.layers, whole.model.layers, strict=True):
        mine.unshard()
        for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
            wrong += one.dtype != other.dtype or not torch.equal(one, other)
        wrong += not torch.equal(mine.seen, theirs.seen)
        mine.reshard()
    return [float(wrong)]


def _as_bfloat16(_: Any, args: Any) -> Any:
    return (args[0].bfloat16(),)


def _as_float(_: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
    return out.float()


def held(ranks: ConnectedRanks) -> list[float]:
    """Weights that this rank holds, of all."""
    model = load_sharded(frozen("llama"), ranks, device=DEVICE, name="tiny")
    return [sum(own_part(w).numel() for w in model.parameters()), sum(w.numel() for w in model.parameters())]


def late(ranks: ConnectedRanks) -> str:
    """A backward pass behind a collective."""
    sharded, _ = both(frozen("llama"), ranks)
    with sharded.role("policy"):
        loss = states(sharded, 0).sum()
        ranks.gather(None)
        try:
            loss.backward()
        except RankError as error:
            return error.what
    return ""


def gone(ranks: ConnectedRanks) -> str:
    """The second rank ends while the first makes passes."""
    model = load_sharded(frozen("llama"), ranks, device=DEVICE, name="tiny")
    if not ranks.first:
        ranks.to_tell(1)
        ranks.leave()
        return "left"
    try:
        for _ in range(100):
            with torch.no_grad():
                model(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=False)
    except RankError as error:
        return error.what
    return ""


def main(folder: Path, recipes: list[str]) -> None:
    ranks = join()
    assert isinstance(ranks, ConnectedRanks)
    if recipes:
        for recipe in recipes:
            cli.main(args=["run", recipe, "--out", str(Path(recipe).parent / "run")], standalone_mode=False)
    else:
        found = {
            **{f"uneven {kind}": uneven(ranks, kind) for kind in ("llama", "gpt2", "gemma3")},
            "merged odd": merged(ranks, odd),
            "merged gpt2": merged(ranks, frozen("gpt2")),
            "failing pass": failing_pass(ranks),
            "mixed": mixed(ranks),
            "held": held(ranks),
            "late": late(ranks),
            "gone": gone(ranks),
        }
        (folder / f"{ranks.index}.json").write_text(json.dumps(found))
    current().leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
