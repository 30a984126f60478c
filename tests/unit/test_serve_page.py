"""The page of `rlaif serve`: what is sent and with which headers, that its files ask for nothing else, make no
markup of texts, and have their words in both languages; and the fields of `/v1/info`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

import rlaif.serving.page as page
from rlaif.serving.guard import Guard, GuardSettings
from rlaif.serving.info import Info, add_info
from rlaif.serving.metrics import Metrics

FOLDER = Path(page.__file__).parent
SCRIPTS = sorted(FOLDER.glob("*.js"))
WORDS: dict[str, dict[str, str]] = json.loads((FOLDER / "words.json").read_text("utf-8"))
DERIVED = {"left_better", "right_better"}
"""Keys that are put together."""


def client(*, token: str = "", info: Info | None = None) -> TestClient:
    app = FastAPI(openapi_url=None)
    add_info(app, info or Info())
    page.add_page(app)
    guarded = Guard(app, GuardSettings(token=token), Metrics(), lambda line: None)
    return TestClient(guarded, base_url="http://127.0.0.1:8000")


class Read(HTMLParser):
    """The elements of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed((FOLDER / "index.html").read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def values(self, *names: str) -> list[str]:
        return [str(attrs[name]) for _, attrs in self.tags for name in names if name in attrs]


@pytest.mark.parametrize("path", page.PAGE_PATHS)
@pytest.mark.parametrize("token", ["", "secret"])
def test_every_file_is_sent_with_its_headers_and_without_a_token(path: str, token: str) -> None:
    with client(token=token) as api:
        answer, head = api.get(path), api.head(path)
        assert answer.status_code == head.status_code == 200
        assert answer.content == (FOLDER / page.FILES[path]).read_bytes()
        assert head.content == b""
        policy = answer.headers["Content-Security-Policy"].split("; ")
        assert {"default-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"} <= set(policy)
        assert "unsafe" not in str(policy)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Content-Type"] == page.TYPES[page.FILES[path].rpartition(".")[2]]
        assert api.post(path).status_code == 405


@pytest.mark.parametrize("path", ["/page", "/page/", "/page/__init__.py", "/page/index.html", "/index.html"])
def test_nothing_else_is_sent(path: str) -> None:
    with client() as api:
        assert api.get(path).status_code == 404


def test_the_page_is_for_names_of_this_machine_only_unless_there_is_a_token() -> None:
    with client() as api:
        assert api.get("/", headers={"Host": "evil.example"}).status_code == 400
    with client(token="secret") as api:
        assert api.get("/", headers={"Host": "other.example"}).status_code == 200


def test_all_that_the_page_asks_for_is_there_and_its_own() -> None:
    asked = {value.partition("#")[0] for value in Read().values("src", "href") if not value.startswith("#")}
    asked |= {f"page/{name}" for name in re.findall(r'from "\./(.+?)"', text_of(*SCRIPTS))}
    asked.add("page/words.json")
    assert {f"/{path}" for path in asked} | {"/"} == set(page.PAGE_PATHS)
    sources = text_of(*SCRIPTS, FOLDER / "index.html", FOLDER / "page.css")
    addresses = set(re.findall(r"\w+://[^\s\"')]+", sources))
    assert addresses == {"http://www.w3.org/2000/svg"}, "the name of a kind of element, and no address else"


def test_every_icon_is_drawn() -> None:
    drawn = {value.removeprefix("icon-") for value in Read().values("id") if value.startswith("icon-")}
    used = set(re.findall(r'icon\("(\w+)"\)|tool\("(\w+)"', text_of(*SCRIPTS)))
    found = {one or other for one, other in used}
    found |= {value.removeprefix("#icon-") for value in Read().values("href") if value.startswith("#icon-")}
    assert found == drawn


def test_no_script_or_style_stands_in_the_page() -> None:
    read = Read()
    scripts = [attrs for tag, attrs in read.tags if tag == "script"]
    assert [attrs.get("src") for attrs in scripts] == ["page/page.js"]
    assert [tag for tag, attrs in read.tags if tag == "style" or "style" in attrs] == []
    assert [name for _, attrs in read.tags for name in attrs if name.startswith("on")] == []


def test_no_script_makes_markup_of_a_text() -> None:
    makers = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment"
    runners = r"\beval\b|new Function|javascript:|srcdoc|setHTML"
    assert re.findall(f"{makers}|{runners}", text_of(*SCRIPTS)) == []
    assert re.findall(r"createElement\((?!name\))", text_of(*SCRIPTS)) == [], "names of elements are ours"


def text_of(*paths: Path) -> str:
    return "\n".join(path.read_text("utf-8") for path in paths)


# Words ------------------------------------------------------------------------------------------------------


def wanted() -> Iterator[str]:
    """Keys that the page asks for."""
    scripts = text_of(*SCRIPTS)
    yield from Read().values("data-text", "data-label", "data-title", "data-hint")
    yield from re.findall(r'\bword\("(\w+)"', scripts)
    yield from re.findall(r'\bkey: "(\w+)"', scripts)
    yield from re.findall(r'new (?:server\.)?Problem\("(\w+)"', scripts)
    for table in re.findall(r"const (?:CODES|STATUSES|NARROW) = \{(.+?)\}", scripts):
        yield from re.findall(r'"(\w+)"', table)


def test_both_languages_have_the_same_words() -> None:
    assert set(WORDS) == {"en", "zh"}
    assert list(WORDS["en"]) == list(WORDS["zh"])
    for key, text in WORDS["en"].items():
        other = WORDS["zh"][key]
        assert text.strip(), key
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", other)), key
        assert re.search(r"[\u4e00-\u9fff]", other) or key in ("language", "language_hint", "answered"), key


def test_every_word_is_there_and_used() -> None:
    keys = set(WORDS["en"])
    assert set(wanted()) - keys == set()
    literals = set(re.findall(r'"(\w+)"', text_of(*SCRIPTS))) | set(wanted()) | DERIVED
    assert keys - literals == set()


# Info -------------------------------------------------------------------------------------------------------


def test_a_part_that_is_not_there_is_null_and_one_that_is_says_what_it_likes() -> None:
    info = Info()
    assert info.told() == {"models": None, "collect": None, "moderation": None, "directives": None}
    digests = iter(["a", "b"])
    info.add("models", lambda: ["base"])
    info.add("directives", lambda: {"digest": next(digests), "ids": []})
    info.add("upstream", lambda: "http://127.0.0.1:1")
    with client(info=info) as api:
        first, second = (api.get("/v1/info").json() for _ in range(2))
    assert (first["models"], first["collect"]) == (["base"], None)
    assert [each["directives"]["digest"] for each in (first, second)] == ["a", "b"], "asked anew each time"
    assert list(first)[-1] == "upstream"


def test_info_needs_the_token() -> None:
    with client(token="secret") as api:
        assert api.get("/v1/info").status_code == 401
        told: Any = api.get("/v1/info", headers={"Authorization": "Bearer secret"})
        assert told.status_code == 200
