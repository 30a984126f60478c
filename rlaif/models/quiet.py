"""Loading without noise: transformers' log lines and progress bars are off inside a `with quiet():` block,
and restored after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging as transformers_logging

__all__ = ["quiet"]

logging: Any = transformers_logging


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back everything below an error, and every progress bar, of transformers."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
