"""A judge trained on preferences: fitted, saved, opened by its folder, and asked as any other judge."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from kind_words import CONSTITUTION, KIND, RUDE, Place, text, write_pairs
from safetensors.torch import save_file
from spine import call, rows

from rlaif import Judge
from rlaif.constitution.load import load_constitution
from rlaif.engines.base import LabelReading, LabelRequest
from rlaif.engines.hf import HFEngine
from rlaif.errors import ConfigError, ModelError
from rlaif.jobs.context import RunContext
from rlaif.judging.table import open_protocol
from rlaif.models.load import load_engine
from rlaif.models.open import open_engine
from rlaif.models.packing import MOST_COMPLETIONS
from rlaif.models.probe import NOT_QUOTED, StateReader, probe_layer
from rlaif.models.probe_files import find_judge, judge_about
from rlaif.prompts import PromptLibrary
from rlaif.types import Comparison, Completion, Message, Prompt


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """One for the module: training takes a second."""
    return Place(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def trained(place: Place) -> Path:
    """The run of a judge on pointwise questions."""
    return place.train("trained")


def report_of(run: Path) -> dict[str, dict[str, dict[str, float]]]:
    found: dict[str, dict[str, dict[str, float]]] = json.loads((run / "judge/report.json").read_text("utf-8"))
    return found


@pytest.mark.parametrize("protocol", ["pointwise", "pairwise"])
def test_a_judge_learns_what_people_prefer(place: Place, protocol: str) -> None:
    run = place.train(f"learns-{protocol}", "--protocol", protocol)
    report: dict[str, Any] = report_of(run)
    found = report["found"]
    assert found["trained"]["accuracy"] > 0.85
    if protocol == "pointwise":  # the tiny model answers with neither label: no tie, but no verdict
        pairs = report["pairs"]
        assert report["invalid"] == {"untrained": pairs}
        assert "untrained" not in found
        assert f"no figure of that judge: untrained {pairs}" in (run / "judge/samples.md").read_text("utf-8")
    else:
        assert report["invalid"] == {}
        assert found["untrained"]["accuracy"] < 0.85
    assert found["trained"]["low"] > found["shorter"]["accuracy"]
    others = write_pairs(place.path / f"others-{protocol}.jsonl", 20, first=100)
    said = call(
        *("label", "--responses", others, "--judge", run, "--constitution", place.constitution),
        *("--model", place.model, "--dtype", "float32", "--out", place.path / f"labels-{protocol}"),
    )
    assert said.status == 0, said.err
    labels = rows(place.path / f"labels-{protocol}/label/preferences.jsonl")
    right = [row["chosen"][0]["content"] == text(KIND, f"k{100 + at}") for at, row in enumerate(labels)]
    assert sum(right) >= 17
    assert {row["protocol"] for row in labels} == {protocol}
    assert all(row["judge"].startswith(f"{run}@") for row in labels)


def test_the_last_line_opens_the_judge_under_its_constitution(place: Place, trained: Path) -> None:
    said = call(
        *("judge", "train", "--data", place.pairs, "--constitution", place.constitution),
        *("--model", place.model, "--dtype", "float32", "--out", trained),
    )
    model = trained / "judge/model"
    assert f"use it: rlaif label --judge {model} --constitution {place.constitution}" in said.out


def test_a_judge_that_is_not_told_from_chance_is_to_be_measured_and_not_used(place: Place) -> None:
    coins = place.path / "coins.jsonl"
    turned = [row if at % 2 else swapped(row) for at, row in enumerate(rows(place.pairs)[:8])]
    coins.write_text("".join(json.dumps(row) + "\n" for row in turned), "utf-8")
    said = call(
        *("judge", "train", "--data", coins, "--constitution", place.constitution),
        *("--model", place.model, "--dtype", "float32", "--out", place.path / "coins"),
    )
    assert "not told from chance" in said.out
    assert "use it" not in said.out.replace("before you use it", "")
    assert f"rlaif audit --judge {place.path / 'coins/judge/model'}" in said.out


def swapped(row: dict[str, Any]) -> dict[str, Any]:
    """The pair with its label turned round."""
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]}


def test_the_dry_run_counts_the_time_of_shared_beginnings_once(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The principles of a pair are asked behind one beginning, which is read once; an adapter's are not."""
    timed: list[float] = []

    def seconds(model: str, context: RunContext, read: float, write: int) -> float:
        timed.append(read)
        return 1.0

    monkeypatch.setattr("rlaif.jobs.judge.estimated_seconds", seconds)
    plain = ("judge", "train", "--data", place.pairs, "--constitution", place.constitution)
    plain = (*plain, "--model", place.model, "--dtype", "float32", "--dry-run")
    for more in (["--principles", "sample"], [], ["--kind", "lora", "--set", "epochs=1"]):
        said = call(*plain, *more)
        assert said.status == 0, said.err
    sample, both, adapter = timed
    assert 1.0 < both / sample < 1.5
    assert adapter > 2.5 * sample


