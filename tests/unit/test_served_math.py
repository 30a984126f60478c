"""Truncated importance sampling against a slow loop, and replies of servers read without trust."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from spine import call

from rlaif.config.grpo import GrpoConfig
from rlaif.config.rollout import RolloutSettings
from rlaif.engines.api.wire import Malformed
from rlaif.errors import ModelError
from rlaif.rl.math import mismatch, policy_loss, truncated_importance
from rlaif.rl.serving.probe import Probe
from rlaif.rl.serving.replies import read_draws

REAL = torch.tensor([[True, True, True], [True, False, False]])
OURS = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, math.nan, 7.0]])
THEIRS = torch.tensor([[-1.1, -3.0, -0.4], [-3.0, 5.0, math.nan]])


def slow_ratios() -> list[float]:
    """π_old / π_sampler of the real tokens, row by row."""
    return [
        math.exp(float(OURS[row, at]) - float(THEIRS[row, at]))
        for row in range(2)
        for at in range(3)
        if REAL[row, at]
    ]


def test_a_weight_is_the_ratio_up_to_the_cap() -> None:
    found = truncated_importance(OURS, THEIRS, REAL, cap=2.0)
    assert found[REAL].tolist() == pytest.approx([min(ratio, 2.0) for ratio in slow_ratios()])
    assert found[~REAL].tolist() == [0.0, 0.0], "what stands at padding does not pass"


def test_the_mismatch_is_measured_before_the_cap() -> None:
    ratios = slow_ratios()
    found = mismatch(OURS, THEIRS, REAL, cap=2.0)
    assert float(found.ratio) == pytest.approx(sum(ratios) / 4)
    assert float(found.ratio_p99) == pytest.approx(sorted(ratios)[2])
    assert float(found.above_cap) == 0.25
    assert float(found.kl_k3) == pytest.approx(sum(r - 1 - math.log(r) for r in ratios) / 4)
    assert float(found.difference) == pytest.approx(sum(abs(math.log(r)) for r in ratios) / 4)


def test_the_loss_of_each_token_is_weighted_and_the_weight_has_no_gradient() -> None:
    old, new = torch.randn(2, 3), torch.randn(2, 3, requires_grad=True)
    advantages = torch.randn(2, 3)
    weights = torch.rand(2, 3, requires_grad=True)
    result = policy_loss(new, old, advantages, is_real=REAL, importance=weights)
    expected = 0.0
    for row, at in REAL.nonzero().tolist():
        ratio = math.exp(float(new.detach()[row, at]) - float(old[row, at]))
        a = float(advantages[row, at])
        expected += float(weights.detach()[row, at]) * max(-ratio * a, -min(max(ratio, 0.8), 1.2) * a) / 4
    assert float(result.loss.detach()) == pytest.approx(expected, abs=1e-6)
    result.loss.backward()  # type: ignore[no-untyped-call]
    assert weights.grad is None
    assert new.grad is not None


def reply(**changes: Any) -> dict[str, Any]:
    """One good choice, changed."""
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "token_ids": [5, 6, 1],
        "prompt_token_ids": [2, 3],
        "logprobs": {"token_logprobs": [-0.1, -0.2, -0.3]},
    }
    return {"choices": [{**choice, **changes}]}


def read(body: Any, samples: int = 1) -> Any:
    return read_draws(body, prompt=(2, 3), samples=samples, ends=frozenset({1}), vocabulary=10, longest=4)


def test_a_reply_is_read() -> None:
    (drawn,) = read(reply())
    assert drawn.ids == (5, 6, 1)
    assert drawn.logprobs == (-0.1, -0.2, -0.3)


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"choices": None},
        {"choices": ["x"]},
        reply(index=1),
        reply(index=True),
        reply(token_ids=[]),
        reply(token_ids=[5, 6, "1"]),
        reply(token_ids=[5, 6, 1, 1, 1]),
        reply(logprobs=None),
        reply(logprobs={"token_logprobs": [-0.1, -0.2]}),
        reply(logprobs={"token_logprobs": [-0.1, -0.2, math.nan]}),
        reply(logprobs={"token_logprobs": [-0.1, -0.2, None]}),
        reply(logprobs={"token_logprobs": [-0.1, -0.2, 2.0]}),
        reply(finish_reason="abort"),
        {"choices": reply()["choices"] * 2},
    ],
)
def test_nonsense_is_asked_for_again(body: Any) -> None:
    with pytest.raises(Malformed):
        read(body)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (reply(token_ids=None), "no token ids"),
        (reply(token_ids=[5, 6, 10]), "drew token 10, and the base here has a vocabulary of 10 tokens"),
        (reply(prompt_token_ids=[9, 2, 3]), "another prompt"),
        (reply(token_ids=[5, 1, 6]), "goes on after a token that ends a turn"),
        (reply(token_ids=[5, 6, 7]), "token 7, which ends none here"),
        (reply(token_ids=[5, 6, 7], finish_reason="length"), "cut a completion at 3 tokens"),
    ],
)
def test_a_server_that_does_something_else_is_refused(body: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        read(body)


def test_settings() -> None:
    config = GrpoConfig.model_validate({"rollout": {"base_urls": ["http://a:8000/v1"]}})
    assert config.rollout is not None
    assert config.rollout.cap == 2.0
    for wrong in (
        {"base_urls": []},
        {"base_urls": ["http://a/v1", "http://a/v1/"]},
        {"base_urls": ["http://a/v1"], "cap": 0.5},
    ):
        with pytest.raises(ValidationError):
            RolloutSettings.model_validate(wrong)


def test_the_probe_refuses_in_words() -> None:
    good = {"alone": 0.01, "beside": 0.01, "loud": 0.01, "effect": 0.5, "base_beside": 0.4}
    assert Probe(**good).base_is_mixed_up
    Probe(**good).refuse_mismatch()
    for name, words in (("alone", "another base"), ("beside", "mixes adapters"), ("loud", "as the adapter")):
        with pytest.raises(ModelError, match=words):
            Probe(**{**good, name: 0.6}).refuse_mismatch()


@pytest.mark.parametrize(
    "url",
    [
        "localhost:80",
        "ftp://a/v1",
        "http:///v1",
        "http://a:x/v1",
        "http://k@a/v1",
        "http://a/v1?k=1",
        "http://a/v1#k",
    ],
)
def test_an_address_that_cannot_be_asked_is_told_by_its_number_and_not_shown(url: str) -> None:
    rewarded = ("--reward-function", "rlaif.metrics:length_words")
    needs = {"sample": (), "evaluate": ("--policy", "no/folder")}
    for command in ("sample", "grpo", "ppo", "best-of-k", "evaluate"):
        needed = needs.get(command, rewarded)
        said = call(command, *needed, "--rollout-url", "http://a:8000/v1", "--rollout-url", url)
        assert said.status == 1
        assert "address 2 of base_urls is no plain http or https address" in said.err
        assert url not in said.err.replace("http://localhost:8000/v1", "")
