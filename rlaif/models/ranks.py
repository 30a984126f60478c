"""Ranks that talk to each other through `torch.distributed`; see `rlaif.ranks`."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous

from rlaif.errors import RankError, RlaifError
from rlaif.ranks import Ranks, current, use

__all__ = ["ConnectedRanks", "InParts", "join"]

T = TypeVar("T")

PATIENCE = timedelta(days=30)
"""The others may wait so long for one that asks a server. A rank that ends is noticed at once."""
FAILED = "rlaif/failed"
"""Where the first rank that ends otherwise than well leaves its number and its exit status."""


class InParts(Protocol):
    """A model of which each rank holds a part, so that a pass of one needs them all."""

    def settle(self) -> None:
        """End what this rank began and will not end: a pass with gradient without its backward pass."""

    def take_part(self, *, with_gradient: bool) -> None:
        """Do for a pass of the other ranks what they need of this one."""


class ConnectedRanks(Ranks):
    """Several, connected by the default process group.

    Where models are held in parts, the ranks agree before each pass of one and before each collective of
    theirs on what is next: a number, the largest that one of them wants. 0 is a collective, which so takes
    place when no rank wants a pass; model k has two numbers, of passes without and with gradient. Those that
    want the agreed pass make it, the others take part in it and ask again.

    Args:
        store: What the launcher connects them by.
    """

    def __init__(self, index: int, count: int, store: Any) -> None:
        super().__init__(index, count)
        self._store = store
        self._in_parts: list[weakref.ref[InParts]] = []

    def add_in_parts(self, model: InParts) -> int:
        """Count in a model that all ranks have put in parts; its number."""
        self._in_parts.append(weakref.ref(model))
        return len(self._in_parts) - 1

    def before_pass(self, number: int, *, with_gradient: bool) -> None:
        """Wait until all ranks are ready for this rank's pass of a model in parts. Its backward pass must
        follow before anything else that needs the ranks.

        Raises:
            RankError: One of them has ended.
        """
        self._until(1 + 2 * number + with_gradient)

    def gather(self, value: T) -> list[T]:
        """See `Ranks`."""
        found: list[Any] = [None] * self.count
        self._all(lambda: distributed.all_gather_object(found, value))
        return found

    def from_first(self, make: Callable[[], T]) -> T:
        """See `Ranks`."""
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

    def from_first_into(self, x: Tensor) -> None:
        """Give a tensor the values that the first rank's has."""
        sent = x.view(torch.uint8) if x.dtype == torch.bool else x  # gloo knows no bool
        self._all(lambda: distributed.broadcast(sent, src=0))

    def sum(self, x: Any) -> Any:
        """See `Ranks`."""
        total = x.detach().clone().contiguous()
        self._all(lambda: distributed.all_reduce(total))
        return total

    def add_up(self, weights: Sequence[Tensor]) -> None:
        """See `Ranks`."""
        if not weights:
            return
        has = torch.tensor([float(weight.grad is not None) for weight in weights], device=weights[0].device)
        flat = self.sum(torch.cat([has, *(_gradient(weight).float().flatten() for weight in weights)]))
        some, *parts = torch.split(flat, [len(weights), *(weight.numel() for weight in weights)])
        for weight, part, given in zip(weights, parts, some.tolist(), strict=True):
            if given:  # what no rank has a gradient of stays as it is, as it would with one
                weight.grad = part.view_as(weight).to(weight.dtype)

    def check_same(self, value: Callable[[], str], *, what: str) -> None:
        """See `Ranks`."""
        values = self.gather(value())
        if len(set(values)) > 1:
            other = next(rank for rank, each in enumerate(values) if each != values[0])
            raise RankError(
                f"ranks 0 and {other} of {self.count} do not hold the same {what}",
                remedy="use machines and libraries of one kind for all ranks; else report this as a bug",
            )

    def to_tell(self, status: int) -> tuple[bool, int]:
        """See `Ranks`. Each rank is the first where the launcher is gone, by which they would agree."""
        said = f"{self.index} {status}"
        try:
            found = self._store.compare_set(FAILED, "", said).decode()
        except RuntimeError:
            return True, status
        return found == said, int(found.split()[1])

    def leave(self) -> None:
        """See `Ranks`."""
        if distributed.is_initialized():
            distributed.destroy_process_group()

    def guarded(self, collective: Callable[[], T]) -> T:
        """Do what needs the other ranks.

        Raises:
            RankError: One of them has ended.
        """
        try:
            return collective()
        except RuntimeError as error:
            raise self._lost() from error

    def _all(self, collective: Callable[[], Any]) -> None:
        """Do what all ranks do together, once none of them wants a pass of a model in parts."""
        if self._in_parts:
            self._until(0)
        self.guarded(collective)

    def _until(self, wanted: int) -> None:
        """Take part in what is agreed on, until that is what this rank wants."""
        models = [model() for model in self._in_parts]
        for model in models:
            if model is not None:
                model.settle()
        while (agreed := self._agree(wanted)) != wanted:
            number, with_gradient = divmod(agreed - 1, 2)
            model = models[number]
            assert model is not None, "all ranks keep a model as long"
            model.take_part(with_gradient=bool(with_gradient))

    def _agree(self, wanted: int) -> int:
        largest = torch.tensor(wanted)
        self.guarded(lambda: distributed.all_reduce(largest, distributed.ReduceOp.MAX))
        return int(largest)

    def _lost(self) -> RankError:
        why = ""
        try:
            if self._store.check([FAILED]):  # said before it ended
                rank = self._store.get(FAILED).decode().split()[0]
                return RankError(f"rank {rank} of {self.count} ended with an error")
        except RuntimeError:
            why = "; the program that started them has ended, too"
        return RankError(
            f"one of the {self.count} ranks ended without a word: it was killed, or ran out of memory{why}",
            remedy="run the same command again: it goes on where it stopped",
        )


def join() -> Ranks:
    """Join the other ranks, where a launcher started this process as one of several.

    Tensors in memory travel by gloo, those on a GPU by NCCL, or by gloo where ranks share a GPU; the process
    gets the GPU of its local number.
    """
    if current().count > 1 or not _one_of_several():
        return current()
    backend = "gloo"
    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % gpus)
        shared = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > gpus  # NCCL wants a GPU for each
        backend = "cpu:gloo,cuda:gloo" if shared else "cpu:gloo,cuda:nccl"
    store, rank, count = next(iter(rendezvous("env://")))
    group = distributed.PrefixStore("rlaif/group", store)  # type: ignore[attr-defined]
    distributed.init_process_group(backend, store=group, rank=rank, world_size=count, timeout=PATIENCE)
    use(ConnectedRanks(rank, count, store))
    return current()


def _one_of_several() -> bool:
    count = os.environ.get("WORLD_SIZE", "1")
    return "RANK" in os.environ and count.isdecimal() and int(count) > 1


def _gradient(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad
