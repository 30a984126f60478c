"""What all jobs have in common: what a run asks of a job, and what a job tells when it is done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

from rlaif.config.labelling import BaseStage
from rlaif.constitution.load import Half, require
from rlaif.digest import digest
from rlaif.engines.journaled import TRANSIENT
from rlaif.errors import JudgingError, RunError
from rlaif.files import read_object
from rlaif.io.writers import write_rows
from rlaif.jobs.context import RunContext
from rlaif.jobs.estimate import ROWS, shared
from rlaif.jobs.lengths import Adapters, Device, Lengths
from rlaif.jobs.planning import StagePlan, counter_of, estimated_seconds, tokens_of
from rlaif.models.memory import StageWork
from rlaif.report.shown import Shown
from rlaif.runs.manifest import Manifest, first_problem
from rlaif.text import counted
from rlaif.types import Constitution, Prompt

__all__ = [
    "AnyJob",
    "BUILTIN_LIMIT",
    "Job",
    "MOST_GAPS",
    "Outcome",
    "Passes",
    "SCORED",
    "TO_READ",
    "check_gaps",
    "read_result",
    "read_typed",
    "settings_digest",
    "transient_among",
    "usable",
    "write_refused",
]

Result = TypeVar("Result")
Config = TypeVar("Config", bound=BaseStage, covariant=True)
BUILTIN_LIMIT = 24
"""Built-in prompts that a stage draws when no limit is set: a first look, not a study."""
TO_READ = 12
"""Items written out in `samples.md`."""


class Outcome(NamedTuple):
    """What a finished stage has to tell.

    Attributes:
        counts: Whole numbers for the manifest; they add up.
        rows: Rows by output file.
        gaps: Questions that got no answer for a reason that may pass (a server that was down): asked again by
            the same command.
    """

    counts: dict[str, int]
    rows: dict[str, int]
    gaps: int = 0


class Passes(NamedTuple):
    """How often a stage runs its model over the completions that it samples, prompts included."""

    scored: float = 0
    """By a reward model: rows of one length together, the completions of a prompt behind it."""
    read: float = 0
    """By a policy or its reference, each completion in a row of its own."""
    learned: float = 0
    """Forward and back."""
    logits: float = 0
    """And how often the logits of a sampled token are formed."""


NO_PASSES = Passes()
PADDED, SCORED = 1.6, 1.1
"""Positions in a pass for each token in it: rows are as long as the longest, which differ more where they are
not put together by length. Measured on the quickstart's prompts."""


