"""PPO: seconds per step and peak memory, ours beside TRL 1.12 (the last release line that has PPO).

    python benchmarks/ppo.py
    python -m venv .venv-trl && .venv-trl/bin/pip install torch==2.13.0 trl==1.12.0 'transformers<5.23' peft
    accelerate datasets python benchmarks/ppo.py --trl-python .venv-trl/bin/python

Both do the same work on the same weights: steps of 32 episodes of 32 new tokens, two epochs, one optimiser
step each, LoRA of rank 16 on all linear layers, bfloat16, a policy, a reference, a value function and a
reward model. TRL holds policy, value and reward model as separate models and trains the value model whole;
ours are adapters and heads on one base. A micro-batch, which changes results by rounding only, is 16 rows for
ours, what PPO ships with, and 8 for TRL, which takes more than three times our memory even so;
`--micro-batch 8` compares equal ones. Each side runs in a process of its own, one after the other; its peak
is that process's resident set (getrusage). `--alternate N` repeats the pair N times, for machines whose speed
drifts. On a machine that others use too, compare processor time with one thread (OMP_NUM_THREADS=1): it
hardly depends on what else runs, while wall time, and with several threads even processor time (they spin
while they wait), does.
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
from pathlib import Path
from typing import Any

TEXTS = (
    "I failed my driving test today.",
    "Tell me about your morning.",
    "Write a short review of a restaurant.",
    "My neighbour plays loud music at night.",
    "Describe the city in winter.",
    "I just finished reading a long novel.",
    "What do you think of my new haircut?",
    "My flight got cancelled.",
    "Write a sentence about the sea.",
    "I have to give a speech tomorrow.",
    "My cat is ignoring me.",
    "Write a short note to a colleague.",
    "Describe a rainy day.",
    "I burned the dinner.",
    "How was the football match?",
    "I lost my keys again.",
)
EPISODES, NEW_TOKENS, EPOCHS, RANK = 32, 32, 2, 16
MICRO_BATCH, TRL_MICRO_BATCH = 16, 8


def ours(model: str, steps: int, micro_batch: int) -> None:
    """Run our PPO and print one JSON line."""
    import torch

    from rlaif.config.ppo import PpoConfig
    from rlaif.models.shared_base import LoraSettings, SharedBase
    from rlaif.reward.functions import ScoredReward
    from rlaif.reward.head import ScalarHead
    from rlaif.reward.model import Member, RewardModel
    from rlaif.stages.ppo import train_ppo
    from rlaif.types import Message, Prompt

    base = SharedBase.load(model, dtype="bfloat16")
    base.add_adapter("reward", LoraSettings(rank=RANK), seed=1, train=False)
    head = ScalarHead(base.hidden_size)
    head.draw(seed=1)
    scorer = RewardModel(base, [Member(role="reward", head=head)], pooling="last")
    reward = ScoredReward(
        "model",
        lambda prompts, completions: scorer.score(
            [
                [*prompt.messages, Message("assistant", completion.text)]
                for prompt, completion in zip(prompts, completions, strict=True)
            ]
        ),
    )
    prompts = [Prompt(id=str(number), messages=(Message("user", text),)) for number, text in enumerate(TEXTS)]
    config = PpoConfig(
        steps=steps,
        episodes=EPISODES,
        max_new_tokens=NEW_TOKENS,
        epochs=EPOCHS,
        lora_rank=RANK,
        micro_batch=micro_batch,
        learning_rate=1e-4,
        missing_eos_penalty=0.0,
    )
    start, cpu = time.perf_counter(), time.process_time()
    result = train_ppo(prompts, base=base, reward=reward, config=config, seed=0)
    seconds, cpu = (time.perf_counter() - start) / steps, (time.process_time() - cpu) / steps
    parts = {
        name.removeprefix("seconds/"): round(
            sum(float(metrics[name] or 0) for metrics in result.history) / steps, 2
        )
        for name in result.history[0]
        if name.startswith("seconds/")
    }
    report(
        "ours",
        seconds,
        cpu=round(cpu, 2),
        threads=torch.get_num_threads(),
        parts=parts,
        kl=result.history[-1]["kl"],
    )


def trl(model: str, steps: int) -> None:
    """Run TRL's PPO and print one JSON line."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="left")
    tokenizer.pad_token = "<|endoftext|>"
    policy: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.bfloat16)
        for _ in range(2)
    )
    for each in (policy, reward, value):
        each.config.pad_token_id = tokenizer.pad_token_id
    encoded = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for text in TEXTS
    ]
    rows = Dataset.from_list(
        [{"input_ids": encoded[number % len(encoded)]} for number in range(EPISODES * steps * 4)]
    )
    config = PPOConfig(
        output_dir=os.environ["RLAIF_BENCHMARK_OUT"],
        per_device_train_batch_size=TRL_MICRO_BATCH,
        num_mini_batches=1,
        gradient_accumulation_steps=EPISODES // TRL_MICRO_BATCH,
        num_ppo_epochs=EPOCHS,
        total_episodes=EPISODES * steps,
        response_length=NEW_TOKENS,
        local_rollout_forward_batch_size=EPISODES,
        learning_rate=1e-4,
        report_to=[],
        stop_token=None,
        num_sample_generations=0,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        missing_eos_penalty=None,
        gradient_checkpointing=False,
        logging_steps=1,
    )
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward,
        value_model=value,
        train_dataset=rows,
        eval_dataset=rows.select(range(8)),
        peft_config=lora,
    )
    start, cpu = time.perf_counter(), time.process_time()
    trainer.train()
    seconds, cpu = (time.perf_counter() - start) / steps, (time.process_time() - cpu) / steps
    report("trl", seconds, cpu=round(cpu, 2), threads=torch.get_num_threads())


