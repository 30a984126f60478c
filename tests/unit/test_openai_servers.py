"""Windows, the choice of server, and the order of sending."""

from __future__ import annotations

import asyncio
import time

import pytest

from rlaif.engines.api.servers import PAUSE_MAX, QueuedWork, Server, Window, plan_work, prefix_groups
from rlaif.engines.base import LabelRequest
from rlaif.types import Message

URLS = ["http://one/v1", "http://two/v1", "http://three/v1"]


def ask(text: str) -> LabelRequest:
    return LabelRequest((Message("user", text),), ("A", "B"))


def drain(work: QueuedWork, home: int) -> list[int]:
    taken = []
    while (index := work.take(home)) is not None:
        taken.append(index)
    return taken


def test_a_full_server_halves_its_window_once_for_what_was_sent_together() -> None:
    window = Window(16)
    sent = time.monotonic()
    for _ in range(5):
        window.narrow(sent, 0.0)
    assert window.limit == 8.0
    window.narrow(time.monotonic(), 0.0)
    assert window.limit == 4.0
    for _ in range(20):
        window.narrow(time.monotonic(), 0.0)
    assert window.limit == 1.0


def test_answers_widen_a_window_by_one_a_windows_worth() -> None:
    window = Window(16)
    window.limit = 4.0
    for _ in range(4):
        window.widen()
    assert 4.8 < window.limit < 5.0
    for _ in range(1000):
        window.widen()
    assert window.limit == 16.0


def test_a_pause_is_bounded() -> None:
    window = Window(1)
    window.narrow(time.monotonic(), 1e6)
    assert PAUSE_MAX - 1 < window.paused() <= PAUSE_MAX


def test_a_window_holds_no_more_than_its_limit_and_lets_all_through() -> None:
    window = Window(3)
    seen: list[int] = []

    async def one() -> None:
        async with window.slot():
            seen.append(window.in_flight)
            await asyncio.sleep(0)

    async def all_of_them() -> None:
        await asyncio.gather(*(one() for _ in range(20)))

    asyncio.run(all_of_them())
    asyncio.run(all_of_them())  # a second loop, as a second call of the engine has
    assert len(seen) == 40
    assert max(seen) == 3


def test_a_waiter_that_is_cancelled_leaves_no_trace() -> None:
    window = Window(1)

    async def hold() -> None:
        async with window.slot():
            pass

    async def scene() -> None:
        async with window.slot():
            waiting = asyncio.create_task(hold())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await hold()

    asyncio.run(scene())
    assert window.in_flight == 0


def test_a_server_that_fails_is_left_alone_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    server = Server(URLS[0], 4)
    assert server.wait() == 0.0
    waits = []
    for _ in range(9):
        server.missed()
        server.missed()
        waits.append(server.wait())
        now += server.wait()
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    server.missed()
    server.answered()
    assert server.wait() == 0.0


def test_one_server_gets_all_in_the_order_of_the_text() -> None:
    requests = [ask("b 2"), ask("a 1"), ask("b 1"), ask("a 2")]
    assert drain(plan_work(requests, [0, 1, 2, 3], URLS[:1]), 0) == [1, 3, 2, 0]
    assert drain(plan_work(requests, [3, 0], URLS[:1]), 0) == [3, 0]


def test_requests_with_a_common_prefix_go_to_one_server() -> None:
    requests = [
        ask(f"{letter * 60} question {number}") for number in range(6) for letter in "abcdefghijklmnopqrst"
    ]
    work = plan_work(requests, range(len(requests)), URLS)
    queues = [list(queue) for queue in work._queues]
    assert sorted(index for queue in queues for index in queue) == list(range(len(requests)))
    letters = [{requests[index].messages[0].content[0] for index in queue} for queue in queues]
    assert all(letters)
    assert sum(map(len, letters)) == 20


def test_a_server_less_moves_only_its_own_requests() -> None:
    requests = [ask(f"{letter * 60} question") for letter in "abcdefghijklmnopqrstuvwxyz"]
    before = plan_work(requests, range(26), URLS)._queues
    after = plan_work(requests, range(26), URLS[:2])._queues
    for number in range(2):
        assert set(before[number]) <= set(after[number])


def test_an_idle_server_takes_from_the_end_of_the_longest_queue() -> None:
    work = QueuedWork([[1, 2, 3], [], [4]])
    assert [work.take(1), work.take(1), work.take(0), work.take(2), work.take(2)] == [3, 2, 1, 4, None]


def test_neighbours_are_grouped_by_what_they_share() -> None:
    assert prefix_groups(["aaaa1", "aaaa2", "b", "cc", "cd"]) == [range(2), range(2, 3), range(3, 5)]
    assert prefix_groups([]) == []
