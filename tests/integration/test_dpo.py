"""DPO on the resident base: it separates, learns soft labels as probabilities, and is plain TRL's training
for hard ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from toy_policy import prompts, toy_base
from trl import DPOConfig as TrlConfig
from trl import DPOTrainer

from rlaif.config.finetune import DpoConfig
from rlaif.digest import seed_from
from rlaif.errors import DataError, ModelError
from rlaif.models.shared_base import LoraSettings, SharedBase
from rlaif.results.preferences import pairs_from_rows, split_by_prompt
from rlaif.stages.dpo import DpoResult, train_dpo

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


def some_rows(count: int = 16, p: float = 1.0, **columns: Any) -> list[dict[str, Any]]:
    def turn(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    return [
        {
            "id": f"r{number}",
            "prompt": [message.as_dict() for message in prompt.messages],
            "p_chosen": p,
            "chosen": turn("aei" * (1 + number % 2)),
            "rejected": turn("bcd" + "f" * (number % 3)),
            **columns,
        }
        for number, prompt in enumerate(prompts(count))
    ]


def train(base: SharedBase, rows: Sequence[dict[str, Any]], *, seed: int = 0, **settings: Any) -> DpoResult:
    return train_dpo(pairs_from_rows(rows), base=base, config=DpoConfig(**QUICK | settings), seed=seed)


def reference_logits(base: SharedBase) -> torch.Tensor:
    ids = torch.arange(4, 20).unsqueeze(0)
    with torch.no_grad(), base.role("reference"):
        return base.logits_at(base.hidden(ids, torch.ones_like(ids)))


def test_it_separates_and_the_reference_stays() -> None:
    base = toy_base()
    before, weights = (
        reference_logits(base),
        {name: weight.clone() for name, weight in base.model.named_parameters()},
    )
    result = train(base, some_rows())
    assert result.steps[0].loss == pytest.approx(0.6931, abs=1e-3), (
        "log 2: policy and reference are one at first"
    )
    assert result.steps[-1].loss < 0.2
    assert result.report.held_out.accuracy == 1
    assert result.report.held_out.loss < 0.3
    assert result.report.margin > 1
    assert result.report.chosen_shift > 0 > result.report.rejected_shift
    assert torch.equal(reference_logits(base), before), "the reference must not move by a bit"
    after = {name.replace(".base_layer", ""): weight for name, weight in base.model.named_parameters()}
    assert all(torch.equal(after[name], weight) for name, weight in weights.items())
    assert (base.roles, base.active, base.training) == (("policy",), "reference", {"policy"})


def test_soft_labels_are_learned_as_probabilities_and_hard_ones_are_not() -> None:
    soft, hard = (
        train(toy_base(), some_rows(p=0.8), epochs=6, labels=labels).report for labels in ("soft", "hard")
    )
    assert soft.margin == pytest.approx(1.386, abs=0.15), "the log-odds of 0.8"
    assert hard.margin > 2.5


def test_labels_below_a_half_turn_the_preference_round() -> None:
    assert train(toy_base(), some_rows(p=0.1)).report.margin < -1


@pytest.mark.filterwarnings("ignore::FutureWarning")  # what TRL's own defaults cause in transformers
def test_hard_labels_are_the_training_of_plain_trl(tmp_path: Path) -> None:
    rows, config = some_rows(), {"micro_batch": 4, "beta": 0.3, "learning_rate": 1e-3}
    ours, theirs = toy_base(), toy_base()
    result = train(ours, rows, **config)
    learned, _ = split_by_prompt(pairs_from_rows(rows), 0.25, seed=0)
    ids = {pair.id for pair in learned}
    model = peft.get_peft_model(
        theirs.model, peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    start = toy_base()
    start.add_adapter(
        "policy", LoraSettings(rank=4, alpha=8.0), seed=seed_from(0, "adapter", "policy") % (1 << 31)
    )
    peft.set_peft_model_state_dict(model, start.adapter_state("policy"))
    columns = ("prompt", "chosen", "rejected")
    trainer = DPOTrainer(
        model=model,
        processing_class=theirs.tokenizer,
        train_dataset=Dataset.from_list(
            [{name: row[name] for name in columns} for row in rows if row["id"] in ids]
        ),
        args=TrlConfig(
            output_dir=str(tmp_path),
            seed=seed_from(0, "dpo") % (1 << 31),
            num_train_epochs=4,
            learning_rate=1e-3,
            beta=0.3,
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
    assert [step.loss for step in result.steps] == pytest.approx(losses, rel=2e-3)
    state = peft.get_peft_model_state_dict(trainer.model)
    for name, weight in ours.adapter_state("policy").items():
        torch.testing.assert_close(weight, state[name], atol=2e-4, rtol=1e-2)


def test_the_same_seed_gives_the_same_bytes() -> None:
    one, two = toy_base(), toy_base()
    results = [train(base, some_rows(p=0.9), epochs=1) for base in (one, two)]
    assert results[0] == results[1]
    assert all(
        torch.equal(a, b) for a, b in zip(one.trainable("policy"), two.trainable("policy"), strict=True)
    )


def test_how_the_work_is_cut_up_changes_rounding_only() -> None:
    plain, other = toy_base(), toy_base()
    train(plain, some_rows(), epochs=1, learning_rate=1e-3)
    train(other, some_rows(), epochs=1, learning_rate=1e-3, micro_batch=4, gradient_checkpointing=True)
    for one, two in zip(plain.trainable("policy"), other.trainable("policy"), strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-3)


def test_rows_of_no_weight_teach_nothing() -> None:
    wrong = [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"], "weight": 0.0} for row in some_rows()
    ]
    one, two = toy_base(), toy_base()
    train(one, some_rows(), epochs=1)
    assert train(two, [*some_rows(), *wrong], epochs=1).report.pairs == 12
    assert all(
        torch.equal(a, b) for a, b in zip(one.trainable("policy"), two.trainable("policy"), strict=True)
    )


def test_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match="no pairs to learn from"):
        train(toy_base(), [])
    with pytest.raises(DataError, match="all 16 labels are ½"):
        train(toy_base(), some_rows(p=0.5))
    with pytest.raises(DataError, match="16 of 16 pairs are longer than 9 tokens"):
        train(toy_base(), some_rows(), max_tokens=9)
    with pytest.raises(DataError, match="preferences on 2 prompts are too few"):
        train(toy_base(), some_rows(2))


def test_pairs_that_are_too_long_are_counted() -> None:
    rows = some_rows()
    rows[3]["rejected"] = [{"role": "assistant", "content": "b" * 200}]
    report = train(toy_base(), rows, epochs=1, max_overlong=0.1).report
    assert (report.overlong, report.pairs + report.held_out_pairs) == (1, 15)


def test_an_adapter_that_is_there_is_not_overwritten() -> None:
    base = toy_base()
    train(base, some_rows(), epochs=1)
    with pytest.raises(ModelError, match="the name is taken"):
        train(base, some_rows(), epochs=1)
