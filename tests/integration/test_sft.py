"""Supervised fine-tuning on the resident base: it learns as plain TRL does, and changes nothing but its
adapter."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from datasets import Dataset
from toy_policy import prompts, toy_base
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from rlaif.config.finetune import SftConfig
from rlaif.digest import seed_from
from rlaif.errors import DataError, ModelError
from rlaif.models.finetune import FinetuneStep, NoReference
from rlaif.models.shared_base import LoraSettings, SharedBase
from rlaif.stages.sft import SftResult, completion_logprobs, examples_from_rows, train_sft

QUICK: dict[str, Any] = {
    "epochs": 4,
    "learning_rate": 1e-2,
    "lora_rank": 4,
    "lora_alpha": 8.0,
    "batch_size": 8,
    "micro_batch": 8,
    "held_out": 0.25,
}


pytestmark = pytest.mark.usefixtures("one_thread")


def row(prompt: str, completion: str, **columns: Any) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}],
        **columns,
    }


def some_rows(count: int = 16) -> list[dict[str, Any]]:
    return [
        row(prompt.messages[0].content, "aei" * (1 + number % 2))
        for number, prompt in enumerate(prompts(count))
    ]


def train(
    base: SharedBase, rows: Sequence[dict[str, Any]] | None = None, *, seed: int = 0, **settings: Any
) -> SftResult:
    return train_sft(
        some_rows() if rows is None else rows, base=base, config=SftConfig(**QUICK | settings), seed=seed
    )


def probability(base: SharedBase, role: str, prompt: str, completion: str) -> float:
    (lesson,) = examples_from_rows([row(prompt, completion)], base)
    with torch.no_grad(), base.role(role):
        logprobs, _ = completion_logprobs(base, [lesson.prompt], [lesson.completion])
    return float(logprobs.sum().exp())


def reference_logits(base: SharedBase) -> torch.Tensor:
    ids = torch.arange(4, 20).unsqueeze(0)
    with torch.no_grad(), base.role("reference"):
        return base.logits_at(base.hidden(ids, torch.ones_like(ids)))


def weights(base: SharedBase) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in base.model.named_parameters()}


# Learning


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_falls_and_the_completions_become_likely(dtype: torch.dtype) -> None:
    base = toy_base(dtype=dtype)
    before = reference_logits(base)
    result = train(base)
    assert result.report.loss_after < 0.2 * result.report.loss_before
    assert result.steps[-1].loss < 0.3 * result.steps[0].loss
    assert probability(base, "policy", "abcdefghijp", "aei") > 100 * probability(
        base, "reference", "abcdefghijp", "aei"
    )
    assert torch.equal(reference_logits(base), before), "the reference must not move by a bit"
    assert all(weight.dtype == torch.float32 for weight in base.trainable("policy"))


def test_only_the_adapter_changes_and_all_else_is_put_back() -> None:
    base = toy_base()
    for other in ("policy", "reward"):
        base.add_adapter(other, LoraSettings(rank=4), seed=1)
    before, state = weights(base), dict(base.model.__dict__)
    config, generation = dict(base.model.config.__dict__), dict(base.model.generation_config.__dict__)
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    draws = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    train(base, epochs=1)
    after = weights(base)
    assert {name for name in after if not torch.equal(after[name], before[name])} == {
        name for name in after if ".policy." in name
    }
    assert all(weight.grad is None for weight in base.model.parameters())
    assert base.model.__dict__ == state
    assert (base.model.config.__dict__, base.model.generation_config.__dict__) == (config, generation)
    assert (base.active, base.training) == ("reference", {"policy", "reward"})
    assert not any(module.training for module in base.model.modules())
    assert torch.equal(torch.get_rng_state(), draws[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == draws[1:]


def test_nothing_is_said_or_left_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        train(toy_base(), epochs=1)
    assert (out.getvalue(), err.getvalue()) == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::FutureWarning")  # what TRL's own defaults cause in transformers
def test_it_is_the_training_of_plain_trl(tmp_path: Path) -> None:
    ours, theirs = toy_base(), toy_base()
    rows = some_rows()
    ours.add_adapter("policy", LoraSettings(rank=4, alpha=8.0), seed=3)
    theirs.add_adapter("policy", LoraSettings(rank=4, alpha=8.0), seed=3)
    result = train_sft(rows, base=ours, config=SftConfig(**QUICK | {"held_out": 0, "micro_batch": 4}), seed=0)
    trainer = SFTTrainer(
        model=plain_peft(theirs),
        processing_class=theirs.tokenizer,
        train_dataset=Dataset.from_list(rows),
        args=TrlConfig(
            output_dir=str(tmp_path),
            seed=seed_from(0, "sft") % (1 << 31),
            num_train_epochs=4,
            learning_rate=1e-2,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            weight_decay=0.0,
            lr_scheduler_type="linear",
            warmup_steps=0,
            report_to="none",
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1,
        ),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert [step.loss for step in result.steps] == pytest.approx(losses, rel=1e-3)
    learned = peft.get_peft_model_state_dict(trainer.model)
    for name, weight in ours.adapter_state("policy").items():
        torch.testing.assert_close(weight, learned[name], atol=1e-4, rtol=1e-3)


def plain_peft(base: SharedBase) -> Any:
    """PEFT's own adapter, without anything of ours, with the weights of the adapter `policy`."""
    state = base.adapter_state("policy")
    base.drop_adapter("policy")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(base.model, config)
    peft.set_peft_model_state_dict(model, state)
    return model


