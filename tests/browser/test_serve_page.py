"""The page of `rlaif serve` in a real browser: what is typed, streamed, stopped, voted and blocked; on a server that
has every part (a stand-in), on one that has none, and on the real one with a small model."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect
from stand_in import CODE, CONSENT, EVIL, StandIn
from tiny import save_tiny

from rlaif.serving.residents import open_residents
from rlaif.serving.server import ModelServer, ServerSettings

PATIENCE = 20.0
REFUSED = "Failed to load resource"
"""What Chromium itself writes of a status that is not 200."""
Opener = Callable[..., Page]


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with StandIn().running() as running:
        yield running


@pytest.fixture
def open_page(browser: Browser, stand_in: StandIn) -> Iterator[Opener]:
    """Opens the stand-in's page; at the end nothing was wrong on it, and nobody else was asked."""
    contexts: list[BrowserContext] = []
    problems, asked = list[str](), list[str]()

    def opened(**options: Any) -> Page:
        context = browser.new_context(
            **{"locale": "en-GB", "viewport": {"width": 1200, "height": 800}} | options
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: problems.append(said.text) if REFUSED not in said.text else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(stand_in.url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []
    assert [each for each in asked if not each.startswith(stand_in.url)] == []


@pytest.fixture
def page(open_page: Opener) -> Page:
    opened = open_page()
    expect(opened.locator("#welcome")).to_be_visible()
    return opened


def ask(page: Page, question: str, *, wait: bool = True) -> Locator:
    """Type a question and wait for its answer; returns the exchange."""
    count = page.locator(".exchange").count()
    page.locator("#question").fill(question)
    page.keyboard.press("Enter")
    if wait:
        expect(page.locator("#send")).to_be_visible()
        expect(page.locator(".exchange")).to_have_count(count + 1)
    return page.locator(".exchange").last


def messages(stand_in: StandIn) -> list[tuple[str, str]]:
    return [(each["role"], each["content"]) for each in stand_in.asked[-1]["messages"]]


def button(place: Page | Locator, name: str) -> Locator:
    return place.get_by_role("button", name=name)


# Questions and streams --------------------------------------------------------------------------------------


def test_enter_sends_and_the_conversation_goes_along(page: Page, stand_in: StandIn) -> None:
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(page.locator(".text")).to_have_text("ppo says: one\ntwo")
    expect(page.locator("#question")).to_have_value("")
    expect(page.locator("#question")).to_be_focused()
    ask(page, "three")
    assert messages(stand_in) == [
        ("user", "one\ntwo"),
        ("assistant", "ppo says: one\ntwo"),
        ("user", "three"),
    ]
    asked = stand_in.asked[-1]
    assert (asked["model"], asked["stream"], asked["temperature"]) == ("ppo", True, 1)
    assert "store" not in asked
    assert "max_tokens" not in asked


def test_an_empty_question_is_not_sent_nor_one_that_an_input_method_is_writing(
    page: Page, stand_in: StandIn
) -> None:
    expect(page.locator("#send")).to_be_disabled()
    page.keyboard.press("Enter")
    page.keyboard.type("  ")
    page.keyboard.press("Enter")
    page.locator("#question").fill("hai")
    for init in ("isComposing: true", "keyCode: 229"):
        page.evaluate(
            "document.getElementById('question').dispatchEvent("
            f"new KeyboardEvent('keydown', {{key: 'Enter', bubbles: true, {init}}}))"
        )
    expect(page.locator("#question")).to_have_value("hai")
    assert stand_in.asked == []


def test_the_examples_are_put_into_the_question(page: Page, stand_in: StandIn) -> None:
    page.get_by_text("Why is the sea salty?").click()
    expect(page.locator("#question")).to_have_value("Why is the sea salty?")
    assert stand_in.asked == []
    page.locator("#send").click()
    expect(page.locator(".text")).to_have_text("ppo says: Why is the sea salty?")
    expect(page.locator("#welcome")).not_to_be_visible()


@pytest.mark.parametrize("way", ["Escape", "button"])
def test_an_answer_grows_while_it_comes_and_can_be_stopped(page: Page, stand_in: StandIn, way: str) -> None:
    exchange = ask(page, "slow", wait=False)
    expect(exchange.locator(".text")).to_contain_text("word-1 ")
    early = len(exchange.locator(".text").inner_text())
    expect(exchange.locator(".text")).to_contain_text("word-9 ")
    assert len(exchange.locator(".text").inner_text()) > early
    expect(exchange.locator(".answer")).to_have_attribute("aria-busy", "true")
    if way == "Escape":
        page.keyboard.press("Escape")
    else:
        page.locator("#stop").click()
    expect(exchange).to_contain_text("You stopped this answer.")
    expect(exchange.locator(".answer")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#question")).to_be_focused()
    assert stand_in.gone.wait(PATIENCE), "the server learnt of it"
    said = exchange.locator(".text").inner_text()
    ask(page, "go on")
    assert messages(stand_in)[1][1].strip() == said


def test_while_an_answer_comes_what_is_typed_stays(page: Page, stand_in: StandIn) -> None:
    ask(page, "slow", wait=False)
    expect(page.locator(".text")).to_contain_text("word-1 ")
    page.keyboard.type("next")
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_have_value("next")
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    expect(page.locator(".exchange").last.locator(".text")).to_have_text("ppo says: next")
    assert len(stand_in.asked) == 2


def test_code_and_paragraphs_are_told_apart(page: Page) -> None:
    exchange = ask(page, "code")
    assert exchange.locator(".text > *").evaluate_all("all => all.map(each => each.tagName)") == [
        "P",
        "FIGURE",
        "P",
    ]
    assert exchange.locator("pre").text_content() == "print('<b>sea</b>')\n\nx = 1"
    expect(exchange.locator("figcaption")).to_have_text("python")


def test_an_answer_is_copied_as_it_was_written(page: Page) -> None:
    exchange = ask(page, "code")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button(exchange, "Copy").click()
    expect(page.locator("#toast")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == CODE
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')); }")
    button(exchange, "Copy").click()
    expect(page.locator("#toast")).to_contain_text("does not let this page copy")


def test_where_the_browser_has_no_clipboard_there_is_no_copy(open_page: Opener, stand_in: StandIn) -> None:
    """As over plain HTTP from another machine."""
    page = open_page()
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.reload()
    exchange = ask(page, "hello")
    expect(button(exchange, "Ask again")).to_be_visible()
    expect(button(exchange, "Copy")).to_have_count(0)


def test_the_policy_is_chosen(page: Page, stand_in: StandIn) -> None:
    page.locator("#first").select_option("base")
    expect(ask(page, "hello").locator(".text")).to_have_text("base says: hello")
    page.reload()
    expect(page.locator("#first")).to_have_value("base")


def test_a_cut_answer_says_so_and_an_answer_can_be_asked_for_again(page: Page, stand_in: StandIn) -> None:
    exchange = ask(page, "cut")
    expect(exchange).to_contain_text("reached the greatest number of tokens")
    expect(exchange).to_contain_text("12 tokens")
    button(exchange, "Ask again").click()
    expect(page.locator("#send")).to_be_visible()
    assert [each["messages"] for each in stand_in.asked] == [[{"role": "user", "content": "cut"}]] * 2


def test_settings_are_sent_and_kept(page: Page, stand_in: StandIn) -> None:
    page.locator("#settings-open").click()
    page.get_by_label("System text").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.3")
    expect(page.locator("#temperature-now")).to_have_text("0.30")
    page.get_by_label("Longest answer").fill("64")
    button(page, "Close").click()
    ask(page, "hello")
    page.reload()
    ask(page, "again")
    for asked in stand_in.asked:
        assert (asked["temperature"], asked["max_tokens"]) == (0.3, 64)
        assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    page.locator("#settings-open").click()
    expect(page.get_by_label("System text")).to_have_value("Be brief.")


# The conversation over time ---------------------------------------------------------------------------------


def test_a_reload_keeps_the_conversation_and_what_had_come(page: Page, stand_in: StandIn) -> None:
    ask(page, "hello")
    exchange = ask(page, "slow", wait=False)
    expect(exchange.locator(".text")).to_contain_text("word-5 ")
    page.reload()
    expect(page.locator(".exchange")).to_have_count(2)
    expect(page.locator(".exchange").last.locator(".text")).to_contain_text("word-5 ")
    expect(page.locator(".exchange").last).to_contain_text("You stopped this answer.")
    ask(page, "more")
    assert messages(stand_in)[:2] == [("user", "hello"), ("assistant", "ppo says: hello")]
    assert len(messages(stand_in)) == 5


def test_a_new_chat_can_be_taken_back(page: Page, stand_in: StandIn) -> None:
    ask(page, "hello")
    button(page, "New chat").click()
    expect(page.locator(".exchange")).to_have_count(0)
    expect(page.locator("#welcome")).to_be_visible()
    button(page, "Undo").click()
    expect(page.locator(".text")).to_have_text("ppo says: hello")
    button(page, "New chat").click()
    ask(page, "other")
    assert messages(stand_in) == [("user", "other")]


def test_a_new_chat_ends_the_answer_under_way(page: Page, stand_in: StandIn) -> None:
    exchange = ask(page, "slow", wait=False)
    expect(exchange.locator(".text")).to_contain_text("word-1 ")
    button(page, "New chat").click()
    assert stand_in.gone.wait(PATIENCE)
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator(".exchange")).to_have_count(0)


def test_other_tabs_have_other_conversations(open_page: Opener, stand_in: StandIn) -> None:
    first = open_page()
    ask(first, "hello")
    second = first.context.new_page()
    second.goto(stand_in.url)
    expect(second.locator("#welcome")).to_be_visible()
    expect(second.locator(".exchange")).to_have_count(0)


def test_a_conversation_that_the_browser_cannot_keep_is_said_to_be_lost(page: Page) -> None:
    page.evaluate("sessionStorage.setItem('other', 'x'.repeat(5 * 1024 * 1024 - 6000))")
    ask(page, "hello " * 2000)
    expect(page.locator("#toast")).to_contain_text("a reload will lose it")


# Votes, consent, reasons ------------------------------------------------------------------------------------


def test_nothing_is_kept_and_nothing_can_be_voted_on_before_consent(page: Page, stand_in: StandIn) -> None:
    expect(page.locator("#store")).not_to_be_checked()
    expect(page.locator("#consent-text")).to_have_text(CONSENT)
    expect(page.locator("#consent-days")).to_have_text("Kept for 30 days at most, then deleted.")
    exchange = ask(page, "hello")
    assert "store" not in stand_in.asked[-1]
    expect(button(exchange, "Good answer")).to_have_count(0)
    expect(button(exchange, "Delete from the server")).to_have_count(0)
    page.get_by_role("switch", name="Let the server keep this chat").check()
    exchange = ask(page, "hello")
    assert stand_in.asked[-1]["store"] is True
    expect(button(exchange, "Good answer")).to_be_visible()
    expect(exchange).to_contain_text("kept")
    page.reload()
    expect(page.locator("#store")).to_be_checked()
    page.locator("#store").uncheck()
    ask(page, "hello")
    assert "store" not in stand_in.asked[-1]


def test_consent_to_one_text_is_not_consent_to_another(
    page: Page, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.locator("#store").check()
    page.reload()
    expect(page.locator("#store")).to_be_checked()
    monkeypatch.setattr("stand_in.CONSENT", "We sell it.")
    page.reload()
    expect(page.locator("#consent-text")).to_have_text("We sell it.")
    expect(page.locator("#store")).not_to_be_checked()


def test_thumbs_and_reports_reach_the_server(page: Page, stand_in: StandIn) -> None:
    page.locator("#store").check()
    exchange = ask(page, "hello")
    up, down = button(exchange, "Good answer"), button(exchange, "Bad answer")
    up.click()
    expect(up).to_have_attribute("aria-pressed", "true")
    expect(up).to_be_focused()
    down.click()
    expect(up).to_have_attribute("aria-pressed", "false")
    down.click()
    expect(down).to_have_attribute("aria-pressed", "false")
    button(exchange, "Report a problem").click()
    expect(exchange.get_by_label("What is wrong")).to_be_focused()
    page.keyboard.type("untrue")
    button(exchange, "Why?").click()
    expect(exchange.locator(".why")).to_be_visible()
    exchange.get_by_label("What is wrong").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#toast")).to_have_text("Reported.")
    up.click()
    expect(up).to_have_attribute("aria-pressed", "true")
    sent = [body for name, body in stand_in.sent if name == "feedback"]
    id = "chatcmpl-ppo-1"
    assert sent == [
        {"id": id, "vote": "up", "flag": None, "choice": 0},
        {"id": id, "vote": "down", "flag": None, "choice": 0},
        {"id": id, "vote": None, "flag": None, "choice": 0},
        {"id": id, "vote": None, "flag": "untrue", "choice": 0},
        {"id": id, "vote": "up", "flag": None, "choice": 0},
    ]


def test_an_exchange_can_be_deleted_from_the_server(page: Page, stand_in: StandIn) -> None:
    page.locator("#store").check()
    exchange = ask(page, "hello")
    stand_in.deleted.add("chatcmpl-ppo-1")
    button(exchange, "Good answer").click()
    expect(page.locator("#toast")).to_contain_text("The server does not have this exchange")
    expect(button(exchange, "Good answer")).to_have_attribute("aria-pressed", "false")
    stand_in.deleted.clear()
    button(exchange, "Delete from the server").click()
    expect(button(exchange, "Good answer")).to_have_count(0)
    assert stand_in.deleted == {"chatcmpl-ppo-1"}
    expect(exchange).to_contain_text("This exchange is not sent along")
    ask(page, "more")
    assert messages(stand_in) == [("user", "more")], "it would be kept again"
    compare(page)
    exchange = ask(page, "two")
    button(exchange, "Tie").click()
    button(exchange, "Delete from the server").first.click()
    expect(button(exchange, "Delete from the server")).to_have_count(0)
    assert len(stand_in.deleted) == 3


def test_an_answer_that_was_asked_for_again_is_deleted_with_the_first(page: Page, stand_in: StandIn) -> None:
    page.locator("#store").check()
    exchange = ask(page, "hello")
    page.locator("#store").uncheck()
    button(exchange, "Ask again").click()
    expect(page.locator("#send")).to_be_visible()
    expect(button(exchange, "Good answer")).to_have_count(0)
    button(exchange, "Delete from the server").click()
    expect(button(exchange, "Delete from the server")).to_have_count(0)
    assert stand_in.deleted == {"chatcmpl-ppo-1"}


def test_why_shows_the_verdict_on_every_principle(page: Page, stand_in: StandIn) -> None:
    ask(page, "first")
    exchange = ask(page, "hello")
    button(exchange, "Why?").click()
    rows = exchange.locator(".why tbody tr")
    expect(rows).to_have_count(2)
    assert rows.all_inner_texts()[0].split("\t")[1:] == ["0.91", "breaks it"]
    assert rows.all_inner_texts()[1].split("\t") == ["kind", "0.12", "fine"]
    assert stand_in.sent == [
        (
            "moderations",
            {
                "input": {
                    "messages": [
                        {"role": "user", "content": "first"},
                        {"role": "assistant", "content": "ppo says: first"},
                        {"role": "user", "content": "hello"},
                        {"role": "assistant", "content": "ppo says: hello"},
                    ]
                }
            },
        )
    ]
    button(exchange, "Why?").click()
    expect(rows).to_have_count(0)


def test_a_blocked_answer_is_explained_and_left_out_of_what_is_sent(page: Page, stand_in: StandIn) -> None:
    ask(page, "hello")
    exchange = ask(page, "blocked")
    expect(exchange.locator(".text")).to_have_text("The first words. This answer was stopped.")
    expect(exchange.locator(".note")).to_contain_text("Stopped by the moderation")
    expect(exchange.locator(".note")).to_contain_text(f"Category: kind {EVIL} · score 0.88")
    ask(page, "more")
    assert [content for _, content in messages(stand_in)] == ["hello", "ppo says: hello", "more"]


def test_both_sides_stand_beside_each_other_with_their_labels(page: Page, stand_in: StandIn) -> None:
    page.locator("#store").check()
    exchange = ask(page, "both sides, short")
    choices = exchange.locator(".choice")
    expect(choices).to_have_count(2)
    assert choices.locator("h3").all_inner_texts() == ["for", "against"]
    assert exchange.locator(".text").all_inner_texts() == ["It has much for it.", "It has much against it."]
    left, right = (choices.nth(at).bounding_box() for at in range(2))
    assert left is not None
    assert right is not None
    assert left["y"] == right["y"]
    expect(exchange).to_contain_text("Directives: short")
    button(choices.last, "Bad answer").click()
    expect(button(choices.last, "Bad answer")).to_have_attribute("aria-pressed", "true")
    expect(button(choices.first, "Bad answer")).to_have_attribute("aria-pressed", "false")
    assert stand_in.sent[-1][1]["choice"] == 1
    ask(page, "more")
    assert messages(stand_in)[1][1] == "for:\nIt has much for it.\n\nagainst:\nIt has much against it."


# Two policies -----------------------------------------------------------------------------------------------


def compare(page: Page) -> None:
    page.get_by_role("switch", name="Compare two").check()


def test_the_names_are_hidden_until_the_choice_and_the_sides_are_random(
    page: Page, stand_in: StandIn
) -> None:
    page.locator("#store").check()
    compare(page)
    sides = set()
    for number in range(40):
        exchange = ask(page, "code")
        shown = exchange.evaluate("element => element.outerHTML")
        assert "ppo" not in shown
        assert "base" not in shown
        assert "tokens" not in shown, "nor what would tell them apart"
        expect(button(exchange, "Good answer")).to_have_count(0)
        button(exchange, "Left is better").click()
        expect(exchange).to_contain_text("Your choice was kept.")
        names = exchange.locator(".model").all_inner_texts()
        assert sorted(names) == ["base", "ppo"]
        sides.add(names[0])
        chosen, rejected = (stand_in.sent[-1][1][key] for key in ("chosen", "rejected"))
        assert chosen.split("-")[1] == names[0]
        assert rejected.split("-")[1] == names[1]
        if number > 1 and len(sides) == 2:
            break
    assert sides == {"base", "ppo"}


@pytest.mark.parametrize(
    ("choice", "goes_on", "sent"),
    [("Left is better", 0, False), ("Right is better", 1, False), ("Tie", 0, True), ("Neither", 0, None)],
)
def test_the_conversation_goes_on_with_the_better_answer(
    page: Page, stand_in: StandIn, choice: str, goes_on: int, sent: bool | None
) -> None:
    page.locator("#store").check()
    compare(page)
    exchange = ask(page, "hello")
    page.locator("#question").fill("more")
    page.keyboard.press("Enter")
    expect(page.locator("#toast")).to_contain_text("First say which answer is better")
    assert len(stand_in.asked) == 2
    expect(button(exchange, "Left is better")).to_be_focused()
    button(exchange, choice).click()
    names = exchange.locator(".model").all_inner_texts()
    page.keyboard.press("Enter")
    expect(page.locator(".exchange")).to_have_count(2)
    expect(page.locator("#send")).to_be_visible()
    assert messages(stand_in)[1] == ("assistant", f"{names[goes_on]} says: hello")
    preferences = [body for name, body in stand_in.sent if name == "preferences"]
    assert [body["tie"] for body in preferences] == ([] if sent is None else [sent])


def test_without_consent_a_choice_stays_on_the_page(page: Page, stand_in: StandIn) -> None:
    compare(page)
    exchange = ask(page, "hello")
    button(exchange, "Tie").click()
    expect(exchange).to_contain_text("Your choice was not kept")
    assert stand_in.sent == []
    page.reload()
    expect(page.locator(".exchange .model")).to_have_count(2)


def test_a_side_that_failed_or_was_stopped_is_not_voted_on(page: Page, stand_in: StandIn) -> None:
    compare(page)
    stand_in.away = 1
    exchange = ask(page, "hello")
    expect(exchange.locator(".note.bad")).to_have_count(1)
    expect(button(exchange, "Tie")).to_have_count(0)
    assert sorted(exchange.locator(".model").all_inner_texts()) == ["base", "ppo"]
    exchange = ask(page, "slow", wait=False)
    expect(exchange.locator(".text").last).to_contain_text("word-1 ")
    page.keyboard.press("Escape")
    expect(exchange.get_by_text("You stopped this answer.")).to_have_count(2)
    expect(button(exchange, "Tie")).to_have_count(0)
    said = exchange.locator(".text").first.inner_text()
    page.locator("#compare").uncheck()
    ask(page, "more")
    assert messages(stand_in)[1][0] == "assistant", "the side that answered goes on"
    assert messages(stand_in)[3][1].strip() == said


def test_the_two_policies_are_different_ones(page: Page) -> None:
    compare(page)
    assert [page.locator(f"#{id}").input_value() for id in ("first", "second")] == ["ppo", "base"]
    page.locator("#second").select_option("ppo")
    assert [page.locator(f"#{id}").input_value() for id in ("first", "second")] == ["base", "ppo"]


# What goes wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "says"), [(429, "more questions than it can take"), (503, "is stopping")])
def test_a_busy_server_is_waited_for_and_asked_again(
    page: Page, stand_in: StandIn, status: int, says: str
) -> None:
    stand_in.away, stand_in.status, stand_in.retry_after = 1, status, 1000
    page.clock.install()
    exchange = ask(page, "hello")
    expect(exchange).to_contain_text(says)
    expect(exchange).to_contain_text("the queue is full")
    expect(button(exchange, "Try again")).to_be_disabled()
    expect(exchange).to_contain_text(re.compile(r"asked again in (1000|9\d\d) s"))
    page.clock.fast_forward(500_000)
    expect(exchange).to_contain_text(re.compile(r"asked again in (500|4\d\d) s"))
    expect(button(exchange, "Try again")).to_be_disabled()
    page.clock.fast_forward(500_000)
    expect(button(exchange, "Try again")).to_be_enabled()
    expect(exchange).not_to_contain_text("asked again in")
    button(exchange, "Try again").click()
    expect(exchange.locator(".text")).to_have_text("ppo says: hello")
    expect(exchange.locator(".note")).to_have_count(0)


def test_a_connection_that_breaks_is_said(page: Page, stand_in: StandIn) -> None:
    exchange = ask(page, "break off")
    expect(exchange).to_contain_text("half an ans")
    expect(exchange).to_contain_text("The connection broke before the answer was complete.")
    ask(page, "more")
    assert messages(stand_in) == [("user", "more")]


def test_a_server_that_is_gone_is_said(browser: Browser) -> None:
    with StandIn().running() as running:
        page = browser.new_page(locale="en-GB")
        page.goto(running.url)
        ask(page, "hello")
        page.route("**/v1/**", lambda route: route.abort())
        exchange = ask(page, "more")
        expect(exchange).to_contain_text("The server cannot be reached. Is it still running?")
        page.reload()
        expect(page.locator("#problem")).to_contain_text("The server cannot be reached")
        page.unroute("**/v1/**")
        button(page.locator("#problem"), "Try again").click()
        expect(page.locator("#problem")).not_to_be_visible()
        ask(page, "again")
        page.close()


def test_a_token_is_asked_for_and_kept_in_the_tab(open_page: Opener, stand_in: StandIn) -> None:
    stand_in.token = "right"
    page = open_page()
    box = page.get_by_label("Token", exact=True)
    expect(box).to_be_focused()
    page.keyboard.press("Escape")
    expect(box).not_to_be_visible()
    expect(page.locator("#problem")).to_contain_text("The server asks for a token.")
    button(page, "Try again").click()
    for text, problem in (("zwei Wörter", "one line of ASCII"), ("wrong", "refused that token")):
        box.fill(text)
        page.keyboard.press("Enter")
        expect(page.locator("#token-problem")).to_contain_text(problem)
    box.fill("right")
    page.keyboard.press("Enter")
    expect(page.locator("#welcome")).to_be_visible()
    ask(page, "hello")
    page.reload()
    expect(page.locator(".text")).to_have_text("ppo says: hello")
    stand_in.token = "changed"
    exchange = ask(page, "more")
    box.fill("changed")
    page.keyboard.press("Enter")
    expect(exchange.locator(".text")).to_have_text("ppo says: more")
    page.locator("#settings-open").click()
    button(page, "Forget the token").click()
    expect(box).to_be_visible()
    assert page.evaluate("Object.values(sessionStorage).some(value => value.includes('changed'))") is False


# What a server lacks ----------------------------------------------------------------------------------------


def test_a_server_without_the_parts_has_no_buttons_for_them(open_page: Opener, stand_in: StandIn) -> None:
    stand_in.parts, stand_in.models = False, ("base",)
    with StandIn(parts=False, models=("base",)).running() as bare:
        stand_in.url = bare.url
        page = open_page()
        exchange = ask(page, "hello")
        expect(exchange.locator(".text")).to_have_text("base says: hello")
        assert exchange.get_by_role("button").evaluate_all("all => all.map(each => each.title)") == [
            "Copy",
            "Ask again",
        ]
        for id in ("consent", "comparing", "second"):
            expect(page.locator(f"#{id}")).not_to_be_visible()
        page.close()


# Texts are texts --------------------------------------------------------------------------------------------


def test_what_comes_from_anybody_is_text(open_page: Opener, stand_in: StandIn) -> None:
    stand_in.models = (f"a {EVIL}", f"b {EVIL}")
    page = open_page()
    page.locator("#store").check()
    exchange = ask(page, f"evil {EVIL}")
    assert exchange.locator(".text").inner_text() == EVIL
    assert exchange.locator(".question").inner_text().endswith(f"evil {EVIL}")
    button(exchange, "Why?").click()
    expect(exchange.locator(".why")).to_contain_text(EVIL)
    ask(page, f"blocked {EVIL}")
    button(exchange, "Report a problem").click()
    page.keyboard.type(EVIL)
    page.keyboard.press("Enter")
    button(exchange, "Report a problem").click()
    compare(page)
    ask(page, "evil")
    button(page, "Tie").click()
    page.reload()
    expect(page.locator(".exchange")).to_have_count(3)
    assert page.locator("#exchanges :is(script, img, a), #consent :is(script, img, a)").count() == 0
    assert page.locator("script").count() == 1
    assert page.title() == "rlaif: talk to a policy"


def test_the_policy_forbids_what_a_hole_would_need(browser: Browser, stand_in: StandIn) -> None:
    """Were a text ever to be made markup, the browser would refuse to; and nobody else can be asked."""
    page = browser.new_page()
    page.goto(stand_in.url)
    found: list[str] = page.evaluate(
        """async () => {
          const found = [];
          document.addEventListener("securitypolicyviolation", event => found.push(event.effectiveDirective));
          const hole = document.createElement("div");
          try { hole.innerHTML = "<b>x</b>"; } catch (error) { found.push(error.name); }
          const script = document.createElement("script");
          try { script.textContent = "document.title = 'run'"; } catch (error) { found.push(error.name); }
          document.body.append(hole, script);
          const image = document.createElement("img");
          image.src = "http://127.0.0.1:9/x";
          document.body.append(image);
          await fetch("http://127.0.0.1:9/").catch(error => found.push(error.name));
          while (new Set(found).size < 4) await new Promise(done => setTimeout(done, 20));
          return found;
        }"""
    )
    assert {"TypeError", "require-trusted-types-for", "img-src", "connect-src"} <= set(found)
    assert page.title() != "run"
    page.close()


def test_the_page_cannot_be_framed(browser: Browser, stand_in: StandIn) -> None:
    page = browser.new_page()
    with page.expect_event("console", lambda said: "frame-ancestors" in said.text):
        page.set_content(f"<iframe src='{stand_in.url}'></iframe>")
    (frame,) = page.main_frame.child_frames
    assert frame.locator("#question").count() == 0
    page.close()


# Languages, colours, sizes, ears ----------------------------------------------------------------------------


def test_the_page_speaks_chinese_where_the_browser_does_and_on_demand(
    open_page: Opener, stand_in: StandIn
) -> None:
    page = open_page(locale="zh-CN")
    expect(page.locator("html")).to_have_attribute("lang", "zh-Hans")
    expect(page.locator("#welcome h2")).to_have_text("想问点什么？")
    exchange = ask(page, "海水为什么是咸的？")
    expect(exchange.locator(".text")).to_have_text("ppo says: 海水为什么是咸的？")
    button(exchange, "为什么").click()
    expect(exchange.locator(".why")).to_contain_text("没有问题")
    button(page, "Switch the page to English").click()
    expect(exchange.locator(".why")).to_contain_text("fine")
    expect(page.locator("html")).to_have_attribute("lang", "en")
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    expect(page.locator("#question")).to_have_attribute("placeholder", "Ask something…")


def test_no_word_of_the_other_language_is_left(open_page: Opener) -> None:
    page = open_page(locale="zh-TW")
    expect(page.locator("#welcome")).to_be_visible()
    page.locator("#settings-open").click()
    told = page.evaluate(
        """[...document.querySelectorAll("[data-text], [data-label], [data-hint], [data-title]")].map(each =>
          each.textContent + each.getAttribute("aria-label") + each.placeholder + each.title)"""
    )
    assert len(told) > 25
    assert [each for each in told if not re.search(r"[\u4e00-\u9fff]|English", each)] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 375, 1200])
def test_no_size_scrolls_sideways_in_light_and_dark(
    open_page: Opener, stand_in: StandIn, tmp_path: Path, scheme: str, width: int
) -> None:
    page = open_page(viewport={"width": width, "height": 700}, color_scheme=scheme)
    page.locator("#store").check()
    for question in ("evil " + "w" * 300, "code", "blocked", "both sides"):
        ask(page, question)
    button(page.locator(".exchange").first, "Why?").click()
    compare(page)
    exchange = ask(page, "evil")
    for inside in ("document.documentElement", "document.getElementById('conversation')"):
        assert page.evaluate(f"{inside}.scrollWidth - {inside}.clientWidth") == 0
    left, right = (exchange.locator(".answer").nth(at).bounding_box() for at in range(2))
    assert left is not None
    assert right is not None
    assert (left["y"] == right["y"]) == (width == 1200)
    expect(button(exchange, "First" if width < 1200 else "Left is better")).to_be_visible()
    text, paper = colours(page)
    assert (text < paper) == (scheme == "light")
    assert abs(text - paper) > 500


def colours(page: Page) -> list[int]:
    """The light of the text and of what is behind it."""
    found = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    return [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in found]


def test_the_colours_can_be_chosen(page: Page) -> None:
    page.locator("#settings-open").click()
    page.get_by_label("Colours").select_option("dark")
    text, paper = colours(page)
    assert text > paper + 500
    page.reload()
    assert colours(page) == [text, paper]


def test_the_keyboard_reaches_everything_and_shows_where_it_is(page: Page) -> None:
    page.locator("#store").check()
    exchange = ask(page, "hello")
    page.evaluate("document.activeElement.blur()")
    reached = list[str]()
    for _ in range(24):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.title"))
        if page.evaluate("document.activeElement === document.body"):
            continue  # past the last, before the first
        shown = page.evaluate(
            "[document.activeElement, document.activeElement.parentElement].map(each => "
            "getComputedStyle(each).outlineStyle)"
        )
        assert shown != ["none", "none"], reached[-1]
    wanted = [
        "first",
        "compare",
        "new",
        "language",
        "settings-open",
        "Copy",
        "Good answer",
        "question",
        "store",
    ]
    begin = reached.index("first")
    assert [each for each in reached[begin:] if each in wanted][: len(wanted)] == wanted
    button(exchange, "Good answer").focus()
    page.keyboard.press("Space")
    expect(button(exchange, "Good answer")).to_have_attribute("aria-pressed", "true")


def test_a_screen_reader_is_told(page: Page, stand_in: StandIn) -> None:
    assert page.locator("#said").get_attribute("aria-live") == "polite"
    told = page.locator("body").aria_snapshot()
    for name in ('combobox "Policy"', 'switch "Compare two"', 'textbox "Your question"', 'button "Settings"'):
        assert name in told
    exchange = ask(page, "slow", wait=False)
    expect(page.locator("#said")).to_have_text("Answering…")
    expect(exchange.locator(".text")).to_contain_text("word-1 ")
    expect(page.locator("#said")).to_have_text("Answering…"), "not every word as it comes"
    page.keyboard.press("Escape")
    expect(page.locator("#said")).to_contain_text("Stopped.")
    ask(page, "hello")
    expect(page.locator("#said")).to_have_text("ppo: ppo says: hello")
    ask(page, "blocked")
    expect(page.locator("#said")).to_contain_text("Stopped by the moderation")
    unnamed = page.locator("button, select, textarea, input").evaluate_all(
        "all => all.filter(each => !each.ariaLabel && !each.textContent.trim() && !each.labels?.length)"
        ".map(each => each.id)"
    )
    assert unnamed == []


# The real server --------------------------------------------------------------------------------------------


@pytest.fixture
def real(tmp_path: Path) -> Iterator[ModelServer]:
    residents = open_residents(str(save_tiny(tmp_path / "base")), [], dtype="float32", device="cpu")
    server = ModelServer(
        residents, ServerSettings(port=0, token="right", most_tokens=1000), lambda line: None
    )
    thread = threading.Thread(target=server.run_until_stopped)
    thread.start()
    end = time.monotonic() + PATIENCE
    while not server.started:
        assert time.monotonic() < end
        time.sleep(0.005)
    yield server
    server.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_the_real_server_answers_stops_and_refuses(browser: Browser, real: ModelServer) -> None:
    page = browser.new_page(locale="en-GB")
    problems = list[str]()
    page.on("console", lambda said: problems.append(said.text) if REFUSED not in said.text else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(real.url)
    page.get_by_label("Token", exact=True).fill("right")
    page.keyboard.press("Enter")
    expect(page.locator("#consent")).not_to_be_visible()
    page.locator("#settings-open").click()
    page.get_by_label("Longest answer").fill("5")
    button(page, "Close").click()
    exchange = ask(page, "What is the yes?")
    expect(exchange).to_contain_text(re.compile(r"\d tokens, \d"))
    page.locator("#settings-open").click()
    page.get_by_label("Longest answer").fill("700")
    button(page, "Close").click()
    exchange = ask(page, "Tell me all", wait=False)
    expect(exchange.locator(".text")).not_to_be_empty()
    page.keyboard.press("Escape")
    expect(page.locator("#send")).to_be_visible()
    end = time.monotonic() + PATIENCE
    while real.batcher.rows:
        assert time.monotonic() < end, "the row left"
        time.sleep(0.01)
    exchange = ask(page, "x" * 1200)
    expect(exchange).to_contain_text("The conversation is longer than the model can read.")
    expect(exchange).to_contain_text("context of 1024")
    assert problems == []
    page.close()
