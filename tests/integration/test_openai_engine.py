"""The engine against a server that misbehaves on purpose: every request ends in exactly one result, its own,
or a reason."""

from __future__ import annotations

import gc
import gzip
import json
import resource
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
from misbehaving import (
    Action,
    MisbehavingServer,
    answer,
    body_of,
    cut,
    echo,
    echo_key,
    good,
    hang_up,
    logprobs,
    question_of,
    slow,
    status,
    truth,
)

from rlaif.engines.api.api_key import ApiKey
from rlaif.engines.api.costs import CostLimitError, Prices
from rlaif.engines.api.settings import UNKNOWN_CONTEXT, ApiSettings
from rlaif.engines.base import GenerationRequest, LabelReading, LabelRequest, Sampling
from rlaif.engines.journaled import JournaledEngine
from rlaif.engines.openai import OpenAIEngine, open_openai
from rlaif.errors import ModelError
from rlaif.runs.journal import Journal
from rlaif.types import Message

Result = TypeVar("Result")
SECRET = "sk-verysecret-123456789"
FAST: dict[str, Any] = {
    "backoff": 0.01,
    "retries": 3,
    "timeout": 5.0,
    "reads": "logprobs",
    "continues": False,
}


def engine_for(
    *servers: MisbehavingServer, key: ApiKey | None = None, log: list[str] | None = None, **settings: Any
) -> OpenAIEngine:
    heard = log if log is not None else []
    return OpenAIEngine(
        "toy",
        [each.url for each in servers],
        key=key,
        settings=ApiSettings(**FAST | settings),
        log=heard.append,
    )


def questions(count: int, text: str = "question") -> list[LabelRequest]:
    return [LabelRequest((Message("user", f"{text} {number}"),), ("A", "B")) for number in range(count)]


def prompts(count: int) -> list[GenerationRequest]:
    sampling = Sampling(max_new_tokens=64, temperature=0.0)
    return [
        GenerationRequest((Message("user", f"prompt {number}"),), sampling, seed=number)
        for number in range(count)
    ]


def collect(batches: Iterable[Mapping[int, Result]]) -> dict[int, Result]:
    found: dict[int, Result] = {}
    for batch in batches:
        assert batch, "what is yielded holds an answer"
        assert not found.keys() & batch.keys(), "an index comes once"
        found.update(batch)
    return found


def assert_all_true(engine: OpenAIEngine, count: int = 30) -> None:
    asked = questions(count)
    found = collect(engine.label_logprobs(asked))
    assert sorted(found) == list(range(count))
    for number, request in enumerate(asked):
        assert found[number].logprobs == pytest.approx(truth(request.messages[-1].content)), (
            "each gets its own answer"
        )


# Well behaved -----------------------------------------------------------------------------------------------


def test_labels_and_completions_come_from_the_chat_api() -> None:
    with MisbehavingServer(models=[{"id": "toy", "max_model_len": 4096}]) as server:
        engine = engine_for(server)
        assert_all_true(engine)
        found = collect(engine.generate(prompts(9)))
        assert [found[number].text for number in range(9)] == [
            echo(f"prompt {number}") for number in range(9)
        ]
        assert {each.finish for each in found.values()} == {"stop"}
        assert found[0].tokens == 4
        card = engine.card
        assert (card.context, card.chat, card.kind, card.revision) == (4096, True, "openai", "toy")
        assert card.reads == "chat, top 20 log-probabilities, turns folded"
        assert card.identity()["reads"] == card.reads


def test_labels_and_completions_come_from_the_completions_api() -> None:
    with MisbehavingServer() as server:
        engine = engine_for(server, api="completions")
        request = LabelRequest((Message("user", "q"), Message("assistant", "Answer:")), ("A", "B"))
        found = collect(engine.label_logprobs([request]))
        assert found[0].logprobs == pytest.approx(truth("\n\nHuman: q\n\nAssistant: Answer:"))
        assert "You said" in collect(engine.generate(prompts(1)))[0].text
        assert not engine.card.chat
        assert engine.card.context == UNKNOWN_CONTEXT


