"""Swapping is its own inverse, and a label does not depend on which completion is called `a`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rlaif.judging.aggregate import combine
from rlaif.labels import sigmoid
from rlaif.types import Comparison, Completion, Message, Order, Prompt, Verdict

finite = st.floats(min_value=-50, max_value=50)
orders = st.sampled_from(list(Order))


@given(a=st.text(), b=st.text())
def test_comparison_swap_is_an_involution(a: str, b: str) -> None:
    prompt = Prompt(id="p", messages=(Message("user", "?"),))
    first, second = (
        Completion(id=f"p/{i}", prompt_id="p", index=i, text=t, finish="stop", model="m")
        for i, t in enumerate((a, b))
    )
    comparison = Comparison(prompt=prompt, a=first, b=second)
    assert comparison.swap() != comparison
    assert comparison.swap().swap() == comparison


@given(logit=st.one_of(st.none(), finite), order=orders)
def test_verdict_swap_is_an_involution(logit: float | None, order: Order) -> None:
    verdict = Verdict(comparison_id="c", principle_id="p", order=order, logit_a=logit)
    assert verdict.swap().swap() == verdict
    assert verdict.swap().valid == verdict.valid


@given(logits=st.lists(st.tuples(finite, finite), min_size=1, max_size=5))
def test_labels_of_swapped_verdicts_are_opposite(logits: list[tuple[float, float]]) -> None:
    verdicts = [
        Verdict(comparison_id="c", principle_id=str(index), order=order, logit_a=logit)
        for index, pair in enumerate(logits)
        for order, logit in zip((Order.AB, Order.BA), pair, strict=True)
    ]
    weights = {str(index): 1.0 + index for index in range(len(logits))}
    straight, swapped = combine(verdicts, weights), combine([verdict.swap() for verdict in verdicts], weights)
    assert straight is not None
    assert swapped is not None
    assert abs(straight + swapped) < 1e-9
    assert abs(sigmoid(straight) + sigmoid(swapped) - 1) < 1e-9
