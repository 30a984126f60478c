"""What `rlaif label` and `rlaif revise` write goes into TRL's trainers unchanged: one step of each on a tiny
model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from spine import call
from tiny import save_tiny
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

# TRL itself still uses names that transformers is about to drop.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(
        "ignore:.*gradient_checkpointing.* is deprecated and will be:FutureWarning:transformers"
    ),
]
COMMON: dict[str, Any] = {
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "disable_tqdm": True,
    "learning_rate": 1e-3,
    "max_length": 256,
    "seed": 0,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model"), sharpness=1.0))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with preferences, as JSONL and Parquet, and data for SFT."""
    out = tmp_path_factory.mktemp("runs")
    common = ("--model", "scripted", "--prompts", "builtin:everyday", "--max-new-tokens", 12)
    for name, *arguments in (
        ("jsonl", "label", "--limit", 4, "--k", 3),
        ("parquet", "label", "--limit", 4, "--k", 3, "--format", "parquet"),
        ("sft", "revise", "--limit", 4, "--rounds", 2),
    ):
        said = call(*arguments, *common, "--out", out / name)
        assert said.status == 0, said.err
    return out


def opened(path: Path, cache: Path) -> Any:
    """The file, as any user of `datasets` opens it."""
    kind = "parquet" if path.suffix == ".parquet" else "json"
    return datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(cache))


def trained(trainer: Any) -> float:
    """Train one step; the loss. The weights must have moved."""
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    loss = float(trainer.train().training_loss)
    assert any(not torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())
    return loss


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_dpo_takes_the_preferences_as_they_are(form: str, tiny: str, files: Path, tmp_path: Path) -> None:
    data = opened(files / form / "label" / f"preferences.{form}", tmp_path)
    assert len(data) == 12
    trainer = DPOTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32),
        train_dataset=data,
        processing_class=transformers.AutoTokenizer.from_pretrained(tiny),
        args=DPOConfig(output_dir=str(tmp_path / "out"), **COMMON),
    )
    # Log 2: policy and reference are the same at the first step.
    assert trained(trainer) == pytest.approx(0.693, abs=0.01)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_the_reward_trainer_takes_the_preferences_as_they_are(
    form: str, tiny: str, files: Path, tmp_path: Path
) -> None:
    data = opened(files / form / "label" / f"preferences.{form}", tmp_path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tiny, num_labels=1, dtype=torch.float32
    )
    trainer = RewardTrainer(
        model=model,
        train_dataset=data,
        processing_class=transformers.AutoTokenizer.from_pretrained(tiny),
        args=RewardConfig(output_dir=str(tmp_path / "out"), **COMMON),
    )
    assert 0 < trained(trainer) < 3


def test_sft_takes_the_revisions_as_they_are(tiny: str, files: Path, tmp_path: Path) -> None:
    data = opened(files / "sft" / "revise" / "sft.jsonl", tmp_path)
    assert len(data) == 8
    trainer = SFTTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32),
        train_dataset=data,
        processing_class=transformers.AutoTokenizer.from_pretrained(tiny),
        args=SFTConfig(output_dir=str(tmp_path / "out"), **COMMON),
    )
    assert trained(trainer) > 1


def the_loss(kind: str, data: Any, tiny: str, folder: Path) -> float:
    """One step of a trainer of TRL; the same start for the same data."""
    tokenizer, common = (
        transformers.AutoTokenizer.from_pretrained(tiny),
        {"output_dir": str(folder), **COMMON},
    )
    transformers.set_seed(0)
    if kind == "reward":
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            tiny, num_labels=1, dtype=torch.float32
        )
        return trained(
            RewardTrainer(
                model=model, train_dataset=data, processing_class=tokenizer, args=RewardConfig(**common)
            )
        )
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    if kind == "dpo":
        return trained(
            DPOTrainer(model=model, train_dataset=data, processing_class=tokenizer, args=DPOConfig(**common))
        )
    return trained(
        SFTTrainer(model=model, train_dataset=data, processing_class=tokenizer, args=SFTConfig(**common))
    )


@pytest.mark.parametrize(
    ("kind", "file", "columns"),
    [
        ("reward", "jsonl/label/preferences.jsonl", ["prompt", "chosen", "rejected"]),
        ("dpo", "jsonl/label/preferences.jsonl", ["prompt", "chosen", "rejected"]),
        ("sft", "sft/revise/sft.jsonl", ["prompt", "completion"]),
    ],
)
def test_no_column_of_ours_changes_what_trl_learns(
    kind: str, file: str, columns: list[str], tiny: str, files: Path, tmp_path: Path
) -> None:
    """TRL's `RewardTrainer` takes a column `margin` as Llama 2's margin, which version 0.1.0 wrote."""
    data = opened(files / file, tmp_path)
    assert not {"margin", "ref_chosen_logps", "tools", "images", "completion_mask"} & set(data.column_names)
    alone = the_loss(kind, data.select_columns(columns), tiny, tmp_path / "alone")
    assert the_loss(kind, data, tiny, tmp_path / "all") == pytest.approx(alone, abs=1e-6)
