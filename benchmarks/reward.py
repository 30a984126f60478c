"""Reward-model training: ours against plain TRL `RewardTrainer`, on the same pairs, rank, batch, learning
rate and machine.

    python benchmarks/reward.py PREFERENCES.jsonl [--rows 160] [--held-out N] [--model smollm2-135m]
    [--threads N]

Each side runs in a process of its own, one after the other. Prints pairs per second (of training alone:
loading and tokenising are not counted), the same for a second of processor time (which a busy machine changes
less), peak resident memory, the losses of the first and the last quarter of the steps, and the ratios. Both
start from a head drawn at random on the last token's state, which is what TRL does.

With `--held-out N` the last N rows of the file are scored after training, and a third line is the reward
stage with the settings it ships (closed-form head on the mean state, then the adapter, the better of both on
part of the training rows kept).

TRL keeps all activations, its fastest way; `--trl-checkpointing` measures its default, which recomputes them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.stats import Estimate, wilson

BATCH, RANK, ALPHA, LEARNING_RATE, SEED = 8, 16, 32, 1e-4, 0


class Run(NamedTuple):
    """What one side did: seconds of training by the clock and of the processor, the loss of every step,
    tokens computed, and the held-out pairs whose chosen completion scored higher (ties count half)."""

    wall: float
    cpu: float
    losses: list[float]
    tokens: int
    right: float = 0.0
    note: str = ""


Rows = list[dict[str, Any]]


def ours(rows: Rows, held_out: Rows, args: argparse.Namespace) -> Run:
    """Our loop with TRL's settings."""
    import torch

    from rlaif.config.reward import RewardConfig
    from rlaif.models.packing import same_states
    from rlaif.models.shared_base import LoraSettings, SharedBase
    from rlaif.results.preferences import pairs_from_rows
    from rlaif.reward.head import ScalarHead
    from rlaif.reward.model import Member, RewardModel
    from rlaif.reward.train import RewardOptimiser, train_adapter
    from rlaif.stages.reward import encode_pairs

    base = SharedBase.load(args.model, dtype="bfloat16")
    base.add_adapter("reward", LoraSettings(rank=RANK, alpha=ALPHA), seed=SEED)
    pairs = encode_pairs(pairs_from_rows(rows), base, RewardConfig())
    head = ScalarHead(base.hidden_size)
    head.draw(SEED)
    options = RewardOptimiser(
        epochs=1,
        batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        head_learning_rate=LEARNING_RATE,
        micro_tokens=args.micro_tokens,
        pooling="last",
        share_prompt=same_states(base, pairs.trees),
    )
    torch.manual_seed(SEED)
    wall, cpu = time.perf_counter(), time.process_time()
    steps = train_adapter(base, "reward", head, pairs, options, seed=SEED)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    model = RewardModel(base, [Member(role="reward", head=head)], pooling="last")
    return Run(
        wall,
        cpu,
        [step.loss for step in steps],
        sum(step.tokens for step in steps),
        right=_right(model.score, held_out),
    )


