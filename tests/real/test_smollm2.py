"""SmolLM2-135M-Instruct through its alias: it loads, it judges what a small model can judge, and it talks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TypeVar

import pytest

from rlaif.engines.base import GenerationRequest, LabelReading, LabelRequest, Sampling
from rlaif.engines.hf import HFEngine
from rlaif.models.load import count_parameters, load_engine, load_token_count
from rlaif.types import Message

T = TypeVar("T")
KIND = [
    "I love this wonderful day!",
    "What a delightful surprise, thank you so much.",
    "Great job, I am so proud of you.",
]
UNKIND = ["This is awful and I hate it.", "You are useless, go away.", "What a terrible, horrible mess."]
LABELS = ("positive", "negative")


def gather(batches: Iterable[Mapping[int, T]]) -> dict[int, T]:
    return {index: result for batch in batches for index, result in batch.items()}


def tone(text: str) -> LabelRequest:
    question = (
        f"Is the tone of this text positive or negative?\n\nText: {text}\n\nAnswer with one word, "
        "positive or negative."
    )
    return LabelRequest((Message("user", question), Message("assistant", "The tone is ")), LABELS)


def log_odds(reading: LabelReading) -> float:
    assert reading.reason == ""
    return reading.logprobs[0] - reading.logprobs[1]


def probability(reading: LabelReading) -> float:
    return 1 / (1 + math.exp(-log_odds(reading)))


def test_the_alias_loads(smollm2: HFEngine) -> None:
    card = smollm2.card
    assert (card.name, card.kind, card.context, card.chat) == ("smollm2-135m", "hf", 8192, True)
    assert card.dtype in {"bfloat16", "float32"}
    assert card.revision
    assert smollm2.ends == {smollm2.tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_it_is_counted_and_rendered_without_weights() -> None:
    assert count_parameters("smollm2-135m") == (134_515_008, 49_152 * 576)
    counter = load_token_count("smollm2-135m")
    messages = (Message("user", "In 2024, \n\n1. x"),)
    assert counter.render(messages).endswith(
        "<|im_start|>user\nIn 2024, \n\n1. x<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = counter.tokenizer.apply_chat_template(
        [message.as_dict() for message in messages], add_generation_prompt=True
    )["input_ids"]
    assert counter.count(messages) == len(ids)


def test_digits_are_tokens_of_their_own_as_the_model_was_trained(smollm2: HFEngine) -> None:
    pieces = smollm2.tokenizer.convert_ids_to_tokens(smollm2.form.encode_raw(["a\n\n12.  3"])[0])
    assert pieces == ["a", "ĊĊ", "1", "2", ".", "ĠĠ", "3"]


def test_it_tells_kind_texts_from_unkind_ones(smollm2: HFEngine) -> None:
    readings = gather(smollm2.label_logprobs([tone(text) for text in [*KIND, *UNKIND]]))
    odds = [log_odds(readings[index]) for index in range(6)]
    assert min(odds[:3]) > max(odds[3:])
    assert min(odds[:3]) > 0
    assert all(sum(map(math.exp, readings[index].logprobs)) > 0.2 for index in range(6))


def test_batch_size_moves_a_label_within_rounding(smollm2: HFEngine) -> None:
    requests = [tone(" ".join(KIND[: 1 + at % 3] + UNKIND[: at % 4])) for at in range(12)]
    exact = load_engine("smollm2-135m", device="cpu", dtype="float32")
    for engine, tolerance in ((exact, 1e-3), (smollm2, 1e-3 if smollm2.card.dtype == "float32" else 0.05)):
        together = gather(engine.label_logprobs(requests))
        alone = gather(
            HFEngine(engine.model, engine.tokenizer, engine.card, token_budget=1).label_logprobs(requests)
        )
        assert (
            max(abs(probability(together[index]) - probability(alone[index])) for index in range(12))
            < tolerance
        )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_it_talks_and_repeats_itself(smollm2: HFEngine, temperature: float) -> None:
    sampling = Sampling(max_new_tokens=24, temperature=temperature)
    prompts = ["What is the capital of France?", "Say something nice to my friend Bob."]
    requests = [
        GenerationRequest((Message("user", text),), sampling, seed) for text in prompts for seed in (1, 2)
    ]
    first, second = gather(smollm2.generate(requests)), gather(smollm2.generate(requests))
    assert first == second
    assert all(result.text.strip() and "<|im_end|>" not in result.text for result in first.values())
    if temperature == 0:
        assert "Paris" in first[0].text
        assert first[0] == first[1]
    else:
        assert first[0] != first[1]
