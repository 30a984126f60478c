"""Readers of what comes from outside: whatever the bytes, a value or an error of ours."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fuzz_targets import SEEDS, TARGETS, run_target
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = settings(max_examples=30, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["user", "assistant", "A", " B"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=4)
            | st.sampled_from(
                [
                    "prompt",
                    "chosen",
                    "rejected",
                    "messages",
                    "role",
                    "content",
                    "id",
                    "tags",
                    "step",
                    "stages",
                    "stage",
                    "name",
                    "outputs",
                    "principles",
                    "comparison",
                    "weight",
                    "choices",
                    "message",
                    "logprobs",
                    "top_logprobs",
                    "token",
                    "logprob",
                    "bytes",
                    "usage",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=24,
)
"""JSON of the names that our readers look for."""


@st.composite
def spoiled(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A good example with a few pieces removed, doubled or replaced."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        at, length = draw(st.integers(0, len(data))), draw(st.integers(0, 6))
        piece = draw(
            st.binary(max_size=4)
            | st.sampled_from([b"null", b"1e999", b"[]", b"{}", b'"', b"\\ud800", b"\0", b"\n", b"9" * 5_000])
        )
        data = data[:at] + piece + data[at + length :]
    return data


def _inputs(name: str) -> st.SearchStrategy[bytes]:
    seeds = SEEDS.get(name, SEEDS["prompts"])
    lines = st.lists(JSON, min_size=1, max_size=3).map(
        lambda rows: "\n".join(json.dumps(row) for row in rows).encode()
    )
    return spoiled(seeds) | st.binary(max_size=64) | lines


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_give_a_value_or_an_error_in_words(name: str) -> None:
    @EXAMPLES
    @given(_inputs(name))
    def holds(data: bytes) -> None:
        run_target(name, data)

    holds()


@pytest.mark.parametrize("name", SEEDS)
def test_the_examples_to_begin_from_reach_the_reader(name: str) -> None:
    """The first good example is read whole: else the fuzzing would only see how files are refused."""
    assert run_target(name, SEEDS[name][0]) is None
