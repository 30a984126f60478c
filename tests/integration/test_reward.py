"""The reward model on a tiny base: packing, scoring, files, and a training that shows learning."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from rlaif.config.reward import EnsembleSettings, RewardConfig
from rlaif.errors import ConfigError, DataError, ModelError
from rlaif.models.packing import Tree, features, merged, pack, row_batches, same_states, whole_trees
from rlaif.models.shared_base import REFERENCE, SharedBase
from rlaif.results.preferences import PreferencePair, pairs_from_rows, split_by_prompt
from rlaif.reward.files import load_reward_model, save_reward_model
from rlaif.reward.head import ScalarHead
from rlaif.reward.model import Conversation, Member, RewardModel
from rlaif.reward.train import RewardStep
from rlaif.stages.reward import RewardResult, encode_pairs, train_reward
from rlaif.types import Message

GOOD, BAD = ("kind", "glad", "warm"), ("rude", "cold", "grim")
FILL = ("stone", "river", "table", "cloud", "paper", "north")


def base_of(
    kind: Any = "llama", *, chat: bool = True, seed: int = 0, context: int = 1024, name: str = "tiny"
) -> SharedBase:
    model = tiny_model(kind, seed=seed, context=context, sharpness=2.0)
    return SharedBase.from_model(model, tiny_tokenizer(chat=chat), name=name, identity=f"{kind}-{seed}")


def conversation(prompt: str, completion: str) -> Conversation:
    return (Message(role="user", content=prompt), Message(role="assistant", content=completion))


def toy_rows(prompts: int, *, p: float = 0.9, each: int = 1, seed: int = 0) -> list[dict[str, Any]]:
    """The chosen completion has a good word among filling, the rejected one a bad word; either may be the
    longer one."""
    draw = random.Random(seed)

    def text(words: Sequence[str]) -> str:
        chosen = [draw.choice(words), *draw.choices(FILL, k=draw.randint(1, 3))]
        draw.shuffle(chosen)
        return " ".join(chosen)

    return [
        {
            "id": f"{n}/{k}",
            "prompt": [{"role": "user", "content": f"Say {FILL[n % 6]} {n}"}],
            "chosen": [{"role": "assistant", "content": text(GOOD)}],
            "rejected": [{"role": "assistant", "content": text(BAD)}],
            "p_chosen": p,
            "verdicts": [{"principle": "warmth", "valid": True}],
            "constitution_digest": "c0ffee",
        }
        for n in range(prompts)
        for k in range(each)
    ]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def learn(
    base: SharedBase, rows: Sequence[dict[str, Any]], *, seed: int = 0, **settings: Any
) -> RewardResult:
    fast = {"learning_rate": 3e-3, "lora_rank": 4, "epochs": 3, "held_out": 0.25}
    return train_reward(
        pairs_from_rows(rows), base=base, config=RewardConfig(**{**fast, **settings}), seed=seed
    )


# Packing


def some_trees(count: int = 5, seed: int = 0) -> list[Tree]:
    draw = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 200) for _ in range(draw.randint(low, high)))

    return [Tree(ids(1, 12), tuple(ids(1, 9) for _ in range(draw.randint(2, 3)))) for _ in range(count)]


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("tokens", [1, 40, 10_000])
def test_features_depend_neither_on_sharing_nor_on_the_batch(pooling: Any, tokens: int) -> None:
    base, trees = base_of(), some_trees()
    alone = torch.cat(
        [
            features(base, [Tree(tree.prompt, (completion,))], pooling=pooling, tokens=1, share=False)
            for tree in trees
            for completion in tree.completions
        ]
    )
    for share in (False, True):
        torch.testing.assert_close(
            features(base, trees, pooling=pooling, tokens=tokens, share=share), alone, rtol=1e-4, atol=1e-4
        )


def test_merged_trees_hold_every_completion_once_and_say_where() -> None:
    trees = [Tree((1, 2), ((5,), (6,))), Tree((3,), ((5,), (7,))), Tree((1, 2), ((7,), (5,)))]
    once, places = merged(trees)
    assert once == [Tree((1, 2), ((5,), (6,), (7,))), Tree((3,), ((5,), (7,)))]
    assert places == [0, 1, 3, 4, 2, 0]


def test_the_gradient_through_a_shared_prompt_is_that_of_separate_rows() -> None:
    grads = []
    for share in (False, True):
        base = base_of()
        base.add_adapter("reward", seed=1)
        with base.role("reward"):
            for batch in whole_trees(some_trees(), tokens=60, share=share, device=base.device):
                base.hidden(batch.input_ids, batch.attention_mask, batch.position_ids)[
                    batch.group >= 0
                ].square().sum().backward()
        grads.append([parameter.grad for parameter in base.trainable("reward")])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_micro_batches_keep_to_their_tokens_and_hold_every_completion_once() -> None:
    trees, device = some_trees(20), torch.device("cpu")
    packed = [pack(rows, device=device) for rows in row_batches(trees, tokens=60, share=True)]
    for batches in (packed, whole_trees(trees, tokens=60, share=True, device=device)):
        seen: list[int] = []
        for batch in batches:
            assert batch.input_ids.numel() <= 60 or len(batch.input_ids) == 1
            seen += batch.numbers
        assert sorted(seen) == list(range(sum(len(tree.completions) for tree in trees)))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("llama", True), ("qwen2", True), ("gpt2", True), ("gemma2", False), ("gemma3", False)],
)
def test_a_prompt_is_shared_only_where_the_states_stay_the_same(kind: Any, expected: bool) -> None:
    long = [Tree(tuple(range(3, 23)), ((5, 6, 7), (8, 9)))]
    assert same_states(base_of(kind), long) is expected


# Scoring


def model_of(base: SharedBase, *, pooling: Any = "mean", **options: Any) -> RewardModel:
    head = ScalarHead(base.hidden_size)
    head.draw(seed=3)
    return RewardModel(base, [Member(role=REFERENCE, head=head)], pooling=pooling, **options)


TEXTS = [
    conversation(f"Say {word}", " ".join([word] * (i + 1)))
    for i, word in enumerate((*GOOD, *BAD, "", "<|im_end|>"))
]


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("chat", [True, False])
def test_a_score_depends_on_the_text_alone(pooling: Any, chat: bool) -> None:
    model = model_of(base_of(chat=chat), pooling=pooling)
    alone = [model.score([text])[0] for text in TEXTS]
    for order in (TEXTS, TEXTS[::-1], TEXTS * 3):
        assert model.score(order) == pytest.approx([alone[TEXTS.index(text)] for text in order], abs=1e-4)
    model.tokens = 1
    assert model.score(TEXTS) == pytest.approx(alone, abs=1e-4)
    assert len({round(score, 4) for score in alone}) == len(alone)


def test_the_padding_token_being_the_end_token_changes_nothing() -> None:
    one, two = base_of(), base_of()
    two.tokenizer.pad_token = two.tokenizer.eos_token
    assert model_of(one).score(TEXTS) == model_of(two).score(TEXTS)


def test_a_completion_that_was_cut_is_read_as_a_closed_turn() -> None:
    model = model_of(base_of(), pooling="last")
    ((prompt, completion),) = model.format.encode([TEXTS[0]])
    end = model.base.tokenizer.eos_token_id
    assert completion[-1] == end
    scores = model.score_tokens(
        [(prompt, completion), (prompt, completion[:-1]), (prompt, [*completion, end])]
    )
    assert scores.tolist() == pytest.approx([scores[0].item()] * 3, abs=1e-5)


def test_samples_of_one_prompt_score_as_they_do_apart() -> None:
    model = model_of(base_of())
    texts = [conversation("Say river", word) for word in (*GOOD, *BAD, *FILL)]
    assert model.score(texts) == pytest.approx([model.score([text])[0] for text in texts], abs=1e-4)


def test_what_cannot_be_scored_is_refused() -> None:
    model = model_of(base_of(context=32))
    with pytest.raises(DataError, match="context"):
        model.score([conversation("a " * 40, "b")])
    with pytest.raises(DataError, match="conversation 0 does not end"):
        model.score([TEXTS[0][:1]])
    assert model.score([]) == []


def test_scores_are_normalised_on_the_reference_completions() -> None:
    scores = torch.tensor(model_of(base_of()).normalised(TEXTS).score(TEXTS))
    assert scores.mean().item() == pytest.approx(0, abs=1e-5)
    assert scores.std(unbiased=False).item() == pytest.approx(1, abs=1e-5)


def test_a_constant_reward_is_refused() -> None:
    base = base_of()
    flat = RewardModel(base, [Member(role=REFERENCE, head=ScalarHead(base.hidden_size))], pooling="mean")
    with pytest.raises(DataError, match="the same for all"):
        flat.normalised(TEXTS)


@pytest.mark.parametrize("combine", ["mean", "min", "mean-variance"])
def test_an_ensemble_is_combined_as_it_says(combine: Any) -> None:
    base = base_of()
    members = []
    for seed in range(3):
        head = ScalarHead(base.hidden_size)
        head.draw(seed)
        members.append(Member(role=REFERENCE, head=head))
    alone = torch.tensor([RewardModel(base, [member], pooling="mean").score(TEXTS) for member in members])
    expected = {
        "mean": alone.mean(0),
        "min": alone.min(0).values,
        "mean-variance": alone.mean(0) - 2.0 * alone.var(0, unbiased=False),
    }
    model = RewardModel(base, members, pooling="mean", combine=combine, variance_penalty=2.0)
    assert model.score(TEXTS) == pytest.approx(expected[combine].tolist(), abs=1e-4)


# Training


def test_a_separable_preference_is_learned_and_the_reference_does_not_move() -> None:
    base = base_of()
    ids = torch.arange(10).view(1, 10) + 3
    before = base.hidden(ids, torch.ones_like(ids))
    result = learn(base, toy_rows(80), keep="lora")
    held_out = result.report.held_out
    assert held_out["lora"].accuracy >= 0.9
    assert held_out["head"].accuracy >= 0.7
    assert held_out["lora"].loss < held_out["length"].loss
    assert held_out["judge"].loss == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1), abs=1e-3)
    good, bad = (
        result.model.score([conversation("Say hello", f"{word} stone") for word in words])
        for words in (GOOD, BAD)
    )
    assert min(good) > max(bad)
    assert torch.equal(base.hidden(ids, torch.ones_like(ids)), before)
    assert base.roles == ("reward",)
    base.assert_only_trainable([])


def test_the_last_token_and_a_drawn_head_learn_too() -> None:
    result = learn(base_of(), toy_rows(80), pooling="last", warm_start=False, keep="lora", epochs=6)
    assert result.report.held_out["lora"].accuracy >= 0.8
    assert "head" not in result.report.held_out


def test_soft_labels_set_the_size_of_the_difference() -> None:
    small, large = (
        torch.tensor([learn(base_of(), toy_rows(60, p=p), keep="head").report.held_out["head"].loss])
        for p in (0.6, 0.95)
    )
    assert small.item() == pytest.approx(-0.6 * math.log(0.6) - 0.4 * math.log(0.4), abs=0.03)
    assert large.item() < small.item()


def test_the_better_of_head_and_adapter_is_kept() -> None:
    base = base_of()
    result = learn(base, toy_rows(40), learning_rate=1e-7, head_learning_rate=5.0, epochs=1)
    assert result.report.kept == "head"
    assert result.report.held_out["head"].loss < result.report.held_out["lora"].loss
    assert base.roles == ()
    assert {member.role for member in result.model.members} == {REFERENCE}


def test_keep_head_trains_no_adapter() -> None:
    base = base_of()
    result = learn(base, toy_rows(40), keep="head")
    assert not result.steps
    assert base.roles == ()


def test_the_head_alone_reads_every_completion_once(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = ([f"{word} {FILL[n]}" for n, word in enumerate(words)] for words in (GOOD, BAD))
    rows = [
        {**row, "id": f"{row['id']}/{a}/{b}", "chosen": said(a), "rejected": said(b)}
        for row in toy_rows(12)
        for a in good
        for b in bad
    ]
    read: list[int] = []
    hidden = SharedBase.hidden

    def counted(self: SharedBase, ids: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        read.append(ids.numel())
        return hidden(self, ids, *args, **options)

    monkeypatch.setattr(SharedBase, "hidden", counted)
    pairs = pairs_from_rows(rows)
    base = base_of()
    model = learn(base, rows, keep="head").model
    fitted, read[:] = sum(read), []
    features(base, encode_pairs(pairs, base, RewardConfig()).trees, pooling="mean", tokens=1024, share=True)
    assert len(pairs) == 12 * 9
    assert fitted < sum(read) / 2  # each of a prompt's six completions is in three pairs
    train, _ = split_by_prompt(pairs, 0.25, seed=0)
    texts_of = {
        (pair.group, text): pair.conversation(text) for pair in train for text in (pair.chosen, pair.rejected)
    }
    again = model.normalised(list(texts_of.values()))
    assert again.members[0].mean == pytest.approx(model.members[0].mean, abs=1e-4)
    assert again.members[0].std == pytest.approx(model.members[0].std, rel=1e-3)


def test_the_same_seed_gives_the_same_model() -> None:
    one, two = (learn(base_of(), toy_rows(30), epochs=1, keep="lora", seed=5) for _ in range(2))
    assert one.model.score(TEXTS) == two.model.score(TEXTS)
    assert [step.loss for step in one.steps] == [step.loss for step in two.steps]


def test_micro_batches_and_recomputed_layers_change_the_loss_curve_by_rounding_only() -> None:
    curves = [
        [step.loss for step in learn(base_of(), toy_rows(24), epochs=1, keep="lora", **options).steps]
        for options in ({}, {"micro_tokens": 1}, {"share_prompt": False}, {"gradient_checkpointing": True})
    ]
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], abs=2e-3)


def test_other_adapters_on_the_base_are_left_as_they_were() -> None:
    base = base_of()
    base.add_adapter("policy", seed=1)
    before = base.adapter_state("policy")
    learn(base, toy_rows(24), epochs=1, keep="lora")
    after = base.adapter_state("policy")
    assert all(torch.equal(before[name], after[name]) for name in before)
    base.assert_only_trainable(["policy"])


def test_the_report_breaks_the_accuracy_down() -> None:
    rows = toy_rows(40)
    human = pairs_from_rows(toy_rows(10, seed=9))
    steps: list[RewardStep] = []
    result = train_reward(
        pairs_from_rows(rows),
        base=base_of(),
        config=RewardConfig(held_out=0.25, lora_rank=4),
        seed=0,
        human=human,
        gold=lambda prompt, completion: float(any(word in completion for word in GOOD)),
        log=steps.append,
    )
    report = result.report
    assert report.pairs + report.held_out_pairs == 40
    assert [group.group for group in report.principles] == ["warmth"]
    assert (
        sum(group.pairs for group in report.lengths)
        == sum(group.pairs for group in report.margins)
        == report.held_out_pairs
    )
    assert report.gold["judge"].accuracy == 1.0
    assert report.human is not None
    assert report.human.pairs == 10
    assert steps == result.steps
    assert json.loads(json.dumps(report.as_dict()))["kept"] == report.kept


def test_an_ensemble_has_members_that_differ() -> None:
    base = base_of()
    result = learn(
        base, toy_rows(30), epochs=1, keep="lora", ensemble=EnsembleSettings(members=2, combine="min")
    )
    assert base.roles == ("reward-0", "reward-1")
    one, two = (dataclasses.replace(member, mean=0.0, std=1.0) for member in result.model.members)
    assert RewardModel(base, [one], pooling="mean").score(TEXTS) != RewardModel(
        base, [two], pooling="mean"
    ).score(TEXTS)


# Bad input


def test_pairs_longer_than_the_limit_are_refused_or_dropped_and_counted() -> None:
    rows = toy_rows(30)
    rows[3]["chosen"][0]["content"] = "stone " * 300
    with pytest.raises(DataError, match="1 of 30 pairs are longer than 128 tokens"):
        learn(base_of(), rows, max_tokens=128)
    assert learn(base_of(), rows, max_tokens=128, overlong="drop", keep="head").report.dropped == 1


def test_labels_that_say_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="all 20 labels are ½"):
        learn(base_of(), toy_rows(20, p=0.5))
    with pytest.raises(DataError, match="no preferences"):
        learn(base_of(), [])
    with pytest.raises(DataError, match="too few"):
        learn(base_of(), toy_rows(2))


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("p_chosen", math.nan, "not a finite number"),
        ("p_chosen", 1.2, "not a probability"),
        ("p_chosen", "0.7", "not a finite number"),
        ("weight", -1, "neither 0 nor"),
        ("prompt", [], "user's turn"),
        ("chosen", [], "one assistant message"),
        ("rejected", "text", "one assistant"),
        ("chosen", [{"role": "user", "content": "x"}], "not the assistant's"),
        ("prompt", [{"role": "robot", "content": "x"}], "chat message"),
    ],
)
def test_bad_rows_are_all_named(column: str, value: Any, said: str) -> None:
    rows = toy_rows(4)
    rows[1][column] = rows[3][column] = value
    with pytest.raises(DataError, match=said) as caught:
        pairs_from_rows(rows, source="labels.jsonl")
    assert [problem.where for problem in caught.value.problems] == [
        "labels.jsonl, row 2",
        "labels.jsonl, row 4",
    ]


def test_missing_columns_and_equal_completions_are_named() -> None:
    rows = toy_rows(2)
    del rows[0]["rejected"]
    rows[1]["rejected"] = rows[1]["chosen"]
    with pytest.raises(DataError, match="column 'rejected' is missing") as caught:
        pairs_from_rows(rows)
    assert "same text" in str(caught.value)


def test_a_loss_that_is_no_number_stops_before_the_weights_are_spoiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # No setting that is allowed makes such a loss.
    monkeypatch.setattr("rlaif.config.settings.LARGEST", 1e35)
    with pytest.raises(ModelError, match="at step"):
        learn(base_of(), toy_rows(40), learning_rate=1e30, keep="lora")


def test_a_prompt_is_never_on_both_sides_of_the_split() -> None:
    pairs = pairs_from_rows(toy_rows(20, each=3))
    train, held_out = split_by_prompt(pairs, 0.2, seed=1)
    assert len(held_out) == 12
    assert not {pair.group for pair in train} & {pair.group for pair in held_out}
    assert split_by_prompt(pairs[::-1], 0.2, seed=1)[1] == held_out[::-1]


def test_files_are_mixed_by_weight() -> None:
    pairs: list[PreferencePair] = pairs_from_rows(toy_rows(3), source="a", weight=2.0)
    pairs += pairs_from_rows(toy_rows(2), source="b", hard=True)
    assert [(pair.source, pair.weight, round(pair.p_chosen, 9)) for pair in pairs] == [
        ("a", 2.0, 0.9)
    ] * 3 + [("b", 1.0, 1.0)] * 2


# Files


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RewardResult, Path]:
    """A model with an adapter, and the folder it was saved to."""
    result = learn(base_of(), toy_rows(40), keep="lora")
    folder = tmp_path_factory.mktemp("rm") / "reward"
    save_reward_model(result.model, folder, probes=result.probes, note={"rows": 40})
    return result, folder


def copy_of(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.rglob("*"):
        if path.is_file():
            (to / path.relative_to(folder)).parent.mkdir(exist_ok=True)
            (to / path.relative_to(folder)).write_bytes(path.read_bytes())
    return to


def test_a_saved_model_gives_the_same_scores_on_a_fresh_base(trained: tuple[RewardResult, Path]) -> None:
    result, folder = trained
    base = base_of()
    again = load_reward_model(base, folder)
    assert again.score(TEXTS) == result.model.score(TEXTS)
    assert result.model.base.roles == ("reward",)
    assert sorted(path.name for path in folder.iterdir()) == ["adapter-0", "heads.safetensors", "reward.json"]
    assert [path.name for path in folder.parent.iterdir()] == ["reward"]
    base.assert_only_trainable([])


def test_an_ensemble_is_saved_whole(tmp_path: Path) -> None:
    result = learn(
        base_of(),
        toy_rows(24),
        epochs=1,
        keep="lora",
        ensemble=EnsembleSettings(members=2, combine="mean-variance"),
    )
    save_reward_model(result.model, tmp_path / "rm", probes=result.probes)
    assert load_reward_model(base_of(), tmp_path / "rm").score(TEXTS) == result.model.score(TEXTS)


def test_nothing_is_overwritten(trained: tuple[RewardResult, Path], tmp_path: Path) -> None:
    result, _ = trained
    (tmp_path / "rm").mkdir()
    (tmp_path / "rm" / "mine.txt").write_text("keep")
    with pytest.raises(ModelError, match="not empty"):
        save_reward_model(result.model, tmp_path / "rm", probes=result.probes)
    assert (tmp_path / "rm" / "mine.txt").read_text() == "keep"


def test_a_save_that_does_not_come_back_alike_fails_and_leaves_nothing(
    trained: tuple[RewardResult, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = trained
    member = result.model.members[0]
    spoiled = dataclasses.replace(member, std=member.std * 2)

    def lossy(base: SharedBase, folder: Path, **options: Any) -> RewardModel:
        model = load_reward_model(base, folder, **options)
        model.members = (dataclasses.replace(spoiled, role=model.members[0].role),)
        return model

    monkeypatch.setattr("rlaif.reward.files.load_reward_model", lossy)
    with pytest.raises(ModelError, match="scores otherwise"):
        save_reward_model(result.model, tmp_path / "rm", probes=result.probes)
    assert list(tmp_path.iterdir()) == []
    assert result.model.base.roles == ("reward",)


@pytest.mark.parametrize(
    "name",
    [
        "reward.json",
        "heads.safetensors",
        "adapter-0/adapter_model.safetensors",
        "adapter-0/adapter_config.json",
    ],
)
@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_folder_cut_short_is_refused_and_leaves_the_base_clean(
    trained: tuple[RewardResult, Path], tmp_path: Path, name: str, keep: float
) -> None:
    folder = copy_of(trained[1], tmp_path / "cut")
    content = (folder / name).read_bytes()
    if keep:
        (folder / name).write_bytes(content[: int(len(content) * keep)])
    else:
        (folder / name).unlink()
    base = base_of()
    with pytest.raises(ModelError, match=r"missing|cut short|cannot be read|is damaged"):
        load_reward_model(base, folder)
    assert base.roles == ()


def test_changed_numbers_are_noticed(trained: tuple[RewardResult, Path], tmp_path: Path) -> None:
    folder = copy_of(trained[1], tmp_path / "changed")
    about = json.loads((folder / "reward.json").read_text())
    (folder / "reward.json").write_text(json.dumps({**about, "pooling": "last"}))
    with pytest.raises(ModelError, match="scores otherwise than when it was saved"):
        load_reward_model(base_of(), folder)
    (folder / "reward.json").write_text(json.dumps({**about, "format": 99}))
    with pytest.raises(ModelError, match="format 99"):
        load_reward_model(base_of(), folder)
    (folder / "reward.json").write_text(json.dumps({**about, "members": [{}]}))
    with pytest.raises(ModelError, match="cut short or changed"):
        load_reward_model(base_of(), folder)


def test_another_base_or_tokenizer_is_refused(trained: tuple[RewardResult, Path]) -> None:
    with pytest.raises(ModelError, match="was trained on tiny"):
        load_reward_model(base_of(seed=1), trained[1])
    with pytest.raises(ModelError, match="tokenizer"):
        load_reward_model(base_of(chat=False), trained[1])


def test_another_constitution_is_told(trained: tuple[RewardResult, Path], tmp_path: Path) -> None:
    folder = copy_of(trained[1], tmp_path / "other")
    about = json.loads((folder / "reward.json").read_text())
    (folder / "reward.json").write_text(json.dumps({**about, "constitution": "aaaa"}))
    said: list[str] = []
    load_reward_model(base_of(), folder, constitution="aaaa", log=said.append)
    assert said == []
    load_reward_model(base_of(), folder, constitution="bbbb", log=said.append)
    assert "trained under constitution aaaa" in said[0]


# Trained further


def learn_further(
    base: SharedBase, earlier: RewardModel, rows: Sequence[dict[str, Any]], **settings: Any
) -> RewardResult:
    fast = {"learning_rate": 3e-3, "lora_rank": 4, "epochs": 3, "held_out": 0.25, "previous": "earlier"}
    return train_reward(
        pairs_from_rows(rows),
        base=base,
        config=RewardConfig(**{**fast, "further": True, **settings}),
        seed=1,
        role="later",
        previous=earlier,
    )


def gaps(model: RewardModel, rows: Sequence[dict[str, Any]]) -> list[float]:
    """By how much each chosen completion is ahead, in raw reward."""
    pairs = pairs_from_rows(rows)
    scores = model.score([pair.conversation(text) for pair in pairs for text in (pair.chosen, pair.rejected)])
    return [model.members[0].std * (a - b) for a, b in zip(scores[::2], scores[1::2], strict=True)]


def right(model: RewardModel, rows: Sequence[dict[str, Any]]) -> float:
    return sum(gap > 0 for gap in gaps(model, rows)) / len(rows)


def test_a_head_that_is_trained_further_keeps_what_few_pairs_do_not_tell() -> None:
    base = base_of()
    earlier = learn(base, toy_rows(40), keep="head").model
    few, unseen = toy_rows(8, seed=5), toy_rows(60, seed=9)
    anew = learn(base, few, keep="head").model
    further = learn_further(base, earlier, few, keep="head").model
    assert right(further, unseen) > right(anew, unseen)
    assert right(further, unseen) >= right(earlier, unseen) - 0.05
    assert gaps(further, unseen) != gaps(earlier, unseen)


def test_an_adapter_is_trained_from_where_it_was() -> None:
    base = base_of()
    earlier = learn(base, toy_rows(40), keep="lora").model
    before = base.adapter_state("reward")
    further = learn_further(base, earlier, toy_rows(8, seed=5), keep="lora", learning_rate=1e-9, epochs=1)
    after = base.adapter_state(further.model.members[0].role)
    assert further.model.members[0].role == "later"
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=0, atol=1e-6)
    assert base.adapter_state("reward").keys() == before.keys()  # the earlier one is left as it was
    assert all(torch.equal(weight, before[name]) for name, weight in base.adapter_state("reward").items())


@pytest.mark.parametrize(
    ("trained", "settings", "message"),
    [
        ({"keep": "head"}, {"pooling": "last", "keep": "head"}, "was fitted with pooling mean, not last"),
        ({"keep": "head"}, {"keep": "lora", "warm_start": False}, "`warm_start: false` fits none"),
        ({"keep": "lora"}, {"keep": "head"}, "scores through an adapter"),
        (
            {"keep": "lora"},
            {"keep": "lora", "lora_rank": 8},
            r"rank and alpha \(4, 32.0\), the settings ask for",
        ),
        ({"keep": "head", "ensemble": {"members": 2}}, {"keep": "head"}, "an ensemble of 2"),
    ],
)
def test_what_cannot_be_trained_further_is_refused(
    trained: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    base = base_of()
    earlier = learn(base, toy_rows(12), **trained, epochs=1).model
    with pytest.raises(ConfigError, match=message):
        learn_further(base, earlier, toy_rows(8), **settings)


def test_further_needs_a_model() -> None:
    with pytest.raises(ValueError, match="previous"):
        RewardConfig(further=True)
