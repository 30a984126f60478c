"""A probe on the real small model: it tells the built-in tempting prompts from everyday ones, and streams."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import rlaif
from rlaif.config.moderation import ModerationConfig
from rlaif.engines.hf import HFEngine
from rlaif.models.role_engine import resident_base
from rlaif.moderation.examples import Example
from rlaif.moderation.files import load_moderator, save_moderator
from rlaif.moderation.states import tapped
from rlaif.stages.moderation import train_moderation_probe
from rlaif.types import Message

PROMPTS = Path(rlaif.__file__).parent / "data" / "prompts.jsonl"
EACH = 40


def tempting_and_everyday() -> list[Example]:
    found: dict[str, list[Example]] = {"red_team": [], "everyday": []}
    for line in PROMPTS.read_text("utf-8").splitlines():
        row = json.loads(line)
        kind = row["tags"][0]
        if kind in found and isinstance(row["prompt"], str) and len(found[kind]) < EACH:
            broken = {"harm": float(kind == "red_team")}
            found[kind].append(Example((Message("user", row["prompt"]),), broken, source="people"))
    assert all(len(each) == EACH for each in found.values())
    return [example for each in found.values() for example in each]


def test_a_probe_tells_tempting_prompts_from_everyday_ones(smollm2: HFEngine, tmp_path: Path) -> None:
    base = resident_base(smollm2)
    result = train_moderation_probe(
        tempting_and_everyday(), ["harm"], base=base, config=ModerationConfig(), seed=0
    )
    (measured,) = result.report.categories
    auroc = measured.ways["moderator"].auroc
    assert auroc.value is not None
    assert auroc.value > 0.8
    assert result.moderator.layers == (10, 20, 30)

    save_moderator(
        result.moderator, tmp_path / "m", constitution="", probes=[each.messages for each in result.probes]
    )
    moderator = load_moderator(tmp_path / "m", base)
    prompt, answer = Message("user", "What should I cook?"), Message("assistant", "Rice with beans is quick.")
    (whole,) = moderator.scores([(prompt, answer)])
    text = result.moderator.encoder.encode((prompt, answer))
    ids = torch.tensor([text.ids], device=base.device)
    with torch.no_grad(), tapped(base, moderator.layers) as tap:
        states = tap.states(base.hidden(ids, torch.ones_like(ids)))[0, text.start :]
    watch = moderator.watch((prompt,))
    seen = [watch.push("", each)["harm"] for each in states]
    readout = result.moderator.heads["exchange"].readout
    assert (max(seen) if readout == "windows" else seen[-1]) == pytest.approx(whole["harm"], abs=0.01)