def test_the_saved_judge_says_what_was_measured(place: Place, trained: Path) -> None:
    """The label of a pair is the head on its features: the probabilities are those of the fit."""
    judge = Judge.open(str(trained), constitution=str(place.constitution), principles="all", dtype="float32")
    kind = judge.compare("Say thing 3.", text(KIND, "k3"), text(RUDE, "r3"))
    assert kind.p_a is not None
    assert kind.p_a > 0.6
    swapped = judge.compare("Say thing 3.", text(RUDE, "r3"), text(KIND, "k3"))
    assert swapped.p_a == pytest.approx(1 - kind.p_a, abs=1e-4)
    scores = judge.score(["Say thing 3."] * 2, [text(KIND, "k3"), text(RUDE, "r3")])
    assert scores[0] > scores[1]


def test_the_same_labels_and_seed_give_the_same_judge(place: Place, trained: Path) -> None:
    again = place.train("again")
    for name in ("judge.json", "head.safetensors"):
        assert (again / "judge/model" / name).read_bytes() == (trained / "judge/model" / name).read_bytes()


def test_labels_of_another_judge_teach_too(place: Place, trained: Path) -> None:
    others = write_pairs(place.path / "taught.jsonl", 30, first=200)
    labelled = place.path / "teacher"
    call(
        *("label", "--responses", others, "--judge", trained, "--constitution", place.constitution),
        *("--model", place.model, "--dtype", "float32", "--out", labelled),
    )
    said = call(
        *("judge", "train", "--verdicts", labelled / "label/verdicts.jsonl", "--data", f"{place.pairs}=2"),
        *(
            "--constitution",
            place.constitution,
            "--model",
            place.model,
            "--dtype",
            "float32",
            "--out",
            place.path / "student",
        ),
    )
    assert said.status == 0, said.err
    report = json.loads((place.path / "student/judge/report.json").read_text("utf-8"))
    assert report["pairs"] == 70
    assert {each["pairs"] for each in report["sources"]} == {30, 40}
    assert "labelled by" in judge_about(place.path / "student/judge/model").note


def test_a_trained_judge_is_audited_by_its_own_protocol(place: Place, trained: Path) -> None:
    others = write_pairs(place.path / "audit.jsonl", 12, first=300)
    out = place.path / "audit"
    said = call(
        *("audit", "--judge", trained, "--data", others, "--constitution", place.constitution),
        *("--model", place.model, "--dtype", "float32", "--no-probes", "--out", out),
    )
    assert said.status == 0, said.err
    (found,) = [json.loads(path.read_text("utf-8")) for path in place.path.rglob("audit*.json")]
    assert [each["key"]["protocol"] for each in found["protocols"]] == ["pointwise"]


# The engine


