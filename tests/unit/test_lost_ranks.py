"""Ranks whose launcher is gone: what they say is an error of ours, not of the store that it kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from rlaif.errors import RankError
from rlaif.models.ranks import FAILED, ConnectedRanks

LAUNCHER = """
import sys
from torch.distributed import TCPStore

store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def launcher() -> Iterator[subprocess.Popen[str]]:
    """A process that keeps the store, as a launcher does."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", LAUNCHER], stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.kill()


def connected(launcher: subprocess.Popen[str], index: int = 1) -> ConnectedRanks:
    assert launcher.stdout is not None
    store = TCPStore(
        "127.0.0.1", int(launcher.stdout.readline()), is_master=False, timeout=timedelta(seconds=60)
    )
    return ConnectedRanks(index, 2, store)


def fail() -> None:
    raise RuntimeError("Connection closed by peer")


def test_while_it_lives_the_first_to_fail_speaks(launcher: subprocess.Popen[str]) -> None:
    ranks = connected(launcher)
    with pytest.raises(RankError, match=r"one of the 2 ranks ended without a word: .* memory\n"):
        ranks._all(fail)
    ranks._store.set(FAILED, "0 3")
    assert ranks.to_tell(1) == (False, 3)
    with pytest.raises(RankError, match="rank 0 of 2 ended with an error"):
        ranks._all(fail)


def test_once_it_is_gone_each_rank_speaks_for_itself(launcher: subprocess.Popen[str]) -> None:
    ranks = connected(launcher)
    launcher.kill()
    launcher.wait()
    with pytest.raises(RankError, match=r"without a word: .*; the program that started them has ended, too"):
        ranks._all(fail)
    assert ranks.to_tell(7) == (True, 7)
