"""A label has one form, log-odds, from the file to the loss."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from rlaif.errors import DataError
from rlaif.io.training_rows import preference_of
from rlaif.labels import MOST_LOG_ODDS, log_odds_of, sigmoid
from rlaif.results.preferences import pairs_from_rows
from rlaif.results.reward import score_pairs
from rlaif.reward.fit import bounded
from rlaif.reward.loss import bradley_terry_loss, label_log_odds

ROW = {"prompt": "q", "chosen": "a", "rejected": "b"}


def label(**columns: object) -> float:
    (pair,) = pairs_from_rows([preference_of({**ROW, **columns})])
    return pair.log_odds


def test_log_odds_are_read_exactly_and_probabilities_as_their_log_odds() -> None:
    assert label(log_odds=13.5, p_chosen=0.999999) == 13.5, "p_chosen is rounded"
    assert label(log_odds="1.25") == 1.25, "as a CSV file writes it"
    assert label(p_chosen=0.8) == pytest.approx(math.log(4))
    assert label() == label(p_chosen=1) == MOST_LOG_ODDS
    assert label(margin=2.0, p_chosen=0.7) == label(p_chosen=0.7), "a rating, not a label"
    assert label(margin=2.0, constitution_digest="x") == 2.0, "as version 0.1.0 wrote it"


def test_columns_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(DataError) as caught:
        label(p_chosen=1.0, log_odds=0.5)
    assert "p_chosen is 1, and log_odds is 0.5, which says 0.622" in str(caught.value.problems[0].what)


@pytest.mark.parametrize("p", [0.0, 1e-9, 0.3, 0.5, 1 - 1e-9, 1.0])
def test_a_probability_comes_back(p: float) -> None:
    assert sigmoid(log_odds_of(p)) == pytest.approx(p, rel=1e-9, abs=1e-300)


def test_certain_labels_have_finite_losses_and_bounded_targets() -> None:
    certain = label_log_odds([MOST_LOG_ODDS, -MOST_LOG_ODDS, 0.1, -0.1], hard=True)
    assert certain.sigmoid().tolist() == pytest.approx([1.0, 0.0, 1.0, 0.0], abs=1e-300)
    assert bradley_terry_loss(certain, torch.zeros(4).double(), certain.sigmoid()) < 1e-300
    assert score_pairs(certain, certain.sigmoid()).loss < 1e-300, "the judge repeats its own labels"
    assert sigmoid(float(bounded(certain)[0])) == pytest.approx(0.98)


def test_a_written_label_is_read_back(tmp_path: Path) -> None:
    line = json.dumps({**ROW, "p_chosen": round(sigmoid(9.123456), 6), "log_odds": 9.123456})
    assert label(**json.loads(line)) == 9.123456
