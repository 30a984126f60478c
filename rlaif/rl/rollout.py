"""Sampling completions from the active policy, for training on them.

What differs from `model.generate`: what all prompts begin with is prefilled once, then each prompt once for
all its samples; logits are formed for the last position only; rows that are done leave the batch; a token is
drawn by inverting the cumulative distribution at one uniform number from the row's own generator, so a draw
depends on nothing but its seed and the policy (up to rounding).

The hidden state and the log-probability of each token are kept as it is drawn, so the policy needs no second
pass to be scored.

The distribution is softmax(logits / temperature) and nothing else: no top-k, top-p or repetition penalty.
Those sample from another distribution than the one whose log-probabilities are trained, which biases the KL
and the probability ratios.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache

from rlaif.digest import seed_from
from rlaif.engines.chat import ChatFormat, end_tokens
from rlaif.engines.decoding import cache_tokens, draw_token
from rlaif.errors import DataError, ModelError
from rlaif.models.shared_base import SharedBase
from rlaif.rl.episodes import EpisodeRow, Episodes, joined, prefill, prefix_to_share
from rlaif.rl.math import token_logprobs
from rlaif.text import well_formed
from rlaif.types import Completion, Message, Prompt

__all__ = ["EncodedPrompt", "Sampler", "first_indices", "rows_side_by_side"]

CPU_ROWS, GPU_ROWS = 64, 256
"""Rows side by side, where nothing else is said. The time of a step grows far more slowly than its rows on a
GPU: 256 rows took an H200 27 s in four batches and 20 s in one (docs/LOG.md)."""
LEAVE = 8
"""Done rows leave when they are at least a LEAVE-th of the batch: leaving copies the cache, as one step of
growth does."""


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the policy reads it."""

    prompt: Prompt
    ids: tuple[int, ...]


