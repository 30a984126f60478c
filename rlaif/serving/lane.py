"""The rows of one role that are sampled together: they join and leave between two steps.

A row that joins is prefilled apart from the others and then put beside them; all rows are padded on the left
to the longest, so that a step adds one column for everybody. Columns in which no row has a token are cut off
when rows leave, so the cache is as long as the longest row in it, however long the lane has been running.

The cache keeps all keys of layers with a sliding window: the mask hides those outside of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache, DynamicLayer

from rlaif.engines.decoding import draw_token
from rlaif.errors import ModelError
from rlaif.models.shared_base import SharedBase
from rlaif.moderation.states import tapped
from rlaif.serving.work import Row

__all__ = ["Lane", "check_joining"]

TOLERANCE = 2e-2
"""By which log-probabilities may differ between a row alone and beside another, at the most likely tokens."""

STATES = ("keys", "values")
"""Of a layer's cache, each (B, heads, S, size)."""


class Lane:
    """Samples rows of the role that is active while `join` and `step` are called.

    Args:
        ends: Tokens that end a completion.
        layers: Whose hidden states at every token that is read go to the rows' moderators.
    """

    def __init__(self, base: SharedBase, role: str, ends: frozenset[int], layers: Sequence[int] = ()) -> None:
        self.base = base
        self.role = role
        self.ends = ends
        self.layers = tuple(layers)
        self.rows: list[Row] = []
        self.clear()

    def clear(self) -> None:
        """Forget all rows and what was computed for them."""
        self.rows = []
        self._cache = DynamicCache()
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=self.base.device)  # (B, S), 1 at tokens
        self._positions = self._mask[:, :1]  # (B, 1), of the last token
        self._tokens = self._mask[:, 0:0]  # (B, 1), drawn and not yet read

    @torch.no_grad()
    def join(self, rows: Sequence[Row]) -> None:
        """Read the prompts of `rows`, draw their first tokens, and put them beside the others."""
        prompts = list(dict.fromkeys(row.job.ids for row in rows))
        place = {ids: at for at, ids in enumerate(prompts)}
        source = torch.tensor([place[row.job.ids] for row in rows], device=self.base.device)
        state, cache, mask = read_prompts(self.base, prompts)
        if len(rows) > len(prompts):
            cache.batch_select_indices(source)
        mask = mask[source]
        tokens = self._draw(rows, state[source])
        width = max(mask.shape[1], self._mask.shape[1])
        if self.rows:
            _put_beside(self._cache, cache, width)
        else:
            self._cache = cache
        self._mask = torch.cat([_widen(each, width) for each in (self._mask, mask) if len(each)])
        self._positions = self._mask.sum(1, keepdim=True) - 1
        self._tokens = torch.cat([self._tokens, tokens]) if self.rows else tokens
        self.rows = [*self.rows, *rows]
        self.leave()

    @torch.no_grad()
    def step(self) -> None:
        """Read the last tokens of all rows and draw the next ones."""
        self._mask = pad(self._mask, (0, 1), value=1)
        self._positions = self._positions + 1
        with tapped(self.base, self.layers) if self.layers else nullcontext() as tap:
            out = self.base.hidden(self._tokens, self._mask, self._positions, past_key_values=self._cache)
        if tap is not None:
            for row, states in zip(self.rows, tap.states(out)[:, -1].float().cpu(), strict=True):
                row.read(states)
        self._tokens = self._draw(self.rows, out[:, -1])
        self.leave()

    def leave(self) -> None:
        """Let the rows go for which no tokens are drawn any more."""
        kept = [at for at, row in enumerate(self.rows) if row.live]
        if not kept:
            self.clear()
            return
        if len(kept) < len(self.rows):
            index = torch.tensor(kept, device=self.base.device)
            self.rows = [self.rows[at] for at in kept]
            self._cache.batch_select_indices(index)
            self._mask, self._positions = self._mask[index], self._positions[index]
            self._tokens = self._tokens[index]
        empty = int(self._mask.any(0).int().argmax())  # columns before the first that any row has a token in
        if empty:
            self._mask = self._mask[:, empty:]
            for layer in self._cache.layers:
                for name in STATES:
                    setattr(layer, name, getattr(layer, name)[:, :, empty:])

    def _draw(self, rows: Sequence[Row], state: Tensor) -> Tensor:
        """Give every row a token drawn after its state (B, H); returns (B, 1), readable ids."""
        device = state.device
        logits = self.base.logits_at(state)
        drawn = draw_token(
            logits,
            torch.tensor([row.uniform for row in rows], device=device),
            torch.tensor([row.job.sampling.temperature for row in rows], device=device),
            torch.tensor([row.job.sampling.top_p for row in rows], device=device),
        )
        for row, token in zip(rows, drawn.tolist(), strict=True):
            if row.draws:
                row.take(token, self.ends)
        return drawn.clamp(min=0)[:, None]


