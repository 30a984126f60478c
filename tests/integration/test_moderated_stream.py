"""What leaves a server that moderates, read from the socket byte by byte: nothing of what is held, whatever
the word, its place, its tokens and the hold; and what is said in its place."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import openai
import pytest
import torch
from moderators import Oracle, StateReader
from standin import in_a_thread
from tiny import save_tiny, tiny_tokenizer

from rlaif.engines.base import LabelRequest
from rlaif.engines.scripted import ScriptedEngine
from rlaif.errors import ConfigError, ModelError
from rlaif.models.shared_base import LoraSettings, SharedBase
from rlaif.moderation.base import Moderator
from rlaif.moderation.blocklist import BlockList, Entry
from rlaif.moderation.united import United
from rlaif.reward.files import save_reward_model
from rlaif.reward.head import ScalarHead
from rlaif.reward.model import Member, RewardModel
from rlaif.serving.batcher import Batcher, Limits, NotServing, QueueFull
from rlaif.serving.cascade import Cascade
from rlaif.serving.hold import Flag
from rlaif.serving.lane import Lane
from rlaif.serving.moderating import Moderation, blocked_message
from rlaif.serving.residents import Residents, open_residents
from rlaif.serving.server import ModelServer, ServerSettings
from rlaif.serving.stream import TextStream
from rlaif.serving.work import Row
from rlaif.types import Constitution, Message, Principle

PATIENCE = 30.0
NOTICE = blocked_message(Flag("oracle", 0.9))
TOKENIZER = tiny_tokenizer()
END = TOKENIZER.eos_token_id
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def residents(tmp_path_factory: pytest.TempPathFactory) -> Residents:
    root = tmp_path_factory.mktemp("moderated")
    save_tiny(root / "base")
    base = SharedBase.load(str(root / "base"), dtype="float32", device="cpu")
    base.add_adapter("policy", LoraSettings(rank=2), seed=1)
    generator = torch.Generator().manual_seed(2)
    for weight in base.trainable("policy"):
        weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    base.save_adapter("policy", root / "policy")
    head = ScalarHead(base.hidden_size)
    head.draw(3)
    reward = RewardModel(base, [Member("reference", head.requires_grad_(False))], pooling="last")
    probes = [[Message("user", "a"), Message("assistant", "yes")]]
    save_reward_model(reward, root / "reward" / "model", probes=probes)
    policies = [f"policy={root / 'policy'}"]
    return open_residents(str(root / "base"), policies, root / "reward", dtype="float32", device="cpu")


@contextmanager
def served(
    residents: Residents, moderation: Moderation, log: list[str] | None = None
) -> Iterator[ModelServer]:
    said: list[str] = [] if log is None else log
    server = ModelServer(residents, ServerSettings(port=0, rows=8), said.append, moderation=moderation)
    with in_a_thread(server):
        yield server


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


@contextmanager
def scripted(*answers: Sequence[int]) -> Iterator[None]:
    """Inside the block choice i of every request is answered with the tokens `answers[i]`; the model is run
    as ever."""
    draw = Lane._draw

    def drawn(self: Lane, rows: Sequence[Row], state: torch.Tensor) -> torch.Tensor:
        tokens = []
        for row in rows:
            script = answers[row.choice % len(answers)]
            tokens.append(script[min(row.count, len(script) - 1)])
            if row.draws:
                row.take(tokens[-1], self.ends)
        return torch.tensor(tokens)[:, None]

    Lane._draw = drawn  # type: ignore[method-assign]
    try:
        yield
    finally:
        Lane._draw = draw  # type: ignore[method-assign]


def wire(server: ModelServer, **asked: Any) -> bytes:
    """All bytes of an answer, read one by one until the server closes."""
    body = json.dumps({"model": "policy", "messages": [{"role": "user", "content": "ask"}]} | asked).encode()
    host, _, port = server.url.removeprefix("http://").partition(":")
    found = bytearray()
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        while byte := connection.recv(1):
            found += byte
    return bytes(found)


def events(raw: bytes) -> list[dict[str, Any]]:
    """The events of a stream in raw bytes; their lines are whole, as chunks of HTTP hold whole events."""
    lines = [line for line in raw.split(b"\n") if line.startswith(b"data: ")]
    assert lines[-1] == b"data: [DONE]"
    return [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]


def spoken(stream: Sequence[dict[str, Any]], choice: int = 0) -> str:
    mine = [each["choices"][0] for each in stream if each["choices"]]
    return "".join(each["delta"].get("content", "") for each in mine if each["index"] == choice)


def ended(stream: Sequence[dict[str, Any]], choice: int = 0) -> dict[str, Any]:
    mine = [each["choices"][0] for each in stream if each["choices"]]
    (last,) = [each for each in mine if each["finish_reason"] and each["index"] == choice]
    return last


def api_of(server: ModelServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)


def tokens(text: str) -> list[int]:
    ids: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return ids


def pieces(ids: Sequence[int]) -> list[str]:
    """The text that each token brings."""
    stream = TextStream(TOKENIZER)
    return [stream.push(token) for token in ids]


def with_notice(text: str, notice: str = NOTICE) -> str:
    return f"{text}\n\n{notice}" if text else notice


@pytest.mark.parametrize("hold", [1, 4, 16])
@pytest.mark.parametrize(
    ("filler", "word"), [("the inner yes ", "QZQ"), ("在海里有鱼", "瓦格"), ("the sea ", "Q")]
)
def test_no_held_token_leaves_the_server(residents: Residents, filler: str, word: str, hold: int) -> None:
    """The word at every place of the answer: what is read from the socket is exactly the text of the tokens
    that were followed by `hold - 1` tokens which were scored without a flag."""
    around, inside = tokens(filler * 2), tokens(word)
    assert len(inside) == len(word.encode())  # a token a byte: split wherever it can be
    with served(residents, Moderation(Oracle(word), hold=hold)) as server:
        for place in range(0, len(around), 3 if ord(word[0]) > 255 else 2):
            script = [*around[:place], *inside, *around[place:], END]
            flagged = place + len(inside)  # tokens when the word is whole
            released = "".join(pieces(script[:-1])[: max(0, flagged - hold)])
            with scripted(script):
                raw = wire(server, stream=True, stream_options={"include_usage": True})
            stream = events(raw)
            assert spoken(stream) == with_notice(released)
            assert ended(stream)["finish_reason"] == "content_filter"
            assert ended(stream)["moderation"] == {"category": "oracle", "score": 0.9}
            assert stream[-1]["usage"]["completion_tokens"] == flagged
            if hold >= len(inside):
                assert not any(character.encode() in raw for character in word)


def test_unless_it_is_flagged_all_of_an_answer_goes_out(residents: Residents) -> None:
    """Long and short, ended by the model, by its length and by a stop string."""
    with served(residents, Moderation(Oracle("QZQ"), hold=4)) as server:
        for text in ("", "y", "yes", "the inner yes the other", "鱼", "在海里有鱼"):
            ids = tokens(text)
            with scripted([*ids, END]):
                stream = events(wire(server, stream=True))
            assert spoken(stream) == text
            assert ended(stream)["finish_reason"] == "stop"
            with scripted(ids or [END]):
                whole = wire(server, max_tokens=max(1, len(ids))).rpartition(b"\r\n\r\n")[2]
            (choice,) = json.loads(whole)["choices"]
            assert choice["message"]["content"] == text
            assert choice["finish_reason"] == ("length" if ids else "stop")
        with scripted(tokens("the inner yes the other")):
            stream = events(wire(server, stream=True, stop="yes the"))
        assert spoken(stream) == "the inner "
        assert ended(stream)["finish_reason"] == "stop"


@pytest.mark.parametrize("hold", [1, 3])
def test_text_that_may_begin_a_stop_string_is_scored_when_it_is_drawn(
    residents: Residents, hold: int
) -> None:
    """`ZQ` is kept back as the possible beginning of the stop string `ZQ!`; the moderator reads it at once,
    else `Q` would have gone out before the word was known."""
    script = [*tokens("aQZQxyz"), END]
    with served(residents, Moderation(Oracle("QZQ"), hold=hold)) as server, scripted(script):
        raw = wire(server, stream=True, stop="ZQ!")
    assert spoken(events(raw)) == with_notice("aQZQ"[: 4 - hold].replace("ZQ", "").removesuffix("Z"))
    assert b"ZQ" not in raw


def test_what_a_stop_string_cuts_off_is_not_blocked(residents: Residents) -> None:
    script = [*tokens("abQZQ"), END]
    with served(residents, Moderation(Oracle("QZQ"), hold=2)) as server, scripted(script):
        stream = events(wire(server, stream=True, stop="ZQ"))
    assert spoken(stream) == "abQ"
    assert ended(stream)["finish_reason"] == "stop"


def test_the_word_that_ends_the_answer_is_blocked(residents: Residents) -> None:
    """At its last token, by its length, and where the model ends its turn."""
    with served(residents, Moderation(Oracle("QZQ"), hold=4)) as server:
        for script, most in (([*tokens("abcdefQZQ"), END], 20), (tokens("abcdefQZQ"), 9)):
            with scripted(script):
                stream = events(wire(server, stream=True, max_tokens=most))
            assert spoken(stream) == with_notice("abcde")
            assert ended(stream)["finish_reason"] == "content_filter"


def test_each_of_several_choices_is_blocked_alone(residents: Residents) -> None:
    scripts = [[*tokens("abcdefghQZQxyz"), END], [*tokens("the inner yes"), END]]
    with served(residents, Moderation(Oracle("QZQ"), hold=4)) as server, scripted(*scripts):
        stream = events(wire(server, stream=True, n=2, stream_options={"include_usage": True}))
        whole = json.loads(wire(server, n=2).rpartition(b"\r\n\r\n")[2])
    assert [spoken(stream, choice) for choice in (0, 1)] == [with_notice("abcdefg"), "the inner yes"]
    assert [ended(stream, choice)["finish_reason"] for choice in (0, 1)] == ["content_filter", "stop"]
    assert "moderation" not in ended(stream, 1)
    assert [each["message"]["content"] for each in whole["choices"]] == [
        with_notice("abcdefg"),
        "the inner yes",
    ]
    assert whole["choices"][0]["moderation"] == {"category": "oracle", "score": 0.9}
    assert whole["usage"] == stream[-1]["usage"]
    assert whole["usage"]["completion_tokens"] == 11 + len(scripts[1])


def test_the_best_is_chosen_among_those_that_are_not_blocked(residents: Residents) -> None:
    blocked, fine = [*tokens("QZQ"), END], [*tokens("yes"), END]
    with served(residents, Moderation(Oracle("QZQ"), hold=4)) as server:
        for scripts, text, finish in (
            ((blocked, fine), "yes", "stop"),
            ((blocked, blocked), NOTICE, "content_filter"),
        ):
            with scripted(*scripts):
                raw = wire(server, n_best=2)
            (choice,) = json.loads(raw.rpartition(b"\r\n\r\n")[2])["choices"]
            assert choice["message"]["content"] == text
            assert choice["finish_reason"] == finish
            assert ("reward" in choice) == (finish == "stop")
            assert b"QZQ" not in raw


def test_a_blocked_row_leaves_its_lane_at_once(residents: Residents) -> None:
    steps: list[int] = []
    hidden = residents.base.hidden

    def counted(ids: torch.Tensor, *inputs: Any, **options: Any) -> Any:
        steps.append(len(ids))
        return hidden(ids, *inputs, **options)

    script = [*tokens("abQZQ"), *tokens("x" * 50)]
    with served(residents, Moderation(Oracle("QZQ"), hold=4)) as server, scripted(script):
        residents.base.hidden = counted  # type: ignore[method-assign]
        try:
            wire(server, max_tokens=50)
        finally:
            del residents.base.hidden  # type: ignore[method-assign]
    assert len(steps) == 5  # the prompt, and the four tokens before the last of the word


def test_a_prompt_is_scored_before_it_is_decoded(residents: Residents) -> None:
    log: list[str] = []
    with served(residents, Moderation(Oracle("QZQ"), hold=4), log) as server:
        asked: Any = {"messages": [{"role": "user", "content": "say QZQ"}]}
        stream = events(wire(server, **asked, stream=True, n=2, stream_options={"include_usage": True}))
        whole = json.loads(wire(server, **asked).rpartition(b"\r\n\r\n")[2])
        best = json.loads(wire(server, **asked, n_best=2).rpartition(b"\r\n\r\n")[2])
        with api_of(server) as api:
            metrics = api.get("../metrics", cast_to=str)
    for choice in (0, 1):
        assert spoken(stream, choice) == NOTICE
        assert ended(stream, choice)["finish_reason"] == "content_filter"
    assert stream[-1]["usage"]["completion_tokens"] == 0
    for body in (whole, best):
        (choice_of,) = body["choices"]
        assert choice_of["message"]["content"] == NOTICE
        assert choice_of["moderation"]["category"] == "oracle"
    assert 'rlaif_blocked_total{category="oracle",where="prompt"} 4' in metrics
    assert "rlaif_completion_tokens_total 0" in metrics
    told = [line for line in log if line.startswith("blocked")]
    assert len(told) == 4
    assert told[0].startswith("blocked prompt oracle 0.900 choice=0 id=chatcmpl-")
    assert not any("QZQ" in line for line in log)


def test_metrics_tell_what_was_blocked_and_how_long_text_was_held(residents: Residents) -> None:
    log: list[str] = []
    with served(residents, Moderation(Oracle("QZQ"), hold=4), log) as server, api_of(server) as api:
        with scripted([*tokens("abcdefQZQ"), END]):
            wire(server)
        with scripted([*tokens("abcdef"), END]):
            wire(server)
        metrics = api.get("../metrics", cast_to=str)
    counts = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    assert counts['rlaif_blocked_total{category="oracle",where="answer"}'] == "1"
    assert counts["rlaif_held_seconds_count"] == "11"  # five pieces of the first went out, six of the second
    assert counts['rlaif_held_seconds_bucket{le="+Inf"}'] == "11"
    assert float(counts["rlaif_held_seconds_sum"]) > 0
    (told,) = [line for line in log if line.startswith("blocked")]
    assert told.startswith("blocked answer oracle 0.900 choice=0 id=chatcmpl-")


# States


def test_a_moderator_reads_the_states_of_every_token(residents: Residents) -> None:
    """Of several rows that join and leave, on the adapter that decodes: what a watch was given is what one
    pass over the whole text gives, for a layer, and the state after the norm."""
    layers = (1, 2)
    reader = StateReader(layers)
    scripts = [[*tokens("the inner yes"), END], tokens("在海里"), [*tokens("a"), END]]
    prompt = [{"role": "user", "content": "ask"}]
    with served(residents, Moderation(reader, hold=2)) as server, scripted(*scripts):
        whole = json.loads(wire(server, n=3, max_tokens=9).rpartition(b"\r\n\r\n")[2])
    assert [each["message"]["content"] for each in whole["choices"]] == ["the inner yes", "在海里", "a"]
    base = residents.base
    form_ids = server.batcher.form.encode([server.batcher.form.render([Message("user", "ask")])])[0]
    assert prompt
    for seen, script in zip(reader.seen, scripts, strict=True):
        answer = [token for token in script if token != END]
        assert len(seen) == len(answer)
        with base.role("policy-0"), torch.no_grad():
            out = base.model(input_ids=torch.tensor([[*form_ids, *answer]]), output_hidden_states=True)
        wanted = torch.stack([out.hidden_states[layer][0] for layer in layers], 1)[len(form_ids) :]
        found = torch.stack([states for _, states in seen])
        torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-3)
        assert "".join(text for text, _ in seen) == TOKENIZER.decode(answer)


@pytest.mark.parametrize("hold", [1, 3])
def test_a_flag_by_states_holds_as_one_by_text_does(residents: Residents, hold: int) -> None:
    """At the n-th token, wherever that is: the last one by length included, which has to be read once more."""
    text = "abcdefgh"
    for place in range(1, 9):
        reader = StateReader((1,), flags=lambda count, place=place: count == place)
        with served(residents, Moderation(reader, hold=hold)) as server, scripted(tokens(text)):
            stream = events(wire(server, stream=True, max_tokens=8))
        assert ended(stream)["finish_reason"] == "content_filter"
        assert spoken(stream) == with_notice(text[: max(0, place - hold)])


# Several


def test_several_moderators_are_one(residents: Residents) -> None:
    reader = StateReader((1,))
    names = BlockList("names", (Entry("yes", where="answer"), Entry("art", where="prompt")))
    both = United([names, reader, Oracle("QZQ")])
    assert both.categories == ("names", "states", "oracle")
    assert both.layers == (1,)
    assert both.thresholds == {"names": 1.0, "states": 0.5, "oracle": 0.5}
    with served(residents, Moderation(both, hold=4)) as server:
        with scripted([*tokens("the inner yes, the other"), END]):
            stream = events(wire(server, stream=True))
        assert ended(stream)["moderation"] == {"category": "names", "score": 1.0}
        assert "yes" not in spoken(stream)
        with scripted([*tokens("the yesterday"), END]):
            assert ended(events(wire(server, stream=True)))["finish_reason"] == "stop"
        script = tokens("oh, oh yes")
        with scripted([*script, END]):  # the end decides
            stream = events(wire(server, stream=True))
        assert ended(stream)["finish_reason"] == "content_filter"
        assert spoken(stream) == with_notice("".join(pieces(script)[:-4]))
        with scripted([*tokens("aQZQ"), END]):
            assert ended(events(wire(server, stream=True)))["moderation"]["category"] == "oracle"
        (asked,) = both.scores([[Message("user", "art")]])
        assert asked == {"names": 1.0, "states": 0.0, "oracle": 0.1}


def test_moderators_with_the_same_category_are_refused() -> None:
    with pytest.raises(ConfigError, match="two moderators have a category 'oracle'"):
        United([Oracle("a"), Oracle("b")])
    with pytest.raises(ConfigError, match="there is no moderator"):
        United([])
    assert United([Oracle("a")]).digest != United([Oracle("a", digest="other")]).digest


def test_a_moderator_that_fails_lets_nothing_out(residents: Residents) -> None:
    class Broken(Oracle):
        def watch(self, messages: Sequence[Message]) -> Any:
            watch = super().watch(messages)

            def fail(text: str, states: torch.Tensor | None) -> Any:
                raise ModelError("its head is damaged")

            watch.push = fail  # type: ignore[method-assign]
            return watch

    moderator: Moderator = Broken("QZQ")
    with served(residents, Moderation(moderator, hold=1)) as server:
        with scripted([*tokens("secret"), END]):
            raw = wire(server, stream=True)
            assert b"the moderator cannot read the answer: its head is damaged" in raw
            assert b'"content"' not in raw
        with api_of(server) as api:
            assert api.models.list().data


# The cascade

CONSTITUTION = Constitution(
    "calm", (Principle("oracle", question="Is the response calm?"), Principle("other", comparison="Which?"))
)


class Judge:
    """Says yes, it is calm, where `calm` holds of the question; notes what it was asked, and on which thread."""

    def __init__(self, calm: Callable[[str], bool], gate: threading.Event | None = None) -> None:
        self.asked: list[str] = []
        self.threads: set[str] = set()
        self._calm, self._gate = calm, gate
        self.engine = ScriptedEngine(labels=self._answer)

    def _answer(self, request: LabelRequest) -> list[float]:
        self.threads.add(threading.current_thread().name)
        question = "".join(message.content for message in request.messages)
        self.asked.append(question)
        assert self._gate is None or self._gate.wait(PATIENCE)
        return [-0.1, -3.0] if self._calm(question) else [-3.0, -0.1]


def cascaded(moderator: Moderator, judge: Judge, *, hold: int = 4, resident: bool = False) -> Moderation:
    cascade = Cascade(judge.engine, CONSTITUTION, resident=resident)
    return Moderation(moderator, hold=hold, cascade=cascade)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("calm", [True, False])
def test_a_judge_is_asked_before_an_answer_is_blocked(
    residents: Residents, resident: bool, calm: bool
) -> None:
    text = "abcdefQZQ and more of it"
    judge = Judge(lambda question: calm)
    with served(residents, cascaded(Oracle("QZQ"), judge, resident=resident)) as server:
        with scripted([*tokens(text), END]):
            stream = events(wire(server, stream=True))
        with api_of(server) as api:
            metrics = api.get("../metrics", cast_to=str)
    assert spoken(stream) == (text if calm else with_notice("abcde"))
    assert ended(stream)["finish_reason"] == ("stop" if calm else "content_filter")
    (asked,) = judge.asked
    assert "Is the response calm?" in asked
    assert "abcdefQZQ" in asked
    assert "ask" in asked
    assert "more of it" not in asked
    assert ("rlaif-decoder" in judge.threads) == resident
    assert "rlaif_cascade_asked_total 1" in metrics
    assert f"rlaif_cascade_released_total {int(calm)}" in metrics


def test_while_the_judge_thinks_the_row_goes_on_and_nothing_goes_out(residents: Residents) -> None:
    """And other requests are answered."""
    text, gate = "abcdefQZQ and more of it", threading.Event()
    judge = Judge(lambda question: True, gate)
    with (
        served(residents, cascaded(Oracle("QZQ"), judge)) as server,
        scripted([*tokens(text), END]),
        api_of(server) as api,
        api.chat.completions.create(
            model="policy", messages=[{"role": "user", "content": "ask"}], stream=True
        ) as stream,
    ):
        heard = iter(stream)
        before = "".join(next(heard).choices[0].delta.content or "" for _ in range(5))
        until(lambda: bool(server.batcher._running) and server.batcher.rows == 0)
        (job,) = server.batcher._running
        assert job.rows[0].finish == "stop"
        assert job.rows[0].hold is not None
        assert job.rows[0].hold.release() == ""
        other = "another answer"
        with scripted([*tokens(other), END]):
            assert spoken(events(wire(server, stream=True))) == other
        gate.set()
        after = "".join(each.choices[0].delta.content or "" for each in heard)
    assert before == "abcde"
    assert before + after == text


def test_what_is_flagged_after_the_judge_was_asked_is_asked_again_once_in_a_hold(
    residents: Residents,
) -> None:
    """Every token from the third on is flagged; the judge objects to `stuvw`."""
    reader = StateReader((1,), flags=lambda count: count >= 3, categories=("oracle",))
    judge = Judge(lambda question: "stuvw" not in question)
    with (
        served(residents, cascaded(reader, judge, resident=True)) as server,
        scripted([*tokens("abcdefghijklmnopqrstuvwxyz"), END]),
    ):
        stream = events(wire(server, stream=True))
    assert ended(stream)["finish_reason"] == "content_filter"
    quoted = [each.partition("abc")[2].partition("\n")[0] for each in judge.asked]
    lengths = [len("abc" + each) for each in quoted]
    assert lengths == [3, 7, 11, 15, 19, 23]
    # The judge had excused the first 19; of those the hold keeps the last three, and what was flagged after.
    assert spoken(stream) == with_notice("abcdefghijklmnop")


def test_a_judge_that_fails_blocks(residents: Residents) -> None:
    log: list[str] = []

    def fail(request: LabelRequest) -> list[float]:
        raise ModelError("the judge is away")

    unreadable = ScriptedEngine(labels=lambda request: [-20.0, -21.0])
    for engine in (ScriptedEngine(labels=fail), unreadable):
        cascade = Cascade(engine, CONSTITUTION, log=log.append)
        with (
            served(residents, Moderation(Oracle("QZQ"), hold=4, cascade=cascade)) as server,
            scripted([*tokens("abQZQ"), END]),
        ):
            stream = events(wire(server, stream=True))
        assert ended(stream)["finish_reason"] == "content_filter"
        assert "rlaif_cascade_failed_total 1" in cascade.lines()
    assert [line for line in log if "the judge is away" in line]


def test_what_no_principle_asks_about_is_blocked_unasked(residents: Residents) -> None:
    judge = Judge(lambda question: True)
    for name in ("other", "names"):  # a principle without a question, and none
        moderation = cascaded(Oracle("QZQ", name=name), judge)
        with served(residents, moderation) as server, scripted([*tokens("abQZQ"), END]):
            assert ended(events(wire(server, stream=True)))["moderation"]["category"] == name
    assert judge.asked == []
    with pytest.raises(ConfigError, match="no principle of `none` has a question"):
        Cascade(judge.engine, Constitution("none", (Principle("other", comparison="Which?"),)))


def test_a_client_that_leaves_while_the_judge_thinks(residents: Residents) -> None:
    gate = threading.Event()
    judge = Judge(lambda question: True, gate)
    with served(residents, cascaded(Oracle("QZQ"), judge)) as server:
        with scripted([*tokens("abcdefQZQ"), END]):
            with (
                api_of(server) as api,
                api.chat.completions.create(
                    model="policy", messages=[{"role": "user", "content": "ask"}], stream=True
                ) as stream,
            ):
                next(iter(stream))
                until(lambda: bool(judge.asked))
            until(lambda: not server.batcher._running)
        gate.set()


# POST /v1/moderations


def test_texts_and_conversations_are_scored(residents: Residents) -> None:
    names = BlockList("names", (Entry("Wagner", where="answer"),))
    with served(residents, Moderation(United([Oracle("QZQ"), names]))) as server, api_of(server) as api:
        made = api.moderations.create(input=["fine", "QZQ", "Wagner"])
        assert made.id.startswith("modr-")
        assert [each.flagged for each in made.results] == [False, True, False]
        raw = made.results[1].to_dict()
        assert raw["categories"] == {"oracle": True, "names": False}
        assert raw["category_scores"] == {"oracle": 0.9, "names": 0.0}
        turns = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "Wágner"}]
        exchange = api.moderations.create(input={"messages": turns})  # type: ignore[arg-type]
        assert exchange.results[0].to_dict()["categories"] == {"oracle": False, "names": True}
        assert len(api.moderations.create(input="one").results) == 1
        for wrong in ([], ["x"] * 129, {"messages": []}, 5):
            with pytest.raises(openai.BadRequestError):
                api.moderations.create(input=wrong)  # type: ignore[arg-type]


def test_without_moderation_there_is_none(residents: Residents) -> None:
    server = ModelServer(residents, ServerSettings(port=0), lambda line: None)
    thread = threading.Thread(target=server.run_until_stopped)
    thread.start()
    try:
        until(lambda: server.started)
        with api_of(server) as api, pytest.raises(openai.NotFoundError, match="start it with --moderation"):
            api.moderations.create(input="x")
    finally:
        server.stop()
        thread.join(PATIENCE)


def test_a_conversation_that_the_moderator_cannot_read_is_refused(residents: Residents) -> None:
    class Short(Oracle):
        def scores(self, conversations: Sequence[Sequence[Message]]) -> Any:
            raise ModelError("a conversation has 900 tokens, 512 are read")

    with served(residents, Moderation(Short("QZQ"))) as server, api_of(server) as api:
        with pytest.raises(openai.BadRequestError, match="512 are read") as refused:
            api.moderations.create(input="x")
        assert refused.value.param == "input"
        with pytest.raises(openai.BadRequestError, match="512 are read"):
            api.chat.completions.create(model="policy", messages=[{"role": "user", "content": "ask"}])


def test_a_moderator_without_memory_is_an_error_and_the_server_goes_on(residents: Residents) -> None:
    class Large(Oracle):
        def scores(self, conversations: Sequence[Sequence[Message]]) -> Any:
            raise RuntimeError("out of memory")

    with served(residents, Moderation(Large("QZQ"))) as server, api_of(server) as api:
        with pytest.raises(openai.InternalServerError, match="the moderator failed"):
            api.moderations.create(input="x")
        assert api.get("../health", cast_to=str) == '{"status":"ok"}'


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_of_a_moderator_ends_the_server_and_nobody_waits(residents: Residents) -> None:
    class Wrong(Oracle):
        def scores(self, conversations: Sequence[Sequence[Message]]) -> Any:
            raise KeyError("a defect")

    server = ModelServer(
        residents, ServerSettings(port=0), lambda line: None, moderation=Moderation(Wrong("QZQ"))
    )
    ended: list[BaseException] = []

    def run() -> None:
        try:
            server.run_until_stopped()
        except ModelError as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: server.started)
    with api_of(server) as api, pytest.raises(openai.InternalServerError, match="the decoder has ended"):
        api.chat.completions.create(model="policy", messages=[{"role": "user", "content": "ask"}])
    thread.join(PATIENCE)
    assert ended


def test_calls_that_are_left_when_the_server_stops(residents: Residents) -> None:
    """One that nobody waits for any more, and one that somebody does; past the queue's length none is taken,
    but for those that rows need."""
    batcher = Batcher(residents.base, Limits(rows=1, queue=2, cache=1000, prefill=100))
    busy, gate = threading.Event(), threading.Event()

    def work() -> bool:
        busy.set()
        return gate.wait(PATIENCE)

    with pytest.raises(NotServing, match="the decoder has ended"):
        batcher.call(work)
    batcher.start()
    first = batcher.call(work)
    assert busy.wait(PATIENCE)
    given_up, wanted = batcher.call(work), batcher.call(work)
    with pytest.raises(QueueFull):
        batcher.call(work)
    urgent = batcher.call(work, urgent=True)
    assert given_up.cancel()
    batcher.stop(timeout=0)
    with pytest.raises(NotServing, match="stopping"):
        batcher.call(work)
    gate.set()
    assert first.result(PATIENCE) is True
    for left in (wanted, urgent):
        assert isinstance(left.exception(PATIENCE), NotServing)
