"""A base that does not fit one GPU: the frozen decoder layers are sharded over the ranks (FSDP2).

Each rank holds its part of every layer. A pass gathers one layer at a time, in order, and lets it go; a
backward pass does so again in reverse. Embeddings, the final norm, the LM head and the adapters are whole on
every rank: they are called by themselves, they learn, and they are small beside the layers. Each layer is an
FSDP group; the decoder itself is the root and has no weights of its own to gather. As nothing in a group
learns, gradients are never reduced here: those of adapters are added up by `Ranks.add_up`.

So every pass is a collective, while ranks make different numbers of passes. Before each they agree on what
is next (`ConnectedRanks`). A rank that does not want the pass that was agreed on takes part in it: it gathers
the layers as that pass does, and computes nothing.

Two rules follow. Between a pass with gradient and its backward pass nothing else may need the ranks. And a
pass with gradient must stand alone in its backward pass: a prefix whose keys and values are shared with
gradient (`rl.episodes.response_states`) would make it one of two passes, so prefixes are shared without
gradient only.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from rlaif.errors import ModelError, RankError
from rlaif.models.ranks import ConnectedRanks

__all__ = ["add_to_weight", "is_sharded", "load_sharded", "own_part"]


def load_sharded(load: Callable[[], Any], ranks: ConnectedRanks, *, device: torch.device, name: str) -> Any:
    """A model with its decoder layers sharded over all ranks.

    The first rank loads it whole into memory and sends its weights, a tensor at a time; a GPU never holds
    more than its parts, what is whole, and one layer.

    Args:
        load: Loads the whole model into memory, in eval mode and frozen; called by the first rank only.
        device: Of this rank.
        name: As the user named the model.

    Raises:
        ModelError: It cannot be loaded, or what its layers are cannot be told.
    """
    whole: list[Any] = []

    def load_first() -> Any:
        whole.append(load())
        return _without_values(whole[0])

    empty = ranks.from_first(load_first)
    model = whole.pop() if ranks.first else empty
    _shard(model, ranks, device=device, name=name)
    return model


def is_sharded(model: Any) -> bool:
    """Whether this rank holds only parts of the model's layers."""
    return isinstance(model.get_decoder(), FSDPModule)


