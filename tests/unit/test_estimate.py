"""How long so many tokens take: shared beginnings are read once, and models that run elsewhere have no
estimate."""

from __future__ import annotations

import pytest

from rlaif.jobs import estimate


@pytest.mark.parametrize(
    ("groups", "share"),
    [
        ([], 1.0),
        ([["abcd"]], 1.0),
        ([["abcd", "abcd"]], 0.5),
        ([["abcd", "abxy"], ["abcd"]], 10 / 12),
        ([["abx", "b", "aby", "a"]], 5 / 8),
    ],
)
def test_a_beginning_is_read_once_within_a_group(groups: list[list[str]], share: float) -> None:
    assert estimate.shared(groups) == pytest.approx(share)


def test_models_that_run_elsewhere_have_no_estimate() -> None:
    for model in ("scripted", "openai:some/model"):
        assert estimate.seconds(model, dtype="auto", device="cpu", read=1e6) is None


def test_writing_costs_more_than_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "matmul_rate", lambda dtype, device: 1e12)
    read = estimate.seconds("smollm2-135m", dtype="auto", device="cpu", read=1000)
    assert read == pytest.approx(2 * 106e6 / 1e12 * 1000 / 0.35, rel=0.01)
    assert estimate.seconds("smollm2-135m", dtype="auto", device="cpu", read=0, write=1000) == pytest.approx(
        read * 7
    )
