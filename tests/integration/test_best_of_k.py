"""Best of K on a toy policy: it raises the reward, measures what it made, and changes nothing that it must
not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from toy_policy import prompts, share_of_vowels, toy_base, vowels

from rlaif.config.finetune import BestOfKConfig
from rlaif.errors import DataError
from rlaif.models.shared_base import SharedBase
from rlaif.results.best_of_k import BestOfKResult
from rlaif.reward.functions import FunctionReward
from rlaif.reward.head import ScalarHead
from rlaif.reward.model import Member, RewardModel
from rlaif.rl.math import exact_kl
from rlaif.rl.rollout import Sampler
from rlaif.stages.best_of_k import best_of_k
from rlaif.types import Message, Prompt

QUICK: dict[str, Any] = {
    "k": 8,
    "max_new_tokens": 6,
    "missing_eos_penalty": 0.0,
    "lora_rank": 4,
    "lora_alpha": 8.0,
    "learning_rate": 5e-3,
    "batch_size": 8,
    "micro_batch": 8,
}
LEARN: dict[str, Any] = QUICK | {"k": 16, "epochs": 3}
VOWELS = FunctionReward(share_of_vowels)


pytestmark = pytest.mark.usefixtures("one_thread")


def run(
    base: SharedBase,
    *,
    seed: int = 0,
    reward: Any = VOWELS,
    asked: Sequence[Prompt] | None = None,
    **options: Any,
) -> BestOfKResult:
    names = ("student", "messages", "role")
    given = {name: options.pop(name) for name in names if name in options}
    config = BestOfKConfig(**QUICK | options)
    return best_of_k(
        prompts(16) if asked is None else asked, base=base, reward=reward, config=config, seed=seed, **given
    )


def reference_logits(base: SharedBase) -> torch.Tensor:
    ids = torch.arange(4, 20).unsqueeze(0)
    with torch.no_grad(), base.role("reference"):
        return base.logits_at(base.hidden(ids, torch.ones_like(ids)))


# Learning


def test_it_raises_the_reward_round_by_round_and_the_reference_stays() -> None:
    base = toy_base()
    before = reference_logits(base)
    result = run(base, **LEARN | {"rounds": 2})
    first, second = result.rounds
    assert result.student.start_reward == first.growth[0].reward < 0.3
    assert second.growth[0].reward > first.growth[0].reward + 0.1, (
        "the second round samples from the policy that the first made"
    )
    assert result.student.reward > 0.8
    assert first.loss_after < first.loss_before
    assert first.kept_reward > first.growth[0].reward
    assert torch.equal(reference_logits(base), before), "the reference must not move by a bit"
    assert (base.roles, base.active) == (("policy",), "reference")
    assert all(".policy." in name for name, weight in base.model.named_parameters() if weight.requires_grad)


@pytest.mark.parametrize("keep", [3, "weighted"])
def test_more_than_the_best_can_be_learned(keep: Any) -> None:
    weighted = {"weight_temperature": 0.1, "epochs": 3}
    result = run(toy_base(), k=16, keep=keep, **weighted if keep == "weighted" else {"epochs": 6})
    assert result.rounds[0].learned > 2 * 16
    assert result.student.reward > result.student.start_reward + 0.1


def test_with_the_sign_turned_it_goes_the_other_way() -> None:
    result = run(
        toy_base(), reward=FunctionReward(lambda prompt, given: -share_of_vowels(prompt, given)), **LEARN
    )
    assert result.student.reward > -0.1


def test_the_reward_grows_with_k_and_the_round_is_counted() -> None:
    result = run(toy_base())
    (report,) = result.rounds
    assert [point.k for point in report.growth] == [1, 2, 4, 8]
    rewards = [point.reward for point in report.growth]
    assert rewards == sorted(rewards)
    assert report.growth[-1].kl_bound == pytest.approx(math.log(8) - 7 / 8)
    assert 0 < report.kl_estimate <= report.growth[-1].kl_bound
    assert (report.prompts, report.completions, report.learned) == (16, 128, 16)
    counts = result.counts()
    assert (counts["completions"], counts["learned"], counts["refused"], counts["duplicates"]) == (
        128,
        16,
        0,
        0,
    )
    assert result.report.as_dict()["rounds"][0]["growth"][-1]["k"] == 8


def test_the_kl_is_that_of_the_student_on_its_own_samples() -> None:
    base = toy_base()
    result = run(base, **LEARN | {"measure_prompts": 5, "epochs": 6})
    assert result.student.prompts == 5
    assert result.student.kl > result.rounds[0].growth[-1].kl_bound, (
        "learned for so long, a student passes the selection's bound"
    )
    # A slow reference: the KL over the whole distribution at each position of many samples, by a full forward
    # pass each.
    sampler = Sampler(base, max_new_tokens=6, temperature=1.0)
    with base.role("policy"):
        episodes = sampler.sample([sampler.question(p, p.messages) for p in prompts(16)], samples=4, seed=9)
    total = 0.0
    for row, tokens, real in zip(episodes.rows, episodes.tokens, episodes.is_real, strict=True):
        ids = torch.tensor([[*row.prompt_ids, *tokens[real].tolist()]])
        logits = []
        for role in ("policy", "reference"):
            with torch.no_grad(), base.role(role):
                logits.append(
                    base.logits_at(base.hidden(ids, torch.ones_like(ids)))[:, len(row.prompt_ids) - 1 : -1]
                )
        total += float(exact_kl(*logits).sum())
    assert result.student.kl == pytest.approx(total / len(episodes), rel=0.3)
    assert result.student.kl_token == pytest.approx(result.student.kl / result.student.length, rel=1e-4)


def test_what_was_kept_comes_back_as_rows_for_sft() -> None:
    result = run(
        toy_base(), keep=2, messages=lambda prompt: (Message("user", "p" + prompt.messages[0].content),)
    )
    assert len(result.rows) == 32
    row = result.rows[0]
    assert row["prompt"][0]["content"].startswith("pabc")
    assert (row["prompt_id"], row["weight"], row["completion"][0]["role"]) == ("p0", 0.5, "assistant")
    assert row["reward"] == pytest.approx(vowels(row["completion"][0]["content"]))


def test_a_cut_completion_is_passed_over_where_another_ended() -> None:
    cut, free = (run(toy_base(), k=16, missing_eos_penalty=penalty, epochs=1) for penalty in (10.0, 0.0))
    ended = [[row["finish"] for row in result.rows].count("stop") for result in (cut, free)]
    assert ended[0] > ended[1]
    assert cut.rounds[0].growth[0].reward == free.rounds[0].growth[0].reward, (
        "reported rewards are without the penalty"
    )


def test_the_same_seed_gives_the_same_bytes() -> None:
    one, two = toy_base(), toy_base()
    results = [run(base, asked=prompts(4), rounds=2) for base in (one, two)]
    assert results[0] == results[1]
    assert all(
        torch.equal(a, b) for a, b in zip(one.trainable("policy"), two.trainable("policy"), strict=True)
    )
    assert run(toy_base(), asked=prompts(4), seed=1).rows != results[0].rows


# Rewards and students


@pytest.mark.parametrize("resident", [True, False])
def test_a_reward_model_is_read_on_its_own_base(resident: bool) -> None:
    base = toy_base()
    other = base if resident else toy_base(seed=7)
    head = ScalarHead(other.hidden_size)
    head.draw(3)
    model = RewardModel(other, [Member(role="reference", head=head)], pooling="mean")
    result = run(base, reward=model, **LEARN | {"k": 8, "epochs": 6})
    assert result.student.reward > result.student.start_reward + 2 * result.student.reward_error
    # Where the text is all that was sampled (the toy policy also says control tokens, which text leaves out).
    rows = [
        row
        for row in result.rows
        if row["tokens"] == len(row["completion"][0]["content"]) + (row["finish"] == "stop")
    ]
    assert len(rows) > 4
    texts = [tuple(Message(**turn) for turn in (*row["prompt"], *row["completion"])) for row in rows]
    assert [row["reward"] for row in rows] == pytest.approx(model.score(texts), abs=1e-4)


def test_a_student_learns_in_the_policys_place() -> None:
    base, student = toy_base(), toy_base(seed=5)
    start = run(toy_base(seed=5), k=2).student.start_reward
    result = run(base, student=student, **LEARN | {"epochs": 8})
    assert base.roles == ()
    assert student.roles == ("policy",)
    assert result.student.reward > start + 0.15
    teacher_too = toy_base()
    run(teacher_too, student=toy_base(seed=5), asked=prompts(4), rounds=2)
    assert teacher_too.roles == ("policy",), "rounds before the last train the one that samples"


# Bad input


def test_prompts_that_are_too_long_are_refused_and_listed() -> None:
    asked = [*prompts(16), Prompt(id="long", messages=(Message("user", "a" * 123),))]
    result = run(toy_base(), asked=asked, max_refused=0.1)
    assert [name for name, _ in result.refused] == ["long"]
    assert "model's context of 128" in result.refused[0][1]
    with pytest.raises(DataError, match="1 of 17 prompts cannot be answered"):
        run(toy_base(), asked=asked)


def test_a_prompt_that_only_the_student_has_no_room_for_is_refused_before_anything_is_sampled() -> None:
    student = toy_base(seed=5)
    student.context = 20
    with pytest.raises(DataError, match="12 of 16 prompts cannot be answered"):
        run(toy_base(), student=student)


def test_a_prompt_that_comes_twice_is_sampled_once() -> None:
    again = [Prompt(id=f"again-{prompt.id}", messages=prompt.messages) for prompt in prompts(4)]
    result = run(toy_base(), asked=[*prompts(4), *again], epochs=1)
    assert (result.duplicates, result.rounds[0].prompts) == (4, 4)


def test_no_prompts_and_one_prompt_are_refused() -> None:
    with pytest.raises(DataError, match="no prompts are there to sample"):
        run(toy_base(), asked=[])
    with pytest.raises(DataError, match="one prompt is there to sample"):
        run(toy_base(), asked=prompts(1))


def test_a_reward_that_tells_nothing_apart_is_refused() -> None:
    with pytest.raises(DataError, match="the completions of each of the 16 prompts all score the same"):
        run(toy_base(), reward=FunctionReward(lambda prompt, text: 1.0))


def test_a_reward_that_is_no_number_is_refused() -> None:
    head = ScalarHead(32)
    base = toy_base()
    model = RewardModel(base, [Member(role="reference", head=head, mean=math.nan)], pooling="mean")
    with pytest.raises(DataError, match="the reward is nan"):
        run(base, reward=model)
