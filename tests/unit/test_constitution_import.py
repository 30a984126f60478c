"""The importer, on small invented files of the shape of the Constitutional AI paper's (which carry no
licence)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlaif.constitution.importers import import_cai
from rlaif.constitution.load import parse_constitution, require, to_yaml
from rlaif.errors import ConstitutionError
from rlaif.types import Principle

COMPARISONS = [
    "\nPlease choose the gentler response. Options:",
    "Which response is wiser? Weigh your options well. Options:",
]
REVISIONS = {
    "harmful0": {
        "prompt": ["\n\nCritiqueRequest: Identify what is rude. Offer a critique: a short one.\n\nCritique:"],
        "edit_request": "\n\nRevisionRequest: Please rewrite it politely.\n\nRevision:",
    },
    "Harmful 1": {
        "prompt": ["CritiqueRequest: Say what is vague.\n\nCritique:"],
        "edit_request": "RevisionRequest: Be exact.\n\nRevision:",
    },
}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "comparisons.json", COMPARISONS), write(tmp_path / "revisions.json", REVISIONS)


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), "utf-8")
    return path


def test_both_files_in_either_order_give_separate_principles_without_scaffolding(
    files: tuple[Path, Path],
) -> None:
    principles = (
        Principle(
            "harmful0",
            critique="Identify what is rude. Offer a critique: a short one.",
            revision="Please rewrite it politely.",
        ),
        Principle("harmful-1", critique="Say what is vague.", revision="Be exact."),
        Principle("comparison-01", comparison="Please choose the gentler response."),
        Principle("comparison-02", comparison="Which response is wiser? Weigh your options well."),
    )
    assert import_cai(files).principles == principles
    assert import_cai(files[::-1], name="other").principles == principles


def test_each_stage_finds_its_half(files: tuple[Path, Path]) -> None:
    constitution = import_cai(files, name="both")
    assert len(require(constitution, "comparison")) == 2
    assert len(require(constitution, "critique_revision")) == 2
    assert parse_constitution(to_yaml(constitution), source="c.yaml") == constitution


def test_one_file_is_enough(files: tuple[Path, Path]) -> None:
    assert [p.id for p in import_cai([files[0]]).principles] == ["comparison-01", "comparison-02"]
    constitution = import_cai([str(files[1])])
    assert [p.id for p in constitution.principles] == ["harmful0", "harmful-1"]
    assert constitution.description == "Imported from revisions.json."


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ([], "neither a list nor a mapping"),
        ({}, "neither a list nor a mapping"),
        ("text", "neither a list nor a mapping"),
        ([{"prompt": "x"}], "entry 1 is not a text"),
        (["Choose. Options:", " Options: "], "entry 2 is not a text"),
        (["Choose \x00. Options:"], "entry 1 is not a text"),
        (["Choose \ud800. Options:"], "entry 1 is not a text"),
        ({"a": "x"}, "entry 'a' is not a critique with its revision"),
        ({"a": {"prompt": ["x"]}}, "entry 'a' is not a critique"),
        ({"a": {"prompt": [], "edit_request": "y"}}, "entry 'a' is not a critique"),
        ({"!": {"prompt": ["x"], "edit_request": "y"}}, "entry '!' is not a critique"),
        (
            {"a": {"prompt": ["x"], "edit_request": "y"}, "A": {"prompt": ["x"], "edit_request": "y"}},
            "gives the id `a` a second time",
        ),
    ],
)
def test_a_file_of_another_shape_is_refused(tmp_path: Path, value: Any, what: str) -> None:
    with pytest.raises(ConstitutionError) as caught:
        import_cai([write(tmp_path / "x.json", value)])
    assert what in str(caught.value)
    assert "RLMadisonInstructions.json" in caught.value.remedy


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"[1,\n}", "x.json:2: not valid JSON"),
        (b"\xff", "not UTF-8 .byte 1"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b"[" + b"1" * 5000 + b"]", "cannot be read as JSON"),
    ],
)
def test_a_file_that_is_not_json_is_refused(tmp_path: Path, data: bytes, what: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(ConstitutionError, match=what):
        import_cai([path])


def test_a_missing_file_no_file_and_two_of_a_kind_are_refused(
    tmp_path: Path, files: tuple[Path, Path]
) -> None:
    with pytest.raises(ConstitutionError, match="cannot be read: No such file"):
        import_cai([tmp_path / "none.json"])
    with pytest.raises(ConstitutionError, match="no file to import"):
        import_cai([])
    with pytest.raises(ConstitutionError, match="a second file of the same kind"):
        import_cai([files[0], files[0]])


SWARM = [
    {"critic": "Say where the response is rude.", "revision": "Rewrite the response so that it is polite."},
    {
        "critic": "CritiqueRequest: Say where it is too long.\n\nCritique:",
        "revision": "RevisionRequest: Make it short.\n\nRevision:",
    },
]


@pytest.mark.parametrize(
    "value", [SWARM, {"constitutions": SWARM, "system_chat": [["a few-shot example"]]}], ids=["list", "file"]
)
def test_the_critics_and_revisions_of_llm_swarm(tmp_path: Path, value: Any) -> None:
    found = import_cai([write(tmp_path / "swarm.json", value)])
    assert found.principles == (
        Principle(
            "revision-01",
            critique="Say where the response is rude.",
            revision="Rewrite the response so that it is polite.",
        ),
        Principle("revision-02", critique="Say where it is too long.", revision="Make it short."),
    )
    assert parse_constitution(to_yaml(found), source="c.yaml") == found
    assert len(require(found, "critique_revision")) == 2


def test_they_join_a_file_of_comparisons_but_not_another_of_revisions(
    tmp_path: Path, files: tuple[Path, Path]
) -> None:
    swarm = write(tmp_path / "swarm.json", SWARM)
    assert len(import_cai([files[0], swarm]).principles) == 4
    with pytest.raises(ConstitutionError, match="second file of the same kind"):
        import_cai([files[1], swarm])


@pytest.mark.parametrize(
    "entry", ["text", {"critic": "c"}, {"critic": "", "revision": "r"}, {"critic": "c", "revision": 3}]
)
def test_a_critic_without_its_revision_is_named(tmp_path: Path, entry: Any) -> None:
    with pytest.raises(ConstitutionError, match="entry 2 is not a critique with its revision"):
        import_cai([write(tmp_path / "swarm.json", [SWARM[0], entry])])
