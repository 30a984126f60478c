"""Label, sample and revise from end to end: the files they leave, that everything adds up, and what a change
asks again."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml
from spine import call, rows

from rlaif.config import parse_recipe
from rlaif.constitution.load import load_constitution
from rlaif.errors import DataError, JudgingError
from rlaif.pipeline.dry_run import plan_recipe
from rlaif.pipeline.run import RunResult, run_recipe

MODEL = "scripted:spine:swift"
COLUMNS = {
    "id",
    "prompt_id",
    "prompt",
    "chosen",
    "rejected",
    "p_chosen",
    "log_odds",
    "chosen_id",
    "rejected_id",
    "verdicts",
    "chosen_policy",
    "rejected_policy",
    "tags",
    "protocol",
    "judge",
    "constitution",
    "constitution_digest",
    "template_digest",
    "audit",
    "seed",
}
LABEL = """
name: label
constitution: {constitution}
model: scripted:spine:swift
seed: {seed}
stages:
  - {{stage: sample, limit: 6, k: 4}}
  - {{stage: label, principles: {principles}}}
"""
SPOILT = """
from rlaif.engines.scripted import ScriptedEngine, pseudo_labels

def make():
    return ScriptedEngine(labels=labels)

def labels(request):
    return [float("nan")] * 2 if "upright" in request.messages[1].content else pseudo_labels(request)
"""


def run(
    out: Path,
    *overrides: str,
    constitution: object = "default",
    principles: str = "all",
    seed: int = 0,
    text: str = LABEL,
) -> RunResult:
    filled = text.format(constitution=constitution, principles=principles, seed=seed)
    return run_recipe(
        parse_recipe(filled, source="test", overrides=overrides), out=out, command=["rlaif", "run"]
    )


def rules(path: Path, *comparisons: str) -> Path:
    """A constitution with one principle per question."""
    principles = [{"id": f"p{number}", "comparison": text} for number, text in enumerate(comparisons)]
    path.write_text(yaml.safe_dump({"principles": principles}), encoding="utf-8")
    return path


def said(run: RunResult) -> tuple[int, int]:
    return run.asked, run.reused


def labels(out: Path) -> list[dict[str, Any]]:
    return rows(out / "label" / "preferences.jsonl")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `rlaif label` left."""
    out = tmp_path_factory.mktemp("runs") / "label"
    said = call(
        "label",
        "--model",
        MODEL,
        "--principles",
        "all",
        "--limit",
        6,
        "--k",
        4,
        "--max-new-tokens",
        12,
        "--out",
        out,
    )
    assert said.status == 0, said.err
    return out


# What label leaves ------------------------------------------------------------------------------------------


def test_label_leaves_all_its_files_and_no_others(labelled: Path) -> None:
    files = sorted(
        path.relative_to(labelled).as_posix()
        for path in labelled.rglob("*")
        if path.is_file() and path.name != ".lock"
    )
    assert files == [
        "label/manifest.json",
        "label/preferences.jsonl",
        "label/samples.md",
        "label/statistics.json",
        "label/unlabelled.jsonl",
        "label/verdicts.jsonl",
        "recipe.yaml",
        "report.html",
        "run.json",
        "sample/completions.jsonl",
        "sample/manifest.json",
        "sample/samples.md",
    ]
    assert (labelled.parent / "rlaif-journal.sqlite").exists()


def test_every_preference_has_the_columns_and_their_meaning(labelled: Path) -> None:
    texts = {
        row["id"]: row["completion"][0]["content"] for row in rows(labelled / "sample" / "completions.jsonl")
    }
    constitution = load_constitution("default")
    assert len(labels(labelled)) == 36
    for row in labels(labelled):
        assert set(row) == COLUMNS
        assert row["prompt"][-1]["role"] == "user"
        for side in ("chosen", "rejected"):
            assert row[side] == [{"role": "assistant", "content": texts[row[f"{side}_id"]]}]
            assert row[f"{side}_policy"] == "told@1"
        assert 0.5 <= row["p_chosen"] <= 1
        assert row["log_odds"] >= 0
        assert len(row["verdicts"]) == 2 * len(constitution.principles)
        assert {verdict["order"] for verdict in row["verdicts"]} == {"chosen_first", "rejected_first"}
        assert (row["judge"], row["constitution_digest"], row["seed"]) == ("told@1", constitution.digest, 0)


