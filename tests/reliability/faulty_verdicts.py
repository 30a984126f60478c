"""Verdicts from a server that fails and lies in transit: what each question was last sent says what must come
of it.

Every answer that the server sends is drawn by a seed from `FAULTS`. Three kinds of fault are told apart:
*harmless* (the truth is in the reply, wrapped in something odd), *again* (the request is worth repeating, so
that the next answer decides) and *final* (the reply has no truth in it, and repeating it would not help).
After the last answer to a question the result is known: the truth to 1e-6, or an invalid reading with the
fault's own reason. `Tally.wrong` lists every other end.
"""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from misbehaving import (
    Action,
    Handler,
    MisbehavingServer,
    chat_top,
    cut,
    good,
    hang_up,
    question_of,
    slow,
    status,
    truth,
)

from rlaif.engines.api.settings import ApiSettings
from rlaif.engines.base import LabelReading, LabelRequest
from rlaif.engines.openai import OpenAIEngine
from rlaif.types import Message

__all__ = ["FAULTS", "Fault", "Tally", "ask"]

TOLERANCE = 1e-6
RETRIES = 6
TIMEOUT = 1.0
GIVE_UP_AFTER = 10_000


@dataclass(frozen=True)
class Fault:
    """One way to answer.

    Attributes:
        kind: See the module.
        action: Sends it.
        reason: Beginning of the reason that must be given: of a *final* fault, or of an *again* that was the
            last try.
        weight: How often it is drawn, next to the others of its kind.
    """

    kind: Literal["harmless", "again", "final"]
    action: Action
    reason: str = ""
    weight: float = 1.0


@dataclass
class Tally:
    """What became of the questions.

    Attributes:
        valid: Questions that ended as the truth.
        invalid: Questions that ended invalid, by reason.
        sent: Answers sent, by fault.
        wrong: Ends that must not be, in words.
        seconds: For all questions together.
    """

    valid: int = 0
    invalid: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def asked(self) -> int:
        """Questions that got one end."""
        return self.valid + sum(self.invalid.values()) + len(self.wrong)


# What a server may send -------------------------------------------------------------------------------------


def changed(
    change: Callable[[dict[str, Any]], Any], *, headers: Mapping[str, str] | None = None, code: int = 200
) -> Action:
    """A good answer, changed by `change`."""

    def act(handler: Handler, body: dict[str, Any]) -> None:
        handler.reply(json.dumps(change(good(body))).encode(), code=code, headers=headers)

    return act


def raw(content: bytes, *, code: int = 200, headers: Mapping[str, str] | None = None) -> Action:
    """These bytes."""
    return lambda handler, _body: handler.reply(content, code=code, headers=headers)


def run_errors(*pairs: tuple[str, Any]) -> Action:
    """An answer with these tokens as the most probable ones."""
    return _with_tops(lambda _tops: chat_top(*pairs))


def _with_tops(change: Callable[[list[dict[str, Any]]], Any]) -> Action:
    """A good answer whose list of tokens is replaced by `change(tokens)`, a whole `logprobs` object."""

    def act(reply: dict[str, Any]) -> dict[str, Any]:
        tops = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        reply["choices"][0]["logprobs"] = change(tops)
        return reply

    return changed(act)


def _content(tops: list[dict[str, Any]]) -> dict[str, Any]:
    return {"content": [{"token": "x", "logprob": -1.0, "bytes": None, "top_logprobs": tops}]}


def _halved(tops: list[dict[str, Any]]) -> dict[str, Any]:
    """Each label's probability on two spellings."""
    half = math.log(2.0)
    split = [
        {"token": token, "logprob": each["logprob"] - half, "bytes": list(token.encode())}
        for each in tops
        if each["token"].strip() in ("A", "B")
        for token in (each["token"], each["token"].strip())
    ]
    return _content(split + [each for each in tops if each["token"].strip() not in ("A", "B")])


def _without(**missing: Any) -> Action:
    def act(reply: dict[str, Any]) -> dict[str, Any]:
        reply["choices"][0] |= missing
        return reply

    return changed(act)


def _twice(reply: dict[str, Any]) -> dict[str, Any]:
    reply["choices"] = [reply["choices"][0], reply["choices"][0]]
    return reply


def _contradiction(reply: dict[str, Any]) -> dict[str, Any]:
    other = json.loads(json.dumps(reply["choices"][0]))
    other["message"]["content"] = "no, the other one"
    reply["choices"].append(other)
    return reply


def _junk(reply: dict[str, Any]) -> dict[str, Any]:
    """Fields that nobody knows, and wrong types where nobody reads."""
    return reply | {
        "created": "yesterday",
        "usage": [None, {"prompt_tokens": -3}],
        "x": {"y": [10**30]},
        "system_fingerprint": 7,
    }


