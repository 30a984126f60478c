"""Last-position logits of many sequences, each token that they share computed once.

The tokens of a pass (see `prefix`) go through the model as one row of one batch, without padding: the linear
layers, most of the work, see one large matrix. Only attention must know which tokens belong together.
transformers lets a model's attention be replaced by name (`AttentionInterface`); ours gets the queries, keys
and values of the row and computes them tile by tile, with keys and values carried over from earlier passes in
front. A mask for the whole row would be as wide as the row; a tile's is hardly wider than a tile.

Attention is written with batched matrix products, the query heads that share a key head folded into one
matrix: on CPUs without AMX PyTorch's fused kernel runs bfloat16 at a sixth of the speed of a matrix product
(70 against 420 GFLOP/s on one Zen 5 core).

Not every architecture can be driven so; `unshareable` finds out by what the model says of itself and by
trying.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AttentionInterface

from rlaif.engines.labels import Tokens
from rlaif.engines.prefix import Layout, Pass, Tile, lay_out, needed_passes, plan_passes, windowed

__all__ = ["TreeRows", "TreeReader", "attention_configs", "unshareable"]

NAME = "rlaif_tree"
"""Our attention's name in transformers' registry. No mask function is registered under it, so that models
form no mask."""

TILE = 128
"""Queries of a tile."""
ROUND = 64
"""The number of a tile's keys is a multiple of it, and so is the width of its mask: both are read in whole
vectors then, and fewer different shapes mean fewer kernels to prepare."""
HEAD_BYTES = 1 << 27
"""Room for the logits of a pass."""
HEAP_BLOCK = 31 << 20
"""glibc gives a freed block of up to 32 MiB back to the system until it has seen one as large freed; each
layer would pay for fresh pages again (a fifth of the time of a pass)."""
HARMLESS = frozenset({"position_ids", "cache_position"})
"""Tensors that a model hands its attention for information only."""
PROBE = 48
"""Tokens of the sequences that both ways are tried on."""
PLAIN_LAYERS = frozenset({"full_attention", "sliding_attention"})
LENGTH_BOUND = frozenset({"dynamic", "longrope"})
"""Rotary embeddings whose angles depend on the length of the whole sequence: equal starts have different
keys."""


class _Cut(NamedTuple):
    """A tile as tensors. `keys` is a slice where they are consecutive; `mask` `(T, 1, columns)` is added to
    the scores."""

    start: int
    stop: int
    keys: slice | torch.Tensor
    common: int
    mask: torch.Tensor


class _NotShareableError(Exception):
    """The model asks of its attention what ours does not do."""


class _Room:
    """Scratch tensors, kept from layer to layer: fresh ones of this size would cost as much as what is
    computed in them."""

    def __init__(self) -> None:
        self._kept: dict[str, torch.Tensor] = {}

    def __call__(self, name: str, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """A tensor of that shape, of the type and device of `like`, that holds anything."""
        need = math.prod(shape)
        if name not in self._kept or len(self._kept[name]) < need:
            self._kept[name] = torch.empty(need, dtype=like.dtype, device=like.device)
        return self._kept[name][:need].view(shape)


@dataclass(slots=True)
class _Work:
    """The pass that is going through the model. Keys and values are `(heads, tokens, size)`, by attention
    module."""

    layout: Layout
    carry: int
    device: torch.device
    dtype: torch.dtype
    keep: torch.Tensor | None
    carried: Mapping[Any, tuple[torch.Tensor, torch.Tensor]]
    kept: dict[Any, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    windows: list[int | None] = field(default_factory=list)
    cuts: dict[int | None, list[_Cut]] = field(default_factory=dict)
    room: _Room = field(default_factory=_Room)

    def tiles(self, window: int | None) -> list[_Cut]:
        """The tiles for layers of this window."""
        self.windows.append(window)
        if window is not None and window > self.layout.positions.max():
            window = None
        if window not in self.cuts:
            tiles = self.layout.tiles
            if window is not None:
                tiles = tuple(windowed(tile, self.layout.positions, self.carry, window) for tile in tiles)
            self.cuts[window] = [
                _cut(tile, len(self.layout.positions), self.device, self.dtype) for tile in tiles
            ]
        return self.cuts[window]


_active: ContextVar[_Work | None] = ContextVar("active", default=None)


def _cut(tile: Tile, total: int, device: torch.device, dtype: torch.dtype) -> _Cut:
    """Pad the tile's keys to a multiple of `ROUND` with keys that nothing sees, and begin the mask at such a
    multiple."""
    keys = torch.from_numpy(tile.keys)
    first, count = int(keys[0]), len(keys)
    wide, common = -(-count // ROUND) * ROUND, tile.common // ROUND * ROUND
    consecutive = int(keys[-1]) - first + 1 == count and first + wide <= total
    mask = torch.full((tile.stop - tile.start, 1, wide - common), -torch.inf)
    mask[:, 0, : tile.common - common] = 0.0
    mask[:, 0, tile.common - common : count - common].masked_fill_(torch.from_numpy(tile.mask), 0.0)
    where = (
        slice(first, first + wide)
        if consecutive
        else torch.cat([keys, keys[:1].expand(wide - count)]).to(device)
    )
    return _Cut(tile.start, tile.stop, where, common, mask.to(device, dtype))


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in place of its own attention: `(1, heads, N, size)` in, `(1, N, heads, size)`
    out."""
    work = _active.get()
    tokens = 0 if work is None else len(work.layout.ids)
    strange = [
        name for name, given in others.items() if isinstance(given, torch.Tensor) and name not in HARMLESS
    ]
    if (
        work is None
        or strange
        or attention_mask is not None
        or dropout
        or query.shape[0] != 1
        or key.shape[2] != tokens
    ):
        raise _NotShareableError(f"its attention has {', '.join(strange) or 'a form of its own'}")
    if module in work.carried:
        before = work.carried[module]
        key, value = (torch.cat([old, new[0]], dim=1) for old, new in zip(before, (key, value), strict=True))
    else:
        key, value = key[0].contiguous(), value[0].contiguous()
    if work.keep is not None:
        work.kept[module] = (key.index_select(1, work.keep), value.index_select(1, work.keep))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _by_tiles(
        query[0], key, value, work.tiles(sliding_window), scale=scale, softcap=softcap, room=work.room
    ), None


