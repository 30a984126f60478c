"""The first command that a newcomer types, on the embedded model: it says itself that its labels are noise."""

from __future__ import annotations

import json
from pathlib import Path

from spine import call, rows


def test_the_embedded_judge_is_said_to_be_noise_under_the_default_principles(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    table = [
        {"prompt": "I burnt the dinner.", "chosen": "It happens to every cook.", "rejected": "You would."},
        {"prompt": "Is the earth flat?", "chosen": "No, it is round.", "rejected": "Yes, it is flat."},
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in table))
    work = ("--constitution", "default", "--responses", pairs, "--out", tmp_path / "run")
    said = call("label", *work)
    assert said.status == 0, said.err
    *_, last = said.out.splitlines()
    assert last.startswith("do not train on the labels of smollm2-135m: audit (pairwise): do not label with")
    assert "on 60 built-in probes" in last
    labels = rows(tmp_path / "run" / "label" / "preferences.jsonl")
    assert [row["audit"] for row in labels] == ["do not use"] * 2
    assert call("label", *work).out.splitlines()[-1] == last
