"""Judging: ours against what one would write with transformers, against llama.cpp, and against the limit of
this machine's arithmetic.

    python benchmarks/judge.py --data PAIRS.jsonl [--comparisons 64] [--principles 16] [--protocol pairwise]
    [--model smollm2-135m] python benchmarks/judge.py --data PAIRS.jsonl --scaling
    python benchmarks/judge.py --data PAIRS.jsonl --memory

The first form asks the same questions three ways: (a) transformers, one prompt per question, batched in the
order asked, padded, all logits formed; (b) our engine; (c) `llama-cpp-python` on the GGUF that the alias is
made from, its prefix cache on, if it is installed. Each time includes tokenising. The limit is the time that
the necessary tokens would take if the machine did nothing but multiply matrices: tokens in the trie of all
prompts × 2 FLOPs × parameters without the embedding table ÷ the fastest matrix product measured in this run,
before and after ours. (a) and (c) take long: `--peers N` gives them the first N comparisons only, and scales
their times by the tokens that are asked of (a), and necessary for (c).

`--scaling` tells how our time grows with principles, completions per prompt and completion length; `--memory`
how much memory 100 and 10,000 streamed comparisons take, each in a process of its own (with a model of random
weights: memory for rows, not for layers).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, cycle, islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from rlaif.cli.main import HUGE_PAGES
from rlaif.constitution.load import load_constitution
from rlaif.engines.base import EngineCard, LabelRequest
from rlaif.engines.hf import HFEngine
from rlaif.engines.labels import EncodedQuestion, find_labels
from rlaif.engines.prefix import plan_passes
from rlaif.io.readers import read_responses
from rlaif.judging.judge import Judge
from rlaif.judging.table import open_protocol
from rlaif.models.alias import ALIASES
from rlaif.models.load import count_parameters, load_engine, load_tokenizer
from rlaif.models.memory import model_shape
from rlaif.prompts import PromptLibrary
from rlaif.types import Comparison, Completion, Constitution, Principle

NAIVE_BATCH = 8
SHAPES = ((2048, 2048, 2048), (2048, 576, 1536), (2048, 1536, 576), (1024, 1024, 4096))
TRIES = 15
MEMORY_ROWS = (100, 10_000)


class Spent(NamedTuple):
    """Seconds by the clock and of the processor; a busy machine changes the latter less."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Spent:
        """Both clocks."""
        return cls(time.perf_counter(), time.process_time())

    def since(self, start: Spent) -> Spent:
        """The time between."""
        return Spent(self.wall - start.wall, self.cpu - start.cpu)


class Side(NamedTuple):
    """What one way took, and the log-odds of the first label for each question answered."""

    spent: Spent
    odds: list[float]

    def times(self, factor: float) -> Side:
        """The same with other seconds."""
        return self._replace(spent=Spent(self.spent.wall * factor, self.spent.cpu * factor))


def read_comparisons(path: Path, count: int | None = None) -> list[Comparison]:
    """The file's pairs, in its order."""
    items = read_responses(path).items
    return [
        Comparison(item.prompt, item.completions[i], item.completions[j])
        for item in items
        for i, j in item.pairs
    ][:count]


def principles(count: int) -> Constitution:
    """So many principles: the shipped ones, then the same with a remark behind them."""
    shipped = load_constitution("default")

    def variant(number: int) -> Principle:
        base, turn = shipped.principles[number % len(shipped.principles)], number // len(shipped.principles)
        if not turn:
            return base
        remark = f" (Second look, number {turn}.)"
        comparison, question = (
            None if text is None else text + remark for text in (base.comparison, base.question)
        )
        return replace(base, id=f"{base.id}-{turn}", comparison=comparison, question=question)

    return replace(shipped, principles=tuple(variant(number) for number in range(count)))


def questions(
    comparisons: Sequence[Comparison], rules: Constitution, protocol: str
) -> list[list[LabelRequest]]:
    """All questions about each comparison."""
    asked = open_protocol(protocol, library=PromptLibrary(), constitution=rules)
    return [
        [request for rule in rules.principles for request in asked.questions(each, rule)]
        for each in comparisons
    ]