def _by_tiles(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    tiles: Sequence[_Cut],
    *,
    scale: float,
    softcap: float | None,
    room: _Room,
) -> torch.Tensor:
    """Attention of `(heads, N, size)` queries to `(key heads, keys, size)`; returns `(1, N, heads, size)`."""
    heads, tokens, size = query.shape
    shared = key.shape[0]
    fold = heads // shared
    # Query heads that share a key head become rows of one matrix: (key heads, N * fold, size).
    rows = room("rows", (shared, tokens, fold, size), query)
    torch.mul(query.view(shared, fold, tokens, size).transpose(1, 2), scale, out=rows)
    rows = rows.view(shared, tokens * fold, size)
    out = torch.empty(1, tokens, heads, value.shape[-1], dtype=query.dtype, device=query.device)
    for tile in tiles:
        if isinstance(tile.keys, slice):
            keys, values = key[:, tile.keys], value[:, tile.keys]
        else:
            keys, values = key.index_select(1, tile.keys), value.index_select(1, tile.keys)
        count = tile.stop - tile.start
        scores = room("scores", (shared, count * fold, keys.shape[1]), query)
        torch.bmm(rows[:, tile.start * fold : tile.stop * fold], keys.transpose(1, 2), out=scores)
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        scores.view(shared, count, fold, -1)[..., tile.common :].add_(tile.mask)
        torch.softmax(scores, -1, out=scores)
        seen = torch.bmm(scores, values, out=room("seen", (shared, count * fold, values.shape[-1]), query))
        out[0, tile.start : tile.stop].view(count, shared, fold, -1).copy_(
            seen.view(shared, count, fold, -1).transpose(0, 1)
        )
    return out


AttentionInterface.register(NAME, _attention)


class TreeRows(NamedTuple):
    """What a pass gives: `logits` `(branches, V)` at the last tokens; `members` are the sequences of each
    branch."""

    members: tuple[tuple[int, ...], ...]
    logits: torch.Tensor


