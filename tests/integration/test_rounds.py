"""Rounds: each from the policy of the time before, on fresh prompts, with answers after each."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from spine import call, rows
from tiny import save_tiny

from rlaif.config import Recipe, parse_recipe
from rlaif.config.reward import PreferenceFile, RewardConfig
from rlaif.config.rounds import FeedbackSettings
from rlaif.engines.journaled import NullMemo
from rlaif.errors import ConfigError, DataError, RlaifError, RunError
from rlaif.jobs.context import RunContext
from rlaif.jobs.reward import RewardJob
from rlaif.jobs.sample import sampled_prompts
from rlaif.pipeline.feedback import take_feedback
from rlaif.pipeline.report import write_report
from rlaif.pipeline.round_recipes import learns_from_feedback_alone
from rlaif.pipeline.rounds import Former, check_rounds, recipe_of_round, run_rounds
from rlaif.pipeline.run import run_recipe
from rlaif.pipeline.study import plan_study
from rlaif.progress import NoProgress
from rlaif.report.page import rounds_page, run_page
from rlaif.report.rounds import rounds_markdown, rounds_shown
from rlaif.results.comparison import interval
from rlaif.results.rounds import Gain, Round, Rounds, Share
from rlaif.stages.rounds import best_round
from rlaif.stats import ClusteredShare, Estimate

JUDGE = "scripted:spine:swift"


def recipe(path: Path, *, rounds: object = 2, **changed: Any) -> Recipe:
    prompts = {"prompts": str(path / "prompts.txt"), "max_new_tokens": 4}
    stages: list[dict[str, Any]] = [
        {"stage": "sample", **prompts, "split": "label", "limit": 6, "k": 3},
        {"stage": "label", "judge": JUDGE, "audit": False},
        {"stage": "reward", "keep": "head", "uninformative": "allow"},
        {
            "stage": "ppo",
            **prompts,
            "split": "rl",
            "limit": 4,
            "steps": 2,
            "episodes": 4,
            "lora_rank": 2,
            "learning_rate": 1e-2,
        },
        {
            "stage": "evaluate",
            **prompts,
            "split": "eval",
            "limit": 4,
            "samples": 2,
            "win_rate": False,
            "gold": "toy_policy:letters",
        },
        {"stage": "compare", "resamples": 100},
    ]
    stages = [
        stage | changed.get(stage["stage"], {})
        for stage in stages
        if changed.get(stage["stage"], {}) is not None
    ]
    values = {
        "name": "turns",
        "model": str(path / "model"),
        "dtype": "float32",
        "rounds": rounds,
        "stages": stages,
    }
    return parse_recipe(json.dumps(values), source="test")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounds")
    save_tiny(folder / "model")
    (folder / "prompts.txt").write_text("\n".join(f"say thing {at}" for at in range(80)), "utf-8")
    return folder


SETTINGS = {"count": 2, "fresh": 3}


@pytest.fixture(scope="module")
def ran(place: Path) -> Path:
    run_rounds(recipe(place, rounds=SETTINGS), out=place / "run")
    return place / "run"


def asked(folder: Path) -> set[str]:
    return {row["prompt_id"] for row in rows(folder)}


def test_each_round_is_a_run_on_prompts_of_its_own(ran: Path) -> None:
    for stage in ("sample/completions.jsonl", "ppo/completions.jsonl", "evaluate-fresh/completions.jsonl"):
        assert not asked(ran / "round-1" / stage) & asked(ran / "round-2" / stage)
    fixed = [asked(ran / f"round-{number}/evaluate/completions.jsonl") for number in (1, 2)]
    assert fixed[0] == fixed[1]
    assert not fixed[0] & asked(ran / "round-1/evaluate-fresh/completions.jsonl")


def test_the_second_round_starts_from_the_first_and_remembers_its_labels(ran: Path) -> None:
    models = json.loads((ran / "round-2/sample/manifest.json").read_text("utf-8"))["models"]
    assert "round-1/ppo/adapter@" in models["policy"]
    report = [json.loads((ran / f"round-{at}/reward/report.json").read_text("utf-8")) for at in (1, 2)]
    pairs = [each["pairs"] + each["held_out_pairs"] for each in report]
    labelled = [len(rows(ran / f"round-{at}/label/preferences.jsonl")) for at in (1, 2)]
    assert pairs == [labelled[0], sum(labelled)]
    assert report[0]["previous"] == {}
    assert report[1]["previous"]["fresh"]["pairs"] == labelled[1]
    parts = json.loads((ran / "round-2/ppo/manifest.json").read_text("utf-8"))["parts"]
    assert parts["reference"] == "first"


def test_the_answers_are_in_words_and_in_figures(ran: Path) -> None:
    found = json.loads((ran / "rounds.json").read_text("utf-8"))
    assert [each["number"] for each in found["rounds"]] == [1, 2]
    second = found["rounds"][1]
    assert "letters" in second["answers"][0]
    assert "over round 1" in second["answers"][0]
    measured = {(each["measure"], each["against"], each["prompts"]) for each in second["gains"]}
    assert {
        ("letters", "previous", "fixed"),
        ("letters", "start", "fresh"),
        ("reward", "previous", "fixed"),
    } <= measured
    assert {"fresh"} <= set(second["reward"])
    assert second["overfit"] is not None
    assert "# 2 rounds; the policy of round" in (ran / "rounds.md").read_text("utf-8")
    best = f"round-{found['best']}/ppo/adapter"
    kept = load_file(ran / "policy/adapter_model.safetensors")
    made = load_file(ran / best / "adapter_model.safetensors")
    assert all(made[name].equal(tensor) for name, tensor in kept.items())


def test_the_answers_have_a_page_with_a_picture_and_links_to_the_rounds(ran: Path) -> None:
    found = Rounds.from_dict(json.loads((ran / "rounds.json").read_text("utf-8")))
    assert json.loads(json.dumps(found.as_dict())) == json.loads((ran / "rounds.json").read_text("utf-8"))
    text = (ran / "report.html").read_text("utf-8")
    for number in (1, 2):
        assert f'href="round-{number}/report.html"' in text
        assert (ran / f"round-{number}/report.html").is_file()
    assert "Rounds of turns" in text
    assert text.count("<svg") == 1
    assert "What is not here" not in text
    picture = next(
        each for section in rounds_page(ran, report="report.html").sections for each in section.pictures
    )
    assert [row[0] for row in picture.numbers[0].rows] == ["1", "2"]
    fixed, fresh = (found.rounds[1].gain("letters", "start", prompts) for prompts in ("fixed", "fresh"))
    assert fixed is not None
    assert fresh is not None
    assert picture.numbers[0].rows[1][1:] == (interval(fixed, signed=True), interval(fresh, signed=True))


def test_a_page_of_rounds_says_what_is_missing_and_refuses_what_it_cannot_read(
    ran: Path, tmp_path: Path
) -> None:
    for name in ("rounds.json", "recipe.yaml"):
        shutil.copy(ran / name, tmp_path / name)
    recipe_text = (tmp_path / "recipe.yaml").read_text("utf-8").replace("count: 2", "count: 5")
    (tmp_path / "recipe.yaml").write_text(recipe_text, "utf-8")
    page = rounds_page(tmp_path, report="report.html")
    assert page.missing[0] == "2 of 5 rounds have finished"
    assert page.missing[1] == "there is no `round-1/report.html`"
    (tmp_path / "rounds.json").write_text('{"rounds": []}')
    with pytest.raises(RunError, match=r"rounds\.json is not what a run in rounds writes"):
        write_report(tmp_path)


def test_the_report_of_a_round_shows_the_evaluation_that_was_compared(ran: Path) -> None:
    page = run_page(ran / "round-2")
    assert page.samples is not None
    shown = [json.loads(row)["id"] for row in page.samples.rows]
    assert [id for id in shown if id.startswith("evaluate/")]
    assert not [id for id in shown if id.startswith("evaluate-fresh/")]


def test_a_folder_that_was_moved_has_nothing_to_do(
    place: Path, ran: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ran, place / "moved")
    monkeypatch.chdir(place)
    before = {path: path.read_bytes() for path in sorted(Path("moved").glob("round-*/*/manifest.json"))}
    run_rounds(recipe(place, rounds=SETTINGS), out=Path("moved"))
    assert {path: path.read_bytes() for path in before} == before
    assert not list(Path("moved").glob("round-*/superseded/*"))


def test_a_run_that_was_killed_goes_on(place: Path, ran: Path) -> None:
    half = place / "killed"
    shutil.copytree(ran, half)
    for stage in ("ppo", "evaluate", "evaluate-fresh", "compare"):
        shutil.rmtree(half / "round-2" / stage)
    for name in ("rounds.json", "rounds.md"):
        (half / name).unlink()
    kept = ("round-1/ppo", "round-2/sample", "round-2/label", "round-2/reward")
    before = [(half / name / "manifest.json").read_bytes() for name in kept]
    run_rounds(recipe(place, rounds=SETTINGS), out=half)  # which lies elsewhere now
    assert [(half / name / "manifest.json").read_bytes() for name in kept] == before
    one, other = (json.loads((each / "rounds.json").read_text("utf-8")) for each in (ran, half))
    assert one == other


def test_rounds_and_a_single_run_keep_to_folders_of_their_own(place: Path, ran: Path) -> None:
    single = recipe(place, rounds=None)
    with pytest.raises(RunError, match="the folder of a recipe that was run in rounds"):
        run_recipe(single, out=ran)
    with pytest.raises(RunError, match="the folder of a single run, and rounds are several"):
        run_rounds(recipe(place, rounds=SETTINGS), out=ran / "round-1")
    said = call("runs", "list", place)
    assert f"{ran.name}/round-1" in said.out.replace("\n", "")
    assert f"{ran.name}/round-2" in said.out.replace("\n", "")


def test_an_error_without_a_place_is_given_that_of_its_stage(place: Path) -> None:
    never = {"reward": {"never": {"kind": "pattern", "pattern": "no answer has this"}}, "steps": 4}
    one = recipe(place, rounds={"count": 1, "fresh": None}, ppo=never, sample=None, label=None, reward=None)
    with pytest.raises(RlaifError) as told:
        run_rounds(one, out=place / "fails")
    assert str(told.value).startswith("ppo: the reward gave 0 to every completion")


def test_it_ends_without_a_gain_and_keeps_the_best(place: Path) -> None:
    still = recipe(
        place, rounds={"count": 3, "fresh": None, "stop_when": "no_gain"}, ppo={"learning_rate": 1e-12}
    )
    found = run_rounds(still, out=place / "still")
    assert len(found.rounds) == 1
    assert "did not rise over the start" in found.stopped
    assert (place / "still/policy/adapter_config.json").is_file()


def test_prompts_that_run_out_are_counted_before_anything_runs(place: Path) -> None:
    with pytest.raises(DataError, match=r"prompts run out in round \d+: of \d+ prompts \d+ are used already"):
        run_rounds(recipe(place, rounds=30), out=place / "out")
    assert not (place / "out").exists()


def test_what_a_round_trained_on_is_no_later_round_s_evaluation(place: Path) -> None:
    shared = {"sample": None, "label": None, "reward": None, "evaluate": {"split": "all", "skip": 60}}
    reward = {"letters": {"kind": "function", "function": "toy_policy:letters"}}

    def check(rounds: int, first: int) -> None:
        stages = shared | {"ppo": {"split": "all", "skip": first, "reward": reward}}
        check_rounds(recipe(place, rounds={"count": rounds, "fresh": 3}, **stages))

    check(2, 0)
    check(1, 64 + 3)
    # Round 1 trains on the prompts 67 to 70 of the draw, from which round 2 would take fresh ones, 67 to 69.
    with pytest.raises(DataError, match=r"in round 2: sets of prompts that must be disjoint overlap"):
        check(2, 64 + 3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sample": {"limit": None}}, "the stage must say how many"),
        ({"evaluate": {"limit": None}}, "must be told apart"),
        ({"evaluate": None, "compare": None}, "rounds need an `evaluate` stage"),
    ],
)
def test_what_cannot_be_run_in_rounds_is_refused(place: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_rounds(recipe(place, **changed))
    with pytest.raises(ConfigError, match="no stage 'dpo' that trains a policy"):
        check_rounds(recipe(place, rounds={"count": 2, "policy": "dpo"}))


@pytest.mark.parametrize(
    ("memory", "remembered"), [("all", [1, 2, 3]), ("last", []), (2, [3]), (9, [1, 2, 3])]
)
def test_what_is_remembered(place: Path, memory: object, remembered: list[int]) -> None:
    files = tuple((PreferenceFile(file=f"labels-{at}"),) for at in (1, 2, 3))
    former = Former(Path("p"), Path("r"), files)
    own = recipe_of_round(recipe(place, rounds={"memory": memory, "count": 4}), 4, former)
    stage = next(each for each in own.stages if each.stage == "reward")
    assert [each.file for each in stage.files] == [f"labels-{at}" for at in remembered]  # type: ignore[attr-defined]
    assert stage.input == ("label" if remembered else None)  # type: ignore[attr-defined]
    assert stage.previous == "r"  # type: ignore[attr-defined]


def test_a_reward_model_goes_on_from_that_of_the_round_before(place: Path) -> None:
    former = Former(Path("p"), Path("r"), ((PreferenceFile(file="labels-1"),),))
    rounds = {"memory": "last", "reward": "further"}
    for given, further in ((None, False), (former, True)):
        own = recipe_of_round(recipe(place, rounds=rounds), 2 if given else 1, given)
        stage = next(each for each in own.stages if isinstance(each, RewardConfig))
        assert stage.further is further
        assert stage.files == ()


def test_a_reward_model_does_not_learn_twice_from_the_same_labels(place: Path) -> None:
    with pytest.raises(ConfigError, match="has 1 problem") as refused:
        recipe(place, rounds={"reward": "further"})
    assert "needs `memory: last`" in str(refused.value)


def test_revisions_are_of_the_model_without_an_adapter_in_every_round(place: Path) -> None:
    """They hold a policy back, and must not move along with it."""
    own = recipe(place)
    revise = {"stage": "revise", "prompts": str(place / "prompts.txt"), "split": "sft", "limit": 2}
    values = own.model_dump(mode="json")
    whole = parse_recipe(json.dumps(values | {"stages": [revise, *values["stages"]]}), source="test")
    stages = recipe_of_round(whole, 2, Former(Path("p"), None, ())).stages
    found = {each.stage: each for each in stages}
    assert found["revise"].policy is None  # type: ignore[union-attr]
    assert found["revise"].model_dump()["skip"] == 2
    assert found["sample"].policy == found["ppo"].policy == "p"  # type: ignore[union-attr]


def test_how_the_judge_answered_has_intervals_over_prompts(ran: Path) -> None:
    flips: dict[str, list[int]] = {}
    for row in rows(ran / "round-1/label/preferences.jsonl"):
        orders: dict[str, list[float]] = {}
        for verdict in row["verdicts"]:
            orders.setdefault(verdict["principle"], []).append(verdict["p_chosen"] - 0.5)
        counted = flips.setdefault(row["prompt_id"], [0, 0])
        counted[0] += sum(one * other < 0 for one, other in orders.values())
        counted[1] += len(orders)
    expected = ClusteredShare()
    for successes, trials in flips.values():
        expected.add(successes, trials)
    told = json.loads((ran / "rounds.json").read_text("utf-8"))["rounds"][0]["judge"]["flips"]
    assert told["of"] == expected.trials > expected.clusters == 6
    assert told["estimate"] == pytest.approx(expected.estimate()._asdict())


def test_a_reward_model_of_files_alone_is_not_given_other_labels(place: Path) -> None:
    former = Former(Path("p"), Path("r"), ((PreferenceFile(file="labels-1"),),))
    own = recipe(place, reward={"files": [{"file": "people.jsonl"}]})
    stage = next(each for each in recipe_of_round(own, 2, former).stages if each.stage == "reward")
    assert [each.file for each in stage.files] == ["people.jsonl"]  # type: ignore[attr-defined]
    assert stage.input is None  # type: ignore[attr-defined]
    assert isinstance(stage, RewardConfig)
    job = RewardJob(stage, RunContext(own, memo=NullMemo(), progress=NoProgress()))
    assert job._fresh() == "", "the model of the round before has learned from them"
    named = recipe(place, reward={"files": [{"file": "people.jsonl"}], "input": "label"})
    stage = next(each for each in recipe_of_round(named, 2, former).stages if each.stage == "reward")
    assert [each.file for each in stage.files] == ["people.jsonl", "labels-1"]  # type: ignore[attr-defined]


def estimate(value: float, width: float) -> Estimate:
    return Estimate(value, value - width, value + width)


def round_of(number: int, gold: float, *gains: Gain, **more: Any) -> Round:
    return Round(number, f"round-{number}/ppo", "gold", estimate(gold, 0.1), None, gains, **more)


def test_the_proxy_that_runs_ahead_and_the_judge_that_changes_are_named() -> None:
    first = round_of(1, 0.3, judge={"flips": Share(100, estimate(0.1, 0.05))})
    second = round_of(
        2,
        0.2,
        Gain("gold", "previous", "fixed", estimate(-0.1, 0.05)),
        Gain("gold", "start", "fixed", estimate(0.2, 0.05)),
        Gain("reward", "previous", "fixed", estimate(0.5, 0.1)),
        overfit=estimate(0.2, 0.1),
        reward={
            "fresh": Share(50, estimate(0.6, 0.1)),
            "before": Share(9, estimate(0.5, 0.2)),
            "now": Share(9, estimate(0.7, 0.2)),
        },
        judge={"flips": Share(100, estimate(0.4, 0.05))},
    )
    said = list(Rounds((first, second), best_round([first, second])).words(1))
    assert "(fell)" in said[0]
    assert "(improved)" in said[0]
    assert said[1].startswith("The proxy runs ahead of gold")
    assert "of the prompts that every round is measured on" in said[2]
    assert "50 % [40, 70]" not in said[3]
    assert "60 % [50, 70] of 50 new pairs" in said[3]
    assert said[4] == "The judge behaves otherwise on the new policy: flips 10 % [5, 15] → 40 % [35, 45]."
    assert best_round([first, second]) == 1
    assert not second.has_gained


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (0.3, "The policy of round 2 is kept."),
        (
            0.05,
            "The policy of round 2 is kept, but it is not told from the start policy: +0.05 [-0.05, +0.15] over it.",
        ),
        (-0.3, "The policy of round 2 is kept, but the start policy is better: -0.3 [-0.4, -0.2] over it."),
    ],
)
def test_a_kept_policy_that_is_not_better_than_the_start_is_named(gain: float, said: str) -> None:
    rounds = [round_of(1, -1.0), round_of(2, 0.0, Gain("gold", "start", "fixed", estimate(gain, 0.1)))]
    found = Rounds(tuple(rounds), best_round(rounds))
    assert found.kept == said
    assert said in rounds_markdown(found)
    assert rounds_shown(found)[-1] == said


def test_the_command_tells_what_each_round_did(place: Path, ran: Path) -> None:
    said = call("run", ran / "recipe.yaml", "--out", ran, "--dry-run")
    assert said.status == 0, said.err
    assert "the first of 2 rounds" in said.out
    said = call("run", ran / "recipe.yaml", "--out", ran)
    assert said.status == 0, said.err
    assert "The policy of round" in said.out
    assert "rounds.md" in said.out
    assert f"report: {ran / 'report.html'}" in said.out.replace("\n", "")


def test_feedback_enters_once_and_what_is_left_out_is_counted(place: Path) -> None:
    chats, labels = place / "chats.jsonl", place / "labels.jsonl"
    chats.write_text('{"prompt": "say thing 1000", "time": "2026-11-02T10:00:00Z"}\n', "utf-8")
    pair = {"prompt": "say hello", "chosen": "hello", "rejected": "no"}
    given = [
        pair | {"time": "2026-11-02"},
        pair | {"time": "2026-11-02", "id": "again"},
        pair | {"time": "2026-10-30", "chosen": "old"},
        pair | {"chosen": "undated"},
    ]
    labels.write_text("".join(json.dumps(row) + "\n" for row in given), "utf-8")
    settings = FeedbackSettings(
        prompts=(str(chats),),
        preferences=(PreferenceFile(file=str(labels), weight=3),),
        since=date(2026, 11, 1),
    )
    first = take_feedback(settings, place / "feedback", 1, NoProgress())
    counts = json.loads((place / "feedback/round-1.json").read_text("utf-8"))["counts"][str(labels)]
    assert counts == {"rows": 4, "taken": 1, "known": 1, "out_of_range": 1, "without_time": 1}
    with labels.open("a", encoding="utf-8") as more:
        more.write(json.dumps(pair | {"time": 1793577600, "chosen": "new"}) + "\n")
    assert take_feedback(settings, place / "feedback", 1, NoProgress()) == first
    second = take_feedback(settings, place / "feedback", 2, NoProgress())
    assert second.prompts == ()
    assert [row["chosen"] for row in rows(Path(second.preferences[0].file))] == ["new"]
    own = recipe_of_round(recipe(place), 1, None, first)
    stages = {each.stage: each for each in own.stages}
    assert stages["sample"].also == first.prompts  # type: ignore[attr-defined]
    assert [(each.weight, stages["reward"].input) for each in stages["reward"].files] == [(3, "label")]  # type: ignore[attr-defined]
    asked = sampled_prompts(stages["sample"], seed=0)  # type: ignore[arg-type]
    assert len(asked) == 7
    assert asked[-1].messages[-1].content == "say thing 1000"
    labels.write_text(json.dumps(pair | {"time": "yesterday"}) + "\n", "utf-8")
    with pytest.raises(DataError, match="'yesterday' is no time"):
        take_feedback(settings, place / "feedback", 3, NoProgress())


def test_a_round_that_has_nothing_new_to_learn_from_takes_nothing(place: Path) -> None:
    labels = place / "few.jsonl"
    labels.write_text('{"prompt": "say hello", "chosen": "hello", "rejected": "no"}\n', "utf-8")
    settings = FeedbackSettings(preferences=(PreferenceFile(file=str(labels)),))
    take_feedback(settings, place / "few", 1, NoProgress(), needed=True)
    with pytest.raises(DataError, match="round 2 has nothing to learn from"):
        take_feedback(settings, place / "few", 2, NoProgress(), needed=True)
    assert not (place / "few/round-2.json").exists()
    with labels.open("a", encoding="utf-8") as more:
        more.write('{"prompt": "say hello", "chosen": "hey", "rejected": "no"}\n')
    assert take_feedback(settings, place / "few", 2, NoProgress(), needed=True).preferences
    assert not learns_from_feedback_alone(recipe(place))
    alone = [each for each in recipe(place).stages if each.stage not in ("sample", "label")]
    assert learns_from_feedback_alone(recipe(place).model_copy(update={"stages": tuple(alone)}))


def test_a_recipe_in_rounds_is_not_run_once_in_silence(place: Path, ran: Path) -> None:
    with pytest.raises(ConfigError, match="is one of several rounds"):
        run_recipe(recipe(place), out=place / "once")
    with pytest.raises(ConfigError, match="this recipe is run in rounds"):
        plan_study(str(ran / "recipe.yaml"))
