"""One prompt that a model cannot take is refused by itself: named, counted, and the others go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from spine import call, rows
from tiny import CHAT_TEMPLATE, save_tiny, tiny_model, tiny_tokenizer

from rlaif.engines.base import GenerationRequest, LabelRequest, Sampling
from rlaif.engines.hf import HFEngine
from rlaif.errors import ModelError
from rlaif.models.load import load_engine
from rlaif.models.shared_base import SharedBase
from rlaif.rl.rollout import Sampler
from rlaif.types import Message, Prompt

STRICT = (
    "{% for m in messages %}{% if 'forbidden' in m['content'] %}{{ raise_exception('no') }}{% endif %}{% "
    "endfor %}" + CHAT_TEMPLATE
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


def _with_a_token_of_nan(folder: Path) -> Path:
    """A model that cannot read the sign %."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    bad = tokenizer.encode("%", add_special_tokens=False)[0]
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        model.get_input_embeddings().weight[bad] = float("nan")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_logits_that_are_not_finite_for_one_prompt(tmp_path: Path) -> None:
    """The embedding of one byte is NaN: its prompt alone is refused, in whatever batch, and a rollout says
    which prompt it was."""
    _with_a_token_of_nan(tmp_path)
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


def test_training_leaves_out_the_prompt_that_cannot_be_answered(tmp_path: Path) -> None:
    """PPO and best of K: one prompt whose logits are NaN and one that the template refuses are listed; the
    others are learned."""
    folder = _with_a_token_of_nan(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(STRICT)
    path = tmp_path / "prompts.jsonl"
    texts = ["hello", "50 % off", "good day", "a forbidden word", "one", "two"]
    path.write_text("".join(json.dumps({"id": text, "prompt": text}) + "\n" for text in texts))
    common = (
        "--prompts",
        path,
        "--reward-function",
        "toy_policy:share_of_vowels",
        "--model",
        folder,
        "--dtype",
        "float32",
        "--max-new-tokens",
        12,
        "--set",
        "lora_rank=2",
    )
    for command in (("ppo", "--steps", 2, "--episodes", 4), ("best-of-k", "--k", 4)):
        out = tmp_path / command[0]
        refused = call(*command, *common, "--out", out)
        assert refused.status == 1, refused.out
        assert "2 of 6 prompts cannot be answered" in refused.err
        said = call(*command, *common, "--set", "max_refused=0.5", "--out", out)
        assert said.status == 0, said.err
        listed = rows(out / command[0] / "refused.jsonl")
        assert {row["prompt_id"] for row in listed} == {"50 % off", "a forbidden word"}
        manifest = json.loads((out / command[0] / "manifest.json").read_text())
        assert manifest["counts"]["refused"] == 2


PAIR = {"chosen": "Gladly: it is done.", "rejected": "No."}


@pytest.mark.parametrize("command", ["sft", "dpo", "reward"])
def test_a_row_that_the_template_refuses_is_left_out_when_that_is_allowed(
    tmp_path: Path, command: str
) -> None:
    folder = save_tiny(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(STRICT)
    path = tmp_path / "rows.jsonl"
    rest = {"completion": "Gladly."} if command == "sft" else PAIR
    texts = ["one", "a forbidden word", "two", "three", "four"]
    path.write_text("".join(json.dumps({"prompt": f"Say {text}.", **rest}) + "\n" for text in texts))
    arguments = (
        command,
        "--data" if command == "sft" else "--preferences",
        path,
        "--model",
        folder,
        "--dtype",
        "float32",
        "--set",
        "lora_rank=2",
        "--out",
        tmp_path / "run",
    )
    refused = call(*arguments)
    assert refused.status == 1, refused.out
    assert "the chat template refuses" in refused.err
    assert "--skip-bad-rows" in refused.err
    said = call(*arguments, "--skip-bad-rows")
    assert said.status == 0, said.err
    manifest = json.loads((tmp_path / "run" / command / "manifest.json").read_text())
    assert manifest["counts"]["bad_rows"] == 1


def test_an_evaluation_leaves_a_prompt_out_for_every_policy(tmp_path: Path) -> None:
    folder = _with_a_token_of_nan(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(STRICT)
    base = SharedBase.load(str(folder), dtype="float32")
    base.add_adapter("policy")
    base.save_adapter("policy", tmp_path / "policy")
    path = tmp_path / "prompts.jsonl"
    texts = ["hello", "50 % off", "good day", "a forbidden word", "one", "two"]
    path.write_text("".join(json.dumps({"id": text, "prompt": text}) + "\n" for text in texts))
    arguments = (
        "evaluate", "--policy", tmp_path / "policy", "--prompts", path, "--model", folder, "--dtype", "float32",
        "--no-win-rate", "--samples", 2, "--max-new-tokens", 4, "--out", tmp_path / "run",
    )  # fmt: skip
    refused = call(*arguments)
    assert refused.status == 1, refused.out
    assert "2 of 6 prompts cannot be answered" in refused.err
    said = call(*arguments, "--set", "max_refused=0.5")
    assert said.status == 0, said.err
    listed = rows(tmp_path / "run" / "evaluate" / "refused.jsonl")
    assert {row["prompt_id"] for row in listed} == {"50 % off", "a forbidden word"}
    completions = rows(tmp_path / "run" / "evaluate" / "completions.jsonl")
    assert len(completions) == 2 * 4 * 2
    assert {row["prompt_id"] for row in completions} == set(texts) - {"50 % off", "a forbidden word"}
    manifest = json.loads((tmp_path / "run" / "evaluate" / "manifest.json").read_text())
    assert manifest["counts"]["refused"] == 2
