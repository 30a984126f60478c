"""Before a policy is trained or measured, the prompts that it cannot answer are left out; the model reads
only those that will be sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rlaif.config.ppo import PpoConfig
from rlaif.errors import DataError
from rlaif.rl.rollout import EncodedPrompt
from rlaif.stages.on_policy import draw_prompts, places_drawn
from rlaif.stages.questions import ask_what_can_be_answered
from rlaif.types import Message, Prompt

CONFIG = PpoConfig(stage="ppo", steps=3, episodes=8, samples_per_prompt=2)


class Reader:
    """Stands in for a sampler whose model gives NaN after some prompts."""

    def __init__(self, *broken: str) -> None:
        self.broken, self.read = broken, list[str]()

    def question(self, prompt: Prompt, messages: Sequence[Message]) -> EncodedPrompt:
        return EncodedPrompt(prompt, (1,))

    def unreadable(self, questions: Sequence[EncodedPrompt]) -> frozenset[int]:
        self.read += [question.prompt.id for question in questions]
        return frozenset(at for at, question in enumerate(questions) if question.prompt.id in self.broken)


PROMPTS = [Prompt(id=str(number), messages=(Message("user", f"q{number}"),)) for number in range(40)]


def ask(reader: Any, **options: Any) -> tuple[list[str], list[str]]:
    asked, refused = ask_what_can_be_answered(
        PROMPTS, [reader], lambda prompt: prompt.messages, max_refused=0.5, **options
    )
    return [question.prompt.id for question in asked], [id for id, _ in refused]


def test_all_are_read_where_nothing_else_is_said() -> None:
    reader = Reader("3", "17")
    asked, refused = ask(reader)
    assert reader.read == [prompt.id for prompt in PROMPTS]
    assert refused == ["3", "17"]
    assert len(asked) == 38


@pytest.mark.parametrize("broken", [(), ("5",), tuple(str(number) for number in range(12))])
def test_ppo_reads_what_its_steps_draw_and_no_step_draws_what_cannot_be_read(broken: tuple[str, ...]) -> None:
    reader = Reader(*broken)
    asked, refused = ask(reader, drawn=lambda count: places_drawn(count, CONFIG, seed=4))
    encoded = [EncodedPrompt(Prompt(id=id, messages=()), (1,)) for id in asked]
    drawn = {
        question.prompt.id
        for step in range(3)
        for question in draw_prompts(encoded, CONFIG, seed=4, step=step)
    }
    assert len(drawn) == 12
    assert drawn <= set(reader.read)
    assert not drawn & set(broken)
    assert set(refused) == set(broken) & set(reader.read)
    assert len(reader.read) == len(set(reader.read)), "none is read twice"
    assert broken or len(reader.read) == 12


def test_too_many_that_cannot_be_read_are_an_error() -> None:
    with pytest.raises(DataError, match="30 of 40 prompts cannot be answered"):
        ask(Reader(*(str(number) for number in range(30))))
