"""What a file of chats holds, in figures; and how often the rules for use cases agree with people."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from spine import call

from rlaif import stats
from rlaif.chats.records import Answer, Exchange
from rlaif.chats.store import ChatsFile
from rlaif.chats.summary import chat_stats, share_of
from rlaif.chats.use_cases import INSTRUCT_GPT, language_of, use_case_of
from rlaif.digest import unit_from
from rlaif.io.readers import read_prompts
from rlaif.types import Message

FIXTURES = Path(__file__).parents[1] / "fixtures"
DAY = datetime(2026, 11, 1, 12, tzinfo=UTC)


def test_the_rules_agree_with_the_prompts_that_they_were_written_with() -> None:
    rows = [json.loads(line) for line in (FIXTURES / "use-cases.jsonl").read_text("utf-8").splitlines()]
    agreed = [use_case_of([Message("user", row["text"])]) == row["use_case"] for row in rows]
    assert len(rows) == 137
    assert {row["use_case"] for row in rows} == set(INSTRUCT_GPT)
    assert sum(agreed) >= 126


def test_how_often_the_rules_agree_on_prompts_that_they_were_not_written_with() -> None:
    """Half of the built-in prompts, which have a use case by hand and were not looked at: 70 %."""
    names = {name: name for name in INSTRUCT_GPT} | {"extraction": "extract"}
    agreed = [
        use_case_of(prompt.messages) == names[tag]
        for prompt in read_prompts("builtin").items
        for tag in prompt.tags
        if tag in names and unit_from("uc", prompt.id) >= 0.5
    ]
    assert len(agreed) == 224
    assert sum(agreed) >= 156


def test_a_later_turn_that_asks_nothing_known_is_chat() -> None:
    told = (Message("user", "Why is the sea salty?"), Message("assistant", "Rivers carry salt."))
    assert use_case_of(told) == "open_qa"
    assert use_case_of([*told, Message("user", "interesting")]) == "chat"
    assert use_case_of([Message("user", "interesting")]) == "other"
    assert use_case_of([Message("user", "x " * 9000 + "Summarize the above.")]) == "summarization"
    assert sum(INSTRUCT_GPT.values()) == pytest.approx(1, abs=0.002)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Why is the sea salty?", "en"),
        ("Warum ist das Meer so salzig, und was kann ich tun?", "de"),
        ("Pourquoi est-ce que la mer est salée ?", "fr"),
        ("¿Por qué el mar es salado y los ríos no?", "es"),
        ("海水为什么是咸的？", "zh"),
        ("海の水はなぜしょっぱいの？", "ja"),
        ("Почему море солёное?", "cyrillic"),
        ("翻译 this", "zh"),
        ("12345 ...", "unknown"),
    ],
)
def test_languages(text: str, language: str) -> None:
    assert language_of(text) == language


@pytest.fixture
def file(tmp_path: Path) -> ChatsFile:
    file = ChatsFile(tmp_path / "chats.sqlite")
    for at in range(24):
        model = "old" if at % 2 else "new"
        finish = "content_filter" if at == 3 else "stop"
        user = None if at % 6 == 5 else f"u{at % 12}"
        question = "Write a poem." if at % 3 else "Why is the sea salty?"
        messages = (Message("user", question),)
        time = DAY + timedelta(days=at // 12)
        answers = (Answer(0, "a", finish),)
        file.add(Exchange(f"{at}", time, model, messages, answers, user=user, policy=f"{model}-digest"))
        file.vote(f"{at}", 0, "up" if at % 2 == 0 or at < 6 else "down", DAY)
    file.vote("0", 0, "down", DAY)
    file.vote("2", 0, None, DAY)
    file.flag("4", 0, "rude\x1b[0m", DAY)
    file.prefer("0", "3", DAY)
    file.prefer("0", "3", DAY, tie=True)
    file.prefer("6", "9", DAY)
    file.prefer("0", "6", DAY)  # of one policy: says nothing about policies
    return file


def test_counts_of_a_file(file: ChatsFile) -> None:
    found = chat_stats(file)
    assert found.exchanges == 24
    assert found.use_cases == {"generation": 16, "open_qa": 8}
    assert found.languages == {"en": 24}
    new, old = found.policies["new", "new-digest"], found.policies["old", "old-digest"]
    assert (new.exchanges, new.answers, new.blocked, new.flags) == (12, 12, 0, 1)
    assert (old.exchanges, old.blocked, old.flags) == (12, 1, 0)
    assert (sum(value for value, _ in new.up), len(new.up)) == (10, 11)
    assert (sum(value for value, _ in old.up), len(old.up)) == (3, 12)
    assert sorted(value for value, _ in new.won) == [0.5, 1.0]
    assert sorted(value for value, _ in old.won) == [0.0, 0.5]
    assert found.users == {"2026-11-01": 10, "2026-11-02": 10}
    assert found.anonymous == {"2026-11-01": 2, "2026-11-02": 2}
    lines = "\n".join(found.lines)
    assert "generation         16  66.7% [46.7%, 82.0%]" in lines
    assert "45.6%" in lines
    assert r"flagged: rude\x1b[0m" in lines
    assert "new (new-dige): 12 exchanges, 0 of 12 answers blocked, 1 flag" in lines


def test_intervals_count_users_where_there_are_enough(file: ChatsFile) -> None:
    few = [(float(at % 2), f"u{at % 4}") for at in range(40)]
    assert share_of(few) == stats.wilson(20, 40)
    same = [(1.0, f"u{at}") for at in range(40)]
    assert share_of(same) == stats.wilson(40, 40)
    # Twelve users of ten equal votes each know as much as twelve votes, not as 120.
    clustered = [(float(user % 2), f"u{user}") for user in range(12) for _ in range(10)]
    found = share_of(clustered)
    assert found.value == 0.5
    assert found.high - found.low > 2 * (stats.wilson(60, 120).high - stats.wilson(60, 120).low)


def test_the_command(file: ChatsFile, tmp_path: Path) -> None:
    said = call("collect", "stats", file.path)
    assert said.status == 0, said.err
    assert said.out.startswith("24 exchanges\n")
    told = json.loads(call("collect", "stats", file.path, "--json").out)
    assert told["use_cases"]["generation"] == {"count": 16, "share": 2 / 3, "instruct_gpt": 0.456}
    assert told["policies"][0]["votes"]["count"] == 11
    assert told["policies"][0]["comparisons"]["share"] == 0.75
    ChatsFile(tmp_path / "empty.sqlite").close()
    said = call("collect", "stats", tmp_path / "empty.sqlite")
    assert (said.status, said.out.startswith("0 exchanges")) == (0, True)
    assert call("collect", "stats", tmp_path / "none.sqlite").status == 1
