"""Sample: a draw depends on the seed, what is asked and its index, and on nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.config import SampleConfig
from rlaif.engines.base import Generation
from rlaif.engines.scripted import ScriptedEngine
from rlaif.prompts import PromptLibrary
from rlaif.stages.sample import Samples, generate_all, sample, sample_requests
from rlaif.types import Completion, Message, Prompt

LIBRARY = PromptLibrary()


def asked(*texts: str) -> list[Prompt]:
    return [Prompt(id=f"id-{text}", messages=(Message("user", text),)) for text in texts]


def drawn(
    prompts: Sequence[Prompt],
    *,
    k: int = 3,
    seed: int = 0,
    engine: ScriptedEngine | None = None,
    words: int = 96,
) -> Samples:
    config = SampleConfig(k=k, max_new_tokens=words)
    return sample(prompts, policy=engine or ScriptedEngine(), library=LIBRARY, config=config, seed=seed)


class Heard:
    """A progress that writes down what it hears."""

    def __init__(self) -> None:
        self.total = self.items = 0

    def begin(self, what: str, total: int) -> None:
        self.total += total

    def advance(self, items: int = 1) -> None:
        self.items += items

    def note(self, text: str) -> None:
        raise AssertionError(text)


def test_k_completions_a_prompt_in_order() -> None:
    found = drawn(asked("x", "y"), k=3).completions
    assert [each.id for each in found] == ["id-x/0", "id-x/1", "id-x/2", "id-y/0", "id-y/1", "id-y/2"]
    assert [each.index for each in found] == [0, 1, 2, 0, 1, 2]
    assert {each.model for each in found} == {ScriptedEngine().card.label}
    assert len({each.text for each in found}) == 6


def texts(found: Samples) -> dict[str, str]:
    return {each.id: each.text for each in found.completions}


def test_more_prompts_and_a_larger_k_add_draws_and_change_none() -> None:
    few = texts(drawn(asked("x", "y"), k=2))
    assert few.items() <= texts(drawn(asked("z", "y", "x"), k=5)).items()


def test_another_seed_gives_other_draws() -> None:
    one, other = texts(drawn(asked("x", "y"))), texts(drawn(asked("x", "y"), seed=1))
    assert all(one[id] != other[id] for id in one)


def test_an_id_does_not_change_a_draw() -> None:
    renamed = [Prompt(id="new", messages=(Message("user", "x"),))]
    assert [each.text for each in drawn(renamed).completions] == [
        each.text for each in drawn(asked("x")).completions
    ]


def test_the_settings_reach_the_request() -> None:
    (request,) = sample_requests(
        asked("x"), LIBRARY, SampleConfig(k=1, max_new_tokens=5, temperature=0.5, top_p=0.9), seed=3
    )
    assert (request.sampling.max_new_tokens, request.sampling.temperature, request.sampling.top_p) == (
        5,
        0.5,
        0.9,
    )


def test_documents_are_put_before_the_question() -> None:
    prompt = Prompt(id="x", messages=(Message("user", "What is it?"),), context=("A river in Italy.",))
    (request,) = sample_requests([prompt], LIBRARY, SampleConfig(k=1), seed=0)
    text = request.messages[-1].content
    assert text.index("A river in Italy.") < text.index("What is it?")


def test_refused_prompts_are_told_and_the_counts_add_up() -> None:
    engine = ScriptedEngine(context=6, generate=lambda request: "" if request.seed % 2 else "one two three")
    found = drawn(asked("short", "far too long a prompt for it"), k=4, engine=engine, words=2)
    assert found.refused == [("id-far too long a prompt for it", "prompt_too_long")] * 4
    counts = found.counts()
    assert counts["completions"] + counts["refused"] == 8
    assert counts["stopped"] + counts["cut_at_limit"] == counts["completions"] == 4
    assert counts["empty"] == sum(not each.text for each in found.completions)
    assert counts["tokens"] == sum(each.tokens or 0 for each in found.completions)


def test_counts_of_given_completions() -> None:
    given = Completion(id="x/0", prompt_id="x", index=0, text="", finish="given", model="m")
    assert Samples([given]).counts() == {
        "completions": 1,
        "refused": 0,
        "stopped": 0,
        "cut_at_limit": 0,
        "empty": 1,
        "with_reasoning": 0,
        "tokens": 0,
    }


def test_results_are_in_order_and_progress_hears_of_each() -> None:
    requests, heard = sample_requests(asked("x", "y", "z"), LIBRARY, SampleConfig(k=3), seed=0), Heard()
    found: list[Generation] = generate_all(ScriptedEngine(batch_size=2), requests, heard)
    assert found == generate_all(ScriptedEngine(batch_size=100), requests, Heard())
    assert heard.items == 9
