"""A probe: a linear head on what a base makes of a judge's question, trained to answer it.

The base reads the question as it always does, up to two thirds of its layers: a head on those states judged
as well as one on the last layer's or on three layers' together (docs/LOG.md), and the layers above need not
be computed. Of a question's states the head gets three parts: the mean over the quoted response (of two,
their difference), the mean over all that follows, where response and principle meet, and the last token's.
Its value is the log-odds of the question's first label.

It is an engine like any other: what asks a judge need not know that this one was trained.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from rlaif.engines.base import EngineCard, Generation, GenerationRequest, LabelReading, LabelRequest
from rlaif.engines.batching import plan
from rlaif.engines.chat import TEMPLATE_REFUSED, TemplateRefusal
from rlaif.engines.hf import UNKNOWN_TOKEN, HFEngine
from rlaif.engines.labels import Tokens
from rlaif.errors import ConfigError, ModelError
from rlaif.models.attention import by_products, replaceable
from rlaif.models.heap import rounded
from rlaif.models.packing import MOST_COMPLETIONS, Packed, PackedRow, pack

__all__ = ["NOT_QUOTED", "Probe", "ProbeEngine", "StateReader", "layer_count", "probe_layer"]

DEPTH = 2 / 3
NOT_QUOTED = "not_quoted"
"""The reason of a question that quotes no response by the tag that the probe reads: its template is another
one than the probe was trained with."""
POOLS = 3


@dataclass(frozen=True, slots=True)
class Probe:
    """What was trained.

    Attributes:
        direction: (F,), fp32, on the features of `StateReader`.
        bias: So that the training questions' log-odds have mean 0.
        layer: Whose output is read, counted from 1.
        quoted: Tags of the responses that a question quotes: one, or the first and the second.
    """

    direction: Tensor
    bias: float
    layer: int
    quoted: tuple[str, ...]

    def log_odds(self, features: Tensor) -> Tensor:
        """Of the first label (N,), nats, from features (N, F)."""
        return features @ self.direction + self.bias


@dataclass(frozen=True, slots=True)
class _Question:
    """A question in tokens, and where in them the quoted responses stand."""

    ids: Tokens
    spans: tuple[tuple[int, int], ...]
    reason: str = ""

    @property
    def end(self) -> int:
        """Where the responses end, and what is asked of them begins; a template may show the second first."""
        return max(stop for _, stop in self.spans)


class _ReachedError(Exception):
    """The layer that is read has been computed."""


class StateReader:
    """Reads the features of questions from one layer of a model.

    Args:
        engine: Runs the base.
        layer: Whose output is read, counted from 1.
        quoted: See `Probe`.

    Raises:
        ModelError: The model has no such layer, or its tokenizer does not tell where tokens stand.
    """

    def __init__(self, engine: HFEngine, *, layer: int, quoted: Sequence[str]) -> None:
        self.engine = engine
        self.quoted = tuple(quoted)
        layers = _layers(engine)
        if not 0 < layer <= len(layers):
            raise ModelError(
                f"layer {layer} is to be read, and the model has {len(layers)}",
                where=engine.card.name,
                remedy=f"name one from 1 to {len(layers)}; a trained judge needs the base of its own",
            )
        if not engine.tokenizer.is_fast:
            raise ModelError(
                "its tokenizer does not tell where in a text a token stands",
                where=engine.card.name,
                remedy="use a model with a tokenizer.json",
            )
        self.layer = layer
        self._module = layers[layer - 1]
        self._attentions = replaceable(engine.model)
        self._same: bool | None = None

    @property
    def size(self) -> int:
        """F, the number of features."""
        return POOLS * int(self.engine.model.get_input_embeddings().embedding_dim)

    def read(
        self, requests: Sequence[LabelRequest], *, done: Container[int] = ()
    ) -> Iterator[Mapping[int, tuple[Tensor | str, int]]]:
        """The features (F,), fp32, of every request that is not in `done`, or the reason why there are none,
        and its length in tokens; yields a mapping per batch, the longest first."""
        questions = [self._located(request) for request in requests]
        refused = [at for at, question in enumerate(questions) if question.reason]
        if missing := [at for at in refused if at not in done]:
            yield {at: (questions[at].reason, len(questions[at].ids)) for at in missing}
        good = {at: question for at, question in enumerate(questions) if not question.reason}
        for row in self._batches(good):
            if any(number not in done for number in row.numbers):
                found = self._features(row, good)
                yield {
                    at: (each, len(good[at].ids))
                    for at, each in zip(row.numbers, found, strict=True)
                    if at not in done
                }

    def _batches(self, questions: Mapping[int, _Question]) -> Iterator[Packed]:
        """Batches of questions; those that are the same up to the end of their responses lie in one row,
        which reads that once."""
        trees: dict[bytes, list[int]] = {}
        for at, question in questions.items():
            trees.setdefault(question.ids[: question.end].tobytes(), []).append(at)
        share = self._shares([numbers for numbers in trees.values() if len(numbers) > 1], questions)
        rows = [
            PackedRow(
                questions[numbers[0]].ids[: questions[numbers[0]].end].tolist(),
                tuple((at, questions[at].ids[questions[at].end :].tolist()) for at in part),
            )
            for numbers in trees.values()
            for part in _pieces(numbers, MOST_COMPLETIONS if share else 1)
        ]
        for batch in plan([rounded(row.length) for row in rows], budget=self.engine.token_budget):
            yield pack([rows[at] for at in batch], device=self.engine.model.device)

    def _shares(self, groups: Sequence[Sequence[int]], questions: Mapping[int, _Question]) -> bool:
        """Whether this model gives questions in one row the states that they have in rows of their own, up to
        rounding; tried once, on two of the shortest."""
        window = getattr(self.engine.model.config.get_text_config(decoder=True), "sliding_window", None)
        if not groups or window is not None:
            return False
        if self._same is None:
            pair = min(groups, key=lambda numbers: len(questions[numbers[0]].ids))[:2]
            start = questions[pair[0]].ids[: questions[pair[0]].end].tolist()
            tails = [(at, questions[at].ids[questions[at].end :].tolist()) for at in pair]
            device = self.engine.model.device
            together = self._features(pack([PackedRow(start, tuple(tails))], device=device), questions)
            apart = self._features(
                pack([PackedRow(start, (tail,)) for tail in tails], device=device), questions
            )
            allowed = 1e-3 if self.engine.model.dtype == torch.float32 else 3e-2
            self._same = bool((apart - together).norm() <= allowed * apart.norm())
        return self._same

    def _located(self, request: LabelRequest) -> _Question:
        engine, nothing = self.engine, np.array([], dtype=np.int32)
        try:
            text = engine.form.render(request.messages)
        except TemplateRefusal:
            return _Question(nothing, (), TEMPLATE_REFUSED)
        lead = engine.form.encode([""])[0]
        encoded = engine.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False
        )
        ids = np.array([*lead, *encoded["input_ids"]], dtype=np.int32)
        if len(ids) > engine.card.context:
            return _Question(ids, (), "prompt_too_long")
        if int(ids.max()) >= engine.known_tokens:
            return _Question(ids, (), UNKNOWN_TOKEN)
        places = [_quoted(text, tag) for tag in self.quoted]
        starts = np.array([start for start, _ in encoded["offset_mapping"]])
        spans = tuple(_tokens(starts, *place, first=len(lead)) for place in places if place is not None)
        return _Question(ids, spans, "" if len(spans) == len(self.quoted) else NOT_QUOTED)

    @torch.no_grad()
    def _features(self, packed: Packed, questions: Mapping[int, _Question]) -> Tensor:
        """(n, F), fp32, on the CPU, of the batch's questions in their order."""
        states = self._states(packed).float()
        found = []
        for number, at in enumerate(packed.numbers):
            row = int((packed.group == number).any(1).nonzero()[0])
            found.append(_pooled(states[row], states[row][packed.group[row] == number], questions[at].spans))
        return torch.stack(found).cpu()

    def _states(self, packed: Packed) -> Tensor:
        """The layer's output (B, T, H); the layers above are not computed."""
        model, found, mask = self.engine.model, [], packed.attention_mask
        if mask.dim() == 4:
            mask = torch.where(mask, 0.0, torch.finfo(model.dtype).min).to(model.dtype)

        def keep(module: Any, inputs: Any, output: Any) -> NoReturn:
            found.append(output[0] if isinstance(output, tuple) else output)
            raise _ReachedError

        handle = self._module.register_forward_hook(keep)
        try:
            with by_products(self._attentions, model.device):
                model.get_decoder()(
                    input_ids=packed.input_ids,
                    attention_mask=mask,
                    position_ids=packed.position_ids,
                    use_cache=False,
                )
        except _ReachedError:
            states: Tensor = found[0]
            return states
        finally:
            handle.remove()
        raise ModelError("the layer that is read was not reached", where=self.engine.card.name)