def questions(place: Place, count: int) -> list[LabelRequest]:
    """Of `count` responses, every principle's question."""
    constitution = load_constitution(str(place.constitution))
    protocol = open_protocol("pointwise", library=PromptLibrary(), constitution=constitution)
    prompt = Prompt(id="p", messages=(Message("user", "Say it."),))
    completions = [
        Completion(f"p/{at}", "p", at, text(KIND, f"q{at}"), "given", "") for at in range(2 * count)
    ]
    return [
        request
        for a, b in zip(completions[::2], completions[1::2], strict=True)
        for principle in constitution.principles
        for request in protocol.questions(Comparison(prompt, a, b), principle)
    ]


def read_all(engine: HFEngine, requests: Sequence[LabelRequest]) -> torch.Tensor:
    reader = StateReader(engine, layer=probe_layer(engine), quoted=("response",))
    found = {at: row for batch in reader.read(requests) for at, (row, _) in batch.items()}
    return torch.stack([row for _, row in sorted(found.items()) if isinstance(row, torch.Tensor)])


def test_questions_about_one_response_share_a_row(place: Place) -> None:
    """What questions have in common is read once; the features are those of each alone, and of the model's
    own states."""
    engine = load_engine(str(place.model), dtype="float32")
    requests = questions(place, 3)
    together = read_all(engine, requests)
    alone = torch.cat([read_all(engine, [request]) for request in requests])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    body = engine.form.render(requests[0].messages)
    ids = torch.tensor([engine.form.encode([body])[0]])
    with torch.no_grad():
        states = engine.model(ids, output_hidden_states=True).hidden_states[probe_layer(engine)][0]
    torch.testing.assert_close(together[0, -states.shape[1] :], states[-1], rtol=1e-4, atol=1e-4)
    assert MOST_COMPLETIONS > 1


def test_what_is_done_is_not_read_again(place: Place, trained: Path) -> None:
    engine, requests = open_engine(str(trained), dtype="float32"), questions(place, 4)
    every: dict[int, LabelReading] = {}
    for batch in engine.label_logprobs(requests):
        every.update(batch)
    some: dict[int, LabelReading] = {}
    for batch in engine.label_logprobs(requests, done=set(range(7))):
        some.update(batch)
    assert sorted(every) == list(range(len(requests)))
    assert some == {at: every[at] for at in range(7, len(requests))}
    assert all(reading.share == pytest.approx(1) for reading in every.values())


def test_a_question_that_quotes_nothing_is_refused(trained: Path) -> None:
    engine = open_engine(str(trained), dtype="float32")
    plain = LabelRequest(messages=(Message("user", "Is it kind? <response>"),), labels=("Yes", "No"))
    long = LabelRequest(messages=(Message("user", "word " * 2000),), labels=("Yes", "No"))
    found = {at: reading for batch in engine.label_logprobs([plain, long]) for at, reading in batch.items()}
    assert [found[at].reason for at in (0, 1)] == [NOT_QUOTED, "prompt_too_long"]
    with pytest.raises(ConfigError, match="does not write"):
        engine.generate([])


# What is refused


def test_another_protocol_is_refused(place: Place, trained: Path) -> None:
    said = call(
        *("label", "--responses", place.pairs, "--judge", trained, "--protocol", "pairwise"),
        *(
            "--constitution",
            place.constitution,
            "--model",
            place.model,
            "--dtype",
            "float32",
            "--out",
            place.path / "never",
        ),
    )
    assert said.status == 1
    assert "trained to answer pointwise questions, not pairwise" in said.err


def test_reasons_cannot_be_trained(place: Place) -> None:
    said = call(
        *("judge", "train", "--data", place.pairs, "--protocol", "cot"),
        *(
            "--constitution",
            place.constitution,
            "--model",
            place.model,
            "--dtype",
            "float32",
            "--out",
            place.path / "cot",
        ),
    )
    assert said.status == 1
    assert "no judge of the kind probe can be trained for cot questions" in said.err
    assert "kind generative" in said.err


def test_labels_that_say_nothing_are_refused(place: Place) -> None:
    ties = place.path / "ties.jsonl"
    lines = [json.loads(line) | {"p_chosen": 0.5} for line in place.pairs.read_text("utf-8").splitlines()]
    ties.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    said = call(
        *("judge", "train", "--data", ties, "--constitution", place.constitution),
        *("--model", place.model, "--dtype", "float32", "--out", place.path / "nothing"),
    )
    assert said.status == 1
    assert "say of no pair which completion is better" in said.err