def test_what_is_done_is_not_asked_and_nothing_is_sent_for_nothing() -> None:
    with MisbehavingServer() as server:
        engine = engine_for(server)
        assert sorted(collect(engine.label_logprobs(questions(5), done={0, 3}))) == [1, 2, 4]
        assert len(server.asked) == 3
        assert collect(engine.label_logprobs(questions(2), done={0, 1})) == {}
        assert collect(engine.generate([])) == {}
        assert len(server.asked) == 3


def test_requests_are_sent_in_the_order_of_their_text() -> None:
    with MisbehavingServer() as server:
        engine = engine_for(server, concurrency=1)
        collect(engine.label_logprobs([*questions(3, "b"), *questions(3, "a")]))
        sent = [question_of(body) for body in server.asked]
        assert sent == sorted(sent)


def test_threads_that_ask_one_engine_take_turns() -> None:
    with MisbehavingServer() as server, ThreadPoolExecutor(3) as pool:
        engine = engine_for(server, concurrency=2)
        asked = [pool.submit(assert_all_true, engine, 30) for _ in range(3)]
        for each in asked:
            each.result(timeout=60)


def test_it_works_where_an_event_loop_is_running() -> None:
    import asyncio

    async def notebook(engine: OpenAIEngine) -> None:
        assert_all_true(engine, 3)

    with MisbehavingServer() as server:
        asyncio.run(notebook(engine_for(server)))


# Faults that pass -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        status(429, retry_after=0.02),
        status(429),
        status(429, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"),
        status(503),
        status(500),
        status(502),
        status(408),
        cut(),
        cut(after=0),
        hang_up(),
        body_of(b"<html>busy</html>"),
        body_of(b""),
        body_of(b'{"choices": [{"index"'),
        body_of(b"[" * 100_000),
        body_of(b"\xff\xfe\x00"),
        body_of(b"null"),
        answer(lambda reply: reply | {"choices": []}),
        answer(lambda reply: {"error": {"message": "CUDA out of memory"}}),
        answer(
            lambda reply: (
                reply | {"choices": [reply["choices"][0], {**reply["choices"][0], "finish_reason": "length"}]}
            )
        ),
    ],
)
def test_a_fault_that_passes_changes_no_answer(fault: Action) -> None:
    with MisbehavingServer() as server:
        engine = engine_for(server)
        _ = engine.card
        server.misbehave(*[fault] * 3)
        assert_all_true(engine)
        assert engine.usage.retries == 3
        assert len(server.asked) == 33


def test_slow_bytes_end_in_a_timeout_and_are_asked_again() -> None:
    with MisbehavingServer() as server:
        engine = engine_for(server, timeout=1.0)
        _ = engine.card
        server.misbehave(slow(6.0))
        assert_all_true(engine, 3)
        assert engine.usage.retries >= 1


def test_a_duplicated_answer_counts_once() -> None:
    with MisbehavingServer(always=answer(lambda reply: reply | {"choices": reply["choices"] * 2})) as server:
        assert_all_true(engine_for(server), 5)


def test_retry_after_is_heeded() -> None:
    with MisbehavingServer() as server:
        engine = engine_for(server)
        _ = engine.card
        server.misbehave(status(429, retry_after=0.5))
        began = time.monotonic()
        assert_all_true(engine, 1)
        assert time.monotonic() - began >= 0.5


def test_concurrency_adapts_to_what_the_server_holds() -> None:
    with MisbehavingServer(capacity=3, work=0.01) as server:
        engine = engine_for(server, concurrency=16, retries=12)
        assert_all_true(engine, 60)
        assert engine._servers[0].window.limit < 12
        assert len(server.asked) < 200, (
            "a fixed window of 16 against a capacity of 3 is refused far more often"
        )


def test_concurrency_is_bounded() -> None:
    with MisbehavingServer(work=0.01) as server:
        assert_all_true(engine_for(server, concurrency=4), 40)
        assert 2 <= server.most_at_once <= 4


