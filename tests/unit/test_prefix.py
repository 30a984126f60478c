"""The trie of shared starts, its passes and tiles, against a slow definition: what each token of each
sequence may see."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.engines.labels import Tokens
from rlaif.engines.prefix import Pass, lay_out, needed_passes, plan_passes, windowed

Trie = list[list[int]]

sequences_of_few_tokens = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=12
)


def arrays(sequences: Trie) -> list[Tokens]:
    return [np.array(ids, dtype=np.int32) for ids in sequences]


def judge_like(*, comparisons: int, principles: int, seed: int = 0) -> Trie:
    """A start for all, a conversation and an order for each comparison, a question for each principle."""
    rng = random.Random(seed)

    def text(low: int, high: int) -> list[int]:
        return [rng.randrange(500) for _ in range(rng.randint(low, high))]

    start, questions = text(20, 20), [text(5, 30) for _ in range(principles)]
    found = []
    for _ in range(comparisons):
        conversation, a, b = text(10, 300), text(5, 80), text(5, 80)
        found += [
            start + conversation + order + question for order in (a + b, b + a) for question in questions
        ]
    rng.shuffle(found)
    return found


def nodes(sequences: Trie) -> set[tuple[int, ...]]:
    """The trie's nodes, each as the tokens that lead to it."""
    return {tuple(ids[: end + 1]) for ids in sequences for end in range(len(ids))}


def computed(
    passes: list[Pass], sequences: Trie, *, tile: int, window: int | None = None
) -> dict[tuple[int, ...], set[int]]:
    """What each computed token, named by the tokens that lead to it, sees: the lengths of the starts it looks
    back at.

    Fails if a token is computed twice, if a tile's key is not on the query's path, or if a pass needs what
    was not carried.
    """
    found: dict[tuple[int, ...], set[int]] = {}
    carried: list[tuple[int, ...]] = []
    for work in passes:
        layout = lay_out(work, arrays(sequences), tile=tile)
        first = sequences[work.branches[0].members[0]]
        assert carried[: work.carry] == [tuple(first[: end + 1]) for end in range(work.carry)]
        names: list[tuple[int, ...]] = carried[: work.carry]
        for (members, shared), last in zip(work.branches, layout.last, strict=True):
            ids = sequences[members[0]]
            assert all(sequences[member] == ids for member in members)
            names += [tuple(ids[: end + 1]) for end in range(shared, len(ids))]
            assert names[work.carry + last] == tuple(ids)
        assert [len(name) - 1 for name in names] == layout.positions.tolist()
        assert [name[-1] for name in names[work.carry :]] == layout.ids.tolist()
        queries = 0
        for each in layout.tiles:
            cut = each if window is None else windowed(each, layout.positions, work.carry, window)
            assert cut.start == queries
            assert 0 < cut.stop - cut.start <= tile
            queries = cut.stop
            assert (np.diff(cut.keys) > 0).all()
            for query in range(cut.start, cut.stop):
                name = names[work.carry + query]
                seen = np.concatenate(
                    [cut.keys[: cut.common], cut.keys[cut.common :][cut.mask[query - cut.start]]]
                )
                keys = [names[key] for key in seen]
                assert all(name[: len(key)] == key for key in keys)
                assert name not in found
                found[name] = {len(key) for key in keys}
        assert queries == len(layout.ids)
        carried = [names[key] for key in layout.path]
    return found


def expected(sequences: Trie, window: int | None = None) -> dict[tuple[int, ...], set[int]]:
    return {
        name: set(range(1 if window is None else max(1, len(name) - window + 1), len(name) + 1))
        for name in nodes(sequences)
    }


@given(sequences_of_few_tokens, st.integers(1, 40), st.integers(1, 5), st.integers(1, 9))
def test_every_node_is_computed_once_and_sees_its_ancestors(
    sequences: Trie, budget: int, branches: int, tile: int
) -> None:
    passes = plan_passes(arrays(sequences), budget=budget, branches=branches)
    assert computed(passes, sequences, tile=tile) == expected(sequences)
    members = [member for work in passes for branch in work.branches for member in branch.members]
    assert sorted(members) == list(range(len(sequences)))
    assert all(len(work.branches) <= branches for work in passes)


@given(sequences_of_few_tokens, st.integers(1, 8), st.integers(1, 9))
def test_a_window_hides_what_is_further_back(sequences: Trie, window: int, tile: int) -> None:
    passes = plan_passes(arrays(sequences), budget=30, branches=10)
    assert computed(passes, sequences, tile=tile, window=window) == expected(sequences, window)


@pytest.mark.parametrize("tile", [32, 96, 1000])
@pytest.mark.parametrize("budget", [64, 700, 100_000])
def test_judge_prompts(budget: int, tile: int) -> None:
    sequences = judge_like(comparisons=3, principles=6)
    passes = plan_passes(arrays(sequences), budget=budget, branches=1000)
    assert computed(passes, sequences, tile=tile) == expected(sequences)
    own = [
        sum(len(sequences[branch.members[0]]) - branch.shared for branch in work.branches) for work in passes
    ]
    assert sum(own) == len(nodes(sequences)) < sum(map(len, sequences)) / 4
    assert all(count <= budget or len(work.branches) == 1 for count, work in zip(own, passes, strict=True))


def test_tiles_mask_little_more_than_themselves() -> None:
    sequences = judge_like(comparisons=4, principles=16)
    (work,) = plan_passes(arrays(sequences), budget=100_000, branches=1000)
    layout = lay_out(work, arrays(sequences), tile=96)
    columns = sum((tile.stop - tile.start) * tile.mask.shape[1] for tile in layout.tiles)
    assert columns / len(layout.ids) < 1.5 * 96
    looked_at = sum((tile.stop - tile.start) * len(tile.keys) for tile in layout.tiles)
    assert looked_at < 1.4 * float((layout.positions + 1).sum())


@given(sequences_of_few_tokens, st.integers(1, 20), st.sets(st.integers(0, 11)))
def test_what_is_wanted_needs_the_passes_it_builds_on(sequences: Trie, budget: int, wanted: set[int]) -> None:
    passes = plan_passes(arrays(sequences), budget=budget, branches=3)
    needed = needed_passes(passes, wanted)
    # Carrying still works when the other passes are left out, and all that is wanted is computed.
    names = computed([passes[number] for number in needed], sequences, tile=4)
    assert all(tuple(sequences[number]) in names for number in wanted if number < len(sequences))
    for number in set(range(len(passes))) - set(needed):
        assert not any(member in wanted for branch in passes[number].branches for member in branch.members)


def test_nothing_to_plan() -> None:
    assert plan_passes([], budget=10, branches=10) == []
    assert needed_passes([], {1}) == []
