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
import os
import time
from typing import Any

from sides import TEXTS, alternate, report

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


def main() -> None:
    parser = argparse.ArgumentParser(description="PPO: ours beside TRL 1.12.")
    parser.add_argument("--micro-batch", type=int, default=MICRO_BATCH, help="ours; TRL's is always 8")
    parser.add_argument("--trl-python", help="the python of an environment with TRL 1.12")
    alternate(
        parser,
        __file__,
        ours=lambda chosen: ours(chosen.model, chosen.steps, chosen.micro_batch),
        trl=lambda chosen: trl(chosen.model, chosen.steps),
        passed=("steps", "micro-batch"),
    )


if __name__ == "__main__":
    main()
