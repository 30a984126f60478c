"""Scripted judges for the tests of audits: they read a number that the test wrote into each text, `q3` or
`q-2`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence

from rlaif.audit.cases import Case, Pair
from rlaif.digest import unit_from
from rlaif.engines.base import LabelRequest
from rlaif.engines.scripted import ScriptedEngine
from rlaif.jobs.audit_files import PROBES
from rlaif.types import (
    Answers,
    Comparison,
    Completion,
    Constitution,
    Message,
    Order,
    Principle,
    Prompt,
    Verdict,
)


def comparison(
    number: int, a: str, b: str, *, tags: Sequence[str] = (), models: tuple[str, str] = ("given", "given")
) -> Comparison:
    prompt = Prompt(id=f"p{number}", messages=(Message("user", f"Question {number}?"),), tags=tuple(tags))
    both = [
        Completion(
            id=f"p{number}/{index}", prompt_id=prompt.id, index=index, text=text, finish="given", model=model
        )
        for index, (text, model) in enumerate(zip((a, b), models, strict=True))
    ]
    return Comparison(prompt=prompt, a=both[0], b=both[1])


def pairs(count: int, *, right: int | None = None, tags: Sequence[str] = (), first: int = 0) -> list[Pair]:
    """Pairs of which people chose the one that reads q1 in the first `right` (all), and the one that reads q0
    in the rest."""
    right = count if right is None else right
    made = []
    for number in range(first, first + count):
        better, worse = ("q1", "q0") if number - first < right else ("q0", "q1")
        # One text in two is longer, whichever is the better one.
        texts = (better + " word" * (number % 2), worse + " word" * (1 - number % 2))
        pair = Pair(comparison(number, *texts, tags=tags), a_wins=1.0)
        made.append(pair if number % 4 < 2 else pair.swap())
    return made


def quality(text: str) -> float:
    found = re.search(r"q(-?\d+)", text)
    return float(found[1]) if found else 0.0


def logprobs(logit: float) -> list[float]:
    """Log-probabilities of two labels that hold all of the probability."""
    return [-math.log1p(math.exp(-logit)), -math.log1p(math.exp(logit))]


def reader(
    *,
    first: float = 0.0,
    strength: float = 2.0,
    scale: Callable[[str], float] = lambda text: 1.0,
    name: str = "judge",
) -> ScriptedEngine:
    """A judge that sees which text is better.

    Args:
        first: Log-odds added for whatever is shown first.
        scale: Factor on the log-odds by the text of the whole question, to make principles or wordings
            differ.
    """

    def labels(request: LabelRequest) -> list[float]:
        text = request.messages[-2 if request.messages[-1].role == "assistant" else -1].content
        shown = [part.partition("</response")[0] for part in re.split(r"<response(?:_[ab])?>", text)[1:]]
        shown = shown[-2:] if "<response_a>" in text else shown
        if len(shown) == 2:
            return logprobs(strength * scale(text) * (quality(shown[0]) - quality(shown[1])) + first)
        sign = 1.0 if request.labels[0].strip() == "Yes" else -1.0
        return logprobs(sign * strength * scale(text) * quality(shown[0]))

    return ScriptedEngine(labels=labels, revision="reader" if name == "judge" else name, name=name)


def keen() -> ScriptedEngine:
    """A judge that sees which text is better, and is sure of it."""
    return reader(strength=3.0, name="keen")


def contrary() -> ScriptedEngine:
    """A judge that prefers the worse text where one reads q2."""
    return reader(strength=1.0, scale=lambda text: -1.0 if "q2" in text else 1.0, name="contrary")


def half_blind() -> ScriptedEngine:
    """A judge whose answer to what reads q0 cannot count."""
    return reader(strength=1.0, scale=lambda text: math.nan if "q0" in text else 1.0, name="half-blind")


def _right_answers() -> set[str]:
    return {json.loads(line)["chosen"][0]["content"] for line in PROBES.read_text("utf-8").splitlines()}


def _says(first: float) -> list[float]:
    """Labels for the one shown first, for the other, or for neither."""
    return [-0.1, -2.5] if first > 0 else [-2.5, -0.1] if first < 0 else [-0.7, -0.7]


def able() -> ScriptedEngine:
    """A judge that knows the right answers of the built-in probes, and draws lots about anything else, by what
    is compared."""
    right = _right_answers()

    def labels(request: LabelRequest) -> list[float]:
        text = next(each.content for each in reversed(request.messages) if "<response_a>" in each.content)
        shown = [part.partition("</response_")[0].strip() for part in re.split("<response_[ab]>", text)[-2:]]
        knows = [each in right for each in shown]
        if knows[0] != knows[1]:
            return _says(knows[0] - knows[1])
        return _says(unit_from("drawn", shown[0]) - unit_from("drawn", shown[1]))

    return ScriptedEngine(labels=labels, revision="able", name="able")


def only_answers() -> ScriptedEngine:
    """A writer that answers whatever it is asked to write a request for."""
    return ScriptedEngine(lambda request: "Sure! Here is what you should do.", revision="answers")


def first_shown() -> ScriptedEngine:
    """A judge that chooses whatever is shown first."""
    return ScriptedEngine(labels=lambda request: _says(1), revision="first", name="first-shown")


def undecided() -> ScriptedEngine:
    """A judge that prefers nothing."""
    return ScriptedEngine(labels=lambda request: _says(0), revision="none", name="undecided")


def constitution(
    *ids: str, tags: Mapping[str, Sequence[str]] | None = None, language: str = "en"
) -> Constitution:
    """Principles with a comparison and a question each; the question names the id, so that a judge can tell
    them apart."""
    return Constitution(
        name="test",
        language=language,
        principles=tuple(
            Principle(
                id=id,
                comparison=f"Which response is more {id}?",
                question=f"Is this response {id}?",
                answers=Answers("Yes", "No"),
                tags=tuple((tags or {}).get(id, ())),
            )
            for id in ids
        ),
    )


def case(
    number: int, logits: Mapping[str, float | None], *, won: float | None = 1.0, a: str = "aa", b: str = "b"
) -> Case:
    """A judged pair, both orders alike; the label is the mean of its valid principles."""
    verdicts = tuple(
        Verdict(
            f"p{number}/0-1",
            principle_id=id,
            order=order,
            logit_a=logit,
            reason="" if logit is not None else "lost",
        )
        for id, logit in logits.items()
        for order in (Order.AB, Order.BA)
    )
    valid = [logit for logit in logits.values() if logit is not None]
    return Case(
        pair=Pair(comparison(number, a, b), won),
        verdicts=verdicts,
        logit_a=sum(valid) / len(valid) if valid else None,
    )
