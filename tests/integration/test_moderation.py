"""A moderator trained from labels on a tiny model: what it learns, and what the program does with it."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from spine import call, rows
from tiny import save_tiny

from rlaif.config import parse_recipe
from rlaif.errors import ConfigError, DataError, ModelError
from rlaif.io.tables import read_table
from rlaif.models.shared_base import SharedBase
from rlaif.moderation.base import Scores, Watch
from rlaif.moderation.classifier import LoraModerator
from rlaif.moderation.files import load_moderator
from rlaif.pipeline.moderate import AT_ONCE, moderate_file, open_moderator, partial_of
from rlaif.pipeline.run import run_recipe
from rlaif.progress import NoProgress
from rlaif.types import Message

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning:transformers"),
]

BAD, GOOD = ("XXXX", "XQXQ", "QXXX"), ("pad", "sit", "bus", "run")
CONSTITUTION = """
name: two
principles:
  - {id: shouting, question: Is it calm?, critique: Say what is loud., revision: Make it calm.}
  - {id: numbers, question: Is it free of numbers?, critique: Find numbers., revision: Take them out.}
"""


def labelled(path: Path, count: int = 60) -> Path:
    """Prompts and exchanges: shouting is written in capital letters, numbers in digits."""
    draw, lines = random.Random(0), []
    for at in range(count):
        loud, counted = at % 2, int(at % 3 == 0)
        words = [draw.choice(BAD if loud else GOOD) for _ in range(5)]
        text = " ".join([*words, *(["1234567"] if counted else [])])
        broken = {"shouting": loud, "numbers": counted}
        name = "".join(draw.choice("abcdefgh") for _ in range(6))
        lines.append({"prompt": f"{name} {text}", **broken})
        lines.append({"prompt": f"say {name}", "completion": text, **broken})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


class Place:
    """A model, a constitution, labels, and a moderator trained from them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = save_tiny(folder / "model", sharpness=1.0)
        self.constitution = folder / "two.yaml"
        self.constitution.write_text(CONSTITUTION, encoding="utf-8")
        self.labels = labelled(folder / "labels.jsonl")
        self.said = self.train("guard", "--data", self.labels)
        assert self.said.status == 0, self.said.err
        self.moderator = folder / "guard" / "moderation"

    def train(self, name: str, *more: object) -> Any:
        return call(
            "moderation", "train", "--model", self.model, "--dtype", "float32",
            "--constitution", self.constitution, "--out", self.folder / name, *more,
        )  # fmt: skip

    def run(self, name: str, stages: str) -> Any:
        text = f"model: {self.model}\ndtype: float32\nconstitution: {self.constitution}\nstages:\n{stages}"
        return run_recipe(parse_recipe(text, source="r.yaml"), out=self.folder / name)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("moderation"))


@pytest.fixture(scope="module")
def report(place: Place) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place.moderator / "report.json").read_text("utf-8"))
    return found


def test_it_learns_what_breaks_each_principle(report: dict[str, Any]) -> None:
    found = {(each["category"], each["reads"]): each for each in report["categories"]}
    assert set(found) == {
        (name, reads) for name in ("shouting", "numbers") for reads in ("prompt", "exchange")
    }
    for each in found.values():
        own, passing = each["ways"]["moderator"], each["ways"]["always_pass"]
        assert own["auroc"]["low"] > 0.75
        assert own["auroc"]["low"] <= own["auroc"]["value"] <= own["auroc"]["high"]
        assert passing["auroc"]["value"] == 0.5
        assert passing["calibration_error"] == pytest.approx(each["broken"] / each["texts"])
    shouting = found["shouting", "prompt"]
    assert (shouting["texts"], shouting["broken"], shouting["look_alikes"]) == (60 + 48, 30, 48)


def test_a_harm_that_was_not_trained_is_measured(report: dict[str, Any]) -> None:
    for each in report["categories"]:
        unseen, own = each["ways"]["moderator"]["unseen"], each["ways"]["moderator"]["auroc"]
        assert unseen["value"] is not None
        assert unseen["value"] < own["value"]