class Sampler:
    """Samples from the role of `base` that is active.

    Args:
        max_new_tokens: Longest completion in tokens.
        temperature: Logits are divided by it.
        rows: Most rows side by side; by device when left out. Fewer where their caches would not fit.
    """

    def __init__(
        self, base: SharedBase, *, max_new_tokens: int, temperature: float, rows: int | None = None
    ) -> None:
        self.base = base
        self.form = ChatFormat(base.tokenizer, name=base.name)
        self.ends = end_tokens(base.model, self.form)
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.rows = rows or rows_side_by_side(base.device.type)

    @property
    def at_once(self) -> int:
        """Completions that one call of `sample` is best asked for."""
        return self.rows

    def question(self, prompt: Prompt, messages: Sequence[Message]) -> EncodedPrompt:
        """Render and tokenise what the policy reads.

        Raises:
            DataError: It leaves no room for `max_new_tokens` in the model's context.
        """
        ids = tuple(self.form.encode([self.form.render(messages)])[0])
        if len(ids) + self.max_new_tokens > self.base.context:
            what = (
                f"a prompt of {len(ids)} tokens and {self.max_new_tokens} new ones pass the model's "
                f"context of {self.base.context}"
            )
            raise DataError(what, where=f"prompt {prompt.id}", remedy="drop it, or lower max_new_tokens")
        if max(ids, default=0) >= self.base.model.get_input_embeddings().weight.shape[0]:
            what = f"token {max(ids)} of the tokenizer has no row in the model's embedding"
            raise DataError(
                what, where=f"prompt {prompt.id}", remedy="use the tokenizer that the model was trained with"
            )
        return EncodedPrompt(prompt=prompt, ids=ids)

    @torch.no_grad()
    def unreadable(self, questions: Sequence[EncodedPrompt]) -> frozenset[int]:
        """Places of the questions after which the active policy's logits are NaN or infinite, so that nothing
        can be drawn."""
        found: set[int] = set()
        with self.base.held():
            share = self.base.ranks.share(len(questions))
            for start in range(share.start, share.stop, self.rows):
                state, *_ = self._read(questions[start : min(start + self.rows, share.stop)])
                drawn = self._draw(
                    self.base.logits_at(state), torch.full((len(state),), 0.5, device=self.base.device)
                )
                found |= {start + int(at) for at in (drawn < 0).nonzero().flatten()}
        return frozenset().union(*self.base.ranks.gather(found))

    @torch.no_grad()
    def sample(self, questions: Sequence[EncodedPrompt], *, samples: int, seed: int) -> Episodes:
        """Sample `samples` completions of each question; a draw depends on `seed`, the prompt and the
        sample's index (which goes on where a prompt is asked again, so that no completion is drawn twice).

        Returns:
            Of several ranks, the completions of this rank's share of the questions.
        """
        firsts = first_indices(questions, samples)
        share = self.base.ranks.share(len(questions))
        wanted = [(questions[at], firsts[at] + index) for at in share for index in range(samples)]
        if not wanted:
            return self._nothing()
        rows = self._fitting(max(len(question.ids) for question, _ in wanted))
        with self.base.held():
            parts = [self._batch(wanted[start : start + rows], seed) for start in range(0, len(wanted), rows)]
        return joined(parts)

    def _batch(self, wanted: Sequence[tuple[EncodedPrompt, int]], seed: int) -> Episodes:
        base, device, steps = self.base, self.base.device, self.max_new_tokens
        uniforms = torch.stack([_uniforms(seed, question, index, steps) for question, index in wanted]).to(
            device
        )
        tokens = torch.zeros(len(wanted), steps, dtype=torch.long, device=device)
        states = torch.zeros(len(wanted), steps, base.hidden_size, dtype=base.dtype, device=device)
        logprobs = torch.zeros(len(wanted), steps, device=device)
        length = torch.full((len(wanted),), steps, device=device)
        has_eos = torch.zeros(len(wanted), dtype=torch.bool, device=device)
        ends = torch.tensor(sorted(self.ends), dtype=torch.long, device=device)
        # 1. Read each prompt once; its samples get copies of what was read.
        state, cache, mask, positions = self._read([question for question, _ in wanted])
        live = torch.arange(len(wanted), device=device)
        for step in range(steps):
            # 2. Draw a token for each live row.
            logits = base.logits_at(state)  # (L, V)
            drawn = self._draw(logits, uniforms[live, step])
            if bool((drawn < 0).any()):
                raise _not_finite(wanted[int(live[int((drawn < 0).nonzero()[0])])][0])
            tokens[live, step], states[live, step] = drawn, state
            logprobs[live, step] = token_logprobs(
                logits.unsqueeze(1), drawn.unsqueeze(1), temperature=self.temperature
            ).squeeze(1)
            # 3. See who is done, and let the done leave.
            ended = torch.isin(drawn, ends) & ~has_eos[live]
            has_eos[live[ended]] = True
            length[live[ended]] = step + 1
            keep = (~has_eos[live]).nonzero().squeeze(1)
            if len(keep) == 0 or step + 1 == steps:
                break
            if (len(live) - len(keep)) * LEAVE >= len(live) and len(keep) < len(live):
                cache.batch_select_indices(keep)
                live, drawn, mask, positions = live[keep], drawn[keep], mask[keep], positions[keep]
            # 4. One step of the model.
            mask, positions = pad(mask, (0, 1), value=1), positions + 1
            state = base.hidden(drawn.unsqueeze(1), mask, positions, past_key_values=cache)[:, -1]
        is_real = torch.arange(steps, device=device) < length.unsqueeze(1)
        rows = self._rows(wanted, tokens, length, has_eos)
        return Episodes(
            rows=rows,
            tokens=tokens * is_real,
            is_real=is_real,
            has_eos=has_eos,
            states=states,
            logprobs=logprobs * is_real,
        )

    def _fitting(self, longest: int) -> int:
        """How many rows are sampled side by side, with prompts of at most `longest` tokens."""
        if self.base.device.type != "cuda":
            return self.rows
        room = cache_tokens(self.base.model, cpu_bytes=0)
        return max(1, min(self.rows, room // (longest + self.max_new_tokens)))

    def _nothing(self) -> Episodes:
        """No completions, for a rank that has no share."""
        none = torch.zeros(0, 1, device=self.base.device)
        return Episodes(
            rows=(),
            tokens=none.long(),
            is_real=none.bool(),
            has_eos=none.bool()[:, 0],
            states=torch.zeros(0, 1, self.base.hidden_size, dtype=self.base.dtype, device=self.base.device),
            logprobs=none,
        )

    def _read(self, questions: Sequence[EncodedPrompt]) -> tuple[Tensor, DynamicCache, Tensor, Tensor]:
        """Prefill: the states at the last prompt tokens (L, H), the cache, the mask (L, S) and the last
        positions (L, 1)."""
        distinct = list(dict.fromkeys(question.ids for question in questions))
        shared = prefix_to_share(self.base, distinct, max(map(len, distinct)) + self.max_new_tokens)
        cache = prefill(self.base, distinct[0][:shared], len(distinct))
        tails = [ids[shared:] for ids in distinct]
        width, device = max(map(len, tails)), self.base.device
        ids = torch.tensor([[0] * (width - len(tail)) + list(tail) for tail in tails], device=device)
        mask = torch.tensor(
            [[1] * shared + [0] * (width - len(tail)) + [1] * len(tail) for tail in tails], device=device
        )
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        state = self.base.hidden(ids, mask, positions[:, shared:], past_key_values=cache)[:, -1]
        number = {ids: at for at, ids in enumerate(distinct)}
        source = torch.tensor([number[question.ids] for question in questions], device=device)
        if len(source) > len(distinct):
            cache.batch_select_indices(source)
        return state[source], cache, mask[source], positions[source, -1:]

    def _draw(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        rows = torch.ones(len(logits), device=logits.device)
        return draw_token(logits, uniforms, rows * self.temperature, rows)

    def _rows(
        self, wanted: Sequence[tuple[EncodedPrompt, int]], tokens: Tensor, length: Tensor, has_eos: Tensor
    ) -> tuple[EpisodeRow, ...]:
        rows = []
        for (question, index), ids, count, ended in zip(
            wanted, tokens.tolist(), length.tolist(), has_eos.tolist(), strict=True
        ):
            completion = Completion(
                id=f"{question.prompt.id}/{index}",
                prompt_id=question.prompt.id,
                index=index,
                text=self._text(ids[: count - ended]),
                finish="stop" if ended else "length",
                model=self.base.name,
                tokens=count,
            )
            rows.append(EpisodeRow(prompt=question.prompt, prompt_ids=question.ids, completion=completion))
        return tuple(rows)

    def _text(self, ids: list[int]) -> str:
        text = well_formed(
            str(self.base.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        )
        # What a model without chat template writes after its turn is not part of it.
        for stop in self.form.stops:
            text = text.partition(stop)[0]
        return text


def first_indices(questions: Sequence[EncodedPrompt], samples: int) -> list[int]:
    """The index of the first of each question's `samples` completions: a prompt that is asked again goes on
    where it stopped."""
    seen: Counter[str] = Counter()
    firsts = []
    for question in questions:
        name = question.prompt.fingerprint()
        firsts.append(seen[name])
        seen[name] += samples
    return firsts


def rows_side_by_side(device: str) -> int:
    """How many rows are sampled at the same time on a kind of device (`cpu`, `cuda`, `mps`)."""
    return GPU_ROWS if device == "cuda" else CPU_ROWS


def _not_finite(question: EncodedPrompt) -> ModelError:
    return ModelError(
        "the policy's logits are not finite (NaN or infinity)",
        where=f"prompt {question.prompt.id}",
        remedy="drop the prompt if it is the only one (rlaif sample names such prompts); else lower the "
        "learning rate, or use float32",
    )


def _uniforms(seed: int, question: EncodedPrompt, index: int, count: int) -> Tensor:
    """`count` numbers in [0, 1) that belong to one row; from the CPU, so that they are the same for every
    device."""
    generator = torch.Generator().manual_seed(
        seed_from(seed, "rollout", question.prompt.fingerprint(), index)
    )
    return torch.rand(count, generator=generator, dtype=torch.float32)