def own_part(weight: Tensor) -> Tensor:
    """What of a weight lies in this process: the weight itself, or this rank's rows."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


@torch.no_grad()
def add_to_weight(weight: Tensor, change: Tensor) -> None:
    """Add `change`, of the shape of the whole weight, to what of the weight lies in this process."""
    part = own_part(weight)
    if part is not weight:  # FSDP2 cuts the rows as `torch.chunk` does
        assert isinstance(weight, DTensor)
        mesh = weight.device_mesh
        parts = change.chunk(mesh.size())
        change = parts[mesh.get_local_rank()] if mesh.get_local_rank() < len(parts) else change[:0]
    # Through `data`, as `Module.to` counts the writes to a DTensor from 0 again, which would look like one.
    part.data.add_(change.to(part.dtype))


class _ShardedLayers:
    """The layers of one model in parts; see `models.ranks.InParts`."""

    def __init__(
        self, model: Any, layers: list[FSDPModule], ranks: ConnectedRanks, gathers: _GuardedGather
    ) -> None:
        self._body: Any = model.get_decoder()
        self._layers = layers
        self._ranks = ranks
        self._gathers = gathers
        self._with_gradient = self._owes = self._inside = False
        self._number = ranks.add_in_parts(self)
        self._body.register_forward_pre_hook(self._before, prepend=True)
        self._body.register_forward_hook(self._after, always_call=True)
        model.get_input_embeddings().register_forward_hook(self._embedded)

    def settle(self) -> None:
        """See `InParts`."""
        if self._owes:
            self._owes = False
            self._body.reset_iter_state()
            self._gather(reversed(self._layers))

    def take_part(self, *, with_gradient: bool) -> None:
        """See `InParts`."""
        self._gather(self._layers)
        if with_gradient:
            self._gather(reversed(self._layers))

    def _gather(self, layers: Iterable[FSDPModule]) -> None:
        for layer in layers:
            layer.unshard()
            layer.reshard()

    def _before(self, body: nn.Module, args: Any) -> None:
        self._with_gradient = torch.is_grad_enabled() and any(
            weight.requires_grad for weight in body.parameters()
        )
        self._ranks.before_pass(self._number, with_gradient=self._with_gradient)
        self._gathers.count, self._inside = 0, True

    def _embedded(self, embedding: nn.Module, args: Any, out: Tensor) -> None:
        # Then each layer is gathered in the backward pass, wherever the lowest adapted weight is.
        if self._inside and self._with_gradient:
            out.requires_grad_()

    def _after(self, body: nn.Module, args: Any, out: Any) -> None:
        self._inside, self._owes = False, self._with_gradient
        if out is None or not self._with_gradient:
            # FSDP2 remembers the layers of every pass until a backward pass, which would gather them too.
            self._body.reset_iter_state()
        if out is None and not self._gathers.lost:  # the pass ended with an error: the others end it, too
            self._gather(self._layers[self._gathers.count :])
        elif self._with_gradient:
            out[0].register_hook(self._paid)

    def _paid(self, grad: Tensor) -> None:
        if not self._owes:
            raise RankError(
                "a backward pass came after something else that needed the ranks, or had several passes",
                remedy="report this as a bug; shard_base: false avoids it",
            )
        self._owes = False


class _GuardedGather:
    """FSDP2's all-gather, which says in our words that a rank has ended.

    Attributes:
        count: How many there were since it was set to 0.
        lost: Whether one failed.
    """

    def __init__(self, ranks: ConnectedRanks) -> None:
        self._ranks = ranks
        self.count = 0
        self.lost = False

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False
    ) -> Any:
        self.count += 1
        self.lost = True
        done = self._ranks.guarded(
            lambda: distributed.all_gather_single(output_tensor, input_tensor, group=group, async_op=async_op)
        )
        self.lost = False
        return done


def _shard(model: Any, ranks: ConnectedRanks, *, device: torch.device, name: str) -> None:
    body = model.get_decoder()
    layers: list[Any] = [part for part in body.modules() if isinstance(part, GradientCheckpointingLayer)]
    if not layers or not hasattr(FSDPModule, "reset_iter_state"):
        why = "this torch is too old for it" if layers else "which parts of it are layers cannot be told"
        raise ModelError(
            f"the model cannot be sharded: {why}",
            where=name,
            remedy="use torch 2.13 or later" if layers else "set shard_base to false",
        )
    mesh, gather = init_device_mesh(device.type, (ranks.count,)), _GuardedGather(ranks)
    inside = {id(part) for layer in layers for part in layer.modules()}
    placed: dict[int, tuple[Tensor, Tensor]] = {}
    _place((part for part in model.modules() if id(part) not in inside), ranks, device, placed)
    whole = set(model.parameters()) - {weight for layer in layers for weight in layer.parameters()}
    for layer in layers:
        _place(layer.modules(), ranks, device, placed)
        placed = {key: pair for key, pair in placed.items() if pair[1] in whole}
        fully_shard(layer, mesh=mesh)
        layer.set_custom_all_gather(gather)
    fully_shard(body, mesh=mesh, ignored_params=whole)
    # It warns of what might not be gathered then; the root has nothing to gather.
    warnings.filterwarnings("ignore", rf"FSDP2-wrapped module \({type(body).__name__}\) returned a view")
    _ShardedLayers(model, layers, ranks, gather)
    # The first pass makes what later ones write to, and in inference mode that could not be trained on.
    with torch.no_grad():
        body(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)


def _place(
    parts: Iterable[nn.Module],
    ranks: ConnectedRanks,
    device: torch.device,
    placed: dict[int, tuple[Tensor, Tensor]],
) -> None:
    """Put the weights and buffers of modules on the device, with the first rank's values.

    Args:
        placed: Old and new tensors, by the number of the old: those that are shared stay so.
    """
    for part in parts:
        for table in (part._parameters, part._buffers):
            for name, old in table.items():
                if old is None:
                    continue
                if id(old) not in placed:
                    new = (
                        old.detach().to(device).contiguous()
                        if ranks.first
                        else torch.empty(old.shape, dtype=old.dtype, device=device)
                    )
                    ranks.from_first_into(new)
                    placed[id(old)] = (old, _like(old, new))
                table[name] = placed[id(old)][1]  # type: ignore[assignment]


def _like(old: Tensor, new: Tensor) -> Tensor:
    """`new` as what `old` is: a frozen weight, or a buffer."""
    return nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new


def _without_values(model: Any) -> Any:
    """A copy of a model whose tensors have shapes and no values."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        memo[id(tensor)] = _like(tensor, torch.empty_like(tensor, device="meta"))
    return copy.deepcopy(model, memo)