def test_the_counts_add_up(labelled: Path) -> None:
    manifest = json.loads((labelled / "label" / "manifest.json").read_text(encoding="utf-8"))
    counts = manifest["counts"]
    assert counts["completions"] == len(rows(labelled / "sample" / "completions.jsonl")) == 6 * 4
    assert (
        counts["comparisons"]
        + counts["identical_pairs"]
        + counts["pairs_not_drawn"]
        + counts["repeated_pairs"]
        == 6 * 6
    )
    assert counts["comparisons"] == counts["preferences"] + counts["unlabelled"] + counts["not_best_worst"]
    assert counts["preferences"] == manifest["outputs"]["preferences.jsonl"]["rows"] == len(labels(labelled))
    assert counts["verdicts"] == len(rows(labelled / "label" / "verdicts.jsonl"))
    assert counts["verdicts"] == counts["comparisons"] * 2 * len(load_constitution("default").principles)


def test_the_manifests_tell_files_versions_and_models(labelled: Path) -> None:
    for stage, role in (("sample", "policy"), ("label", "judge")):
        manifest = json.loads((labelled / stage / "manifest.json").read_text(encoding="utf-8"))
        assert (manifest["stage"], manifest["kind"], manifest["models"]) == (stage, stage, {role: "told@1"})
        assert {"rlaif", "python", "torch", "transformers"} <= set(manifest["versions"])
        written = {path.name for path in (labelled / stage).iterdir()} - {"manifest.json"}
        assert set(manifest["outputs"]) == written
        for name, output in manifest["outputs"].items():
            assert output["sha256"] == hashlib.sha256((labelled / stage / name).read_bytes()).hexdigest()
    assert "constitution" in manifest["parts"]


def test_the_statistics_are_those_of_the_verdicts(labelled: Path) -> None:
    statistics = json.loads((labelled / "label" / "statistics.json").read_text(encoding="utf-8"))
    verdicts = rows(labelled / "label" / "verdicts.jsonl")
    assert Counter(row["principle"] for row in verdicts) == {
        name: row["verdicts"] for name, row in statistics["principles"].items()
    }
    both: dict[tuple[str, str], list[float]] = {}
    for row in verdicts:
        both.setdefault((row["comparison_id"], row["principle"]), []).append(row["logit_a"])
    assert statistics["flip_rate"] == pytest.approx(sum(ab * ba < 0 for ab, ba in both.values()) / len(both))
    first = [(row["logit_a"] > 0) == (row["order"] == "ab") for row in verdicts]
    assert statistics["first_rate"] == pytest.approx(sum(first) / len(first))
    preferences = labels(labelled)
    strength = sum(row["p_chosen"] - 0.5 for row in preferences) / len(preferences)
    assert statistics["mean_strength"] == pytest.approx(strength, abs=1e-5)
    assert statistics["tie_rate"] == pytest.approx(
        sum(row["p_chosen"] < 0.505 for row in preferences) / len(preferences)
    )
    assert (statistics["invalid"], statistics["invalid_reasons"]) == (0, {})


def test_samples_md_is_to_be_read(labelled: Path) -> None:
    text = (labelled / "label" / "samples.md").read_text(encoding="utf-8")
    assert text.startswith("# Labelled pairs to read")
    assert text.count("## ") == 12
    assert "**chosen**" in text
    assert "| principle | order | p(chosen) |" in text


def test_the_end_tells_a_table_five_examples_and_the_file(tmp_path: Path) -> None:
    said = call("label", "--model", MODEL, "--limit", 4, "--k", 3, "--out", tmp_path / "run")
    file = str(tmp_path / "run" / "label" / "preferences.jsonl")
    for part in ("principle", "verdicts", "invalid", "flip rate", "mean strength", "ties", file):
        assert part in said.out
    assert said.out.count("p(chosen) = ") == 5


def test_the_recipe_of_a_run_does_it_again(labelled: Path, tmp_path: Path) -> None:
    again = call("run", labelled / "recipe.yaml", "--out", tmp_path / "again")
    assert again.status == 0
    assert "had an answer already" not in again.out
    for name in (
        "sample/completions.jsonl",
        "label/preferences.jsonl",
        "label/verdicts.jsonl",
        "label/samples.md",
        "recipe.yaml",
    ):
        assert (tmp_path / "again" / name).read_bytes() == (labelled / name).read_bytes()