# Faults that stay -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (status(429), "transient:rate_limited"),
        (status(503), "transient:overloaded"),
        (status(500), "transient:http_500"),
        (hang_up(), "transient:connection"),
        (cut(), "transient:connection"),
        (body_of(b"<html>"), "transient:bad_json"),
        (body_of(b"{}"), "transient:no_choices"),
        (body_of(b"7"), "transient:not_an_object"),
        (answer(lambda reply: {"choices": ["A"]}), "transient:bad_choice"),
        (status(400, "bad request"), "rejected_400"),
        (status(422), "rejected_422"),
        (status(400, "This model's maximum context length is 10 tokens"), "prompt_too_long"),
        (status(307), "rejected_307"),
        (logprobs((" A", float("nan")), (" B", -1.0)), "not_finite"),
        (logprobs((" A", "x"), (" B", -1.0)), "not_finite"),
        (logprobs((" C", -0.1), (" D", -3.0)), "labels_not_in_top"),
        (
            answer(lambda reply: reply | {"choices": [{**reply["choices"][0], "logprobs": None}]}),
            "no_logprobs",
        ),
    ],
)
def test_a_fault_that_stays_is_told_as_the_reason(fault: Action, reason: str) -> None:
    with MisbehavingServer(always=fault) as server:
        found = collect(engine_for(server, retries=1).label_logprobs(questions(4)))
        assert {number: each.reason for number, each in found.items()} == dict.fromkeys(range(4), reason)
        assert {each.logprobs for each in found.values()} == {()}


def test_a_label_outside_the_top_gets_its_bound() -> None:
    with MisbehavingServer(always=logprobs((" A", -0.1), (" the", -4.0), (" an", -6.0))) as server:
        assert collect(engine_for(server).label_logprobs(questions(1)))[0].logprobs == (-0.1, -6.0)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (status(500), "transient:http_500"),
        (status(400), "rejected_400"),
        (status(400, "input is too long"), "prompt_too_long"),
        (
            answer(
                lambda reply: (
                    reply | {"choices": [{**reply["choices"][0], "finish_reason": "content_filter"}]}
                )
            ),
            "content_filter",
        ),
    ],
)
def test_a_completion_that_cannot_be_had_is_refused_with_its_reason(fault: Action, reason: str) -> None:
    with MisbehavingServer(always=fault) as server:
        refused = collect(engine_for(server, retries=0).generate(prompts(1)))[0]
        assert (refused.finish, refused.text, refused.reason) == ("refused", "", reason)


def test_a_chaotic_server_loses_and_invents_nothing() -> None:
    faults = [
        status(429),
        cut(),
        hang_up(),
        body_of(b"nonsense"),
        status(500),
        answer(),
        logprobs((" A", float("nan"))),
        status(400),
        answer(),
        body_of(b'{"choices": []}'),
        status(503, retry_after=0.01),
        answer(),
    ]
    with MisbehavingServer() as server:
        engine = engine_for(server, retries=1)
        _ = engine.card
        server.misbehave(*faults * 12)
        asked = questions(100)
        found = collect(engine.label_logprobs(asked))
    assert sorted(found) == list(range(100))
    for number, reading in found.items():
        assert bool(reading.logprobs) != bool(reading.reason)
        if reading.logprobs:
            assert reading.logprobs == pytest.approx(truth(asked[number].messages[-1].content))


def test_failures_and_refusals_are_not_journaled_and_asked_again(tmp_path: Path) -> None:
    with MisbehavingServer() as server, Journal(tmp_path / "journal.sqlite") as journal:
        engine = engine_for(server, retries=0, concurrency=1)
        _ = engine.card
        server.misbehave(status(500), status(400), answer())
        first = collect_any(JournaledEngine(engine, journal).label_logprobs(questions(3)))
        assert [first[number].reason for number in range(3)] == ["transient:http_500", "rejected_400", ""]
        second = collect_any(JournaledEngine(engine, journal).label_logprobs(questions(3)))
        assert [second[number].reason for number in range(3)] == ["", "", ""]
        assert len(server.asked) == 5


def collect_any(batches: Iterator[Mapping[int, Result]]) -> dict[int, Result]:
    return {index: value for batch in batches for index, value in batch.items()}


def test_a_server_that_stopped_answering_ends_the_run() -> None:
    with MisbehavingServer(always=status(500)) as server:
        engine = engine_for(server, retries=0, give_up_after=5)
        with pytest.raises(ModelError, match="5 requests in a row") as caught:
            collect(engine.label_logprobs(questions(500)))
        assert "kept" in caught.value.remedy
        assert len(server.asked) < 100


@pytest.mark.parametrize(
    ("code", "words"), [(401, "refuses the key"), (403, "refuses the key"), (404, "no such model")]
)
def test_what_no_request_can_survive_ends_the_run(code: int, words: str) -> None:
    with MisbehavingServer(always=status(code)) as server, pytest.raises(ModelError, match=words):
        collect(engine_for(server).label_logprobs(questions(50)))


