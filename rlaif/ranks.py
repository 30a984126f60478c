"""Several processes that do one run together, as `accelerate launch` and `torchrun` start them: *ranks*.

    accelerate launch --num_processes 4 -m rlaif run recipes/quickstart.yaml

Every rank holds a whole copy of the base, which never moves, and does the same things in the same order.
What takes long is divided by its global number (rows to sample, batches to read, rows of a minibatch) and put
together again, so every rank knows every result; what is not divided is done by all of them alike. The
gradients of an adapter are added up over ranks in float32 before the step that all of them take. The first
rank alone writes the run folder.

Here is the one rank of one, for which all of this does nothing; `models.ranks` has those that talk to each
other. A process *joins* them when the command line says so, never at import: TRL's trainers may have ranks of
their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

__all__ = ["LAUNCHER", "Ranks", "current", "in_shares", "use"]

T = TypeVar("T")
R = TypeVar("R")

LAUNCHER = "RLAIF_LAUNCHER"
"""The number of the process whose `--processes` started the ranks: it says itself which was killed, and by
what."""


class Ranks:
    """This process among those that do the run.

    Attributes:
        index: Its number, from 0.
        count: How many there are.
    """

    def __init__(self, index: int = 0, count: int = 1) -> None:
        self.index = index
        self.count = count

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.index == 0

    def share(self, count: int) -> range:
        """Of `count` things in order, those of this rank: neighbours, as many as the others have, or one
        more."""
        return range(count * self.index // self.count, count * (self.index + 1) // self.count)

    def spread(self, items: Sequence[T], do: Callable[[T], R]) -> Iterator[R]:
        """What `do` returns for each of `items`, in their order; each is done by one rank."""
        for start in range(0, len(items), self.count):
            at = start + self.index
            mine = do(items[at]) if at < len(items) else None
            yield from self.gather(mine)[: len(items) - start]  # type: ignore[misc]  # None past the end only

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order."""
        return [value]

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first rank. It is called there only, and what it raises there of ours is
        raised on all."""
        return make()

    def sum(self, x: T) -> T:
        """The sum of a tensor over ranks; the same bits on each."""
        return x

    def add_up(self, weights: Sequence[Any]) -> None:
        """Add the gradients of `weights` up over ranks, in float32: a rank without one adds nothing."""

    def check_same(self, value: Callable[[], str], *, what: str) -> None:
        """Refuse to go on where the ranks do not agree on `value`, which one alone does not form.

        Raises:
            RankError: They do not.
        """

    def to_tell(self, status: int) -> tuple[bool, int]:
        """Whether this rank is the first to end otherwise than well, and so the one to say why; and the exit
        status of the one that is."""
        return True, status

    def leave(self) -> None:
        """End what connects the ranks: those that wait for this one are told."""


_current = [Ranks()]


def current() -> Ranks:
    """The ranks that this process joined; one of one before it has."""
    return _current[-1]


def use(ranks: Ranks) -> None:
    """Make `ranks` those of this process."""
    _current.append(ranks)


def in_shares(items: Iterable[T], ranks: Ranks) -> Iterator[list[T]]:
    """`items` in groups of as many as there are ranks; the last may be smaller."""
    group: list[T] = []
    for item in items:
        group.append(item)
        if len(group) == ranks.count:
            yield group
            group = []
    if group:
        yield group
