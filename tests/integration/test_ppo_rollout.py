"""Sampling, and the forward pass over episodes, against slow and plain versions of themselves."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from toy_policy import prompts, toy_base

from rlaif.errors import DataError
from rlaif.models.shared_base import LoraSettings, SharedBase
from rlaif.rl.episodes import common_prefix, micro_batches, response_states
from rlaif.rl.rollout import EncodedPrompt, Sampler
from rlaif.types import Message, Prompt


def moved_base(seed: int = 0) -> SharedBase:
    """A base whose policy adapter does something."""
    base = toy_base()
    base.add_adapter("policy", LoraSettings(rank=4, alpha=8), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in base.trainable("policy"):
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return base


def sampled(
    base: SharedBase,
    *,
    count: int = 6,
    samples: int = 2,
    tokens: int = 8,
    temperature: float = 0.7,
    rows: int = 64,
):
    sampler = Sampler(base, max_new_tokens=tokens, temperature=temperature, rows=rows)
    questions = [sampler.question(prompt, prompt.messages) for prompt in prompts(count)]
    with base.role("policy"):
        return sampler, sampler.sample(questions, samples=samples, seed=3)


def plain_logits(base: SharedBase, ids: list[int]) -> torch.Tensor:
    """(T, V) of one row alone, by the model's own forward."""
    with torch.no_grad():
        return base.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def test_logprobs_are_those_of_a_plain_pass_at_the_temperature() -> None:
    base = moved_base()
    _, episodes = sampled(base)
    with base.role("policy"):
        for row, episode in enumerate(episodes.rows):
            ids = episodes.tokens[row][episodes.is_real[row]].tolist()
            start = len(episode.prompt_ids)
            logits = plain_logits(base, [*episode.prompt_ids, *ids])[start - 1 : -1]
            wanted = (logits / 0.7).log_softmax(-1).gather(1, torch.tensor(ids).unsqueeze(1)).squeeze(1)
            torch.testing.assert_close(episodes.logprobs[row, : len(ids)], wanted, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(
                base.logits_at(episodes.states[row, : len(ids)]), logits, atol=2e-5, rtol=1e-4
            )
    assert not episodes.logprobs[~episodes.is_real].any()


def test_an_end_token_ends_a_row_and_counts_as_real() -> None:
    base = moved_base()
    sampler, episodes = sampled(base, count=8, samples=4)
    assert 0 < int(episodes.has_eos.sum()) < len(episodes), "the seed should give both kinds"
    for row, episode in enumerate(episodes.rows):
        ids = episodes.tokens[row][episodes.is_real[row]].tolist()
        assert (ids[-1] in sampler.ends) == bool(episodes.has_eos[row])
        assert not set(ids[:-1]) & sampler.ends
        assert episode.completion.finish == ("stop" if ids[-1] in sampler.ends else "length")
        assert episode.completion.tokens == len(ids)
        assert "<|" not in episode.completion.text


@pytest.mark.parametrize("rows", [1, 5])
def test_a_draw_does_not_depend_on_its_company(rows: int) -> None:
    base = moved_base()
    _, together = sampled(base)
    _, apart = sampled(base, rows=rows)
    assert torch.equal(together.tokens, apart.tokens)
    torch.testing.assert_close(together.states, apart.states, atol=2e-5, rtol=1e-4)


def test_samples_of_a_prompt_differ_and_a_prompt_asked_twice_goes_on_counting() -> None:
    base = moved_base()
    sampler = Sampler(base, max_new_tokens=8, temperature=1.0)
    question = sampler.question(prompts(1)[0], prompts(1)[0].messages)
    with base.role("policy"):
        once = sampler.sample([question], samples=4, seed=0)
        twice = sampler.sample([question, question], samples=2, seed=0)
    assert len({tuple(ids) for ids in once.tokens.tolist()}) == 4
    assert torch.equal(once.tokens, twice.tokens)
    assert [row.completion.index for row in twice.rows] == [0, 1, 2, 3]


def test_draws_follow_the_distribution() -> None:
    base = moved_base()
    sampler = Sampler(base, max_new_tokens=1, temperature=1.0, rows=4096)
    question = sampler.question(prompts(1)[0], prompts(1)[0].messages)
    with base.role("policy"):
        found = (
            sampler.sample([question], samples=4096, seed=0).tokens.flatten().bincount(minlength=20) / 4096
        )
        wanted = plain_logits(base, list(question.ids))[-1].softmax(-1)
    assert float((found - wanted).abs().max()) < 4 * (0.25 / 4096) ** 0.5


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    sampler = Sampler(toy_base(), max_new_tokens=64, temperature=1.0)
    prompt = Prompt(id="long", messages=(Message("user", "a" * 80),))
    with pytest.raises(
        DataError, match=r"prompt long: a prompt of 82 tokens and 64 new ones pass the model's context of 128"
    ):
        sampler.question(prompt, prompt.messages)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "gemma3"])
def test_states_and_gradients_do_not_depend_on_sharing_padding_or_company(kind: str) -> None:
    base = SharedBase.from_model(tiny_model(kind), tiny_tokenizer())  # type: ignore[arg-type]
    base.add_adapter("policy", LoraSettings(rank=4, alpha=8), seed=0)
    sampler = Sampler(base, max_new_tokens=6, temperature=1.0)
    asked: list[EncodedPrompt] = []
    for text in (
        "Tell me about the sea",
        "Tell me",
        "Tell me about the other",
        "Tell me about the sea and the other",
    ):
        message = (Message("user", text),)
        asked.append(sampler.question(Prompt(id=text, messages=message), message))
    with base.role("policy"):
        episodes = sampler.sample(asked, samples=2, seed=0)
        gradients = []
        for rows in ([list(range(8))], [[row] for row in range(8)]):
            total = torch.zeros(())
            for part in rows:
                states = response_states(base, *episodes.part(part), share=len(part) > 1)
                torch.testing.assert_close(
                    states[episodes.is_real[part]],
                    episodes.states[part][episodes.is_real[part]],
                    atol=3e-4,
                    rtol=1e-3,
                )
                total = total + base.logits_at(states)[episodes.is_real[part]].square().mean(-1).sum()
            gradients.append(
                torch.autograd.grad(total, [w for w in base.trainable("policy") if w.shape[1] == 4])
            )
    for shared, alone in zip(*gradients, strict=True):
        torch.testing.assert_close(shared, alone, atol=1e-3 * float(alone.abs().max()), rtol=1e-2)


def test_common_prefix_leaves_a_token_of_each() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 4], [1, 2]]) == 1
    assert common_prefix([[1, 2, 3], [1, 2, 4, 5]]) == 2
    assert common_prefix([[1, 2], [1, 2]]) == 1
    assert common_prefix([[1], [2]]) == 0


def test_micro_batches_keep_like_prompts_together() -> None:
    asked = [[1, 2], [3, 4], [1, 2], [3, 4]]
    assert micro_batches(asked, [3, 2, 1, 0], 2) == [[0, 2], [1, 3]]
