"""Completions of models that reason: what the judge reads, and what the preferences keep, by the setting
`reasoning`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from spine import call, rows

from rlaif.engines.base import GenerationRequest, LabelRequest
from rlaif.engines.scripted import ScriptedEngine
from rlaif.text import answer_of

THOUGHT = "<think>\nThey want a greeting. BLUNT\n</think>\n\nGood morning to you."
PLAIN = "Hi."
CUT = "<think>\nThey want a gre"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (PLAIN, PLAIN),
        (THOUGHT, "Good morning to you."),
        ("hm, a greeting.</think>Hello.", "Hello."),
        (CUT, ""),
        ("", ""),
        ("Write <think> before </think>.", "Write <think> before </think>."),
        ("<think></think>", ""),
        ("<think>a</think>b</think>c", "b</think>c"),
    ],
)
def test_the_answer_of_a_text(text: str, answer: str) -> None:
    assert answer_of(text) == answer


def thinker() -> ScriptedEngine:
    """Reasons before it answers; as a judge it prefers whatever is longer, and never what is blunt."""

    def generate(request: GenerationRequest) -> str:
        return (THOUGHT, PLAIN, CUT)[request.seed % 3]

    def labels(request: LabelRequest) -> list[float]:
        text = request.messages[-2 if request.messages[-1].role == "assistant" else -1].content
        shown = [part.partition("</response")[0] for part in text.split("<response_")[1:]]
        first, second = ((-99 if "BLUNT" in each else 0) + len(each) for each in shown[-2:])
        return [-0.1, -2.4] if first > second else [-2.4, -0.1]

    return ScriptedEngine(generate, labels, name="thinker", revision="1", batch_size=4)


ENGINE = f"scripted:{Path(__file__).stem}:thinker"
PAIRS = {"prompt": "Greet me.", "responses": [THOUGHT, PLAIN]}


def label(folder: Path, how: str | None, monkeypatch: pytest.MonkeyPatch, responses: list[str]) -> Path:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    path = folder / "responses.jsonl"
    path.write_text(json.dumps(PAIRS | {"responses": responses}) + "\n", encoding="utf-8")
    recipe = folder / "recipe.yaml"
    setting = "" if how is None else f", reasoning: {how}"
    recipe.write_text(
        f"name: r\nconstitution: default\nmodel: {ENGINE}\nstages: "
        f"[{{stage: label, responses: {path}{setting}}}]",
        encoding="utf-8",
    )
    said = call("run", recipe, "--out", folder / "run")
    assert said.status == 0, said.err
    return folder / "run" / "label"


@pytest.mark.parametrize(
    ("how", "chosen", "rejected"),
    [
        (None, THOUGHT, PLAIN),
        ("keep", THOUGHT, PLAIN),
        ("judge", PLAIN, THOUGHT),
        ("strip", "Good morning to you.", PLAIN),
    ],
)
def test_what_is_judged_and_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str | None, chosen: str, rejected: str
) -> None:
    folder = label(tmp_path, how, monkeypatch, [THOUGHT, PLAIN])
    (row,) = rows(folder / "preferences.jsonl")
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == (chosen, rejected)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["counts"]["with_reasoning"] == 1
    assert manifest["config"]["reasoning"] == (how or "keep")


def test_an_answer_that_was_never_given_loses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = rows(label(tmp_path, None, monkeypatch, [CUT, PLAIN]) / "preferences.jsonl")
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == (PLAIN, CUT)


@pytest.mark.parametrize("how", ["keep", "strip"])
def test_samples_keep_their_reasoning_or_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: r\nmodel: {ENGINE}\nstages: [{{stage: sample, limit: 4, k: 3, reasoning: {how}}}]",
        encoding="utf-8",
    )
    said = call("run", recipe, "--out", tmp_path / "run")
    assert said.status == 0, said.err
    texts = {
        row["completion"][-1]["content"] for row in rows(tmp_path / "run" / "sample" / "completions.jsonl")
    }
    assert texts == ({THOUGHT, PLAIN, CUT} if how == "keep" else {"Good morning to you.", PLAIN, ""})
