"""Judging by a server: are as many questions in flight as may be, all the time?

    python benchmarks/served.py

A server in a process of its own answers every question after a delay that is drawn between half and one and a
half of `--delay`, however many come at once: an ideal client has answers at a rate of `in flight` / `delay`.
Prints that rate and ours, for 16 and 256 questions in flight, with the journal on, and how much processor
time ours took.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

TOP = [{"token": token, "logprob": value, "bytes": None} for token, value in (("A", -0.5), ("B", -1.0))]
ANSWER = {
    "id": "x",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "A"},
            "logprobs": {"content": [{"token": "A", "logprob": -0.5, "bytes": None, "top_logprobs": TOP}]},
        }
    ],
    "usage": {"prompt_tokens": 9, "completion_tokens": 1},
}
MODELS = {"object": "list", "data": [{"id": "m", "object": "model"}]}


def serve(port: Connection, delay: float) -> None:
    """Answer every request after a while, until the process is ended."""
    rng = random.Random(0)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not reader.at_eof():
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            length = next(
                (
                    int(line[15:])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                ),
                0,
            )
            await reader.readexactly(length)
            if head.startswith(b"POST"):
                await asyncio.sleep(delay * rng.uniform(0.5, 1.5))
            body = json.dumps(ANSWER if head.startswith(b"POST") else MODELS).encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (len(body), body)
            )
            await writer.drain()

    async def forever() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=1024)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(forever())


def judge(url: str, comparisons: int, in_flight: int) -> tuple[float, float, int]:
    """Seconds, processor seconds and questions of judging so many comparisons."""
    from rlaif.constitution.load import load_constitution
    from rlaif.engines.api.settings import ApiSettings
    from rlaif.engines.journaled import JournaledEngine
    from rlaif.engines.openai import OpenAIEngine
    from rlaif.judging.table import open_judge, open_protocol
    from rlaif.progress import NoProgress
    from rlaif.prompts import PromptLibrary
    from rlaif.runs.journal import Journal
    from rlaif.types import Comparison, Completion, Message, Prompt

    def pairs() -> Iterator[Comparison]:
        for number in range(comparisons):
            prompt = Prompt(id=str(number), messages=(Message("user", f"Question {number}?"),))
            a, b = (
                Completion(f"{number}/{index}", prompt.id, index, f"Answer {index}.", "stop", "m", 3)
                for index in range(2)
            )
            yield Comparison(prompt=prompt, a=a, b=b)

    constitution = load_constitution("default")
    library = PromptLibrary(constitution.language, None)
    protocol = open_protocol("pairwise", library=library, constitution=constitution)
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "j.sqlite") as journal:
        engine = JournaledEngine(
            OpenAIEngine("m", [url], settings=ApiSettings(concurrency=in_flight)), journal
        )
        asked = open_judge(engine, protocol, constitution, principles="sample", seed=0, progress=NoProgress())
        _ = engine.card  # the handshake is no part of the rate
        start, cpu = time.perf_counter(), time.process_time()
        labelled = sum(each.logit_a is not None for each in asked.judge(pairs()))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    assert labelled == comparisons, "every comparison got its label"
    return seconds, cpu, comparisons * asked.questions_each


def main() -> None:
    parser = argparse.ArgumentParser(description="Judging by a server with a fixed delay.")
    parser.add_argument("--delay", type=float, default=0.25, help="mean seconds until an answer")
    parser.add_argument("--seconds", type=float, default=20, help="about how long each size should take")
    chosen = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs, chosen.delay), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{ours.recv()}/v1"
    for in_flight in (16, 256):
        ideal = in_flight / chosen.delay
        seconds, cpu, questions = judge(url, round(chosen.seconds * ideal / 2), in_flight)
        print(
            f"{in_flight:>4} in flight: {questions / seconds:,.0f} of at most {ideal:,.0f} questions/s "
            f"({questions / seconds / ideal:.0%}), {1e3 * cpu / questions:.2f} ms of processor each",
            flush=True,
        )
    server.terminate()


if __name__ == "__main__":
    main()
