"""`rlaif label` and what is known of its judge: the audit's line, --require-audit, --calibration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from judges import constitution
from spine import call

from rlaif.config import AuditConfig, LabelConfig, Recipe, SampleConfig
from rlaif.constitution.load import load_constitution, to_yaml
from rlaif.engines.scripted import ScriptedEngine
from rlaif.errors import ConfigError, DataError, JudgingError
from rlaif.pipeline.audit import AuditSettings, run_audit
from rlaif.pipeline.dry_run import plan_recipe
from rlaif.pipeline.run import run_recipe
from rlaif.progress import NoProgress
from rlaif.prompts import PromptLibrary


class Heard(NoProgress):
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
        "method": "temperature",
        "slope": 0.5,
        "intercept": 0.0,
        "rows": 10,
        "nll_before": 0.7,
        "nll_after": 0.6,
        "judge_revision": ScriptedEngine().card.revision,
        "constitution_digest": load_constitution("warmth").digest,
        "template_digest": PromptLibrary().digest("judge_pointwise"),
        "protocol": "pointwise",
        "principles": "all",
        **changes,
    }
    path.write_text(json.dumps(values), encoding="utf-8")
    return str(path)


def margins(folder: Path) -> dict[str, float]:
    lines = (folder / "label" / "preferences.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: row["log_odds"] for row in map(json.loads, lines)}


def test_without_an_audit_labelling_says_so_and_can_be_refused(tmp_path: Path) -> None:
    heard = Heard()
    run_recipe(recipe(audit=False), out=tmp_path / "run", progress=heard)
    assert any("was not audited" in note and "rlaif audit --judge scripted" in note for note in heard.notes)
    with pytest.raises(JudgingError, match="there is no audit of this judge"):
        run_recipe(recipe(require_audit=True), out=tmp_path / "refused")


def test_an_audit_is_found_and_a_bad_one_refuses(tmp_path: Path) -> None:
    settings = AuditSettings(
        judge="scripted",
        constitution="warmth",
        protocol="pointwise",
        out=tmp_path / "audits",
        journal=tmp_path / "journal.sqlite",
    )
    run_audit(settings, NoProgress())
    heard = Heard()
    run_recipe(recipe(), out=tmp_path / "run", progress=heard)
    assert any(str(tmp_path / "audits") in note for note in heard.notes)
    # A judge that draws its answers by hash is no judge.
    with pytest.raises(JudgingError, match="the audit says"):
        run_recipe(recipe(require_audit=True), out=tmp_path / "refused")


def audited(
    *, data: str | None = None, judge: str = "scripted", rules: str = "warmth", **label: Any
) -> Recipe:
    """A recipe that audits its judge first, on a few probes or on `data`."""
    label = {"protocol": "pointwise", "principles": "all", "judge": judge, **label}
    stages = (
        AuditConfig(data=data, probes="none" if data else "on-topic", variants=2),
        SampleConfig(limit=3, k=2),
        LabelConfig.model_validate(label),
    )
    return Recipe(name="trust", model="scripted", constitution=rules, stages=stages)


def test_a_recipe_audits_its_judge_as_its_label_stage_asks_it(tmp_path: Path) -> None:
    heard = Heard()
    first = run_recipe(audited(), out=tmp_path / "run", progress=heard)
    audit, _, labelled = first.stages
    assert (audit.manifest.parts["protocol"], audit.manifest.parts["principles"]) == ("pointwise", "all")
    assert audit.manifest.counts == {
        "pairs": 0,
        "labelled_pairs": 0,
        "probes": 20,
        "verdicts": 60,
        "invalid_verdicts": 0,
    }
    report = json.loads((audit.folder / "audit.json").read_text(encoding="utf-8"))
    assert (
        (tmp_path / "run" / "audit" / "audit.md")
        .read_text(encoding="utf-8")
        .startswith("# Audit of scripted")
    )
    assert (audit.folder / "samples.md").read_text(encoding="utf-8").startswith("# Audited comparisons")
    line = f"warning: audit (pointwise): {report['protocols'][0]['judgement']['words']}"
    assert heard.notes.count(line) == 1
    assert f"{line} ({audit.folder / 'audit.json'})" in heard.notes
    again = run_recipe(audited(), out=tmp_path / "run")
    assert all(stage.skipped for stage in again.stages)
    other = run_recipe(audited(principles="sample"), out=tmp_path / "run")
    assert [stage.skipped for stage in other.stages] == [False, True, False]
    assert labelled.manifest.key != other.stages[2].manifest.key


def test_an_audit_stage_satisfies_or_refuses(tmp_path: Path) -> None:
    with pytest.raises(JudgingError, match="the audit says: audit \\(pointwise\\): do not label"):
        run_recipe(audited(require_audit=True), out=tmp_path / "refused")
    assert (tmp_path / "refused" / "audit" / "audit.json").is_file()  # the report stays, to be read
    rules, data = tmp_path / "rules.yaml", tmp_path / "pairs.jsonl"
    rules.write_text(to_yaml(constitution("kind")), encoding="utf-8")
    rows = [
        {"prompt": f"Q{number}?", "chosen": f"q1 {number}", "rejected": f"q0 {number}"}
        for number in range(110)
    ]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    good = audited(data=str(data), judge="scripted:judges:reader", rules=str(rules), require_audit=True)
    result = run_recipe(good, out=tmp_path / "good")
    assert result.stages[0].manifest.counts["labelled_pairs"] == 110
    assert result.stages[2].manifest.counts["comparisons"] == 3


def test_an_audit_that_cannot_be_done_is_told_before_anything_runs(tmp_path: Path) -> None:
    nothing = Recipe(
        name="none", model="scripted", constitution="warmth", stages=(AuditConfig(probes="none"),)
    )
    with pytest.raises(DataError, match="nothing to audit on"):
        run_recipe(nothing, out=tmp_path / "none")
    missing = audited(data=str(tmp_path / "missing.jsonl"))
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        run_recipe(missing, out=tmp_path / "missing")
    assert not (tmp_path / "missing" / "audit").exists()


def test_a_dry_run_counts_the_questions_of_an_audit() -> None:
    stage = plan_recipe(audited()).stages[0]
    assert stage.counts == {"comparisons": 0, "probes": 20, "questions": 20 * 3 * 2 + 3 * 2 * 2}
    assert stage.read > stage.counts["questions"] * 20
    assert stage.seconds is None  # a scripted judge


def test_the_summary_of_a_run_shows_the_audit(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: scripted\nconstitution: warmth\nstages: [{stage: audit, protocol: both, probes: on-topic, "
        "variants: 0}]\n"
    )
    said = call("run", path, "--out", tmp_path / "run")
    assert said.status == 0, said.err
    assert "audit  0 pairs" in said.out
    assert all(f"audit ({protocol}): " in said.out for protocol in ("pairwise", "pointwise"))
    assert f"audit: {tmp_path / 'run' / 'audit' / 'audit.json'}, " in said.out


def test_a_calibration_scales_labels_and_leaves_verdicts(tmp_path: Path) -> None:
    plain = run_recipe(recipe(), out=tmp_path / "plain")
    scaled = run_recipe(recipe(calibration=calibration(tmp_path / "c.json")), out=tmp_path / "scaled")
    before, after = margins(plain.folder), margins(scaled.folder)
    assert before
    assert {id: after[id] for id in before} == pytest.approx(
        {id: margin / 2 for id, margin in before.items()}, abs=2e-6
    )
    verdicts = [(each.folder / "label" / "verdicts.jsonl").read_bytes() for each in (plain, scaled)]
    assert verdicts[0] == verdicts[1]


def test_a_calibration_of_another_judge_is_refused(tmp_path: Path) -> None:
    path = calibration(tmp_path / "c.json", judge_revision="other", principles="sample")
    with pytest.raises(ConfigError, match="fitted for another judge revision, principles"):
        run_recipe(recipe(calibration=path), out=tmp_path / "run")


@pytest.mark.parametrize("stages", ["label", "audit, label"])
def test_probes_are_answered_with_as_many_reasonings_as_labels(stages: str, tmp_path: Path) -> None:
    label = LabelConfig(protocol="cot", reasonings=3, reasoning_tokens=20)
    before = (AuditConfig(probes="on-topic", variants=0),) if "audit" in stages else ()
    asked = Recipe(
        name="reasons",
        model="scripted",
        constitution="default",
        stages=(*before, SampleConfig(limit=1, k=2), label),
    )
    plans = {stage.name: stage for stage in plan_recipe(asked).stages}
    questions = {name: plans[name].counts["questions"] for name in ("label", *(["audit"] if before else []))}
    assert {name: plans[name].write for name in questions} == {
        name: count * 3 * 20 for name, count in questions.items()
    }
    done = run_recipe(asked, out=tmp_path / "run")
    # Each question: three reasonings, and the label behind each; and two completions were sampled.
    assert done.asked == sum(questions.values()) * 3 * 2 + 2
    if before:
        assert done.stages[0].manifest.parts["writing"] == "20 tokens, 3 times"