def test_what_cannot_be_told_is_told(report: dict[str, Any], place: Place) -> None:
    each = next(each for each in report["categories"] if each["reads"] == "exchange")
    assert each["ways"]["moderator"]["recall"]["0.01"]["value"] is None
    said = (place.moderator / "samples.md").read_text("utf-8")
    for text in (said, place.said.out.replace("\n", " ")):
        assert "Recall at 1.0% and 0.1% false positives cannot be told from 30 kept texts." in text
        assert "a demonstration of the method, not a guard" in text
    assert "bag of words" in said
    assert report["sources"] == {"people": 120, "look-alike": 48}


def test_the_way_to_read_a_text_is_the_better_ranked(report: dict[str, Any]) -> None:
    for reads, ranked in report["ranked"].items():
        assert report["readout"][reads] == max(("windows", "mean"), key=lambda way: ranked[way])


def test_a_way_to_read_a_text_can_be_asked_for(place: Place) -> None:
    done = place.train("windows", "--data", place.labels, "--set", "readout=windows", "--window", 4)
    assert done.status == 0, done.err
    report = json.loads((place.folder / "windows" / "moderation" / "report.json").read_text("utf-8"))
    assert report["readout"] == {"prompt": "windows", "exchange": "windows"}
    assert all(list(ranked) == ["windows"] for ranked in report["ranked"].values())
    assert report["window"] == 4


def test_look_alikes_are_seldom_flagged_by_thresholds_of_other_prompts(report: dict[str, Any]) -> None:
    # 48 of the kept prompts are look-alikes: a threshold that they helped to choose could not flag two.
    measured = [each for each in report["categories"] if each["look_alikes"]]
    assert [each["look_alikes"] for each in measured] == [48, 48]
    for each in measured:
        found = each["ways"]["moderator"]["over_refusal"]
        assert 0 <= found["low"] <= found["value"] <= found["high"] < 0.25


def test_a_card_lies_beside_it(place: Place) -> None:
    card = (place.moderator / "model" / "README.md").read_text("utf-8")
    assert "rlaif moderate FILE --moderation FOLDER" in card
    assert "Made with rlaif: a moderator, linear heads on states (heads.safetensors) of the base" in card
    assert "LoRA adapter" not in card
    assert "lora_rank" not in card
    assert "demonstration of the method" in card
    assert (place.moderator / "model" / "report.md").read_text("utf-8").startswith("# Trained moderator")


def test_it_can_be_pushed(place: Place) -> None:
    said = call("push", place.moderator, "me/guard", "--dry-run")
    assert said.status == 0, said.err
    for name in ("moderation.json", "heads.safetensors", "README.md", "report.md"):
        assert name in said.out
    assert "a moderator" in call("push", place.moderator, "me/guard", "--dry-run", "--merge").err


def test_the_same_command_does_nothing_again(place: Place) -> None:
    before = (place.moderator / "manifest.json").read_bytes()
    again = place.train("guard", "--data", place.labels)
    assert again.status == 0
    assert (place.moderator / "manifest.json").read_bytes() == before


def test_a_dry_run_counts_and_writes_nothing(place: Place) -> None:
    said = place.train("dry", "--data", place.labels, "--dry-run")
    assert said.status == 0, said.err
    assert "168" in said.out
    assert not (place.folder / "dry").exists()


def test_labels_that_teach_nothing_are_refused(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "a", "shouting": 1}\n{"prompt": "b", "shouting": 0}\n', encoding="utf-8")
    said = place.train("few", "--data", file, "--benign", file)
    assert said.status == 1
    assert "no principle has labels enough to learn from" in said.err
    assert "shouting: prompts: 1 broken and" in said.err


def test_labels_of_another_constitution_are_refused(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "a", "harm": 1}\n', encoding="utf-8")
    said = place.train("other", "--data", file)
    assert said.status == 1
    assert "no column of labels; the columns are prompt, harm" in said.err


