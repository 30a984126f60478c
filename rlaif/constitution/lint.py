"""Advice on a constitution that can be used but may not judge as meant.

Each check reads the values alone and returns `Problem`s. They are rules of thumb for English and Chinese; in
other languages the checks on wording stay silent. Nothing here is an error: the command
`rlaif constitution lint` prints it as warnings.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator

from rlaif.errors import Problem
from rlaif.types import TEXT_KEYS, Constitution, Principle

__all__ = ["lint"]

SHORTEST = {"cjk": 5, "other": 12}
LONGEST = 1200
"""Characters; a judge prompt repeats the text for each comparison."""

NEAR = 0.85
"""Share of words in common from which two principles count as one."""

COMPARED_PAIRWISE = 400
"""Up to so many principles are compared each with each for likeness; beyond, only equal ones are found."""

RARE = 1e-3
"""A principle whose weight is below this share of the largest is hardly ever drawn."""

WHICH = {"en": re.compile(r"\b(which|choose|select|pick|prefer)\b", re.I), "zh": re.compile("哪|选")}
OPEN = {
    "en": re.compile(r"^(what|which|how|why|who|whose|where|when)\b", re.I),
    "zh": re.compile("什么|怎么|怎样|如何|为何|多少|哪(?!怕)"),
}
YES_NO = {"yes", "no", "true", "false"}
YES_NO |= {"是", "否", "不是", "有", "没有", "对", "不对", "错", "能", "不能", "会", "不会"}
NEGATION = {
    "en": re.compile(
        r"\b(?:not|never|no|without|neither|nor|avoid\w*|refrain\w*|fail\w*|lack\w*)\b|n['’]t\b", re.I
    ),
    "zh": re.compile("不是不|并非不|不会不|不能不|没有不|没有没有|避免不|不缺少|从不不|不无"),
}
SENTENCE = re.compile(r"[.!?;。！？；]+\s*")
LATIN = ["en", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "no", "nb", "fi", "pl", "cs", "tr", "vi"]
LATIN += ["id", "ro", "hu"]
SCRIPTS = dict.fromkeys(LATIN, ("LATIN",)) | {
    "zh": ("CJK",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"),
    "ko": ("HANGUL",),
    "ru": ("CYRILLIC",),
    "uk": ("CYRILLIC",),
    "ar": ("ARABIC",),
    "fa": ("ARABIC",),
    "he": ("HEBREW",),
    "el": ("GREEK",),
    "hi": ("DEVANAGARI",),
    "th": ("THAI",),
}
"""Beginnings of the Unicode names of a language's letters."""
HARMLESS = frozenset({"harmless", "harmlessness", "safety", "safe", "无害", "安全"})
HELPFUL = frozenset({"helpful", "helpfulness", "usefulness", "有用", "有益"})


def lint(constitution: Constitution, *, source: str = "") -> list[Problem]:
    """Advice on a constitution, in the order of its principles; empty when there is none."""
    language = constitution.language.split("-")[0].lower()
    found = [
        problem
        for principle in constitution.principles
        for problem in _principle(principle, constitution.protocol, language)
    ]
    found += _alike(constitution)
    found += _weights(constitution)
    found += _script(constitution, language)
    found += _balance(constitution)
    return [Problem(p.what, where=": ".join(filter(None, (source, p.where))), remedy=p.remedy) for p in found]


def _principle(principle: Principle, protocol: str, language: str) -> Iterator[Problem]:
    where = f"principle `{principle.id}`"
    for key in TEXT_KEYS:
        text = getattr(principle, key)
        if text is not None:
            yield from (
                Problem(f"`{key}` {what}", where=where, remedy=remedy)
                for what, remedy in _wording(text, key, language)
            )
    yield from (Problem(what, where=where, remedy=remedy) for what, remedy in _halves(principle, protocol))
    if principle.question is not None:
        yield from (
            Problem(what, where=where, remedy=remedy) for what, remedy in _answerable(principle, language)
        )


def _wording(text: str, key: str, language: str) -> Iterator[tuple[str, str]]:
    """Length, the question asked, and negations of one text."""
    shortest = SHORTEST["cjk" if any(map(_is_cjk, text)) else "other"]
    if len(text) < shortest:
        yield (
            f"is very short ({len(text)} characters)",
            "write a full sentence; a model sees nothing else of the rule",
        )
    if len(text) > LONGEST:
        yield (
            f"is very long ({len(text)} characters)",
            "split the principle; small judges lose the end of a long question",
        )
    if key in ("comparison", "question") and not text.rstrip("'\"”」 ").endswith(("?", "？", ".", "。")):
        yield "does not end like a question", "end it with a question mark"
    which = WHICH.get(language)
    if key == "comparison" and which and not which.search(text):
        yield "does not ask which response is better", "ask for one of two: `Which response ...?`"
    negation = NEGATION.get(language)
    if (
        key in ("comparison", "question")
        and negation
        and any(_denied(part, negation, language) for part in SENTENCE.split(text))
    ):
        yield (
            "contains a double negative",
            "say what a good response does; small judges stumble over two negations",
        )


def _denied(sentence: str, negation: re.Pattern[str], language: str) -> bool:
    return len(negation.findall(sentence)) >= (1 if language == "zh" else 2)


