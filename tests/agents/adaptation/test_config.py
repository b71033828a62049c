import itertools
import math

import pytest

from ssm_metarl_gym.agents import AdaptationConfig

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
    [("lr", value) for value in (-0.1, math.inf)]
    + [("grad_clip_norm", value) for value in (0.0, -1.0)]
    + [("trust_region_eps", -1.0)]
    + [("ema_decay", value) for value in (-0.1, 1.0, math.inf)]
    + [("entropy_weight", value) for value in (math.inf, -math.inf)]
    + [("max_steps_per_call", value) for value in (0, -1, 1.0, math.inf)]
)


@pytest.mark.parametrize(
    ("name", "value"), [*BROKEN, *itertools.product(UNBOUNDED, [math.nan, True, "1", None, 1j, [1]])]
)
def test_a_broken_field_is_named_with_its_rule_and_value(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be an? .*; got .*\.$") as error:
        config(**{name: value})
    assert repr(value) in str(error.value)


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