# Several servers --------------------------------------------------------------------------------------------


def test_servers_share_the_load_and_equal_prefixes_go_together() -> None:
    with MisbehavingServer(work=0.005) as one, MisbehavingServer(work=0.005) as two:
        engine = engine_for(one, two, concurrency=4)
        asked = [
            LabelRequest(
                (Message("user", f"conversation {each}: {'x' * 80} principle {number}"),), ("A", "B")
            )
            for number in range(4)
            for each in range(24)
        ]
        found = collect(engine.label_logprobs(asked))
        assert all(
            found[number].logprobs == pytest.approx(truth(asked[number].messages[-1].content))
            for number in range(96)
        )
        places: dict[str, set[int]] = {}
        for place, server in enumerate((one, two)):
            for body in server.asked:
                places.setdefault(question_of(body).split(":")[0], set()).add(place)
        assert one.asked
        assert two.asked
        assert sum(len(where) == 1 for where in places.values()) >= 16, (
            "most conversations stay on one server"
        )


def test_a_server_that_dies_hands_its_share_over() -> None:
    with MisbehavingServer() as alive:
        with MisbehavingServer() as dying:
            engine = engine_for(alive, dying, concurrency=4)
            assert_all_true(engine, 40)
        assert_all_true(engine, 40)


def test_a_server_that_is_down_at_first_is_told_and_passed_over() -> None:
    with MisbehavingServer() as gone:
        pass
    heard: list[str] = []
    with MisbehavingServer() as alive:
        assert_all_true(engine_for(gone, alive, log=heard), 20)
    assert any(gone.url in line for line in heard)


def test_no_server_at_all_is_an_error_with_a_remedy() -> None:
    with MisbehavingServer() as gone:
        pass
    with pytest.raises(ModelError, match="no server answers") as caught:
        _ = engine_for(gone).card
    assert "--base-url" in caught.value.remedy


def test_servers_that_serve_different_weights_are_refused() -> None:
    models = [{"id": "toy", "root": "org/one"}], [{"id": "toy", "root": "org/two"}]
    with MisbehavingServer(models=models[0]) as one, MisbehavingServer(models=models[1]) as two:
        with pytest.raises(ModelError, match="different models"):
            _ = engine_for(one, two).card
        assert engine_for(one).card.revision != engine_for(two).card.revision


# What the servers can do ------------------------------------------------------------------------------------


def without_logprobs(reply: dict[str, Any]) -> dict[str, Any]:
    return reply | {
        "choices": [{name: value for name, value in reply["choices"][0].items() if name != "logprobs"}]
    }


def test_a_server_without_log_probabilities_is_read_by_votes() -> None:
    with MisbehavingServer(always=answer(without_logprobs), probes=answer(without_logprobs)) as server:
        engine = engine_for(server, reads="auto", votes=4)
        reading = collect(engine.label_logprobs(questions(1)))[0]
        a, b = truth("question 0")
        assert (reading.logprobs[0] > reading.logprobs[1]) == (a > b)
        assert engine.card.reads == "chat, 4 votes, turns folded"
        assert [body["n"] for body in server.asked] == [4, 3, 2, 1], (
            "a server that ignores n is asked for the rest"
        )
        assert len({body["seed"] for body in server.asked}) == 4
        with pytest.raises(ModelError, match="no log-probabilities"):
            _ = engine_for(server, reads="logprobs").card


def test_one_vote_is_a_parsed_answer_and_an_unclear_one_is_invalid() -> None:
    with MisbehavingServer() as server:
        engine = engine_for(server, reads="votes", votes=1)
        assert engine.card.reads == "chat, parsed answer, turns folded"
        server.misbehave(answer(lambda reply: {"choices": [{"message": {"content": "Well, both are fine"}}]}))
        assert collect(engine.label_logprobs(questions(1)))[0].reason == "no_label_in_answer"
        assert not server.probed