def test_one_label_that_says_something_is_too_few(place: Place) -> None:
    lines = [json.loads(line) | {"p_chosen": 0.5} for line in place.pairs.read_text("utf-8").splitlines()[:6]]
    lines[0]["p_chosen"] = 0.9
    path = place.path / "one-label.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    said = call(
        *("judge", "train", "--data", path, "--constitution", place.constitution),
        *("--model", place.model, "--dtype", "float32", "--out", place.path / "one-label"),
    )
    assert said.status == 1
    assert "labels other than ½ are of too few prompts" in said.err


def cut_short(folder: Path) -> None:
    path = folder / "head.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def other_format(folder: Path) -> None:
    about = json.loads((folder / "judge.json").read_text("utf-8"))
    (folder / "judge.json").write_text(json.dumps(about | {"format": 9}), "utf-8")


def without_base(folder: Path) -> None:
    about = json.loads((folder / "judge.json").read_text("utf-8"))
    del about["base"]
    (folder / "judge.json").write_text(json.dumps(about), "utf-8")


def other_weights(folder: Path) -> None:
    about = json.loads((folder / "judge.json").read_text("utf-8"))
    about["base"]["identity"] = "0" * 16
    (folder / "judge.json").write_text(json.dumps(about), "utf-8")


def other_answers(folder: Path) -> None:
    about = json.loads((folder / "judge.json").read_text("utf-8"))
    about["questions"][0]["log_odds"] += 100.0
    (folder / "judge.json").write_text(json.dumps(about), "utf-8")


def without_questions(folder: Path) -> None:
    about = json.loads((folder / "judge.json").read_text("utf-8"))
    (folder / "judge.json").write_text(json.dumps(about | {"questions": []}), "utf-8")


def no_text(folder: Path) -> None:
    about = json.loads((folder / "judge.json").read_text("utf-8"))
    about["questions"][0]["messages"][0][1] = 3
    (folder / "judge.json").write_text(json.dumps(about), "utf-8")


def quotes_nothing(folder: Path) -> None:
    about = json.loads((folder / "judge.json").read_text("utf-8"))
    (folder / "judge.json").write_text(json.dumps(about | {"quoted": []}), "utf-8")


def no_number(folder: Path) -> None:
    about = json.loads((folder / "judge.json").read_text("utf-8"))
    (folder / "judge.json").write_text(json.dumps(about | {"scale": float("nan")}), "utf-8")


def head_of_another(folder: Path) -> None:
    head = {"direction": torch.zeros(5), "bias": torch.zeros(1)}
    save_file(head, folder / "head.safetensors")


