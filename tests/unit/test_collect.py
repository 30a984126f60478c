"""`rlaif collect labels` over HTTP: what is clicked is what is on the disk."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from spine import call, environment

from rlaif.collect.labels_file import LabelsFile, skipped_file
from rlaif.collect.page import PAGE
from rlaif.collect.pairs import in_order, read_pairs
from rlaif.collect.server import MOST_BODY, CollectServer
from rlaif.collect.session import Session
from rlaif.collect.summary import between_annotators, summary, with_judge
from rlaif.errors import ConfigError, DataError, RunError
from rlaif.jobs.audit_files import read_audit_pairs
from rlaif.jobs.learned_rows import read_preferences

JSON = {"Content-Type": "application/json"}
EVIL = "<img src=x onerror=alert(1)></div><script>alert(2)</script>"


def rows(count: int) -> list[dict[str, Any]]:
    """Preferences of a judge that grows more certain from row to row; `good` is the better one."""
    return [
        {
            "id": f"row-{number}",
            "prompt": [{"role": "user", "content": f"question {number}"}],
            "chosen": [{"role": "assistant", "content": f"good {number} {EVIL}"}],
            "rejected": [{"role": "assistant", "content": f"bad {number}"}],
            "p_chosen": 0.5 + (number + 1) / (2 * count + 2),
        }
        for number in range(count)
    ]


def written(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    return path


def on_disk(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


class Browser:
    """Asks a server as its page does."""

    def __init__(self, server: CollectServer) -> None:
        self.server = server

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=20)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def post(self, what: str, body: object) -> tuple[int, dict[str, Any]]:
        path = f"/{self.server.token}/{what}"
        status, _, text = self.ask("POST", path, json.dumps(body).encode(), JSON)
        return status, json.loads(text)

    def state(self) -> dict[str, Any]:
        _, _, text = self.ask("GET", f"/{self.server.token}/state")
        told: dict[str, Any] = json.loads(text)["state"]
        return told

    def click(self, which: str) -> dict[str, Any]:
        """Click about the pair that is shown; gives what was shown."""
        shown = self.state()
        status, _ = self.post("answer", {"pair": shown["pair"], "click": which})
        assert status == 200
        return shown

    def prefer(self, begins: str) -> dict[str, Any]:
        """Click the side whose text begins so."""
        return self.click("left" if self.state()["left"].startswith(begins) else "right")


@contextmanager
def served(pairs: Path, out: Path, annotator: str = "ada", **options: Any) -> Iterator[Browser]:
    clock = options.pop("clock", lambda: 0.0)
    shown = in_order(read_pairs(pairs).pairs, "random", seed=0)
    with LabelsFile(out) as file:
        session = Session(shown, file, annotator=annotator, clock=clock, **options)
        with CollectServer(session) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield Browser(server)
            finally:
                server.shutdown()
                thread.join()


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return written(tmp_path / "preferences.jsonl", rows(12))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "labels.jsonl"


def test_a_click_is_on_the_disk_at_once_with_the_text_that_was_clicked(pairs: Path, out: Path) -> None:
    now = [0.0]
    lefts = []
    with served(pairs, out, clock=lambda: now[0]) as browser:
        for number in range(12):
            shown = browser.state()
            now[0] += 2.5
            side, other = ("left", "right") if number % 2 else ("right", "left")
            browser.click(side)
            row = on_disk(out)[-1]
            assert len(on_disk(out)) == number + 1
            assert row["chosen"] == [{"role": "assistant", "content": shown[side]}]
            assert row["rejected"] == [{"role": "assistant", "content": shown[other]}]
            assert row["prompt"] == shown["conversation"]
            assert (row["p_chosen"], row["annotator"], row["seconds"]) == (1.0, "ada", 2.5)
            lefts.append(shown["left"].startswith("good"))
        assert browser.state()["pair"] is None
    assert {row["source_id"] for row in on_disk(out)} == {f"row-{number}" for number in range(12)}
    assert 0 < sum(lefts) < 12, "the sides are not drawn"


def test_the_sides_depend_on_seed_and_annotator_alone(pairs: Path, out: Path) -> None:
    shown = read_pairs(pairs).pairs
    with LabelsFile(out) as file:
        sides = {
            (name, seed): [
                Session(shown, file, annotator=name, seed=seed).first_is_left(pair) for pair in shown
            ]
            for name in ("ada", "bob")
            for seed in (0, 1)
        }
        again = Session(shown, file, annotator="ada", seed=0)
        assert sides["ada", 0] == [again.first_is_left(pair) for pair in shown]
    assert len({tuple(each) for each in sides.values()}) == 4


def test_undo_takes_labels_and_skips_back_one_by_one(pairs: Path, out: Path) -> None:
    with served(pairs, out) as browser:
        first = browser.click("left")
        second = browser.click("skip")
        third = browser.click("equal")
        assert [row["p_chosen"] for row in on_disk(out)] == [1.0, 0.5]
        assert len(on_disk(skipped_file(out))) == 1
        for undone, labels, skips in ((third, 1, 1), (second, 1, 0), (first, 0, 0)):
            status, told = browser.post("undo", {})
            assert (status, told["state"]["pair"]) == (200, undone["pair"])
            assert (len(on_disk(out)), len(on_disk(skipped_file(out)))) == (labels, skips)
        status, told = browser.post("undo", {})
        assert status == 409
        assert "nothing" in told["problem"]


def test_a_second_session_goes_on_where_the_first_one_stopped(pairs: Path, out: Path) -> None:
    with served(pairs, out) as browser:
        done = {browser.click(which)["pair"] for which in ("left", "skip", "equal")}
        follows = browser.state()["pair"]
    with served(pairs, out) as browser:
        assert browser.state()["pair"] == follows
        assert browser.state()["done"] == 3
        _, told = browser.post("undo", {})
        assert told["state"]["pair"] in done, "undo reaches clicks of an earlier session"


def test_a_click_about_another_pair_writes_nothing(pairs: Path, out: Path) -> None:
    with served(pairs, out) as browser:
        shown = browser.click("left")
        status, told = browser.post("answer", {"pair": shown["pair"], "click": "right"})
        assert status == 409
        assert told["state"]["done"] == 1
    assert len(on_disk(out)) == 1


def test_two_annotators_share_a_file_and_are_held_against_each_other(pairs: Path, out: Path) -> None:
    with served(pairs, out, "ada") as browser:
        for _ in range(12):
            browser.prefer("good")
    ada = out.read_text("utf-8")
    with served(pairs, out, "bob") as browser:
        assert browser.state()["done"] == 0
        for number in range(12):
            browser.prefer("bad" if number < 3 else "good")
        session = browser.server.session
        alpha, shared, annotators = between_annotators(session.labels.clicks)
        lines = summary(session)
        browser.post("undo", {})
    assert out.read_text("utf-8").startswith(ada), "undo touched the labels of another annotator"
    assert [row["annotator"] for row in on_disk(out)] == ["ada"] * 12 + ["bob"] * 11
    assert (shared, annotators) == (12, 2)
    assert f"α {alpha:.2f}, on 12 pairs" in lines[-1]
    assert -1 < alpha < 1


def test_agreement_with_the_judge_is_that_of_the_clicks(pairs: Path, out: Path) -> None:
    with served(pairs, out) as browser:
        browser.click("equal")
        for number in range(11):
            browser.prefer("bad" if number < 3 else "good")
        found = with_judge(browser.server.session)
        end = browser.state()["summary"]
    assert found is not None
    assert (found.rows, found.same.value) == (11, 8 / 11)
    assert found.longer.value == 8 / 11  # the good ones are the longer ones
    judge = [row["chosen"][0]["content"].startswith("good") for row in on_disk(out)[1:]]
    assert sum(judge) == 8
    assert found.kappa.low <= found.kappa.value <= found.kappa.high
    assert end[0] == "ada: 12 pairs labelled, 1 of them a tie; 0 skipped; 0 left"
    assert end[1].startswith("agreement with the judge on 11 pairs that both decided: 73% (")


def test_kappa_is_cohens_over_the_sides_that_were_seen(pairs: Path, out: Path) -> None:
    """Counted by hand from what was shown."""
    table = {(judge, person): 0 for judge in "lr" for person in "lr"}
    with served(pairs, out) as browser:
        for number in range(12):
            shown = browser.state()
            which = "left" if number % 3 else "right"
            table["l" if shown["left"].startswith("good") else "r", which[0]] += 1
            browser.click(which)
        found = with_judge(browser.server.session)
    same = (table["l", "l"] + table["r", "r"]) / 12
    judge_left, left = table["l", "l"] + table["l", "r"], table["l", "l"] + table["r", "l"]
    chance = (judge_left * left + (12 - judge_left) * (12 - left)) / 144
    assert found is not None
    assert found.kappa.value == pytest.approx((same - chance) / (1 - chance))


def test_only_the_page_is_answered(pairs: Path, out: Path) -> None:
    with served(pairs, out) as browser:
        token, port = browser.server.token, browser.server.server_port
        assert browser.server.server_address[0] == "127.0.0.1"
        body = json.dumps({"pair": browser.state()["pair"], "click": "left"}).encode()
        answer = f"/{token}/answer"
        refused = {
            404: [
                ("GET", "/", None, {}),
                ("GET", "/state", None, {}),
                ("GET", f"/{'x' * len(token)}/state", None, {}),
                ("GET", f"/{token}", None, {}),
                ("GET", f"/{token}/../state", None, {}),
                ("GET", answer, None, {}),
                ("POST", "/answer", body, JSON),
                ("POST", f"/{token}x/answer", body, JSON),
                ("POST", f"/{token}/state", b"{}", JSON),
            ],
            403: [
                ("GET", f"/{token}/state", None, {"Host": f"evil.example:{port}"}),
                ("GET", f"/{token}/", None, {"Host": "127.0.0.1"}),
                ("POST", answer, body, JSON | {"Host": f"evil.example:{port}"}),
            ],
            415: [
                ("POST", answer, body, {}),
                ("POST", answer, body, {"Content-Type": "text/plain"}),
                ("POST", answer, body, {"Content-Type": "application/x-www-form-urlencoded"}),
            ],
            411: [("POST", answer, b"", JSON | {"Content-Length": "-1"})],
            413: [("POST", answer, b"x" * (MOST_BODY + 1), JSON)],
            400: [
                ("POST", answer, b"[]", JSON),
                ("POST", answer, b"\xff", JSON),
                ("POST", answer, b'{"pair": "x", "click": "both"}', JSON),
                ("POST", answer, b'{"pair": 1, "click": "left"}', JSON),
            ],
            501: [("PUT", answer, body, JSON), ("DELETE", answer, None, {})],
        }
        for status, requests in refused.items():
            for request in requests:
                assert browser.ask(*request)[0] == status, request
        assert browser.state()["done"] == 0
        host = {"Host": f"localhost:{port}"}
        assert browser.ask("POST", answer, body, JSON | host)[0] == 200
    assert len(on_disk(out)) == 1


def test_html_in_a_completion_is_never_html(pairs: Path, out: Path) -> None:
    with served(pairs, out) as browser:
        status, headers, page = browser.ask("GET", f"/{browser.server.token}/")
        _, told, text = browser.ask("GET", f"/{browser.server.token}/state")
    assert status == 200
    assert not re.search(rb"onerror|question", page), "the page holds data"
    assert told["Content-Type"] == "application/json"
    assert told["X-Content-Type-Options"] == "nosniff"
    assert EVIL in json.dumps(json.loads(text), ensure_ascii=False), "it is shown as it is"
    policy = headers["Content-Security-Policy"]
    (nonce,) = set(re.findall(r"nonce-([\w-]+)'", policy))
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert page.count(f'nonce="{nonce}"'.encode()) == 2
    for sink in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "http:",
        "https:",
    ):
        assert sink not in PAGE
    assert " on" + "click=" not in PAGE, "an attribute that the policy would block"


def test_the_labels_are_read_by_audit_and_by_training(pairs: Path, out: Path) -> None:
    with served(pairs, out) as browser:
        browser.click("equal")
        for _ in range(11):
            browser.prefer("good")
    learned = read_preferences(str(out))
    assert len(learned) == 12
    assert [pair.log_odds for pair in learned[:1]] == [0.0]
    assert all(pair.log_odds > 5 and pair.chosen.startswith("good") for pair in learned[1:])
    audited = read_audit_pairs(out)
    assert audited.labelled
    assert len(audited.pairs) == 12
    better = [
        (pair.comparison.a if pair.a_wins else pair.comparison.b).text.startswith("good")
        for pair in audited.pairs
    ]
    assert sum(better) >= 11
    again = read_pairs(out)
    assert len(again.pairs) == 12
    assert {pair.p_first for pair in again.pairs} == {None}, "a person's label is taken for the judge's"


def test_a_line_that_a_kill_cut_short_is_taken_off(pairs: Path, out: Path) -> None:
    with served(pairs, out) as browser:
        browser.click("left")
        cut = browser.click("left")
    content = out.read_bytes()
    out.write_bytes(content[:-9])
    with served(pairs, out) as browser:
        assert browser.state()["pair"] == cut["pair"]
        browser.click("left")
    assert [row["click"] for row in on_disk(out)] == [1, 2]
    out.write_bytes(content[:30])
    with LabelsFile(out) as file:
        assert file.clicks == []
    assert out.read_bytes() == b""


@pytest.mark.parametrize("content", ["no json\n", '{"prompt": "x"}\n', "[1]\n", '{"a": 1}', "some notes"])
def test_a_file_of_something_else_is_left_alone(content: str, out: Path) -> None:
    out.write_text(content, "utf-8")
    with pytest.raises(DataError, match=r"no label that was collected[\s\S]*--out"):
        LabelsFile(out)
    assert out.read_text("utf-8") == content


def test_one_process_at_a_time_writes_to_a_file(out: Path) -> None:
    with LabelsFile(out), pytest.raises(RunError, match="another process collects"):
        LabelsFile(out)
    with LabelsFile(out) as file:
        assert file.clicks == []


def test_a_disk_that_refuses_is_told_and_the_pair_stays(
    pairs: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with served(pairs, out) as browser:
        browser.click("left")
        shown = browser.state()
        with monkeypatch.context() as patched:
            patched.setattr("rlaif.collect.labels_file.os.fsync", full)
            status, told = browser.post("answer", {"pair": shown["pair"], "click": "left"})
        assert status == 500
        assert "no space left" in told["problem"]
        assert browser.state()["pair"] == shown["pair"]
        assert len(on_disk(out)) == 1
        browser.click("right")
    assert [row["click"] for row in on_disk(out)] == [1, 2]


def test_spread_has_weak_and_strong_labels_in_every_beginning(tmp_path: Path) -> None:
    found = read_pairs(written(tmp_path / "p.jsonl", rows(64))).pairs
    ordered = in_order(found, "spread", seed=0)
    assert sorted(pair.key for pair in ordered) == sorted(pair.key for pair in found)
    for count in (4, 8, 16):
        strengths = sorted(abs((pair.p_first or 0) - 0.5) for pair in ordered[:count])
        quarters = [sum(0.125 * at <= each < 0.125 * (at + 1) for each in strengths) for at in range(4)]
        assert quarters == [count // 4] * 4
    assert in_order(found, "spread", seed=0, limit=8) == ordered[:8]
    assert in_order(found, "random", seed=0) != in_order(found, "random", seed=1)


def test_spread_needs_labels_of_a_judge(tmp_path: Path) -> None:
    file = written(tmp_path / "p.jsonl", [{"prompt": "q", "a": "x", "b": "y"}])
    with pytest.raises(ConfigError, match="--order random"):
        in_order(read_pairs(file).pairs, "spread", seed=0)


FORMS: dict[str, list[dict[str, Any]]] = {
    "a and b": [{"prompt": "q", "a": "x", "b": "y"}],
    "chosen and rejected": [{"prompt": "q", "chosen": "y", "rejected": "x"}],
    "a list": [{"prompt": "q", "completions": ["x", "y"]}],
    "a row each": [{"prompt": "q", "completion": "x"}, {"prompt": "q", "completion": "y"}],
}


@pytest.mark.parametrize("lines", FORMS.values(), ids=FORMS)
def test_one_pair_in_any_form_is_the_same_pair(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    (pair,) = read_pairs(written(tmp_path / "p.jsonl", lines)).pairs
    assert (pair.prompt[0].content, pair.first, pair.second, pair.p_first) == ("q", "x", "y", None)
    (other,) = read_pairs(written(tmp_path / "o.jsonl", FORMS["a and b"])).pairs
    assert pair.key == other.key


def test_the_probability_is_told_of_the_right_one(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"prompt": "q1", "chosen": "x", "rejected": "y", "p_chosen": 0.8},
        {"prompt": "q2", "chosen": "y", "rejected": "x", "p_chosen": 0.8},
        {"prompt": "q3", "chosen": "y", "rejected": "x", "log_odds": 0.0},
        {"prompt": "q3", "chosen": "x", "rejected": "y", "p_chosen": 0.9},
        {"prompt": "q4", "chosen": "x", "rejected": "x "},
    ]
    found = read_pairs(written(tmp_path / "p.jsonl", lines))
    assert [pair.p_first for pair in found.pairs] == [0.8, pytest.approx(0.2), 0.5]
    assert (found.identical, found.repeated) == (1, 1)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"prompt": "q", "a": "x", "b": "x"}], "no prompt has two different completions"),
        ([{"prompt": "q", "a": "x", "b": "y", "context": ["d"]}], "1 prompt with retrieved documents"),
        ([{"prompt": "q", "chosen": "x", "rejected": 3}], r"p\.jsonl:1"),
    ],
)
def test_bad_pairs_are_named(lines: list[dict[str, Any]], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read_pairs(written(tmp_path / "p.jsonl", lines))


def test_a_dry_run_writes_nothing(pairs: Path, out: Path) -> None:
    said = call("collect", "labels", str(pairs), "--out", str(out), "--annotator", "ada", "--dry-run").out
    assert "12 of 12 pairs, 12 with a label of the judge's" in said
    assert list(out.parent.iterdir()) == [pairs]


WRONG: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "the file itself": (lambda pairs: ["--out", str(pairs)], "would be written over"),
    "no name": (lambda _: ["--annotator", " "], "say who labels"),
    "a long name": (lambda _: ["--annotator", "x" * 101], "more than 100"),
    "another suffix": (lambda pairs: ["--out", str(pairs.with_name("out.csv"))], "end the name in .jsonl"),
}


@pytest.mark.parametrize(("options", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_command_line_says_what_to_do(
    options: Callable[[Path], list[str]], said: str, pairs: Path
) -> None:
    assert said in call("collect", "labels", str(pairs), *options(pairs), "--no-browser").err


def test_a_port_that_is_taken_is_told(pairs: Path, out: Path) -> None:
    with served(pairs, out) as browser, ExitStack() as stack:
        session = browser.server.session
        with pytest.raises(ConfigError, match="or 0 for any that is free"):
            stack.enter_context(CollectServer(session, port=browser.server.server_port))


@pytest.mark.parametrize("ends", ["Ctrl-C", "finish", "SIGTERM"])
def test_the_command_ends_with_what_it_came_to(ends: str, pairs: Path, out: Path) -> None:
    command = [sys.executable, "-m", "rlaif", "collect", "labels", str(pairs), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--annotator", "ada", "--no-browser"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=environment() | {"PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"},
    )
    with process:
        try:
            assert process.stdout is not None
            said = ""
            while "label at" not in said:
                said = process.stdout.readline()
                assert said, process.communicate()
            found = re.search(r"http://127\.0\.0\.1:(\d+)/([\w-]+)/", said)
            assert found
            port, token = int(found[1]), found[2]
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", f"/{token}/state")
            pair = json.loads(connection.getresponse().read())["state"]["pair"]
            connection.request(
                "POST", f"/{token}/answer", json.dumps({"pair": pair, "click": "left"}).encode(), JSON
            )
            assert connection.getresponse().read()
            if ends == "finish":
                connection.request("POST", f"/{token}/finish", b"{}", JSON)
                assert json.loads(connection.getresponse().read())["finished"]
            else:
                process.send_signal(signal.SIGINT if ends == "Ctrl-C" else signal.SIGTERM)
            said, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == (143 if ends == "SIGTERM" else 0), error
    assert "ada: 1 pair labelled, 0 of them ties; 0 skipped; 11 left" in said
    assert len(on_disk(out)) == 1


def test_contested_pairs_come_by_value_then_by_closeness_to_one_half(tmp_path: Path) -> None:
    """A file of a jury says what a label would tell; any other has the judge's own doubt."""
    lines = rows(6)
    plain = in_order(read_pairs(written(tmp_path / "p.jsonl", lines)).pairs, "contested", seed=0)
    assert [pair.source_id for pair in plain] == [f"row-{number}" for number in range(6)]
    for value, line in zip((0.1, 0.6, 0.3), lines, strict=False):
        line["value"] = value
    jury = in_order(read_pairs(written(tmp_path / "c.jsonl", lines)).pairs, "contested", seed=0, limit=4)
    assert [pair.source_id for pair in jury] == ["row-1", "row-2", "row-0", "row-3"]


