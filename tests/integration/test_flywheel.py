"""The flywheel on a tiny model: people who are scripted use a served policy, what comes back enters a round, and
the policy of that round is served. What it is worth is measured with a real model: benchmarks/flywheel.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from collected import Collected, collected
from spine import call, rows
from tiny import save_tiny

from rlaif.serving.residents import Residents, open_residents

pytestmark = pytest.mark.usefixtures("one_thread")
PEOPLE = 8
TOPICS = ("tides", "bread", "glaciers", "chess", "violins", "bees", "maps", "rust")


def recipe(place: Path) -> str:
    prompts = {"prompts": str(place / "prompts.txt"), "max_new_tokens": 4}
    feedback = {
        "prompts": [str(place / "collected/prompts.jsonl")],
        "preferences": [{"file": str(place / "collected/preferences.jsonl")}],
    }
    stages: list[dict[str, Any]] = [
        {"stage": "sample", **prompts, "split": "label", "limit": 4, "k": 2},
        {"stage": "label", "judge": "scripted:spine:swift", "audit": False},
        {"stage": "reward", "keep": "head", "uninformative": "allow"},
        {
            "stage": "dpo",
            "lora_rank": 2,
            "epochs": 1,
            "learning_rate": 1e-2,
            "uninformative": "allow",
            "skip_bad_rows": True,
        },
        {
            "stage": "evaluate",
            **prompts,
            "split": "eval",
            "limit": 4,
            "samples": 1,
            "win_rate": False,
            "gold": "toy_policy:letters",
        },
        {"stage": "compare", "resamples": 100},
    ]
    settings = {"count": 1, "policy": "dpo", "fresh": None, "feedback": feedback}
    return json.dumps(
        {
            "name": "wheel",
            "model": str(place / "model"),
            "dtype": "float32",
            "rounds": settings,
            "stages": stages,
        }
    )


def use(server: Collected, model: str, number: int) -> None:
    """Everybody asks once, compares two answers and prefers the longer one; every second gives thumbs too."""
    for at in range(PEOPLE):
        question = f"What do {TOPICS[at]} and {TOPICS[(at + number) % 8]} have in common?"
        messages = [{"role": "user", "content": question}]
        asked = {"model": model, "messages": messages, "max_tokens": 4 + 2 * at, "user": f"{number}-{at}"}
        found = []
        for seed in range(2):
            answer = server.ask(**asked, seed=2 * at + seed)
            assert answer.stored
            found.append((len(answer.choices[0].message.content), answer.id))
        (low, worse), (high, better) = sorted(found)
        body = {"chosen": better, "rejected": worse, "tie": low == high}
        assert server.send("POST", "/v1/preferences", body)[0] == 200
        if at % 2:
            assert server.send("POST", "/v1/feedback", {"id": better, "vote": "up"})[0] == 200


def test_what_comes_back_enters_the_round_and_the_round_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("\n".join(f"say thing {at}" for at in range(80)), "utf-8")
    (tmp_path / "wheel.yaml").write_text(recipe(tmp_path))
    policy = None
    for number in (1, 2):
        with collected(_residents(tmp_path, policy), tmp_path / "chats.sqlite") as server:
            use(server, "policy" if policy else str(tmp_path / "model"), number)
        said = call("collect", "export", "chats.sqlite", "--out", "collected")
        assert said.status == 0, said.err
        prompts, preferences = (
            rows(Path("collected/prompts.jsonl")),
            rows(Path("collected/preferences.jsonl")),
        )
        assert len(prompts) == PEOPLE * number
        assert len(preferences) + _left_out("preferences") == PEOPLE * number
        said = call("run", "wheel.yaml", "--rounds", number, "--out", "run")
        assert said.status == 0, said.err
        _check_entered(Path(f"run/round-{number}"), prompts[-PEOPLE:], number)
        policy = f"run/round-{number}/dpo"
    kept = rows(Path("collected/preferences.jsonl"))
    assert {row["model"] for row in kept} == {str(tmp_path / "model"), "policy"}
    assert len({row["policy"] for row in kept}) == 2
    with collected(_residents(tmp_path, policy), None) as server:
        assert server.ask(store=None).choices[0].finish_reason in ("stop", "length")


def _residents(place: Path, policy: str | None) -> Residents:
    policies = [] if policy is None else [f"policy={policy}"]
    return open_residents(str(place / "model"), policies, dtype="float32", device="cpu")


def _left_out(kind: str) -> int:
    path = Path("collected/left_out.jsonl")
    return sum(row["kind"] == kind for row in rows(path)) if path.exists() else 0


def _check_entered(folder: Path, prompts: list[dict[str, Any]], number: int) -> None:
    """What no earlier round took was sampled and labelled, or learned from; and nothing else of it."""
    record = json.loads(Path(f"run/feedback/round-{number}.json").read_text("utf-8"))
    counts = {Path(file).stem: count for file, count in record["counts"].items()}
    assert counts["prompts"]["taken"] == PEOPLE
    assert counts["preferences"]["taken"] == PEOPLE - _left_out_of_round(number)
    asked = {row["prompt"][-1]["content"] for row in rows(folder / "sample/completions.jsonl")}
    mine = {row["prompt"][-1]["content"] for row in prompts}
    assert len(mine) == PEOPLE
    assert mine <= asked
    assert len(asked) == PEOPLE + 4
    report = json.loads((folder / "reward/report.json").read_text("utf-8"))
    taken = [len(rows(path)) for path in sorted(Path("run/feedback").glob("round-*-preferences-*.jsonl"))]
    labelled = [
        len(rows(folder.parent / f"round-{at}/label/preferences.jsonl")) for at in range(1, number + 1)
    ]
    assert report["pairs"] + report["held_out_pairs"] == sum(taken) + sum(labelled)


def _left_out_of_round(number: int) -> int:
    path = Path("collected/left_out.jsonl")
    left = [row for row in rows(path) if row["kind"] == "preferences"] if path.exists() else []
    before = 0 if number == 1 else PEOPLE - len(rows(Path("run/feedback/round-1-preferences-0.jsonl")))
    return len(left) - before
