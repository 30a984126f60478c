"""Check rollouts on a real `vllm serve`, as the test suite does on a stand-in:

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve BASE --enable-lora --max-lora-rank 16 --max-loras 3 \\
        --logprobs-mode processed_logprobs --generation-config vllm
    python scripts/check_vllm.py --model BASE --url http://localhost:8000/v1

The servers answer as adapters of known weights, alone and side by side; draws repeat; two steps of GRPO are
taken on them, a round of best of K, an evaluation of both policies, and samples without weights here. An
adapter that is too large is refused in words. Prints figures, and ends with 1 where something does not hold;
some minutes on two cores with the small model.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rlaif.config import SampleConfig
from rlaif.config.evaluation import EvaluateConfig
from rlaif.config.finetune import BestOfKConfig
from rlaif.config.grpo import GrpoConfig
from rlaif.config.rollout import RolloutSettings
from rlaif.errors import ModelError
from rlaif.models.shared_base import LoraSettings, SharedBase
from rlaif.prompts import PromptLibrary
from rlaif.reward.functions import FunctionReward
from rlaif.rl.learner import POLICY
from rlaif.rl.served import ServedSampler
from rlaif.rl.serving.probe import loud
from rlaif.stages.best_of_k import best_of_k
from rlaif.stages.evaluate import Metrics, PolicySource, evaluate
from rlaif.stages.grpo import train_grpo
from rlaif.stages.rollouts import served_policy
from rlaif.stages.sample import sample
from rlaif.types import Completion, Message, Prompt

QUESTIONS = (
    "Name a colour.",
    "Write a sentence about the sea.",
    "What do bees make?",
    "Tell me a short joke.",
    "Why is the sky blue?",
    "What is a good breakfast?",
    "Describe a friendly dog.",
    "How do I boil an egg?",
)
PROMPTS = [Prompt(id=f"p{at}", messages=(Message("user", text),)) for at, text in enumerate(QUESTIONS)]
NEW_TOKENS, SAMPLES = 16, 2
BEST = "best-of-k"


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--url", action="append", required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--too-large", type=int, default=32, help="a rank above the server's --max-lora-rank")
    options = parser.parse_args()
    settings = RolloutSettings(base_urls=tuple(options.url))
    base = SharedBase.load(options.model, dtype=options.dtype)
    held = [
        check_sampling(base, settings),
        check_refusal(base, settings, rank=options.too_large),
        check_training(base, settings, steps=options.steps),
        check_best_of_k(base, settings),
        check_evaluation(base, settings),
        check_samples(options.model, settings),
    ]
    print(f"everything holds: {all(held)}")
    return 0 if all(held) else 1


def check_sampling(base: SharedBase, settings: RolloutSettings) -> bool:
    """Probe the servers, load adapters, and compare log-probabilities and repeated draws."""
    base.add_adapter(POLICY, LoraSettings(rank=16, alpha=32.0), seed=0)
    with tempfile.TemporaryDirectory() as folder, base.role(POLICY):
        sampler = ServedSampler(
            base, settings, folder=Path(folder), max_new_tokens=NEW_TOKENS, temperature=0.8, rows=16
        )
        probe = sampler.check()
        print(f"probe, nats a token: {probe}")
        print(f"the base by its own name is mixed up with an adapter: {probe.base_is_mixed_up}")
        base.set_adapter_state(POLICY, loud(base.adapter_state(POLICY)))
        began = time.perf_counter()
        sampler.publish()
        print(f"adapter written, loaded and listed: {time.perf_counter() - began:.2f} s")
        questions = [sampler.question(prompt, prompt.messages) for prompt in PROMPTS]
        began = time.perf_counter()
        first = sampler.sample(questions, samples=SAMPLES, seed=1)
        seconds, tokens = time.perf_counter() - began, int(first.is_real.sum())
        print(f"sampled and scored: {tokens} tokens in {seconds:.1f} s, {tokens / seconds:.0f} a second")
        assert first.sampler_logprobs is not None
        apart = (first.logprobs - first.sampler_logprobs)[first.is_real].abs()
        print(f"|difference| of log-probabilities: mean {apart.mean():.2g}, max {apart.max():.2g}")
        again = sampler.sample(questions, samples=SAMPLES, seed=1)
        same = first.tokens.shape == again.tokens.shape and torch.equal(first.tokens, again.tokens)
        print(f"the same seed draws the same tokens: {same}")
        sampler.close()
    base.drop_adapter(POLICY)
    return same


def check_training(base: SharedBase, settings: RolloutSettings, *, steps: int) -> bool:
    """Some steps of GRPO towards short answers."""

    def told(metrics: Mapping[str, Any]) -> None:
        print(
            f"step {metrics['step']}: reward {metrics['reward']:.3f}, ratio {metrics['rollout/ratio']:.5f} "
            f"(p99 {metrics['rollout/ratio_p99']:.4f}), k3 {metrics['rollout/kl_k3']:.2g}, "
            f"{metrics['seconds/rollout']:.1f} s of rollout and {metrics['seconds/update']:.1f} s of update"
        )

    result = train_grpo(
        PROMPTS,
        base=base,
        reward=FunctionReward(shortness),
        config=GrpoConfig(
            steps=steps,
            episodes=len(PROMPTS) * SAMPLES,
            samples_per_prompt=SAMPLES,
            max_new_tokens=NEW_TOKENS,
            learning_rate=1e-3,
            lora_rank=8,
            rollout=settings,
        ),
        seed=0,
        on_step=told,
    )
    print(f"{result.steps} steps; stopped: {result.stopped or 'no'}")
    return result.steps == steps


def check_refusal(base: SharedBase, settings: RolloutSettings, *, rank: int) -> bool:
    """An adapter that is too large is refused at once, in words."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        sampler = ServedSampler(
            base,
            settings,
            folder=Path(folder),
            max_new_tokens=NEW_TOKENS,
            temperature=1.0,
            lora=LoraSettings(rank=rank),
        )
        try:
            sampler.check()
        except ModelError as error:
            print(f"an adapter of rank {rank}, after {time.perf_counter() - began:.1f} s: {error}")
            return "--max-lora-rank" in error.what
        finally:
            sampler.close()
    print(f"the servers take an adapter of rank {rank}; say --too-large")
    return False


