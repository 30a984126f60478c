"""The page at `/`: a chat with the policies, in files that need nothing from elsewhere.

The files hold no secrets, so they are sent without a token; the page asks for one where the server does. What
models and people write becomes text on it, never markup; its policy forbids scripts and connections of any
other origin, and (Trusted Types) the calls that would make markup of text.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI
from fastapi.responses import Response

__all__ = ["PAGE_PATHS", "add_page"]

FILES = {
    "/": "index.html",
    "/page/page.css": "page.css",
    "/page/logo.svg": "logo.svg",
    "/page/words.json": "words.json",
    "/page/page.js": "page.js",
    "/page/acts.js": "acts.js",
    "/page/asking.js": "asking.js",
    "/page/chat.js": "chat.js",
    "/page/screen.js": "screen.js",
    "/page/server.js": "server.js",
    "/page/settings.js": "settings.js",
    "/page/view.js": "view.js",
    "/page/words.js": "words.js",
}
"""The file of every path; no other file can be asked for."""
PAGE_PATHS = tuple(FILES)

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
}
POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Answer the paths of the page."""
    for path, name in FILES.items():
        _add_file(app, path, name)


def _add_file(app: FastAPI, path: str, name: str) -> None:
    content = (files(__name__) / name).read_bytes()
    media_type = TYPES[name.rpartition(".")[2]]

    async def sent() -> Response:
        return Response(content, media_type=media_type, headers=HEADERS)

    app.add_api_route(path, sent, methods=["GET", "HEAD"], include_in_schema=False)
