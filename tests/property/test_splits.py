from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rlaif.io.splits import FRACTIONS, check_disjoint, draw_split, split_of
from rlaif.types import Message, Prompt

text = st.text(min_size=1).filter(lambda text: bool(text.strip()))
texts = st.lists(text, unique_by=lambda text: " ".join(text.split()), max_size=20)
shares = st.lists(st.integers(0, 100), min_size=1, max_size=6).filter(any)


def prompts_of(texts: list[str]) -> list[Prompt]:
    return [Prompt(id=str(number), messages=(Message("user", text),)) for number, text in enumerate(texts)]


@given(texts)
def test_parts_are_disjoint_and_complete(texts: list[str]) -> None:
    prompts = prompts_of(texts)
    parts = {
        name: [prompt for prompt in prompts if split_of(prompt.fingerprint()) == name] for name in FRACTIONS
    }
    check_disjoint(parts)
    assert sum(len(part) for part in parts.values()) == len(prompts)


@given(st.text(), shares)
def test_a_part_without_a_share_gets_nothing(fingerprint: str, shares: list[int]) -> None:
    fractions = {str(position): share / sum(shares) for position, share in enumerate(shares)}
    assert fractions[split_of(fingerprint, fractions)] > 0


@given(texts, st.integers(0, 20), st.integers(0, 20), st.integers(0, 3))
def test_a_larger_draw_begins_with_the_smaller(texts: list[str], limit: int, more: int, seed: int) -> None:
    prompts = prompts_of(texts)
    small, large = draw_split(prompts, limit, seed), draw_split(prompts, limit + more, seed)
    assert large[: len(small)] == small
    assert len(small) == min(limit, len(prompts))


@given(texts, text, st.integers(0, 3))
def test_a_new_prompt_moves_no_other(texts: list[str], new: str, seed: int) -> None:
    before = draw_split(prompts_of(texts), None, seed)
    added = Prompt(id="new", messages=(Message("user", new),))
    after = draw_split([*prompts_of(texts), added], None, seed)
    assert [prompt for prompt in after if prompt.id != "new"] == before