def test_how_the_work_is_cut_up_changes_rounding_only() -> None:
    plain = toy_base()
    train(plain, epochs=2)
    for changed in ({"micro_batch": 4}, {"gradient_checkpointing": True}):
        other = toy_base()
        train(other, epochs=2, **changed)
        for one, two in zip(plain.trainable("policy"), other.trainable("policy"), strict=True):
            torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-3)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_order() -> None:
    one, two, other = toy_base(), toy_base(), toy_base()
    results = [train(one), train(two), train(other, seed=1)]
    assert results[0].steps == results[1].steps != results[2].steps
    assert all(
        torch.equal(a, b) for a, b in zip(one.trainable("policy"), two.trainable("policy"), strict=True)
    )


def test_weights_are_learned_as_proportions() -> None:
    base = toy_base()
    asked = [prompt.messages[0].content for prompt in prompts(4)]
    rows = [
        row(text, letter, weight=weight)
        for text in asked
        for letter, weight in (("a", 3.0), ("b", 1.0), ("c", 0.0))
    ]
    train(base, rows, epochs=40, held_out=0, learning_rate=5e-3)
    a, b, c = (probability(base, "policy", asked[0], letter) for letter in "abc")
    assert a == pytest.approx(0.75, abs=0.05)
    assert b == pytest.approx(0.25, abs=0.05)
    assert c < 0.02


def test_it_goes_on_from_an_adapter_that_is_there() -> None:
    base = toy_base()
    first = train(base, epochs=1)
    second = train(base, epochs=1)
    assert second.report.loss_before == pytest.approx(first.report.loss_after)
    assert second.report.loss_after < first.report.loss_after


def test_held_out_prompts_are_not_learned() -> None:
    report = train(toy_base(), epochs=1).report
    assert (report.rows, report.prompts, report.measured, report.held_out) == (12, 12, 4, True)
    report = train(toy_base(), epochs=1, held_out=0).report
    assert (report.rows, report.measured, report.held_out) == (16, 16, False)


# Bad input


def test_rows_that_are_too_long_are_left_out_up_to_a_rate() -> None:
    rows = [*some_rows(), row("ab", "a" * 200)]
    assert train(toy_base(), rows, epochs=1, max_overlong=0.1).report.overlong == 1
    with pytest.raises(DataError, match="1 of 17 rows are longer than 128 tokens, the longest 205"):
        train(toy_base(), rows, epochs=1)
    with pytest.raises(DataError, match="16 of 16 rows are longer than 8 tokens"):
        train(toy_base(), max_tokens=8)


def test_no_rows_and_rows_of_one_prompt_are_refused() -> None:
    with pytest.raises(DataError, match="no rows to learn from"):
        train(toy_base(), [])
    with pytest.raises(DataError, match="no rows to learn from"):
        train(toy_base(), [row("ab", "a", weight=0)])
    with pytest.raises(DataError, match="all 2 rows are of one prompt"):
        train(toy_base(), [row("ab", "a"), row("ab", "b")])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"prompt": [{"role": "user", "content": "a"}]}, "column 'completion' is missing"),
        (row("a", "  "), "the completion is empty"),
        (row("a", "b", weight=float("nan")), "weight is nan"),
        (row("a", "b", weight=-1), "weight is -1"),
        (row("a", "b") | {"prompt": "a"}, "not a list of messages"),
        (
            row("a", "b") | {"prompt": [{"role": "assistant", "content": "a"}]},
            "the last message is not the user's",
        ),
        (row("a", "b") | {"completion": [{"role": "robot", "content": "a"}]}, "not a chat message"),
    ],
)
def test_rows_that_cannot_be_read_are_listed(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match="1 of 3 rows cannot be learned from") as caught:
        train_sft(
            [row("a", "b"), bad, row("c", "d")],
            base=toy_base(),
            config=SftConfig(**QUICK),
            seed=0,
            source="rows.jsonl",
        )
    assert message in str(caught.value)
    assert "rows.jsonl, row 2" in str(caught.value)


def test_a_loss_that_is_no_number_leaves_the_adapter_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    # No setting that is allowed makes such a loss.
    monkeypatch.setattr("rlaif.config.settings.LARGEST", 1e35)
    base = toy_base()
    base.add_adapter("policy", LoraSettings(rank=4), seed=0)
    before = base.adapter_state("policy")
    with pytest.raises(ModelError, match="the loss is") as caught:
        train(base, learning_rate=1e30, epochs=2)
    assert "lower learning_rate" in str(caught.value)
    assert all(torch.equal(weight, before[name]) for name, weight in base.adapter_state("policy").items())
    assert base.active == "reference"


def test_a_base_that_was_written_to_meanwhile_is_noticed() -> None:
    base = toy_base()

    def write(step: FinetuneStep) -> None:
        with torch.no_grad():
            base.model.lm_head.weight.add_(1)

    with pytest.raises(ModelError, match=r"wrote to 1 other weights, first lm_head\.weight"):
        train_sft(some_rows(), base=base, config=SftConfig(**QUICK | {"epochs": 1}), seed=0, log=write)


def test_a_quantised_base_is_refused() -> None:
    base = toy_base()
    base.model.is_quantized = True
    with pytest.raises(ModelError, match="is quantised"):
        train(base)


def test_the_stand_in_for_a_reference_is_never_asked() -> None:
    with pytest.raises(NotImplementedError, match="before training"):
        NoReference(None)()
