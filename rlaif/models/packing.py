"""A prompt and its completions in one row: the prompt is computed once and every completion looks at it, none
at another.

The two completions of a preference share their prompt, and so do the K samples of best-of-K. A row holds the
prompt's tokens, then each completion's; positions go on from the prompt for each, and the attention mask lets
a token see the prompt and its own completion up to itself. The states are those of separate rows, up to
rounding, for every model whose tokens meet in masked attention only; `SharedBase` users check that with
`same_states` and give each completion a row of its own where it fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rlaif.engines.batching import plan
from rlaif.models.heap import rounded
from rlaif.models.pooling import Pooling, pool_groups
from rlaif.models.shared_base import SharedBase

__all__ = [
    "Packed",
    "PackedRow",
    "Tree",
    "features",
    "merged",
    "row_batches",
    "pack",
    "pooled",
    "same_states",
    "whole_trees",
]

Ids = Sequence[int]
_CAN_SHARE: WeakKeyDictionary[SharedBase, bool] = WeakKeyDictionary()
"""What `same_states` found of a base."""
MOST_COMPLETIONS = 8
"""Completions in one row at most: a token is compared with all of its row, seen or not."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A prompt and the completions that follow it, as token ids."""

    prompt: Ids
    completions: tuple[Ids, ...]

    @property
    def longest(self) -> int:
        """Tokens of the prompt and its longest completion: what the context must hold."""
        return len(self.prompt) + max(map(len, self.completions))


@dataclass(frozen=True, slots=True)
class PackedRow:
    """What one row of a batch holds: a prompt, and completions with the number each goes by."""

    prompt: Ids
    completions: tuple[tuple[int, Ids], ...]

    @property
    def length(self) -> int:
        """Tokens, padding not counted."""
        return len(self.prompt) + sum(len(ids) for _, ids in self.completions)


class Packed(NamedTuple):
    """A batch of rows, padded on the right. B rows, T columns, N completions."""

    input_ids: Tensor
    """(B, T)."""
    attention_mask: Tensor
    """(B, T), 1 at real tokens, when every row holds one completion; else (B, 1, T, T), True where a token
    may look."""
    position_ids: Tensor
    """(B, T)."""
    group: Tensor
    """(B, T), which of the batch's N completions a token belongs to; -1 at prompt and padding."""
    numbers: tuple[int, ...]
    """(N,), the numbers they go by outside."""
    tokens: int
    """Real tokens, padding not counted."""


def merged(trees: Sequence[Tree]) -> tuple[list[Tree], list[int]]:
    """One tree for each prompt, in which a completion stands once however many of `trees` have it.

    Also: of each completion of `trees`, in order, its number among those of the merged ones.
    """
    groups: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
    keys = [(tuple(tree.prompt), tuple(ids)) for tree in trees for ids in tree.completions]
    for prompt, completion in keys:
        groups.setdefault(prompt, {})[completion] = None
    found = [Tree(prompt=prompt, completions=tuple(each)) for prompt, each in groups.items()]
    number = {
        key: at for at, key in enumerate((tree.prompt, ids) for tree in found for ids in tree.completions)
    }
    return found, [number[key] for key in keys]


def rows_of(trees: Sequence[Tree], *, share: bool, start: int = 0) -> list[PackedRow]:
    """The rows that trees are computed in; completions are numbered in order over all trees, from `start`."""
    rows: list[PackedRow] = []
    number = start
    for tree in trees:
        numbered = tuple(enumerate(tree.completions, start=number))
        step = MOST_COMPLETIONS if share else 1
        rows += [PackedRow(tree.prompt, numbered[at : at + step]) for at in range(0, len(numbered), step)]
        number += len(numbered)
    return rows


def row_batches(trees: Sequence[Tree], *, tokens: int, share: bool) -> list[list[PackedRow]]:
    """The rows of all completions of `trees`, in batches of similar length of at most `tokens`, padding
    included; the longest first."""
    rows = rows_of(trees, share=share)
    batches = plan([rounded(row.length) for row in rows], budget=tokens)
    return [[rows[index] for index in batch] for batch in batches]


def whole_trees(trees: Sequence[Tree], *, tokens: int, share: bool, device: torch.device) -> Iterator[Packed]:
    """As `row_batches`, packed, but the completions of a tree stay in one batch, for losses that compare
    them."""
    costs = [
        rounded(len(t.prompt) + sum(map(len, t.completions)))
        if share
        else rounded(t.longest) * len(t.completions)
        for t in trees
    ]
    numbers = list(accumulate((len(tree.completions) for tree in trees), initial=0))
    for batch in plan(costs, budget=tokens):
        rows = [row for index in batch for row in rows_of([trees[index]], share=share, start=numbers[index])]
        yield pack(rows, device=device)


