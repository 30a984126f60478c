"""Training under directives: which prompts are drawn, what is rewarded, and what is refused."""

from __future__ import annotations

import pytest

import rlaif
from rlaif.config import parse_recipe
from rlaif.config.directives import DirectiveSettings
from rlaif.config.rewards import DirectivesPart
from rlaif.directives.load import parse_directives
from rlaif.directives.training import DirectiveReward, Steered, steer
from rlaif.engines.base import LabelRequest
from rlaif.engines.scripted import ScriptedEngine
from rlaif.errors import ConfigError, DataError
from rlaif.prompts import PromptLibrary
from rlaif.types import Completion, Message, Prompt

RULES = parse_directives(
    """
directives:
  - {id: short, when: {always: true}, prior: Be short., question: Is the response short?}
  - {id: kind, when: {regex: never}, prior: Be kind., question: Is it kind?, until: 2000-01-01}
  - {id: mute, when: {always: true}, prior: Say nothing that a judge could read.}
  - {id: fixed, when: {always: true}, answer: No.}
""",
    source="d.yaml",
)
PROMPTS = tuple(Prompt(f"p{at}", (Message("user", f"question {at}"),)) for at in range(200))


def steered(share: float = 0.3, *, seed: int = 0, prompts: tuple[Prompt, ...] = PROMPTS) -> Steered:
    return steer(prompts, RULES, share=share, seed=seed, asked=True, where="d.yaml")


def answered(prompts: tuple[Prompt, ...], text: str = "x") -> list[Completion]:
    return [Completion(f"{each.id}/0", each.id, 0, text, "stop", "m") for each in prompts]


def test_a_share_of_the_prompts_is_under_one_prior_each() -> None:
    found = steered()
    assert 40 <= len(found.under) <= 80
    assert [each.id for each in found.prompts] == [each.id for each in PROMPTS]
    for old, new in zip(PROMPTS, found.prompts, strict=True):
        if new.fingerprint() in found.under:
            rule, original = found.under[new.fingerprint()]
            assert original == old
            assert new.messages == (Message("system", rule.prior), *old.messages)
        else:
            assert new == old
    assert {rule.id for rule, _ in found.under.values()} == {"short", "kind"}
    assert len(steered(1.0).under) == len(PROMPTS)


def test_the_draw_is_of_the_seed_and_the_prompt_alone() -> None:
    whole, part = steered(), steered(prompts=PROMPTS[100:][::-1])
    assert set(part.under) <= set(whole.under)
    assert all(whole.under[key] == value for key, value in part.under.items())
    assert set(steered(seed=1).under) != set(whole.under)
    assert set(whole.under) <= set(steered(0.6).under)
    assert steered(0.6).digest != whole.digest


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(DataError, match=r"a share of 0\.01 of 1 prompts has drawn none"):
        steered(0.01, prompts=PROMPTS[:1])
    fixed = parse_directives("directives: [{id: a, when: {always: true}, answer: x}]", source="d.yaml")
    with pytest.raises(ConfigError, match="no directive with `prior` and `question`"):
        steer(PROMPTS, fixed, share=1, seed=0, asked=True, where="d.yaml")
    found = steer(PROMPTS, RULES, share=1, seed=0, asked=False, where="d.yaml")
    assert {rule.id for rule, _ in found.under.values()} == {"short", "kind", "mute"}


def test_the_reward_is_the_log_odds_of_compliance() -> None:
    asked: list[str] = []

    def labels(request: LabelRequest) -> tuple[float, float]:
        asked.append("\n".join(message.content for message in request.messages))
        return (-0.5, -1.5) if "short?" in asked[-1] else (-2.0, -1.0)

    found = steered(0.5, prompts=PROMPTS[:20])
    engine = ScriptedEngine(labels=labels)
    reward = DirectiveReward(engine, PromptLibrary(), found.under)
    scores = reward(found.prompts, answered(found.prompts))
    wanted = {"short": 1.0, "kind": -1.0}
    for prompt, score in zip(found.prompts, scores.total, strict=True):
        rule = found.under.get(prompt.fingerprint())
        assert score == (0.0 if rule is None else wanted[rule[0].id])
    assert len(asked) == len(found.under)
    assert not any("Be short." in text or "Be kind." in text for text in asked), "the judge reads no prior"
    share = DirectiveReward(engine, PromptLibrary(), found.under, scale="probability")
    assert max(share(found.prompts, answered(found.prompts)).total) == pytest.approx(0.2311, abs=1e-4)


def test_a_judge_without_a_valid_answer_is_an_error() -> None:
    found = steered(1.0, prompts=PROMPTS[:1])
    reward = DirectiveReward(
        ScriptedEngine(labels=lambda request: (-20.0, -20.0)), PromptLibrary(), found.under
    )
    with pytest.raises(DataError, match="no valid answer to the question of directive"):
        reward(found.prompts, answered(found.prompts))


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ("stage: ppo, reward: {d: {kind: directives}}", "and there are none"),
        (
            "stage: grpo, directives: {path: d.yaml}, reward: {l: {kind: length, max_words: 3}}",
            "nothing rewards",
        ),
        ("stage: ppo, directives: {path: d.yaml, share: 0}, reward: {d: {kind: directives}}", "share"),
        ("stage: best_of_k, reward: {d: {kind: directives}}", "which `ppo` and `grpo` train under"),
        (
            "stage: ppo, directives: {path: d.yaml}, reward: {d: {kind: directives}}, "
            "monitor: {gold: {kind: directives}}",
            "held-out prompts are under no directive",
        ),
    ],
)
def test_settings_that_do_not_go_together(stage: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(f"stages: [{{{stage}}}]", source="r.yaml")
    assert says in str(caught.value)


def test_python_is_told_how_to_train_under_directives() -> None:
    settings = rlaif.PpoConfig(directives=DirectiveSettings(path="d.yaml"), reward={"d": DirectivesPart()})
    with pytest.raises(ConfigError, match=r"rlaif\.directives\.training\.steer"):
        rlaif.train_ppo(["x"], base="nothing", reward=lambda prompt, completion: 0.0, config=settings)
