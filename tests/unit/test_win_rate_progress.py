"""The judge of `evaluate` tells its own progress: it does not go on in the bar of the sampling."""

from __future__ import annotations

from rlaif.constitution.load import load_constitution
from rlaif.engines.scripted import ScriptedEngine
from rlaif.judging.judge import Judge
from rlaif.judging.table import open_protocol
from rlaif.prompts import PromptLibrary
from rlaif.stages.win_rate import telling
from rlaif.types import Comparison, Completion, Message, Prompt


class Bars:
    """Each piece of work as its name, its total and what was done of it."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = [("sampling", 6, 6)]

    def begin(self, what: str, total: int) -> None:
        self.told.append((what, total, 0))

    def advance(self, items: int = 1) -> None:
        what, total, done = self.told[-1]
        self.told[-1] = (what, total, done + items)

    def note(self, text: str) -> None:
        raise AssertionError(text)


def test_judging_is_a_bar_of_its_own_that_ends_full() -> None:
    bars, constitution = Bars(), load_constitution("warmth")
    protocol = open_protocol("pairwise", library=PromptLibrary(), constitution=constitution)
    judge = Judge(ScriptedEngine(), protocol, constitution, principles="sample", seed=0, progress=bars)
    prompt = Prompt(id="p", messages=(Message("user", "Hello?"),))
    a, b = (
        Completion(id=f"p/{n}", prompt_id="p", text=f"Answer {n}.", index=n, model="m", finish="stop")
        for n in (0, 1)
    )
    judging = telling(judge, bars)
    assert not list(judging([]))
    assert len(bars.told) == 1
    assert len(list(judging([Comparison(prompt=prompt, a=a, b=b)]))) == 1
    assert bars.told == [("sampling", 6, 6), ("judging 1 comparison", 2, 2)]
