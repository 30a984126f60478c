"""The page of `rlaif collect labels` in a real browser: what is typed is what is on the disk, and what comes from
data is text."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from rlaif.collect.labels_file import LabelsFile, skipped_file
from rlaif.collect.pairs import in_order, read_pairs
from rlaif.collect.server import CollectServer
from rlaif.collect.session import Session

EVIL = "<script>document.title = 'run'</script></div><img src=x onerror=\"document.title='run'\"> \u202eevil &amp; \"quoted\""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "labels.jsonl"


@pytest.fixture
def url(tmp_path: Path, out: Path) -> Iterator[str]:
    path = tmp_path / "pairs.jsonl"
    lines = [
        {
            "prompt": [{"role": "user", "content": f"question {number} {EVIL}"}],
            "chosen": [
                {"role": "assistant", "content": f"good {number} {EVIL}" + " long" * 300 * (number == 0)}
            ],
            "rejected": [{"role": "assistant", "content": f"bad {number}"}],
            "p_chosen": 0.8,
            "reference": f"known answer {number} {EVIL}",
        }
        for number in range(6)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with LabelsFile(out) as file:
        session = Session(in_order(read_pairs(path).pairs, "random", seed=0), file, annotator="ada", seed=0)
        with CollectServer(session, port=0) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            yield server.url
            server.shutdown()
            thread.join()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1200, "height": 800})
    problems: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(url)
    expect(opened.locator("#count")).to_have_text("0 of 6 pairs done")
    yield opened
    assert problems == []
    assert all(each.startswith(("http://127.0.0.1:", "data:")) for each in asked)
    opened.close()


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def done(page: Page, count: int) -> None:
    expect(page.locator("#count")).to_have_text(f"{count} of 6 pairs done")


def test_keys_say_what_is_written_at_once(page: Page, out: Path) -> None:
    left = page.locator("#left").text_content()
    page.keyboard.press("1")
    done(page, 1)
    assert rows(out)[-1]["chosen"][0]["content"] == left
    right = page.locator("#right").text_content()
    page.keyboard.press("2")
    done(page, 2)
    assert rows(out)[-1]["chosen"][0]["content"] == right
    page.keyboard.press("0")
    done(page, 3)
    assert rows(out)[-1]["p_chosen"] == 0.5
    page.keyboard.press("s")
    done(page, 4)
    assert len(rows(out)) == 3
    assert len(rows(skipped_file(out))) == 1
    page.keyboard.press("u")
    done(page, 3)
    page.keyboard.press("u")
    done(page, 2)
    assert len(rows(out)) == 2


def test_a_reload_goes_on_and_the_end_tells_the_agreement(page: Page, out: Path) -> None:
    page.keyboard.press("1")
    done(page, 1)
    page.reload()
    done(page, 1)
    for count in range(2, 7):
        page.get_by_text("left is better (1)").click()
        done(page, count)
    expect(page.locator("#end")).to_be_visible()
    expect(page.locator("#summary")).to_contain_text("judge")
    assert len(rows(out)) == 6


def test_what_comes_from_data_is_text(page: Page) -> None:
    for _ in range(6):
        text = page.locator("#left").text_content() + page.locator("#right").text_content()  # type: ignore[operator]
        assert "<script>document.title" in text
        assert "&amp;" in text
        assert page.locator("#work script, #work img").count() == 0
        page.keyboard.press("s")
        page.wait_for_timeout(50)
    assert page.title() == "rlaif: which is better?"


def test_the_reference_is_folded_and_opens(page: Page) -> None:
    expect(page.locator("#known")).not_to_be_visible()
    page.get_by_text("reference and criteria").click()
    expect(page.locator("#known")).to_contain_text("known answer")
    assert page.locator("#known script, #known img").count() == 0


def test_a_phone_needs_no_scrolling_sideways_and_buttons_take_focus(page: Page, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 360
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") in ("BUTTON", "SUMMARY")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    page.screenshot(path=tmp_path / "phone.png")


def test_the_page_can_be_read_in_the_dark(browser: Browser, url: str) -> None:
    opened = browser.new_page(color_scheme="dark")
    opened.goto(url)
    expect(opened.locator("#count")).to_have_text("0 of 6 pairs done")
    colours = opened.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    light, dark = (sum(map(int, colour[4:-1].split(","))) for colour in colours)
    assert light > dark + 300
    opened.close()
