"""A group that is called without a command prints its help once, and calls nothing an error."""

from __future__ import annotations

import pytest

from rlaif.cli.main import main


@pytest.mark.parametrize("group", ["constitution", "models", "prompts", "recipe", "runs"])
def test_a_group_without_a_command_prints_its_help_once(
    group: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([group])
    told = capsys.readouterr().err
    assert end.value.code == 2
    assert told.startswith(f"Usage: rlaif {group} ")
    assert told.count("Usage:") == 1
    assert "Commands:" in told
    assert "Error" not in told
