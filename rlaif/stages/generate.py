"""Write prompts that put principles under strain: a grid of who asks, about what and how hard; a writer or
our own requests; and gates that leave out what is no prompt.

Each principle gets its own cells of the grid, drawn by a hash, so that every difficulty is there about
equally often, and another principle changes none of them. What a gate leaves out is kept with its reason.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

from rlaif.config.generate import GenerateConfig
from rlaif.digest import digest, seed_from, unit_from
from rlaif.engines.base import Engine, Generation, GenerationRequest, Sampling
from rlaif.near_duplicates import NearDuplicates, normalised, shingles
from rlaif.progress import NoProgress, Progress
from rlaif.prompts import PromptLibrary
from rlaif.situations import Difficulty, Persona, Situations
from rlaif.stages.likeness import Likeness
from rlaif.stages.sample import generate_all
from rlaif.text import answer_of, count_of
from rlaif.types import Constitution, Message, Principle, Prompt

__all__ = ["Cell", "Gates", "Written", "cells_of", "generate_prompts", "requests_of", "seeded"]

FEWEST_WORDS, MOST_WORDS = 4, 150
FEWEST_CHARACTERS = 6
COPIED = 0.5
"""Share of a prompt's 5-grams that may stand in the principle or in the instruction."""
LOOPING = 0.6
"""Least share of different pairs of words."""
ENOUGH_FOR_LOOPS = 12
EXAMPLES = 2
TRUSTED = 0.5
"""Share of a writer's texts that the gates must keep for any of them to be taken, under `source: auto`."""
ANSWERS = re.compile(
    r"^(sure|certainly|of course|here('s| is| are)|as an ai|i'?m sorry|i cannot|i can'?t (help|assist)|"
    r"当然|好的|以下是|作为一个|抱歉)",
    re.IGNORECASE,
)
PERSONAL = re.compile(r"[\w.+-]+@[\w-]+\.\w+|(?<!\d)(?:\+?\d[\s().-]?){9,}\d(?!\d)")
"""An address of e-mail, or a number of ten digits or more."""
CHINESE = re.compile(r"[\u4e00-\u9fff]")
MARKUP = re.compile(r"</?\w+[^<>]*>|\*{2}|^#|\[\w[^\]]*\]|_{3}", re.MULTILINE)
"""Tags, headings, and brackets that wait for somebody to fill them in."""
ENDINGS = ".?!…)。？！）～~"
ABOUT_ITSELF = re.compile(
    r"\bprinciples?\b|\bthe (assistant|user|person|recipient)\b|"
    r"^(this|these|the) (message|text|question|request)|"
    r"\b(the|an|this) answer (is|does|to (this|the))\b|这条消息|原则|该助手",
    re.IGNORECASE,
)
"""A text about the message that was to be written, in place of it."""
LABEL = re.compile(r"^(user|message|用户|消息)\s*[:：]\s*", re.IGNORECASE)
QUOTES = " \n\"'“”‘’「」"
ASKING = re.compile(
    r"[?？]|\b(i|i'm|i've|my|me|you|your|we|our|please|help|tell|write|give|explain|make|should|can|could|how|what|"
    r"why|which|who)\b|我|你|您|请|帮|怎么|什么|吗",
    re.IGNORECASE,
)

Origin = Literal["model", "seed"]


@dataclass(frozen=True)
class Cell:
    """A place of the grid: which principles, who, about what, how hard.

    Attributes:
        principles: One, or two that are in conflict.
    """

    principles: tuple[Principle, ...]
    number: int
    persona: Persona
    topic: str
    difficulty: Difficulty

    @property
    def id(self) -> str:
        """Names the cell; the same for the same constitution and seed."""
        return "-".join([*(each.id for each in self.principles), str(self.number)])


@dataclass(frozen=True)
class Written:
    """What was written for a cell.

    Attributes:
        reason: Why it was left out; empty where it is kept.
        near: The text that it is nearly the same as, where that is why.
    """

    cell: Cell
    origin: Origin
    text: str
    reason: str = ""
    near: str = ""

    @property
    def principles(self) -> tuple[Principle, ...]:
        """Those that it puts under strain: our own requests are written for one."""
        return self.cell.principles if self.origin == "model" else self.cell.principles[:1]

    @property
    def difficulty(self) -> str:
        """As the writer was asked; our own requests have none of the grid's."""
        return self.cell.difficulty.name if self.origin == "model" else ""

    @property
    def prompt(self) -> Prompt:
        """It as a prompt, tagged by principle."""
        tags = dict.fromkeys(name for each in self.principles for name in (each.id, *each.tags))
        id = f"g-{digest([self.cell.id, self.text])[:12]}"
        return Prompt(id=id, messages=(Message("user", self.text),), tags=tuple(tags))


