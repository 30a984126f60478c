"""Judge prompts that share their starts, against one prompt at a time: all protocols, modes and families of
models."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
import transformers
from tiny import KINDS, Kind, tiny_model, tiny_tokenizer

from rlaif.constitution.load import load_constitution
from rlaif.engines import tree
from rlaif.engines.base import EngineCard, LabelReading, LabelRequest
from rlaif.engines.hf import HFEngine
from rlaif.engines.labels import find_labels
from rlaif.engines.tree import unshareable
from rlaif.judging.judge import Judge, PrincipleMode
from rlaif.judging.table import open_protocol
from rlaif.prompts import PromptLibrary
from rlaif.types import Comparison, Completion, Constitution, Example, Message, Prompt

T = TypeVar("T")
CONTEXT = 8192
WORDS = [
    "the",
    "in",
    "there",
    "A",
    "B",
    "yes",
    "you",
    "out",
    "father",
    "2024",
    "naïve",
    "日本",
    "🙂",
    "\n\n",
    "x  y",
]


def engine(model: Any = None, *, kind: Kind = "llama", **options: Any) -> HFEngine:
    card = EngineCard(
        name=f"tiny-{kind}", revision="0", kind="hf", dtype="float32", context=CONTEXT, chat=True
    )
    return HFEngine(model or tiny_model(kind, context=CONTEXT), tiny_tokenizer(), card, **options)


def constitution(*, shots: int = 0) -> Constitution:
    shipped = load_constitution("default")
    example = Example(
        conversation=(Message("user", "Hello."),), a="Hi!", b="Go.", principle="Which is kinder?", answer="A"
    )
    return dataclasses.replace(shipped, principles=shipped.principles[:3], examples=(example,) * shots)


def comparisons(count: int, *, seed: int = 0) -> list[Comparison]:
    """Of very different lengths."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 25))) for _ in range(3)]
        prompt = Prompt(id=f"p{number}", messages=(Message("user", texts[0]),))
        a, b = (
            Completion(
                id=f"p{number}/{at}",
                prompt_id=prompt.id,
                index=at,
                text=texts[1 + at],
                finish="given",
                model="given",
            )
            for at in range(2)
        )
        found.append(Comparison(prompt, a, b))
    return found


def requests(
    protocol: str, mode: PrincipleMode = "all", *, count: int = 2, shots: int = 0
) -> list[LabelRequest]:
    rules = constitution(shots=shots)
    asked = open_protocol(protocol, library=PromptLibrary(), constitution=rules)
    judge = Judge(engine(), asked, rules, principles=mode, seed=0)
    return [request for comparison in comparisons(count) for request in judge.requests(comparison)]


def gather(batches: Iterable[Mapping[int, T]]) -> dict[int, T]:
    results: dict[int, T] = {}
    for batch in batches:
        assert not results.keys() & batch.keys()
        results |= batch
    return results


def alone(judge: HFEngine, asked: list[LabelRequest]) -> list[LabelReading]:
    return [judge._read([prompt])[0] for prompt in find_labels(judge.form, asked)]


def assert_same(found: Mapping[int, LabelReading], slow: list[LabelReading]) -> None:
    assert sorted(found) == list(range(len(slow)))
    for index, reading in enumerate(slow):
        assert found[index].reason == reading.reason == ""
        assert found[index].tokens == reading.tokens
        assert found[index].logprobs == pytest.approx(reading.logprobs, abs=1e-4)


