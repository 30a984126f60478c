"""Probes: the closed form against a naive reference, windows against sums by hand, streams against whole texts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor

from rlaif.errors import DataError, ModelError
from rlaif.models.shared_base import SharedBase
from rlaif.moderation.base import flagged
from rlaif.moderation.examples import Example
from rlaif.moderation.files import find_moderator, load_moderator, save_moderator
from rlaif.moderation.fit import (
    AXES,
    axes_of,
    balanced,
    calibrate,
    fit_direction,
    held_out_directions,
    stratified_folds,
)
from rlaif.moderation.measures import threshold_at
from rlaif.moderation.probe import Heads, ProbeModerator
from rlaif.moderation.states import Encoder, StateTable, default_layers, tapped
from rlaif.moderation.train import fit_probe, readable
from rlaif.moderation.windows import READOUTS, Readout, RunningScore, of_text, token_path
from rlaif.progress import NoProgress
from rlaif.types import Message

USER, ANSWER = (
    Message("user", "How do I cook the rice?"),
    Message("assistant", "Use two cups of water, then wait."),
)
EXCHANGE = (USER, ANSWER)


@pytest.fixture(scope="module")
def base() -> SharedBase:
    return SharedBase.from_model(tiny_model(), tiny_tokenizer(), name="tiny", identity="tiny-0")


def made(base: SharedBase, readout: Readout = "windows", *, window: int = 4) -> ProbeModerator:
    layers = default_layers(base)
    size = len(layers) * base.hidden_size
    draw = torch.Generator().manual_seed(1)

    def heads(readout: Readout) -> Heads:
        return Heads(
            direction=torch.randn(2, size, generator=draw) / size**0.5,
            bias=torch.tensor([0.1, -0.3]),
            slope=torch.tensor([1.5, 0.7]),
            offset=torch.tensor([-0.5, 0.2]),
            readout=readout,
        )

    return ProbeModerator(
        base=base,
        categories=("harm", "lies"),
        thresholds={"harm": 0.4, "lies": 0.9},
        layers=layers,
        heads={"prompt": heads("windows"), "exchange": heads(readout)},
        window=window,
    )


# Windows


def test_windows_by_hand() -> None:
    z = torch.tensor([[4.0], [0.0], [-2.0], [6.0], [1.0]])
    path = token_path(z, window=2, readout="windows")
    assert path.squeeze(1).tolist() == [2.0, 2.0, -1.0, 2.0, 3.5]
    assert of_text(path, "windows").tolist() == [3.5]


def test_the_mean_so_far_by_hand() -> None:
    z = torch.tensor([[4.0], [0.0], [-2.0], [6.0]])
    path = token_path(z, window=2, readout="mean")
    assert path.squeeze(1).tolist() == pytest.approx([2.0, 2.0, 2 / 3, 2.0])
    assert of_text(path, "mean").tolist() == [2.0]


@pytest.mark.parametrize("readout", READOUTS)
def test_a_text_without_tokens_scores_0(readout: Readout) -> None:
    assert of_text(token_path(torch.zeros(0, 3), window=4, readout=readout), readout).tolist() == [0, 0, 0]


@pytest.mark.parametrize("readout", READOUTS)
def test_token_by_token_is_the_path(readout: Readout) -> None:
    z = torch.randn(40, 3, generator=torch.Generator().manual_seed(2))
    running = RunningScore(window=7, readout=readout)
    assert torch.allclose(
        torch.stack([running.push(each) for each in z]), token_path(z, window=7, readout=readout), atol=1e-12
    )


@pytest.mark.parametrize("readout", READOUTS)
def test_no_score_rests_on_what_comes_later(readout: Readout) -> None:
    z = torch.randn(30, 2, generator=torch.Generator().manual_seed(3))
    other = z.clone()
    other[20:] += 100
    before, after = (token_path(each, window=8, readout=readout) for each in (z, other))
    assert torch.equal(before[:20], after[:20])
    assert not torch.allclose(before[20:], after[20:])


# States


def test_states_are_those_of_transformers(base: SharedBase) -> None:
    ids = torch.arange(5, 17).unsqueeze(0)
    mask = torch.ones_like(ids)
    with torch.no_grad():
        own = base.model.get_decoder()(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        with tapped(base, (1, 2)) as tap:
            found = tap.states(base.hidden(ids, mask))
    assert found.shape == (1, 12, 2, base.hidden_size)
    for place, layer in enumerate((1, 2)):
        assert torch.allclose(found[:, :, place], own.hidden_states[layer], atol=1e-4)


def test_the_taps_are_gone_afterwards(base: SharedBase) -> None:
    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in base.model.modules())

    before = hooks()
    with tapped(base, (1,)):
        assert hooks() == before + 1
    assert hooks() == before


def test_a_layer_that_is_not_there_is_refused(base: SharedBase) -> None:
    with pytest.raises(ModelError, match="layer 3 is to be read, and the model has 2"), tapped(base, (1, 3)):
        pass


def test_an_exchange_is_read_from_its_first_token_on(base: SharedBase) -> None:
    encoder = Encoder(base)
    text = encoder.encode(EXCHANGE)
    assert base.tokenizer.decode(text.ids[text.start :]) == ANSWER.content
    assert base.tokenizer.decode(text.ids[: text.start]).endswith("assistant\n")


def test_a_prompt_is_read_from_its_last_message_on(base: SharedBase) -> None:
    text = Encoder(base).encode(
        (Message("user", "rice?"), Message("assistant", "yes"), Message("user", "rice?"))
    )
    assert base.tokenizer.decode(text.ids[text.start :]).startswith("rice?<|im_end|>")
    assert base.tokenizer.decode(text.ids[: text.start]).endswith("user\n")


def test_an_answer_to_nothing_is_refused(base: SharedBase) -> None:
    with pytest.raises(DataError, match="no message before the answer"):
        Encoder(base).encode((ANSWER,))


class Counted(NoProgress):
    """Counts what is done."""

    def __init__(self) -> None:
        self.done = 0

    def advance(self, items: int = 1) -> None:
        self.done += items


def test_states_that_are_not_kept_are_read_again(base: SharedBase) -> None:
    encoder = Encoder(base)
    texts = [encoder.encode(EXCHANGE), encoder.encode((USER,))]
    kept = StateTable(base, texts, (1, 2))
    means = kept.means()
    assert {at: states.mean(0).tolist() for at, states in kept} == {
        at: row.tolist() for at, row in enumerate(means)
    }
    tokens = sum(len(text.ids) - text.start for text in texts)
    assert kept.keeps == tokens * 2 * base.hidden_size * 4
    counted = Counted()
    again = StateTable(base, texts, (1, 2), room=kept.keeps - 1, progress=counted)
    assert again.keeps == 0
    assert torch.equal(again.means(), again.means())
    assert torch.allclose(again.means(), means)
    assert counted.done == len(texts)  # whatever is read again


def test_prompts_and_exchanges_share_the_room_for_states(
    base: SharedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [
        Example((Message("user", f"ask {at}"), *answer), {"harm": float(at % 2)})
        for at in range(12)
        for answer in ((), (ANSWER,))
    ]
    made_with: list[StateTable] = []
    room = 1 << 17
    monkeypatch.setattr("rlaif.moderation.train.STATES_KEPT", room)
    monkeypatch.setattr(
        "rlaif.moderation.train.StateTable",
        lambda *given, **named: made_with.append(StateTable(*given, **named)) or made_with[-1],
    )
    fit_probe(readable(examples, base), base, ["harm"], layers=(1, 2), window=4, seed=0)
    assert len(made_with) == 2
    assert 0 < sum(table.keeps for table in made_with) <= room
    assert min(table.keeps for table in made_with) == 0  # both would not fit


# Watching


@pytest.mark.parametrize("readout", READOUTS)
def test_a_stream_comes_to_the_score_of_the_whole_text(base: SharedBase, readout: Readout) -> None:
    moderator = made(base, readout)
    (whole,) = moderator.scores([EXCHANGE])
    text = moderator.encoder.encode(EXCHANGE)
    watch, seen = moderator.watch((USER,)), []
    for end in range(text.start, len(text.ids)):  # each token's states as decoding has them: nothing after it
        ids = torch.tensor([text.ids[: end + 1]])
        with torch.no_grad(), tapped(base, moderator.layers) as tap:
            states = tap.states(base.hidden(ids, torch.ones_like(ids)))[0, -1]
        seen.append(watch.push("", states))
    for name, value in whole.items():
        path = [scores[name] for scores in seen]
        assert (max(path) if readout == "windows" else path[-1]) == pytest.approx(value, abs=1e-5)


def test_scores_do_not_depend_on_the_batch(base: SharedBase) -> None:
    moderator = made(base)
    alone = [moderator.scores([each])[0] for each in (EXCHANGE, (USER,))]
    for found, wanted in zip(moderator.scores([EXCHANGE, (USER,)]), alone, strict=True):
        assert found == pytest.approx(wanted, abs=1e-5)


def test_prompts_and_exchanges_have_heads_of_their_own(base: SharedBase) -> None:
    moderator = made(base)
    swapped = replace(
        moderator, heads={"prompt": moderator.heads["exchange"], "exchange": moderator.heads["prompt"]}
    )
    assert moderator.scores([(USER,)])[0] != pytest.approx(swapped.scores([(USER,)])[0])
    assert moderator.digest != swapped.digest


def test_an_empty_answer_has_the_score_of_an_average_one(base: SharedBase) -> None:
    moderator = made(base)
    (scores,) = moderator.scores([(USER, Message("assistant", ""))])
    heads = moderator.heads["exchange"]
    assert list(scores.values()) == pytest.approx(torch.sigmoid(heads.offset).tolist())


def test_a_probe_needs_states(base: SharedBase) -> None:
    watch = made(base).watch((USER,))
    with pytest.raises(ModelError, match="was given none"):
        watch.push("a", None)
    with pytest.raises(ModelError, match=r"was given shape \(3, 48\)"):
        watch.push("a", torch.zeros(3, 48))


def test_what_is_too_long_is_refused(base: SharedBase) -> None:
    with pytest.raises(ModelError, match=r"conversation 1 has .* tokens, and tiny reads 1024"):
        made(base).scores([(USER,), (Message("user", "q" * 2000),)])


def test_flagged_from_the_threshold_on() -> None:
    assert flagged({"a": 0.5, "b": 0.49}, {"a": 0.5, "b": 0.5}) == ("a",)


# Files


def test_a_moderator_comes_back_with_its_scores(base: SharedBase, tmp_path: Path) -> None:
    moderator = made(base, "mean")
    save_moderator(moderator, tmp_path / "stage" / "model", constitution="c", probes=[EXCHANGE, (USER,)])
    again = load_moderator(tmp_path / "stage", base)
    assert find_moderator(tmp_path / "stage") == tmp_path / "stage" / "model"
    assert again.scores([EXCHANGE]) == moderator.scores([EXCHANGE])
    assert (again.categories, again.thresholds, again.layers, again.digest) == (
        moderator.categories,
        moderator.thresholds,
        moderator.layers,
        moderator.digest,
    )


def test_another_base_is_refused(base: SharedBase, tmp_path: Path) -> None:
    save_moderator(made(base), tmp_path / "m", constitution="c", probes=[])
    other = SharedBase.from_model(tiny_model(seed=1), tiny_tokenizer(), name="other", identity="other-1")
    with pytest.raises(ModelError, match=r"trained on tiny \(weights tiny-0\), the base here is other"):
        load_moderator(tmp_path / "m", other)


def test_nothing_is_overwritten(base: SharedBase, tmp_path: Path) -> None:
    save_moderator(made(base), tmp_path / "m", constitution="c", probes=[])
    with pytest.raises(ModelError, match="the folder is not empty"):
        save_moderator(made(base), tmp_path / "m", constitution="c", probes=[])


def test_a_folder_without_a_moderator_says_so(base: SharedBase, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"contains no moderator.*\n.*rlaif moderation train"):
        load_moderator(tmp_path, base)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 7}, "of format 7"),
        ({"thresholds": {}}, r"moderation.json is missing, cut short or changed"),
        ({"categories": ["harm"]}, r"has shape"),
        ({"readout": {"prompt": "loud", "exchange": "mean"}}, "readout 'loud' is unknown"),
    ],
)
def test_a_changed_note_is_refused(
    base: SharedBase, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    save_moderator(made(base), tmp_path / "m", constitution="c", probes=[])
    path = tmp_path / "m" / "moderation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=said):
        load_moderator(tmp_path / "m", base)


def test_changed_heads_are_refused(base: SharedBase, tmp_path: Path) -> None:
    save_moderator(made(base), tmp_path / "m", constitution="c", probes=[EXCHANGE])
    save_moderator(
        replace(
            made(base),
            heads={
                reads: replace(made(base).heads[reads], offset=torch.tensor([9.0, -9.0]))
                for reads in ("prompt", "exchange")
            },
        ),
        tmp_path / "n",
        constitution="c",
        probes=[EXCHANGE],
    )
    (tmp_path / "n" / "heads.safetensors").replace(tmp_path / "m" / "heads.safetensors")
    with pytest.raises(ModelError, match="scores otherwise than when it was saved"):
        load_moderator(tmp_path / "m", base)
    (tmp_path / "m" / "heads.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelError, match=r"heads.safetensors is missing, cut short or changed"):
        load_moderator(tmp_path / "m", base)


# The closed form


def toy(rows: int = 120, size: int = 12, *, seed: int = 0) -> tuple[Tensor, Tensor, list[str]]:
    """Features of two clouds that differ along one axis, their labels, and prompts of two texts each."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, size, generator=draw)
    broken = (torch.arange(rows) % 3 == 0).double()
    x[:, 2] += 4 * broken.float()
    return 5 + 3 * x, broken, [f"p{number // 2}" for number in range(rows)]