def test_a_finished_run_has_nothing_to_do(labelled: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in labelled.glob("*/*")}
    again = call("run", labelled / "recipe.yaml", "--out", labelled)
    assert "asked 0 questions; journal" in again.out
    assert again.err.count("finished before, nothing to do") == 2
    assert {path: path.stat().st_mtime_ns for path in labelled.glob("*/*")} == before


def test_parquet_holds_the_same_rows(labelled: Path, tmp_path: Path) -> None:
    said = call(
        "run", labelled / "recipe.yaml", "--set", "stages.label.format=parquet", "--out", tmp_path / "run"
    )
    assert said.status == 0, said.err
    assert pyarrow.parquet.read_table(
        tmp_path / "run" / "label" / "preferences.parquet"
    ).to_pylist() == labels(labelled)


# What a change asks again -----------------------------------------------------------------------------------


def test_another_constitution_reuses_every_completion(tmp_path: Path) -> None:
    one, other = (
        rules(tmp_path / "one.yaml", "Which is kinder?"),
        rules(tmp_path / "other.yaml", "Which is shorter?"),
    )
    assert said(run(tmp_path / "a", constitution=one)) == (24 + 72, 0)
    swapped = run(tmp_path / "b", constitution=other)
    assert said(swapped) == (72, 24)
    assert rows(tmp_path / "a/sample/completions.jsonl") == rows(tmp_path / "b/sample/completions.jsonl")
    assert [row["id"] for row in labels(tmp_path / "a")] == [row["id"] for row in labels(tmp_path / "b")]
    assert labels(tmp_path / "a") != labels(tmp_path / "b")


def test_an_edited_principle_is_the_only_one_asked_again(tmp_path: Path) -> None:
    path = rules(tmp_path / "c.yaml", "Which is kinder?", "Which is shorter?", "Which is truer?")
    assert said(run(tmp_path / "run", constitution=path)) == (24 + 3 * 72, 0)
    rules(path, "Which is kinder?", "Which is much shorter?", "Which is truer?")
    again = run(tmp_path / "run", constitution=path)
    assert [stage.skipped for stage in again.stages] == [True, False]
    assert said(again) == (72, 2 * 72)
    assert len(list((tmp_path / "run" / "superseded").iterdir())) == 1
    rules(path, "Which is kinder?", "Which is much shorter?")
    assert said(run(tmp_path / "run", constitution=path)) == (0, 2 * 72)


def test_an_added_principle_is_asked_only_where_it_is_drawn(tmp_path: Path) -> None:
    path = rules(tmp_path / "c.yaml", "Which is kinder?", "Which is shorter?")
    run(tmp_path / "a", constitution=path, principles="sample")
    rules(path, "Which is kinder?", "Which is shorter?", "Which is truer?")
    more = run(tmp_path / "b", constitution=path, principles="sample")
    drawn = Counter(row["principle"] for row in rows(tmp_path / "b" / "label" / "verdicts.jsonl"))
    assert 0 < drawn["p2"] < 72
    assert said(more) == (drawn["p2"], 24 + 72 - drawn["p2"])