def test_a_judges_verdicts_are_learned_from(place: Place) -> None:
    """Of a label stage in the same run, with revisions as texts that break nothing."""
    done = place.run(
        "judged",
        """
  - {stage: sample, limit: 16, k: 2, max_new_tokens: 12}
  - {stage: label, judge: scripted, protocol: pointwise, principles: all}
  - {stage: revise, limit: 6, rounds: 1, max_new_tokens: 8}
  - {stage: moderation, benign: [builtin, revise], verdicts: centred}
""",
    )
    found = json.loads((done.stages[-1].folder / "report.json").read_text("utf-8"))
    assert found["sources"]["judge"] == 32
    assert found["sources"]["look-alike"] > 48
    exchanges = [each for each in found["categories"] if each["reads"] == "exchange"]
    assert {each["category"] for each in exchanges} == {"shouting", "numbers"}
    for each in exchanges:  # of 32 texts of a judge the worse half is broken; a few revisions are not
        assert each["broken"] == 16
    assert any("verdicts were centred" in sentence for sentence in found["words"])


def test_revisions_that_are_not_there_yet_do_not_stop_files(place: Place) -> None:
    done = place.run(
        "mixed",
        f"""
  - {{stage: revise, limit: 6, rounds: 1, max_new_tokens: 8}}
  - {{stage: moderation, files: [{{file: {place.labels}}}], benign: [revise]}}
""",
    )
    found = json.loads((done.stages[-1].folder / "report.json").read_text("utf-8"))
    assert found["sources"]["people"] == 120
    assert 0 < found["sources"]["look-alike"] <= 6


def test_a_stage_without_labels_is_refused_first(place: Place) -> None:
    with pytest.raises(ConfigError, match="'moderation' needs a label stage before it"):
        place.run("nothing", "  - {stage: moderation}")


# The kind lora


@pytest.fixture(scope="module")
def adapter(place: Place) -> Path:
    said = place.train(
        "lora", "--data", place.labels, "--kind", "lora", "--set", "epochs=2", "--set", "held_out=0.4",
        "--set", "learning_rate=0.003",
    )  # fmt: skip
    assert said.status == 0, said.err
    return place.folder / "lora" / "moderation"


def test_an_adapter_is_measured_on_prompts_held_out(adapter: Path) -> None:
    report = json.loads((adapter / "report.json").read_text("utf-8"))
    assert (report["kind"], report["measured"], report["texts"]) == ("lora", "on prompts held out", 168)
    for each in report["categories"]:
        ways = each["ways"]
        assert 0 < each["broken"] < each["texts"] < 84
        assert ways["moderator"]["auroc"]["value"] > 0.7
        assert ways["frozen"]["auroc"]["value"] > 0.5
        assert ways["moderator"]["unseen"]["value"] is None
        assert "once more for each principle" in ways["moderator"]["unseen"]["why"]
        assert any("than its heads without it" in sentence for sentence in each["words"])


def test_an_adapter_lowers_the_loss_of_what_it_learned(adapter: Path, place: Place) -> None:
    """Probabilities of the training texts, with the adapter and with its heads alone."""
    moderator = open_moderator(adapter, dtype="float32")
    assert isinstance(moderator, LoraModerator)
    given = [row for row in rows(place.labels) if "completion" not in row]
    texts = [[Message("user", row["prompt"])] for row in given]

    def gap(found: LoraModerator) -> float:
        """Between the mean score of what shouts and of what does not."""
        scores = [each["shouting"] for each in found.scores(texts)]
        loud = [score for score, row in zip(scores, given, strict=True) if row["shouting"]]
        calm = [score for score, row in zip(scores, given, strict=True) if not row["shouting"]]
        return sum(loud) / len(loud) - sum(calm) / len(calm)

    assert gap(moderator) > 0.3
    assert gap(moderator) != pytest.approx(gap(replace(moderator, role="reference")), abs=1e-3)


