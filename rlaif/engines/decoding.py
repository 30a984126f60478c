"""Sampling completions: one prefill a prompt, then a token a step for all rows of a batch.

Differences from `model.generate`: samples of one prompt share its prefill, rows that are done leave the
batch, logits are formed for the last position only, and a token is drawn by inverting the cumulative
distribution at one uniform number. The uniforms of a row come from its own seed, so what it draws does not
depend on its company in the batch (but for the rounding of its logits).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.distributed.tensor import DTensor
from transformers.cache_utils import DynamicCache

from rlaif.engines.base import Generation, GenerationRequest, Sampling
from rlaif.engines.batching import pad_left
from rlaif.engines.head import tuned_head
from rlaif.engines.labels import Tokens

__all__ = [
    "GATHERED",
    "GPU_CACHE_SHARE",
    "Decoder",
    "DecodingJob",
    "cache_tokens",
    "draw_token",
    "row_uniforms",
]

BLOCK = 256
"""Vocabulary entries summed together in the first of the two steps of a draw."""

GATHERED = 3
"""Layers that a sharded model holds whole during a pass: the one that computes, the buffer that it came in,
and the next one's."""

GPU_CACHE_SHARE = 0.4
"""Of what a model leaves of a GPU's memory, for the caches of one batch: one that grows is there twice."""

LEAVE = 8
"""Done rows leave when they are at least a LEAVE-th of the batch: leaving copies the cache, as one step of
growth does."""


@dataclass(frozen=True, slots=True)
class DecodingJob:
    """One prompt and the requests for completions of it, each with its index."""

    ids: Tokens
    requests: list[tuple[int, GenerationRequest]]


@dataclass(slots=True)
class _Row:
    index: int
    sampling: Sampling
    tokens: list[int] = field(default_factory=list)
    finish: Literal["", "stop", "length", "refused"] = ""


@dataclass(slots=True)
class _Live:
    """The rows still being sampled, and what their draws need. `(B,)` but for `uniforms`, `(B, N)`."""

    rows: list[_Row]
    uniforms: torch.Tensor
    temperature: torch.Tensor
    top_p: torch.Tensor

    @classmethod
    def start(cls, requests: Sequence[tuple[int, GenerationRequest]], device: torch.device) -> _Live:
        """One row per request."""
        samplings = [request.sampling for _, request in requests]
        steps = max(sampling.max_new_tokens for sampling in samplings)
        return cls(
            rows=[_Row(index, request.sampling) for index, request in requests],
            uniforms=torch.stack([row_uniforms(request.seed, steps) for _, request in requests]).to(device),
            temperature=torch.tensor([sampling.temperature for sampling in samplings], device=device),
            top_p=torch.tensor([sampling.top_p for sampling in samplings], device=device),
        )

    def keep(self, kept: torch.Tensor) -> None:
        """Drop the other rows."""
        self.rows = [self.rows[row] for row in kept.tolist()]
        self.uniforms, self.temperature, self.top_p = (
            self.uniforms[kept],
            self.temperature[kept],
            self.top_p[kept],
        )