def shipped(rows: Rows, held_out: Rows, args: argparse.Namespace) -> Run:
    """The reward stage as it ships; the time includes fitting, measuring and normalising."""
    from rlaif.config.reward import RewardConfig
    from rlaif.models.shared_base import SharedBase
    from rlaif.results.preferences import pairs_from_rows
    from rlaif.stages.reward import train_reward

    base = SharedBase.load(args.model, dtype="bfloat16")
    wall, cpu = time.perf_counter(), time.process_time()
    result = train_reward(
        pairs_from_rows(rows), base=base, config=RewardConfig(micro_tokens=args.micro_tokens), seed=SEED
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    report = result.report
    note = f"kept {report.kept}; on {report.held_out_pairs} of the training rows: " + ", ".join(
        f"{name} {scored.accuracy:.3f} (loss {scored.loss:.3f})" for name, scored in report.held_out.items()
    )
    right = _right(result.model.score, held_out)
    return Run(
        wall,
        cpu,
        [step.loss for step in result.steps],
        sum(step.tokens for step in result.steps),
        right=right,
        note=note,
    )


def _right(score: Callable[[Any], list[float]], rows: Rows) -> float:
    from rlaif.results.preferences import pairs_from_rows

    pairs = pairs_from_rows(rows)
    scores = score([pair.conversation(text) for pair in pairs for text in (pair.chosen, pair.rejected)])
    return sum((a > b) + (a == b) / 2 for a, b in zip(scores[::2], scores[1::2], strict=True))


def trl(rows: Rows, held_out: Rows, args: argparse.Namespace) -> Run:
    """Plain TRL."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    from rlaif.models.load import resolve

    folder = resolve(args.model).path
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = Dataset.from_list([{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows])
    with tempfile.TemporaryDirectory() as out:
        config = RewardConfig(
            output_dir=out,
            per_device_train_batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            num_train_epochs=1,
            max_length=None,
            gradient_checkpointing=args.trl_checkpointing,
            bf16=True,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            seed=SEED,
        )
        lora = LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            target_modules="all-linear",
            modules_to_save=["score"],
            task_type="SEQ_CLS",
        )
        trainer = RewardTrainer(
            model=model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora
        )
        wall, cpu = time.perf_counter(), time.process_time()
        trainer.train()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    trained = trainer.model.eval()
    right = 0.0
    for row in held_out:
        texts = [
            tokenizer.apply_chat_template(row["prompt"] + row[name], tokenize=False)
            for name in ("chosen", "rejected")
        ]
        with torch.no_grad():
            chosen, rejected = (
                float(trained(**tokenizer(text, return_tensors="pt")).logits.float()) for text in texts
            )
        right += (chosen > rejected) + (chosen == rejected) / 2
    return Run(
        wall, cpu, [entry["loss"] for entry in history], int(history[-1].get("num_tokens", 0)), right=right
    )


SIDES: dict[str, Callable[[Rows, Rows, argparse.Namespace], Run]] = {
    "ours": ours,
    "trl": trl,
    "shipped": shipped,
}


def measure(side: str, args: argparse.Namespace) -> None:
    """Run one side in this process and print its figures as one line of JSON."""
    with args.data.open(encoding="utf-8") as lines:
        every = [json.loads(line) for line in lines]
    held_out = every[len(every) - args.held_out :]
    asked = {json.dumps(row["prompt"]) for row in held_out}
    rows = [row for row in every[: args.rows] if json.dumps(row["prompt"]) not in asked]
    done = SIDES[side](rows, held_out, args)
    quarter, losses = max(1, len(done.losses) // 4), done.losses
    share = wilson(done.right, len(held_out)) if held_out else None
    print(
        json.dumps(
            {
                "pairs_per_second": len(rows) / done.wall,
                "pairs_per_cpu_second": len(rows) / done.cpu,
                "tokens_per_second": done.tokens / done.wall,
                "tokens": done.tokens,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "mean_loss": sum(losses) / len(losses),
                "first_quarter": sum(losses[:quarter]) / quarter,
                "last_quarter": sum(losses[-quarter:]) / quarter,
                "losses": [round(loss, 4) for loss in losses],
                "rows": len(rows),
                "accuracy": share,
                "note": done.note,
            }
        )
    )


def run(side: str, args: argparse.Namespace) -> dict[str, Any]:
    """One side in a process of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if args.threads:
        environment["OMP_NUM_THREADS"] = str(args.threads)
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-4000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print(
        f"{side:7} {figures['pairs_per_second']:6.3f} pairs/s  {figures['pairs_per_cpu_second']:6.3f} "
        "pairs/cpu-s  "
        f"{figures['tokens_per_second']:5.0f} tokens/s  peak {figures['peak_mb']:6.0f} MB  loss "
        f"{figures['first_quarter']:.3f} -> "
        f"{figures['last_quarter']:.3f} (mean {figures['mean_loss']:.3f})",
        flush=True,
    )
    if figures["accuracy"]:
        share = Estimate(*figures["accuracy"])
        print(
            f"      {share.value:.3f} [{share.low:.3f}, {share.high:.3f}] of {args.held_out} held-out pairs "
            "right, after "
            f"{figures['rows']} pairs. {figures['note']}",
            flush=True,
        )
    return figures


def main() -> None:
    """Run both sides and print the ratios."""
    parser = argparse.ArgumentParser(description="Reward-model training: ours against plain TRL.")
    parser.add_argument("data", type=Path, help="JSONL with prompt, chosen and rejected as lists of messages")
    parser.add_argument("--rows", type=int, default=160, help="the first N rows (160)")
    parser.add_argument("--held-out", type=int, default=0, help="score the last N rows after training")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--threads", type=int, default=0, help="threads of each side; torch's own choice when left out"
    )
    parser.add_argument(
        "--micro-tokens",
        type=int,
        default=1024,
        help="tokens in one of our forward and backward passes (1024)",
    )
    parser.add_argument(
        "--trl-checkpointing",
        action="store_true",
        help="let TRL recompute activations, as it does by default",
    )
    parser.add_argument("--side", choices=sorted(SIDES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        measure(args.side, args)
        return
    if args.held_out:
        run("shipped", args)
    mine, theirs = run("ours", args), run("trl", args)
    speed = mine["pairs_per_second"] / theirs["pairs_per_second"]
    cpu = mine["pairs_per_cpu_second"] / theirs["pairs_per_cpu_second"]
    memory = mine["peak_mb"] / theirs["peak_mb"]
    print(f"speed {speed:.2f}x by wall clock, {cpu:.2f}x by processor time; memory {memory:.2f}x of TRL's")


if __name__ == "__main__":
    main()