def test_an_adapter_reads_the_text_of_a_stream(adapter: Path) -> None:
    moderator = open_moderator(adapter, dtype="float32")
    assert moderator.layers == ()
    prompt = Message("user", "say abcdef")
    watch, seen = moderator.watch((prompt,)), []
    seen += [watch.push("XQ "[at % 3], None) for at in range(16)]
    assert seen[0] == moderator.scores([(prompt, Message("assistant", "X"))])[0]
    assert seen[1:15] == [seen[0]] * 14
    assert seen[15] == moderator.scores([(prompt, Message("assistant", "XQ XQ XQ XQ XQ X"))])[0]


def test_two_threads_do_not_share_a_pass(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Before an upstream prompts are scored on one thread and answers on another; the base has one active role.
    moderator = open_moderator(adapter, dtype="float32")
    assert isinstance(moderator, LoraModerator)
    hidden, both, met = moderator.base.hidden, threading.Barrier(2), []

    def meet(*given: Any, **named: Any) -> Any:
        try:
            both.wait(0.5)
            met.append(True)
        except threading.BrokenBarrierError:
            pass
        return hidden(*given, **named)

    monkeypatch.setattr(moderator.base, "hidden", meet)
    asked = [[Message("user", "GREAT GREAT NEWS")]]
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(moderator.scores, [asked, asked])
    assert not met
    assert first == second == moderator.scores(asked)


def test_an_adapter_on_another_base_brings_its_own(adapter: Path, tmp_path: Path) -> None:
    other = SharedBase.load(str(save_tiny(tmp_path / "other", seed=3)), dtype="float32")
    moderator = load_moderator(adapter, other)
    own = open_moderator(adapter, dtype="float32")
    text = [[Message("user", "XXXX pad")]]
    assert moderator.scores(text)[0] == pytest.approx(own.scores(text)[0], abs=0.02)
    assert other.roles == ()


def test_two_adapters_share_a_base(adapter: Path) -> None:
    base = SharedBase.load(json.loads((adapter / "model/moderation.json").read_text("utf-8"))["base"]["name"])
    first, second = load_moderator(adapter, base), load_moderator(adapter, base)
    assert base.roles == ("moderation", "moderation-2")
    text = [[Message("user", "XXXX pad")]]
    assert first.scores(text) == second.scores(text)


def test_an_adapter_moderates_a_file(adapter: Path, place: Place, tmp_path: Path) -> None:
    said = call(
        "moderate", place.labels, "--moderation", adapter, "--out", tmp_path / "o.jsonl", "--limit", 5,
        "--dtype", "float32",
    )  # fmt: skip
    assert said.status == 0, said.err
    assert len(rows(tmp_path / "o.jsonl")) == 5


def test_a_damaged_adapter_leaves_the_base_as_it_was(adapter: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(adapter / "model", copy)
    about = json.loads((copy / "moderation.json").read_text("utf-8"))
    about["probes"][0]["scores"] = dict.fromkeys(about["categories"], 5.0)
    (copy / "moderation.json").write_text(json.dumps(about), encoding="utf-8")
    base = SharedBase.load(about["base"]["name"], dtype="float32")
    with pytest.raises(ModelError, match="scores otherwise than when it was saved"):
        load_moderator(copy, base)
    assert base.roles == ()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--kind", "lora", "--set", "layers=[1]"), "kind: probe"),
        (("--set", "epochs=2"), "kind: lora"),
        (("--set", "layers=[9]"), "layer 9 is to be read, and the model has 2"),
        (("--set", "layers=[1,1]"), "names a layer twice"),
    ],
)
def test_settings_that_cannot_act_are_refused(place: Place, options: tuple[str, ...], said: str) -> None:
    found = place.train("refused", "--data", place.labels, *options)
    assert found.status == 1
    assert said in found.err


def test_without_prompts_held_out_nothing_is_measured(place: Place) -> None:
    found = place.train("none-held", "--data", place.labels, "--kind", "lora", "--set", "held_out=0")
    assert found.status == 1
    assert "the prompts held out have 0 that break 'shouting' and 0 that keep it" in found.err
    assert "raise `held_out`" in found.err


