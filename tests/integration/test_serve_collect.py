"""`rlaif serve --collect`, asked by the official client: what is kept, what is said about it, what is refused."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import openai
import pytest
from collected import ASKED, PATIENCE, Collected, collected
from spine import call
from tiny import save_tiny

from rlaif.chats.keeper import ChatKeeper
from rlaif.chats.store import ChatsFile
from rlaif.models.shared_base import LoraSettings, SharedBase
from rlaif.serving import collecting
from rlaif.serving.collecting import Collecting
from rlaif.serving.residents import Residents, open_residents
from rlaif.serving.wire import ChatRequest, event
from rlaif.types import Message

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def residents(tmp_path_factory: pytest.TempPathFactory) -> Residents:
    root = tmp_path_factory.mktemp("collect")
    save_tiny(root / "base")
    base = SharedBase.load(str(root / "base"), dtype="float32", device="cpu")
    base.add_adapter("policy", LoraSettings(rank=2), seed=1)
    base.save_adapter("policy", root / "policy")
    return open_residents(str(root / "base"), [f"policy={root / 'policy'}"], dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def running(residents: Residents, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collected]:
    with collected(residents, tmp_path_factory.mktemp("file") / "chats.sqlite") as server:
        yield server


def test_only_what_agrees_is_kept_and_as_it_was_answered(running: Collected, residents: Residents) -> None:
    before = running.kept().counts().exchanges
    silent = running.api.chat.completions.create(**ASKED)
    refused = running.ask(store=False)
    assert "stored" not in silent.model_dump() | refused.model_dump()
    told = running.ask(user="ada", metadata={"page": "a"}, n=2, seed=3)
    assert told.stored is True
    found = {each.id: each for each in running.kept().exchanges()}
    assert len(found) == before + 1
    kept = found[told.id]
    assert kept.messages == (Message("user", "What is yes?"),)
    assert [each.text for each in kept.answers] == [each.message.content for each in told.choices]
    assert [each.finish for each in kept.answers] == [each.finish_reason for each in told.choices]
    assert kept.usage == told.usage.model_dump(exclude_none=True)
    assert (kept.model, kept.policy) == ("policy", residents.revisions["policy"])
    assert residents.revisions["policy"] != residents.revisions[residents.base.name]
    assert kept.metadata == {"page": "a"}
    assert kept.user == running.kept().hashed("ada")
    assert b"ada" not in running.path.read_bytes()


@pytest.mark.parametrize("with_usage", [False, True])
def test_a_stream_says_in_its_last_chunk_whether_it_was_kept(running: Collected, with_usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if with_usage else {}
    pieces = list(running.ask(stream=True, n=2, seed=4, **options))
    said = [piece.model_dump().get("stored") for piece in pieces]
    assert said == [None] * (len(pieces) - 1) + [True]
    assert bool(pieces[-1].choices) is not with_usage
    kept = {each.id: each for each in running.kept().exchanges()}[pieces[0].id]
    for answer in kept.answers:
        mine = [each.choices[0] for each in pieces if each.choices and each.choices[0].index == answer.choice]
        assert answer.text == "".join(each.delta.content or "" for each in mine)
        assert [answer.finish] == [each.finish_reason for each in mine if each.finish_reason]
    assert kept.usage is not None
    assert kept.usage["completion_tokens"] > 2
    plain = list(running.api.chat.completions.create(**ASKED, stream=True))
    assert not any("stored" in piece.model_dump() for piece in plain)


def test_a_stream_that_is_given_up_is_not_kept(running: Collected) -> None:
    before = running.kept().counts().exchanges
    with running.ask(stream=True, max_tokens=500, seed=1) as stream:
        next(iter(stream))
    running.ask()
    assert running.kept().counts().exchanges == before + 1


def test_what_moderation_and_directives_said_is_kept() -> None:
    gathered = collecting._Gathered()
    head = {"id": "chatcmpl-1", "model": "m", "directives": {"digest": "d1", "applied": ["x"]}}
    assert not gathered.add({**head, "choices": [{"index": 0, "delta": {"content": "No"}}]})
    last = {
        "index": 0,
        "delta": {"content": "."},
        "finish_reason": "content_filter",
        "moderation": {"category": "harm", "score": 0.9},
    }
    assert gathered.add({**head, "choices": [last]})
    body = gathered.body({"total_tokens": 2})
    answer = collecting._answer(body["choices"][0])
    assert (answer.text, answer.blocked) == ("No.", True)
    assert answer.extra == {"moderation": {"category": "harm", "score": 0.9}}
    assert body["directives"]["digest"] == "d1"
    assert body["usage"] == {"total_tokens": 2}


def test_a_stream_that_fails_after_a_choice_has_ended_is_not_kept() -> None:
    ended = {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    sent = [event(ended), event({"error": {"message": "the model failed"}})]

    async def events() -> AsyncIterator[bytes]:
        for each in sent:
            yield each

    class Unasked(Collecting):
        async def keep(self, asked: ChatRequest, body: Any) -> bool:
            raise AssertionError("it was kept")

    async def received() -> list[bytes]:
        asked = ChatRequest.model_validate(ASKED | {"store": True})
        chats = Unasked(None, {}, "")  # type: ignore[arg-type]
        return [piece async for piece in collecting.kept_stream(chats, asked, events())]

    assert asyncio.run(received()) == sent


def test_votes_flags_and_preferences(running: Collected) -> None:
    one, two, other = running.ask(seed=1).id, running.ask(seed=2).id, running.ask(messages=[_user("else")]).id
    for vote in ("up", "up", "down"):
        status, said = running.send("POST", "/v1/feedback", {"id": one, "vote": vote})
        assert (status, said["vote"], said["choice"]) == (200, vote, 0)
    assert running.send("POST", "/v1/feedback", {"id": two, "flag": "it is wrong"})[0] == 200
    assert running.send("POST", "/v1/feedback", {"id": two, "vote": None, "flag": "still"})[0] == 200
    assert running.send("POST", "/v1/preferences", {"chosen": one, "rejected": two, "tie": False})[0] == 200
    file = running.kept()
    assert [each.vote for each in file.votes() if each.exchange == one] == ["up", "up", "down"]
    assert [each.vote for each in file.votes() if each.exchange == two] == []
    assert [each.text for each in file.flags() if each.exchange == two] == ["it is wrong", "still"]
    assert (one, two) in [(each.chosen, each.rejected) for each in file.preferences()]
    status, said = running.send("POST", "/v1/preferences", {"chosen": one, "rejected": other})
    assert (status, said["error"]["param"]) == (400, "rejected")
    assert running.send("DELETE", f"/v1/chats/{one}") == (
        200,
        {"id": one, "object": "chat.deleted", "deleted": True},
    )
    assert running.send("DELETE", f"/v1/chats/{one}")[0] == 404
    assert running.send("POST", "/v1/feedback", {"id": one, "vote": "up"})[0] == 404


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("feedback", {"id": "chatcmpl-none", "vote": "up"}, 404, "id"),
        ("feedback", {"id": "ID", "vote": "sideways"}, 400, "vote"),
        ("feedback", {"id": "ID"}, 400, "vote"),
        ("feedback", {"id": "ID", "flag": "x" * 2001}, 400, "flag"),
        ("feedback", {"id": "ID", "flag": ""}, 400, "flag"),
        ("feedback", {"id": "ID", "vote": "up", "choice": 1}, 400, "choice"),
        ("feedback", {"id": "ID", "vote": "up", "choice": -1}, 400, "choice"),
        ("feedback", {"id": "ID", "vote": "up", "more": 1}, 400, "more"),
        ("feedback", {"vote": "up"}, 400, "id"),
        ("preferences", {"chosen": "ID", "rejected": "ID"}, 400, "rejected"),
        ("preferences", {"chosen": "ID", "rejected": "chatcmpl-none"}, 404, "chosen"),
        ("preferences", {"chosen": "ID"}, 400, "rejected"),
        ("preferences", {"chosen": "ID", "rejected": "x", "tie": "no"}, 400, "tie"),
    ],
)
def test_what_means_nothing_is_refused(
    running: Collected, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    id = running.ask().id
    before = running.kept().counts()
    sent = {name: id if value == "ID" else value for name, value in body.items()}
    found, said = running.send("POST", f"/v1/{path}", sent)
    assert (found, said["error"]["param"]) == (status, param)
    assert set(said["error"]) == {"message", "type", "param", "code"}
    assert running.kept().counts() == before


def test_limits_of_metadata(running: Collected) -> None:
    for wrong in ({str(at): "x" for at in range(17)}, {"k" * 65: "x"}, {"k": "x" * 513}, {"k": 1}):
        with pytest.raises(openai.BadRequestError, match="metadata"):
            running.ask(metadata=wrong)


def test_without_a_file_nothing_is_kept_and_that_is_said(residents: Residents) -> None:
    with collected(residents, None) as plain:
        assert plain.ask().stored is False
        assert [piece.model_dump().get("stored") for piece in plain.ask(stream=True)][-1] is False
        for method, path, body in (
            ("POST", "/v1/feedback", {"id": "a", "vote": "up"}),
            ("POST", "/v1/preferences", {"chosen": "a", "rejected": "b"}),
            ("DELETE", "/v1/chats/a", None),
        ):
            status, said = plain.send(method, path, body)
            assert (status, said["error"]["code"]) == (404, "not_collecting")
            assert "--collect" in said["error"]["message"]


def test_a_locked_file_stops_no_answer(residents: Residents, tmp_path: Path) -> None:
    with collected(residents, tmp_path / "chats.sqlite") as server:
        kept = server.ask().id
        other = sqlite3.connect(server.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        said = server.ask()
        assert said.stored is False
        assert said.choices[0].finish_reason in ("stop", "length")
        status, answer = server.send("POST", "/v1/feedback", {"id": kept, "vote": "up"})
        assert (status, answer["error"]["type"]) == (503, "server_error")
        other.execute("ROLLBACK")
        other.close()
        assert server.ask().stored is True
        assert server.metric("rlaif_chats_failed_total") == 2
        assert server.metric("rlaif_chats_stored_total") == 2
        assert any("could not be stored (database is locked)" in line for line in server.log)
        assert server.kept().counts() == (2, 0, 0, 0)


def test_a_full_disk_stops_no_answer(residents: Residents, tmp_path: Path) -> None:
    with collected(residents, tmp_path / "chats.sqlite") as server:
        assert server.server._chats is not None
        pages = server.server._chats.do(lambda file: file._one("PRAGMA page_count")[0]).result()
        server.server._chats.do(lambda file: file._one(f"PRAGMA max_page_count = {pages}")).result()
        said = [server.ask(messages=[_user("x" * 700)]).stored for _ in range(12)]
        assert said[-1] is False
        assert any("database or disk is full" in line for line in server.log)
        assert server.kept().counts().exchanges == said.count(True)


def test_a_disk_that_does_not_answer_is_not_waited_for(
    residents: Residents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was given up is not written later: the client was told that it is not kept."""
    monkeypatch.setattr(collecting, "PATIENCE", 0.05)
    with collected(residents, tmp_path / "chats.sqlite") as server:
        gate = threading.Event()
        assert server.server._chats is not None
        server.server._chats.do(lambda _: gate.wait(PATIENCE))
        assert server.ask().stored is False
        gate.set()
        monkeypatch.setattr(collecting, "PATIENCE", PATIENCE)
        assert server.ask().stored is True
        assert any("the disk took too long" in line for line in server.log)
        assert server.kept().counts().exchanges == 1


