"""Chats as data: every row is in one file, the counts add up, and what must be apart is apart."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from spine import call

from rlaif.chats.export import FILES, ExportRange, export_chats, gather
from rlaif.chats.records import Answer, Exchange
from rlaif.chats.store import ChatsFile
from rlaif.errors import ConfigError
from rlaif.io.readers import read_prompts
from rlaif.io.tables import read_table
from rlaif.io.training_rows import demonstration_of, preference_of
from rlaif.types import Message

DAY = datetime(2026, 11, 1, 12, tzinfo=UTC)
QUESTIONS = (
    "Why is the sea salty?",
    "Write a poem about my grandmother's garden.",
    "How do I cook rice?",
    "What can I do against hiccups at night?",
    "Suggest three names for a small bakery.",
    "Who painted the ceiling of the Sistine Chapel?",
)


def exchange(id: str, prompt: str, *, text: str = "", user: str | None = None, **changed: Any) -> Exchange:
    answers = (Answer(0, text or f"answer {id}", "stop"),)
    kept = Exchange(id, DAY, "m", (Message("user", prompt),), answers, user=user, policy="p1")
    return replace(kept, **changed)


@pytest.fixture
def file(tmp_path: Path) -> ChatsFile:
    return ChatsFile(tmp_path / "chats.sqlite")


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def test_prompts_votes_and_comparisons_become_rows_that_are_read(file: ChatsFile, tmp_path: Path) -> None:
    for at in range(3):
        file.add(exchange(f"e{at}", QUESTIONS[0], user="u"))
    file.vote("e0", 0, "up", DAY + timedelta(hours=1))
    file.vote("e1", 0, "down", DAY + timedelta(hours=2))
    file.prefer("e2", "e1", DAY + timedelta(hours=3))
    file.add(exchange("e3", QUESTIONS[1], user="u"))
    file.add(exchange("e4", QUESTIONS[1], user="u"))
    file.vote("e3", 0, "up", DAY)
    file.vote("e4", 0, "down", DAY)
    file.prefer("e4", "e3", DAY + timedelta(hours=4))  # whose thumbs say otherwise: the comparison counts
    out = tmp_path / "out"
    export_chats(file, out, ExportRange())
    prompt, _ = rows(out, "prompts")
    assert prompt == {
        "id": "e0",
        "prompt": [{"role": "user", "content": QUESTIONS[0]}],
        "time": "2026-11-01T12:00:00.000Z",
        "source": "chat",
        "model": "m",
        "policy": "p1",
    }
    thumbs, direct, last = rows(out, "preferences")
    assert (last["id"], last["source"]) == ("e4:0+e3:0", "a/b")
    left = {(row["kind"], row["id"]): row["reason"] for row in rows(out, "left_out")}
    assert left["preferences", "e3:0+e4:0"] == "compared"
    assert (thumbs["source"], thumbs["time"]) == ("thumbs", "2026-11-01T14:00:00.000Z")
    assert thumbs["chosen"] == [{"role": "assistant", "content": "answer e0"}]
    assert thumbs["rejected"] == [{"role": "assistant", "content": "answer e1"}]
    assert (direct["source"], direct["p_chosen"], direct["id"]) == ("a/b", 1.0, "e2:0+e1:0")
    assert [each["label"] for each in rows(out, "thumbs")] == [True, False, True, False]
    read = read_prompts(str(out / "prompts.jsonl")).items
    assert [each.messages for each in read] == [(Message("user", text),) for text in QUESTIONS[:2]]
    table = read_table(str(out / "preferences.jsonl"))
    assert [preference_of(row.values) for row in table.rows] == [thumbs, direct, last]
    assert demonstration_of(rows(out, "thumbs")[2])["prompt"] == prompt["prompt"]


def test_every_row_is_in_one_file_and_the_counts_add_up(file: ChatsFile, tmp_path: Path) -> None:
    users = [f"user {at}" for at in range(30)]
    for at, user in enumerate(users):
        for turn, question in enumerate(QUESTIONS):
            id = f"{at}-{turn}"
            varied = f"{question} ({at * at * 7919}, {user})" if turn % 2 else question
            finish = "content_filter" if at % 7 == 0 else "stop"
            answers = (Answer(0, f"answer {at % 3}", finish),)
            time = DAY + timedelta(minutes=(at + turn * 7) % 30 * 10 + turn)
            file.add(exchange(id, varied, user=user, answers=answers, time=time))
            if turn % 2 == 0:
                file.vote(id, 0, "up" if at % 2 else "down", time)
            if turn % 2 == 0 and at:
                file.prefer(id, f"{at - 1}-{turn}", time, tie=at % 5 == 0)
    file.vote("0-0", 0, "up", DAY)
    file.vote("0-0", 0, None, DAY)
    file.vote("1-0", 0, "down", DAY)
    file.prefer("0-0", "1-0", DAY)
    out = tmp_path / "out"
    found = export_chats(file, out, ExportRange(holdout=0.3))
    written = {kind: len(rows(out, kind)) for kind in FILES}
    held_out = {kind: len(rows(out, f"{kind}.heldout")) for kind in FILES}
    left = rows(out, "left_out")
    for kind in FILES:
        reasons = [row["reason"] for row in left if row["kind"] == kind]
        fate = found.fates[kind]
        assert fate["train"] == written[kind]
        assert fate["heldout"] == held_out[kind]
        assert fate.total() == written[kind] + held_out[kind] + len(reasons)
        assert {reason: reasons.count(reason) for reason in reasons} == {
            name: count for name, count in fate.items() if name not in ("train", "heldout")
        }
    counts = file.counts()
    assert found.fates["prompts"].total() == counts.exchanges == 180
    assert found.fates["thumbs"].total() + found.replaced["votes"] == counts.votes == 93
    direct = [row for name in ("preferences", "preferences.heldout") for row in rows(out, name)]
    direct += [row for row in left if row["kind"] == "preferences"]
    assert sum(row["source"] == "a/b" for row in direct) + found.replaced["preferences"] == counts.preferences
    reasons_found = {row["reason"] for row in left}
    assert {"near_duplicate", "blocked", "equal", "other_side"} <= reasons_found
    assert min(written.values()) > 0
    assert held_out["prompts"] > 0


def test_held_out_users_and_their_prompts_are_apart(file: ChatsFile, tmp_path: Path) -> None:
    for at in range(60):
        question = QUESTIONS[at % 6] if at % 2 else f"{QUESTIONS[at % 6]} {at * at * 104729}"
        file.add(exchange(f"{at}", question, user=f"user {at % 20}", time=DAY + timedelta(minutes=at)))
        file.vote(f"{at}", 0, "up" if at % 2 else "down", DAY)
    found = gather(file, ExportRange(holdout=0.3))
    user_of = {each.id: each.user for each in file.exchanges()}

    def users(name: str) -> set[str | None]:
        return {user_of[row["id"].partition(":")[0]] for row in found.rows[name]}

    def asked(name: str) -> set[str]:
        return {row["prompt"][-1]["content"] for row in found.rows[name]}

    for kind in ("prompts", "thumbs"):
        assert users(kind)
        assert users(f"{kind}.heldout")
        assert not users(kind) & (users("prompts.heldout") | users("thumbs.heldout"))
    seen, held = asked("prompts") | asked("thumbs"), asked("prompts.heldout") | asked("thumbs.heldout")
    assert not seen & held
    assert {row["id"] for row in found.rows["prompts"]}.isdisjoint(
        row["id"] for row in gather(file, ExportRange(holdout=0.3)).rows["prompts.heldout"]
    )
    nobody = gather(file, ExportRange())
    assert not [name for name in nobody.rows if name.endswith(".heldout")]


def test_who_names_no_user_is_divided_by_prompt(file: ChatsFile) -> None:
    for at in range(40):
        file.add(exchange(f"{at}", f"{at * at * 104729} is the number of what?"))
    found = gather(file, ExportRange(holdout=0.5))
    assert 8 <= found.fates["prompts"]["heldout"] <= 32


def test_a_file_that_grows_keeps_its_rows(file: ChatsFile) -> None:
    before: dict[str, list[Any]] = {kind: [] for kind in FILES}
    for at in range(24):
        question = QUESTIONS[at % 4]
        file.add(exchange(f"{at}", question, user=f"user {at % 5}", time=DAY + timedelta(minutes=at)))
        file.vote(f"{at}", 0, "up" if at % 3 else "down", DAY + timedelta(minutes=at))
        now = gather(file, ExportRange(holdout=0.2)).rows
        for kind in FILES:
            assert all(row in now[kind] for row in before[kind])
            before[kind] = list(now[kind])
    assert len(before["preferences"]) == 4


def test_every_thumb_of_the_rarer_kind_meets_a_new_one(file: ChatsFile) -> None:
    for at, vote in enumerate(("up", "up", "up", "down", "down", "down", "down")):
        file.add(exchange(f"{at}", QUESTIONS[0], text=f"text {at}"))
        file.vote(f"{at}", 0, vote, DAY + timedelta(minutes=at))  # type: ignore[arg-type]
    pairs = [row["id"] for row in gather(file, ExportRange()).rows["preferences"]]
    assert pairs == ["0:0+3:0", "1:0+4:0", "2:0+5:0", "0:0+6:0"]


def test_near_duplicates_are_of_the_same_history(file: ChatsFile) -> None:
    told = (Message("user", QUESTIONS[0]), Message("assistant", "It is."))
    file.add(exchange("first", "Tell me more about that, please."))
    file.add(exchange("same", "tell me more about that please!"))
    for id, history in (("later", told), ("later again", told)):
        messages = (*history, Message("user", "Tell me more about that, please."))
        file.add(exchange(id, "", messages=messages, time=DAY + timedelta(hours=1)))
    file.add(exchange("continued", "", messages=told))
    file.add(exchange("empty", "  "))
    found = gather(file, ExportRange())
    assert [row["id"] for row in found.rows["prompts"]] == ["first", "later"]
    left = {row["id"]: row["reason"] for row in found.rows["left_out"]}
    assert left == {
        "same": "near_duplicate",
        "later again": "near_duplicate",
        "continued": "no_question",
        "empty": "no_question",
    }


def test_the_range_is_of_exchanges_and_of_votes(file: ChatsFile) -> None:
    for at, days in enumerate((0, 1, 2, 3)):
        file.add(exchange(f"{at}", QUESTIONS[at], time=DAY + timedelta(days=days)))
    file.vote("0", 0, "up", DAY + timedelta(days=1))
    file.vote("1", 0, "up", DAY)
    found = gather(file, ExportRange(date(2026, 11, 2), date(2026, 11, 3)))
    assert [row["id"] for row in found.rows["prompts"]] == ["1", "2"]
    assert [row["id"] for row in found.rows["thumbs"]] == ["0:0"]
    assert found.outside == {"prompts": 2, "thumbs": 1}
    assert "outside the range: 2 prompts, 1 thumbs" in found.lines
    with pytest.raises(ConfigError, match="the last day lies before the first"):
        ExportRange(date(2026, 11, 3), date(2026, 11, 2))
    with pytest.raises(ConfigError, match="cannot be held out"):
        ExportRange(holdout=1.0)


def test_personal_data_are_masked_in_all_that_is_written(file: ChatsFile, tmp_path: Path) -> None:
    prompt = "I am ada@example.com, call +49 30 901820"
    for id, text in (("a", "write to bob@example.com"), ("b", "no")):
        file.add(exchange(id, prompt, text=text))
    file.vote("a", 0, "up", DAY)
    file.vote("b", 0, "down", DAY)
    found = export_chats(file, tmp_path / "out", ExportRange())
    written = "".join(path.read_text("utf-8") for path in (tmp_path / "out").iterdir())
    assert "example.com" not in written
    assert "901820" not in written
    assert "I am [e-mail], call [phone]" in written
    assert found.masked["e-mail"] == written.count("[e-mail]")
    assert found.masked["phone"] == written.count("[phone]")
    assert any(line.startswith("masked: ") and "e-mail" in line for line in found.lines)


def test_the_command(file: ChatsFile, tmp_path: Path) -> None:
    for at, question in enumerate(QUESTIONS):
        file.add(exchange(f"{at}", question, user=f"{at}"))
    out = tmp_path / "collected"
    said = call("collect", "export", file.path, "--since", "2026-11-01", "--holdout", "0.3", "--out", out)
    assert said.status == 0, said.err
    assert "prompts: 6 in the range:" in said.out
    assert "masked: nothing" in said.out
    assert len(rows(out, "prompts")) + len(rows(out, "prompts.heldout")) == 6
    (out / "left_out.jsonl").write_text("old")
    assert call("collect", "export", file.path, "--until", "2026-10-01", "--out", out).status == 0
    assert rows(out, "prompts") == []
    assert not (out / "left_out.jsonl").exists()
    said = call("collect", "export", file.path, "--limit", 3)
    assert (said.status, "--limit" in said.err) == (1, True)
    (tmp_path / "pairs.jsonl").write_text("{}")
    said = call("collect", "export", tmp_path / "pairs.jsonl", "--since", "2026-11-01")
    assert (said.status, "an option of chats, and the file holds pairs" in said.err) == (1, True)
    said = call("collect", "export", tmp_path / "none.sqlite")
    assert (said.status, "no such file of chats" in said.err) == (1, True)
