"""`rlaif label` as a newcomer types it: what its judge is worth stands in the last line, in every row, and in
the card of what is trained on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from misbehaving import MisbehavingServer, answer, question_of, status
from spine import ASKED, Said, asked_of, call, rows
from tiny import save_tiny

from rlaif.config import parse_recipe
from rlaif.digest import unit_from
from rlaif.errors import JudgingError
from rlaif.pipeline.audit import AuditSettings, run_audit
from rlaif.pipeline.dry_run import plan_recipe
from rlaif.pipeline.run import run_recipe
from rlaif.progress import NoProgress

HERE = "scripted:judges:"


def label(out: Path, judge: str, *rest: object, constitution: object = "default") -> Said:
    sampling = ("--model", "scripted", "--limit", 5, "--k", 2)
    said = call("label", *sampling, "--constitution", constitution, "--judge", judge, "--out", out, *rest)
    assert said.status == 0, said.err
    return said


def last(said: Said) -> str:
    return said.out.splitlines()[-1]


def preferences(out: Path) -> list[dict[str, Any]]:
    return rows(out / "label" / "preferences.jsonl")


def test_the_last_line_tells_of_a_judge_that_reads_nothing(tmp_path: Path) -> None:
    said = label(tmp_path / "run", f"{HERE}first_shown")
    assert last(said).startswith(f"do not train on the labels of {HERE}first_shown: audit (pairwise): do not")
    assert "on 60 built-in probes, 100 % flips between orders" in last(said)
    assert "grade of the judge: do not use" in said.out
    assert "the two orders disagree on 100 % of questions: position decides, not the text" in said.out
    assert "rlaif judge train" in said.out
    assert "--judge Qwen/Qwen2.5-" in said.out or "--judge openai:Qwen/Qwen2.5-" in said.out
    assert "rlaif label --constitution warmth" in said.out
    assert {row["audit"] for row in preferences(tmp_path / "run")} == {"do not use"}
    told = json.loads((tmp_path / "run" / "label" / "statistics.json").read_text())["audit"]
    assert told["grade"] == "do not use"
    assert told["line"] in last(said)
    again = label(tmp_path / "run", f"{HERE}first_shown")
    assert "asked 0 questions" in again.out
    assert last(again) == last(said)


def test_an_able_judge_is_told_apart_and_the_next_commands_are_named(tmp_path: Path) -> None:
    said = label(tmp_path / "run", f"{HERE}able")
    *_, train, audit, line = said.out.splitlines()
    assert line.startswith("audit (pairwise): label with this only with care: both-order accuracy 100 % [94")
    assert train.split() == [
        *["train", "on", "them", "rlaif", "reward", "--preferences"],
        str(tmp_path / "run" / "label" / "preferences.jsonl"),
    ]
    assert f"rlaif audit --judge {HERE}able --constitution default --data YOUR_PAIRS.jsonl" in audit
    assert "do not train" not in said.out
    assert {row["audit"] for row in preferences(tmp_path / "run")} == {"use with care"}


def test_ties_are_told_whatever_the_probes_say(tmp_path: Path) -> None:
    said = label(tmp_path / "run", f"{HERE}undecided", "--no-audit")
    assert "100 % of the labels are ties" in last(said)
    assert last(said).startswith("do not train on the labels of")
    assert last(said).count("do not train") == 1


def test_the_probes_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ASKED, str(tmp_path / "asked"))
    said = label(tmp_path / "run", "scripted:spine:swift", "--no-audit")
    without = len(asked_of(tmp_path / "asked"))
    assert {row["audit"] for row in preferences(tmp_path / "run")} == {"not audited"}
    assert "this judge was not audited under this constitution (audit: false): rlaif audit" in last(said)
    label(tmp_path / "run", "scripted:spine:swift")
    assert len(asked_of(tmp_path / "asked")) - without == 2 * 60, "only the probes: the labels are journaled"
    assert {row["audit"] for row in preferences(tmp_path / "run")} == {"do not use"}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, "no principle has a tag of the built-in probes (autonomy, brevity, care"),
        ({"language": "zh"}, "the built-in probes are in English, the constitution is in zh"),
    ],
)
def test_where_no_probe_fits_the_judge_is_not_audited(
    tmp_path: Path, changes: dict[str, str], why: str
) -> None:
    rules = tmp_path / "rules.yaml"
    tags = ["honesty"] if changes else ["harbours"]
    rule = {"id": "mine", "comparison": "Which one says more of ships?", "tags": tags}
    rules.write_text(yaml.safe_dump({"principles": [rule], **changes}))
    said = label(tmp_path / "run", "scripted", constitution=rules)
    assert {row["audit"] for row in preferences(tmp_path / "run")} == {"not audited"}
    assert "grade of the judge: not audited" in said.out
    assert why in said.err
    assert "built-in probes\n" not in said.out


def test_an_audit_that_was_made_goes_before_the_probes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ASKED, str(tmp_path / "asked"))
    judge = "scripted:spine:swift"
    label(tmp_path / "run", judge, "--no-audit")
    pairs = tmp_path / "pairs.jsonl"
    table = [{"prompt": f"Say {n}.", "chosen": f"Yes: {n}.", "rejected": f"No {n}."} for n in range(12)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in table))
    settings = AuditSettings(
        judge=judge,
        constitution="default",
        protocol="pairwise",
        data=str(pairs),
        probes="none",
        variants=0,
        out=tmp_path / "audits",
        journal=tmp_path / "other.sqlite",
    )
    found = run_audit(settings, NoProgress()).report.protocols[0].judgement
    before = len(asked_of(tmp_path / "asked"))
    said = label(tmp_path / "run", judge)
    assert "runs again, since audit" in said.err
    assert len(asked_of(tmp_path / "asked")) == before, "neither probes nor labels are asked"
    assert found.words in said.out
    assert {row["audit"] for row in preferences(tmp_path / "run")} == {found.grade}


def test_the_strict_form_is_not_satisfied_by_probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ASKED, str(tmp_path / "asked"))
    sampling = ("--model", "scripted", "--limit", 2, "--k", 2, "--out", tmp_path / "run")
    said = call("label", *sampling, "--judge", "scripted:spine:swift", "--require-audit")
    assert said.status != 0
    assert "an audit is required, and there is no audit of this judge" in said.err
    assert not (tmp_path / "asked").exists()


RECIPE = """
model: scripted
constitution: {constitution}
server: {{base_urls: ["http://127.0.0.1:9/v1"], price_input: 1000000, price_output: 1000000}}
stages: [{audit}{{stage: sample, limit: 5, k: 2}}, {{stage: label, judge: "openai:{judge}"{more}}}]
"""


def planned(constitution: str = "default", more: str = "", audit: str = "") -> Any:
    text = RECIPE.format(constitution=constitution, more=more, audit=audit, judge="some/judge")
    return plan_recipe(parse_recipe(text, source="r.yaml")).stages[-1]


def test_a_dry_run_counts_the_probes_and_what_they_cost() -> None:
    asked, without = planned(), planned(more=", audit: false")
    assert "probes" not in without.counts
    assert asked.counts["probes"] == 60
    assert asked.counts["questions"] - without.counts["questions"] == 2 * 60
    assert asked.read > without.read
    assert asked.cost - without.cost == pytest.approx(asked.read - without.read + 2 * 60)
    reasoned, unreasoned = (planned(more=f", protocol: cot{more}") for more in ("", ", audit: false"))
    assert reasoned.write - unreasoned.write == 2 * 60 * 256
    assert planned("warmth").counts["probes"] == 20
    assert "probes" not in planned(audit="{stage: audit}, ").counts, "the run audits by itself"


def test_a_server_that_answers_few_probes_ends_the_stage(tmp_path: Path) -> None:
    text = RECIPE.format(constitution="default", more="", audit="", judge="toy")
    good = answer()

    def ill(handler: Any, body: dict[str, Any]) -> None:
        (status(500) if unit_from("ill", question_of(body)) < 0.3 else good)(handler, body)

    with MisbehavingServer(models=["toy"], always=ill) as server:
        changes = [f"server.base_urls=[{server.url}]", "server.retries=0", "server.reads=logprobs"]
        changes += ["server.continues=false", "server.give_up_after=1000", "server.price_input=0"]
        recipe = parse_recipe(text, source="r.yaml", overrides=[*changes, "server.price_output=0"])
        with pytest.raises(JudgingError, match=r"\d+ of 120 verdicts got no answer"):
            run_recipe(recipe, out=tmp_path / "run")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    save_tiny(path)
    return path


@pytest.mark.parametrize("trainer", ["reward", "dpo"])
def test_training_refuses_labels_that_say_nothing_unless_told_to(
    tmp_path: Path, model: Path, trainer: str
) -> None:
    file = tmp_path / "labels.jsonl"
    table = [
        {
            "prompt": [{"role": "user", "content": f"Say {number}."}],
            "chosen": [{"role": "assistant", "content": "aei" * (1 + number % 2)}],
            "rejected": [{"role": "assistant", "content": "bcd" * (1 + number % 3)}],
            "p_chosen": 0.501,
            "judge": "someone@1",
            "protocol": "pairwise",
            "audit": "do not use",
        }
        for number in range(8)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in table))
    work = ("--preferences", file, "--model", model, "--dtype", "float32", "--set", "lora_rank=2")
    refused = call(trainer, *work, "--out", tmp_path / "refused")
    assert refused.status != 0
    assert "these labels say nothing: 100 % of the labels are ties" in refused.err
    assert "--uninformative allow" in refused.err
    hard = ("--set", "labels=hard", "--uninformative", "allow", "--out", tmp_path / "told")
    said = call(trainer, *work, *hard)
    assert said.status == 0, said.err
    assert f"warning: {file}: 100 % of the labels are ties" in said.err
    folder = tmp_path / "told" / trainer / ("model" if trainer == "reward" else "adapter")
    assert "someone@1, pairwise, audit: do not use" in (folder / "README.md").read_text()
