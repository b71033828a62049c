import numpy as np
import pytest

from ssm_metarl_gym.bundle.action_space import ActionSpace


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_half_ranges_are_of_single_precision_at_least(kind):
    space = ActionSpace({"low": [0.0], "high": [2049.0], "dtype": kind})
    assert space.half.dtype == np.result_type(kind, np.float32)
    assert space.middle[0] == space.half[0] == np.dtype(kind).type(2049.0) / np.float64(2.0)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"low": [-1], "high": [1], "dtype": "int8"}, "must be floating-point numbers; got int8. Let the environment"),
        ({"low": [-1.0], "high": [np.inf], "dtype": "float32"}, "and they and their distance finite in float32"),
        ({"low": [-3e38], "high": [3e38], "dtype": "float32"}, "Let the environment take smaller actions"),
        ({"low": [-4e4], "high": [4e4], "dtype": "float16"}, "distance finite in float16"),
        ({"n": 0}, "there must be an action to choose; got 0"),
    ],
)
def test_other_spaces_are_refused(described, message):
    with pytest.raises(ValueError, match=message):
        ActionSpace(described)
