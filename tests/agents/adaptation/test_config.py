import itertools
import math
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest

from ssm_metarl_gym.agents import AdaptationConfig, AdapterStats
from ssm_metarl_gym.agents.adaptation.config import parse_stats
from ssm_metarl_gym.checks import shown

UNBOUNDED = {
    "lr": 0.1,
    "grad_clip_norm": math.inf,
    "trust_region_eps": math.inf,
    "ema_decay": 0.5,
    "entropy_weight": 0.0,
    "max_steps_per_call": 1,
}


def config(**changes):
    return AdaptationConfig(**UNBOUNDED | changes)


BROKEN = (
    [("lr", value) for value in (-0.1, math.inf, 10**400)]
    + [("grad_clip_norm", value) for value in (0.0, -1.0, 10**400)]
    + [("trust_region_eps", -1.0)]
    + [("ema_decay", value) for value in (-0.1, 1.0, math.inf)]
    + [("entropy_weight", value) for value in (math.inf, -math.inf, -(10**400))]
    + [("max_steps_per_call", value) for value in (0, -1, 1.0, math.inf)]
)


@pytest.mark.each_value
@pytest.mark.parametrize(
    ("name", "value"), [*BROKEN, *itertools.product(UNBOUNDED, [math.nan, True, "1", None, 1j, [1]])]
)
def test_a_broken_field_is_named_with_its_rule_and_value(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be an? .*; got .*\.$") as error:
        config(**{name: value})
    assert shown(value) in str(error.value)


def test_all_broken_fields_are_named_at_once():
    with pytest.raises(ValueError, match="must be") as error:
        AdaptationConfig(-1.0, 0.0, -1.0, 1.0, math.inf, 0)
    assert all(f"{name} must be" in str(error.value) for name in UNBOUNDED)


@pytest.mark.parametrize(
    "changes",
    [{"lr": 0}, {"grad_clip_norm": 1}, {"trust_region_eps": 0}, {"ema_decay": 0.0}, {"entropy_weight": -1}],
    ids=str,
)
def test_the_bounds_are_valid(changes):
    assert vars(config(**changes)) == UNBOUNDED | changes


@pytest.mark.parametrize("convert", [np.float32, np.float64, np.int64, Fraction])
def test_numbers_become_python_s_own(convert):
    """torch takes no other where it takes a flag."""
    numbers = vars(config(lr=convert(2), grad_clip_norm=convert(3), max_steps_per_call=np.int64(4)))
    assert numbers == UNBOUNDED | {"lr": 2.0, "grad_clip_norm": 3.0, "max_steps_per_call": 4}
    assert [type(number) for number in numbers.values()] == [float] * 5 + [int]


STATS = AdapterStats(calls=3, steps=2, loss_mean=-0.5, loss_variance=0.25, distance=math.inf)


@pytest.mark.parametrize("stats", [AdapterStats(), STATS])
def test_statistics_go_through_a_dictionary(stats):
    assert repr(parse_stats(asdict(stats))) == repr(stats)  # NaN is not equal to itself


@pytest.mark.parametrize(
    "damage",
    [
        {"calls": "3"},
        {"calls": True},
        {"calls": 3.0},
        {"steps": -1},
        {"loss_mean": "0.5"},
        {"loss_mean": math.inf},
        {"loss_mean": None},
        {"loss_variance": math.nan},
        {"loss_variance": -1.0},
        {"loss_variance": "x" * 5},
        {"distance": math.nan},
        {"distance": 1},
        {"invented": 1},
        {1: 1},
    ],
    ids=str,
)
def test_statistics_that_no_adapter_has_are_refused(damage):
    with pytest.raises(ValueError, match="the statistics are"):
        parse_stats(asdict(STATS) | damage)