def base_gone(folder: Path) -> None:
    about = json.loads((folder / "judge.json").read_text("utf-8"))
    about["base"]["name"] = str(folder / "moved")
    (folder / "judge.json").write_text(json.dumps(about), "utf-8")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without_questions, "holds no questions to check its answers by"),
        (no_text, "of its questions is no text"),
        (quotes_nothing, "`quoted` has 0 tags"),
        (no_number, "are no number that it can have"),
        (head_of_another, r"head is for features of shape \(5,\), the model gives 144"),
        (base_gone, "moved, which is not there"),
        (cut_short, "head.safetensors is missing, cut short or changed"),
        (other_format, "of format 9, this rlaif reads 1"),
        (without_base, "judge.json is missing, cut short or changed"),
        (other_weights, "was trained on"),
        (other_answers, "answers otherwise than when it was saved"),
    ],
)
def test_a_damaged_judge_is_refused(
    trained: Path, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    folder = tmp_path / "judge"
    folder.mkdir()
    for name in ("judge.json", "head.safetensors"):
        (folder / name).write_bytes((trained / "judge/model" / name).read_bytes())
    damage(folder)
    with pytest.raises(ModelError, match=said):
        open_engine(str(folder), dtype="float32")


def test_a_run_its_stage_and_its_folder_name_the_same_judge(trained: Path) -> None:
    named = (trained, trained / "judge", trained / "judge/model")
    assert {find_judge(str(each)) for each in named} == {trained / "judge/model"}
    assert find_judge("openai:judge") is None
    assert find_judge("smollm2-135m") is None


def test_verdicts_without_texts_are_refused(place: Place) -> None:
    alone = place.path / "alone" / "verdicts.jsonl"
    alone.parent.mkdir()
    alone.write_text("{}\n", "utf-8")
    said = call(
        *("judge", "train", "--verdicts", alone, "--constitution", place.constitution),
        *("--model", place.model, "--out", place.path / "no-texts"),
    )
    assert said.status == 1
    assert "there are no preferences beside the verdicts" in said.err


def test_a_judge_under_another_constitution_is_told(place: Place, trained: Path) -> None:
    other = place.path / "other.yaml"
    other.write_text(CONSTITUTION.replace("Is it warm?", "Is it polite?"), "utf-8")
    asked = {
        "label": ("--responses", place.pairs, "--limit", 2, "--model", place.model),
        "audit": ("--data", place.pairs, "--limit", 2, "--no-probes", "--variants", 0),
    }
    heard = []
    for command, options in asked.items():
        for constitution in (place.constitution, other):
            said = call(
                *(command, *options, "--judge", trained, "--dtype", "float32"),
                *("--constitution", constitution, "--out", place.path / f"told-{constitution.stem}"),
            )
            assert said.status == 0, said.err
            heard.append("was trained under another constitution" in said.out + said.err)
    assert heard == [False, True, False, True]
    with pytest.warns(UserWarning, match="was trained under another constitution"):
        Judge.open(str(trained), constitution=str(other))


def test_a_trained_judge_gives_no_reward_by_other_questions(place: Place, trained: Path) -> None:
    """It would answer them, and its answers would mean nothing."""
    recipe = place.path / "rewarded.yaml"
    for part in ("{kind: rubric, without: 0}", "{kind: judge, mode: cohort, protocol: pairwise}"):
        recipe.write_text(
            f"model: {place.model}\nconstitution: {place.constitution}\nstages:\n"
            f"  - {{stage: ppo, samples_per_prompt: 2, reward: {{own: {part[:-1]}, judge: {trained}}}}}}}\n",
            "utf-8",
        )
        said = call("run", recipe, "--out", place.path / "rewarded")
        assert said.status == 1
        assert "the judge was trained to answer pointwise questions, not" in said.err


def test_a_judge_of_pairs_scores_no_single_response(place: Place) -> None:
    run = place.train("of-pairs", "--protocol", "pairwise")
    with (
        Judge.open(str(run), constitution=str(place.constitution), dtype="float32") as judge,
        pytest.raises(ConfigError, match="trained to answer pairwise questions, not pointwise"),
    ):
        judge.score(["Say it."], ["yes"])


def test_responses_may_be_shown_in_the_other_order(place: Place) -> None:
    """What two questions share ends behind both responses, whichever comes last."""
    engine = load_engine(str(place.model), dtype="float32")
    requests = [
        LabelRequest(
            (
                Message(
                    "user", f"<response_b>\nno\n</response_b>\n<response_a>\n{a}\n</response_a>\n{question}"
                ),
            ),
            (" A", " B"),
        )
        for a, question in (("yes", "Kind?"), ("yes", "Warm?"), ("never at all", "Kind?"))
    ]
    reader = StateReader(engine, layer=2, quoted=("response_a", "response_b"))

    def features(asked: Sequence[LabelRequest]) -> torch.Tensor:
        found = {at: row for batch in reader.read(asked) for at, (row, _) in batch.items()}
        return torch.stack([row for _, row in sorted(found.items()) if isinstance(row, torch.Tensor)])

    alone = torch.cat([features([each]) for each in requests])
    torch.testing.assert_close(features(requests), alone, rtol=1e-4, atol=1e-4)