def cells_of(
    constitution: Constitution, situations: Situations, config: GenerateConfig, *, seed: int
) -> list[Cell]:
    """The cells of every principle; the first ones of each, so many as `conflicts` says, are in conflict with
    another one."""
    return [
        _cell(principle, constitution.principles, situations, config, number=number, seed=seed)
        for principle in constitution.principles
        for number in range(config.per_principle)
    ]


def _cell(
    principle: Principle,
    all_principles: Sequence[Principle],
    situations: Situations,
    config: GenerateConfig,
    *,
    number: int,
    seed: int,
) -> Cell:
    key = (seed, "generate", principle.id)
    others = sorted(
        (each for each in all_principles if each.id != principle.id),
        key=lambda each: unit_from(*key, "against", each.id),
    )
    against = (
        (others[number % len(others)],)
        if others and number < round(config.conflicts * config.per_principle)
        else ()
    )

    def drawn(what: str, count: int) -> int:
        return int(unit_from(*key, what, number) * count)

    return Cell(
        principles=(principle, *against),
        number=number,
        persona=situations.personas[drawn("persona", len(situations.personas))],
        topic=situations.topics[drawn("topic", len(situations.topics))],
        difficulty=situations.difficulties[number % len(situations.difficulties)],
    )


def requests_of(
    cells: Sequence[Cell],
    library: PromptLibrary,
    config: GenerateConfig,
    *,
    seed: int,
    like: Sequence[str] = (),
) -> list[GenerationRequest]:
    """What the writer is asked, a request a cell; each with examples of its own from `like`."""
    sampling = Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature)
    return [
        GenerationRequest(
            messages=library.generate(
                [said(each) for each in cell.principles],
                persona=cell.persona.noun,
                topic=cell.topic,
                difficulty=cell.difficulty.how,
                examples=sorted(like, key=lambda text: unit_from(seed, "like", cell.id, text))[:EXAMPLES],
            ),
            sampling=sampling,
            seed=seed_from(seed, "generate", cell.id),
        )
        for cell in cells
    ]


def said(principle: Principle) -> str:
    """What a principle asks, in the words that say it most directly."""
    texts = (principle.question, principle.comparison, principle.revision, principle.critique)
    return next((text for text in texts if text), principle.id)


def seeded(cell: Cell, situations: Situations, *, seed: int, turn: int = 0) -> str:
    """A request of our own list for a cell, of its first principle's tags; another one each `turn`."""
    tags = [tag for tag in cell.principles[0].tags if tag in situations.seeds] or ["any"]
    texts = [text for tag in tags for text in situations.seeds[tag]]
    ranked = sorted(texts, key=lambda text: unit_from(seed, "seed", cell.principles[0].id, text))
    at, topics = cell.number + turn, situations.topics
    topic = topics[(topics.index(cell.topic) + turn) % len(topics)]
    return ranked[at % len(ranked)].format(who=cell.persona.says, topic=topic)


# Gates ------------------------------------------------------------------------------------------------------


