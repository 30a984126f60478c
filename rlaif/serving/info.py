"""What the server can do, told to its page: `GET /v1/info`. Each part of the server adds its own field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from rlaif.serving.answers import InfoAnswer

__all__ = ["Info", "add_info"]

FIELDS = ("models", "collect", "moderation", "directives")
"""What the page asks for; null until a part of the server says something."""


class Info:
    """The fields of `GET /v1/info`, each made anew for every answer."""

    def __init__(self) -> None:
        self._fields: dict[str, Callable[[], Any]] = {name: lambda: None for name in FIELDS}

    def add(self, name: str, tell: Callable[[], Any]) -> None:
        """Add a field, in the place of the one that has the name.

        Args:
            tell: Gives its value, as JSON has it; called by the event loop, so it must not take long.
        """
        self._fields[name] = tell

    def told(self) -> dict[str, Any]:
        """All fields with their values."""
        return {name: tell() for name, tell in self._fields.items()}


def add_info(app: FastAPI, info: Info) -> None:
    """Answer `GET /v1/info` with `info`."""

    @app.get("/v1/info", responses={200: {"model": InfoAnswer}})
    async def told() -> Any:
        return info.told()
