"""Moderation, for any text, any tokens and any hold: a stream is found what the whole is found, and what is
let out is exactly what may be."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rlaif.moderation.alike import alike
from rlaif.moderation.base import Scores
from rlaif.moderation.blocklist import BlockList, Entry
from rlaif.serving.hold import Hold
from rlaif.types import Message

ALPHABET = "ab .-\u0301\u200bА瓦格1Ｂ\n"
TEXTS = st.text(st.sampled_from(ALPHABET), max_size=40)
WORDS = st.text(st.sampled_from("ab瓦"), min_size=2, max_size=4)


class Flags:
    """Flags the tokens of some places, from 1."""

    def __init__(self, places: set[int]) -> None:
        self._places, self._count = places, 0

    def push(self, text: str, states: object) -> Scores:
        self._count += 1
        return {"it": float(self._count in self._places)}


@given(st.text(), st.text())
def test_what_texts_are_alike_to_put_together_is_what_the_whole_is(left: str, right: str) -> None:
    assert alike(left) + alike(right) == alike(left + right)


@given(TEXTS, st.lists(WORDS, min_size=1, max_size=4), st.booleans(), st.data())
def test_a_stream_finds_what_the_whole_finds(
    text: str, words: list[str], spaced: bool, data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=12).map(sorted))
    listed = BlockList("list", tuple(Entry(word, spaced=spaced) for word in words))
    watch = listed.watch([Message("user", "")])
    bounds = [0, *cuts, len(text)]
    hits = [watch.push(text[start:stop], None)["list"] for start, stop in pairwise(bounds)]
    (whole,) = listed.scores([[Message("user", ""), Message("assistant", text)]])
    assert max(*hits, watch.close()["list"]) == whole["list"]


@given(
    st.lists(st.text("xyz", max_size=2), max_size=20),
    st.integers(1, 20),
    st.sets(st.integers(1, 22), max_size=2),
    st.integers(0, 2),
)
def test_a_hold_lets_out_what_was_followed_by_tokens_without_a_flag(
    texts: list[str], size: int, places: set[int], late: int
) -> None:
    """Whatever the moderator's delay in tokens, at every moment."""
    hold = Hold(Flags(places), {"it": 0.5}, size)
    out, first = "", min(places, default=len(texts) + 100)
    for count, text in enumerate(texts, 1):
        hold.draw(text, text)
        if count > late:
            hold.read(None)  # scores token `count - late`
        out += hold.release()
        scored = max(0, count - late)
        clear = min(scored, first - 1)
        assert out == "".join(texts[: max(0, clear - size + 1)])
        assert (hold.blocked is not None) == (scored >= first)
        if hold.blocked:
            break
    if hold.blocked is None:
        hold.end("!")
        while hold.unread:
            out += hold.release()
            hold.read(None)
        out += hold.release()
        blocked = first <= len(texts)
        assert out == ("".join(texts[: max(0, first - size)]) if blocked else "".join(texts) + "!")
    assert hold.release() == ""
    assert not hold.open