def test_a_request_id_that_comes_twice_is_kept_once(running: Collected) -> None:
    first = running.ask(extra_headers={"X-Request-Id": "mine"})
    again = running.ask(extra_headers={"X-Request-Id": "mine"})
    assert (first.id, first.stored, again.stored) == ("chatcmpl-mine", True, False)


def test_what_people_are_told(tmp_path: Path) -> None:
    keeper = ChatKeeper(ChatsFile(tmp_path / "chats.sqlite"), retain=timedelta(days=30))
    assert Collecting(keeper, {}, "We keep it.").info == {"consent": "We keep it.", "retain_days": 30}
    keeper.close()


def test_the_command_refuses_before_it_loads_a_model(tmp_path: Path) -> None:
    said = call("serve", "--model", "nothing", "--retain", "30d")
    assert (said.status, "nothing is collected" in said.err) == (1, True)
    said = call("serve", "--model", "nothing", "--collect", tmp_path / "a.sqlite", "--retain", "soon")
    assert (said.status, "is no age" in said.err) == (1, True)
    (tmp_path / "notes.txt").write_text("no database " * 100)
    said = call("serve", "--model", "nothing", "--port", 0, "--collect", tmp_path / "notes.txt")
    assert (said.status, "not a file of chats" in said.err) == (1, True)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
