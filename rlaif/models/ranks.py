"""Ranks that talk to each other through `torch.distributed`; see `rlaif.ranks`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous

from rlaif.errors import RankError, RlaifError
from rlaif.ranks import Ranks, current, use

__all__ = ["ConnectedRanks", "join"]

T = TypeVar("T")

PATIENCE = timedelta(days=30)
"""The others may wait so long for one that asks a server. A rank that ends is noticed at once."""
FAILED = "rlaif/failed"
"""Where the first rank that ends otherwise than well leaves its number and its exit status."""


class ConnectedRanks(Ranks):
    """Several, connected by the default process group.

    Args:
        store: What the launcher connects them by.
    """

    def __init__(self, index: int, count: int, store: Any) -> None:
        super().__init__(index, count)
        self._store = store

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