def row_uniforms(seed: int, count: int) -> torch.Tensor:
    """`count` numbers in [0, 1) from a generator of their own; on the CPU, so that they are the same for
    every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator, dtype=torch.float32)


def cache_tokens(model: Any, *, cpu_bytes: int) -> int:
    """How many tokens the key-value caches of one batch may hold.

    The room is fixed on a CPU, and on a GPU a share of what the model leaves of it; not of what is free, so
    that what is put into a batch never changes.
    """
    config, device = model.config.get_text_config(decoder=True), model.device
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = config.num_hidden_layers
    a_token: int = 2 * layers * heads * size * model.dtype.itemsize
    if device.type != "cuda":
        return cpu_bytes // a_token
    own = [each.to_local() if isinstance(each, DTensor) else each for each in model.parameters()]
    weights = sum(each.nbytes for each in own if each.device == device)
    # Of a sharded model a pass holds some layers whole.
    weights += GATHERED * sum(p.nbytes for p in model.parameters() if isinstance(p, DTensor)) // layers
    room = torch.cuda.get_device_properties(device).total_memory - weights
    return max(0, int(room * GPU_CACHE_SHARE)) // a_token


def draw_token(
    logits: torch.Tensor, uniforms: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """Draw one token a row by inverting the cumulative distribution.

    Two steps: the block of `BLOCK` entries in which the row's uniform number falls, then the entry inside it.
    So the vocabulary is read for one exponential and one sum, and the sums stay short enough to be exact in
    float32.

    Args:
        logits: `(B, V)`.
        uniforms: `(B,)`, in [0, 1).
        temperature: `(B,)`; the logits are divided by it, 0 takes the largest.
        top_p: `(B,)`; see `Sampling`.

    Returns:
        `(B,)` token ids; -1 where the logits are not finite.
    """
    peak, best = logits.max(-1)
    greedy = temperature <= 0
    if not bool(greedy.all()):
        heat = torch.where(greedy, 1.0, temperature)[:, None]
        weights = ((logits.float() - peak.float()[:, None]) / heat).exp_()
        if bool((top_p < 1).any()):
            weights = _nucleus(weights, top_p)
        best = torch.where(greedy, best, _invert(weights, uniforms))
    return torch.where(peak.isfinite(), best, -1)


def _invert(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The entry of each row where the running sum of `weights` `(B, V)` passes the uniform part of its
    total."""
    size = weights.shape[-1]
    weights = torch.nn.functional.pad(weights, (0, -size % BLOCK)).view(len(weights), -1, BLOCK)
    blocks = weights.sum(-1).double().cumsum(-1)
    target = uniforms.double()[:, None] * blocks[:, -1:]
    # `right`: the first entry whose running sum is above the target, so that an entry of weight 0 is never
    # drawn.
    block = torch.searchsorted(blocks, target, right=True).clamp_(max=blocks.shape[-1] - 1)
    before = torch.where(block > 0, blocks.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = weights.gather(1, block[..., None].expand(-1, -1, BLOCK)).squeeze(1).double()
    entry = torch.searchsorted(inside.cumsum(-1), target - before, right=True)
    # Rounding may put the target past the block's own sum: then its last entry that has any weight is meant.
    last = BLOCK - 1 - (inside > 0).flip(-1).int().argmax(-1, keepdim=True)
    return (block * BLOCK + torch.minimum(entry, last)).squeeze(1)


def _nucleus(weights: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Zero what is outside the smallest set of entries that holds `top_p` of the total; the largest stays."""
    ordered, order = weights.sort(-1, descending=True)
    total = ordered.cumsum(-1)
    outside = (total - ordered) >= top_p[:, None] * total[:, -1:]
    outside &= (top_p < 1)[:, None]
    outside[:, 0] = False  # a `top_p` below what a float can be is 0 here, and holds nothing
    return weights.masked_fill(torch.zeros_like(outside).scatter_(1, order, outside), 0.0)


class Decoder:
    """Samples batches from one model.

    Args:
        ends: Token ids that end a completion.
        pad: Any token id; padding is masked.
        stops: Strings that end every completion, besides those of its request.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, ends: frozenset[int], pad: int, stops: tuple[str, ...] = ()
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.ends = ends
        self.pad = pad
        self.stops = stops

    @torch.inference_mode()
    def run(self, jobs: Sequence[DecodingJob]) -> dict[int, Generation]:
        """Sample every request of the jobs, side by side."""
        device = self.model.device
        live = _Live.start([request for job in jobs for request in job.requests], device)
        every = list(live.rows)
        batch = pad_left([job.ids for job in jobs], pad=self.pad, device=device)
        copies = torch.tensor([len(job.requests) for job in jobs], device=device)
        source = torch.repeat_interleave(torch.arange(len(jobs), device=device), copies)
        cache = DynamicCache(config=self.model.config)
        # 1. Prefill each prompt once, and copy the result for each of its samples.
        logits = self._forward(batch.ids, batch.mask, batch.positions, cache)[source]
        if len(source) > len(jobs):
            cache.batch_select_indices(source)
        mask, positions = batch.mask[source], batch.positions[source, -1:]
        step = 0
        while True:
            # 2. Draw a token a row; find out who is done.
            tokens = draw_token(logits, live.uniforms[:, step], live.temperature, live.top_p)
            for row, token in zip(live.rows, tokens.tolist(), strict=True):
                self._push(row, token)
            alive = [at for at, row in enumerate(live.rows) if not row.finish]
            if not alive:
                return {row.index: self._result(row) for row in every}
            # 3. Let the done rows leave.
            if (len(live.rows) - len(alive)) * LEAVE >= len(live.rows):
                kept = torch.tensor(alive, device=device)
                live.keep(kept)
                cache.batch_select_indices(kept)
                tokens, mask, positions = tokens[kept], mask[kept], positions[kept]
            # 4. One step of the model.
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            positions = positions + 1
            step += 1
            # A refused row stays until it leaves; what it is fed has no meaning, but must be a token.
            logits = self._forward(tokens.clamp(min=0)[:, None], mask, positions, cache)

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        """Logits of the last position, `(B, V)`; the cache grows."""
        with tuned_head(self.model):
            output = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        last: torch.Tensor = output.logits[:, -1]
        return last

    def _push(self, row: _Row, token: int) -> None:
        """Give a row its token; rows that are done but have not left yet take none."""
        if row.finish:
            return
        if token < 0:
            row.finish = "refused"
            return
        row.tokens.append(token)
        if token in self.ends or self._stopped(row):
            row.finish = "stop"
        elif len(row.tokens) >= row.sampling.max_new_tokens:
            row.finish = "length"

    def _stopped(self, row: _Row) -> bool:
        stops = self.stops + row.sampling.stop
        if not stops:
            return False
        # A character takes four tokens at most (a byte each), so a stop string is inside this many.
        tail = row.tokens[-4 * (max(map(len, stops)) + 1) :]
        text = self._text(tail)
        return any(stop in text for stop in stops)

    def _text(self, tokens: list[int]) -> str:
        return str(
            self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def _result(self, row: _Row) -> Generation:
        if row.finish == "refused":
            return Generation(text="", finish="refused", tokens=len(row.tokens), reason="not_finite")
        ended = bool(row.tokens) and row.tokens[-1] in self.ends
        text = self._text(row.tokens[:-1] if ended else row.tokens)
        for stop in self.stops + row.sampling.stop:
            text = text.partition(stop)[0]
        return Generation(
            text=text, finish="stop" if row.finish == "stop" else "length", tokens=len(row.tokens)
        )
