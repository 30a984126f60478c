"""The peak of a part of a run is that part's own, whether or not the process held more before."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from rlaif import process_memory
from rlaif.models.heap import give_back
from rlaif.process_memory import PeakWatch, peak_since_start, resident_now

MIB = 1 << 20


def hold(mebibytes: int) -> None:
    """Touch so much memory, long enough to be seen, and give it back (a block of this size is not kept by the
    heap)."""
    block = np.ones(mebibytes * MIB, dtype=np.uint8)
    time.sleep(4 * process_memory.EVERY)
    del block


def test_a_new_peak_and_one_below_an_earlier_one_are_both_found() -> None:
    give_back()  # what other tests freed must not come back, or be used again, in between
    before = resident_now()
    with PeakWatch() as large:
        hold(400)
    with PeakWatch() as small:
        hold(100)
    assert large.bytes - before >= 380 * MIB
    assert 80 * MIB <= small.bytes - before <= 300 * MIB
    assert peak_since_start() >= large.bytes


class Silenced:
    """A system that does not say."""

    def memory_info(self) -> None:
        raise psutil.AccessDenied


def test_where_the_resident_set_cannot_be_looked_at_the_peak_of_the_process_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process_memory, "PROCESS", Silenced())
    with PeakWatch() as watch:
        pass
    assert watch.bytes == peak_since_start() > 0


def test_on_windows_the_peak_is_that_of_the_working_set(monkeypatch: pytest.MonkeyPatch) -> None:
    class Windows:
        def memory_info(self) -> SimpleNamespace:
            return SimpleNamespace(rss=5 * MIB, peak_wset=7 * MIB)

    monkeypatch.setattr(process_memory, "PROCESS", Windows())
    monkeypatch.setattr(process_memory.sys, "platform", "win32")
    assert peak_since_start() == 7 * MIB
    with PeakWatch() as watch:
        pass
    assert watch.bytes == 5 * MIB