def report(side: str, seconds: float, **more: Any) -> None:
    """One JSON line: seconds per step and the peak resident set in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1024 if sys.platform.startswith("linux") else 1 << 20
    )
    print(
        "RESULT " + json.dumps({"side": side, "seconds": round(seconds, 2), "peak_mb": round(peak), **more}),
        flush=True,
    )


def run(python: str, *arguments: str) -> dict[str, Any]:
    """What one side reports, run in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "RLAIF_BENCHMARK_OUT": place}
        command = [python, str(Path(__file__).resolve()), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="PPO: ours beside TRL 1.12.")
    parser.add_argument("--model", default="smollm2-135m", help="alias, folder or hub id")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--micro-batch", type=int, default=MICRO_BATCH, help="ours; TRL's is always 8")
    parser.add_argument("--trl-python", help="the python of an environment with TRL 1.12")
    parser.add_argument("--alternate", type=int, default=1, help="run the pair so many times")
    parser.add_argument("--side", choices=["ours", "trl"], help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.side == "ours":
        return ours(chosen.model, chosen.steps, chosen.micro_batch)
    if chosen.side == "trl":
        return trl(chosen.model, chosen.steps)
    common = ["--steps", str(chosen.steps)]
    for _ in range(chosen.alternate):
        mine = run(
            sys.executable,
            "--side",
            "ours",
            "--model",
            chosen.model,
            "--micro-batch",
            str(chosen.micro_batch),
            *common,
        )
        print(_line("ours", mine), mine["parts"], flush=True)
        if chosen.trl_python:
            theirs = run(chosen.trl_python, "--side", "trl", "--model", _folder(chosen.model), *common)
            print(_line("TRL ", theirs), flush=True)
            speed, cpu, memory = (theirs[name] / mine[name] for name in ("seconds", "cpu", "peak_mb"))
            print(
                f"ours is {speed:.2f}x as fast ({cpu:.2f}x by processor time) at 1/{memory:.2f} of the "
                "memory",
                flush=True,
            )
    return None


def _line(side: str, found: dict[str, Any]) -> str:
    threads = f"{found['threads']} thread{'s' if found['threads'] > 1 else ''}"
    return (
        f"{side}: {found['seconds']:.1f} s/step ({found['cpu']:.1f} s of processor), peak "
        f"{found['peak_mb']} MB, {threads}"
    )


def _folder(model: str) -> str:
    """The folder that TRL can open for what `model` names."""
    from rlaif.models.load import resolve

    return str(resolve(model).path)


if __name__ == "__main__":
    main()
