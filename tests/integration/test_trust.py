"""`rlaif label` and what is known of its judge: the audit's line, --require-audit, --calibration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlaif.config import LabelConfig, Recipe, SampleConfig
from rlaif.constitution import load_constitution
from rlaif.engines.scripted import ScriptedEngine
from rlaif.errors import ConfigError, JudgingError
from rlaif.pipeline.auditing import AuditSettings, run_audit
from rlaif.pipeline.run import run_recipe
from rlaif.progress import Silent
from rlaif.prompts import PromptLibrary


class Heard(Silent):
    """Keeps the remarks."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def recipe(**label: Any) -> Recipe:
    stages = (SampleConfig(limit=3, k=2), LabelConfig(protocol="pointwise", principles="all", **label))
    return Recipe(name="trust", model="scripted", constitution="warmth", stages=stages)


def calibration(path: Path, **changes: Any) -> str:
    """A calibration that halves log-odds, for the scripted judge under `warmth`."""
    values = {
        "method": "temperature", "slope": 0.5, "intercept": 0.0, "rows": 10, "nll_before": 0.7, "nll_after": 0.6,
        "judge_revision": ScriptedEngine().card.revision, "constitution_digest": load_constitution("warmth").digest,
        "template_digest": PromptLibrary().digest("judge_pointwise"), "protocol": "pointwise", "principles": "all", **changes,
    }
    path.write_text(json.dumps(values), encoding="utf-8")
    return str(path)


def margins(folder: Path) -> dict[str, float]:
    lines = (folder / "label" / "preferences.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: row["margin"] for row in map(json.loads, lines)}


def test_without_an_audit_labelling_says_so_and_can_be_refused(tmp_path: Path) -> None:
    heard = Heard()
    run_recipe(recipe(), out=tmp_path / "run", progress=heard)
    assert any("was not audited" in note and "rlaif audit --judge scripted" in note for note in heard.notes)
    with pytest.raises(JudgingError, match="there is no audit of this judge"):
        run_recipe(recipe(require_audit=True), out=tmp_path / "refused")


def test_an_audit_is_found_and_a_bad_one_refuses(tmp_path: Path) -> None:
    settings = AuditSettings(
        judge="scripted", constitution="warmth", protocol="pointwise", out=tmp_path / "audits", journal=tmp_path / "journal.sqlite",
    )
    run_audit(settings, Silent())
    heard = Heard()
    run_recipe(recipe(), out=tmp_path / "run", progress=heard)
    assert any(str(tmp_path / "audits") in note for note in heard.notes)
    with pytest.raises(JudgingError, match="the audit says"):  # a judge that draws its answers by hash is no judge
        run_recipe(recipe(require_audit=True), out=tmp_path / "refused")


def test_a_calibration_scales_labels_and_leaves_verdicts(tmp_path: Path) -> None:
    plain = run_recipe(recipe(), out=tmp_path / "plain")
    scaled = run_recipe(recipe(calibration=calibration(tmp_path / "c.json")), out=tmp_path / "scaled")
    before, after = margins(plain.folder), margins(scaled.folder)
    assert before
    assert {id: after[id] for id in before} == pytest.approx({id: margin / 2 for id, margin in before.items()}, abs=2e-6)
    verdicts = [(each.folder / "label" / "verdicts.jsonl").read_bytes() for each in (plain, scaled)]
    assert verdicts[0] == verdicts[1]


def test_a_calibration_of_another_judge_is_refused(tmp_path: Path) -> None:
    path = calibration(tmp_path / "c.json", judge_revision="other", principles="sample")
    with pytest.raises(ConfigError, match="fitted for another judge revision, principles"):
        run_recipe(recipe(calibration=path), out=tmp_path / "run")