def pack(rows: Sequence[PackedRow], *, device: torch.device) -> Packed:
    """Put rows into one batch. Padding has id 0, which no real token sees."""
    width = rounded(max(row.length for row in rows))
    ids, positions = (
        torch.zeros(len(rows), width, dtype=torch.long),
        torch.zeros(len(rows), width, dtype=torch.long),
    )
    group, real = torch.full((len(rows), width), -1), torch.zeros(len(rows), width, dtype=torch.long)
    numbers: list[int] = []
    for at, row in enumerate(rows):
        end = len(row.prompt)
        ids[at, :end], positions[at, :end] = torch.tensor(row.prompt, dtype=torch.long), torch.arange(end)
        for number, completion in row.completions:
            here, end = end, end + len(completion)
            ids[at, here:end] = torch.tensor(completion, dtype=torch.long)
            positions[at, here:end] = torch.arange(len(row.prompt), len(row.prompt) + len(completion))
            group[at, here:end] = len(numbers)
            numbers.append(number)
        real[at, :end] = 1
    alone = all(len(row.completions) == 1 for row in rows)
    mask = real if alone else _tree_mask(group, real)
    return Packed(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=positions.to(device),
        group=group.to(device),
        numbers=tuple(numbers),
        tokens=sum(row.length for row in rows),
    )


def _tree_mask(group: Tensor, real: Tensor) -> Tensor:
    """(B, 1, T, T): a token sees what comes before it in its prompt and in its own completion; padding sees
    padding."""
    width = group.shape[1]
    part = torch.where(real.bool(), group, -2)
    seen = (part.unsqueeze(1) == -1) | (part.unsqueeze(1) == part.unsqueeze(2))
    return (seen & torch.ones(width, width, dtype=torch.bool).tril()).unsqueeze(1)


def pooled(base: SharedBase, batch: Packed, pooling: Pooling) -> Tensor:
    """Features of the batch's completions under the active role: (N, H), fp32."""
    hidden = base.hidden(batch.input_ids, batch.attention_mask, batch.position_ids)
    return pool_groups(hidden, batch.group, len(batch.numbers), pooling)


@torch.no_grad()
def features(
    base: SharedBase, trees: Sequence[Tree], *, pooling: Pooling, tokens: int, share: bool
) -> Tensor:
    """Features of all completions under the active role, in order over all trees: (N, H), fp32, on the
    CPU."""
    out = torch.empty(sum(len(tree.completions) for tree in trees), base.hidden_size)

    def read(rows: Sequence[PackedRow]) -> tuple[tuple[int, ...], Tensor]:
        packed = pack(rows, device=base.device)
        return packed.numbers, pooled(base, packed, pooling).cpu()

    batches = row_batches(trees, tokens=tokens, share=share)
    for numbers, found in base.ranks.spread(batches, read):
        out[list(numbers)] = found
    return out


def same_states(base: SharedBase, trees: Sequence[Tree]) -> bool:
    """Whether this model gives completions in one row the states that they have in rows of their own (up to
    rounding).

    It does not where attention is not all there is between tokens (recurrent layers), where distance is
    counted in columns (ALiBi) or bounded (sliding windows, once a row is longer), and where the attention
    kernel takes no mask of this shape. The active role is asked about the shortest of `trees` with several
    completions; without one there is nothing to share. What the states say is of the model, whatever the
    adapter, and is found out once.
    """
    several = [tree for tree in trees if len(tree.completions) > 1]
    if not several:
        return False
    window = getattr(base.model.config.get_text_config(decoder=True), "sliding_window", None)
    longest = max(row.length for row in rows_of(several, share=True))
    if base.model.config._attn_implementation not in ("sdpa", "eager") or (window and longest >= window):
        return False
    if base not in _CAN_SHARE:
        _CAN_SHARE[base] = _agrees(
            base, min(several, key=lambda tree: sum(map(len, (tree.prompt, *tree.completions))))
        )
    return _CAN_SHARE[base]


def _agrees(base: SharedBase, probe: Tree) -> bool:
    """Whether the completions of a tree have the same states in one row as in rows of their own."""
    apart, together = (
        features(base, [probe], pooling="mean", tokens=1, share=share) for share in (False, True)
    )
    allowed = 1e-3 if base.dtype == torch.float32 else 3e-2
    return bool((apart - together).norm() <= allowed * apart.norm())
