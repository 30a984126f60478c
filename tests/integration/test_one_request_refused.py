"""One prompt that a model cannot take is refused by itself: named, counted, and the others go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CHAT_TEMPLATE, save_tiny, tiny_model, tiny_tokenizer

from rlaif.engines.base import GenerationRequest, LabelRequest, Sampling
from rlaif.engines.hf import HFEngine
from rlaif.errors import ModelError
from rlaif.models.load import load_engine
from rlaif.models.shared_base import SharedBase
from rlaif.rl.rollout import Sampler
from rlaif.types import Message, Prompt

STRICT = (
    "{% for m in messages %}{% if 'forbidden' in m['content'] %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    + CHAT_TEMPLATE
)
TEXTS = ("hello there", "a forbidden word", "good day to you")


def engine(folder: Path) -> HFEngine:
    opened = load_engine(str(folder), dtype="float32")
    assert isinstance(opened, HFEngine)
    return opened


def asked(texts: tuple[str, ...] = TEXTS) -> list[GenerationRequest]:
    sampling = Sampling(max_new_tokens=4)
    return [GenerationRequest((Message("user", text),), sampling, seed=at) for at, text in enumerate(texts)]


def collect(batches: Any) -> dict[int, Any]:
    return {index: value for batch in batches for index, value in batch.items()}


def test_a_prompt_that_the_template_refuses(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    (folder / "chat_template.jinja").write_text(STRICT)
    model = engine(folder)
    written = collect(model.generate(asked()))
    assert [written[at].reason for at in range(3)] == ["", "template_refused", ""]
    questions = [LabelRequest((Message("user", text),), (" A", " B")) for text in TEXTS]
    read = collect(model.label_logprobs(questions))
    assert [read[at].reason for at in range(3)] == ["", "template_refused", ""]


def test_a_token_without_a_row_in_the_embedding(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    tokenizer.add_tokens(["zzz"])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    one = engine(tmp_path)
    written = collect(one.generate(asked(("hello", "a zzz b", "good day"))))
    assert [written[at].reason for at in range(3)] == ["", "unknown_token", ""]
    questions = [LabelRequest((Message("user", text),), (" A", " B")) for text in ("hello", "zzz", "day")]
    read = collect(one.label_logprobs(questions))
    assert [read[at].reason for at in range(3)] == ["", "unknown_token", ""]


def test_logits_that_are_not_finite_for_one_prompt(tmp_path: Path) -> None:
    """The embedding of one byte is NaN: its prompt alone is refused, in whatever batch, and a rollout says which prompt it was."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    bad = tokenizer.encode("%", add_special_tokens=False)[0]
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        model.get_input_embeddings().weight[bad] = float("nan")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    written = collect(engine(tmp_path).generate(asked(("hello", "50 % off", "good day"))))
    assert [written[at].reason for at in range(3)] == ["", "not_finite", ""]
    base = SharedBase.load(str(tmp_path), dtype="float32")
    sampler = Sampler(base, max_new_tokens=4, temperature=1.0, rows=4)
    questions = [
        sampler.question(Prompt(id=text, messages=(Message("user", text),)), (Message("user", text),))
        for text in ("hi", "5 %")
    ]
    with pytest.raises(ModelError, match=r"prompt 5 %: the policy's logits are not finite"):
        sampler.sample(questions, samples=1, seed=0)