def peak(dtype: torch.dtype, device: torch.device) -> Spent:
    """FLOP a second of the fastest of a few matrix products, by the clock and by the processor.

    Each is timed by the median of several tries: on an idle machine that is the best one too, on a busy one
    it is what products of that length get at the moment, as the judge's do.
    """
    found = []
    for rows, inner, columns in SHAPES:
        a = torch.randn(rows, inner, dtype=torch.float32).to(device, dtype)
        b = torch.randn(columns, inner, dtype=torch.float32).to(device, dtype)
        took = []
        for _ in range(TRIES):
            start = Spent.now()
            float(torch.nn.functional.linear(a, b)[0, 0])  # reading one number waits for the device
            took.append(Spent.now().since(start))
        work = 2.0 * rows * inner * columns
        found.append(Spent(*(work / median(each) for each in zip(*took, strict=True))))
    return Spent(max(each.wall for each in found), max(each.cpu for each in found))


def naive(engine: HFEngine, requests: Sequence[LabelRequest]) -> Side:
    """(a): the tokenizer pads a batch of prompts, the model computes it, the last position's labels are
    read."""
    model, tokenizer = engine.model, engine.tokenizer
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    start, odds = Spent.now(), []
    for at in range(0, len(requests), NAIVE_BATCH):
        batch = requests[at : at + NAIVE_BATCH]
        texts = [engine.form.render(request.messages) for request in batch]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(
            model.device
        )
        with torch.no_grad():
            logits = model(**inputs).logits[:, -1].float()
        for request, row in zip(batch, logits, strict=True):
            first, second = (
                tokenizer(label, add_special_tokens=False).input_ids[0] for label in request.labels
            )
            odds.append(float(row[first] - row[second]))
    return Side(Spent.now().since(start), odds)