class Job(ABC, Generic[Config]):
    """One stage of a run: all that the runner, a dry run and the memory plan need to know of it.

    Args:
        config: The stage's settings.
        context: What the stages of the run share.
    """

    method: ClassVar[str] = ""
    """What a model card says that the adapter was trained by."""

    loading: ClassVar[str] = ""
    """What a model card says of how to load what the stage leaves; that of a PEFT adapter when empty."""

    prompts: Sequence[Prompt] = ()
    """What the stage samples for, if it samples."""

    def __init__(self, config: Config, context: RunContext) -> None:
        self.config = config
        self.context = context

    @abstractmethod
    def key_parts(self) -> dict[str, str]:
        """What the result depends on, a digest or a short value each, under names that a reader
        understands."""

    @abstractmethod
    def models(self) -> dict[str, str]:
        """Who plays which role, as `name@revision`."""

    @abstractmethod
    def execute(self, folder: Path) -> Outcome:
        """Do the work and write the stage's files into `folder`."""

    def finished(self, folder: Path) -> None:
        """The stage's folder is there, from now or from before; later stages see what changes with it."""

    def headline(self, manifest: Manifest) -> str:
        """The finished stage in a line: what it counted, and how long it took."""
        counts = ", ".join(counted(value, name) for name, value in manifest.counts.items())
        return f"{counts}  ({manifest.seconds:.0f} s)"

    def summary(self, folder: Path, manifest: Manifest) -> Sequence[Shown]:
        """What the terminal shows of the finished stage beneath its headline.

        Raises:
            RunError: A file of the stage is missing or damaged.
        """
        return ()

    def closing(self, folder: Path, manifest: Manifest) -> Sequence[str]:
        """The last lines of the terminal: what a reader must know before going on, and how to go on."""
        return ()

    def dry_run(self, earlier: Mapping[str, AnyJob]) -> StagePlan:
        """What the stage would do. One that learns rows is not estimated: they do not exist yet.

        Args:
            earlier: The jobs of the run by the names of their stages.
        """
        told = ("epochs", "steps", "episodes", "rounds")
        counts = {
            name: value
            for name, value in self.config.model_dump().items()
            if name in told and isinstance(value, int)
        }
        return StagePlan(
            name=self.config.name,
            kind=self.config.stage,
            model=self.context.recipe.model,
            counts=counts,
            read=0,
            write=0,
            seconds=None,
            example={},
        )

    def sampling_plan(
        self,
        counts: Mapping[str, int],
        *,
        read: int,
        completions: int,
        new_tokens: int,
        at_once: int = ROWS,
        passes: Passes = NO_PASSES,
        together: int = 1,
        judged: float = 0,
        served: bool = False,
    ) -> StagePlan:
        """The plan of a stage that samples from the recipe's model for its `prompts`.

        Args:
            read: How many prompts are read.
            new_tokens: Of each completion, at most.
            at_once: Completions that are sampled together at most.
            passes: What is done with the completions then.
            together: Completions of a prompt, which share it where they are scored.
            judged: Tokens that a judge reads, with shared beginnings once.
            served: Whether servers sample: how long they take is not known here.
        """
        model, asked = self.context.recipe.model, [self.context.library.policy(each) for each in self.prompts]
        counter = counter_of(model)
        each = tokens_of(counter, asked) / max(1, len(asked))
        once = each * shared([[counter.render(messages) for messages in asked]])
        tokens, write = round(each * read), completions * new_tokens
        row = PADDED * completions * (once + new_tokens)  # what prompts begin with alike is read once a pass
        seconds = estimated_seconds(
            model,
            self.context,
            once * read
            + passes.scored * SCORED * completions * (each / together + new_tokens)
            + passes.read * row
            + judged,
            write,
            rows=max(1, ceil(completions / ceil(completions / max(1, min(at_once, ROWS))))),
            learned=passes.learned * row,
            logits=passes.logits * write,
        )
        return StagePlan(
            name=self.config.name,
            kind=self.config.stage,
            model=model,
            counts=dict(counts),
            read=tokens,
            write=write,
            seconds=None if served else seconds,
            example={},
        )

    def adapters(self) -> Adapters:
        """Adapters that learn in the stage, and those that it reads beside."""
        return Adapters((), tuple(self.context.reward_adapters(self.config)))

    def memory_work(self, lengths: Lengths, device: Device) -> StageWork | None:
        """What the stage does at once: how many tokens are in a pass, how many rows are sampled side by side;
        `None` where it runs no model."""
        return None


AnyJob = Job[Any]

MOST_GAPS = 0.1
"""Share of an audit's or an evaluation's questions that may go without an answer before the stage fails."""


def check_gaps(gaps: int, asked: int, *, stage: str) -> None:
    """Refuse a result that would rest on too few answers.

    Raises:
        JudgingError: More than a tenth of the questions got no answer, for a reason that may pass.
    """
    if gaps > MOST_GAPS * asked:
        raise JudgingError(
            f"{gaps} of {asked} verdicts got no answer from the server",
            where=stage,
            remedy="check the server and run the same command again: what was answered is kept",
        )


def transient_among(reasons: Iterable[str]) -> int:
    """How many of the reasons may pass."""
    return sum(reason.startswith(TRANSIENT) for reason in reasons)


def write_refused(folder: Path, refused: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Write `refused.jsonl`: the id and the reason of each prompt that could not be answered, if there are
    any; rows by file."""
    if not refused:
        return {}
    rows = [{"prompt_id": id, "reason": reason} for id, reason in refused]
    return {"refused.jsonl": write_rows(folder / "refused.jsonl", rows, "jsonl").rows}


def read_result(path: Path) -> dict[str, Any]:
    """What a finished stage wrote as JSON.

    Raises:
        RunError: The file is missing or damaged.
    """
    return read_object(path, error=RunError, what="the stage's result", remedy="run the same command again")


def read_typed(path: Path, kind: type[Result]) -> Result:
    """What a finished stage wrote, as the value that it wrote.

    Raises:
        RunError: The file is missing or damaged.
    """
    try:
        return TypeAdapter(kind).validate_python(read_result(path))
    except ValidationError as error:
        raise RunError(
            f"the stage's result is damaged ({first_problem(error)})",
            where=str(path),
            remedy="remove the stage's folder and run the same command again",
        ) from error


def settings_digest(config: BaseStage, *leave_out: str) -> str:
    """Digest of the settings that may change the result; names, sources and models are covered by parts of
    their own."""
    values = config.model_dump(mode="json")
    return digest(
        {
            key: value
            for key, value in values.items()
            if key not in ("stage", "name", "seed", "skip", "skip_bad_rows", *leave_out)
        }
    )


def usable(context: RunContext, half: Half | None) -> Constitution:
    """The constitution, with the principles that the stage can use."""
    constitution = context.constitution
    return replace(constitution, principles=require(constitution, half, source=context.recipe.constitution))