@dataclass
class Gates:
    """Decides what is a prompt, and remembers what was kept, so that nothing is kept twice.

    Attributes:
        known: Texts that must not be repeated, such as the built-in prompts.
        likeness: To prompts of real use, where such are given.
    """

    language: str
    config: GenerateConfig
    known: Iterable[str] = ()
    likeness: Likeness | None = None
    _texts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._near = NearDuplicates(self.config.similarity)
        for text in self.known:
            self._remember(text)

    def judged(self, written: Written, *, read: str = "", cut: bool = False) -> Written:
        """`written` with the reason why it is left out, or remembered.

        Args:
            read: What the writer read.
            cut: Whether it was cut at the most tokens.
        """
        reason = self._reason(written.text, read=read, cut=cut)
        near = ""
        if not reason:
            reason, near = self._repeated(written.text)
        if not reason:
            self._remember(written.text)
        return replace(written, reason=reason, near=near)

    def _reason(self, text: str, *, read: str, cut: bool) -> str:
        words = normalised(text).split()
        chinese = len(CHINESE.findall(text)) / max(1, len("".join(words)))
        if not words:
            return "empty"
        if cut:
            return "cut"
        if (chinese > 0.2) != (self.language == "zh"):
            return "wrong_script"
        if len(words) > MOST_WORDS or len(text) > 8 * MOST_WORDS:
            return "too_long"
        if len(words) < FEWEST_WORDS if self.language != "zh" else len(text) < FEWEST_CHARACTERS:
            return "too_short"
        if MARKUP.search(text):
            return "markup"
        if text[-1] not in ENDINGS:
            return "unfinished"
        if ANSWERS.search(text):
            return "answers"
        if ABOUT_ITSELF.search(text):
            return "describes_the_task"
        if not ASKING.search(text):
            return "asks_nothing"
        if _looping(words):
            return "loops"
        if read and len(shingles(text) & shingles(read)) > COPIED * len(shingles(text)):
            return "copies_the_instruction"
        if PERSONAL.search(text):
            return "personal_data"
        if any(re.search(pattern, text) for pattern in self.config.block):
            return "blocked"
        if self.likeness is not None and not self.likeness.is_alike(text):
            return "unlike_real_use"
        return ""

    def _repeated(self, text: str) -> tuple[str, str]:
        if (same := self._texts.get(normalised(text))) is not None:
            return "duplicate", same
        near = self._near.find(text)
        return ("near_duplicate", str(near)) if near is not None else ("", "")

    def _remember(self, text: str) -> None:
        self._texts.setdefault(normalised(text), text)
        self._near.add(text, text)


def _looping(words: Sequence[str]) -> bool:
    pairs = list(pairwise(words))
    return len(words) >= ENOUGH_FOR_LOOPS and len(set(pairs)) < LOOPING * len(pairs)


def generate_prompts(
    cells: Sequence[Cell],
    *,
    writer: Engine | None,
    requests: Sequence[GenerationRequest],
    situations: Situations,
    gates: Gates,
    config: GenerateConfig,
    seed: int,
    progress: Progress | None = None,
) -> list[Written]:
    """Everything that was written, kept or not.

    Args:
        writer: `None` where only seeds are used.
        requests: As `requests_of` gives them for `cells`.
    """
    progress = progress or NoProgress()
    found: list[Written] = []
    if writer is not None:
        progress.begin(f"writing {count_of(len(requests), 'prompt')}", len(requests))
        answers = generate_all(writer, requests, progress)
        found += [
            _by_model(cell, request, answer, gates)
            for cell, request, answer in zip(cells, requests, answers, strict=True)
        ]
        if config.source == "auto":
            found = _trusted(found)
    if config.source != "model":
        kept = {each.cell.id for each in found if not each.reason}
        found += _by_seeds([cell for cell in cells if cell.id not in kept], situations, gates, seed=seed)
    return found


def _by_model(cell: Cell, request: GenerationRequest, answer: Generation, gates: Gates) -> Written:
    if answer.finish == "refused":
        return Written(cell, "model", "", reason=f"refused: {answer.reason}")
    text = LABEL.sub("", answer_of(answer.text).strip()).strip(QUOTES)
    read = "\n".join(message.content for message in request.messages)
    return gates.judged(Written(cell, "model", text), read=read, cut=answer.finish == "length")


def _trusted(found: Sequence[Written]) -> list[Written]:
    """What a writer wrote, if rules kept at least half of it; else nothing: where so much is no prompt, the
    rest only passes for one."""
    kept = sum(not each.reason for each in found)
    if kept >= TRUSTED * len(found):
        return list(found)
    return [each if each.reason else replace(each, reason="weak_writer") for each in found]


def _by_seeds(cells: Sequence[Cell], situations: Situations, gates: Gates, *, seed: int) -> Iterator[Written]:
    """A request of our own for each cell, another one where it is there already; what stays a repetition is
    told once."""
    tries = len(situations.topics)
    for cell in cells:
        for turn in range(tries):
            text = seeded(cell, situations, seed=seed, turn=turn)
            judged = gates.judged(Written(cell, "seed", text))
            if not judged.reason or turn + 1 == tries:
                yield judged
                break


def coverage(written: Sequence[Written]) -> dict[str, dict[str, int]]:
    """Kept prompts by principle: by difficulty, in conflict, by who wrote them."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for each in written:
        counts = found[each.cell.principles[0].id]
        counts["left_out"] += bool(each.reason)
        if each.reason:
            continue
        counts["kept"] += 1
        if each.difficulty:
            counts[each.difficulty] += 1
        counts["in_conflict"] += len(each.principles) > 1
        counts[each.origin] += 1
    return {name: dict(counts) for name, counts in found.items()}
