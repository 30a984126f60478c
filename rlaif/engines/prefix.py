"""Which tokens must be computed for a set of sequences when what they share at the start is computed once.

Method: sort the sequences; what one shares with the one before it is then all that it shares with any earlier
one. Written down one behind the other, each without what it shares with the one before, they form a trie in
depth-first order: the tokens written are its nodes. Where a sequence's tokens were written is found in a row
of slots, one a position, which each sequence overwrites from where its own tokens begin: that is its *path*.

The trie is cut into passes of a bounded number of tokens. All that a pass needs of earlier ones lies on one
path, so the keys and values of one sequence at most are carried from pass to pass, however many sequences
there are.

Within a pass, attention is computed by *tiles*: runs of tokens that look back at nearly the same tokens. What
the whole tile sees needs no mask; the mask covers the rest, which is hardly more than the tile itself.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rlaif.engines.labels import Tokens

__all__ = ["Branch", "Layout", "Pass", "Tile", "lay_out", "needed_passes", "plan_passes", "windowed"]

Index = npt.NDArray[np.int64]

APART = 64
"""A tile ends where the next sequence shares at least this many tokens fewer with it: as many more columns
would need the mask."""


class Branch(NamedTuple):
    """Equal sequences, by their numbers, and how many tokens they share with the branch before."""

    members: tuple[int, ...]
    shared: int


@dataclass(frozen=True, slots=True)
class Pass:
    """Branches whose own tokens go through the model together.

    Attributes:
        branches: In sorted order.
        carry: How many tokens at the start of the first branch were computed by earlier passes.
        parents: Those passes, by number.
    """

    branches: tuple[Branch, ...]
    carry: int
    parents: tuple[int, ...]


class Tile(NamedTuple):
    """Queries that are computed together. Queries are counted from the first token of their pass; keys from
    the first carried one.

    Attributes:
        start, stop: The queries, T of them.
        keys: What they see, `(M,)`.
        common: So many of the keys, from the first on, are seen by every query.
        mask: `(T, M - common)`, True where a query sees one of the other keys.
    """

    start: int
    stop: int
    keys: Index
    common: int
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Layout:
    """A pass, token by token.

    Attributes:
        ids: Its N tokens.
        positions: The positions of all keys, the carried ones first, `(carry + N,)`.
        last: The last token of each branch, counted as queries are.
        path: The keys on the path of the last branch.
        tiles: They cover all queries, in order.
    """

    ids: Index
    positions: Index
    last: Index
    path: Index
    tiles: tuple[Tile, ...]


class _Piece(NamedTuple):
    """Part of a branch: its path up to the piece's end, and where on it the piece begins."""

    path: Index
    begin: int

    @property
    def size(self) -> int:
        return len(self.path) - self.begin


def plan_passes(sequences: Sequence[Tokens], *, budget: int, branches: int) -> list[Pass]:
    """Cut the trie of `sequences` into passes. The plan depends on the sequences alone.

    Args:
        sequences: None of them empty.
        budget: Most tokens that a pass computes; a sequence with more of its own goes alone.
        branches: Most branches in a pass.
    """
    passes: list[Pass] = []
    open_ones: list[Branch] = []
    carry, tokens, parents = 0, 0, np.zeros(0, dtype=np.int64)
    owners = np.zeros(max(map(len, sequences), default=0), dtype=np.int64)
    for branch in _sorted_branches(sequences):
        length = len(sequences[branch.members[0]])
        own = length - branch.shared
        if open_ones and (tokens + own > budget or len(open_ones) == branches):
            passes.append(Pass(tuple(open_ones), carry, tuple(parents.tolist())))
            open_ones, tokens = [], 0
        if not open_ones:
            carry, parents = branch.shared, np.unique(owners[: branch.shared])
        open_ones.append(branch)
        tokens += own
        owners[branch.shared : length] = len(passes)
    return [*passes, Pass(tuple(open_ones), carry, tuple(parents.tolist()))] if open_ones else passes


def _sorted_branches(sequences: Sequence[Tokens]) -> Iterator[Branch]:
    """The distinct sequences in an order that puts those with a common start side by side."""
    # Any order of tokens will do, so that of their bytes as they lie in memory is taken.
    order = sorted(range(len(sequences)), key=lambda number: sequences[number].tobytes())
    before: Tokens = np.zeros(0, dtype=np.int32)
    members: list[int] = []
    shared = 0
    for number in order:
        ids = sequences[number]
        length = _shared_length(before, ids)
        if members and length == len(ids):
            members.append(number)
            continue
        if members:
            yield Branch(tuple(members), shared)
        before, members, shared = ids, [number], length
    if members:
        yield Branch(tuple(members), shared)


