"""What training takes, by hand: FLOPs of passes through a toy base, and of whole stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from toy_policy import prompts, share_of_vowels, toy_base

from rlaif.config.finetune import BestOfKConfig, DpoConfig, SftConfig
from rlaif.config.ppo import PpoConfig
from rlaif.labels import log_odds_of
from rlaif.models.cost import Meter, forward_flops
from rlaif.models.heap import WIDTH
from rlaif.models.shared_base import REFERENCE, LoraSettings, SharedBase
from rlaif.results.costs import CurvePoint, TrainingCost
from rlaif.results.preferences import PreferencePair
from rlaif.reward.functions import FunctionReward
from rlaif.stages.best_of_k import best_of_k
from rlaif.stages.dpo import train_dpo
from rlaif.stages.on_policy import on_policy_cost
from rlaif.stages.ppo import train_ppo
from rlaif.stages.sft import train_sft

torch.set_num_threads(1)

# Per layer: q and o 32 × 32, k and v 32 × 16, gate, up and down 32 × 64, two norms of 32; two layers and the
# last norm; the head.
P = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32
A = 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
E = 32 * 20
LORA = LoraSettings(rank=4, alpha=8)
IDS = torch.arange(4, 19).view(3, 5)
VOWELS = FunctionReward(share_of_vowels)
QUICK: dict[str, Any] = {"lora_rank": 4, "lora_alpha": 8.0, "micro_batch": 16}


def spent(base: SharedBase, work: Callable[[], Any]) -> float:
    meter = Meter()
    with meter.on(base, base):
        work()
    assert meter.seconds > 0
    return meter.flops


def passed(base: SharedBase, role: str, *, back: bool = False) -> None:
    """One pass over 3 × 5 tokens, and logits of 3 of them."""
    with base.role(role):
        logits = base.logits_at(base.hidden(IDS, torch.ones_like(IDS))[:, -1])
        if back:
            logits.square().sum().backward()


@pytest.fixture
def base() -> SharedBase:
    found = toy_base()
    found.add_adapter("policy", LORA)
    found.add_adapter("still", LORA, train=False)
    return found


def test_a_forward_pass(base: SharedBase) -> None:
    with torch.no_grad():
        assert spent(base, lambda: passed(base, REFERENCE)) == 2 * (15 * P + 3 * E)
        assert spent(base, lambda: passed(base, "policy")) == 2 * (15 * (P + A) + 3 * E)
        assert spent(base, lambda: passed(base, "policy")) == forward_flops(
            base, "policy", tokens=15, logits=3
        )
    assert spent(base, lambda: passed(base, "still")) == 2 * (15 * (P + A) + 3 * E), (
        "nothing of it is trained"
    )


def test_a_backward_pass(base: SharedBase) -> None:
    forward, backward = 2 * (15 * (P + A) + 3 * E), 15 * (2 * P + 4 * A) + 2 * 3 * E
    assert spent(base, lambda: passed(base, "policy", back=True)) == forward + backward
    base.checkpoint_layers(True)
    assert spent(base, lambda: passed(base, "policy", back=True)) == forward + backward + 15 * 2 * (P + A)
    base.checkpoint_layers(False)
    assert spent(base, lambda: passed(base, "policy", back=True)) == forward + backward


def test_logits_formed_again_are_no_second_backward_pass(base: SharedBase) -> None:
    states = torch.zeros(7, 32, requires_grad=True)

    def work() -> None:
        checkpoint(lambda x: base.logits_at(x).square().sum(), states, use_reentrant=False).backward()

    assert spent(base, work) == 3 * 2 * 7 * E


def test_nothing_is_counted_after_the_block_and_an_error_takes_the_hooks_off(base: SharedBase) -> None:
    meter = Meter()
    with pytest.raises(RuntimeError, match="inside"), meter.on(base):
        raise RuntimeError("inside")
    passed(base, "policy")
    assert meter.flops == 0
    assert not base.model.get_decoder()._forward_hooks


def test_sft_by_hand() -> None:
    """Two rows of one length, one pass: padded to the least width, and the prompts share too little to be
    computed once."""
    rows = [
        {
            "prompt": [{"role": "user", "content": text}],
            "completion": [{"role": "assistant", "content": "aei"}],
        }
        for text in "ab"
    ]
    result = train_sft(rows, base=toy_base(), config=SftConfig(**QUICK, held_out=0), seed=0)
    # <|user|> letter <|assistant|> and three letters, padded; three letters and the end token.
    read, learned = 2 * WIDTH, 2 * 4
    assert result.cost.flops == read * (4 * P + 6 * A) + learned * 4 * E
    assert (result.cost.tokens, result.cost.curve) == (0, ())
    assert result.cost.seconds > 0


def pairs(count: int) -> list[PreferencePair]:
    return [
        PreferencePair(
            id=f"r{number}",
            prompt=prompt.messages,
            chosen="aei",
            rejected="bcd",
            log_odds=log_odds_of(0.9),
            group=prompt.id,
        )
        for number, prompt in enumerate(prompts(count))
    ]


def test_dpo_asks_the_reference_once_and_learns_each_epoch() -> None:
    results = [
        train_dpo(pairs(8), base=toy_base(), config=DpoConfig(**QUICK, epochs=epochs), seed=0)
        for epochs in (1, 2, 3)
    ]
    costs = [result.cost.flops or 0.0 for result in results]
    assert costs[2] - costs[1] == pytest.approx(costs[1] - costs[0])
    asked = costs[0] - (costs[1] - costs[0])
    assert 0.3 < asked / (costs[1] - costs[0]) < 0.5, (
        "a forward pass without adapter, beside a forward and a backward one with it"
    )


# Curves


def test_ppo_tells_the_flops_of_each_step() -> None:
    settings = {
        **QUICK,
        "episodes": 4,
        "max_new_tokens": 4,
        "steps": 2,
        "missing_eos_penalty": 0.0,
        "epochs": 1,
    }
    result = train_ppo(prompts(4), base=toy_base(), reward=VOWELS, config=PpoConfig(**settings), seed=0)
    twice = train_ppo(
        prompts(4), base=toy_base(), reward=VOWELS, config=PpoConfig(**settings | {"epochs": 2}), seed=0
    )
    one, two = (found.history[0]["flops"] or 0 for found in (result, twice))
    tokens = 4 * 4
    assert two - one > tokens * (4 * P + 6 * A)
    assert one > tokens * (2 * (P + A) + 2 * P + 4 * P + 6 * A), (
        "sampled by the policy, scored by the reference, learned once"
    )


def test_the_curve_of_ppo_puts_a_rollout_before_the_update_it_feeds() -> None:
    history = [
        {"reward": reward, "tokens": tokens, "flops": 1e6, "seconds/rollout": 1.0, "seconds/update": seconds}
        for reward, tokens, seconds in ((0.1, 100, 2.0), (0.3, 120, 3.0), (0.4, 90, 1.0))
    ]
    found = on_policy_cost(history)
    assert found == TrainingCost(
        tokens=310,
        seconds=9.0,
        flops=3e6,
        curve=(CurvePoint(0, 0.0, 0.1), CurvePoint(100, 3.0, 0.3), CurvePoint(220, 7.0, 0.4)),
    )
    assert on_policy_cost(history[:1]).curve == ()
    assert on_policy_cost([{"reward": 0.1, "tokens": 90}, history[0]]).flops is None, (
        "steps of an older version"
    )


def test_the_curve_of_best_of_k_begins_at_the_start_policy_and_ends_at_what_was_made() -> None:
    config = BestOfKConfig(
        **QUICK, k=4, max_new_tokens=4, rounds=2, missing_eos_penalty=0.0, learning_rate=5e-3
    )
    result = best_of_k(prompts(6), base=toy_base(), reward=VOWELS, config=config, seed=0)
    first, second, last = result.cost.curve
    assert (first.tokens, first.seconds, first.value) == (0, 0, result.student.start_reward)
    assert (second.tokens, second.value) == (result.rounds[0].tokens, result.rounds[1].growth[0].reward)
    assert (last.tokens, last.seconds, last.value) == (
        result.cost.tokens,
        result.cost.seconds,
        result.student.reward,
    )
    assert result.cost.tokens == result.counts()["tokens"]
    assert 0 < second.seconds < last.seconds
    sampled = result.cost.tokens * 2 * P
    assert (result.cost.flops or 0) > sampled


def test_a_student_has_no_curve() -> None:
    config = BestOfKConfig(**QUICK, k=4, max_new_tokens=4, missing_eos_penalty=0.0)
    result = best_of_k(
        prompts(6), base=toy_base(), student=toy_base(seed=5), reward=VOWELS, config=config, seed=0
    )
    assert result.cost.curve == ()
    assert result.cost.flops
