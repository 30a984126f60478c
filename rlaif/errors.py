"""Every error that rlaif raises on purpose.

    RlaifError
    ├── ConfigError          a recipe, a setting or a command line that cannot be right
    ├── ConstitutionError    a principle file that cannot be used
    ├── DataError            prompts, completions or pairs that cannot be read
    ├── ModelError           a model, tokenizer or server that cannot be loaded or cannot do what is asked
    ├── JudgingError         too many verdicts are invalid for the labels to be trusted
    ├── RunError             a run folder or journal that cannot be read, written or continued
    └── RankError            one of several processes that do a run together has ended, or does not agree

A message says what is wrong, where (file and line when there is one), and what to do about it. The command
line prints the message and the remedy, without a traceback; a library user sees one exception with both.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "ConfigError",
    "ConstitutionError",
    "DataError",
    "JudgingError",
    "ModelError",
    "PROBLEMS_LISTED",
    "Problem",
    "RankError",
    "RlaifError",
    "RunError",
    "first_problems",
    "interruption",
]


PROBLEMS_LISTED = 50
"""Problems of one file that are spelled out; the rest are counted."""


class Problem:
    """One thing wrong with an input: where it is, what it is, and what would be right."""

    __slots__ = ("remedy", "what", "where")

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        return f"{line}\n    → {self.remedy}" if self.remedy else line

    def __repr__(self) -> str:
        return f"Problem({self.what!r}, where={self.where!r}, remedy={self.remedy!r})"


class RlaifError(Exception):
    """The root of the tree: what happened, where, and the remedy.

    Args:
        what: One sentence that says what is wrong.
        where: File and line, column or key, if there is one.
        remedy: What the reader can do about it.
        problems: Every problem found, when an input was checked as a whole; printed one per line under
            `what`.
    """

    def __init__(
        self, what: str, *, where: str = "", remedy: str = "", problems: Sequence[Problem] = ()
    ) -> None:
        self.what = what
        self.where = where
        self.remedy = remedy
        self.problems = tuple(problems)
        super().__init__(self.render())

    def render(self) -> str:
        """The whole message as the command line prints it."""
        lines = [str(Problem(self.what, where=self.where, remedy=self.remedy))]
        lines += [f"  {line}" for problem in self.problems for line in str(problem).split("\n")]
        return "\n".join(lines)


class ConfigError(RlaifError):
    """A recipe, a setting or a command line that cannot be right."""


class ConstitutionError(RlaifError):
    """A principle file that cannot be used."""


class DataError(RlaifError):
    """Prompts, completions or pairs that cannot be read."""


class ModelError(RlaifError):
    """A model, tokenizer or server that cannot be loaded or cannot do what is asked."""


class JudgingError(RlaifError):
    """Too many verdicts are invalid for the labels to be trusted."""


class RunError(RlaifError):
    """A run folder or journal that cannot be read, written or continued."""


class RankError(RlaifError):
    """One of several processes that do a run together has ended, or does not agree with the others."""


def first_problems(problems: Sequence[Problem], count: int) -> list[Problem]:
    """The first 50 of `count` problems, and a line that says how many more there are."""
    listed = list(problems[:PROBLEMS_LISTED])
    rest = count - len(listed)
    return [*listed, Problem(f"… and {rest} more")] if rest else listed


def interruption(error: BaseException | None) -> KeyboardInterrupt | None:
    """The Ctrl-C or signal that `error` is, or that `error` came out of.

    An interruption may arrive at any instruction, also while a block is being left; what is left half done
    then may raise an error of its own, which is no fault of the run.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None