def _chunked(content: Callable[[dict[str, Any]], bytes]) -> Action:
    def act(handler: Handler, body: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        whole = content(body)
        for start in range(0, len(whole), 100):
            piece = whole[start : start + 100]
            handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        handler.wfile.write(b"0\r\n\r\n")

    return act


def _stuck(handler: Handler, _body: dict[str, Any]) -> None:
    """Headers and half a body, and then nothing for longer than the client waits."""
    handler.begin(200, 1000, {})
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()
    time.sleep(TIMEOUT * 1.2)
    handler.close_connection = True


GZIP_BOMB = bytes.fromhex("1f8b08000000000002ff")
"""The beginning of a compressed body; its length in the headers is what must be refused."""

OTHERS = run_errors((" the", -0.1), (" an", -2.9), (" it", -4.0))

FAULTS: dict[str, Fault] = {
    "good": Fault("harmless", changed(lambda reply: reply), weight=12.0),
    "tokens in another order": Fault("harmless", _with_tops(lambda tops: _content(tops[::-1]))),
    "each token twice": Fault("harmless", _with_tops(lambda tops: _content([*tops, *tops]))),
    "labels in two spellings": Fault("harmless", _with_tops(_halved)),
    "another token is null": Fault(
        "harmless",
        _with_tops(lambda tops: _content([*tops, {"token": " it", "logprob": None, "bytes": None}])),
    ),
    "another token is text": Fault(
        "harmless",
        _with_tops(lambda tops: _content([{"token": " it", "logprob": "0", "bytes": "x"}, *tops, 7])),
    ),
    "another token is endless": Fault(
        "harmless",
        _with_tops(lambda tops: _content([*tops, {"token": " it", "logprob": -(10**400), "bytes": [999]}])),
    ),
    "fields nobody knows": Fault("harmless", changed(_junk)),
    "the same choice twice": Fault("harmless", changed(_twice)),
    "content is null": Fault("harmless", _without(message={"role": "assistant", "content": None})),
    "wrong content type": Fault(
        "harmless", changed(lambda reply: reply, headers={"Content-Type": "text/html; charset=x-none"})
    ),
    "in chunks": Fault("harmless", _chunked(lambda body: json.dumps(good(body)).encode())),
    "cut": Fault("again", cut(), "transient:"),
    "hung up": Fault("again", hang_up(), "transient:"),
    "stuck": Fault("again", _stuck, "transient:", weight=0.1),
    "slower than allowed": Fault("again", slow(TIMEOUT * 1.5), "transient:", weight=0.1),
    "429": Fault("again", status(429), "transient:"),
    "429, later": Fault("again", status(429, retry_after=0.02), "transient:"),
    "429, nonsense": Fault("again", status(429, retry_after="²"), "transient:"),
    "429, a date long ago": Fault(
        "again", status(429, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"), "transient:"
    ),
    "408": Fault("again", status(408), "transient:"),
    "500": Fault("again", status(500), "transient:"),
    "502, HTML": Fault("again", raw(b"<html>\xff</html>", code=502), "transient:"),
    "503": Fault("again", status(503, retry_after=0.0), "transient:"),
    "no JSON": Fault("again", raw(b'{"choices": [{"message": '), "transient:"),
    "empty": Fault("again", raw(b""), "transient:"),
    "a list": Fault("again", raw(b"[]"), "transient:"),
    "a number": Fault("again", raw(b"12345678901234567890"), "transient:"),
    "deep": Fault("again", raw(b"[" * 100_000), "transient:", weight=0.2),
    "5,000 digits": Fault("again", raw(b'{"choices": [' + b"9" * 5_000 + b"]}"), "transient:"),
    "no choices": Fault("again", raw(b'{"choices": []}'), "transient:"),
    "an error with 200": Fault("again", raw(b'{"error": {"message": "overloaded"}}'), "transient:"),
    "a choice is text": Fault("again", raw(b'{"choices": ["A"]}'), "transient:"),
    "a message is a list": Fault("again", raw(b'{"choices": [{"message": ["A"]}]}'), "transient:"),
    "contradiction": Fault("again", changed(_contradiction), "transient:"),
    "a compressed bomb": Fault(
        "again", raw(GZIP_BOMB * 10_000, headers={"Content-Encoding": "gzip"}), "transient:", weight=0.2
    ),
    "not UTF-8": Fault("again", raw(b'{"choices": [\xff\xfe]}'), "transient:"),
    "400": Fault("final", status(400, "temperature is out of range"), "rejected_400"),
    "400, too long": Fault("final", status(400, "maximum context length is 8 tokens"), "prompt_too_long"),
    "413": Fault("final", status(413), "rejected_413"),
    "422": Fault("final", status(422), "rejected_422"),
    "a redirect": Fault(
        "final", raw(b"", code=307, headers={"Location": "http://192.0.2.1/"}), "rejected_307"
    ),
    "no log-probabilities": Fault("final", _without(logprobs=None), "no_logprobs"),
    "log-probabilities are text": Fault("final", _without(logprobs="A"), "no_logprobs"),
    "an empty list of tokens": Fault("final", _with_tops(lambda _tops: _content([])), "no_logprobs"),
    "other tokens only": Fault("final", OTHERS, "labels_not_in_top"),
    "NaN": Fault("final", run_errors((" A", math.nan), (" B", -0.5)), "not_finite"),
    "+inf": Fault("final", run_errors((" A", math.inf), (" B", -0.5)), "not_finite"),
    "positive": Fault("final", run_errors((" A", 3.0), (" B", -0.5)), "not_finite"),
    "more than one": Fault("final", run_errors((" A", -0.01), (" B", -0.02)), "not_finite"),
    "a label is null": Fault("final", run_errors((" A", None), (" B", -0.5)), "not_finite"),
    "labels impossible": Fault(
        "final", run_errors((" the", -0.01), (" A", -9999.0), (" B", -9999.0)), "labels_not_in_top"
    ),
}

SHARES = {"harmless": 0.55, "again": 0.4, "final": 0.05}
"""How often each kind is drawn."""


# The questions ----------------------------------------------------------------------------------------------


def ask(count: int, *, seed: int, batch: int = 500, concurrency: int = 32) -> Tally:
    """Ask `count` questions and check what becomes of each.

    Returns:
        The tally; `wrong` is empty when all went as it must.
    """
    tally, names = Tally(), _Names(seed)
    began = time.monotonic()
    with MisbehavingServer(always=names.act) as server:
        settings = ApiSettings(
            backoff=0.004,
            retries=RETRIES,
            timeout=TIMEOUT,
            concurrency=concurrency,
            give_up_after=GIVE_UP_AFTER,
            reads="logprobs",
            continues=False,
        )
        engine = OpenAIEngine("toy", [server.url], settings=settings, log=lambda _line: None)
        for start in range(0, count, batch):
            texts = [f"question {seed}/{number}" for number in range(start, min(start + batch, count))]
            requests = [LabelRequest((Message("user", text),), ("A", "B")) for text in texts]
            found: dict[int, list[LabelReading]] = defaultdict(list)
            for answers in engine.label_logprobs(requests):
                for index, reading in answers.items():
                    found[index].append(reading)
            for index, text in enumerate(texts):
                _check(tally, text, names.last(text), found[index])
    tally.sent = names.counts
    tally.seconds = time.monotonic() - began
    return tally


class _Names:
    """Draws what each question is sent, and remembers the last."""

    def __init__(self, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self._seed = seed
        self._sent: dict[str, list[str]] = defaultdict(list)
        self._lock = threading.Lock()
        self._kinds = {
            kind: [(name, fault.weight) for name, fault in FAULTS.items() if fault.kind == kind]
            for kind in SHARES
        }

    def act(self, handler: Handler, body: dict[str, Any]) -> None:
        """Answer a request."""
        question = question_of(body)
        with self._lock:
            tries = self._sent[question]
            rng = random.Random(f"{self._seed}/{question}/{len(tries)}")
            (kind,) = rng.choices(list(SHARES), list(SHARES.values()))
            names, weights = zip(*self._kinds[kind], strict=True)
            (name,) = rng.choices(names, weights)
            tries.append(name)
            self.counts[name] += 1
        FAULTS[name].action(handler, body)

    def last(self, question: str) -> str:
        """The fault that a question was sent last."""
        with self._lock:
            return self._sent[question][-1] if self._sent[question] else "nothing"


def _check(tally: Tally, question: str, last: str, readings: list[LabelReading]) -> None:
    if len(readings) != 1:
        tally.wrong.append(f"{question}: {len(readings)} readings; last sent: {last}")
        return
    (reading,) = readings
    fault = FAULTS.get(last)
    if fault is None:
        tally.wrong.append(f"{question}: a reading, but nothing was sent")
    elif fault.kind == "harmless":
        expected = truth(question)
        right = len(reading.logprobs) == 2 and all(
            abs(value - due) < TOLERANCE for value, due in zip(reading.logprobs, expected, strict=True)
        )
        if reading.reason or not right:
            tally.wrong.append(f"{question}: {last}: {reading} and not {expected}")
        else:
            tally.valid += 1
    elif reading.logprobs or not reading.reason.startswith(fault.reason):
        tally.wrong.append(f"{question}: {last}: {reading} and not invalid with the reason {fault.reason}")
    else:
        tally.invalid[reading.reason] += 1
