"""Evaluating policies of a tiny base: every figure against a slow or hand-made one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import pytest
import torch
from toy_policy import prompts, toy_base, toy_tokenizer

from rlaif.config.evaluation import EvaluateConfig
from rlaif.engines.scripted import ScriptedEngine
from rlaif.errors import ConfigError, DataError
from rlaif.judging.judge import Judge, Judged
from rlaif.judging.protocols import Pairwise
from rlaif.models.cost import forward_flops, peak_memory
from rlaif.models.shared_base import REFERENCE, LoraSettings, SharedBase
from rlaif.prompts import PromptLibrary
from rlaif.results.evaluation import Evaluation, PolicyResult
from rlaif.reward.functions import ScoredReward
from rlaif.rl.rollout import Sampler
from rlaif.stages.compare import compare
from rlaif.stages.evaluate import Metrics, PolicySource, configured_metrics, evaluate, kl_to_reference
from rlaif.stats import bootstrap_mean
from rlaif.types import Comparison, Completion, Constitution, Order, Principle, Prompt, Verdict

torch.set_num_threads(1)

CONFIG = EvaluateConfig(samples=3, max_new_tokens=16, temperature=0.9, rows=8)


def vowels(prompt: Prompt, completion: Completion) -> float:
    return sum(letter in "aeio" for letter in completion.text) / max(len(completion.text), 1)


METRICS = Metrics({"vowels": vowels}, gold="vowels")


@pytest.fixture(scope="module")
def base() -> SharedBase:
    """A base whose adapter `ppo` does something."""
    found = toy_base()
    found.add_adapter("ppo", LoraSettings(rank=4, alpha=8), seed=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in found.trainable("ppo"):
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return found


def more_vowels(comparisons: Sequence[Comparison]) -> Iterator[Judged]:
    """A judge that prefers vowels, and refuses texts that begin with an h."""
    for each in comparisons:
        gap = 10 * (vowels(each.prompt, each.a) - vowels(each.prompt, each.b))
        logit, reason = (None, "begins_with_h") if each.a.text.startswith("h") else (gap, "")
        verdicts = [
            Verdict(
                each.id,
                principle_id="v",
                order=order,
                logit_a=None if logit is None else logit + sign,
                reason=reason,
            )
            for order, sign in ((Order.AB, 1.0), (Order.BA, -1.0))
        ]
        yield Judged(comparison=each, verdicts=tuple(verdicts), logit_a=logit)


def length_reward(asked: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
    return [float(len(completion.text)) for completion in completions]


@pytest.fixture(scope="module")
def found(base: SharedBase) -> Evaluation:
    policies = {"ppo": PolicySource(base, "ppo"), "start": PolicySource(base)}
    return evaluate(
        prompts(6),
        policies,
        start="start",
        config=CONFIG,
        seed=7,
        metrics=METRICS,
        reward=ScoredReward("length", length_reward),
        judge=more_vowels,
        resamples=200,
    )


def sampled(base: SharedBase, role: str):
    sampler = Sampler(base, max_new_tokens=16, temperature=0.9)
    with base.role(role):
        return sampler.sample(
            [sampler.question(prompt, prompt.messages) for prompt in prompts(6)], samples=3, seed=7
        )


def test_completions_are_those_of_the_sampler_with_one_seed_for_all(
    base: SharedBase, found: Evaluation
) -> None:
    assert [each.name for each in found.policies] == ["start", "ppo"]
    for result, role in zip(found.policies, (REFERENCE, "ppo"), strict=True):
        wanted = [row.completion for row in sampled(base, role).rows]
        assert list(result.rows.texts) == [completion.text for completion in wanted]
        assert result.rows.prompts == tuple(completion.prompt_id for completion in wanted)
        assert result.cost.tokens == sum(completion.tokens or 0 for completion in wanted)
        assert 0 < sum(result.rows.measures["ended"]) < 18, "the seed should give both kinds"
    assert base.active == REFERENCE


def test_measures_and_intervals(found: Evaluation) -> None:
    for result in found.policies:
        rows = result.rows
        shares = [sum(letter in "aeio" for letter in text) / max(len(text), 1) for text in rows.texts]
        assert rows.measures["vowels"] == pytest.approx(shares)
        assert result.estimates["vowels"] == bootstrap_mean(shares, rows.prompts, resamples=200, seed=7)
        assert rows.measures["reward"] == tuple(float(len(text)) for text in rows.texts)
        assert rows.measures["words"] == tuple(float(bool(text)) for text in rows.texts)
        assert sum(rows.measures["tokens"]) == result.cost.tokens
        first = rows.texts[:3]
        assert rows.measures["distinct_1"][:3] == pytest.approx(
            [len(set(filter(None, first))) / len(list(filter(None, first)))] * 3
        )
        assert set(rows.measures["refusal"]) == {0.0}


def test_kl_is_that_of_a_slow_loop(base: SharedBase, found: Evaluation) -> None:
    def log_p(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return (
                (base.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0] / 0.9)
                .double()
                .log_softmax(-1)
            )

    episodes, wanted = sampled(base, "ppo"), []
    for at, row in enumerate(episodes.rows):
        prompt, tokens = list(row.prompt_ids), episodes.tokens[at][episodes.is_real[at]].tolist()
        span = slice(len(prompt) - 1, len(prompt) + len(tokens) - 1)
        with base.role("ppo"):
            ours = log_p(prompt + tokens)[span]
        theirs = log_p(prompt + tokens)[span]
        wanted.append(float((ours.exp() * (ours - theirs)).sum()))
    assert found.policy("ppo").rows.measures["kl"] == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    assert found.policy("ppo").estimates["kl"].value == pytest.approx(sum(wanted) / len(wanted), rel=1e-3)
    assert found.policy("ppo").estimates["kl"].value > 0.01
    assert set(found.policy("start").rows.measures["kl"]) == {0.0}


def test_kl_of_equal_policies_is_nothing(base: SharedBase) -> None:
    other = toy_base()  # the same weights in another place, so nothing is skipped
    kl = kl_to_reference(PolicySource(base), PolicySource(other), sampled(base, REFERENCE), temperature=0.9)
    assert kl == pytest.approx([0.0] * 18, abs=1e-5)


def test_wins_ties_and_invalid_verdicts_add_up(found: Evaluation) -> None:
    start, ppo = found.policies
    win = ppo.win
    assert win is not None
    wanted: list[float | None] = []
    for ours, base_text in zip(ppo.rows.texts, start.rows.texts, strict=True):
        gap = sum(x in "aeio" for x in ours) / max(len(ours), 1) - sum(x in "aeio" for x in base_text) / max(
            len(base_text), 1
        )
        invalid = ours.startswith("h") and ours != base_text
        wanted.append(None if invalid else 0.5 if gap == 0 else float(gap > 0))
    assert ppo.rows.measures["win"] == tuple(wanted)
    assert (win.wins, win.losses, win.ties, win.invalid) == tuple(
        wanted.count(x) for x in (1.0, 0.0, 0.5, None)
    )
    assert min(win.wins, win.losses, win.ties, win.invalid) > 0, "the seed should give all kinds"
    assert win.compared == 18
    valid = [x for x in wanted if x is not None]
    assert win.rate is not None
    assert win.rate.value == pytest.approx(sum(valid) / len(valid))
    assert win.length_controlled is not None
    assert 0 < win.length_controlled.value < 1
    assert win.invalid_reasons == {"begins_with_h": 2 * win.invalid}
    assert start.win is None
    assert set(start.rows.measures["win"]) == {0.5}
    assert any("no valid verdict (begins_with_h" in note for note in found.notes) == (win.invalid > 0.05 * 18)


def test_the_outcome_can_be_compared(found: Evaluation) -> None:
    result = compare([found], resamples=200)
    assert {each.measure for each in result.differences} == {"vowels", "win", "reward"}
    assert result.headline == "vowels"


def test_a_biased_judge_that_is_asked_in_both_orders_says_nothing(base: SharedBase) -> None:
    """One that always says A: every pair flips, and every one is a tie."""
    constitution = Constitution(name="c", principles=(Principle(id="p", comparison="Which is better?"),))
    engine = ScriptedEngine(labels=lambda request: [math.log(0.9), math.log(0.1)], revision="always A")
    judge = Judge(engine, Pairwise(PromptLibrary(), constitution), constitution, principles="all", seed=0)
    config = CONFIG.model_copy(update={"judged": 2})
    policies = {"start": PolicySource(base), "ppo": PolicySource(base, "ppo")}
    found = evaluate(
        prompts(4),
        policies,
        start="start",
        config=config,
        seed=5,
        metrics=METRICS,
        judge=judge.judge,
        resamples=100,
    )
    win = found.policy("ppo").win
    assert win is not None
    assert (win.compared, win.ties, win.invalid) == (8, 8, 0)
    assert win.flip_rate == 1
    assert engine.read == 2 * (8 - win.identical), "both orders, and identical texts are not asked about"
    assert found.policy("ppo").rows.measures["win"][2::3] == (None,) * 4, "the third sample was not judged"


def test_the_start_policy_alone_needs_no_judge(base: SharedBase) -> None:
    def nobody(comparisons: Sequence[Comparison]) -> Iterable[Judged]:
        assert not comparisons
        return ()

    found = evaluate(
        prompts(2),
        {"start": PolicySource(base)},
        start="start",
        config=CONFIG,
        seed=0,
        judge=nobody,
        resamples=100,
    )
    assert found.gold is None
    assert found.policies[0].win is None


# Costs


def test_flops_by_hand(base: SharedBase, found: Evaluation) -> None:
    # Per layer: q and o 32 × 32, k and v 32 × 16, gate, up and down 32 × 64, two norms of 32; then the last
    # norm and the head 32 × 20.
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
    body, head = 2 * layer + 32, 32 * 20
    assert forward_flops(base, REFERENCE, tokens=10, logits=3) == 2 * (10 * body + 3 * head)
    adapter = 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))  # rank 4, two layers
    assert forward_flops(base, "ppo", tokens=10, logits=3) == 2 * (10 * (body + adapter) + 3 * head)
    read = sum(len(row.prompt_ids) for row in sampled(base, REFERENCE).rows) // 3
    start = found.policy("start").cost
    assert start.prompt_tokens == read
    assert start.flops == 2 * ((read + start.tokens) * body + start.tokens * head)


def test_time_and_memory_are_told(found: Evaluation) -> None:
    for result in found.policies:
        assert result.cost.seconds > 0
        assert 1e7 < result.cost.peak_bytes <= peak_memory(torch.device("cpu"))


# Refusals


def run(
    base: SharedBase,
    *,
    metrics: Metrics = METRICS,
    asked: Sequence[Prompt] | None = None,
    start: str = "start",
) -> PolicyResult:
    policies = {"start": PolicySource(base)}
    return evaluate(
        prompts(2) if asked is None else asked,
        policies,
        start=start,
        config=CONFIG,
        seed=0,
        metrics=metrics,
        resamples=100,
    ).policies[0]


def test_a_metric_without_a_number_names_the_prompt(base: SharedBase) -> None:
    late = Metrics({"late": lambda prompt, completion: math.nan if completion.text else 0.0})
    with pytest.raises(DataError, match=r"prompt p0, completion p0/\d: the metric late gave nan"):
        run(base, metrics=late)


def test_a_metric_that_cannot_work_fails_before_anything_is_sampled(
    base: SharedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sampler, "sample", lambda *_, **__: pytest.fail("sampled"))
    with pytest.raises(DataError, match="completion p0/empty: the metric mean failed: ZeroDivisionError"):
        run(base, metrics=Metrics({"mean": lambda prompt, completion: 1 / len(completion.text)}))


def test_inputs_that_cannot_be_right_are_refused(base: SharedBase) -> None:
    with pytest.raises(DataError, match="1 prompts cannot say how sure"):
        run(base, asked=prompts(1))
    with pytest.raises(DataError, match="prompt p0: two prompts have the same id"):
        run(base, asked=[*prompts(2), prompts(1)[0]])
    with pytest.raises(DataError, match="prompt q: two prompts have the same text"):
        run(base, asked=[Prompt(id="q", messages=prompts(1)[0].messages), *prompts(2)])
    with pytest.raises(ConfigError, match="'base' is not among start"):
        run(base, start="base")
    with pytest.raises(ConfigError, match="kl is a measure of every evaluation"):
        run(base, metrics=Metrics({"kl": vowels}))
    with pytest.raises(ConfigError, match="gold metric 'x' is not given"):
        run(base, metrics=Metrics({"vowels": vowels}, gold="x"))


def test_the_kl_is_left_out_between_tokenizers(base: SharedBase) -> None:
    tokenizer = toy_tokenizer()
    tokenizer.add_tokens(["z"])
    other = SharedBase.from_model(toy_base().model, tokenizer)
    policies = {"start": PolicySource(base), "other": PolicySource(other)}
    found = evaluate(
        prompts(2), policies, start="start", config=CONFIG, seed=0, metrics=METRICS, resamples=100
    )
    assert "kl" not in found.policy("other").rows.measures
    assert found.notes == (
        "other has another tokenizer than the reference, so its KL has no meaning and is left out",
    )


def test_metrics_from_settings() -> None:
    config = EvaluateConfig(gold="rlaif.metrics:vader_compound", metrics=("rlaif.metrics:length_words",))
    found = configured_metrics(config)
    assert found.gold == "vader_compound"
    assert list(found.functions) == ["vader_compound", "length_words"]
    assert configured_metrics(EvaluateConfig()).gold is None