def ours(engine: HFEngine, requests: Sequence[Sequence[LabelRequest]]) -> Side:
    """(b): chunk by chunk, as the judge asks."""
    start, odds = Spent.now(), []
    size = max(1, 512 // len(requests[0]))
    for at in range(0, len(requests), size):
        chunk = [request for group in requests[at : at + size] for request in group]
        readings = {
            index: reading for batch in engine.label_logprobs(chunk) for index, reading in batch.items()
        }
        odds += [readings[index].logprobs[0] - readings[index].logprobs[1] for index in range(len(chunk))]
    return Side(Spent.now().since(start), odds)


def llama_cpp(spec: str, engine: HFEngine, requests: Sequence[LabelRequest]) -> Side | str:
    """(c): one prompt after the other; what it shares with the one before stays in the cache. Or why not."""
    alias = ALIASES.get(spec)
    found = importlib.util.find_spec(alias.package) if alias else None
    if (
        importlib.util.find_spec("llama_cpp") is None
        or alias is None
        or found is None
        or found.origin is None
    ):
        return "llama-cpp-python is not installed" if alias and found else f"there is no GGUF for {spec}"
    import llama_cpp

    gguf, threads = str(Path(found.origin).parent / alias.gguf), torch.get_num_threads()
    llm = llama_cpp.Llama(
        gguf,
        n_ctx=8192,
        n_batch=2048,
        n_ubatch=512,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    start, odds = Spent.now(), []
    for prompt in find_labels(engine.form, requests):
        seen: list[np.ndarray[Any, Any]] = []
        look = llama_cpp.LogitsProcessorList(
            [lambda _ids, scores, seen=seen: seen.append(scores.copy()) or scores]
        )
        next(llm.generate(prompt.ids.tolist(), temp=0.0, logits_processor=look))
        odds.append(float(seen[0][prompt.labels[0]] - seen[0][prompt.labels[1]]))
    return Side(Spent.now().since(start), odds)


class Tokens(NamedTuple):
    """How many tokens the prompts have, how many nodes their trie has, and how many nodes those see,
    themselves included."""

    asked: int
    necessary: int
    seen: int


def tokens(prompts: Sequence[EncodedQuestion]) -> Tokens:
    """Counts the trie of all prompts."""
    ids = [prompt.ids for prompt in prompts]
    (whole,) = plan_passes(ids, budget=1 << 60, branches=1 << 60)
    pieces = [(branch.shared, len(ids[branch.members[0]])) for branch in whole.branches]
    seen = sum((begin + 1 + end) * (end - begin) // 2 for begin, end in pieces)
    return Tokens(sum(map(len, ids)), sum(end - begin for begin, end in pieces), seen)


def compare(args: argparse.Namespace) -> None:
    """The three ways and the limit."""
    engine = load_engine(args.model, dtype=args.dtype)
    groups = questions(
        read_comparisons(args.data, args.comparisons), principles(args.principles), args.protocol
    )
    requests = [request for group in groups for request in group]
    some = [request for group in groups[: args.peers or len(groups)] for request in group]
    every, necessary, seen = tokens(list(find_labels(engine.form, requests)))
    few, fewer, _ = tokens(list(find_labels(engine.form, some)))
    total, embedding = count_parameters(args.model)
    ours(engine, groups[:1])  # the first forward pass prepares kernels
    speeds = [peak(engine.model.dtype, engine.model.device)]
    fast = ours(engine, groups)
    speeds.append(peak(engine.model.dtype, engine.model.device))
    speed = Spent(max(each.wall for each in speeds), max(each.cpu for each in speeds))
    layers = necessary * 2.0 * (total - embedding)
    limit = Spent(*(layers / each for each in speed))
    shape = model_shape(args.model)
    attention = 4.0 * shape.layers * shape.attention * seen / layers
    print(
        f"{args.model}, {engine.card.dtype}, {args.protocol}: {len(groups)} comparisons x {args.principles} "
        "principles = "
        f"{len(requests):,} questions, {torch.get_num_threads()} threads\n"
        f"tokens: {every:,} asked, {necessary:,} necessary ({every / necessary:.1f}x fewer)\n"
        f"matrix product: {speed.wall / 1e9:,.0f} GFLOP/s, {speed.cpu / 1e9:,.0f} a processor second; "
        f"limit: {limit.wall:.1f} s, {limit.cpu:.1f} processor seconds; the products of attention, which it "
        "leaves out, are "
        f"{attention:.0%} on top"
    )
    table = Table(len(requests), limit, fast)
    table.show("(b) ours", fast)
    note = f", scaled from {len(some):,} questions" if len(some) < len(requests) else ""
    other = llama_cpp(args.model, engine, some)
    if isinstance(other, Side):
        table.show(f"(c) llama.cpp{note}", other.times(necessary / fewer))
    else:
        print(f"(c) llama.cpp: left out: {other}")
    table.show(f"(a) transformers{note}", naive(engine, some).times(every / few))


class Table(NamedTuple):
    """Prints the comparison: how many questions, the limit, and what the others are held against."""

    questions: int
    limit: Spent
    against: Side

    def show(self, name: str, side: Side) -> None:
        """One way's lines."""
        spent, share = (
            side.spent,
            [limit / seconds for limit, seconds in zip(self.limit, side.spent, strict=True)],
        )
        print(
            f"{name}: {spent.wall:.1f} s, {self.questions / spent.wall:.1f} questions/s, {share[0]:.0%} of "
            "the limit; "
            f"{spent.cpu:.1f} processor seconds, {share[1]:.0%} of the limit",
            flush=True,
        )
        if side is not self.against:
            wall, cpu = (theirs / mine for theirs, mine in zip(spent, self.against.spent, strict=True))
            print(
                f"    ours is {wall:.1f}x as fast ({cpu:.1f}x by processor time); "
                f"{agreement(self.against.odds, side.odds)}"
            )


def agreement(one: Sequence[float], other: Sequence[float]) -> str:
    """How far two ways' log-odds are apart."""
    a, b = np.array(one[: len(other)]), np.array(other)
    apart = np.abs(a - b)
    same = (a * b > 0).mean()
    return (
        f"same side on {same:.1%} of {len(b):,}, log-odds apart by {apart.mean():.3f} on average, at "
        f"most {apart.max():.3f}"
    )


def scaling(args: argparse.Namespace) -> None:
    """How our time grows with principles, completions per prompt, and length."""
    engine = load_engine(args.model, dtype=args.dtype)
    pairs = read_comparisons(args.data, 64)
    ours(engine, questions(pairs[:1], principles(1), args.protocol))

    def line(what: str, comparisons: Sequence[Comparison], count: int) -> None:
        groups = questions(comparisons, principles(count), args.protocol)
        every, necessary, _ = tokens(
            list(find_labels(engine.form, [request for group in groups for request in group]))
        )
        side = ours(engine, groups)
        (wall, cpu), each = side.spent, 1e3 * side.spent.cpu / necessary
        print(
            f"{what:<30} {len(side.odds):>9,} {every:>9,} {necessary:>9,} {wall:>8.1f} {cpu:>8.1f} "
            f"{each:>8.3f}",
            flush=True,
        )

    print(
        f"{'':<30} {'questions':>9} {'tokens':>9} {'needed':>9} {'seconds':>8} {'cpu s':>8} {'cpu ms/t':>8}"
    )
    for count in (1, 4, 16, 64):
        line(f"4 comparisons, {count} principles", pairs[:4], count)
    for k in (2, 4, 8):
        line(f"1 prompt, K = {k}, 4 principles", all_pairs(pairs, k), 4)
    for words in (16, 64, 256):
        line(f"4 comparisons, {words} words", [resized(pair, words) for pair in pairs[:4]], 4)


def all_pairs(pairs: Sequence[Comparison], k: int) -> list[Comparison]:
    """Every pair of `k` completions of the first prompt; the completions are those of several prompts."""
    prompt = pairs[0].prompt
    texts = [text for pair in pairs for text in (pair.a.text, pair.b.text)][:k]
    found = [
        Completion(f"{prompt.id}/{at}", prompt.id, at, text, "given", "given")
        for at, text in enumerate(texts)
    ]
    return [Comparison(prompt, a, b) for a, b in combinations(found, 2)]


def resized(pair: Comparison, words: int) -> Comparison:
    """The pair with completions of so many words."""
    a, b = (
        replace(each, text=" ".join(islice(cycle(each.text.split() or ["word"]), words)))
        for each in (pair.a, pair.b)
    )
    return replace(pair, a=a, b=b)


def stream(path: Path, count: int) -> Iterator[Comparison]:
    """Comparisons without end, told apart by their ids and last words."""
    for number, pair in enumerate(islice(cycle(read_comparisons(path)), count)):
        prompt = replace(pair.prompt, id=f"{pair.prompt.id}-{number}")
        a, b = (replace(each, prompt_id=prompt.id, text=f"{each.text} {number}") for each in (pair.a, pair.b))
        yield Comparison(prompt, a, b)


def memory(args: argparse.Namespace) -> None:
    """Peak memory of judging a few and many streamed comparisons."""
    if args.memory_rows is None:
        for count in MEMORY_ROWS:
            command = [
                sys.executable,
                __file__,
                "--data",
                str(args.data),
                "--model",
                args.model,
                "--memory-rows",
                str(count),
            ]
            subprocess.run(command, check=True)
        return
    tokenizer = load_tokenizer(args.model)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=8192, **shape)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    card = EngineCard(name="random", revision="0", kind="hf", dtype="float32", context=8192, chat=True)
    rules = principles(1)
    asked = open_protocol(args.protocol, library=PromptLibrary(), constitution=rules)
    judge = Judge(HFEngine(model, tokenizer, card), asked, rules, principles="all", seed=0)
    start, judged = time.perf_counter(), sum(1 for _ in judge.judge(stream(args.data, args.memory_rows)))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{judged:,} comparisons: at most {used:,.0f} MiB, {time.perf_counter() - start:.0f} s", flush=True)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="pairs: columns prompt, chosen, rejected")
    parser.add_argument("--comparisons", type=int, default=64)
    parser.add_argument("--principles", type=int, default=16)
    parser.add_argument("--protocol", choices=["pairwise", "pointwise"], default="pairwise")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--peers", type=int, default=None, help="comparisons for (a) and (c); all by default")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--memory-rows", type=int, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault(HUGE_PAGES, "1")  # as the command line does, here for every side
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.memory or args.memory_rows is not None:
        memory(args)
    elif args.scaling:
        scaling(args)
    else:
        compare(args)


if __name__ == "__main__":
    main()