def _shared_length(one: Tokens, other: Tokens) -> int:
    """How many tokens two sequences have in common at their start."""
    size = min(len(one), len(other))
    differ = one[:size] != other[:size]
    return int(differ.argmax()) if differ.any() else size


def needed_passes(passes: Sequence[Pass], wanted: Container[int]) -> list[int]:
    """The passes, in order, that compute a wanted sequence or a token that such a pass is carried."""
    needed: set[int] = set()
    for number in reversed(range(len(passes))):
        branches = passes[number].branches
        if number in needed or any(member in wanted for branch in branches for member in branch.members):
            needed |= {number, *passes[number].parents}
    return sorted(needed)


def lay_out(work: Pass, sequences: Sequence[Tokens], *, tile: int) -> Layout:
    """Write down the tokens of a pass, in tiles of at most `tile` queries."""
    every = [sequences[branch.members[0]] for branch in work.branches]
    path = np.empty(max(map(len, every)), dtype=np.int64)
    path[: work.carry] = np.arange(work.carry)
    pieces: list[_Piece] = []
    at = work.carry
    last = []
    for (_, shared), ids in zip(work.branches, every, strict=True):
        path[shared : len(ids)] = np.arange(at, at + len(ids) - shared)
        at += len(ids) - shared
        last.append(at - 1 - work.carry)
        pieces += _pieces(path[: len(ids)].copy(), shared, tile)
    own = [np.arange(shared, len(ids)) for (_, shared), ids in zip(work.branches, every, strict=True)]
    return Layout(
        ids=np.concatenate(
            [ids[shared:] for (_, shared), ids in zip(work.branches, every, strict=True)]
        ).astype(np.int64),
        positions=np.concatenate([np.arange(work.carry), *own]),
        last=np.array(last),
        path=pieces[-1].path,
        tiles=tuple(_tile(group, work.carry) for group in _groups(pieces, tile)),
    )


def _pieces(path: Index, shared: int, most: int) -> Iterator[_Piece]:
    """A branch's own tokens in pieces of about equal size."""
    count = -(-(len(path) - shared) // most)
    cuts = np.linspace(shared, len(path), count + 1).astype(int).tolist()
    for begin, end in pairwise(cuts):
        yield _Piece(path[:end], begin)


def _groups(pieces: Sequence[_Piece], most: int) -> Iterator[list[_Piece]]:
    """Neighbouring pieces that make a tile."""
    group: list[_Piece] = []
    size = common = 0
    for piece in pieces:
        if group and (size + piece.size > most or common - piece.begin >= APART):
            yield group
            group = []
        if not group:
            size, common = 0, piece.begin
        group.append(piece)
        size += piece.size
        common = min(common, piece.begin)
    if group:
        yield group


def _tile(group: Sequence[_Piece], carry: int) -> Tile:
    """What a group of pieces sees.

    Keys from before the tile are all on the first piece's path: a later one branches off that path or off a
    piece of the tile.
    """
    before, begin = group[0].path, group[0].begin
    common = min(piece.begin for piece in group)
    first = int(before[begin])
    size = sum(piece.size for piece in group)
    mask = np.zeros((size, begin - common + size), dtype=np.bool_)
    row = 0
    for path, start in group:
        above = path[common:start]
        column = np.where(above < first, np.arange(len(above)), begin - common + above - first)
        stop = row + len(path) - start
        mask[row:stop, column] = True
        own = begin - common + row
        mask[row:stop, own : own + stop - row] = np.tri(stop - row, dtype=np.bool_)
        row = stop
    keys = np.concatenate([before[:begin], np.arange(first, first + size)])
    return Tile(start=first - carry, stop=first - carry + size, keys=keys, common=common, mask=mask)


def windowed(tile: Tile, positions: Index, carry: int, window: int) -> Tile:
    """The tile for layers in which a token sees only the last `window` positions, its own among them."""
    queries = positions[carry + tile.start : carry + tile.stop]
    seen = np.concatenate([np.ones((len(queries), tile.common), dtype=np.bool_), tile.mask], axis=1)
    seen &= queries[:, None] - positions[tile.keys][None, :] < window
    some = seen.any(0)
    return tile._replace(keys=tile.keys[some], common=0, mask=seen[:, some])
