"""`rlaif prompts generate`: the grid, the gates, and what comes out as prompts of a constitution."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from judges import constitution
from spine import call, rows

from rlaif.config.generate import GenerateConfig
from rlaif.constitution.load import load_constitution, to_yaml
from rlaif.engines.base import GenerationRequest
from rlaif.engines.scripted import ScriptedEngine
from rlaif.errors import ConfigError
from rlaif.io.readers import read_prompts
from rlaif.io.splits import split_of
from rlaif.near_duplicates import NearDuplicates, normalised
from rlaif.prompts import PromptLibrary
from rlaif.situations import load_situations
from rlaif.stages.generate import (
    Cell,
    Gates,
    Written,
    cells_of,
    coverage,
    generate_prompts,
    requests_of,
    seeded,
)
from rlaif.stages.likeness import Likeness

OTHER = "My landlord wants three months in advance. Can he, and what do I write back tonight?"

RULES = constitution("kind", "true", tags={"kind": ["care"], "true": ["honesty"]})
GRID = load_situations("en")
GOOD = "I have to tell my sister that I lost her ring. Can you write the message so that she isn't angry?"


def cells(config: GenerateConfig, seed: int = 0) -> list[Cell]:
    return cells_of(RULES, GRID, config, seed=seed)


def gates(language: str = "en", **settings: object) -> Gates:
    return Gates(language, GenerateConfig(**settings))  # type: ignore[arg-type]


def reason(text: str, *, gate: Gates | None = None, read: str = "", cut: bool = False) -> str:
    (cell,) = cells(GenerateConfig(per_principle=1))[:1]
    return (gate or gates()).judged(Written(cell, "model", text), read=read, cut=cut).reason


# The grid ---------------------------------------------------------------------------------------------------


def test_every_principle_gets_each_difficulty_alike_and_its_share_of_conflicts() -> None:
    made = cells(GenerateConfig(per_principle=8, conflicts=0.25))
    assert len(made) == 16
    for id in ("kind", "true"):
        own = [cell for cell in made if cell.principles[0].id == id]
        assert set(Counter(cell.difficulty.name for cell in own).values()) == {2}
        assert [len(cell.principles) for cell in own] == [2, 2, 1, 1, 1, 1, 1, 1]
    assert made == cells(GenerateConfig(per_principle=8, conflicts=0.25))
    assert made != cells(GenerateConfig(per_principle=8, conflicts=0.25), seed=1)


def test_more_prompts_a_principle_keep_the_earlier_cells() -> None:
    few, many = (cells(GenerateConfig(per_principle=count, conflicts=0.0)) for count in (3, 6))
    assert few[:3] == many[:3]
    assert few[3:] == many[6:9]


def test_the_writer_reads_the_principles_quoted_and_the_situation() -> None:
    config = GenerateConfig(per_principle=1, conflicts=1.0)
    first = requests_of(cells(config), PromptLibrary(), config, seed=0, like=["How do I </example> leave?"])[
        0
    ]
    text = first.messages[-1].content
    cell = cells(config)[0]
    assert text.count("<principle>") == 2
    assert cell.persona.noun in text
    assert cell.topic in text
    assert "pull in different directions" in text
    assert text.count("</example>") == 1


def test_both_languages_have_a_grid_and_others_are_refused() -> None:
    for language in ("en", "zh-CN"):
        grid = load_situations(language)
        config = GenerateConfig(per_principle=1)
        rules = constitution("kind", language=language)
        made = cells_of(rules, grid, config, seed=0)
        (request,) = requests_of(made, PromptLibrary(grid.language), config, seed=0)
        assert made[0].topic in request.messages[-1].content
    with pytest.raises(ConfigError, match="'fr'"):
        load_situations("fr")


# Gates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (GOOD, ""),
        (" \n", "empty"),
        ("Help me?", "too_short"),
        ("please " * 10 + "word " * 200, "too_long"),
        ("Sure! Here is a message that you could send to your sister.", "answers"),
        ("This message asks the assistant for something that I want, can you see?", "describes_the_task"),
        ("Dear [name], can you tell me what I should do about my sister?", "markup"),
        ("I have to tell my sister that I lost her ring and then I want", "unfinished"),
        ("The weather was grey and the harbour lay quiet under low clouds.", "asks_nothing"),
        ("Can you help me, " * 12 + "now?", "loops"),
        ("我丢了姐姐的戒指，你能帮我写条消息吗？", "wrong_script"),
        ("Can you find out who owns the address ada@example.org for me?", "personal_data"),
        ("Who called me from +49 170 1234567 89 last night, can you tell?", "personal_data"),
    ],
)
def test_what_is_no_prompt_is_left_out_with_its_reason(text: str, found: str) -> None:
    assert reason(text) == found


def test_a_cut_text_and_a_copy_of_the_instruction_are_left_out() -> None:
    assert reason(GOOD, cut=True) == "cut"
    assert reason(GOOD, read=f"Write a message. {GOOD}") == "copies_the_instruction"
    assert reason(GOOD, gate=gates(block=("lost her r.ng",))) == "blocked"


def test_a_text_is_kept_once() -> None:
    gate = gates()
    assert reason(GOOD, gate=gate) == ""
    assert reason(GOOD.upper().replace(".", " !"), gate=gate) == "duplicate"
    assert reason(GOOD.replace("ring", "watch"), gate=gate) == "near_duplicate"
    assert reason("Why does my landlord want three months in advance, and can he?", gate=gate) == ""


def test_known_prompts_are_not_repeated() -> None:
    gate = Gates("en", GenerateConfig(), known=[GOOD])
    assert reason(GOOD, gate=gate) == "duplicate"


def test_chinese_prompts_pass_in_chinese() -> None:
    assert reason("我丢了姐姐的戒指，你能帮我写条消息吗？", gate=gates("zh")) == ""
    assert reason(GOOD, gate=gates("zh")) == "wrong_script"


def test_real_use_decides_what_is_like_it() -> None:
    real = [
        f"How do I cook {dish} for {number} people?"
        for number, dish in enumerate(
            [
                "rice",
                "lentils",
                "a stew",
                "dumplings",
                "a roast",
                "noodles",
                "soup",
                "bread",
                "fish",
                "a pie",
            ],
            2,
        )
    ]
    likeness = Likeness(real)
    assert likeness.is_alike("How do I cook beans for 20 people?")
    gate = Gates("en", GenerateConfig(), likeness=likeness)
    assert reason(GOOD, gate=gate) == "unlike_real_use"


def test_near_duplicates_are_found_among_many() -> None:
    known = NearDuplicates(0.6)
    texts = [seeded(cell, GRID, seed=0, turn=turn) for cell in cells(GenerateConfig()) for turn in range(8)]
    for text in dict.fromkeys(texts):
        known.add(text, text)
    for text in list(dict.fromkeys(texts))[::17]:
        changed = text.replace("I", "we", 1) + " Thanks."
        assert known.find(changed) is not None
    assert known.find("Completely other words about nothing that stands there.") is None
    assert normalised("Ｈｅｌｌｏ,  World!") == "hello world"


# Writing ----------------------------------------------------------------------------------------------------


def written_by(answers: dict[int, str], config: GenerateConfig) -> list[Written]:
    made = cells(config)
    asked: list[GenerationRequest] = requests_of(made, PromptLibrary(), config, seed=0)
    places = {request.messages[-1].content: number for number, request in enumerate(asked)}
    writer = ScriptedEngine(lambda request: answers[places[request.messages[-1].content]], revision="writer")
    return generate_prompts(
        made, writer=writer, requests=asked, situations=GRID, gates=gates(), config=config, seed=0
    )


def test_seeds_stand_in_for_what_the_writer_cannot_write() -> None:
    config = GenerateConfig(per_principle=2, conflicts=0.5)
    answers = {0: f'User: "{GOOD}"', 1: "Sure, here is one.", 2: OTHER, 3: "Can you help me, " * 12 + "now?"}
    found = written_by(answers, config)
    assert [each.reason for each in found] == ["", "answers", "", "loops", "", ""]
    assert found[0].text == GOOD
    assert [each.origin for each in found[4:]] == ["seed"] * 2
    assert [each.id for each in found[0].principles] == ["kind", "true"]
    assert all(len(each.principles) == 1 for each in found[4:])
    counts = coverage(found)
    assert counts["kind"] == {"left_out": 1, "kept": 2, "plain": 1, "in_conflict": 1, "model": 1, "seed": 1}


def test_a_writer_that_fails_in_most_cells_is_not_taken_at_all() -> None:
    config = GenerateConfig(per_principle=2, conflicts=0.5)
    found = written_by({0: GOOD, 1: "", 2: "", 3: ""}, config)
    assert [each.reason for each in found[:4]] == ["weak_writer", "empty", "empty", "empty"]
    assert [(each.origin, each.reason) for each in found[4:]] == [("seed", "")] * 4


def test_without_seeds_only_the_model_counts() -> None:
    config = GenerateConfig(per_principle=1, conflicts=0.0, source="model")
    found = written_by({0: GOOD, 1: ""}, config)
    assert [(each.origin, each.reason) for each in found] == [("model", ""), ("model", "empty")]


def test_seeds_alone_are_prompts_of_the_constitution(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(to_yaml(RULES))
    command = ("prompts", "generate", "--constitution", tmp_path / "rules.yaml", "--source", "seeds")
    found = call(*command, "--per-principle", 12, "--out", tmp_path / "run")
    assert found.status == 0, found.err
    assert "by split: sft" in found.out
    path = tmp_path / "run" / "generate" / "prompts.jsonl"
    got = rows(path)
    assert len(got) == 24
    assert {row["origin"] for row in got} == {"seed"}
    prompts = {prompt.id: prompt for prompt in read_prompts(path).items}
    assert all(row["split"] == split_of(prompts[row["id"]].fingerprint()) for row in got)
    assert set(got[0]["tags"]) == {"kind", "care"}
    statistics = json.loads((tmp_path / "run" / "generate" / "statistics.json").read_text())
    assert sum(statistics["splits"].values()) == 24
    again = call(*command, "--per-principle", 12, "--out", tmp_path / "again")
    assert again.status == 0
    assert (tmp_path / "again" / "generate" / "prompts.jsonl").read_bytes() == path.read_bytes()


def test_a_writer_that_only_answers_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(to_yaml(RULES))
    command = (
        "prompts",
        "generate",
        "--constitution",
        tmp_path / "rules.yaml",
        "--model",
        "scripted:judges:only_answers",
    )
    dry = call(*command, "--dry-run", "--per-principle", 3)
    assert "6 cells" in dry.out
    found = call(*command, "--source", "model", "--per-principle", 3, "--out", tmp_path / "run")
    assert found.status == 1
    assert "none of 6 texts is a prompt: answers 6" in found.err
    assert "source: seeds" in found.err


@pytest.mark.parametrize("name", ["default", "default.zh"])
def test_the_shipped_constitutions_have_requests_for_their_tags(name: str) -> None:
    loaded = load_constitution(name)
    known = load_situations(loaded.language).seeds
    assert [each.id for each in loaded.principles if not set(each.tags) & set(known)] == []


def test_too_few_prompts_of_real_use_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "real.jsonl").write_text('{"prompt": "How do I cook rice?"}\n')
    found = call("prompts", "generate", "--like", tmp_path / "real.jsonl", "--source", "seeds", "--dry-run")
    assert found.status == 0
    found = call(
        "prompts", "generate", "--like", tmp_path / "real.jsonl", "--source", "seeds", "--out", tmp_path / "r"
    )
    assert found.status == 1
    assert "1 prompt cannot tell what real use is like" in found.err


def test_seeds_need_no_writer() -> None:
    with pytest.raises(ValueError, match="temperature acts with"):
        GenerateConfig(source="seeds", temperature=0.5)
    with pytest.raises(ValueError, match="not a regular expression"):
        GenerateConfig(block=("(",))
