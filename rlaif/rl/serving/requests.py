"""What is sent to `POST /v1/completions`: token ids, and every setting that shapes the distribution.

A setting that is not said comes from the base's own `generation_config.json`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["completion_request", "forced_request"]


def completion_request(
    model: str,
    prompt: Sequence[int],
    *,
    samples: int,
    seed: int,
    max_new_tokens: int,
    temperature: float,
    ends: Iterable[int],
    top_p: float = 1.0,
) -> dict[str, Any]:
    """A request for completions of one prompt.

    Args:
        model: Name of an adapter.
        ends: Tokens that end a completion.
    """
    return {
        "model": model,
        "prompt": list(prompt),
        "n": samples,
        "seed": seed,
        "max_tokens": max_new_tokens,
        "min_tokens": 0,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": [],
        "stop_token_ids": sorted(ends),
        "ignore_eos": False,
        "skip_special_tokens": False,
        "logprobs": 1,
        "return_token_ids": True,
    }


def forced_request(model: str, prompt: Sequence[int], token: int, *, ends: Iterable[int]) -> dict[str, Any]:
    """A request whose answer is `token`, twice where it ends nothing."""
    body = completion_request(model, prompt, samples=1, seed=0, max_new_tokens=2, temperature=1.0, ends=ends)
    del body["logprobs"]  # of the other tokens they are minus infinity, which is no JSON
    return {**body, "allowed_token_ids": [token]}
