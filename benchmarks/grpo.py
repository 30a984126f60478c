"""GRPO: seconds per step and peak memory, ours beside TRL's `GRPOTrainer`.

    python benchmarks/grpo.py --steps 5
    OMP_NUM_THREADS=1 python benchmarks/grpo.py --steps 5 --alternate 3

Both do the same work on the same weights: steps of 32 completions of at most 32 new tokens (`--episodes`,
`--new-tokens`), 8 of each prompt, one optimiser step on all of them, LoRA of rank 16 on all linear layers,
bfloat16, KL 0.04 to the reference in the loss, and one reward function of the text. Each draws its own
completions, so `tokens` (per step) differ a little. A micro-batch is 8 rows on both sides, the default of
both. Each side runs in a process of its own, one after the other; its peak is that process's resident set
(getrusage), on a GPU that of its tensors. `--alternate N` repeats the pair N times.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

from sides import TEXTS, alternate, report

GROUP, RANK, BETA = 8, 16, 0.04


def vowels(text: str) -> float:
    """The reward of both sides: the share of vowels."""
    return sum(letter in "aeiou" for letter in text.lower()) / max(1, len(text))


def ours(model: str, steps: int, *, episodes: int, new_tokens: int, micro_batch: int) -> None:
    """Run our GRPO and print one JSON line."""
    import torch

    from rlaif.config.grpo import GrpoConfig
    from rlaif.models.shared_base import SharedBase
    from rlaif.reward.functions import FunctionReward
    from rlaif.stages.grpo import train_grpo
    from rlaif.types import Message, Prompt

    base = SharedBase.load(model, dtype="bfloat16")
    prompts = [Prompt(id=str(number), messages=(Message("user", text),)) for number, text in enumerate(TEXTS)]
    config = GrpoConfig(
        steps=steps,
        episodes=episodes,
        samples_per_prompt=GROUP,
        max_new_tokens=new_tokens,
        lora_rank=RANK,
        micro_batch=micro_batch,
        learning_rate=1e-4,
        missing_eos_penalty=0.0,
        kl={"kind": "fixed", "beta": BETA},
    )
    reward = FunctionReward(lambda prompt, completion: vowels(completion.text))
    start, cpu = time.perf_counter(), time.process_time()
    result = train_grpo(prompts, base=base, reward=reward, config=config, seed=0)
    seconds, cpu = (time.perf_counter() - start) / steps, (time.process_time() - cpu) / steps
    parts = {
        name.removeprefix("seconds/"): round(
            sum(float(metrics[name] or 0) for metrics in result.history) / steps, 2
        )
        for name in result.history[0]
        if name.startswith("seconds/")
    }
    tokens = sum(int(metrics["tokens"] or 0) for metrics in result.history) / steps
    report(
        "ours", seconds, cpu=round(cpu, 2), threads=torch.get_num_threads(), parts=parts, tokens=round(tokens)
    )


def trl(model: str, steps: int, *, episodes: int, new_tokens: int, micro_batch: int) -> None:
    """Run TRL's GRPO and print one JSON line."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="left")
    tokenizer.pad_token = "<|endoftext|>"
    policy: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    rows = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": text}]} for text in TEXTS * (steps * episodes // GROUP)]
    )
    tokens: list[int] = []

    def reward(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        tokens.append(sum(map(len, completion_ids)))
        return [vowels(completion[0]["content"]) for completion in completions]

    config = GRPOConfig(
        output_dir=os.environ["RLAIF_BENCHMARK_OUT"],
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=episodes // micro_batch,
        num_generations=GROUP,
        max_completion_length=new_tokens,
        num_iterations=1,
        max_steps=steps,
        beta=BETA,
        loss_type="grpo",
        learning_rate=1e-4,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        report_to=[],
        save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        disable_tqdm=True,
    )
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=[reward],
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=lora,
    )
    start, cpu = time.perf_counter(), time.process_time()
    trainer.train()
    seconds, cpu = (time.perf_counter() - start) / steps, (time.process_time() - cpu) / steps
    report(
        "trl",
        seconds,
        cpu=round(cpu, 2),
        threads=torch.get_num_threads(),
        tokens=round(sum(tokens) / max(1, len(tokens))),
    )


def _of(chosen: argparse.Namespace) -> dict[str, Any]:
    names = ("model", "steps", "episodes", "new_tokens", "micro_batch")
    return {name: getattr(chosen, name) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description="GRPO: ours beside TRL's GRPOTrainer.")
    parser.add_argument("--episodes", type=int, default=32, help="completions of a step")
    parser.add_argument("--new-tokens", type=int, default=32, help="longest completion")
    parser.add_argument("--micro-batch", type=int, default=8, help="rows of a pass with gradients")
    parser.add_argument(
        "--trl-python", default=sys.executable, help="python of an environment with TRL; this one by default"
    )
    alternate(
        parser,
        __file__,
        ours=lambda chosen: ours(**_of(chosen)),
        trl=lambda chosen: trl(**_of(chosen)),
        passed=("steps", "episodes", "new-tokens", "micro-batch"),
    )


if __name__ == "__main__":
    main()
