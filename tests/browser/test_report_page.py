"""`report.html` in a real browser, opened from the disk: texts are shown and not run, keys and links find rows, and it
can be read on a phone, in the dark, on paper and without JavaScript."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from reported import PROMPTS, write_run

from rlaif.pipeline.report import write_report


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(write_run(tmp_path_factory.mktemp("run") / "told")).as_uri()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    problems, asked = list[str](), list[str]()
    opened.on("console", lambda message: problems.append(message.text))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("dialog", lambda dialog: problems.append(dialog.message))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(address)
    expect(opened.locator("#position")).to_have_text(f"1 of {2 * PROMPTS}")
    yield opened
    assert problems == []
    assert all(each.startswith(("file:", "data:")) for each in asked)
    opened.close()


def at(page: Page, row: str) -> None:
    expect(page.locator("#row-title")).to_contain_text(row)


def box(page: Page, text: str) -> Any:
    return page.get_by_role("checkbox", name=text)


def colours(page: Page) -> list[int]:
    """The light of the text and of what is behind it."""
    found = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    return [sum(map(int, colour[colour.index("(") + 1 : -1].split(",")[:3])) for colour in found]


def test_what_comes_from_the_run_is_text(page: Page) -> None:
    for _ in range(2 * PROMPTS):
        said = page.locator("#row").text_content() or ""
        assert "<script>document.title = 'run'</script></script><!-- <img" in said
        assert r"\u202eevil\u2066" in said
        assert "&amp; &lt;b&gt;" in said
        assert "{{ 7 * 7 }}" in said
        page.keyboard.press("j")
    assert page.locator("#samples img, #samples b:not(.role b), #row script").count() == 0
    assert page.locator("script").count() == 2
    assert page.title().startswith("told <script")


def test_the_policy_forbids_what_a_hole_would_need(browser: Browser, address: str) -> None:
    """Were a text ever to become markup, neither its script nor its image nor its style would act."""
    opened = browser.new_page()
    opened.goto(address)
    blocked: list[str] = opened.evaluate(
        """async () => {
          const blocked = [];
          document.addEventListener("securitypolicyviolation", event => blocked.push(event.effectiveDirective));
          const hole = document.createElement("div");
          hole.innerHTML = "<img src='http://127.0.0.1:9/x'><b style='color: red'>x</b>";
          const script = document.createElement("script");
          script.textContent = "document.title = 'run'";
          document.body.append(hole, script);
          await new Promise(done => setTimeout(done, 100));
          return blocked.sort();
        }"""
    )
    assert {"img-src", "script-src-elem", "style-src-attr"} <= set(blocked)
    assert opened.title() != "run"
    opened.close()


def test_j_and_k_move_and_the_address_follows(page: Page, address: str) -> None:
    at(page, "evaluate/p0/0")
    page.keyboard.press("j")
    at(page, "evaluate/p1/0")
    assert page.url == f"{address}#row=evaluate%2Fp1%2F0"
    page.keyboard.press("k")
    at(page, "evaluate/p0/0")
    page.keyboard.press("k")
    expect(page.locator("#position")).to_have_text(f"1 of {2 * PROMPTS}")
    box(page, "keys j, k and /").uncheck()
    page.keyboard.press("j")
    at(page, "evaluate/p0/0")


def test_a_link_opens_its_row(page: Page, address: str) -> None:
    page.goto("about:blank")
    page.goto(f"{address}#row=label%2Fp1%2F0-1")
    at(page, "label/p1/0-1")
    expect(page.locator("#row")).to_be_in_viewport()
    page.goto(f"{address}#row=nowhere")
    expect(page.locator("#position")).to_have_text("the row of this link is not on the page")


def test_filters_and_search_leave_what_fits(page: Page) -> None:
    box(page, "flips between the orders").check()
    expect(page.locator("#position")).to_have_text("1 of 2")
    box(page, "labelled pairs").check()
    at(page, "label/p0/0-1")
    box(page, "labelled pairs").uncheck()
    box(page, "flips between the orders").uncheck()
    box(page, "reward up, gold down").check()
    at(page, "evaluate/p2/0")
    box(page, "reward up, gold down").uncheck()
    box(page, "a policy lost").check()
    at(page, "evaluate/p1/0")
    box(page, "a policy lost").uncheck()
    page.keyboard.press("/")
    page.keyboard.type('P3 </SCRIPT> "no such')
    expect(page.locator("#position")).to_have_text("no row matches")
    page.locator("#search").fill("ppo 3 <script>")
    expect(page.locator("#position")).to_have_text("1 of 1")
    at(page, "evaluate/p3/0")


def test_every_verdict_stands_in_both_orders(page: Page) -> None:
    lines = page.locator("#asked tbody tr").all_inner_texts()
    assert [line.split() for line in lines] == [
        ["kindflips", "ppo", "0.731", "0.269"],
        ["calm", "ppo", "0.668", "0.622"],
    ]
    page.keyboard.press("j")
    expect(page.locator("#asked")).to_contain_text("invalid: no label <b>")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_scrolling_sideways_in_light_and_dark(
    browser: Browser, address: str, scheme: Any
) -> None:
    opened = browser.new_page(viewport={"width": 360, "height": 640}, color_scheme=scheme)
    opened.goto(address)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    text, paper = colours(opened)
    assert (text < paper) == (scheme == "light")
    assert abs(text - paper) > 450
    drawn = opened.evaluate(
        "getComputedStyle(document.querySelector('figure svg [stroke*=series-0]')).stroke"
    )
    assert drawn == {"light": "rgb(0, 114, 178)", "dark": "rgb(88, 180, 240)"}[scheme]
    opened.close()


def test_the_keyboard_reaches_everything_and_shows_where_it_is(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        if page.evaluate("document.activeElement.id") == "search":
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert {"search", "next", "link", "keys", "SUMMARY", "INPUT"} <= reached


def test_a_screen_reader_is_told_what_the_pictures_and_tables_are(page: Page) -> None:
    told = page.locator("main").aria_snapshot()
    assert 'img "Training, step by step"' in told
    assert '- columnheader "principle"' in told
    assert '- rowheader "kind' in told
    assert "status" in told


def test_without_javascript_all_but_the_browser_is_there(browser: Browser, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(address)
    expect(opened.locator("noscript p")).to_be_visible()
    expect(opened.locator("figure svg").first).to_be_visible()
    expect(opened.locator("#browser")).not_to_be_visible()
    context.close()


def test_on_paper_there_is_black_on_white_and_no_controls(browser: Browser, address: str) -> None:
    opened = browser.new_page(color_scheme="dark")
    opened.goto(address)
    opened.emulate_media(media="print", color_scheme="dark")
    text, paper = colours(opened)
    assert (text, paper) == (0, 765)
    expect(opened.locator("#filters")).not_to_be_visible()
    expect(opened.locator("#row")).to_be_visible()
    assert len(opened.pdf()) > 20_000
    opened.close()
