from __future__ import annotations

from collections import Counter

import pytest

from rlaif.errors import ConfigError, DataError
from rlaif.io import splits
from rlaif.io.splits import FRACTIONS, check_disjoint, draw_split, split_of
from rlaif.types import Message, Prompt


def prompt(number: int) -> Prompt:
    return Prompt(id=f"p{number}", messages=(Message("user", f"question {number} " + "and more " * 10),))


def test_shares_come_near_the_fractions() -> None:
    counts = Counter(split_of(prompt(number).fingerprint()) for number in range(4000))
    for name, share in FRACTIONS.items():
        assert counts[name] / 4000 == pytest.approx(share, abs=0.03)


def test_known_places_do_not_move() -> None:
    """Pinned: a change here would move prompts of old runs from one set to another."""
    assert [split_of(prompt(number).fingerprint()) for number in range(6)] == [
        "rl",
        "eval",
        "eval",
        "rl",
        "rl",
        "sft",
    ]


def test_empty_sets_get_nothing() -> None:
    for number in range(50):
        assert split_of(prompt(number).fingerprint(), {"none": 0.0, "all": 1.0, "never": 0.0}) == "all"


def test_rounding_of_shares_falls_to_the_last_set_with_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    tenths = dict.fromkeys("abcdefghij", 0.1) | {"k": 0.0}  # ten tenths, added one by one, stay below 1
    monkeypatch.setattr(splits, "unit_from", lambda *parts: 1 - 2**-53)
    assert split_of("x", tenths) == "j"


@pytest.mark.parametrize("fractions", [{"a": 0.5, "b": 0.4}, {"a": 1.5, "b": -0.5}, {}])
def test_fractions_must_be_shares(fractions: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="do not add up to 1"):
        split_of("x", fractions)


def test_draw_depends_on_the_seed_not_on_the_order() -> None:
    prompts = [prompt(number) for number in range(30)]
    assert draw_split(prompts, 10, 0) == draw_split(reversed(prompts), 10, 0)
    assert draw_split(prompts, 10, 0) != draw_split(prompts, 10, 1)
    assert len(draw_split(prompts, None, 0)) == 30


def test_overlap_is_refused_by_name() -> None:
    prompts = [prompt(number) for number in range(12)]
    check_disjoint({"sft": prompts[:4], "rl": prompts[4:8], "eval": prompts[8:]})
    with pytest.raises(DataError) as caught:
        check_disjoint({"sft": prompts[:4], "rl": prompts[3:8], "eval": [*prompts[9:], *prompts[:7]]})
    message = str(caught.value)
    assert "sft and rl: 'p3': question 3 and more" in message
    assert "rl and eval: 'p3'" in message
    assert "sft and eval: 'p0'" in message
    with pytest.raises(DataError, match="… and 3 more"):
        check_disjoint({"sft": prompts[:8], "rl": prompts[:8]})


def test_short_prompts_are_shown_whole() -> None:
    short = Prompt(id="s", messages=(Message("user", "hi\nthere"),))
    with pytest.raises(DataError, match=r"'s': hi there$"):
        check_disjoint({"a": [short], "b": [Prompt(id="t", messages=(Message("user", " hi there"),))]})