def test_a_few_prompts_held_out_are_measured_as_far_as_they_go(place: Place) -> None:
    found = place.train("few-held", "--data", place.labels, "--kind", "lora", "--set", "held_out=0.12")
    assert found.status == 0, found.err
    report = json.loads((place.folder / "few-held" / "moderation" / "report.json").read_text("utf-8"))
    assert any("every figure is rough" in each for found in report["categories"] for each in found["words"])


# rlaif moderate


def test_a_file_is_moderated(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "scores.jsonl"
    said = call(
        "moderate", place.labels, "--moderation", place.moderator, "--out", out, "--dtype", "float32",
        "--limit", 50,
    )  # fmt: skip
    assert said.status == 0, said.err
    found = rows(out)
    assert [row["row"] for row in found] == list(range(1, 51))
    flagged = sum(bool(row["flagged"]) for row in found)
    assert f"50 rows: {flagged} flagged, {50 - flagged} clear, 0 not scored" in said.out
    loud = [
        row["scores"]["shouting"]
        for row, given in zip(found, rows(place.labels), strict=False)
        if given["shouting"]
    ]
    calm = [
        row["scores"]["shouting"]
        for row, given in zip(found, rows(place.labels), strict=False)
        if not given["shouting"]
    ]
    assert min(loud) > sum(calm) / len(calm)
    assert not partial_of(out).exists()


def test_what_is_no_moderator_is_refused(place: Place, tmp_path: Path) -> None:
    said = call("moderate", place.labels, "--moderation", tmp_path)
    assert said.status == 1
    assert "contains no moderator" in said.err
    said = call("moderate", place.labels, "--moderation", place.moderator, "--out", place.labels)
    assert said.status == 1
    assert "would be written over" in said.err


def test_another_base_is_refused(place: Place, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", seed=5)
    with pytest.raises(ModelError, match="the moderator was trained on"):
        open_moderator(place.moderator, str(other), dtype="float32")


class Loud:
    """Flags what is in capital letters; counts, and may stop in between."""

    categories, thresholds, layers, digest = ("loud",), {"loud": 0.5}, (), "loud-1"

    def __init__(self, stop_after: int | None = None) -> None:
        self.asked: list[str] = []
        self._left = stop_after

    def scores(self, conversations: Sequence[Sequence[Message]]) -> list[Scores]:
        texts = [messages[-1].content for messages in conversations]
        if any(text == "too long" for text in texts):
            raise ModelError("it is too long")
        if self._left is not None and self._left <= 0:
            raise KeyboardInterrupt
        if self._left is not None:
            self._left -= 1
        self.asked += texts
        return [{"loud": float(text.isupper())} for text in texts]

    def watch(self, messages: Sequence[Message]) -> Watch:
        raise AssertionError("nothing is streamed here")


def texts(path: Path, *lines: str) -> Path:
    path.write_text(
        "".join(json.dumps({"id": f"t{at}", "text": line}) + "\n" for at, line in enumerate(lines))
    )
    return path


def test_counts_add_up_and_what_cannot_be_scored_says_why(tmp_path: Path) -> None:
    file = texts(tmp_path / "a.jsonl", "A", "b", "too long", "C")
    found = moderate_file(str(file), Loud(), tmp_path / "out.jsonl", progress=NoProgress())
    assert (found.rows, found.any, found.clear, sum(found.refused.values())) == (4, 2, 1, 1)
    assert found.flagged == {"loud": 2}
    third = rows(tmp_path / "out.jsonl")[2]
    assert third == {"row": 3, "id": "t2", "flagged": [], "scores": {}, "reason": "it is too long"}


def test_an_interrupted_file_is_gone_on_with(tmp_path: Path) -> None:
    lines = [("A" if at % 3 else "b") + f"{at}" for at in range(2 * AT_ONCE + 5)]
    file, out = texts(tmp_path / "a.jsonl", *lines), tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        moderate_file(str(file), Loud(stop_after=1), out, progress=NoProgress())
    assert not out.exists()
    with partial_of(out).open("a") as partial:
        partial.write('{"row": 33, "id"')  # cut short
    again = Loud()
    found = moderate_file(str(file), again, out, progress=NoProgress())
    assert again.asked == lines[AT_ONCE:]
    assert (found.rows, found.resumed) == (len(lines), AT_ONCE)
    moderate_file(str(file), Loud(), tmp_path / "whole.jsonl", progress=NoProgress())
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_partial_file_of_other_texts_is_not_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        moderate_file(
            str(texts(tmp_path / "a.jsonl", *"abcdefgh" * 8)), Loud(stop_after=1), out, progress=NoProgress()
        )
    found = moderate_file(str(texts(tmp_path / "a.jsonl", "A", "b")), Loud(), out, progress=NoProgress())
    assert (found.rows, found.resumed) == (2, 0)


def test_a_partial_file_of_a_data_set_that_has_changed_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, file = tmp_path / "out.jsonl", texts(tmp_path / "a.jsonl", *"abcdefgh" * 8)
    monkeypatch.setattr("rlaif.pipeline.moderate.read_table", lambda source: read_table(file))
    with pytest.raises(KeyboardInterrupt):
        moderate_file("some/dataset", Loud(stop_after=1), out, progress=NoProgress())
    texts(file, *"ABCDEFGH" * 8)
    found = moderate_file("some/dataset", Loud(), out, progress=NoProgress())
    assert (found.rows, found.resumed, found.any) == (64, 0, 64)


def test_a_named_column_and_bad_rows(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"said": "A"}\n{"said": ""}\n')
    with pytest.raises(DataError, match="1 of 2 rows cannot be read"):
        moderate_file(str(file), Loud(), tmp_path / "o.jsonl", text_column="said", progress=NoProgress())
    found = moderate_file(
        str(file), Loud(), tmp_path / "o.jsonl", text_column="said", skip_bad_rows=True, progress=NoProgress()
    )
    assert (found.rows, found.bad_rows) == (1, 1)


# In recipes


def prompts(path: Path, *lines: str) -> Path:
    path.write_text("".join(json.dumps({"prompt": line}) + "\n" for line in lines))
    return path


def test_prompts_are_chosen_and_counted(place: Place, tmp_path: Path) -> None:
    given = [row["prompt"] for row in rows(place.labels) if "completion" not in row][:24]
    file = prompts(tmp_path / "p.jsonl", *given)
    (stage,) = place.run(
        "chosen",
        f"  - {{stage: sample, prompts: {file}, k: 2, max_new_tokens: 4, moderation: {{path: {place.moderator}}}}}",
    ).stages
    counts = stage.manifest.counts
    dropped = rows(stage.folder / "dropped.jsonl")
    assert counts["prompts"] + counts["prompts_dropped"] == 24
    assert counts["completions"] + counts["refused"] == 2 * counts["prompts"]
    assert counts["prompts_not_scored"] == 0
    assert 0 < len(dropped) == counts["prompts_dropped"]
    assert all(row["flagged"] for row in dropped)
    kept = {row["prompt"][-1]["content"] for row in rows(stage.folder / "completions.jsonl")}
    assert kept.isdisjoint(row["prompt"][-1]["content"] for row in dropped)
    assert any("X" in row["prompt"][-1]["content"] for row in dropped)


def test_an_adapter_that_chose_prompts_does_not_stay_on_the_base(
    place: Place, adapter: Path, tmp_path: Path
) -> None:
    given = [row["prompt"] for row in rows(place.labels) if "completion" not in row][:12]
    file, shown = prompts(tmp_path / "p.jsonl", *given), tmp_path / "shown.jsonl"
    shown.write_text(
        "".join(json.dumps({"prompt": f"q {at}", "completion": "a b"}) + "\n" for at in range(6))
    )
    run = place.run(
        "then-tuned",
        f"  - {{stage: sample, prompts: {file}, k: 1, max_new_tokens: 2, moderation: {{path: {adapter}}}}}\n"
        f"  - {{stage: sft, files: [{shown}], lora_rank: 2, epochs: 1}}",
    )  # an adapter that is merged must be the only one
    assert [stage.manifest.stage for stage in run.stages] == ["sample", "sft"]


def test_prompts_are_chosen_for_a_policy_that_does_not_run_here(place: Place, tmp_path: Path) -> None:
    given = [row["prompt"] for row in rows(place.labels) if "completion" not in row][:12]
    file = prompts(tmp_path / "p.jsonl", *given)
    text = (
        f"model: scripted:spine:swift\ndtype: float32\nconstitution: {place.constitution}\nstages:\n"
        f"  - {{stage: sample, prompts: {file}, k: 1, moderation: {{path: {place.moderator}}}}}"
    )
    (stage,) = run_recipe(parse_recipe(text, source="r.yaml"), out=tmp_path / "run").stages
    counts = stage.manifest.counts
    assert counts["prompts"] + counts["prompts_dropped"] == 12
    assert counts["prompts_dropped"] > 0


def test_no_prompt_left_is_refused(place: Place, tmp_path: Path) -> None:
    worst = [row for row in rows(place.labels) if "completion" not in row and row["shouting"]]
    moderator = open_moderator(place.moderator, dtype="float32")
    sure = max(worst, key=lambda row: moderator.scores([[Message("user", row["prompt"])]])[0]["shouting"])
    file = prompts(tmp_path / "p.jsonl", sure["prompt"])
    with pytest.raises(DataError, match="the moderator flags all 1 prompts"):
        place.run("none", f"  - {{stage: sample, prompts: {file}, moderation: {{path: {place.moderator}}}}}")


@pytest.mark.parametrize("setting", ["moderation: {path: PATH}", "stage"])
def test_a_moderator_that_is_not_there_is_told_first(place: Place, tmp_path: Path, setting: str) -> None:
    file = prompts(tmp_path / "p.jsonl", "a", "b", "c")
    stage = (
        f"  - {{stage: sample, prompts: {file}, moderation: {{path: {tmp_path}}}}}"
        if setting != "stage"
        else f"  - {{stage: best_of_k, prompts: {file}, k: 2, reward: {{m: {{kind: moderation, path: {tmp_path}}}}}}}"
    )
    with pytest.raises(DataError, match="there is no moderator"):
        place.run("absent", stage)


def test_a_moderator_rewards(place: Place, tmp_path: Path) -> None:
    file = prompts(tmp_path / "p.jsonl", *(f"ask {at}" for at in range(4)))
    reward = f"reward: {{safe: {{kind: moderation, path: {place.moderator}}}, short: {{kind: length, max_words: 3}}}}"
    (stage,) = place.run(
        "rewarded", f"  - {{stage: best_of_k, prompts: {file}, k: 3, max_new_tokens: 6, {reward}}}"
    ).stages
    moderator = open_moderator(place.moderator, dtype="float32")
    for row in rows(stage.folder / "kept.jsonl"):
        said = [Message(turn["role"], turn["content"]) for turn in [*row["prompt"], *row["completion"]]]
        worst = max(moderator.scores([said])[0].values())
        short = 0.0 if len(said[-1].content.split()) <= 3 else -1.0
        assert row["reward"] == pytest.approx(short - worst, abs=1e-4)


def test_a_moderator_of_weight_0_is_measured_only(place: Place, tmp_path: Path) -> None:
    file = prompts(tmp_path / "p.jsonl", *(f"ask {at}" for at in range(4)))
    part = f"{{kind: moderation, path: {place.moderator}, weight: 0, scale: log-odds}}"
    reward = f"reward: {{safe: {part}, short: {{kind: length, max_words: 3}}}}"
    (stage,) = place.run(
        "measured",
        f"  - {{stage: grpo, prompts: {file}, episodes: 4, samples_per_prompt: 2, steps: 1, max_new_tokens: 6, {reward}}}",
    ).stages
    (step,) = rows(stage.folder / "metrics.jsonl")
    assert step["reward/safe"] != 0
    assert step["reward/short"] in (0.0, -1.0) or -1 < step["reward/short"] < 0
