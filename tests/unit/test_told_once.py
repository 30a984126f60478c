"""Of several ranks, the one that ends first says why; the others end in silence with its status."""

from __future__ import annotations

import errno

import pytest

from rlaif.cli import main as program
from rlaif.errors import RunError
from rlaif.ranks import Ranks


class Recorded(Ranks):
    """A rank that notes the status it claims; another may have claimed before it."""

    def __init__(self, before: int | None) -> None:
        super().__init__(1, 2)
        self.before = before
        self.claimed: list[int] = []

    def to_tell(self, status: int) -> tuple[bool, int]:
        self.claimed.append(status)
        return (True, status) if self.before is None else (False, self.before)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [FULL, RunError("no journal")], ids=["disk full", "ours"])
@pytest.mark.parametrize("before", [None, 7], ids=["first", "after another"])
def test_an_error_is_told_by_the_first_rank_that_ends(
    error: Exception, before: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rank = Recorded(before)

    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(program, "current", lambda: rank)
    monkeypatch.setattr(program.cli, "main", fail)
    with pytest.raises(SystemExit) as ended:
        program.main([])
    assert rank.claimed == [1]
    assert ended.value.code == (before or 1)
    assert ("error:" in capsys.readouterr().err) == (before is None)