def test_a_server_with_fewer_log_probabilities_is_asked_for_fewer() -> None:
    def picky(handler: Any, body: dict[str, Any]) -> None:
        action = status(400, "at most 5 logprobs") if body["top_logprobs"] > 5 else answer()
        action(handler, body)

    with MisbehavingServer(always=picky, probes=picky) as server:
        engine = engine_for(server)
        assert_all_true(engine, 3)
        assert engine.card.reads.startswith("chat, top 5 ")


def test_the_newer_name_of_the_token_limit_is_found() -> None:
    def picky(handler: Any, body: dict[str, Any]) -> None:
        wrong = "max_completion_tokens" not in body
        (status(400, "Unsupported parameter: use 'max_completion_tokens'") if wrong else answer())(
            handler, body
        )

    with MisbehavingServer(always=picky, probes=picky) as server:
        assert_all_true(engine_for(server), 3)


def test_continuation_is_found_out_by_the_number_of_prompt_tokens() -> None:
    request = [LabelRequest((Message("user", "q"), Message("assistant", "Answer:")), ("A", "B"))]
    with MisbehavingServer() as server:
        engine = engine_for(server, continues=None)
        collect(engine.label_logprobs(request))
        assert server.asked[0]["continue_final_message"] is True
        assert engine.card.reads == "chat, top 20 log-probabilities"

    def strict(handler: Any, body: dict[str, Any]) -> None:
        (status(400, "unknown field") if "continue_final_message" in body else answer())(handler, body)

    def deaf(handler: Any, body: dict[str, Any]) -> None:
        ignored = {name: value for name, value in body.items() if name != "continue_final_message"}
        handler.reply(json.dumps(good(ignored)).encode())

    for probes in (strict, deaf):
        with MisbehavingServer(probes=probes) as server:
            collect(engine_for(server, continues=None).label_logprobs(request))
            assert [turn["role"] for turn in server.asked[0]["messages"]] == ["user"]


@pytest.mark.parametrize(
    ("written", "continues"), [(" five six seven eight", True), ("One two three four five", False)]
)
def test_continuation_is_found_out_by_what_is_written(written: str, continues: bool) -> None:
    """llama.cpp's server continues an assistant's turn with the flag and without it, so that both take as
    many tokens."""
    told: list[str] = []

    def counting(handler: Any, body: dict[str, Any]) -> None:
        reply = good({name: value for name, value in body.items() if name != "continue_final_message"})
        if "numbers from one to eight" in body["messages"][0]["content"]:
            reply["choices"][0]["message"]["content"] = written
        handler.reply(json.dumps(reply).encode())

    request = [LabelRequest((Message("user", "q"), Message("assistant", "Answer:")), ("A", "B"))]
    with MisbehavingServer(probes=counting) as server:
        engine = engine_for(server, log=told, continues=None)
        collect(engine.label_logprobs(request))
        assert (server.asked[0]["messages"][-1]["role"] == "assistant") is continues
    assert ("continues an assistant's turn" in told[0]) is continues
    assert ("does not continue" in told[0]) is not continues


def test_a_reply_that_unfolds_a_thousandfold_is_refused_before_it_is_read() -> None:
    bomb = gzip.compress(bytes(64 << 20), 1)
    assert len(bomb) > 64 << 10

    def explode(handler: Any, body: dict[str, Any]) -> None:
        handler.reply(bomb, headers={"Content-Encoding": "gzip"})

    with MisbehavingServer() as server:
        engine = engine_for(server, retries=0, concurrency=1)
        _ = engine.card
        server.misbehave(explode, answer())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = collect_any(engine.label_logprobs(questions(2)))
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert sorted(reading.reason for reading in found.values()) == ["", "transient:connection"]
    assert grown < 32 << 20


