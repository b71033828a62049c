import math

import numpy as np
import pytest

from ssm_metarl_gym.experiments import statistics
from ssm_metarl_gym.experiments.statistics import bootstrap_interval, interval_over_seeds


class TestIntervalOverSeeds:
    def test_three_seeds(self):
        low, high = interval_over_seeds([[1.0, 3.0], [3.0, 3.0], [4.0, 4.0]], 0)
        half_width = 4.303 * 1.0 / math.sqrt(3)
        assert (low, high) == (pytest.approx(3 - half_width), pytest.approx(3 + half_width))

    def test_the_quantiles_are_those_of_student(self):
        stats = pytest.importorskip("scipy.stats")
        expected = stats.t.ppf(0.975, np.arange(1, len(statistics._STUDENT_T) + 1))
        assert pytest.approx(expected, abs=5e-4) == statistics._STUDENT_T

    def test_one_seed_is_as_sure_as_its_tasks_let_it_be(self):
        values = [1.0, 2.0, 4.0, 8.0]
        assert interval_over_seeds([values], 3) == bootstrap_interval(values, 3)
        low, high = interval_over_seeds([[0.0, 2.0] * 50], 0)  # 1 +- 1.96 * 0.1
        assert (low, high) == pytest.approx((0.8, 1.2), abs=0.05)