class TreeReader:
    """Runs one model over sequences that share their starts.

    Args:
        model: A causal language model for which `unshareable` gives no reason.
        budget: Most tokens in a pass.
    """

    def __init__(self, model: Any, *, budget: int) -> None:
        self.model = model
        self.budget = budget
        self._configs = attention_configs(model)
        if model.device.type == "cpu":
            torch.empty(HEAP_BLOCK, dtype=torch.uint8)
        vocabulary = model.config.get_text_config(decoder=True).vocab_size
        self._branches = max(1, HEAD_BYTES // (8 * vocabulary))

    def read(self, sequences: Sequence[Tokens], *, wanted: Container[int]) -> Iterator[TreeRows]:
        """The logits behind every wanted sequence, a pass at a time.

        A pass is computed whole, whatever part of it is wanted, and passes that it builds on are computed
        again: so a logit does not depend on what is wanted.
        """
        passes = plan_passes(sequences, budget=self.budget, branches=self._branches)
        needed = needed_passes(passes, wanted)
        carried: Mapping[Any, tuple[torch.Tensor, torch.Tensor]] = {}
        for number, following in zip(needed, [*needed[1:], None], strict=True):
            keep = 0 if following is None else passes[following].carry
            logits, carried = self._run(passes[number], sequences, keep=keep, carried=carried)
            yield TreeRows(tuple(branch.members for branch in passes[number].branches), logits)

    @torch.inference_mode()
    def _run(
        self,
        work: Pass,
        sequences: Sequence[Tokens],
        *,
        keep: int,
        carried: Mapping[Any, tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, Mapping[Any, tuple[torch.Tensor, torch.Tensor]]]:
        """One pass; returns its logits, and keys and values of the first `keep` tokens of its last
        sequence."""
        device = self.model.device
        layout = lay_out(work, sequences, tile=TILE)
        kept = torch.from_numpy(layout.path[:keep]).to(device) if keep else None
        state = _Work(
            layout=layout, carry=work.carry, device=device, dtype=self.model.dtype, keep=kept, carried=carried
        )
        with self._attending(state):
            output = self.model(
                input_ids=torch.from_numpy(layout.ids)[None].to(device),
                position_ids=torch.from_numpy(layout.positions[None, work.carry :]).to(device),
                use_cache=False,
                logits_to_keep=torch.from_numpy(layout.last).to(device),
            )
        return output.logits[0], state.kept

    @contextmanager
    def _attending(self, state: _Work) -> Iterator[None]:
        """Inside the block the model's attention is ours, at work on `state`."""
        before = [config._attn_implementation for config in self._configs]
        token = _active.set(state)
        try:
            for config in self._configs:
                config._attn_implementation = NAME
            yield
        finally:
            _active.reset(token)
            for config, name in zip(self._configs, before, strict=True):
                config._attn_implementation = name

    def windows(self, ids: Tokens) -> list[int | None]:
        """The sliding window that each attention layer tells of, in order; `None` where it has none."""
        (work,) = plan_passes([ids], budget=len(ids), branches=1)
        state = _Work(
            layout=lay_out(work, [ids], tile=TILE),
            carry=0,
            device=self.model.device,
            dtype=self.model.dtype,
            keep=None,
            carried={},
        )
        with torch.inference_mode(), self._attending(state):
            self.model(
                input_ids=torch.from_numpy(ids.astype("int64"))[None].to(self.model.device),
                use_cache=False,
                logits_to_keep=1,
            )
        return state.windows


def attention_configs(model: Any) -> list[Any]:
    """Every config of the model's parts that names an attention, the outermost first."""
    configs = [getattr(part, "config", None) for part in model.modules()]
    return list(
        {id(config): config for config in configs if hasattr(config, "_attn_implementation")}.values()
    )


def unshareable(model: Any, prompt: Tokens) -> str:
    """Why this model cannot be run by a `TreeReader`; empty when it can.

    It is asked what layers and positions it has, and is run over pieces of `prompt` both ways.
    """
    text = model.config.get_text_config(decoder=True)
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    kinds = getattr(text, "layer_types", None) or []
    if strange := sorted(set(kinds) - PLAIN_LAYERS):
        return f"it has layers of the kind {', '.join(strange)}"
    if _rope_types(getattr(text, "rope_parameters", None)) & LENGTH_BOUND:
        return "its positions depend on the length of the whole prompt"
    try:
        windows = TreeReader(model, budget=PROBE).windows(np.resize(prompt, PROBE))
        sliding = (
            kinds.count("sliding_attention")
            if kinds
            else len(windows) * bool(getattr(text, "sliding_window", None))
        )
        if len(windows) != text.num_hidden_layers or sum(window is not None for window in windows) < sliding:
            return "not all of its layers tell what they attend to"
        return (
            ""
            if _agrees(model, np.resize(prompt, PROBE))
            else "shared and separate prompts give different results"
        )
    except (_NotShareableError, TypeError, ValueError, RuntimeError, IndexError, KeyError) as error:
        return str(error) or type(error).__name__


def _rope_types(parameters: Any) -> set[str]:
    """The kinds of rotary embedding in a config's `rope_parameters`, which may hold one for each kind of
    layer."""
    if not isinstance(parameters, Mapping):
        return set()
    each = [parameters, *(value for value in parameters.values() if isinstance(value, Mapping))]
    return {str(one["rope_type"]) for one in each if "rope_type" in one}


@torch.inference_mode()
def _agrees(model: Any, ids: Tokens) -> bool:
    """Whether a small trie, cut into passes, gives the logits of its sequences one by one."""
    half, third = len(ids) // 2, len(ids) // 3
    heads = [ids, ids[: half + 3], ids[:third], ids[:half]]
    tails = [ids[:0], ids[: third + 1], ids[half:], ids[::-1][: half - 1]]
    sequences = [np.concatenate(parts) for parts in zip(heads, tails, strict=True)]
    together = {
        member: row
        for rows in TreeReader(model, budget=half).read(sequences, wanted=range(len(sequences)))
        for members, row in zip(rows.members, rows.logits, strict=True)
        for member in members
    }
    for number, sequence in enumerate(sequences):
        input_ids = torch.from_numpy(sequence.astype(np.int64))[None].to(model.device)
        alone = model(input_ids=input_ids, use_cache=False, logits_to_keep=1).logits[0, -1].float()
        alone, other = alone - alone.mean(), together[number].float() - together[number].float().mean()
        # Negated, so that it fails on NaN.
        if not (alone - other).norm() <= (1e-3 if model.dtype == torch.float32 else 0.1) * alone.norm():
            return False
    return True
