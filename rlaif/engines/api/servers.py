"""Servers that share a load: how much each takes now, which one a request belongs to, and the order of
sending.

*How much*: additive increase, multiplicative decrease, as TCP finds its window. A 429 or 503 halves a
server's window; answers widen it again by one a window. *Which one*: requests with a common prefix belong to
one server, chosen by rendezvous hashing (Thaler and Ravishankar 1998), so that its prefix cache hits; a
server with nothing left of its own takes from the end of the longest queue.
*Order*: sorted by text, so that common prefixes are sent one after the other.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import asynccontextmanager
from math import ceil

from rlaif.digest import unit_from
from rlaif.engines.base import GenerationRequest, LabelRequest

__all__ = ["Server", "Window", "QueuedWork", "plan_work", "prefix_groups"]

SHARED = 0.5
"""Neighbours in the order belong together when they have this share of the shorter one in common."""
COOL_DOWN = 1.0
COOL_DOWN_MAX = 60.0
"""Seconds that a server is left alone after it could not be reached: doubled each time in a row, up to the
maximum."""
PAUSE_MAX = 60.0
"""Longest `Retry-After` that is heeded, in seconds."""


class Window:
    """How many requests a server may hold at once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(most)
        self.in_flight = 0
        self.paused_until = 0.0
        self._cut_at = 0.0
        self._waiters: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for room, hold it, give it back."""
        while self.in_flight >= int(self.limit) or self.paused():
            await self._wait()
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1
            self._wake()

    def paused(self) -> float:
        """Seconds for which the server asked to be left alone; 0 when it did not."""
        return max(0.0, self.paused_until - time.monotonic())

    def narrow(self, sent_at: float, retry_after: float) -> None:
        """The server is full: halve the window. Answers to what was sent before the last cut say nothing
        new."""
        now = time.monotonic()
        if retry_after > 0:
            self.paused_until = max(self.paused_until, now + min(retry_after, PAUSE_MAX))
        if sent_at >= self._cut_at:
            self.limit = max(1.0, self.limit / 2)
            self._cut_at = now

    def widen(self) -> None:
        """An answer came: widen the window by one a window's worth of answers."""
        self.limit = min(float(self.most), self.limit + 1.0 / self.limit)
        self._wake()

    async def _wait(self) -> None:
        pause = self.paused()
        if pause:
            await asyncio.sleep(pause)
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _wake(self) -> None:
        free = int(self.limit) - self.in_flight
        while free > 0 and self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                free -= 1


class Server:
    """One base URL and what is known of it."""

    def __init__(self, url: str, concurrency: int) -> None:
        self.url = url
        self.window = Window(concurrency)
        self.misses = 0
        self.down_until = 0.0

    def wait(self) -> float:
        """Seconds until it is worth asking again: 0 unless it failed, or asked to be left alone."""
        return max(0.0, self.down_until - time.monotonic(), self.window.paused())

    def answered(self) -> None:
        """It gave an answer."""
        self.misses = 0
        self.down_until = 0.0
        self.window.widen()

    def missed(self) -> None:
        """It could not be reached, or failed: leave it alone for a while, longer each time (what fails
        together counts once)."""
        if self.down_until > time.monotonic():
            return
        self.misses += 1
        self.down_until = time.monotonic() + min(COOL_DOWN_MAX, COOL_DOWN * 2.0 ** (self.misses - 1))


class QueuedWork:
    """Indices of requests, in one queue a server. A worker takes from its own server's queue, then from the
    longest other one."""

    def __init__(self, queues: Sequence[Sequence[int]]) -> None:
        self._queues = [deque(queue) for queue in queues]

    def take(self, home: int) -> int | None:
        """The next request for a worker of server `home`; `None` when all are taken."""
        if self._queues[home]:
            return self._queues[home].popleft()
        longest = max(self._queues, key=len)
        return longest.pop() if longest else None


def plan_work(
    requests: Sequence[GenerationRequest] | Sequence[LabelRequest], todo: Sequence[int], urls: Sequence[str]
) -> QueuedWork:
    """Sort the requests numbered `todo` by text and give each group with a common prefix to its server."""
    texts = {
        index: "\x1e".join(f"{each.role}\x1f{each.content}" for each in requests[index].messages)
        for index in todo
    }
    order = sorted(todo, key=lambda index: (texts[index], index))
    if len(urls) == 1:
        return QueuedWork([order])
    queues: list[list[int]] = [[] for _ in urls]
    for group in prefix_groups([texts[index] for index in order]):
        home = _home(texts[order[group[0]]], urls)
        queues[home] += [order[position] for position in group]
    return QueuedWork(queues)


def prefix_groups(texts: Sequence[str]) -> list[range]:
    """Runs of neighbours among sorted `texts` that share at least `SHARED` of the shorter one."""
    groups: list[range] = []
    for position, text in enumerate(texts):
        if groups:
            before = texts[position - 1]
            needed = ceil(SHARED * min(len(before), len(text)))
            if text[:needed] == before[:needed]:
                groups[-1] = range(groups[-1].start, position + 1)
                continue
        groups.append(range(position, position + 1))
    return groups


def _home(key: Hashable, urls: Sequence[str]) -> int:
    """Rendezvous hashing: the server that draws the highest number for this key; a server more or less moves
    only its own keys."""
    return max(range(len(urls)), key=lambda number: unit_from(urls[number], key))
