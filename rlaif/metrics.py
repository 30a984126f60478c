"""Metrics: a number for a completion. They measure held-out completions; another one can be the reward or a
part of it.

A metric is any function of a prompt and a completion that Python can import, named `package.module:function`:

    def exclamations(prompt: Prompt, completion: Completion) -> float:
        return float(completion.text.count("!"))

It gives a finite number for every text, the empty one too. Those that ship are below. A word is what
whitespace separates; in scripts without spaces between words (Chinese, Japanese) each character is one.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from rlaif.errors import ConfigError, DataError, RlaifError
from rlaif.text import one_line
from rlaif.types import Completion, Prompt

__all__ = [
    "Metric",
    "boilerplate",
    "distinct_1",
    "distinct_2",
    "distinct_share",
    "length_words",
    "load_metric",
    "measure",
    "refusal",
    "repetition",
    "vader_compound",
    "words",
]

Metric = Callable[[Prompt, Completion], float]

NGRAM = 4
"""Words of what counts as a repetition."""

OPENING = 200
"""Characters in which a refusal must begin; further on the same words mostly tell of something else."""

REFUSALS = (
    "i can't help with",
    "i can't help you",
    "i can't assist",
    "i can't provide",
    "i can't answer",
    "i can't do that",
    "i can't comply",
    "i can't fulfill",
    "i can't support",
    "i can't offer",
    "i can't give you",
    "i can't share",
    "i cannot help",
    "i cannot assist",
    "i cannot provide",
    "i cannot answer",
    "i cannot do that",
    "i cannot comply",
    "i cannot fulfill",
    "i cannot support",
    "i cannot offer",
    "i cannot give you",
    "i cannot share",
    "i cannot in good conscience",
    "i won't help",
    "i won't assist",
    "i won't provide",
    "i will not help",
    "i will not assist",
    "i will not provide",
    "i'm not able to help",
    "i'm not able to assist",
    "i'm not able to provide",
    "i am not able to help",
    "i am not able to assist",
    "i am not able to provide",
    "i'm unable to",
    "i am unable to",
    "i'm not comfortable",
    "i am not comfortable",
    "i must decline",
    "i have to decline",
    "i must refuse",
    "i'd rather not",
    "i would rather not",
    "sorry, but i can't",
    "sorry, but i cannot",
    "sorry, i can't",
    "sorry, i cannot",
)
"""How English refusals begin, in lower case."""

REFUSALS_ZH = (
    "我不能帮",
    "我无法帮",
    "我不能协助",
    "我无法协助",
    "我不能提供",
    "我无法提供",
    "我不能回答",
    "我无法回答",
    "我不能满足",
    "我无法满足",
    "我不会帮",
    "我不会提供",
    "我必须拒绝",
    "我拒绝回答",
    "抱歉，我不能",
    "抱歉，我无法",
    "抱歉，但我不能",
    "抱歉，但我无法",
    "对不起，我不能",
    "对不起，我无法",
)
"""How Chinese refusals begin."""

STOCK_PHRASES = (
    "as an ai",
    "as a language model",
    "as an artificial intelligence",
    "it is important to note",
    "it's important to note",
    "it is worth noting",
    "it's worth noting",
    "i hope this helps",
    "feel free to ask",
    "let me know if you have any",
    "let me know if you need",
    "if you have any more questions",
    "if you have any other questions",
    "if you have any further",
    "is there anything else",
    "great question",
    "that's a great question",
    "i'd be happy to help",
    "i would be happy to help",
    "here is a revised version",
    "here's a revised version",
)
"""What assistants say whatever was asked, in lower case."""

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")


def load_metric(path: str, *, what: str = "metric") -> Metric:
    """The metric that `package.module:function` names.

    Args:
        what: What errors call it.

    Raises:
        ConfigError: It cannot be imported, or is not a function.
    """
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    # Whatever a user's module does when it is imported; it is raised on.
    except (Exception, SystemExit) as error:
        remedy = "write package.module:function, and start where Python can import the module"
        raise ConfigError(
            f"the {what} cannot be imported: {type(error).__name__}: {error}", where=path, remedy=remedy
        ) from error
    if not callable(found):
        raise ConfigError(
            f"the {what} is not a function", where=path, remedy="name a function of (prompt, completion)"
        )
    metric: Metric = found
    return metric


def measure(
    name: str, metric: Metric, prompt: Prompt, completion: Completion, *, what: str = "metric"
) -> float:
    """What `metric` says of one completion.

    Raises:
        DataError: It raised an error, or gave no finite number; the message names metric, prompt and
            completion.
    """
    where = f"prompt {prompt.id}, completion {completion.id}"
    remedy = (
        f"{name} must give a finite number for every text, the empty one too; the text begins "
        f"{one_line(completion.text[:60])!r}"
    )
    try:
        given = metric(prompt, completion)
        if given is None or isinstance(given, bool | str | bytes):
            raise DataError(f"the {what} {name} gave {given!r}, not a number", where=where, remedy=remedy)
        value = float(given)
    except RlaifError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's function raises; it is raised on
        if isinstance(error, TypeError | AttributeError):
            remedy += "; it is given a Prompt and a Completion, whose text is completion.text"
        raise DataError(
            f"the {what} {name} failed: {type(error).__name__}: {error}", where=where, remedy=remedy
        ) from error
    if not math.isfinite(value):
        raise DataError(f"the {what} {name} gave {value}", where=where, remedy=remedy)
    return value


# The metrics that ship


def vader_compound(prompt: Prompt, completion: Completion) -> float:
    """Sentiment from -1 (negative) to 1 (positive) by lexicon and rules, of English text (VADER's compound
    score; Hutto and Gilbert 2014). Needs the package `vaderSentiment`.

    Raises:
        ConfigError: The package is not installed.
    """
    return float(_analyser().polarity_scores(completion.text)["compound"])


@lru_cache(maxsize=1)
def _analyser() -> Any:
    try:
        module = importlib.import_module("vaderSentiment.vaderSentiment")
    except ImportError as error:
        remedy = "pip install 'rlaif-toolkit[metrics]', or name another metric"
        raise ConfigError(
            "rlaif.metrics:vader_compound needs the package vaderSentiment", remedy=remedy
        ) from error
    return module.SentimentIntensityAnalyzer()


def length_words(prompt: Prompt, completion: Completion) -> float:
    """Length in words."""
    return float(len(words(completion.text)))


def distinct_1(prompt: Prompt, completion: Completion) -> float:
    """Different words over all words (Li et al. 2016, 1510.03055, §5.2) of this completion; 0 where it has
    none."""
    return distinct_share([completion.text], 1)


def distinct_2(prompt: Prompt, completion: Completion) -> float:
    """Different pairs of neighbouring words over all such pairs; 0 where there is none."""
    return distinct_share([completion.text], 2)


def repetition(prompt: Prompt, completion: Completion) -> float:
    """Share of the 4-grams of words that occurred before in the completion; 0 where it has fewer than four
    words."""
    return 1.0 - distinct_share([completion.text], NGRAM) if len(words(completion.text)) >= NGRAM else 0.0


def refusal(prompt: Prompt, completion: Completion) -> float:
    """1 if the completion opens with a refusal (a list of English and Chinese phrases, no judge), else 0;
    its mean is the refusal rate."""
    opening = _plain(completion.text)[:OPENING]
    return float(any(phrase in opening for phrase in (*REFUSALS, *REFUSALS_ZH)))


def boilerplate(prompt: Prompt, completion: Completion) -> float:
    """1 if the completion has a phrase that assistants say whatever was asked (a list of English ones), else
    0."""
    text = _plain(completion.text)
    return float(any(phrase in text for phrase in STOCK_PHRASES))


def words(text: str) -> list[str]:
    """The words of `text` in lower case, with the punctuation that is attached to them."""
    return _WORD.findall(text.lower())


def distinct_share(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words over all of them, the texts taken together; 0 where there is none."""
    grams = [tuple(found[at : at + n]) for found in map(words, texts) for at in range(len(found) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _plain(text: str) -> str:
    """Lower case, one kind of apostrophe, single spaces."""
    return " ".join(text.lower().replace("’", "'").split())
