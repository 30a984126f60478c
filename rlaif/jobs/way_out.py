"""How a label stage ends on the terminal: the next commands, and in the last line whether the labels are
worth training on."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlaif.audit.grade import NOT_AUDITED
from rlaif.config import LabelConfig
from rlaif.jobs.context import RunContext
from rlaif.jobs.trust import audit_command
from rlaif.judging.informative import ADVICE, doubts
from rlaif.models.devices import pick_device
from rlaif.models.known import KNOWN_JUDGES, KnownModel, largest_that_fits
from rlaif.models.memory import available_memory, size
from rlaif.models.open import is_served
from rlaif.report.labels import facts_of, grade_of

__all__ = ["closing_lines"]

SIMPLE = "warmth"
"""The constitution that a small judge is asked about one text at a time."""
WIDTH = 18


def closing_lines(
    config: LabelConfig, context: RunContext, statistics: Mapping[str, Any], file: Path
) -> list[str]:
    """What is printed last about the labels in `file`: of labels not to be trained on in any run, of others
    where the run ends with them."""
    grade, found = grade_of(statistics), doubts(facts_of(statistics))
    seats = config.seats(context.recipe.model)
    judge, judges = context.judge(seats[0].model), " and ".join(seat.name for seat in seats)
    if not grade:
        return []
    grave = [doubt.words.removesuffix(f"; {ADVICE}") for doubt in found if doubt.grave]
    if grade == "do not use" or grave:
        reason = statistics["audit"]["line"] if grade == "do not use" else grave[0]
        return [
            *_instead(judge, context),
            f"do not train on the labels of {judges}: {reason}; instead: the commands above",
        ]
    if context.recipe.stages[-1].name != config.name:
        return []
    train = shlex.join(["rlaif", "reward", "--preferences", str(file)])
    if grade == NOT_AUDITED:
        return [statistics["audit"]["line"]]
    if grade == "trust":
        return [_next("train on them", train), statistics["audit"]["line"]]
    return [
        _next("train on them", train),
        _next("audit it on pairs", audit_command(judge, context, seats[0].protocol or config.protocol)),
        statistics["audit"]["line"],
    ]


def _instead(judge: str, context: RunContext) -> Iterator[str]:
    """Commands that may give labels which say more."""
    constitution = context.recipe.constitution
    label = ["rlaif", "label", "--constitution", constitution, "--judge"]
    if is_served(judge):
        yield _next("a larger judge", shlex.join([*label, "openai:LARGER_MODEL"]))
    else:
        yield _larger_judge(judge, label, context)
    train = ["rlaif", "judge", "train", "--data", "YOUR_PAIRS.jsonl", "--constitution", constitution]
    yield _next("a trained judge", shlex.join(train))
    if context.constitution.name != SIMPLE:
        yield _next("simpler principles", f"rlaif label --constitution {SIMPLE}")


def _larger_judge(judge: str, label: list[str], context: RunContext) -> str:
    """The largest known judge that this machine has the memory for, or one behind a server."""
    free = available_memory(pick_device(context.recipe.device)) or 0
    own = _parameters(judge, context)
    model = largest_that_fits(free, above=own)
    if model is None:
        model = next((each for each in KNOWN_JUDGES if each.total > own), KNOWN_JUDGES[-1])
        served = shlex.join([*label, f"openai:{model.hub}", "--base-url", "http://SERVER:8000/v1"])
        return _next("a larger judge", f"{served}  ({_sizes(model)}; {size(free)} are free here)")
    work = f"; {model.total / own:.0f} times the work a question" if own else ""
    told = f"{_sizes(model)}; {size(free)} are free here{work}; its audit decides"
    return _next("a larger judge", f"{shlex.join([*label, model.hub])}  ({told})")


def _sizes(model: KnownModel) -> str:
    return f"{size(model.bytes_16_bits)} in bfloat16, {size(model.bytes_4_bits)} in 4 bits on a server"


def _parameters(judge: str, context: RunContext) -> int:
    """Parameters of a judge in this process; 0 for functions."""
    engine = context.engines.in_process(judge)
    return sum(each.numel() for each in engine.model.parameters()) if engine else 0


def _next(what: str, command: str) -> str:
    return f"{what:<{WIDTH}} {command}"
