"""Sampling completions: ours against `model.generate`, on the same prompts, model, temperature and machine.

    python benchmarks/sample.py [--prompts 8] [--k 4] [--tokens 64] [--repeats 3] [--model smollm2-135m]
    [--threads N]

Batch = prompts x K, side by side in both. Prints tokens per second, by the clock and by processor time (which
a busy machine changes less), the best of the repeats, and the floor: the time to read all weights from memory
once a step at the bandwidth measured in this run. Tokens are those sampled up to and with the end token; ours
draws its own, so the counts differ a little.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from rlaif.cli.main import HUGE_PAGES
from rlaif.engines.base import GenerationRequest, Sampling
from rlaif.engines.hf import HFEngine
from rlaif.io.readers import read_prompts
from rlaif.models.load import load_engine
from rlaif.types import Message


class Speed(NamedTuple):
    """Tokens per second by the clock and by processor time."""

    wall: float
    cpu: float


def measure(work: Callable[[], int], repeats: int) -> Speed:
    """The best of several runs of what returns its number of tokens."""
    speeds = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = work()
        speeds.append(Speed(tokens / (time.perf_counter() - wall), tokens / (time.process_time() - cpu)))
    return Speed(max(each.wall for each in speeds), max(each.cpu for each in speeds))


def ours(engine: HFEngine, prompts: list[tuple[Message, ...]], k: int, tokens: int) -> int:
    """Our sampler."""
    sampling = Sampling(max_new_tokens=tokens)
    requests = [
        GenerationRequest(prompt, sampling, seed=1000 * at + copy)
        for at, prompt in enumerate(prompts)
        for copy in range(k)
    ]
    return sum(result.tokens for batch in engine.generate(requests) for result in batch.values())


def generate(engine: HFEngine, prompts: list[tuple[Message, ...]], k: int, tokens: int) -> int:
    """transformers' own."""
    tokenizer = engine.tokenizer
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.pad_token or tokenizer.eos_token
    texts = [engine.form.render(prompt) for prompt in prompts]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(
        engine.model.device
    )
    rows = engine.model.generate(
        **inputs,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=tokens,
        num_return_sequences=k,
        eos_token_id=sorted(engine.ends),
        pad_token_id=engine.pad,
    )[:, inputs.input_ids.shape[1] :].tolist()
    return sum(
        next((at + 1 for at, token in enumerate(row) if token in engine.ends), len(row)) for row in rows
    )


def bandwidth(device: torch.device) -> float:
    """Bytes per second of reading 256 MiB."""
    block = torch.ones(1 << 26, device=device)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        float(block.sum())
        best = max(best, block.nbytes / (time.perf_counter() - start))
    return best


def main() -> None:
    """Reads the command line, runs both and prints the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    os.environ.setdefault(HUGE_PAGES, "1")  # as the command line does, here for every side
    if args.threads:
        torch.set_num_threads(args.threads)
    engine = load_engine(args.model, dtype=args.dtype)
    prompts = [prompt.messages for prompt in read_prompts("builtin").items[: args.prompts]]
    ours(engine, prompts, args.k, 4)  # the first forward pass prepares kernels
    mine, theirs = (
        measure(lambda way=way: way(engine, prompts, args.k, args.tokens), args.repeats)
        for way in (ours, generate)
    )
    weights = sum(each.nbytes for each in engine.model.parameters())
    floor = len(prompts) * args.k * bandwidth(engine.model.device) / weights
    print(
        f"{args.model}, {engine.card.dtype}, batch {len(prompts) * args.k} (K = {args.k}), "
        f"{torch.get_num_threads()} threads"
    )
    print(f"ours: {mine.wall:.0f} tokens/s, {mine.cpu:.0f} a processor second")
    print(f"generate: {theirs.wall:.0f} tokens/s, {theirs.cpu:.0f} a processor second")
    print(f"ours is {mine.wall / theirs.wall:.2f}x as fast ({mine.cpu / theirs.cpu:.2f}x by processor time)")
    print(f"reading the weights once a step would allow {floor:.0f} tokens/s")


if __name__ == "__main__":
    main()
