"""Policies that are trained further, and sampled from: adapters by the names of their stages, and by their folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from spine import call, rows
from tiny import save_tiny

from rlaif.config import parse_recipe
from rlaif.engines.base import GenerationRequest, Sampling
from rlaif.errors import ConfigError, DataError, ModelError
from rlaif.models.load import load_engine
from rlaif.models.open import open_engine
from rlaif.models.role_engine import resident_base
from rlaif.models.shared_base import REFERENCE, LoraSettings
from rlaif.models.start import PREVIOUS, Start, begin_adapter
from rlaif.pipeline.run import RunResult, run_recipe
from rlaif.types import Message

pytestmark = pytest.mark.usefixtures("one_thread")
REWARD = {"long": {"kind": "function", "function": "toy_policy:letters"}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    save_tiny(folder / "model")
    (folder / "prompts.txt").write_text("\n".join(f"say thing {at}" for at in range(8)), "utf-8")
    return folder


def run(place: Path, *stages: dict[str, Any], out: str) -> RunResult:
    common = {"prompts": str(place / "prompts.txt"), "max_new_tokens": 4}
    recipe = {
        "name": "start",
        "model": str(place / "model"),
        "dtype": "float32",
        "allow_prompt_overlap": True,
        "stages": [stage if stage["stage"] == "merge" else common | stage for stage in stages],
    }
    return run_recipe(parse_recipe(json.dumps(recipe), source="test"), out=place / out)


def ppo(**settings: Any) -> dict[str, Any]:
    return {
        "stage": "ppo",
        "steps": 2,
        "episodes": 4,
        "lora_rank": 2,
        "learning_rate": 1e-2,
        "reward": REWARD,
        **settings,
    }


@pytest.fixture(scope="module")
def first(place: Path) -> Path:
    run(place, ppo(), out="first")
    return place / "first/ppo"


def kl(folder: Path) -> list[float]:
    return [row["kl"] for row in rows(folder / "metrics.jsonl")]


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "adapter/adapter_model.safetensors")


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
@pytest.mark.parametrize("reference", ["first", "previous"])
def test_a_policy_is_trained_further(place: Path, first: Path, kind: str, reference: str) -> None:
    still = ppo(stage=kind, samples_per_prompt=2, policy=str(first), reference=reference, learning_rate=1e-9)
    out = f"{kind}-{reference}"
    run(place, still, out=out)
    before, after = weights(first), weights(place / out / kind)
    assert all(after[name].allclose(tensor, atol=1e-6) for name, tensor in before.items())
    (start, *_) = kl(place / out / kind)
    assert start == pytest.approx(0, abs=1e-4) if reference == "previous" else start > 1e-3


def test_what_training_took_is_told_from_the_start_policy_on(place: Path, first: Path) -> None:
    run(place, ppo(policy=str(first)), out="further")
    before, whole = (
        json.loads((folder / "cost.json").read_text("utf-8")) for folder in (first, place / "further/ppo")
    )
    own = rows(place / "further/ppo/metrics.jsonl")
    for name, key in (("tokens", "tokens"), ("flops", "flops")):
        assert whole[name] == before[name] + sum(step[key] for step in own)
    assert whole["curve"][0]["tokens"] == before["tokens"]
    assert whole["curve"][0]["seconds"] == before["seconds"] > 0
    assert whole["seconds"] > before["seconds"]
    shutil.copytree(first / "adapter", place / "alone/adapter")
    run(place, ppo(policy=str(place / "alone/adapter")), out="further-alone")
    unknown = json.loads((place / "further-alone/ppo/cost.json").read_text("utf-8"))
    assert unknown["tokens"] == sum(step["tokens"] for step in own)
    assert unknown["curve"] == []


def test_best_of_k_and_dpo_go_on_from_a_policy(place: Path, first: Path) -> None:
    pairs = place / "pairs.jsonl"
    pairs.write_text(
        "".join(
            f'{{"prompt": "say {at}", "chosen": "yes {at}", "rejected": "no {at}"}}\n' for at in range(8)
        ),
        "utf-8",
    )
    result = run(
        place,
        {
            "stage": "best_of_k",
            "k": 2,
            "lora_rank": 2,
            "reward": REWARD,
            "missing_eos_penalty": 0,
            "policy": str(first),
            "reference": "previous",
            "learning_rate": 1e-9,
        },
        {"stage": "sample", "k": 1, "policy": "best-of-k", "limit": 2, "split": "all"},
        out="chain",
    )
    before, after = weights(first), weights(place / "chain/best-of-k")
    assert all(after[name].allclose(tensor, atol=1e-6) for name, tensor in before.items())
    report = json.loads((place / "chain/best-of-k/report.json").read_text("utf-8"))
    assert report["student"]["kl"] == pytest.approx(0, abs=1e-4)
    assert result.stages[1].manifest.models["policy"].startswith(str(place / "chain/best-of-k/adapter@"))
    said = call(
        *("dpo", "--preferences", pairs, "--model", place / "model", "--dtype", "float32"),
        *("--policy", first, "--out", place / "dpo", "--set", "lora_rank=2", "--set", "reference=previous"),
        *("--set", "learning_rate=1e-9"),
    )
    assert said.status == 0, said.err
    report = json.loads((place / "dpo/dpo/report.json").read_text("utf-8"))
    assert report["chosen_shift"] == pytest.approx(0, abs=1e-4)
    for folder in ("chain/best-of-k", "dpo/dpo"):
        took = json.loads((place / folder / "cost.json").read_text("utf-8"))
        assert took["seconds"] > json.loads((first / "cost.json").read_text("utf-8"))["seconds"]


def test_it_is_sampled_from_by_its_folder_on_the_base_that_others_use(place: Path, first: Path) -> None:
    base = load_engine(str(place / "model"), dtype="float32")
    policy = open_engine(str(first), resident=lambda name: base)
    request = GenerationRequest((Message("user", "say thing 1"),), Sampling(max_new_tokens=6), seed=3)

    def said(engine: Any) -> str:
        (batch,) = engine.generate([request])
        return str(batch[0].text)

    plain = said(base)
    assert said(policy) != plain
    assert said(base) == plain
    assert resident_base(base).active == REFERENCE
    assert policy.card.revision != base.card.revision


def test_a_moved_policy_is_the_same_and_a_changed_one_is_not(place: Path, first: Path) -> None:
    stage = {"stage": "sample", "k": 1, "split": "all", "limit": 2}
    asked = run(place, stage | {"policy": str(first)}, out="sampled").asked
    assert asked == 2
    shutil.copytree(first / "adapter", place / "moved")
    assert run(place, stage | {"policy": str(place / "moved")}, out="sampled-moved").asked == 0
    assert run(place, stage, out="sampled-plain").asked == 2


def test_an_earlier_training_leaves_no_reference_behind(place: Path, first: Path, tmp_path: Path) -> None:
    base = resident_base(load_engine(str(place / "model"), dtype="float32"))
    lora = LoraSettings(rank=2)
    for number in range(2):
        folder = first / "adapter"
        if number:
            base.add_adapter("other", lora, seed=1)
            base.save_adapter("other", tmp_path / "other")
            folder = tmp_path / "other"
        assert begin_adapter(base, "policy", lora, seed=0, start=Start(folder, held=True)) == PREVIOUS
        base.save_adapter(PREVIOUS, tmp_path / f"held-{number}")
        base.drop_adapter("policy")
    held = load_file(tmp_path / "held-1/adapter_model.safetensors")
    own = load_file(tmp_path / "other/adapter_model.safetensors")
    assert all(tensor.equal(own[name]) for name, tensor in held.items())


def test_what_cannot_be_started_from_is_refused(place: Path, first: Path) -> None:
    with pytest.raises(DataError, match="there is no adapter"):
        run(place, ppo(policy=str(place / "nowhere")), out="no")
    with pytest.raises(ConfigError, match="starts from 'late', which does not come before it"):
        run(place, ppo(policy="late"), ppo(name="late"), out="no")
    with pytest.raises(ModelError, match="adapter of rank 2, the settings ask for 4"):
        run(place, ppo(policy=str(first), lora_rank=4), out="rank")
    with pytest.raises(ModelError, match="adapter of alpha 32, the settings ask for 8"):
        run(place, ppo(policy=str(first), lora_alpha=8), out="alpha")
    shutil.copytree(first / "adapter", place / "embeds")
    whole = load_file(place / "embeds/adapter_model.safetensors")
    whole["base_model.model.model.embed_tokens.base_layer.weight"] = torch.zeros(2, 2)
    save_file(whole, place / "embeds/adapter_model.safetensors")
    with pytest.raises(ModelError, match="holds weights of the model itself beside its own") as told:
        run(place, ppo(policy=str(place / "embeds")), out="embeds-run")
    assert "merge it into its base" in told.value.remedy
    with pytest.raises(ConfigError, match="reference acts with `policy` only"):
        run(place, ppo(reference="previous"), out="no")


def test_a_merged_policy_answers_as_its_adapter_does(place: Path, first: Path) -> None:
    sample = {"stage": "sample", "k": 1, "split": "all", "limit": 3, "temperature": 0}
    run(
        place,
        ppo(),
        {"stage": "merge", "input": "ppo"},
        sample | {"name": "whole", "policy": "merge"},
        sample | {"name": "adapted", "policy": "ppo"},
        out="merging",
    )
    texts = [
        [row["completion"] for row in rows(place / "merging" / name / "completions.jsonl")]
        for name in ("whole", "adapted")
    ]
    assert texts[0] == texts[1]
    said = call("merge", first, "--dtype", "float32", "--out", place / "full", "--dry-run")
    assert said.status == 0, said.err
    assert not (place / "full").exists()
    said = call("merge", first, "--dtype", "float32", "--out", place / "full")
    assert said.status == 0, said.err
    assert (place / "full/merge/model/config.json").is_file()
    with pytest.raises(ConfigError, match="leaves a full model"):
        run(place, ppo(), {"stage": "merge", "input": "ppo"}, ppo(name="next", policy="merge"), out="no")
    with pytest.raises(DataError, match="there is no adapter"):
        run(place, {"stage": "merge", "input": str(place / "model")}, out="no")
