"""Several processes that do one run together, as `accelerate launch` and `torchrun` start them: *ranks*.

    accelerate launch --num_processes 4 -m rlaif run recipes/compare.yaml

Every rank holds a whole copy of the base, which never moves, and does the same things in the same order.
What takes long is divided by its global number (rows to sample, batches to read, rows of a minibatch) and put
together again, so every rank knows every result; what is not divided is done by all of them alike. The
gradients of an adapter are added up over ranks in float32 before the step that all of them take. The first
rank alone writes the run folder.

A process that nobody started so is the one rank of one, for which nothing here does anything. To *join* is
for the command line, or for a script that was started so: never at import, since TRL's trainers may have
ranks of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from rlaif.errors import RankError, RlaifError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LAUNCHER", "Ranks", "current", "in_shares", "join", "started_as_one_of_several"]

T = TypeVar("T")
R = TypeVar("R")

PATIENCE = timedelta(days=30)
"""The others may wait so long for one that asks a server. A rank that ends is noticed at once."""
FAILED = "rlaif/failed"
LAUNCHER = "RLAIF_LAUNCHER"
"""Set where `--processes` started the ranks: it says itself which was killed, and by what."""


class Ranks:
    """This process among those that do the run.

    Attributes:
        index: Its number, from 0.
        count: How many there are.
    """

    def __init__(self, index: int = 0, count: int = 1, store: Any = None) -> None:
        self.index = index
        self.count = count
        self._store = store

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.index == 0

    def share(self, count: int) -> range:
        """Of `count` things in order, those of this rank: neighbours, as many as the others have, or one
        more."""
        return range(count * self.index // self.count, count * (self.index + 1) // self.count)

    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks; the same bits on each."""
        if self.count == 1:
            return x
        from torch import distributed

        total = x.detach().clone().contiguous()
        self._all(lambda: distributed.all_reduce(total))
        return total

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order."""
        if self.count == 1:
            return [value]
        from torch import distributed

        found: list[Any] = [None] * self.count
        self._all(lambda: distributed.all_gather_object(found, value))
        return found

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first rank. It is called there only, and what it raises there of ours is
        raised on all."""
        if self.count == 1:
            return make()
        from torch import distributed

        box: list[Any] = [None, None]
        if self.first:
            try:
                box[0] = make()
            except RlaifError as error:
                box[1] = error
        self._all(lambda: distributed.broadcast_object_list(box, src=0))
        if box[1] is not None:
            raise box[1]
        value: T = box[0]
        return value

    def rows(self, x: Tensor) -> Tensor:
        """The rows (b, …) of all ranks, in their order: (B, …)."""
        if self.count == 1:
            return x
        import torch

        return torch.cat([part.to(x.device) for part in self.gather(x.cpu())])

    def spread(self, items: Sequence[T], do: Callable[[T], R]) -> Iterator[R]:
        """What `do` returns for each of `items`, in their order; each is done by one rank."""
        for start in range(0, len(items), self.count):
            at = start + self.index
            mine = do(items[at]) if at < len(items) else None
            yield from self.gather(mine)[: len(items) - start]  # type: ignore[misc]  # None past the end only

    def add_up(self, weights: Sequence[Tensor]) -> None:
        """Add the gradients of `weights` up over ranks, in float32: a rank without one adds nothing."""
        if self.count == 1 or not weights:
            return
        import torch
        from torch import distributed

        flat = torch.cat([_gradient(weight).float().flatten() for weight in weights])
        self._all(lambda: distributed.all_reduce(flat))
        parts = torch.split(flat, [weight.numel() for weight in weights])
        for weight, part in zip(weights, parts, strict=True):
            weight.grad = part.view_as(weight).to(weight.dtype)

    def check_same(self, value: Callable[[], str], *, what: str) -> None:
        """Refuse to go on where the ranks do not agree on `value`, which one alone does not form.

        Raises:
            RankError: They do not.
        """
        if self.count == 1:
            return
        values = self.gather(value())
        if len(set(values)) > 1:
            other = next(rank for rank, each in enumerate(values) if each != values[0])
            raise RankError(
                f"ranks 0 and {other} of {self.count} do not hold the same {what}",
                remedy="use machines and libraries of one kind for all ranks; else report this as a bug",
            )

    def to_tell(self, status: int) -> tuple[bool, int]:
        """Whether this rank is the first to end otherwise than well, and so the one to say why; and the exit
        status of the one that is."""
        if self._store is None:
            return True, status
        said = f"{self.index} {status}"
        found = self._store.compare_set(FAILED, "", said).decode()
        return found == said, int(found.split()[1])

    def leave(self) -> None:
        """End what connects the ranks: those that wait for this one are told."""
        if self.count > 1:
            from torch import distributed

            if distributed.is_initialized():
                distributed.destroy_process_group()

    def _all(self, collective: Callable[[], Any]) -> None:
        """Do what all ranks do together.

        Raises:
            RankError: One of them has ended.
        """
        try:
            collective()
        except RuntimeError as error:
            raise self._lost() from error

    def _lost(self) -> RankError:
        if self._store.check([FAILED]):  # said before it ended
            rank = self._store.get(FAILED).decode().split()[0]
            return RankError(f"rank {rank} of {self.count} ended with an error")
        return RankError(
            f"one of the {self.count} ranks ended without a word: it was killed, or ran out of memory",
            remedy="run the same command again: it goes on where it stopped",
        )


_current = Ranks()


def current() -> Ranks:
    """The ranks that this process joined; one of one before it has."""
    return _current


def started_as_one_of_several() -> bool:
    """Whether a launcher started this process as one of several."""
    count = os.environ.get("WORLD_SIZE", "1")
    return "RANK" in os.environ and count.isdecimal() and int(count) > 1


def join() -> Ranks:
    """Join the other ranks, where a launcher started this process as one of several.

    Tensors in memory travel by gloo, those on a GPU by NCCL; the process gets the GPU of its local number.
    """
    global _current
    if _current.count > 1 or not started_as_one_of_several():
        return _current
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    backend = "gloo"
    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % gpus)
        shared = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > gpus  # NCCL wants a GPU for each
        backend = "cpu:gloo,cuda:gloo" if shared else "cpu:gloo,cuda:nccl"
    store, rank, count = next(iter(rendezvous("env://")))
    group = distributed.PrefixStore("rlaif/group", store)  # type: ignore[attr-defined]
    distributed.init_process_group(backend, store=group, rank=rank, world_size=count, timeout=PATIENCE)
    _current = Ranks(rank, count, store)
    return _current


def _gradient(weight: Tensor) -> Tensor:
    return weight.new_zeros(weight.shape) if weight.grad is None else weight.grad


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
