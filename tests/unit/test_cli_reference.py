"""The command-line page of the docs is the program's own help."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_the_real_help() -> None:
    """In a process of its own: click remembers the help option of a command that another test has called in
    another way."""
    command = [sys.executable, str(ROOT / "scripts" / "cli_reference.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    printed = subprocess.run(
        command, env=environment, capture_output=True, encoding="utf-8", check=True, timeout=60
    ).stdout
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert page == printed, "run: python scripts/cli_reference.py > docs/reference/cli.md"
    assert page.count("Examples:") > 10


def test_no_default_is_written_as_python_writes_a_tuple() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert "[default: builtin]" in " ".join(page.split())
    assert "[default: (" not in page
