"""The torch engine: any causal language model of transformers, in this process.

Label reading: what prompts share at their start is computed once (see `tree`); where a model cannot be run
so, prompts are sorted by length and cut into batches under a token budget, padded on the left. Logits are
formed for the last position only. Sampling: see `decoding`. Batches are planned over all requests before
those already done are left out, so a batch that was finished as a whole is skipped as a whole, and a resumed
run computes the others as an undisturbed run does.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from rlaif.engines.base import EngineCard, Generation, GenerationRequest, LabelReading, LabelRequest
from rlaif.engines.batching import pad_left, plan
from rlaif.engines.chat import TEMPLATE_REFUSED, ChatFormat, TemplateRefusal, end_tokens
from rlaif.engines.decoding import Decoder, DecodingJob, cache_tokens
from rlaif.engines.head import tuned_head
from rlaif.engines.labels import EncodedQuestion, Tokens, find_labels
from rlaif.engines.tree import TreeReader, unshareable
from rlaif.text import one_line

__all__ = ["HFEngine"]

CPU_TOKENS, GPU_TOKENS = 2_048, 32_768
CPU_ROWS, GPU_ROWS = 32, 256
CPU_CACHE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class _Group:
    """Requests for completions of one prompt. `cost` is the room a row needs: prompt and longest completion,
    in tokens."""

    ids: Tokens
    members: tuple[int, ...]
    cost: int


UNKNOWN_TOKEN = "unknown_token"
"""The reason of a request with a token that has no row in the model's embedding."""


