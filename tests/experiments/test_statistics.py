import math

import numpy as np
import pytest

from ssm_metarl_gym.experiments.statistics import (
    bootstrap_interval,
    hierarchical_interval,
    interquartile_mean,
    interval_over_seeds,
)


class TestBootstrapInterval:
    def test_two_values_whose_resamples_are_known(self):
        # A quarter of the resampled means is 0, a half 1 and a quarter 2.
        assert bootstrap_interval([0.0, 2.0], seed=0) == (0.0, 2.0)

    def test_fifty_coins(self):
        # The 2.5 % and 97.5 % quantiles of how often 50 tosses of a fair coin show heads are 18 and 32.
        low, high = bootstrap_interval([0.0, 1.0] * 25, seed=0, num_resamples=20_000)
        assert (low, high) == (pytest.approx(18 / 50), pytest.approx(32 / 50))

    def test_one_seed_gives_one_interval(self):
        values = np.random.default_rng(1).normal(size=30)
        assert bootstrap_interval(values, 3) == bootstrap_interval(values, 3) != bootstrap_interval(values, 4)

    @pytest.mark.parametrize(("values", "end"), [([3.0], 3.0), ([2.0, 2.0], 2.0), ([1e300, 1e300], 1e300)])
    def test_without_a_spread_it_is_the_mean(self, values, end):
        assert bootstrap_interval(values, 0) == pytest.approx((end, end))

    def test_of_another_statistic(self):
        low, high = bootstrap_interval([1.0] * 20 + [1000.0], 0, statistic=interquartile_mean)
        assert (low, high) == (1.0, 1.0)

    @pytest.mark.parametrize("values", [[1.0, math.nan], [1.0, math.inf], [math.nan]])
    def test_what_is_not_finite_has_none(self, values):
        assert np.isnan(bootstrap_interval(values, 0)).all()


class TestIntervalOverSeeds:
    def test_two_seeds(self):
        # Of one degree of freedom, Student's t is Cauchy's distribution: its quantile is tan(0.475 pi).
        low, high = interval_over_seeds([[1.0, 1.0], [2.0, 4.0]], 0)
        half_width = math.tan(0.475 * math.pi) * 1.0
        assert (low, high) == (pytest.approx(2 - half_width), pytest.approx(2 + half_width))

    def test_three_seeds(self):
        # Of two, the quantile of probability p is (2p - 1) / sqrt(2 p (1 - p)).
        low, high = interval_over_seeds([[1.0, 3.0], [3.0, 3.0], [4.0, 4.0]], 0)
        half_width = 0.95 / math.sqrt(2 * 0.975 * 0.025) * 1.0 / math.sqrt(3)
        assert (low, high) == (pytest.approx(3 - half_width), pytest.approx(3 + half_width))

    def test_one_seed_is_as_sure_as_its_tasks_let_it_be(self):
        values = [1.0, 2.0, 4.0, 8.0]
        assert interval_over_seeds([values], 3) == bootstrap_interval(values, 3)
        low, high = interval_over_seeds([[0.0, 2.0] * 50], 0)  # 1 +- 1.96 * 0.1
        assert (low, high) == pytest.approx((0.8, 1.2), abs=0.05)


def test_an_interquartile_mean_is_that_of_the_middle_half():
    assert interquartile_mean([-1e9, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1e9]) == 3.5
    assert interquartile_mean(np.array([[0.0, 4.0, 6.0, 100.0], [1.0, 1.0, 1.0, 1.0]]), axis=1).tolist() == [5.0, 1.0]


class TestHierarchicalInterval:
    def test_it_holds_what_is_drawn_of_seeds_and_of_tasks(self):
        rng = np.random.default_rng(0)
        seeds = rng.normal(size=(8, 1))
        low, high = hierarchical_interval(seeds + 0.1 * rng.normal(size=(8, 40)), 0, statistic=mean_of_all)
        # The standard error of a mean of eight seeds, that of the tasks is small beside it.
        assert high - low == pytest.approx(2 * 1.96 * seeds.std() / np.sqrt(8), rel=0.15)
        assert low < seeds.mean() < high

    def test_of_one_seed_it_is_that_of_its_tasks(self):
        tasks = np.random.default_rng(0).normal(size=(1, 100))
        low, high = hierarchical_interval(tasks, 0, statistic=mean_of_all)
        assert high - low == pytest.approx(2 * 1.96 * tasks.std() / 10, rel=0.15)

    def test_what_all_seeds_have_is_not_drawn(self):
        tasks = np.tile(np.linspace(0.0, 1.0, 20), (5, 1))
        assert hierarchical_interval(tasks, 0, statistic=mean_of_all, draws_tasks=False) == pytest.approx((0.5, 0.5))
        low, high = hierarchical_interval(tasks, 0, statistic=mean_of_all)
        assert high - low > 0.1

    def test_agents_are_drawn_together(self):
        seeds = np.random.default_rng(0).normal(size=(5, 30))

        def difference(values):
            return mean_of_all(values[1] - values[0])

        assert hierarchical_interval([seeds, seeds + 3.0], 0, statistic=difference) == pytest.approx((3.0, 3.0))

    def test_of_five_seeds_it_is_too_narrow(self):
        rng, num_hits = np.random.default_rng(0), 0
        for i in range(200):
            low, high = hierarchical_interval(rng.normal(size=(5, 1)), i, statistic=mean_of_all, draws_tasks=False)
            num_hits += low < 0.0 < high
        assert 0.78 < num_hits / 200 < 0.9

    def test_a_seed_determines_it(self):
        values = np.random.default_rng(0).normal(size=(3, 5))
        one, same, other = (hierarchical_interval(values, seed, statistic=mean_of_all) for seed in (0, 0, 1))
        assert one == same != other


def mean_of_all(values):
    return values.mean(axis=(-2, -1))