def tokens_computed(judge: HFEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of tokens of every forward pass."""
    counts: list[int] = []
    forward = judge.model.forward

    def counted(*args: Any, **options: Any) -> Any:
        counts.append(options["input_ids"].numel())
        return forward(*args, **options)

    monkeypatch.setattr(judge.model, "forward", counted)
    return counts


@pytest.mark.parametrize("protocol", ["pairwise", "pointwise"])
@pytest.mark.parametrize("kind", KINDS)
def test_sharing_changes_no_reading(kind: Kind, protocol: str) -> None:
    judge = engine(kind=kind, token_budget=900)
    asked = requests(protocol)
    found = gather(judge.label_logprobs(asked))
    assert unshareable(judge.model, np.arange(9, 20, dtype=np.int32)) == ""
    assert_same(found, alone(judge, asked))


@pytest.mark.parametrize("mode", ["sample", "all"])
@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("protocol", ["pairwise", "pointwise"])
def test_each_shared_token_is_computed_once(
    protocol: str, shots: int, mode: PrincipleMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = engine(token_budget=500)
    asked = requests(protocol, mode, count=3, shots=shots)
    prompts = [prompt.ids.tolist() for prompt in find_labels(judge.form, asked)]
    slow = alone(judge, asked)
    gather(judge.label_logprobs(asked[:1]))  # tries whether the model can be run so
    counts = tokens_computed(judge, monkeypatch)
    assert_same(gather(judge.label_logprobs(asked)), slow)
    assert (
        sum(counts)
        == len({tuple(ids[: end + 1]) for ids in prompts for end in range(len(ids))})
        < sum(map(len, prompts))
    )


def test_what_is_done_changes_nothing_that_is_left() -> None:
    judge = engine(token_budget=400)
    judge.model.to(torch.bfloat16)
    asked = requests("pairwise", count=3)
    batches = list(judge.label_logprobs(asked))
    everything = gather(batches)
    assert len(batches) > 3
    for done in ({*batches[0]}, {*batches[0], *batches[2]}, {*range(len(asked))} - {5}, {*range(len(asked))}):
        assert gather(judge.label_logprobs(asked, done=done)) == {
            index: reading for index, reading in everything.items() if index not in done
        }


def test_equal_prompts_and_prompts_within_prompts() -> None:
    judge = engine()
    texts = ["the", "the", "", "there you", "there", "there you are"]
    asked = [
        LabelRequest((Message("user", "x"), Message("assistant", text)), labels)
        for text in texts
        for labels in ((" A", " B"), (" yes", " no", " in"))
    ]
    assert_same(gather(judge.label_logprobs(asked)), alone(judge, asked))


def test_the_model_is_left_as_it_was() -> None:
    judge = engine()
    ids = torch.arange(9, 40)[None]
    before = judge.model(input_ids=ids).logits
    batches = judge.label_logprobs(requests("pointwise"))
    next(batches)
    assert judge.model.config._attn_implementation == "sdpa"
    assert torch.equal(judge.model(input_ids=ids).logits, before)
    assert tree._active.get() is None


def test_nonsense_from_one_prompt_stays_with_it() -> None:
    judge = engine()
    bad = judge.tokenizer.convert_tokens_to_ids("Z")
    with torch.no_grad():
        judge.model.get_input_embeddings().weight[bad] = math.nan
        judge.model.lm_head.weight = torch.nn.Parameter(torch.nan_to_num(judge.model.lm_head.weight))
    words = ["a", "b", "Z", "c", "d"]
    asked = [LabelRequest((Message("user", f"What about {word}?"),), ("A", "B")) for word in ["b", *words]]
    readings = gather(judge.label_logprobs(asked))
    assert [readings[index].reason for index in range(6)] == ["", "", "", "not_finite", "", ""]


def with_config(**changes: Any) -> Any:
    model = tiny_model("llama", context=CONTEXT)
    for name, value in changes.items():
        setattr(model.config, name, value)
    return model


def recurrent() -> Any:
    shape = {"vocab_size": 270, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    config = transformers.MambaConfig(**shape, pad_token_id=0, eos_token_id=2)
    return transformers.MambaForCausalLM(config).eval()


def leaking() -> Any:
    """A llama whose layers also mix neighbouring columns, whatever the attention."""
    model = tiny_model("llama", context=CONTEXT)

    def mix(_layer: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + output.roll(1, dims=1)

    model.model.layers[0].register_forward_hook(mix)
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (recurrent, "its attention cannot be replaced"),
        (
            lambda: with_config(layer_types=["full_attention", "chunked_attention"]),
            "it has layers of the kind chunked_attention",
        ),
        (
            lambda: with_config(rope_parameters={"rope_type": "dynamic"}),
            "its positions depend on the length of the whole prompt",
        ),
        (
            lambda: with_config(layer_types=["sliding_attention"] * 2),
            "not all of its layers tell what they attend to",
        ),
        (leaking, "shared and separate prompts give different results"),
    ],
)
def test_models_that_cannot_share(model: Any, reason: str) -> None:
    assert unshareable(model(), np.arange(9, 40, dtype=np.int32)) == reason


def test_falling_back_is_told_once() -> None:
    told: list[str] = []
    judge = engine(recurrent(), log=told.append)
    asked = requests("pointwise", count=1)
    for _ in range(2):
        assert_same(gather(judge.label_logprobs(asked)), alone(judge, asked))
    assert told == ["tiny-llama: every judge prompt is computed on its own: its attention cannot be replaced"]


def test_an_attention_with_inputs_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", context=CONTEXT)
    for layer in model.model.layers:
        forward = layer.self_attn.forward
        monkeypatch.setattr(
            layer.self_attn,
            "forward",
            lambda *args, forward=forward, **kw: forward(*args, s_aux=torch.ones(4), **kw),
        )
    assert unshareable(model, np.arange(9, 40, dtype=np.int32)) == "its attention has s_aux"
