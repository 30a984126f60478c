"""Statistics against published examples and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlaif.errors import DataError
from rlaif.stats import (
    ClusteredShare,
    Estimate,
    bootstrap,
    bootstrap_difference,
    bootstrap_mean,
    calibration,
    cohen_kappa,
    krippendorff_alpha,
    length_controlled_win_rate,
    wilson,
)


class TestWilson:
    def test_published_example(self) -> None:
        """81 of 263 (Newcombe 1998, method 3): .2553 to .3662."""
        estimate = wilson(81, 263)
        assert estimate.low == pytest.approx(0.2553, abs=5e-5)
        assert estimate.high == pytest.approx(0.3662, abs=5e-5)

    def test_at_the_ends(self) -> None:
        """0 of n: from 0 to z² / (n + z²)."""
        z2 = 1.959964**2
        assert wilson(0, 10) == pytest.approx((0.0, 0.0, z2 / (10 + z2)), abs=1e-6)
        assert wilson(10, 10) == pytest.approx((1.0, 10 / (10 + z2), 1.0), abs=1e-6)

    def test_more_confidence_is_wider(self) -> None:
        assert wilson(5, 10, confidence=0.99).low < wilson(5, 10).low

    @pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 2), (math.nan, 2)])
    def test_nonsense_is_refused(self, successes: float, trials: int) -> None:
        with pytest.raises(DataError, match="no meaning"):
            wilson(successes, trials)


class TestClusteredShare:
    @staticmethod
    def of(*clusters: tuple[int, int]) -> ClusteredShare:
        found = ClusteredShare()
        for successes, trials in clusters:
            found.add(successes, trials)
        return found

    def test_clusters_that_agree_in_themselves_count_for_one_each(self) -> None:
        """Ten questions about each of 20 prompts, all answered alike: 20 trials, not 200, up to C / (C − 1)."""
        found = self.of(*[(10, 10)] * 5, *[(0, 10)] * 15).estimate()
        assert found == pytest.approx(wilson(19 * 0.25, 19), abs=1e-9)

    def test_trials_that_differ_within_their_clusters_as_between_are_no_fewer(self) -> None:
        found = self.of(*[(5, 10)] * 20).estimate()
        assert found == wilson(100, 200)

    def test_the_variance_is_that_of_a_ratio(self) -> None:
        """By hand: p = 5/10, residuals (1 − 1, 3 − 2, 1 − 2), v = 3/2 · 2 / 100, so 0.25 / 0.03 trials."""
        found = self.of((1, 2), (3, 4), (1, 4)).estimate()
        assert found == pytest.approx(wilson(0.25 / 0.03 / 2, 0.25 / 0.03))

    def test_where_all_agree_a_prompt_is_a_trial(self) -> None:
        assert self.of(*[(0, 50)] * 12).estimate() == wilson(0, 12)
        assert self.of(*[(50, 50)] * 12).estimate() == wilson(12, 12)

    def test_one_cluster_says_nothing_of_others_and_none_is_refused(self) -> None:
        assert self.of((3, 4)).estimate() == (0.75, 0.0, 1.0)
        with pytest.raises(DataError, match="no trials"):
            self.of((0, 0)).estimate()

    def test_it_holds_the_true_share_where_trials_taken_for_independent_do_not(self) -> None:
        """24 prompts of 12 questions, their shares Beta(1, 3) around 1/4."""
        rng, held = np.random.default_rng(0), [0, 0]
        for _ in range(500):
            counts = rng.binomial(12, rng.beta(1, 3, 24))
            clustered = self.of(*[(int(count), 12) for count in counts]).estimate()
            alone = wilson(int(counts.sum()), 24 * 12)
            held[0] += clustered.low <= 0.25 <= clustered.high
            held[1] += alone.low <= 0.25 <= alone.high
        assert held[0] / 500 > 0.92
        assert held[1] / 500 < 0.8


class TestBootstrap:
    def test_near_the_normal_interval(self) -> None:
        values = np.random.default_rng(1).normal(2.0, 1.0, 400)
        estimate = bootstrap_mean(values, range(400))
        half = 1.96 * values.std() / 20
        assert estimate.value == pytest.approx(values.mean())
        assert estimate.low == pytest.approx(values.mean() - half, abs=0.015)
        assert estimate.high == pytest.approx(values.mean() + half, abs=0.015)

    def test_copies_of_a_row_do_not_narrow_it(self) -> None:
        """Eight equal completions of a prompt know no more than one."""
        values = np.random.default_rng(1).normal(size=50)
        once = bootstrap_mean(values, range(50))
        eight = bootstrap_mean(np.repeat(values, 8), np.repeat(np.arange(50), 8).tolist())
        assert eight == pytest.approx(once)

    def test_the_seed_decides(self) -> None:
        values = np.random.default_rng(1).normal(size=30)
        assert bootstrap_mean(values, range(30), seed=3) == bootstrap_mean(values, range(30), seed=3)
        assert bootstrap_mean(values, range(30), seed=3) != bootstrap_mean(values, range(30), seed=4)

    def test_a_difference_is_paired_by_prompt(self) -> None:
        """Prompts differ by far more than the two policies; paired, that cancels."""
        hard = np.random.default_rng(1).normal(0, 10, 40)
        prompts = [f"p{i}" for i in range(40)]
        estimate = bootstrap_difference(hard + 1, prompts, hard, prompts)
        assert estimate == pytest.approx((1.0, 1.0, 1.0))
        assert estimate.excludes_zero

    def test_a_difference_of_uneven_sides(self) -> None:
        estimate = bootstrap_difference([1.0, 3.0, 5.0], ["x", "x", "y"], [1.0, 2.0], ["y", "x"])
        assert estimate.value == pytest.approx(1.5)

    def test_the_seed_and_the_confidence_reach_a_difference(self) -> None:
        ours, base = np.random.default_rng(1).normal(size=(2, 30))
        one, two = (bootstrap_difference(ours, range(30), base, range(30), seed=seed) for seed in (0, 1))
        assert one != two
        narrow = bootstrap_difference(ours, range(30), base, range(30), confidence=0.5)
        assert one.low < narrow.low < narrow.high < one.high

    def test_different_prompts_are_refused(self) -> None:
        with pytest.raises(DataError, match="2 are on one side only, the first 'x'"):
            bootstrap_difference([1.0, 2.0], ["x", "y"], [1.0, 2.0], ["y", "z"])

    def test_an_undefined_resample_is_left_out(self) -> None:
        estimate = bootstrap(lambda w: math.nan if w[0] == 0 else 1.0, ["x", "y"])
        assert estimate == (1.0, 1.0, 1.0)

    def test_a_statistic_that_is_never_defined_has_no_interval(self) -> None:
        assert all(math.isnan(x) for x in bootstrap(lambda w: math.nan, ["x", "y"], resamples=5))

    def test_one_prompt_is_refused(self) -> None:
        with pytest.raises(DataError, match="two prompts"):
            bootstrap_mean([1.0, 2.0], ["x", "x"])

    def test_columns_are_checked(self) -> None:
        with pytest.raises(DataError, match=r"\(2,\), not \(3,\)"):
            bootstrap_mean([1.0, 2.0], ["x", "y", "z"])
        with pytest.raises(DataError, match="row 1 is nan"):
            bootstrap_mean([1.0, math.nan], ["x", "y"])

    def test_an_interval_around_zero_excludes_nothing(self) -> None:
        assert not Estimate(value=0.1, low=-0.1, high=0.3).excludes_zero
        assert Estimate(value=-0.2, low=-0.3, high=-0.1).excludes_zero


class TestAgreement:
    # Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), example D: four observers, twelve
    # units.
    units = (
        (1, 1, None, 1),
        (2, 2, 3, 2),
        (3, 3, 3, 3),
        (3, 3, 3, 3),
        (2, 2, 2, 2),
        (1, 2, 3, 4),
        (4, 4, 4, 4),
        (1, 1, 2, 1),
        (2, 2, 2, 2),
        (None, 5, 5, 5),
        (None, None, 1, 1),
        (None, 3, None, None),
    )

    def test_kappa_by_hand(self) -> None:
        """Cohen's two-by-two of 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o .7, p_e .5."""
        first = ["y"] * 25 + ["n"] * 25
        second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
        assert cohen_kappa(first, second) == pytest.approx(0.4)

    def test_kappa_at_its_ends(self) -> None:
        assert cohen_kappa("abab", "abab") == 1.0
        assert cohen_kappa("ab", "ba") == -1.0
        assert math.isnan(cohen_kappa("aaa", "aaa"))

    @pytest.mark.parametrize(("first", "second"), [("", ""), ("ab", "a")])
    def test_kappa_needs_pairs(self, first: str, second: str) -> None:
        with pytest.raises(DataError, match="ratings against"):
            cohen_kappa(first, second)

    def test_alpha_of_the_published_example(self) -> None:
        assert krippendorff_alpha(self.units) == pytest.approx(0.743, abs=5e-4)
        assert krippendorff_alpha(self.units, level="interval") == pytest.approx(0.849, abs=5e-4)

    def test_alpha_against_the_loop(self) -> None:
        """Both disagreements, pair by pair."""
        rated = [[x for x in unit if x is not None] for unit in self.units]
        rated = [unit for unit in rated if len(unit) > 1]
        everything = [x for unit in rated for x in unit]
        n = len(everything)
        within = sum((x - y) ** 2 / (len(unit) - 1) for unit in rated for x in unit for y in unit) / n
        between = sum((x - y) ** 2 for x in everything for y in everything) / (n * (n - 1))
        assert krippendorff_alpha(self.units, level="interval") == pytest.approx(1 - within / between)

    def test_alpha_without_anything_to_compare(self) -> None:
        assert math.isnan(krippendorff_alpha([(1, None), (None, 2)]))
        assert math.isnan(krippendorff_alpha([(1, 1), (1, 1)]))


