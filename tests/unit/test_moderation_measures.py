"""What a moderator is worth: cases worked out by hand, and the baselines."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rlaif.moderation.baselines import fit_bag_of_words, listed_words, words_of
from rlaif.moderation.examples import Example, labels_of
from rlaif.moderation.kinds import others_broken, why_not
from rlaif.moderation.measures import (
    RankedTexts,
    calibration_error,
    fewest,
    flagged_out_of_fold,
    threshold_at,
)
from rlaif.types import Message


def auroc(score: list[float], broken: list[int], weight: list[float] | None = None) -> float:
    return RankedTexts(score, broken).auroc(np.array(weight or [1.0] * len(score)))


def test_auroc_by_hand() -> None:
    # Pairs (broken, kept): .9 > .4, .9 > .6, .5 > .4, .5 < .6 -> 3 of 4.
    assert auroc([0.9, 0.5, 0.4, 0.6], [1, 1, 0, 0]) == 0.75
    # A tie counts a half: (.5, .5) and (.5, .2) -> 1.5 of 2.
    assert auroc([0.5, 0.5, 0.2], [1, 0, 0]) == 0.75
    assert auroc([1, 1, 1, 1], [1, 0, 1, 0]) == 0.5


def test_auroc_counts_weights_as_copies() -> None:
    drawn = auroc([0.9, 0.5, 0.4, 0.6], [1, 1, 0, 0], [2, 1, 0, 3])
    assert drawn == auroc([0.9, 0.9, 0.5, 0.6, 0.6, 0.6], [1, 1, 1, 0, 0, 0])


def test_auroc_against_all_pairs() -> None:
    draw = np.random.default_rng(0)
    score, broken = draw.integers(0, 6, 60).astype(float), draw.integers(0, 2, 60)
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in score[broken == 1] for b in score[broken == 0]]
    assert auroc(score.tolist(), broken.tolist()) == pytest.approx(np.mean(pairs))


def test_auroc_of_one_side_is_undefined() -> None:
    assert math.isnan(auroc([0.5, 0.4], [1, 1]))


def test_recall_by_hand() -> None:
    # From the top: broken, kept, broken, broken, kept, kept, kept.
    ranked = RankedTexts([7, 6, 5, 4, 3, 2, 1], [1, 0, 1, 1, 0, 0, 0])
    ones = np.ones(7)
    assert ranked.recall(ones, 0.0) == pytest.approx(1 / 3)
    assert ranked.recall(ones, 0.24) == pytest.approx(1 / 3)
    assert ranked.recall(ones, 0.25) == 1.0
    # A tie is flagged together or not at all.
    assert RankedTexts([2, 2, 1], [1, 0, 0]).recall(np.ones(3), 0.4) == 0.0
    assert RankedTexts([2, 2, 1], [1, 0, 0]).recall(np.ones(3), 0.5) == 1.0


def test_how_many_kept_texts_a_share_needs() -> None:
    assert (fewest(0.01), fewest(0.001), fewest(0.03)) == (100, 1000, 34)


def test_thresholds_flag_no_more_than_is_allowed() -> None:
    kept = [0.1, 0.2, 0.3, 0.9]
    assert threshold_at(kept, 0.25) > 0.3
    assert threshold_at(kept, 0.25) == pytest.approx(0.3)
    assert [value >= threshold_at(kept, 0.25) for value in kept] == [False, False, False, True]
    assert not any(value >= threshold_at(kept, 0.1) for value in kept)
    assert not threshold_at([1.0, 0.5], 0.1) <= 1.0


def test_a_threshold_is_chosen_on_the_other_folds() -> None:
    # Fold 0 keeps .1 and .2, fold 1 keeps .3 and .9; none may be flagged, so each fold's threshold is just
    # above what the other keeps at most.
    score, fold = [0.1, 0.2, 0.95, 0.3, 0.9, 0.25], [0, 0, 0, 1, 1, 1]
    found = flagged_out_of_fold(score, [0, 0, 1, 0, 0, 1], fold, 0.1)
    assert found is not None
    assert found.tolist() == [False, False, True, True, True, True]


def test_kept_texts_may_be_flagged_more_often_than_allowed_out_of_fold() -> None:
    # Three look-alikes in one fold score above all else that is kept: chosen on all ten, a threshold that may
    # flag one flags one.
    score, fold = [0.9, 0.8, 0.7, *(0.1,) * 7], [0, 0, 0, *(1,) * 7]
    kept = [0] * 10
    found = flagged_out_of_fold(score, kept, fold, 0.1)
    assert found is not None
    assert int(found.sum()) == 3
    assert sum(value >= threshold_at(score, 0.1) for value in score) == 1


def test_without_kept_texts_in_the_other_folds_there_is_no_threshold() -> None:
    assert flagged_out_of_fold([0.1, 0.9, 0.8], [0, 1, 1], [0, 0, 1], 0.1) is None
    assert flagged_out_of_fold([0.1, 0.9], [0, 1], [0, 0], 0.1) is None


def test_texts_of_one_score_are_not_flagged_for_their_last_digits() -> None:
    threshold = threshold_at([0.3] * 50, 0.1)
    assert threshold > 0.3 * (1 + 1e-15)
    assert threshold == pytest.approx(0.3)


def test_calibration_error_by_hand() -> None:
    # Bin 0-0.1: says 0.05, is 0.5 (2 texts); bin 0.9-1: says 0.9, is 1 (1 text).
    assert calibration_error([0.05, 0.05, 0.9], [0, 1, 1]) == pytest.approx((2 * 0.45 + 0.1) / 3)
    assert calibration_error([0.0, 1.0], [0, 1]) == 0.0


def test_a_bag_of_words_learns_which_words_are_bad() -> None:
    documents = [["kill", "it"], ["feed", "it"], ["kill", "them"], ["feed", "them"]] * 5
    broken = torch.tensor([1.0, 0.0, 1.0, 0.0] * 5)
    bag = fit_bag_of_words(documents, broken, torch.ones(20))
    bad, good, new = bag.log_odds([["kill", "him"], ["feed", "him"], ["other"]]).tolist()
    assert bad > 1 > -1 > good
    assert new == pytest.approx(bag.bias)


def test_a_bag_of_words_is_at_the_minimum_of_its_loss() -> None:
    documents = [["a"], ["a", "b"], ["b"], ["c"]]
    broken, weight = torch.tensor([1.0, 0.7, 0.0, 0.2]), torch.tensor([1.0, 2.0, 1.0, 1.0])
    bag = fit_bag_of_words(documents, broken, weight)
    theta = torch.cat([bag.weight, torch.tensor([bag.bias], dtype=torch.double)]).requires_grad_()
    z = bag._replace(weight=theta[:-1], bias=theta[-1]).log_odds(documents)  # type: ignore[arg-type]
    loss = weight / weight.mean() * (torch.nn.functional.softplus(z) - broken * z)
    (loss.sum() + theta[:-1].square().sum() / 2).backward()
    assert theta.grad is not None
    assert theta.grad.abs().max() < 1e-4


def test_words_of_an_exchange_tell_prompt_and_answer_apart() -> None:
    turns = (Message("user", "Kill it?"), Message("assistant", "No, don't."))
    assert words_of(turns) == ["no", "don't", "prompt:kill", "prompt:it"]
    assert words_of(turns[:1]) == ["kill", "it"]
    assert listed_words([turns, turns[1:]]).tolist() == [1.0, 0.0]


def test_labels_that_are_not_known_are_nan() -> None:
    texts = [Example((Message("user", "a"),), {"x": 1.0}), Example((Message("user", "b"),), {"y": 0.5})]
    found = labels_of(texts, ["x", "y"])
    assert found[0, 0] == 1
    assert found[1, 1] == 0.5
    assert found.isnan().tolist() == [[False, True], [True, False]]


def test_what_breaks_another_principle() -> None:
    nan = math.nan
    labels = torch.tensor(
        [[0, 1, 0], [0, 0.5, 0.5], [1, 1, 0], [nan, 0, nan], [0, nan, nan]], dtype=torch.double
    )
    found = others_broken(labels, 0)
    assert found[:2].tolist() == [1.0, 0.75]
    assert found[3] == 0
    assert found.isnan().tolist() == [False, False, True, False, True]


def test_why_labels_are_too_few() -> None:
    groups = [str(at // 2) for at in range(20)]
    assert why_not(groups, torch.tensor([1.0] * 10 + [0.0] * 10), "prompt") == ""
    assert why_not(groups, torch.tensor([1.0] * 8 + [0.0] * 10 + [math.nan] * 2), "exchange") == (
        "exchanges: 4 broken and 5 kept, of 5 each that are needed"
    )


def test_an_example_knows_its_prompt() -> None:
    asked = Message("user", "a  b")
    first = Example((asked, Message("assistant", "x")), {})
    second = Example((Message("user", "a b"),), {})
    assert (first.reads, second.reads) == ("exchange", "prompt")
    assert first.group == second.group
