"""`import rlaif` as a program uses it: a judge on plain texts, rewards in TRL's trainers, training, a run."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from misbehaving import MisbehavingServer, answer
from spine import ROOT, environment
from tiny import save_tiny
from trl import GRPOConfig, GRPOTrainer

import rlaif
from rlaif.errors import ConfigError, DataError
from rlaif.interface.values import as_comparison
from rlaif.runs.journal import Journal
from rlaif.types import Comparison

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # TRL itself still uses names that transformers is about to drop.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning:transformers"),
]
CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "How do I apologise?"}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model"), sharpness=1.0))


@pytest.fixture(scope="module")
def judge() -> rlaif.Judge:
    return rlaif.Judge.open("scripted", constitution="warmth")


@pytest.fixture(scope="module")
def reward_model(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained reward model."""
    rows = [
        {"prompt": f"Say {n}.", "chosen": f"Gladly: {n}.", "rejected": "No.", "p_chosen": 0.9}
        for n in range(12)
    ]
    model, result = rlaif.train_reward(rows, base=tiny, config=rlaif.RewardConfig(keep="head", lora_rank=2))
    assert result.report.pairs > 0
    assert len(model.score(["Say 1."], ["Gladly."])) == 1
    folder = tmp_path_factory.mktemp("reward") / "model"
    from rlaif.reward.files import save_reward_model

    save_reward_model(result.model, folder, probes=result.probes)
    return folder


def test_importing_it_takes_no_time_and_no_torch() -> None:
    code = "import sys, rlaif; print('torch' in sys.modules, 'pydantic' in sys.modules); print(rlaif.Judge.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True, cwd=ROOT
    )
    assert done.stdout.split() == ["False", "False", "Judge"]


@pytest.mark.parametrize("name", [name for name in rlaif.__all__ if name != "__version__"])
def test_every_name_is_there_and_is_listed(name: str) -> None:
    assert getattr(rlaif, name).__name__ == name
    assert name in dir(rlaif)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Jury'"):
        rlaif.Jury  # noqa: B018


def test_a_judge_compares_texts_and_chats_alike(judge: rlaif.Judge) -> None:
    found = judge.compare("How do I apologise?", "Say <b>what</b> you did.", "Never.")
    assert found.p_a is not None
    assert 0 < found.p_a < 1
    assert found.chosen == ("Say <b>what</b> you did." if found.p_a > 0.5 else "Never.")
    assert {verdict.principle_id for verdict in found.verdicts} == {
        p.id for p in judge.constitution.principles
    }
    assert "&lt;b&gt;what" in found._repr_html_()
    said = [{"role": "assistant", "content": "Say <b>what</b> you did."}]
    again = judge.compare([{"role": "user", "content": "How do I apologise?"}], said, "Never.")
    assert again.p_a == found.p_a
    assert judge.compare(CHAT, "Say what you did.", "Never.").comparison.prompt.messages[0].role == "system"


def test_pairs_of_one_prompt_are_told_apart(judge: rlaif.Judge) -> None:
    pairs = [("Hi", "a", "b"), ("Hi", "c", "d"), ("Hi", "a", "b"), ("Bye", "a", "b")]
    found = list(judge.label(pairs))
    assert [(each.comparison.a.text, each.comparison.b.text) for each in found] == [
        pair[1:] for pair in pairs
    ]
    assert found[0].p_a == found[2].p_a == judge.compare("Hi", "a", "b").p_a
    assert len({each.comparison.id for each in found[:3]}) == 3


def test_pairs_that_bring_places_of_their_own_are_told_apart(judge: rlaif.Judge) -> None:
    """The second pair must not move to where the third stands, nor `0` stand for two texts."""
    places = [((0, "a"), (1, "b")), ((0, "c"), (1, "d")), ((2, "e"), (3, "f")), ((0, "g"), (5, "h"))]
    pairs = [placed_pair("Hi", *both) for both in places]
    found = list(judge.label(pairs))
    assert [each.p_a for each in found] == [judge.compare("Hi", a, b).p_a for (_, a), (_, b) in places]
    assert len({each.comparison.id for each in found}) == len(pairs)
    assert len({one.id for each in found for one in (each.comparison.a, each.comparison.b)}) == 8