def test_comments_and_names_change_nothing(tmp_path: Path) -> None:
    path = rules(tmp_path / "c.yaml", "Which is kinder?")
    run(tmp_path / "run", constitution=path)
    path.write_text("# a remark\nname: renamed\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert [stage.skipped for stage in run(tmp_path / "run", constitution=path).stages] == [True, True]


def test_more_completions_keep_the_ones_there_are(tmp_path: Path) -> None:
    path = rules(tmp_path / "c.yaml", "Which is kinder?")
    run(tmp_path / "a", "stages.sample.k=2", constitution=path)
    more = run(tmp_path / "b", constitution=path)
    assert said(more) == (2 * 6 + 60, 2 * 6 + 12)


# Pairs ------------------------------------------------------------------------------------------------------


def test_best_against_worst_judges_all_and_keeps_one_a_prompt(labelled: Path, tmp_path: Path) -> None:
    said = call(
        "run", labelled / "recipe.yaml", "--set", "stages.label.pairs=best-worst", "--out", tmp_path / "run"
    )
    assert said.status == 0, said.err
    kept, everything = labels(tmp_path / "run"), {row["id"]: row for row in labels(labelled)}
    assert len({row["prompt_id"] for row in kept}) == len(kept) == 6
    assert all(row == everything[row["id"]] for row in kept)
    counts = json.loads((tmp_path / "run/label/manifest.json").read_text())["counts"]
    assert (counts["comparisons"], counts["preferences"], counts["not_best_worst"]) == (36, 6, 30)
    assert (tmp_path / "run/label/samples.md").read_text(encoding="utf-8").count("## ") == 6


def test_weak_labels_are_set_aside_and_counted(labelled: Path, tmp_path: Path) -> None:
    everything = labels(labelled)
    least = sorted(row["p_chosen"] for row in everything)[len(everything) // 2] - 0.5
    said = call(
        "run",
        labelled / "recipe.yaml",
        "--set",
        f"stages.label.min_strength={least}",
        "--out",
        tmp_path / "run",
    )
    assert said.status == 0, said.err
    weak = rows(tmp_path / "run/label/weak.jsonl")
    assert labels(tmp_path / "run") == [row for row in everything if row["p_chosen"] - 0.5 >= least]
    assert weak == [row for row in everything if row["p_chosen"] - 0.5 < least]
    assert weak
    manifest = json.loads((tmp_path / "run/label/manifest.json").read_text())
    assert manifest["counts"]["weak"] == len(weak)
    assert manifest["counts"]["preferences"] == len(everything) - len(weak)
    assert "weak.jsonl" in manifest["outputs"]
    assert f"{len(weak)} of {len(everything)} labels are weaker than" in said.err
    assert f"{len(weak)} too weak (weak.jsonl)" in said.out


def test_labels_that_are_all_too_weak_are_an_error(labelled: Path, tmp_path: Path) -> None:
    said = call(
        "run",
        labelled / "recipe.yaml",
        "--set",
        "stages.label.min_strength=0.4999999",
        "--out",
        tmp_path / "run",
    )
    assert said.status == 1
    assert "labels are weaker than min_strength" in said.err


def test_a_number_of_pairs_is_drawn_from_all(labelled: Path, tmp_path: Path) -> None:
    said = call("run", labelled / "recipe.yaml", "--set", "stages.label.pairs=2", "--out", tmp_path / "run")
    assert said.status == 0, said.err
    everything = {row["id"]: row for row in labels(labelled)}
    assert len(labels(tmp_path / "run")) == 12
    assert all(row == everything[row["id"]] for row in labels(tmp_path / "run"))
    assert json.loads((tmp_path / "run/label/manifest.json").read_text())["counts"]["pairs_not_drawn"] == 24


def test_your_own_pairs_are_judged_as_they_are(tmp_path: Path) -> None:
    pairs = [
        {"prompt": "One?", "chosen": "yes", "rejected": "no"},
        {"prompt": "One?", "chosen": "no", "rejected": "yes"},
        {"prompt": "One?", "chosen": "yes", "rejected": "perhaps"},
        {"prompt": "Two?", "chosen": "same", "rejected": "same "},
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in pairs), encoding="utf-8")
    said = call("label", "--model", MODEL, "--responses", tmp_path / "pairs.jsonl", "--out", tmp_path / "run")
    assert said.status == 0, said.err
    counts = json.loads((tmp_path / "run/label/manifest.json").read_text())["counts"]
    found = [{row["chosen"][0]["content"], row["rejected"][0]["content"]} for row in labels(tmp_path / "run")]
    assert found == [{"yes", "no"}, {"yes", "perhaps"}]
    assert (counts["repeated_pairs"], counts["identical_pairs"], counts["comparisons"]) == (1, 1, 2)
    assert all(len(row["verdicts"]) == 2 for row in labels(tmp_path / "run"))
    assert all(row["chosen_policy"] == "given" for row in labels(tmp_path / "run"))


def test_documents_reach_the_policy_and_the_preferences(tmp_path: Path) -> None:
    rows_ = [{"prompt": f"What is {name}?", "context": [f"{name} is a river."]} for name in ("Ob", "Po")]
    (tmp_path / "asked.json").write_text(json.dumps(rows_), encoding="utf-8")
    said = call(
        "label", "--model", MODEL, "--prompts", tmp_path / "asked.json", "--k", 2, "--out", tmp_path / "run"
    )
    assert said.status == 0, said.err
    for row in labels(tmp_path / "run"):
        assert "is a river." in row["prompt"][-1]["content"]


# Invalid verdicts -------------------------------------------------------------------------------------------


def test_too_many_invalid_verdicts_fail_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spoilt.py").write_text(SPOILT, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    path = rules(tmp_path / "c.yaml", "Which is more upright?", "Which is kinder?")
    options = ("stages.label.judge=scripted:spoilt:make",)
    with pytest.raises(
        JudgingError, match=r"72 of 144 verdicts are invalid \(50%, limit 5%\): not_finite 72"
    ):
        run(tmp_path / "run", *options, constitution=path)
    assert not (tmp_path / "run" / "label").exists()
    assert (tmp_path / "run" / "sample").is_dir()
    run(tmp_path / "run", *options, "stages.label.max_invalid=1", constitution=path)
    bad = [verdict for row in labels(tmp_path / "run") for verdict in row["verdicts"] if not verdict["valid"]]
    assert {(verdict["principle"], verdict["p_chosen"], verdict["reason"]) for verdict in bad} == {
        ("p0", None, "not_finite")
    }
    assert len(bad) == 72


def test_what_no_principle_could_judge_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spoilt.py").write_text(SPOILT, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    path = rules(tmp_path / "c.yaml", "Which is more upright?")
    run(
        tmp_path / "run",
        "stages.label.judge=scripted:spoilt:make",
        "stages.label.max_invalid=1",
        constitution=path,
    )
    assert labels(tmp_path / "run") == []
    unlabelled = rows(tmp_path / "run" / "label" / "unlabelled.jsonl")
    assert len(unlabelled) == 36
    assert {reason for row in unlabelled for reason in row["reasons"]} == {"not_finite"}


# Revise -----------------------------------------------------------------------------------------------------


def test_revise_keeps_every_text_and_draws_a_principle_a_round(tmp_path: Path) -> None:
    said = call("revise", "--model", MODEL, "--limit", 5, "--rounds", 3, "--out", tmp_path / "run")
    assert said.status == 0, said.err
    chains = rows(tmp_path / "run" / "revise" / "revisions.jsonl")
    known = {principle.id for principle in load_constitution("default").principles}
    assert len(chains) == 5
    for chain in chains:
        assert chain["initial"]
        assert len(chain["rounds"]) == 3
        assert all(
            step["critique"] and step["revision"] and step["principle"] in known for step in chain["rounds"]
        )
        assert chain["final"] == chain["rounds"][-1]["revision"]
    assert len({step["principle"] for chain in chains for step in chain["rounds"]}) > 3
    sft = rows(tmp_path / "run" / "revise" / "sft.jsonl")
    assert len(sft) == 15
    assert sft[0]["completion"] == [{"role": "assistant", "content": chains[0]["rounds"][0]["revision"]}]
    text = (tmp_path / "run" / "revise" / "samples.md").read_text(encoding="utf-8")
    assert text.count("**critique ") == text.count("**revision ") == 15


def test_prompts_of_different_purpose_may_not_overlap(tmp_path: Path) -> None:
    text = """
constitution: {constitution}
model: scripted:spine:swift
seed: {seed}
stages:
  - {{stage: sample, limit: 5, split: all, k: 2}}
  - {{stage: revise, limit: 5, split: all, rounds: 1}}
  - {{stage: label, principles: {principles}}}
"""
    with pytest.raises(DataError, match=r"prompt"):
        run(tmp_path / "run", text=text)
    assert run(tmp_path / "run", "allow_prompt_overlap=true", text=text).asked > 0


# Dry runs ---------------------------------------------------------------------------------------------------


def test_a_dry_run_asks_and_writes_nothing(tmp_path: Path) -> None:
    said = call("label", "--model", MODEL, "--limit", 5, "--dry-run", "--out", tmp_path / "run")
    assert said.status == 0, said.err
    for part in (
        "one policy prompt",
        "one judge_pairwise prompt",
        "nothing was asked, nothing was written",
        "Answer:",
    ):
        assert part in said.out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_counts_what_the_run_asks(tmp_path: Path) -> None:
    recipe = parse_recipe(LABEL.format(constitution="default", principles="all", seed=0), source="test")
    sample, label = plan_recipe(recipe).stages
    done = run_recipe(recipe, out=tmp_path / "run")
    assert sample.counts["completions"] + label.counts["questions"] == done.asked + done.reused
