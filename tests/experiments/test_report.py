import numpy as np
import pytest

from ssm_metarl_gym.experiments.report import Estimate, estimate, format_markdown
from ssm_metarl_gym.experiments.statistics import bootstrap_interval, interval_over_seeds


def test_an_estimate_is_formatted_as_a_number_is():
    assert f"{Estimate(12.345, -1.0, 13.0):.1f}" == "12.3 [-1.0, 13.0]"
    assert f"{Estimate(12.345, np.nan, 13.0):.4g}" == "12.35 [nan, 13]"


def test_an_estimate_in_a_file_has_names():
    assert Estimate(1.0, 0.5, 2.0).to_dict("mean_return") == {"mean_return": 1.0, "ci_low": 0.5, "ci_high": 2.0}
    assert Estimate(1.0, 0.5, 2.0).to_dict().keys() == {"mean", "ci_low", "ci_high"}


def test_one_seed_is_estimated_over_tasks():
    values = np.random.default_rng(0).normal(100.0, 30.0, 400)
    mean, low, high = estimate([values], seed=3)
    assert mean == pytest.approx(values.mean())
    assert (low, high) == bootstrap_interval(values, 3)
    assert low < mean < high


def test_several_seeds_are_estimated_over_seeds():
    values = [[1.0, 3.0], [4.0, 4.0], [9.0, 9.0]]
    mean, *interval = estimate(values, seed=0)
    assert mean == 5.0
    assert tuple(interval) == interval_over_seeds(values, 0)


def test_a_table_in_markdown():
    table = format_markdown(["agent", "return"], [["mlp", "1.0"], ["ssm", "2.0"]])
    assert table == "| agent | return |\n| --- | --- |\n| mlp | 1.0 |\n| ssm | 2.0 |"
