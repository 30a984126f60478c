"""rlaif: align language models with AI feedback in place of human labels (Constitutional AI, RLAIF)."""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__"]