def _halves(principle: Principle, protocol: str) -> Iterator[tuple[str, str]]:
    if (principle.critique is None) != (principle.revision is None):
        there, missing = ("critique", "revision") if principle.revision is None else ("revision", "critique")
        yield f"has a `{there}` and no `{missing}`", f"add the {missing}; `rlaif revise` needs both"
    needed, other = ("comparison", "question") if protocol == "pairwise" else ("question", "comparison")
    if getattr(principle, needed) is None and getattr(principle, other) is not None:
        yield f"has a `{other}` and no `{needed}`, which the protocol `{protocol}` asks", f"add the {needed}"


def _answerable(principle: Principle, language: str) -> Iterator[tuple[str, str]]:
    """Whether the two answers answer the question."""
    question = principle.question or ""
    good, bad = (principle.answers.good, principle.answers.bad) if principle.answers else ("Yes", "No")
    opening = OPEN.get(language)
    if {good.casefold(), bad.casefold()} <= YES_NO:
        if opening and opening.search(question):
            yield (
                f"`question` cannot be answered by {good} or {bad}",
                "ask `Is ...?` or `Does ...?`, or name the answers in it",
            )
    elif opening and not all(_named(answer, question, language) for answer in (good, bad)):
        remedy = "name both in the question: `Is ... positive or negative?`"
        yield f"`question` does not name its answers {good} and {bad}", remedy
    if good.casefold().startswith(bad.casefold()) or bad.casefold().startswith(good.casefold()):
        yield (
            f"the answers {good} and {bad} begin alike",
            "choose answers that differ from their first letter on",
        )


def _named(answer: str, question: str, language: str) -> bool:
    if language == "zh":
        return answer in question
    return re.search(rf"\b{re.escape(answer)}\b", question, re.I) is not None


def _alike(constitution: Constitution) -> Iterator[Problem]:
    """Principles that say the same: equal texts in any number of principles, near-equal ones in the first
    400."""
    first: dict[str, str] = {}
    bags: list[tuple[str, frozenset[str]]] = []
    for principle in constitution.principles:
        text = " ".join(filter(None, (getattr(principle, key) for key in TEXT_KEYS))).casefold()
        twin = first.setdefault(" ".join(text.split()), principle.id)
        if twin == principle.id and len(bags) < COMPARED_PAIRWISE:
            bag = frozenset(re.findall(r"[\u3040-\u9fff\uac00-\ud7af]|\w+", text))
            twin = next((id for id, other in bags if len(bag & other) >= NEAR * len(bag | other)), twin)
            bags.append((principle.id, bag))
        if twin != principle.id:
            remedy = "merge them, or word them apart; together they count double"
            yield Problem(
                f"says nearly the same as `{twin}`", where=f"principle `{principle.id}`", remedy=remedy
            )


def _weights(constitution: Constitution) -> Iterator[Problem]:
    largest = max((principle.weight for principle in constitution.principles), default=1.0)
    if largest < 1e-6:
        yield Problem(
            f"all weights are next to nothing (the largest is {largest:g})", remedy="use weights around 1"
        )
    for principle in constitution.principles:
        if principle.weight < RARE * largest:
            what = (
                f"weight {principle.weight:g} is so far below the largest ({largest:g}) that the "
                "principle is hardly ever drawn"
            )
            yield Problem(
                what, where=f"principle `{principle.id}`", remedy="raise it, or take the principle out"
            )


def _script(constitution: Constitution, language: str) -> Iterator[Problem]:
    """Whether the texts are in the script of the language tag."""
    sample = "".join(getattr(p, key) or "" for p in constitution.principles[:100] for key in TEXT_KEYS)[
        :20_000
    ]
    names = Counter(
        unicodedata.name(character, "").split(" ")[0].split("-")[0]
        for character in sample
        if character.isalpha()
    )
    expected = SCRIPTS.get(language, ())
    letters = sum(names.values())
    if expected and letters and sum(names[script] for script in expected) < 0.5 * letters:
        main = names.most_common(1)[0][0].capitalize()
        what = f"the language is `{constitution.language}`, but the texts are mostly in {main} script"
        yield Problem(what, remedy="set `language` to that of the texts; it chooses the prompt templates")


def _balance(constitution: Constitution) -> Iterator[Problem]:
    """One-sided tags, and examples that teach a letter."""
    tagged = [
        (principle.weight, {tag.casefold() for tag in principle.tags})
        for principle in constitution.principles
    ]
    harmless = sum(weight for weight, tags in tagged if HARMLESS & tags)
    if harmless > 0.5 * sum(weight for weight, _ in tagged) and not any(HELPFUL & tags for _, tags in tagged):
        remedy = "add principles on helpfulness and on not being evasive, or expect refusals"
        yield Problem("most of the weight is on harmlessness, and none on helpfulness", remedy=remedy)
    answers = {example.answer for example in constitution.examples}
    if len(constitution.examples) > 1 and len(answers) == 1:
        remedy = "swap `a` and `b` in half of them; small judges copy the letter"
        yield Problem(
            f"all {len(constitution.examples)} examples have the answer {answers.pop()}", remedy=remedy
        )


def _is_cjk(character: str) -> bool:
    return "\u3040" <= character <= "\u9fff" or "\uac00" <= character <= "\ud7af"
