"""`rlaif serve` under load: clients at once against one by one, and its memory over many requests.

    python benchmarks/serve.py [--model smollm2-135m] [--clients 32] [--requests 64] [--tokens 32]
    [--steady 1000]

The server is a process of its own on this machine; the clients are threads of this one, with the official
`openai` client, and stream. Prints tokens per second and the time to the first token, one by one and with all
clients; then sends `--steady` short requests, a tenth of which are given up after their first token, and
prints the resident memory of the server after each tenth. Every answer is checked: one that has no finish
reason, or fewer tokens than it says, counts as lost.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import openai
import psutil

TOPICS = ("tides", "bread", "glaciers", "chess", "violins", "bees", "maps", "rust")


class Answer(NamedTuple):
    """What came back for one request; seconds from when it was sent."""

    tokens: int
    first: float
    whole: bool


@contextmanager
def server(model: str, clients: int) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a server, and its process."""
    command = [sys.executable, "-m", "rlaif", "serve", "--model", model, "--port", "0"]
    command += ["--rows", str(clients), "--queue", str(4 * clients)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ
    ) as process:
        try:
            assert process.stdout is not None
            address = next(line.split()[1] for line in process.stdout if line.startswith("serving "))
            yield address, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(60)


def ask(api: openai.OpenAI, model: str, number: int, tokens: int, *, leave: bool = False) -> Answer:
    """Stream one completion; with `leave`, close the connection at the first token."""
    prompt = f"Tell me {number % 7 + 1} things about {TOPICS[number % len(TOPICS)]}."
    started, first, finish, used = time.perf_counter(), 0.0, None, 0
    stream: Any = api.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=tokens,
        seed=number,
        stream=True,
        stream_options={"include_usage": True},
    )
    with stream:
        for piece in stream:
            first = first or time.perf_counter() - started
            if leave:
                return Answer(0, first, True)
            finish = piece.choices[0].finish_reason or finish if piece.choices else finish
            used = piece.usage.completion_tokens if piece.usage else used
    return Answer(used, first, finish == "stop" or (finish == "length" and used == tokens))


def load(api: openai.OpenAI, model: str, requests: int, *, tokens: int, clients: int) -> float:
    """Send requests, so many at once; prints and returns tokens per second."""
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda number: ask(api, model, number, tokens), range(requests)))
    rate = sum(answer.tokens for answer in answers) / (time.perf_counter() - started)
    first = sorted(answer.first for answer in answers)
    print(
        f"{clients:>3} at once, {requests} requests: {rate:7.1f} tokens/s; first token after "
        f"{statistics.median(first):.2f} s (median), {first[int(0.95 * len(first))]:.2f} s (95 of 100); "
        f"lost {_lost(answers)}",
        flush=True,
    )
    return rate


def steady(api: openai.OpenAI, model: str, process: psutil.Process, requests: int, clients: int) -> None:
    """Send many short requests and print the server's memory."""
    tenth, answers, memory = max(1, requests // 10), list[Answer](), list[float]()
    with ThreadPoolExecutor(clients) as pool:
        for start in range(0, requests, tenth):
            numbers = range(start, min(start + tenth, requests))
            answers += pool.map(lambda n: ask(api, model, n, 4 + n % 5, leave=n % 10 == 0), numbers)
            memory.append(process.memory_info().rss / 2**20)
    print(
        f"{len(answers)} requests, a tenth of them given up: lost {_lost(answers)}; resident memory "
        f"after each {tenth}: {', '.join(f'{each:.0f}' for each in memory)} MiB"
    )


def _lost(answers: Sequence[Answer]) -> int:
    return sum(not answer.whole for answer in answers)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--steady", type=int, default=1000)
    options = parser.parse_args()
    with (
        server(options.model, options.clients) as (address, process),
        openai.OpenAI(base_url=address, api_key="none", timeout=600) as api,
    ):
        ask(api, options.model, 0, 4)
        few = max(1, options.requests // 4)
        alone = load(api, options.model, few, tokens=options.tokens, clients=1)
        together = load(api, options.model, options.requests, tokens=options.tokens, clients=options.clients)
        print(f"{together / alone:.1f} times as many tokens a second")
        if options.steady:
            steady(api, options.model, process, options.steady, options.clients)


if __name__ == "__main__":
    main()
