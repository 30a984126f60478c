"""What moderation costs a stream: the time to the first text that a client sees, tokens per second, and the
processor's time that the server takes for a token, which other work on the machine changes least.

    python benchmarks/moderation.py [--model smollm2-135m] [--clients 8] [--requests 16] [--tokens 48]
    [--rounds 2] [--hold 16]

Starts `rlaif serve` once without moderation, once with a block list of 1,000 words, once with a probe that
reads three layers, once with both, each with `--hold`, and once more with the probe and a hold of 1. The
probe's heads are drawn at random and flag nothing: what is measured is what it takes to read the states and
to score them, not what it finds. All servers run at the same time and are asked in turn, in rounds, so that
other work on the machine is shared out; the same requests with the same seeds. Prints for one client and for
several the medians over all rounds, and checks that every stream is whole and the same in all servers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import openai
import psutil
import torch

from rlaif.models.shared_base import SharedBase
from rlaif.moderation.files import save_moderator
from rlaif.moderation.probe import READS, Heads, ProbeModerator
from rlaif.moderation.states import default_layers
from rlaif.types import Message

TOPICS = ("tides", "bread", "glaciers", "chess", "violins", "bees", "maps", "rust")


class Answer(NamedTuple):
    """One stream; seconds from when it was asked for."""

    text: str
    tokens: int
    first: float


def probe_folder(model: str, folder: Path) -> Path:
    """A moderator with two heads of random directions, which flags nothing."""
    base = SharedBase.load(model)
    layers = default_layers(base)

    def heads() -> Heads:
        directions = torch.randn(
            2, len(layers) * base.hidden_size, generator=torch.Generator().manual_seed(0)
        )
        return Heads(directions * 1e-3, torch.zeros(2), torch.ones(2), torch.full((2,), -9.0))

    moderator = ProbeModerator(
        base=base,
        categories=("one", "two"),
        thresholds={"one": 2.0, "two": 2.0},
        layers=layers,
        heads={reads: heads() for reads in READS},
    )
    probes = [[Message("user", "What is rust?"), Message("assistant", "Oxidised iron.")]]
    save_moderator(moderator, folder / "probe", constitution="", probes=probes)
    return folder / "probe"


@contextmanager
def server(model: str, clients: int, extra: Sequence[str]) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a server, and its process."""
    command = [sys.executable, "-m", "rlaif", "serve", "--model", model, "--port", "0"]
    command += ["--rows", str(clients), "--queue", str(4 * clients), *extra]
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


def ask(api: openai.OpenAI, model: str, number: int, tokens: int) -> Answer:
    """Stream one completion."""
    prompt = f"Tell me {number % 7 + 1} things about {TOPICS[number % len(TOPICS)]}."
    started, first, text, used = time.perf_counter(), 0.0, "", 0
    stream: Any = api.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=tokens,
        seed=number,
        stream=True,
        stream_options={"include_usage": True},
    )
    finish = None
    with stream:
        for piece in stream:
            for choice in piece.choices:
                finish = choice.finish_reason or finish
                if choice.delta.content:
                    first = first or time.perf_counter() - started
                    text += choice.delta.content
            used = piece.usage.completion_tokens if piece.usage else used
    assert finish in ("stop", "length"), finish
    return Answer(text, used, first)


def load(address: str, model: str, requests: int, tokens: int, clients: int) -> tuple[list[Answer], float]:
    """All answers, and tokens per second."""
    with openai.OpenAI(base_url=address, api_key="none", timeout=600) as api:
        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            answers = list(pool.map(lambda number: ask(api, model, number, tokens), range(requests)))
        return answers, sum(answer.tokens for answer in answers) / (time.perf_counter() - started)


def processor(process: psutil.Process) -> float:
    """Seconds of the processor that it has used."""
    used = process.cpu_times()
    return float(used.user + used.system)


def measure(
    servers: dict[str, tuple[str, psutil.Process]], options: argparse.Namespace, clients: int
) -> None:
    """Ask all servers in turn and print what they took."""
    requests = max(1, options.requests // 2) if clients == 1 else options.requests
    firsts: dict[str, list[float]] = {name: [] for name in servers}
    rates: dict[str, list[float]] = {name: [] for name in servers}
    costs: dict[str, list[float]] = {name: [] for name in servers}
    for _ in range(options.rounds):
        for name, (address, process) in servers.items():
            before = processor(process)
            answers, rate = load(address, options.model, requests, options.tokens, clients)
            firsts[name] += [answer.first for answer in answers]
            rates[name].append(rate)
            costs[name].append((processor(process) - before) / sum(answer.tokens for answer in answers))
    print(f"{clients} at once, {options.rounds} rounds of {requests} requests of {options.tokens} tokens:")
    for name in servers:
        first, rate, cost = (statistics.median(each[name]) for each in (firsts, rates, costs))
        print(
            f"  {name:<28} first text {first:6.3f} s   {rate:6.1f} tokens/s   "
            f"{1000 * cost:6.1f} ms of the processor a token",
            flush=True,
        )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--hold", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        words = Path(place) / "words.txt"
        words.write_text("\n".join(f"zzword{number}" for number in range(1000)), "utf-8")
        probe = probe_folder(options.model, Path(place))
        listed, probed = ["--moderation", str(words)], ["--moderation", str(probe)]
        hold = ["--hold", str(options.hold)]
        kinds = {
            "no moderation": [],
            f"block list, hold {options.hold}": [*listed, *hold],
            f"probe, hold {options.hold}": [*probed, *hold],
            f"both, hold {options.hold}": [*listed, *probed, *hold],
            "probe, hold 1": [*probed, "--hold", "1"],
        }
        servers = {
            name: stack.enter_context(server(options.model, options.clients, extra))
            for name, extra in kinds.items()
        }
        addresses = {name: address for name, (address, _) in servers.items()}
        texts = {
            name: load(url, options.model, 1, options.tokens, 1)[0][0].text for name, url in addresses.items()
        }
        print(f"the same text in all servers: {len(set(texts.values())) == 1}")
        for clients in (1, options.clients):
            measure(servers, options, clients)


if __name__ == "__main__":
    main()
