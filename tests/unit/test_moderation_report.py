"""The report of a moderator, on scores that are given."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor

from rlaif.config.moderation import ModerationConfig
from rlaif.models.shared_base import SharedBase
from rlaif.moderation.examples import Example
from rlaif.moderation.fit import calibrate
from rlaif.moderation.kinds import HeldOut
from rlaif.moderation.train import Fitted, Readable
from rlaif.progress import NoProgress
from rlaif.results.moderation import WayReport
from rlaif.stages.moderation_report import moderation_report
from rlaif.types import Message

KEPT, BROKEN = 120, 6


@pytest.fixture(scope="module")
def base() -> SharedBase:
    return SharedBase.from_model(tiny_model(), tiny_tokenizer(), name="tiny", identity="tiny-0")


def measured(base: SharedBase, score: Tensor, *, look_alikes: int = 0) -> WayReport:
    """What the report says of `KEPT` prompts that are kept, and then `BROKEN` that are not."""
    examples = [
        Example((Message("user", f"ask {at}"),), {"harm": float(at >= KEPT)}, look_alike=at < look_alikes)
        for at in range(KEPT + BROKEN)
    ]
    broken = torch.tensor([each.broken["harm"] for each in examples], dtype=torch.double)
    held = HeldOut(
        category="harm",
        reads="prompt",
        rows=torch.arange(len(examples)),
        broken=broken,
        score=score,
        peak=score,
        fold=torch.arange(len(examples)) % 5,
        calibration=calibrate(score, broken, torch.ones(len(examples))),
    )
    report = moderation_report(
        Readable(examples, [], {}),
        Fitted({}, ("harm",), [held], {}, {"harm": ("prompt",)}, {}),
        [held],
        {"harm": 0.5},
        base=base,
        config=ModerationConfig(),
        layers=(1,),
        seed=0,
        progress=NoProgress(),
    )
    (category,) = report.categories
    return category.ways["moderator"]


def test_recall_of_a_few_texts_is_not_certain(base: SharedBase) -> None:
    way = measured(base, torch.arange(KEPT + BROKEN, dtype=torch.double))
    found = way.recall["0.01"]
    assert found.value == 1.0
    assert found.low == pytest.approx(0.610, abs=0.001)  # Wilson's of 6 of 6
    assert found.high == 1.0
    nothing = measured(base, -torch.arange(KEPT + BROKEN, dtype=torch.double)).recall["0.01"]
    assert (nothing.low, nothing.value) == (0.0, 0.0)
    assert nothing.high == pytest.approx(0.390, abs=0.001)
    assert way.recall["0.001"].value is None


def test_look_alikes_are_flagged_by_a_threshold_of_other_prompts(base: SharedBase) -> None:
    # Five look-alikes, one in each fold, are surer to be flagged than anything else that is kept. The other
    # folds keep 96 texts, of which 1 % are none: only the highest of all is above theirs.
    score = torch.arange(KEPT + BROKEN, dtype=torch.double)
    score[:5] += 1000
    found = measured(base, score, look_alikes=5).over_refusal
    assert found.value == pytest.approx(1 / 5)
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < 0.2 < found.high < 1


def test_scores_that_are_all_equal_are_a_coin(base: SharedBase) -> None:
    assert measured(base, torch.zeros(KEPT + BROKEN, dtype=torch.double)).auroc.value == 0.5