def check_best_of_k(base: SharedBase, settings: RolloutSettings) -> bool:
    """A round towards short answers, of a second policy."""
    began = time.perf_counter()
    result = best_of_k(
        PROMPTS,
        base=base,
        reward=FunctionReward(shortness),
        config=BestOfKConfig(
            k=4, max_new_tokens=NEW_TOKENS, measure_prompts=8, learning_rate=1e-3, rollout=settings
        ),
        seed=0,
        role=BEST,
    )
    print(
        f"best of K: {result.rounds[0].completions} completions, reward {result.student.start_reward:.3f} to "
        f"{result.student.reward:.3f}, KL {result.student.kl:.3f}, {time.perf_counter() - began:.1f} s; "
        f"{result.notes[0]}"
    )
    return bool(result.notes)


def check_evaluation(base: SharedBase, settings: RolloutSettings) -> bool:
    """The policies that the steps before left, side by side."""
    began = time.perf_counter()
    found = evaluate(
        PROMPTS,
        {"start": PolicySource(base), **{role: PolicySource(base, role) for role in base.roles}},
        start="start",
        config=EvaluateConfig(samples=2, max_new_tokens=NEW_TOKENS, win_rate=False, rollout=settings),
        seed=0,
        metrics=Metrics({"shortness": shortness}),
    )
    for policy in found.policies:
        kl, short = policy.estimates["kl"], policy.estimates["shortness"]
        print(f"evaluated {policy.name}: KL {kl.value:.3f}, shortness {short.value:.3f}")
    print(f"evaluation: {time.perf_counter() - began:.1f} s")
    for note in found.notes:
        print(f"  {note}")
    return found.policies[0].estimates["kl"].value == 0.0 and len(found.notes) == len(found.policies)


def check_samples(model: str, settings: RolloutSettings) -> bool:
    """Completions of the base, for which its weights are not read here; they repeat."""
    began, config = time.perf_counter(), SampleConfig(k=2, max_new_tokens=NEW_TOKENS)
    policy = served_policy(model, settings, None)
    found = sample(PROMPTS, policy=policy, library=PromptLibrary(), config=config, seed=0)
    again = sample(PROMPTS, policy=policy, library=PromptLibrary(), config=config, seed=0)
    print(
        f"sample: {len(found.completions)} completions, drawn twice in {time.perf_counter() - began:.1f} s; "
        f"the same: {found.completions == again.completions}"
    )
    return found.completions == again.completions and not found.refused


def shortness(prompt: Prompt, completion: Completion) -> float:
    """1 for nothing, less the more characters are written."""
    return 1.0 - len(completion.text) / (8 * NEW_TOKENS)


if __name__ == "__main__":
    sys.exit(main())