class HFEngine:
    """Runs one model. See `rlaif.models.load_engine` for opening one by name.

    Args:
        model: A causal language model in eval mode, on its device.
        tokenizer: Its tokenizer.
        card: Who answers.
        token_budget: Tokens, padding included, in one forward pass that reads labels; by device if `None`.
        rows: Most completions sampled side by side; by device if `None`.
        log: Told once if the model cannot share the starts of prompts.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        card: EngineCard,
        *,
        token_budget: int | None = None,
        rows: int | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.form = ChatFormat(tokenizer, name=card.name)
        self.known_tokens: int = model.get_input_embeddings().weight.shape[0]
        """Rows of the embedding: a tokenizer with more tokens may ask for one that is not there."""
        self.resident: object = None
        """The same model as a base with roles, once somebody wanted that; see `models.role_engine`."""
        self._card = card
        on_cpu = model.device.type == "cpu"
        self.token_budget = token_budget or (CPU_TOKENS if on_cpu else GPU_TOKENS)
        self.rows = rows or (CPU_ROWS if on_cpu else GPU_ROWS)
        self.ends = end_tokens(model, self.form)
        self.pad = next(iter(sorted(self.ends)), 0)
        self.decoder = Decoder(model, tokenizer, ends=self.ends, pad=self.pad, stops=self.form.stops)
        self._log = log
        self._tree: TreeReader | Literal["untried", "unfit"] = "untried"

    @property
    def card(self) -> EngineCard:
        """Who answers."""
        return self._card

    @property
    def at_once(self) -> int:
        """1: requests are put into batches of its own."""
        return 1

    def label_logprobs(
        self, requests: Sequence[LabelRequest], *, done: Container[int] = ()
    ) -> Iterator[Mapping[int, LabelReading]]:
        """Read the labels of every request that is not in `done`; yields a mapping a batch.

        Invalid readings: `prompt_too_long`, `template_refused`, `labels_alike`, `not_finite`.
        """
        prompts = list(find_labels(self.form, requests))
        refused = {
            index: reading
            for index, prompt in enumerate(prompts)
            if (reading := self._refuse(prompt)) is not None
        }
        if missing := {index: reading for index, reading in refused.items() if index not in done}:
            yield missing
        open_ones = [index for index in range(len(prompts)) if index not in refused]
        tree = self._shared([prompts[index].ids for index in open_ones])
        read = self._read_in_rows if tree is None else partial(self._read_in_tree, tree)
        for readings in read(
            [prompts[index] for index in open_ones],
            [at for at, index in enumerate(open_ones) if index not in done],
        ):
            yield {open_ones[at]: reading for at, reading in readings.items()}

    def generate(
        self, requests: Sequence[GenerationRequest], *, done: Container[int] = ()
    ) -> Iterator[Mapping[int, Generation]]:
        """Sample a completion for every request that is not in `done`; yields a mapping a batch, the longest
        prompts first.

        A prompt that leaves no room for `max_new_tokens` is refused with the reason `prompt_too_long`, one
        that the chat template refuses with `template_refused`, one with a token that the model does not have
        with `unknown_token`.
        """
        groups, unreadable = self._groups(requests)
        if no_text := {index: reason for index, reason in unreadable.items() if index not in done}:
            yield {
                index: Generation(text="", finish="refused", tokens=0, reason=reason)
                for index, reason in no_text.items()
            }
        too_long = Generation(text="", finish="refused", tokens=0, reason="prompt_too_long")
        refused = [index for group in groups if group.cost > self.card.context for index in group.members]
        if missing := [index for index in refused if index not in done]:
            yield dict.fromkeys(missing, too_long)
        rows = [
            (group, index) for group in groups if group.cost <= self.card.context for index in group.members
        ]
        for batch in plan([group.cost for group, _ in rows], budget=self._cache_tokens(), rows=self.rows):
            wanted = [rows[at] for at in batch if rows[at][1] not in done]
            if wanted:
                yield self._sample(wanted, requests)

    def _refuse(self, prompt: EncodedQuestion) -> LabelReading | None:
        reason = prompt.reason or ("prompt_too_long" if len(prompt.ids) > self.card.context else "")
        if not reason and max(*prompt.ids.tolist(), *prompt.labels) >= self.known_tokens:
            reason = UNKNOWN_TOKEN
        return LabelReading(logprobs=(), tokens=len(prompt.ids), reason=reason) if reason else None

    def _shared(self, sequences: Sequence[Tokens]) -> TreeReader | None:
        """What reads prompts that share their starts; `None` if the model cannot be run so."""
        if self._tree == "untried" and sequences:
            reason = unshareable(self.model, sequences[0])
            self._tree = "unfit" if reason else TreeReader(self.model, budget=self.token_budget)
            if reason and self._log is not None:
                self._log(f"{self.card.name}: every judge prompt is computed on its own: {reason}")
        return self._tree if isinstance(self._tree, TreeReader) else None

    def _read_in_tree(
        self, tree: TreeReader, prompts: Sequence[EncodedQuestion], wanted: Sequence[int]
    ) -> Iterator[dict[int, LabelReading]]:
        """Readings by the prompt's number; what prompts share is computed once."""
        fine = {label for prompt in prompts for label in prompt.labels}
        left = set(wanted)
        passes = tree.read([prompt.ids for prompt in prompts], wanted=frozenset(wanted))
        while left:
            with tuned_head(self.model, fine=fine):
                rows = next(passes)
            asked = [
                (member, row)
                for row, members in enumerate(rows.members)
                for member in members
                if member in left
            ]
            found = _readings(
                [prompts[member] for member, _ in asked], rows.logits[[row for _, row in asked]]
            )
            readings = dict(zip((member for member, _ in asked), found, strict=True))
            # A number that is not finite may have come from another prompt of the pass.
            for member in [member for member, reading in readings.items() if reading.reason == "not_finite"]:
                readings[member] = self._read([prompts[member]])[0]
            left -= readings.keys()
            if readings:
                yield readings

    def _read_in_rows(
        self, prompts: Sequence[EncodedQuestion], wanted: Sequence[int]
    ) -> Iterator[dict[int, LabelReading]]:
        """Readings by the prompt's number; each prompt is computed in a row of its own, the longest first."""
        asked_for = set(wanted)
        for batch in plan([len(prompt.ids) for prompt in prompts], budget=self.token_budget):
            if asked := [number for number in batch if number in asked_for]:
                yield dict(zip(asked, self._read([prompts[number] for number in asked]), strict=True))

    @torch.inference_mode()
    def _read(self, prompts: Sequence[EncodedQuestion]) -> list[LabelReading]:
        """One forward pass over a batch of prompts."""
        batch = pad_left([prompt.ids for prompt in prompts], pad=self.pad, device=self.model.device)
        with tuned_head(self.model, fine={label for prompt in prompts for label in prompt.labels}):
            output = self.model(
                input_ids=batch.ids,
                attention_mask=batch.mask,
                position_ids=batch.positions,
                use_cache=False,
                logits_to_keep=1,
            )
        return _readings(prompts, output.logits[:, -1])

    def _groups(self, requests: Sequence[GenerationRequest]) -> tuple[list[_Group], dict[int, str]]:
        """The requests by prompt, in order of first appearance, a prompt's samples together; and those the
        template refuses."""
        members: dict[str, list[int]] = {}
        refused: list[int] = []
        for index, request in enumerate(requests):
            try:
                members.setdefault(self.form.render(request.messages), []).append(index)
            except TemplateRefusal as error:
                if not refused and self._log is not None:
                    self._log(f"a request is refused: {one_line(error.what)}")
                refused.append(index)
        texts = list(members)
        groups, unknown = [], list[int]()
        for text, ids in zip(texts, self.form.encode(texts), strict=True):
            if max(ids, default=0) >= self.known_tokens:
                unknown += members[text]
                continue
            longest = max(requests[index].sampling.max_new_tokens for index in members[text])
            groups.append(_Group(np.array(ids, dtype=np.int32), tuple(members[text]), len(ids) + longest))
        return groups, dict.fromkeys(refused, TEMPLATE_REFUSED) | dict.fromkeys(unknown, UNKNOWN_TOKEN)

    def _sample(
        self, rows: Sequence[tuple[_Group, int]], requests: Sequence[GenerationRequest]
    ) -> dict[int, Generation]:
        """Decode one batch; the samples of a prompt are neighbours in it."""
        jobs: list[DecodingJob] = []
        for group, index in rows:
            if jobs and jobs[-1].ids is group.ids:
                jobs[-1].requests.append((index, requests[index]))
            else:
                jobs.append(DecodingJob(group.ids, [(index, requests[index])]))
        return self.decoder.run(jobs)

    def _cache_tokens(self) -> int:
        """How many tokens the key-value caches of one batch may hold."""
        return max(self.token_budget, cache_tokens(self.model, cpu_bytes=CPU_CACHE_BYTES))


def _readings(prompts: Sequence[EncodedQuestion], logits: torch.Tensor) -> list[LabelReading]:
    """The labels of each prompt in its row of `logits` `(B, V)`."""
    if not prompts:
        return []
    width = max(len(prompt.labels) for prompt in prompts)
    labels = torch.tensor(
        [[*prompt.labels, *[0] * (width - len(prompt.labels))] for prompt in prompts], device=logits.device
    )
    logits = logits.float()
    logprobs = logits.gather(1, labels) - logits.logsumexp(1, keepdim=True)
    finite: list[bool] = logprobs.isfinite().all(1).tolist()
    return [_reading(*row) for row in zip(prompts, logprobs.tolist(), finite, strict=True)]


def _reading(prompt: EncodedQuestion, values: list[float], finite: bool) -> LabelReading:
    if not finite:
        return LabelReading(logprobs=(), tokens=len(prompt.ids), reason="not_finite")
    return LabelReading(logprobs=tuple(values[: len(prompt.labels)]), tokens=len(prompt.ids))