def fitted(x: Tensor, broken: Tensor, groups: Sequence[str]) -> Tensor:
    axes = axes_of(x)
    head = fit_direction(axes, axes.coordinates(x), broken, weight=torch.ones(len(x)), groups=groups, seed=0)
    return x @ head.weight + head.bias


def test_a_head_is_weighted_ridge_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against normal equations written out, on the features themselves and not on their axes."""
    monkeypatch.setattr("rlaif.reward.fit.PENALTIES", (10.0,))
    monkeypatch.setattr("rlaif.reward.fit._ridge.__defaults__", ((10.0,),))
    x, broken, groups = toy()
    found = fitted(x, broken, groups).double()
    standard = (x - x.mean(0)) / x.std(0, unbiased=False)
    weight = balanced(broken, torch.ones(len(x)))
    weight = weight / weight.mean()
    centred = standard.double() - (weight @ standard.double()) / weight.sum()
    target = torch.where(broken > 0.5, 1.0, -1.0).double()
    gram = (centred * weight[:, None]).t() @ centred + 10.0 * torch.eye(x.shape[1], dtype=torch.double)
    naive = centred @ torch.linalg.solve(gram, centred.t() @ (weight * target))
    ratio = found / naive  # the factor on the predictions is chosen out of fold, and is one for all
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-3)
    assert ratio.mean() > 0


def test_a_separable_toy_is_ranked_out_of_fold() -> None:
    x, broken, groups = toy()
    axes = axes_of(x)
    folds = stratified_folds(groups, broken, 0)
    heads = held_out_directions(
        axes, axes.coordinates(x), broken, fold=folds, weight=torch.ones(len(x)), groups=groups, seed=0
    )
    score = torch.stack(
        [row @ heads[int(fold)].weight + heads[int(fold)].bias for row, fold in zip(x, folds, strict=True)]
    )
    won = (score[broken > 0.5][:, None] > score[broken < 0.5][None]).double().mean()
    assert won > 0.9


def test_folds_hold_prompts_together_and_deal_out_what_is_broken() -> None:
    _, broken, groups = toy()
    folds = stratified_folds(groups, broken, 0)
    assert torch.equal(folds[::2], folds[1::2])
    assert [int(((folds == fold) & (broken > 0.5)).sum()) for fold in range(5)] == [8] * 5
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(0))
    again = stratified_folds([groups[at] for at in order.tolist()], broken[order], 0)
    assert torch.equal(again, folds[order])


def test_a_head_of_a_fold_does_not_know_the_fold() -> None:
    x, broken, groups = toy()
    axes = axes_of(x)
    folds = stratified_folds(groups, broken, 0)

    def heads(labels: Tensor) -> list[Tensor]:
        found = held_out_directions(
            axes, axes.coordinates(x), labels, fold=folds, weight=torch.ones(len(x)), groups=groups, seed=0
        )
        return [head.weight for head in found]

    before, after = heads(broken), heads(torch.where(folds == 0, 1 - broken, broken))
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_labels_that_all_say_the_same_are_refused() -> None:
    x, broken, groups = toy()
    with pytest.raises(DataError, match="all labels of a principle say the same"):
        fitted(x, torch.zeros_like(broken), groups)


def test_axes_are_orthonormal_and_bounded() -> None:
    x = torch.randn(40, 300, generator=torch.Generator().manual_seed(0))
    for features in (x, x.t()):
        axes = axes_of(features).axes
        assert axes.shape[1] <= min(AXES, 40)
        assert torch.allclose(axes.t() @ axes, torch.eye(axes.shape[1], dtype=torch.double), atol=1e-8)


def test_calibration_finds_the_odds() -> None:
    draw = torch.Generator().manual_seed(0)
    score = torch.randn(4000, generator=draw, dtype=torch.double) * 3
    broken = (torch.rand(4000, generator=draw) < torch.sigmoid(0.8 * score - 1.2)).double()
    found = calibrate(score, broken, torch.ones(4000))
    assert found.slope == pytest.approx(0.8, abs=0.08)
    assert found.offset == pytest.approx(-1.2, abs=0.15)


def test_scores_that_are_upside_down_are_taken_for_nothing() -> None:
    score = torch.linspace(-2, 2, 50)
    found = calibrate(score, (score < 0).double(), torch.ones(50))
    assert found.slope == 0
    assert 1 / (1 + math.exp(-found.offset)) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("seed", range(12))
def test_scores_that_say_nothing_flag_nothing(base: SharedBase, seed: int) -> None:
    # Heads are kept in single precision. Where all texts have one probability, a threshold that was chosen in
    # double precision lay below it as often as above.
    draw = torch.Generator().manual_seed(seed)
    broken = (torch.rand(30 + seed, generator=draw) > 0.6).double()
    found = calibrate(torch.randn(30 + seed, generator=draw) - 3 * broken, broken, torch.ones(30 + seed))
    assert found.slope == 0
    threshold = threshold_at(found.probability(torch.randn(20, generator=draw)), 0.01)
    heads = replace(
        made(base).heads["prompt"],
        slope=torch.tensor([found.slope, 1.0]),
        offset=torch.tensor([found.offset, 0.0]),
    )
    moderator = replace(
        made(base), heads={"prompt": heads, "exchange": heads}, thresholds={"harm": threshold, "lies": 1.0}
    )
    (scores,) = moderator.scores([(USER,)])
    assert flagged(scores, moderator.thresholds) == ()
    assert scores["harm"] == pytest.approx(threshold, abs=1e-8)
