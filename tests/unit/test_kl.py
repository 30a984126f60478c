"""KL controllers and the KL of best of n."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from rlaif.errors import ConfigError, ModelError, RunError
from rlaif.rl.kl import (
    AdaptiveKL,
    FixedKL,
    KLController,
    LagrangianKL,
    best_of_n_kl_bound,
    best_of_n_kl_estimate,
)


def controllers() -> list[KLController]:
    return [FixedKL(), AdaptiveKL(target=6, episodes=32), LagrangianKL(target=6)]


def test_no_torch_is_imported() -> None:
    code = "import sys, rlaif.rl.kl; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_fixed_stays() -> None:
    controller = FixedKL()
    assert [controller.update(kl) for kl in (0.0, 5.0, 100.0)] == [0.05] * 3


def test_fixed_may_be_0() -> None:
    assert FixedKL(beta=0).update(3) == 0


def test_adaptive_by_hand() -> None:
    """Ziegler: target 6, horizon 10 000, 512 episodes per update; 6.6 is 10 % over the target."""
    controller = AdaptiveKL(target=6, episodes=512, horizon=10_000, beta=0.15)
    assert controller.update(6.6) == pytest.approx(0.15 * (1 + 0.1 * 512 / 10_000))


@pytest.mark.parametrize(("kl", "error"), [(6.0, 0.0), (60.0, 0.2), (0.0, -0.2), (-1.0, -0.2)])
def test_adaptive_clips_the_error(kl: float, error: float) -> None:
    controller = AdaptiveKL(target=6, episodes=100, horizon=1000, beta=1.0)
    assert controller.update(kl) == pytest.approx(1 + error * 0.1)


def test_lagrangian_by_hand() -> None:
    controller = LagrangianKL(target=4, rate=0.1, beta=0.05)
    assert controller.update(6) == pytest.approx(0.05 * math.exp(0.1 * 0.5))
    assert controller.update(4) == pytest.approx(0.05 * math.exp(0.1 * 0.5))
    assert controller.update(400) == pytest.approx(0.05 * math.exp(0.1 * 1.5))  # the step is bounded


def test_lagrangian_stays_within_its_bounds() -> None:
    controller = LagrangianKL(target=4, rate=1.0, min_beta=0.01, max_beta=0.2)
    assert [controller.update(100) for _ in range(5)][-1] == 0.2
    assert [controller.update(0) for _ in range(9)][-1] == 0.01


@pytest.mark.parametrize(
    "controller",
    [AdaptiveKL(target=4, episodes=256, horizon=1000), LagrangianKL(target=4)],
    ids=lambda c: type(c).__name__,
)
def test_the_loop_settles_at_the_target(controller: KLController) -> None:
    """A policy whose KL is .4 / β, as it would be at the optimum of a quadratic reward: the target asks for β
    = .1."""
    for _ in range(400):
        controller.update(0.4 / controller.beta)
    assert controller.beta == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("index", range(3))
def test_a_loaded_controller_goes_on_as_if_never_stopped(index: int) -> None:
    whole, stopped, resumed = controllers()[index], controllers()[index], controllers()[index]
    kls = [3.0, 9.0, 5.5, 20.0, 0.1]
    expected = [whole.update(kl) for kl in kls]
    before = [stopped.update(kl) for kl in kls[:2]]
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert before + [resumed.update(kl) for kl in kls[2:]] == expected
    assert resumed.state == whole.state
    assert whole.state.updates == 5


def test_a_state_is_not_changed_by_updates() -> None:
    controller = LagrangianKL(target=4)
    before = controller.state
    controller.update(8)
    assert before.beta == 0.05
    assert controller.state != before


def test_the_state_of_another_controller_is_refused() -> None:
    with pytest.raises(RunError, match="FixedKL"):
        LagrangianKL(target=4).load_state_dict(FixedKL().state_dict())


@pytest.mark.parametrize("kl", [math.nan, math.inf])
@pytest.mark.parametrize("index", range(3))
def test_a_kl_that_is_no_number_is_refused_and_changes_nothing(index: int, kl: float) -> None:
    controller = controllers()[index]
    before = controller.state
    with pytest.raises(ModelError, match="run away"):
        controller.update(kl)
    assert controller.state == before


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="beta is -1"):
        FixedKL(beta=-1)
    with pytest.raises(ConfigError, match="target is 0"):
        LagrangianKL(target=0)
    with pytest.raises(ConfigError, match="horizon is nan"):
        AdaptiveKL(target=1, episodes=1, horizon=math.nan)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="not between"):
        LagrangianKL(target=1, beta=20)
    with pytest.raises(ConfigError, match=r"horizon above 102\.4"):
        AdaptiveKL(target=1, episodes=512, horizon=100)


@pytest.mark.parametrize(
    ("n", "bound"), [(1, 0.0), (4, 0.636), (8, 1.204), (16, 1.835), (64, 3.175), (1024, 5.932)]
)
def test_best_of_n_bound(n: int, bound: float) -> None:
    assert best_of_n_kl_bound(n) == pytest.approx(bound, abs=5e-4)


def test_best_of_0_is_refused() -> None:
    with pytest.raises(ConfigError, match="n is 0"):
        best_of_n_kl_bound(0)


def exact_best_of_n(n: int, size: int) -> tuple[float, float]:
    """KL of best of n over `size` equally likely outcomes, no two of one reward, and the mean of the
    estimate."""
    chances = [(i / size) ** n - ((i - 1) / size) ** n for i in range(1, size + 1)]
    kl = sum(p * math.log(p * size) for p in chances if p > 0)
    return kl, best_of_n_kl_estimate(n, -math.log(size))


@pytest.mark.parametrize("size", [2, 3, 10, 100, 10_000])
@pytest.mark.parametrize("n", [2, 4, 16, 64])
def test_the_estimate_is_nearer_to_the_exact_kl_than_the_bound(n: int, size: int) -> None:
    exact, estimate = exact_best_of_n(n, size)
    bound = best_of_n_kl_bound(n)
    assert exact <= bound + 1e-12
    assert abs(estimate - exact) <= abs(bound - exact) + 1e-12
    assert estimate == pytest.approx(exact, abs=0.12)


def test_the_estimate_by_hand() -> None:
    """n = 2, ε = ½: ¼ (log 2 + log ½ - ½) + ¾ log(¾ / ½)."""
    assert best_of_n_kl_estimate(2, math.log(0.5)) == pytest.approx(-0.125 + 0.75 * math.log(1.5))


@pytest.mark.parametrize("logprob", [-30.0, -40.0, -800.0])
def test_the_estimate_of_an_unlikely_completion_is_the_bound(logprob: float) -> None:
    assert best_of_n_kl_estimate(16, logprob) == pytest.approx(best_of_n_kl_bound(16), abs=1e-9)


def test_the_estimate_of_a_certain_completion_is_0() -> None:
    assert best_of_n_kl_estimate(16, 0.0) == 0.0
    assert best_of_n_kl_estimate(16, -1e-9) == pytest.approx(0.0, abs=1e-8)
