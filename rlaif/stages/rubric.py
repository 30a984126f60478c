"""Draft a rubric for each prompt from the constitution and, where there is one, a reference answer (Gunjal et
al. 2025, arXiv 2507.17746, draft theirs from experts' answers). Drafts are for a person to edit.

The writer is asked for lines of points and text. A line that does not begin with points, or `MUST`, is no
criterion: it is left out and counted, and so is one that stands in the request itself (small models copy the
template's examples). A draft without any criterion is kept as text. A prompt that has a rubric keeps it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rlaif.config.labelling import RubricConfig
from rlaif.digest import seed_from
from rlaif.engines.base import Engine, GenerationRequest, Sampling
from rlaif.progress import NoProgress, Progress
from rlaif.prompts import PromptLibrary
from rlaif.stages.sample import generate_all
from rlaif.text import answer_of, count_of
from rlaif.types import Constitution, Criterion, Message, Principle, Prompt

__all__ = ["Draft", "draft_request", "draft_rubrics", "parse_draft"]

LINE = re.compile(
    r"""\s*(?:[*•]\s+|[-–]\s+(?=\S)|\d+[.)]\s+)?          # a list's mark
        \**(?P<points>must|必须|[+\-−]?\d{1,3}(?:\.\d+)?)     # points, or a must
        \**\s*(?:points?|pts|分)?\s*[:：]\**\s*(?P<text>\S.*)""",
    re.IGNORECASE | re.VERBOSE,
)
LONGEST = 1000
"""Characters of a criterion that is kept."""
MUST = ("must", "必须")


@dataclass(frozen=True)
class Draft:
    """A prompt with the rubric that was drafted for it.

    Attributes:
        text: What the writer wrote; empty where the prompt had a rubric, or nothing was written.
        skipped: Lines of it that are no criterion.
        refused: Why nothing was written; empty otherwise.
    """

    prompt: Prompt
    rubric: tuple[Criterion, ...]
    text: str = ""
    skipped: int = 0
    refused: str = ""


def draft_rubrics(
    prompts: Sequence[Prompt],
    *,
    writer: Engine,
    library: PromptLibrary,
    constitution: Constitution,
    config: RubricConfig,
    seed: int,
    progress: Progress | None = None,
) -> list[Draft]:
    """A draft for each of `prompts`, in their order."""
    progress = progress or NoProgress()
    asked = [prompt for prompt in prompts if not prompt.rubric]
    progress.begin(f"drafting {count_of(len(asked), 'rubric')}", len(asked))
    requests = [
        GenerationRequest(
            messages=draft_request(prompt, library, constitution, config),
            sampling=Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature),
            seed=seed_from(seed, "rubric", prompt.fingerprint()),
        )
        for prompt in asked
    ]
    written = iter(zip(requests, generate_all(writer, requests, progress), strict=True))
    drafts: list[Draft] = []
    for prompt in prompts:
        if prompt.rubric:
            drafts.append(Draft(prompt, prompt.rubric))
            continue
        request, generation = next(written)
        text = answer_of(generation.text).strip()
        rubric, skipped = parse_draft(text, most=config.criteria, given=request.messages[-1].content)
        refused = generation.reason if generation.finish == "refused" else ""
        drafts.append(Draft(prompt, rubric, text, skipped, refused))
    return drafts


def draft_request(
    prompt: Prompt, library: PromptLibrary, constitution: Constitution, config: RubricConfig
) -> tuple[Message, ...]:
    """What the writer reads."""
    principles = [text for each in constitution.principles if (text := _asks(each))]
    return library.rubric(prompt, principles, criteria=config.criteria)


def parse_draft(text: str, *, most: int, given: str = "") -> tuple[tuple[Criterion, ...], int]:
    """The criteria that a writer's text holds, at most so many, and how many of its lines were left out: no
    points, points of 0, a text that is too long or there already, or more than `most`.

    Args:
        given: What the writer read: a criterion that stands there is copied.
    """
    copied = {_words(each.text) for line in given.split("\n") if (each := _criterion(line))}
    found: dict[str, Criterion] = {}
    lines = [line for line in text.split("\n") if line.strip()]
    for line in lines:
        criterion = _criterion(line)
        if criterion is None or len(found) == most:
            continue
        if (words := _words(criterion.text)) not in copied:
            found.setdefault(words, criterion)
    return tuple(found.values()), len(lines) - len(found)


def _words(text: str) -> str:
    """The text as it is compared: without case and the full stop."""
    return text.casefold().rstrip(".。 ")


def _criterion(line: str) -> Criterion | None:
    match = LINE.fullmatch(line.strip())
    if match is None:
        return None
    text = " ".join(match["text"].strip("* \t").split())
    must = match["points"].lower() in MUST
    points = 0.0 if must else float(match["points"].replace("−", "-"))
    if not text or len(text) > LONGEST or not (must or points):
        return None
    return Criterion(text=text, points=points, must=must)


def _asks(principle: Principle) -> str:
    """What a principle asks, in the words that say it most directly."""
    texts = (principle.question, principle.comparison, principle.revision, principle.critique)
    return next((text for text in texts if text), "")
