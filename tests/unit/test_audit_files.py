"""Audits on disk, pairs from files, the probes that ship, and the two commands."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from judges import constitution, pairs, reader

from rlaif.audit.accuracy import audit_judge, audit_key
from rlaif.audit.cases import Case, plain
from rlaif.audit.report import AuditReport
from rlaif.cli.audit import audit as audit_command
from rlaif.cli.constitution_diff import diff
from rlaif.constitution.load import to_yaml
from rlaif.errors import ConfigError, ConstitutionError, DataError, RunError
from rlaif.jobs.audit_files import (
    STAGE_AUDIT,
    audit_file,
    find_audit,
    load_calibration,
    read_audit_pairs,
    read_probes,
    save_text,
)
from rlaif.pipeline.audit import AuditSettings, run_difference
from rlaif.progress import NoProgress
from rlaif.prompts import PromptLibrary
from rlaif.report.audit import audit_markdown, cases_markdown
from rlaif.types import Constitution

JUDGE = "scripted:judges:reader"


def report(rules: Constitution, count: int = 30) -> AuditReport:
    return audit_judge(
        reader(),
        library=PromptLibrary(),
        constitution=rules,
        usable={"pairwise": rules},
        pairs=pairs(count),
        probes=(),
        data="rows",
    )


def pair_file(path: Path, count: int = 30, *, names: tuple[str, str] = ("chosen", "rejected")) -> str:
    texts = [("q1" + " word" * (i % 2), "q0" + " word" * (1 - i % 2)) for i in range(count)]
    rows = [
        {"prompt": f"Question {i}?", names[0]: better, names[1]: worse}
        for i, (better, worse) in enumerate(texts)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


# Probes


def test_the_probes_are_many_varied_and_balanced() -> None:
    probes = read_probes()
    assert len(probes) >= 120
    assert sum(pair.a_wins or 0 for pair in probes) == len(probes) // 2
    longer = sum((pair.length_difference > 0) == bool(pair.a_wins) for pair in probes)
    assert 0.45 <= longer / len(probes) <= 0.55
    tags = Counter(tag for pair in probes for tag in pair.comparison.prompt.tags)
    assert len(tags) >= 10
    assert min(tags.values()) >= 8


# Pairs


def test_pairs_with_peoples_choice_are_turned_and_drawn(tmp_path: Path) -> None:
    source = pair_file(tmp_path / "pairs.jsonl")
    found = read_audit_pairs(source, limit=10)
    assert found.labelled
    assert sum(pair.a_wins or 0 for pair in found.pairs) == 5
    assert all(("q1" in pair.comparison.a.text) == bool(pair.a_wins) for pair in found.pairs)
    more = read_audit_pairs(source, limit=20)
    assert [pair.comparison.prompt.id for pair in more.pairs[:10]] == [
        pair.comparison.prompt.id for pair in found.pairs
    ]


def test_pairs_without_a_choice(tmp_path: Path) -> None:
    found = read_audit_pairs(pair_file(tmp_path / "pairs.jsonl", names=("a", "b")))
    assert not found.labelled
    assert {pair.a_wins for pair in found.pairs} == {None}


def test_lists_give_neighbours_and_equal_texts_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "lists.jsonl"
    path.write_text(json.dumps({"prompt": "Hi?", "completions": ["x", "y", "y ", "z"]}))
    found = read_audit_pairs(path)
    texts = [frozenset((pair.comparison.a.text, pair.comparison.b.text)) for pair in found.pairs]
    assert texts == [frozenset("xy"), frozenset(("y ", "z"))]
    assert found.identical == 1


def test_nothing_to_compare_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lone.jsonl"
    path.write_text(json.dumps({"prompt": "Hi?", "completion": "x"}))
    with pytest.raises(DataError, match="no prompt has two"):
        read_audit_pairs(path)


# Audits


def test_an_audit_is_found_by_its_key_alone(tmp_path: Path) -> None:
    rules = constitution("kind")
    found = report(rules)
    save_text(tmp_path / f"{audit_file(found)}.json", json.dumps(plain(found)))
    key = audit_key(reader(), PromptLibrary(), rules, "pairwise")
    audited = find_audit([tmp_path], key)
    assert audited is not None
    assert (audited.grade, audited.pairs) == (found.protocols[0].judgement.grade, 30)
    assert audited.line.startswith("audit (pairwise): ")
    assert find_audit([tmp_path], audit_key(reader(), PromptLibrary(), rules, "pointwise")) is None
    assert (
        find_audit([tmp_path], audit_key(reader(), PromptLibrary(), constitution("other"), "pairwise"))
        is None
    )
    assert find_audit([tmp_path / "none"], key) is None


def test_the_newest_audit_counts(tmp_path: Path) -> None:
    rules = constitution("kind")
    for age, count in ((0, 30), (100, 40)):
        path = tmp_path / f"audit-{count}.json"
        save_text(path, json.dumps(plain(report(rules, count))))
        os.utime(path, (1e9 - age, 1e9 - age))
    audited = find_audit([tmp_path], audit_key(reader(), PromptLibrary(), rules, "pairwise"))
    assert audited is not None
    assert audited.pairs == 30


def test_people_outweigh_probes_and_a_stage_counts(tmp_path: Path) -> None:
    rules, stage = constitution("kind"), tmp_path / "run" / "audit"
    probes = audit_judge(
        reader(),
        library=PromptLibrary(),
        constitution=rules,
        usable={"pairwise": rules},
        pairs=(),
        probes=pairs(10),
        data="",
    )
    save_text(tmp_path / "audit-old.json", json.dumps(plain(report(rules))))
    os.utime(tmp_path / "audit-old.json", (1e9, 1e9))
    save_text(stage / STAGE_AUDIT, json.dumps(plain(probes)))
    key = audit_key(reader(), PromptLibrary(), rules, "pairwise")
    both, alone = find_audit([tmp_path, stage], key), find_audit([stage], key)
    assert both is not None
    assert alone is not None
    assert (both.path.name, both.pairs) == ("audit-old.json", 30)
    assert (alone.path.name, alone.pairs) == ("audit.json", 0)


def test_other_data_do_not_overwrite_an_audit() -> None:
    rules = constitution("kind")
    first = report(rules)
    names = {audit_file(replace(first, data=data)) for data in ("a.jsonl", "b.v2.jsonl", "org/name:test", "")}
    assert len(names) == 4
    assert all(re.fullmatch(r"audit-[0-9a-f]{8}-[A-Za-z0-9-]+", name) for name in names)


@pytest.mark.parametrize("text", ["[]", '{"protocols": [1]}', "{"])
def test_a_file_that_is_no_audit_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "audit-x.json").write_text(text)
    with pytest.raises(RunError, match=r"audit-x\.json"):
        find_audit([tmp_path], audit_key(reader(), PromptLibrary(), constitution("kind"), "pairwise"))


def test_a_file_in_the_way_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot make the folder"):
        save_text(tmp_path / "file" / "audit.json", "{}")


def test_markdown_holds_every_part() -> None:
    rules = constitution("kind", tags={"kind": ["tone"]})
    found = audit_judge(
        reader(),
        library=PromptLibrary(),
        constitution=rules,
        usable={"pairwise": rules, "pointwise": rules},
        pairs=pairs(30),
        probes=pairs(10, tags=["tone"], first=100),
        data="rows",
    )
    text = audit_markdown(found)
    assert text.startswith("# Audit of judge@reader under `test`")
    headings = (
        "## Rules that do not read the text",
        "### Against human labels",
        "### Biases",
        "### Changes that",
        "### Probes",
        "### By principle",
    )
    assert [heading for heading in headings if heading not in text] == []
    assert "| always-longer | 50 %" in text
    assert "| labels 1/2 for A/B | 100 % [89, 100] of 30 | 0.00 | 100 % → 100 % |" in text
    assert "with the tags tone" in text


def test_comparisons_to_read_name_the_better_one_and_begin_with_the_mistakes() -> None:
    wrong_in_two = pairs(20, right=18)
    judged: list[Case] = []
    rules = constitution("kind")
    audit_judge(
        reader(),
        library=PromptLibrary(),
        constitution=rules,
        usable={"pointwise": rules},
        pairs=wrong_in_two,
        probes=(),
        keep=lambda name, cases, probes: judged.extend([*cases, *probes]),
    )
    text = cases_markdown({"pointwise": judged})
    furthest, nearest = text.split("## pointwise: nearest to it")
    assert "## pointwise: furthest from the right answer" in furthest
    assert "### p18: P(the better) = 0.12" in furthest
    assert "p18:" not in nearest
    assert furthest.index("**the better**\n\n> q0") < furthest.index("**the worse**\n\n> q1")
    unknown = [replace(case, pair=case.pair._replace(a_wins=None)) for case in judged]
    assert "P(first) = 0.88" in cases_markdown({"pointwise": unknown})
    assert "no valid verdict" in cases_markdown({"pointwise": [replace(unknown[0], logit_a=None)]})


# Commands


def invoke(command: click.Command, *arguments: str) -> str:
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def rules_file(path: Path, *ids: str) -> str:
    path.write_text(to_yaml(constitution(*ids)))
    return str(path)


def test_the_command_audits_and_writes(tmp_path: Path) -> None:
    rules, out = rules_file(tmp_path / "rules.yaml", "kind", "clear"), tmp_path / "audits"
    arguments = [
        "--judge",
        JUDGE,
        "--constitution",
        rules,
        "--data",
        pair_file(tmp_path / "pairs.jsonl", 110),
        "--out",
        str(out),
        "--variants",
        "10",
        "--save-calibration",
        str(tmp_path / "calibration.json"),
    ]
    first = invoke(audit_command, *arguments)
    assert "audit (pairwise): fit to label with: both-order accuracy 100 %" in first
    assert "suggestion (human pairs): use pairwise with all principles" in first
    assert "calibration: temperature" in first
    (written,) = out.glob("audit-*.json")
    assert json.loads(written.read_text())["labelled"] == 110
    assert written.with_suffix(".md").read_text().startswith("# Audit of")
    assert load_calibration(tmp_path / "calibration.json").protocol == "pairwise"
    assert (tmp_path / "rlaif-journal.sqlite").exists()
    before = written.read_bytes()
    invoke(audit_command, *arguments)
    assert written.read_bytes() == before


def test_a_dry_run_asks_nothing(tmp_path: Path) -> None:
    rules = rules_file(tmp_path / "rules.yaml", "kind")
    told = invoke(
        audit_command,
        "--judge",
        JUDGE,
        "--constitution",
        rules,
        "--no-probes",
        "--variants",
        "0",
        "--dry-run",
        "--data",
        pair_file(tmp_path / "pairs.jsonl", 12),
        "--out",
        str(tmp_path / "audits"),
    )
    assert "48 questions at most: 12 comparisons and 0 probes by pairwise and pointwise" in told
    assert not (tmp_path / "audits").exists()


def test_probes_alone_and_one_protocol_for_want_of_texts(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("name: one\nprinciples:\n  - id: kind\n    comparison: Which response is kinder?\n")
    told = invoke(
        audit_command,
        "--judge",
        JUDGE,
        "--constitution",
        str(path),
        "--out",
        str(tmp_path / "audits"),
        "--variants",
        "5",
    )
    assert "only pairwise is audited" in told
    assert "built-in probes" in told


def test_what_cannot_be_audited_is_refused(tmp_path: Path) -> None:
    rules, out = rules_file(tmp_path / "rules.yaml", "kind"), str(tmp_path / "audits")
    run = CliRunner().invoke(
        audit_command, ["--judge", JUDGE, "--constitution", rules, "--no-probes", "--out", out]
    )
    assert isinstance(run.exception, DataError)
    assert "nothing to audit on" in str(run.exception)
    run = CliRunner().invoke(
        audit_command,
        ["--judge", JUDGE, "--constitution", rules, "--out", out, "--save-calibration", "x.json"],
    )
    assert "needs human labels" in str(run.exception)
    path = tmp_path / "revision.yaml"
    path.write_text(
        "name: one\nprinciples:\n  - id: kind\n    critique: Find fault.\n    revision: Mend it.\n"
    )
    run = CliRunner().invoke(audit_command, ["--judge", JUDGE, "--constitution", str(path), "--out", out])
    assert isinstance(run.exception, ConstitutionError)
    run = CliRunner().invoke(
        audit_command, ["--judge", JUDGE, "--constitution", str(tmp_path / "none.yaml"), "--out", out]
    )
    assert isinstance(run.exception, ConfigError)


def test_two_constitutions_need_comparisons(tmp_path: Path) -> None:
    settings = AuditSettings(
        judge="scripted", constitution="warmth", journal=tmp_path / "j.sqlite", out=tmp_path
    )
    with pytest.raises(DataError, match="nothing to compare"):
        run_difference(settings, "concise", NoProgress())


def test_skipped_rows_and_equal_pairs_are_told(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    pair_file(path, 12)
    more = [{"prompt": "", "chosen": "x", "rejected": "y"}, {"prompt": "p", "chosen": "x", "rejected": "x"}]
    path.write_text("\n".join([path.read_text(), *map(json.dumps, more)]))
    told = invoke(
        audit_command,
        "--judge",
        JUDGE,
        "--constitution",
        rules_file(tmp_path / "rules.yaml", "kind"),
        "--data",
        str(path),
        "--skip-bad-rows",
        "--no-probes",
        "--variants",
        "0",
        "--out",
        str(tmp_path / "audits"),
    )
    assert "1 of 14 rows could not be read and were skipped" in told
    assert "1 pairs with equal completions were left out" in told


def test_diff_prints_tables_or_json_and_writes(tmp_path: Path) -> None:
    ours, theirs = rules_file(tmp_path / "a.yaml", "kind"), rules_file(tmp_path / "b.yaml", "kind", "clear")
    arguments = [
        ours,
        theirs,
        "--judge",
        JUDGE,
        "--on",
        pair_file(tmp_path / "pairs.jsonl"),
        "--out",
        str(tmp_path / "audits"),
    ]
    told = invoke(diff, *arguments)
    assert "0 % [0, 11] of 30 labels flip" in told
    assert "principles, by the flips they cause" in told
    (written,) = (tmp_path / "audits").glob("difference-*.json")
    assert json.loads(written.read_text())["both"] == 30
    assert "From constitution" in written.with_suffix(".md").read_text()
    assert "180 questions at most" in invoke(diff, *arguments, "--dry-run")
    result = CliRunner().invoke(
        diff, [*arguments, "--json", "--protocol", "pointwise"], catch_exceptions=False
    )
    assert json.loads(result.stdout)["protocol"] == "pointwise"