def test_spread_has_short_and_long_pairs_in_every_beginning(tmp_path: Path) -> None:
    lines = rows(32)
    for number, line in enumerate(lines):
        line["rejected"][0]["content"] += " and so on" * (number % 2)
    ordered = in_order(read_pairs(written(tmp_path / "p.jsonl", lines)).pairs, "spread", seed=0)
    long = ["and so on" in pair.first + pair.second for pair in ordered]
    for count in (4, 8, 16):
        assert abs(sum(long[:count]) - count / 2) <= 1


def test_the_rubric_and_the_reference_of_a_prompt_are_shown(tmp_path: Path) -> None:
    lines = rows(2)
    lines[0] |= {
        "reference": "Say so.",
        "rubric": [{"text": "Says so", "points": -2}, {"text": "Kind", "must": True}],
    }
    pairs = in_order(read_pairs(written(tmp_path / "p.jsonl", lines)).pairs, "random", seed=0)
    told = {}
    with LabelsFile(tmp_path / "l.jsonl") as file:
        session = Session(pairs, file, annotator="ada")
        while (state := session.state())["pair"] is not None:
            told[state["conversation"][0]["content"]] = state["notes"]
            session.answer(state["pair"], "skip")
    assert told["question 0"] == (("reference", "Say so."), ("-2", "Says so"), ("must", "Kind"))
    assert told["question 1"] == ()


def test_a_tie_is_no_win_in_an_audit(tmp_path: Path) -> None:
    lines = rows(3)
    lines[1]["p_chosen"] = 0.5
    found = read_audit_pairs(written(tmp_path / "human.jsonl", lines))
    assert found.ties == 1
    assert sorted(str(pair.a_wins) for pair in found.pairs).count("None") == 1