class ProbeEngine:
    """A trained judge: answers the questions of the protocol that it was trained on.

    Args:
        engine: Runs the base; nothing is loaded twice.
        probe: What was trained on that base.
        card: Who answers.

    Raises:
        ModelError: The probe is of another model.
    """

    def __init__(self, engine: HFEngine, probe: Probe, card: EngineCard) -> None:
        self._card = card
        self._probe = probe
        self._reader = StateReader(engine, layer=probe.layer, quoted=probe.quoted)
        if probe.direction.shape != (self._reader.size,):
            raise ModelError(
                f"the judge's head is for features of shape {tuple(probe.direction.shape)}, the model gives "
                f"{self._reader.size}",
                where=card.name,
                remedy="it is of another judge, or was changed: train or copy it again",
            )

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
        """Read both labels of every request that is not in `done`; yields a mapping per batch.

        Invalid readings: `prompt_too_long`, `template_refused`, `unknown_token`, `not_quoted`, `two_labels`
        for a question with other than two.
        """
        for batch in self._reader.read(requests, done=done):
            yield {at: self._reading(requests[at], *found) for at, found in batch.items()}

    def generate(
        self, requests: Sequence[GenerationRequest], *, done: Container[int] = ()
    ) -> Iterator[Mapping[int, Generation]]:
        """A probe writes nothing.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "a trained judge answers questions, it does not write",
            where=self._card.name,
            remedy="name another model for `cot`, sampling and revision",
        )

    def _reading(self, request: LabelRequest, features: Tensor | str, tokens: int) -> LabelReading:
        if isinstance(features, str):
            return LabelReading(logprobs=(), tokens=tokens, reason=features)
        if len(request.labels) != 2:
            return LabelReading(logprobs=(), tokens=tokens, reason="two_labels")
        log_odds = float(self._probe.log_odds(features.unsqueeze(0)))
        if not math.isfinite(log_odds):
            return LabelReading(logprobs=(), tokens=tokens, reason="not_finite")
        return LabelReading(logprobs=(_log_sigmoid(log_odds), _log_sigmoid(-log_odds)), tokens=tokens)


def probe_layer(engine: HFEngine) -> int:
    """The layer to read of a model, counted from 1: two thirds up."""
    return max(1, round(DEPTH * layer_count(engine)))


def layer_count(engine: HFEngine) -> int:
    """Decoder layers of the model."""
    return len(_layers(engine))


def _layers(engine: HFEngine) -> list[Any]:
    body = engine.model.get_decoder()
    return [module for module in body.modules() if isinstance(module, GradientCheckpointingLayer)]


def _quoted(text: str, tag: str) -> tuple[int, int] | None:
    """Where the last text between `<tag>` lines begins and ends. Data cannot hold such a line
    (`prompts.quote`)."""
    start = text.rfind(f"<{tag}>\n")
    end = text.find(f"\n</{tag}>", start)
    return None if start < 0 or end < 0 else (start + len(tag) + 3, end)


def _tokens(starts: np.ndarray[Any, Any], begin: int, end: int, *, first: int) -> tuple[int, int]:
    """The tokens of characters `begin` to `end`, at least one; `first` is the number of the first token."""
    here = int(np.searchsorted(starts, begin, side="right")) - 1
    stop = int(np.searchsorted(starts, end, side="left"))
    return first + max(here, 0), first + max(stop, here + 1, 1)


def _pooled(states: Tensor, after: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """(T, H) of a row, and (t, H) of what follows the responses in it -> (F,)."""
    means = [states[start:stop].mean(0) for start, stop in spans]
    response = means[0] if len(means) == 1 else means[0] - means[1]
    return torch.cat([response, after.mean(0), after[-1]])


def _pieces(numbers: Sequence[int], size: int) -> list[Sequence[int]]:
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


def _log_sigmoid(x: float) -> float:
    """log(1 / (1 + exp(−x))), without overflow."""
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))