def test_a_body_without_end_is_cut_off_by_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells no length, and comes as fast as it can; the time allowed for a request would fill the
    memory."""
    monkeypatch.setattr("rlaif.engines.api.http.LARGEST_BODY", 1 << 20)

    def endless(handler: Any, _body: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        try:
            for _ in range(10_000):
                handler.wfile.write(chunk)
        except OSError:
            handler.close_connection = True

    with MisbehavingServer(always=endless) as server:
        began = time.monotonic()
        found = collect(engine_for(server, retries=0, timeout=60.0).label_logprobs(questions(1)))
    assert found[0].reason.startswith("transient:")
    assert time.monotonic() - began < 20


def test_a_model_that_is_not_listed_is_told() -> None:
    heard: list[str] = []
    with MisbehavingServer(models=[{"id": "other"}]) as server:
        _ = engine_for(server, log=heard).card
    assert heard == ["no server lists 'toy'; listed: other"]


def test_a_server_that_fails_the_first_question_is_told() -> None:
    with (
        MisbehavingServer(probes=status(500)) as server,
        pytest.raises(ModelError, match="short question: http_500"),
    ):
        _ = engine_for(server, retries=0).card
    with (
        MisbehavingServer(probes=status(404, "no toy here")) as server,
        pytest.raises(ModelError, match="no toy here"),
    ):
        _ = engine_for(server).card


def consume(stream: Iterator[Mapping[int, Result]], found: dict[int, Result]) -> None:
    """Take answers until the stream ends or raises; those taken stay in `found`."""
    for batch in stream:
        found.update(batch)


# Money ------------------------------------------------------------------------------------------------------


def test_the_cost_limit_is_kept_and_what_was_answered_is_yielded() -> None:
    limit = 0.002
    with MisbehavingServer() as server:
        engine = engine_for(server, prices=Prices(input=10.0, output=10.0), max_cost=limit)
        stream = engine.label_logprobs(questions(1000))
        found: dict[int, LabelReading] = {}
        with pytest.raises(CostLimitError, match="could cost more"):
            consume(stream, found)
        assert 0 < len(found) < 1000
        assert len(found) == len(server.asked), "what was paid for is yielded"
        assert 0 < engine.usage.cost <= limit
        assert engine.usage.as_dict()["requests"] == len(server.asked) + len(server.probed)


# The key ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [400, 401, 403, 404, 422, 429, 500])
@pytest.mark.parametrize("at", ["always", "probes"])
def test_a_key_that_the_server_echoes_is_in_no_error_log_or_card(
    code: int, at: str, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []
    shown: list[str] = []
    with MisbehavingServer(**{at: echo_key(code)}) as server, caplog.at_level("INFO"):
        engine = engine_for(server, key=ApiKey(SECRET), log=heard, retries=1)
        try:
            found = collect(engine.label_logprobs(questions(2)))
            shown += [repr(found), repr(engine.card)]
        except ModelError as error:
            shown += [str(error), repr(error), "".join(traceback.format_exception(error))]
            cause: BaseException | None = error
            while (cause := cause.__context__ if cause else None) is not None:
                shown += [str(cause), repr(cause.__dict__)]
        assert server.asked or server.probed
    shown += [repr(engine), repr(engine.__dict__), repr(engine.settings), caplog.text, *heard]
    assert SECRET not in "".join(shown)


def test_the_key_reaches_the_server_and_open_openai_reads_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[str] = []

    def see(handler: Any, body: dict[str, Any]) -> None:
        seen.append(handler.headers["Authorization"])
        answer()(handler, body)

    monkeypatch.setenv("OPENAI_API_KEY", "not-for-this-host")
    with MisbehavingServer(probes=see) as server:
        open_openai("openai:toy", base_urls=[server.url], settings=ApiSettings(**FAST))
        (tmp_path / "key").write_text(SECRET, encoding="utf-8")
        open_openai(
            "openai:toy", base_urls=[server.url], api_key_file=tmp_path / "key", settings=ApiSettings(**FAST)
        )
    assert seen == ["Bearer none", f"Bearer {SECRET}"]


# Ends -------------------------------------------------------------------------------------------------------


def test_a_caller_that_stops_early_leaves_nothing_running() -> None:
    with MisbehavingServer(work=0.02) as server:
        engine = engine_for(server, concurrency=2)
        stream = engine.label_logprobs(questions(500))
        next(stream)
        began = time.monotonic()
        assert isinstance(stream, Iterator)
        stream.close()  # type: ignore[attr-defined]
        assert time.monotonic() - began < 2.0
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("rlaif-openai")]
        assert len(server.asked) < 20
        assert_all_true(engine, 5)
    gc.collect()


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for module in [
        name
        for name in sys.modules
        if name.startswith("rlaif.engines.")
        and name.rsplit(".", 1)[1] in ("session", "asker", "calls", "handshake")
    ]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ModelError, match="needs the package openai") as caught:
        _ = OpenAIEngine("toy").card
    assert caught.value.remedy == "pip install 'rlaif-toolkit[api]'"
