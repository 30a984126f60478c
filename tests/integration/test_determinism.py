"""Same seed, same bytes; batch size does not matter; labels equal a slow reference that asks one question at
a time, unpadded."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from spine import call, rows
from tiny import save_tiny

from rlaif.constitution.load import load_constitution
from rlaif.engines import hf
from rlaif.prompts import PromptLibrary
from rlaif.types import Comparison, Completion, Message, Principle, Prompt

WORDS = ("the cat", "naïve 日本", "you 🙂", "there\n\nin it")
FILES = (
    "sample/completions.jsonl",
    "label/preferences.jsonl",
    "label/verdicts.jsonl",
    "label/statistics.json",
    "revise/sft.jsonl",
    "revise/revisions.jsonl",
)
RECIPE = """
constitution: warmth
model: {model}
dtype: float32
stages:
  - {{stage: sample, prompts: "builtin:everyday", split: label, limit: 2, k: 3, max_new_tokens: 8}}
  - {{stage: revise, prompts: "builtin:everyday", split: sft, limit: 2, rounds: 1, max_new_tokens: 8}}
  - {{stage: label, principles: all}}
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), context=4096)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Six completions of very different lengths, three a prompt."""
    path = tmp_path / "answers.jsonl"
    texts = [f"{WORDS[number % 4]} " * (1 + 7 * number) for number in range(6)]
    found = [
        {"prompt": f"Say {'more ' * (number // 3)}of it!", "completion": text.strip()}
        for number, text in enumerate(texts)
    ]
    path.write_text("\n".join(json.dumps(row) for row in found), encoding="utf-8")
    return path


def finish(out: Path, model: object, *options: object) -> Path:
    """Run the recipe with a journal of its own."""
    (out / "recipe.yaml").write_text(RECIPE.format(model=model), encoding="utf-8")
    said = call("run", out / "recipe.yaml", "--out", out / "run", *options)
    assert said.status == 0, said.err
    return out / "run"


@pytest.mark.parametrize("kind", ["scripted", "tiny"])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    kind: str, tiny: Path, tmp_path: Path
) -> None:
    model = tiny if kind == "tiny" else "scripted"
    runs = []
    for name, seed in (("one", 7), ("two", 7), ("three", 8)):
        (tmp_path / name).mkdir()
        runs.append(finish(tmp_path / name, model, "--set", f"seed={seed}"))
    one, two, three = ({name: (run / name).read_bytes() for name in FILES} for run in runs)
    assert one == two
    assert all(one[name] != three[name] for name in FILES)


def judged(out: Path, *, by: Path, answers: Path, protocol: str) -> Path:
    said = call(
        "label",
        "--constitution",
        "warmth" if protocol == "pointwise" else "concise",
        "--protocol",
        protocol,
        "--principles",
        "all",
        "--responses",
        answers,
        "--model",
        by,
        "--dtype",
        "float32",
        "--out",
        out,
        "--journal",
        out.with_suffix(".sqlite"),
    )
    assert said.status == 0, said.err
    return out / "label"


@pytest.mark.parametrize("protocol", ["pairwise", "pointwise"])
def test_batch_size_changes_no_label(
    protocol: str, tiny: Path, answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for budget in (1, 5000, 60_000):
        monkeypatch.setattr(hf, "CPU_TOKENS", budget)
        folder = judged(tmp_path / str(budget), by=tiny, answers=answers, protocol=protocol)
        found.append(rows(folder / "verdicts.jsonl"))
    alone, *together = found
    assert len(alone) >= 18
    assert len({row["p_a"] for row in alone}) > 5
    for batched in together:
        for one, other in zip(alone, batched, strict=True):
            assert all(one[name] == other[name] for name in ("comparison_id", "principle", "order"))
            assert abs(one["p_a"] - other["p_a"]) < 1e-3


# A slow reference -------------------------------------------------------------------------------------------


class Slow:
    """Asks a tiny model one question at a time: no batch, no padding, no journal, all logits."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32
        ).eval()
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)

    def log_odds(self, prompt: Any) -> float:
        """log P(first label) - log P(second), where the labelled texts first differ."""
        messages = [message.as_dict() for message in prompt.messages]
        opened = messages[-1]["role"] == "assistant"
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not opened, continue_final_message=opened
        )
        first, second = (
            self.tokenizer(text + label, add_special_tokens=False)["input_ids"] for label in prompt.labels
        )
        at = next(place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([first[:at]])).logits[0, -1].double()
        return float(logits[first[at]] - logits[second[at]])


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def reference(protocol: str, tiny: Path, answers: Path) -> dict[frozenset[str], dict[str, float]]:
    """For each pair of completions, P(it is the better one) of each of the two: both orders, all principles,
    weighted."""
    constitution = load_constitution("warmth" if protocol == "pointwise" else "concise")
    library, slow = PromptLibrary(), Slow(tiny)
    half = "question" if protocol == "pointwise" else "comparison"
    principles = [principle for principle in constitution.principles if getattr(principle, half)]

    def logit(prompt: Prompt, a: Completion, b: Completion, principle: Principle) -> float:
        if protocol == "pointwise":
            score_a, score_b = (
                slow.log_odds(library.judge_pointwise(prompt, each, principle)) for each in (a, b)
            )
            return score_a - score_b
        pair = Comparison(prompt, a, b)
        ab, ba = (
            slow.log_odds(library.judge_pairwise(each, principle, constitution))
            for each in (pair, pair.swap())
        )
        return (ab - ba) / 2

    found: dict[frozenset[str], dict[str, float]] = {}
    for one, other in combinations(rows(answers), 2):
        if one["prompt"] == other["prompt"]:
            prompt = Prompt(id="p", messages=(Message("user", one["prompt"]),))
            a, b = (
                Completion(str(at), "p", at, row["completion"], "given", "given")
                for at, row in enumerate((one, other))
            )
            total = sum(principle.weight * logit(prompt, a, b, principle) for principle in principles)
            mean = total / sum(principle.weight for principle in principles)
            found[frozenset((a.text, b.text))] = {a.text: sigmoid(mean), b.text: sigmoid(-mean)}
    return found


@pytest.mark.parametrize("protocol", ["pairwise", "pointwise"])
def test_labels_equal_the_slow_reference(protocol: str, tiny: Path, answers: Path, tmp_path: Path) -> None:
    expected = reference(protocol, tiny, answers)
    found = rows(judged(tmp_path / "run", by=tiny, answers=answers, protocol=protocol) / "preferences.jsonl")
    assert len(found) == len(expected) == 6
    for row in found:
        chosen, rejected = (row[side][0]["content"] for side in ("chosen", "rejected"))
        assert row["p_chosen"] == pytest.approx(expected[frozenset((chosen, rejected))][chosen], abs=1e-5)
    assert max(row["p_chosen"] for row in found) > 0.51, "labels far enough from one half to tell a sign"