def placed_pair(prompt: str, first: tuple[int, str], second: tuple[int, str]) -> Comparison:
    """Two completions at places of one's own choice."""
    pair = as_comparison(prompt, first[1], second[1])
    a, b = (
        replace(one, id=f"{pair.prompt.id}/{place}", index=place)
        for one, place in ((pair.a, first[0]), (pair.b, second[0]))
    )
    return replace(pair, a=a, b=b)


def test_a_judge_keeps_its_answers_in_a_journal(tmp_path: Path) -> None:
    for _ in range(2):
        with rlaif.Judge.open("scripted", constitution="warmth", journal=tmp_path / "j.sqlite") as judge:
            judge.compare("Hi", "a", "b")
    with Journal(tmp_path / "j.sqlite") as journal:
        assert sum(journal.stats().answers.values()) == 2 * len(judge.constitution.principles)


def test_a_judge_audits_itself(judge: rlaif.Judge) -> None:
    report = judge.audit(variants=0)
    assert report.protocols[0].protocol == judge.protocol == "pointwise"


def test_scores_are_those_of_texts_and_of_chats(judge: rlaif.Judge) -> None:
    texts = judge.score(["Hi", "Hi"], ["Good day.", "Go away."])
    chats = judge.score(
        [[{"role": "user", "content": "Hi"}]] * 2,
        [[{"role": "assistant", "content": t}] for t in ("Good day.", "Go away.")],
    )
    assert texts == chats
    assert all(0 <= score <= 1 for score in texts)


def test_what_is_no_completion_is_said() -> None:
    function = rlaif.reward_function(lambda prompt, given: float(len(given.text)))
    with pytest.raises(DataError, match="one turn of the assistant"):
        function(["Hi"], [[{"role": "user", "content": "x"}]])
    for given in (None, 3, b"x", ["x"], {"role": "assistant", "content": "x"}, math.nan):
        with pytest.raises(DataError, match=f"{type(given).__name__} is no completion"):
            function(["Hi"], [given])  # type: ignore[list-item]
        with pytest.raises(DataError, match=f"{type(given).__name__} is no prompt"):
            function([given], ["x"])  # type: ignore[list-item]
    with pytest.raises(DataError, match="2 prompts and 1 completions"):
        function(["Hi", "Ho"], ["x"])
    with pytest.raises(ConfigError, match="int is not a reward"):
        rlaif.reward_function(3)  # type: ignore[arg-type]


def test_a_list_of_rewards_is_their_weighted_sum(judge: rlaif.Judge, reward_model: Path) -> None:
    model = rlaif.RewardModel.load(reward_model)
    prompts, texts = ["Say 1.", CHAT], ["Gladly: 1.", "No."]
    weighted = rlaif.reward_function([(0.5, model), judge, lambda prompt, given: float(len(given.text))])
    expected = [
        0.5 * scored + judged + len(text)
        for scored, judged, text in zip(
            model.score(prompts, texts), judge.score(prompts, texts), texts, strict=True
        )
    ]
    assert weighted(prompts, texts, unread=[1, 2]) == pytest.approx(expected)


def test_a_served_judge_answers_from_a_running_event_loop() -> None:
    with MisbehavingServer(always=answer()) as server:
        judge = rlaif.Judge.open("openai:toy", constitution="default", base_url=server.url)
        function = rlaif.reward_function(lambda prompt, given: judge.compare(prompt, given, "no").p_a or 0.0)

        async def trainer() -> list[float]:
            return function(["Hi", "Ho"], ["Good day.", "Go away."])

        found = asyncio.run(trainer())
    assert len(found) == 2
    assert all(0 < score < 1 for score in found)