class TestCalibration:
    def test_by_hand(self) -> None:
        """Two bins. [.5, .75): .6 won, .3 (so .7 for b) lost by b: confidence .65, accuracy .5. [.75, 1]: .9
        and 1.0, both won."""
        result = calibration([0.6, 0.3, 0.9, 1.0], [1, 1, 1, 1], bins=2)
        assert result.ece == pytest.approx((2 * 0.15 + 2 * 0.05) / 4)
        low, high = result.bins
        assert low == pytest.approx((0.5, 0.75, 2, 0.65, 0.5))
        assert high == pytest.approx((0.75, 1.0, 2, 0.95, 1.0))

    def test_no_answer_counts_half(self) -> None:
        assert calibration([0.5, 0.5], [1, 1]).ece == 0.0

    def test_empty_bins_are_left_out(self) -> None:
        assert [b.rows for b in calibration([0.51, 0.99], [1, 1]).bins] == [1, 1]

    @pytest.mark.parametrize(
        ("p", "won"), [([], []), ([1.2], [1]), ([0.5], [-1]), ([0.5], [1, 0]), ([math.nan], [1])]
    )
    def test_nonsense_is_refused(self, p: list[float], won: list[float]) -> None:
        with pytest.raises(DataError):
            calibration(p, won)


class TestLengthControlled:
    def simulate(
        self, *, skill: float, length: float, rows: int = 4000
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Soft preferences that follow the model exactly, for a policy that writes about 30 tokens more than
        the base."""
        rng = np.random.default_rng(0)
        ours, base = rng.integers(80, 180, rows), rng.integers(50, 150, rows)
        delta = ours - base
        logit = skill + length * np.tanh(delta / delta.std(ddof=1))
        return 1 / (1 + np.exp(-logit)), ours, base

    def test_the_length_term_is_taken_out(self) -> None:
        """No skill at all: the raw win rate lies, the controlled one is a half."""
        wins, ours, base = self.simulate(skill=0.0, length=1.5)
        result = length_controlled_win_rate(wins, ours, base, range(len(wins)), resamples=20)
        assert result.raw.value > 0.6
        assert result.win_rate.value == pytest.approx(0.5, abs=1e-4)
        assert result.length_effect == pytest.approx(1.5, abs=1e-3)

    def test_skill_stays(self) -> None:
        wins, ours, base = self.simulate(skill=0.7, length=-1.0)
        result = length_controlled_win_rate(wins, ours, base, range(len(wins)), resamples=20)
        assert result.win_rate.value == pytest.approx(1 / (1 + math.exp(-0.7)), abs=1e-4)

    def test_the_fit_is_the_minimum(self) -> None:
        """The gradient of the ridge loss is 0 at the fit: Σ(p - y) + ridge·θ = 0, and the same with the
        length term."""
        rng = np.random.default_rng(2)
        wins, ours, base = (
            rng.integers(0, 2, 60).astype(float),
            rng.integers(1, 99, 60),
            rng.integers(1, 99, 60),
        )
        result = length_controlled_win_rate(wins, ours, base, range(60), resamples=5, ridge=0.5)
        theta = math.log(result.win_rate.value / (1 - result.win_rate.value))
        delta = ours - base
        z = np.tanh(delta / delta.std(ddof=1))
        error = 1 / (1 + np.exp(-(theta + result.length_effect * z))) - wins
        assert error.sum() + 0.5 * theta == pytest.approx(0, abs=1e-6)
        assert (error * z).sum() + 0.5 * result.length_effect == pytest.approx(0, abs=1e-6)

    def test_equal_lengths_leave_the_raw_rate(self) -> None:
        result = length_controlled_win_rate(
            [1, 1, 0.5, 0] * 50, [7] * 200, [5] * 200, range(200), resamples=20
        )
        assert result.win_rate.value == pytest.approx(result.raw.value, abs=1e-4)
        assert result.length_effect == 0.0

    def test_winning_all_stays_finite(self) -> None:
        result = length_controlled_win_rate([1.0] * 40, range(40), [20] * 40, range(40), resamples=20)
        assert 0.98 < result.win_rate.low <= result.win_rate.high < 1.0

    def test_a_win_rate_tied_to_length_alone_stays_finite(self) -> None:
        """Longer always wins: without the ridge the fit runs away."""
        result = length_controlled_win_rate(
            [0.0] * 20 + [1.0] * 20, range(40), [19.5] * 40, range(40), resamples=20
        )
        assert result.win_rate.value == pytest.approx(0.5, abs=1e-6)
        assert math.isfinite(result.length_effect)

    def test_nonsense_is_refused(self) -> None:
        with pytest.raises(DataError, match="between 0 and 1"):
            length_controlled_win_rate([2.0, 0.0], [1, 2], [1, 2], ["x", "y"])
        with pytest.raises(DataError, match="shape"):
            length_controlled_win_rate([1.0, 0.0], [1], [1, 2], ["x", "y"])
