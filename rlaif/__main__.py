"""`python -m rlaif`."""

from __future__ import annotations

from rlaif.cli.main import main

main()