@pytest.mark.parametrize("form", ["texts", "chats"])
def test_trl_takes_a_judge_and_a_reward_model_as_rewards(
    form: str, tiny: str, judge: rlaif.Judge, reward_model: Path, tmp_path: Path
) -> None:
    asked = [f"Say {n}." for n in range(4)]
    column: list[Any] = asked if form == "texts" else [[{"role": "user", "content": text}] for text in asked]
    settings = GRPOConfig(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, num_generations=2,
        max_completion_length=4, report_to="none", use_cpu=True, bf16=False, save_strategy="no",
        disable_tqdm=True, logging_steps=1, seed=0, beta=0.0,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=tiny,
        reward_funcs=[
            rlaif.reward_function(judge, name="warmth"),
            rlaif.reward_function(rlaif.RewardModel.load(reward_model)),
        ],
        args=settings,
        train_dataset=datasets.Dataset.from_dict({"prompt": column, "answer": asked}),
    )
    trainer.train()
    logged = [row for row in trainer.state.log_history if "reward" in row]
    assert len(logged) == 2
    assert {"rewards/warmth/mean", "rewards/rewardmodel/mean"} <= set(logged[0])


def test_training_takes_a_model_a_judge_a_function_or_a_list(
    tiny: str, judge: rlaif.Judge, reward_model: Path, tmp_path: Path
) -> None:
    model = rlaif.RewardModel.load(reward_model)
    prompts = [f"Say {n}." for n in range(4)]
    settings = rlaif.PpoConfig(steps=2, episodes=4, max_new_tokens=4, lora_rank=2)
    for number, reward in enumerate(
        [model, judge, lambda prompt, given: float(len(given.text)), [(0.5, model), judge]]
    ):
        base = (
            rlaif.RewardModel.load(reward_model).base
            if number == 3
            else rlaif.SharedBase.load(tiny, dtype="float32")
        )
        result = rlaif.train_ppo(
            prompts, base=base, reward=reward, config=settings, out=tmp_path / f"ppo-{number}"
        )
        assert result.steps == 2
        assert (tmp_path / f"ppo-{number}" / "adapter_config.json").is_file()
    best = rlaif.train_best_of_k(
        prompts,
        base=tiny,
        reward=model,
        config=rlaif.BestOfKConfig(k=2, max_new_tokens=4, lora_rank=2),
        out=tmp_path / "best",
    )
    assert best.report.counts["prompts"] == 4
    found = rlaif.evaluate(
        prompts, {"ppo": tmp_path / "ppo-0", "best": tmp_path / "best"}, base=rlaif.SharedBase.load(tiny, dtype="float32"), reward=judge,
        config=rlaif.EvaluateConfig(win_rate=False, samples=1, max_new_tokens=4),
    )  # fmt: skip
    assert [policy.name for policy in found.policies] == ["start", "ppo", "best"]
    assert rlaif.compare([found]).policies


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    file.write_text("".join(json.dumps(row) + "\n" for row in (pair, {**pair, "rejected": "a"})))
    with pytest.warns(
        rlaif.DataNotice, match="1 of 2 pairs are left out: both completions are the same text"
    ):
        assert len(rlaif.read_pairs(file)) == 1
    with pytest.warns(rlaif.DataNotice) as told:
        assert len(rlaif.read_prompts(file)) == 1
    assert [str(each.message).partition(": ")[2] for each in told] == [
        "columns that are not read: chosen, rejected",
        "1 of 2 rows repeat a prompt and were left out",
    ]


def test_data_is_read_and_a_recipe_is_run(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"Say {n}.", "chosen": f"Gladly: {n}.", "rejected": "No.", "p_chosen": 0.8}
        for n in range(4)
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert [pair.p_chosen for pair in rlaif.read_preferences(pairs)] == [0.8] * 4
    with pytest.warns(rlaif.DataNotice, match="not read: p_chosen"):
        read = rlaif.read_pairs(pairs)
    assert {comparison.prompt.messages[-1].content for comparison in read} == {row["prompt"] for row in rows}
    assert len(rlaif.read_prompts("builtin:everyday")) > 24
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: scripted\nstages:\n  - {stage: sample, limit: 2, k: 2}\n  - stage: label\n")
    done = rlaif.run(recipe, out=tmp_path / "run", overrides=["stages.sample.k=3"])
    assert done.stages[0].manifest.counts["completions"] == 6
    assert rlaif.run(recipe, out=tmp_path / "run", overrides=["stages.sample.k=3"]).stages[0].skipped
