"""Metrics: each by hand, and what is refused."""

from __future__ import annotations

import math
import sys

import pytest

from rlaif import metrics
from rlaif.errors import ConfigError, DataError
from rlaif.metrics import Metric, load_metric, measure
from rlaif.types import Completion, Message, Prompt

PROMPT = Prompt(id="p7", messages=(Message("user", "Hello"),))


def completion(text: str) -> Completion:
    return Completion(id="p7/0", prompt_id="p7", index=0, text=text, finish="stop", model="m")


def of(metric: Metric, text: str) -> float:
    return metric(PROMPT, completion(text))


def length_of_both(prompt: Prompt, answer: Completion) -> float:
    return float(len(prompt.messages[-1].content) + len(answer.text))


def test_words_distinct_and_repetition_by_hand() -> None:
    # The, cat, and, the, cat: 3 of 5 differ; pairs the-cat, cat-and, and-the, the-cat: 3 of 4 differ.
    text = "The cat and the cat"
    assert of(metrics.length_words, text) == 5
    assert of(metrics.distinct_1, text) == pytest.approx(3 / 5)
    assert of(metrics.distinct_2, text) == pytest.approx(3 / 4)
    assert of(metrics.repetition, text) == 0
    # Seven words have four 4-grams: abca, bcab, cabc, abca; the last is a repetition.
    assert of(metrics.repetition, "a b c a b c a") == pytest.approx(1 / 4)
    assert of(metrics.length_words, "我喜欢你 very much") == 6


def test_distinct_n_over_several_texts_counts_what_they_share() -> None:
    assert metrics.distinct_share(["a b", "a b"], 2) == 0.5
    assert metrics.distinct_share(["a b", "b a"], 1) == 0.5


@pytest.mark.parametrize(
    "name",
    ["length_words", "distinct_1", "distinct_2", "repetition", "refusal", "boilerplate", "vader_compound"],
)
def test_the_empty_text_has_a_number(name: str) -> None:
    assert of(load_metric(f"rlaif.metrics:{name}"), "") == 0


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I’m sorry, but I can’t help with that.", 1.0),
        ("I cannot   assist you.", 1.0),
        ("As an AI, I must decline.", 1.0),
        ("抱歉，我无法帮你做这件事。", 1.0),
        ("我无法忘记那个夏天。", 0.0),
        ("I can't help but smile.", 0.0),
        ("Sure! Here you go.", 0.0),
        ("word " * 60 + "I cannot help", 0.0),
    ],
)
def test_refusals(text: str, refused: float) -> None:
    assert of(metrics.refusal, text) == refused


def test_boilerplate() -> None:
    assert of(metrics.boilerplate, "Paris. I hope this helps!") == 1
    assert of(metrics.boilerplate, "Paris.") == 0


def test_vader() -> None:
    assert of(metrics.vader_compound, "I love this.") == pytest.approx(0.6369)  # VADER's own figure
    assert of(metrics.vader_compound, "I hate this.") < 0


def test_without_vader_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics._analyser.cache_clear()
    monkeypatch.setitem(sys.modules, "vaderSentiment", None)
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(ConfigError, match=r"pip install 'rlaif-toolkit\[metrics\]'"):
        measure("vader_compound", metrics.vader_compound, PROMPT, completion("x"))


def test_a_metric_of_ones_own() -> None:
    metric = load_metric(f"{__name__}:length_of_both")
    assert measure("mine", metric, PROMPT, completion("abc")) == 8


@pytest.mark.parametrize("path", ["no.such.module:f", "math:no_such", "math:pi", ":x"])
def test_what_cannot_be_imported_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="metric"):
        load_metric(path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_gives_no_number_names_the_prompt(value: float) -> None:
    with pytest.raises(
        DataError, match=r"prompt p7, completion p7/0: the metric mine gave (nan|inf)\n.*the empty one too"
    ):
        measure("mine", lambda prompt, answer: value, PROMPT, completion("some text"))


def test_a_metric_that_fails_names_the_prompt_and_the_text() -> None:
    with pytest.raises(
        DataError, match=r"prompt p7.*the metric mine failed: ZeroDivisionError.*\n.*begins 'some text'"
    ):
        measure("mine", lambda prompt, answer: 1 / 0, PROMPT, completion("some text"))


def test_a_function_that_takes_the_completion_for_text_is_told_where_the_text_is() -> None:
    for wrong in (lambda prompt, answer: len(answer), lambda prompt, answer: answer.count("!")):
        with pytest.raises(DataError, match=r"Completion, whose text is completion\.text"):
            measure("mine", wrong, PROMPT, completion("some text"))