def read_prompts(base: SharedBase, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, DynamicCache, Tensor]:
    """The active role's states at the last tokens (P, H), the cache, and the mask (P, T), 1 at tokens."""
    width = max(map(len, prompts))
    padded = [[0] * (width - len(ids)) + list(ids) for ids in prompts]
    ids = torch.tensor(padded, device=base.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=base.device)
    cache = DynamicCache()
    state = base.hidden(ids, mask, past_key_values=cache)[:, -1]
    return state, cache, mask


@torch.no_grad()
def check_joining(base: SharedBase) -> None:
    """Compare a row that joined another with the same row alone, so that a model whose cache cannot be put
    together so is refused before it answers wrongly.

    Raises:
        ModelError: It cannot.
    """
    long, short = list(range(5, 14)), [5, 6, 7]
    _, cache, mask = read_prompts(base, [long])
    _, joining, short_mask = read_prompts(base, [short])
    if not all(type(layer) is DynamicLayer for layer in (*cache.layers, *joining.layers)):
        raise _unjoinable(base, "its cache is not one of keys and values alone")
    _put_beside(cache, joining, len(long))
    mask = pad(torch.cat([mask, _widen(short_mask, len(long))]), (0, 1), value=1)
    token = torch.full((2, 1), 8, device=base.device)
    beside = base.hidden(token, mask, mask.sum(1, keepdim=True) - 1, past_key_values=cache)[:, -1]
    alone = torch.stack([read_prompts(base, [[*ids, 8]])[0][0] for ids in (long, short)])
    found, wanted = (base.logits_at(each).float().log_softmax(-1) for each in (beside, alone))
    top = wanted.topk(5).indices
    gap = (found.gather(1, top) - wanted.gather(1, top)).abs().max().item()
    limit = TOLERANCE if base.dtype == torch.float32 else 10 * TOLERANCE
    if not gap <= limit:
        raise _unjoinable(base, f"a row beside another is computed otherwise than alone, by {gap:.3g} nats")


def _unjoinable(base: SharedBase, why: str) -> ModelError:
    return ModelError(
        f"requests to {base.name} cannot be batched: {why}",
        remedy="serve it with another program (vLLM), or use another model",
    )


def _put_beside(cache: DynamicCache, other: DynamicCache, width: int) -> None:
    """Add the rows of `other` to `cache`, both padded on the left to `width` columns."""
    for layer, added in zip(cache.layers, other.layers, strict=True):
        for name in STATES:
            parts = [_lengthen(getattr(each, name), width) for each in (layer, added)]
            setattr(layer, name, torch.cat(parts))


def _lengthen(states: Tensor, width: int) -> Tensor:
    """Keys or values (B, heads, S, size) with empty columns in front, up to `width`."""
    return pad(states, (0, 0, width - states.shape[2], 0))


def _widen(mask: Tensor, width: int) -> Tensor:
    """A mask (B, S) with empty columns in front, up to `width`."""
    return pad(mask, (width - mask.shape[1], 0))
