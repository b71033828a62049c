import numpy as np
import pytest

from ssm_metarl_gym.bundle.action_space import ActionSpace


@pytest.mark.parametrize(("bound", "kind"), [(4e4, "float16"), (3e38, "float32"), (1.5, "float64")])
def test_half_ranges_are_finite_however_large_the_bounds(bound, kind):
    space = ActionSpace({"low": [-bound], "high": [bound], "dtype": kind})
    assert space.half.dtype == np.result_type(kind, np.float32)
    assert space.half[0] == np.dtype(kind).type(bound)
    assert space.middle.tolist() == [0.0]


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"low": [-1], "high": [1], "dtype": "int8"}, "must be floating-point numbers; got int8. Let the environment"),
        ({"low": [-1.0], "high": [np.inf], "dtype": "float32"}, "bounds must be finite"),
        ({"n": 0}, "there must be an action to choose; got 0"),
    ],
)
def test_other_spaces_are_refused(described, message):
    with pytest.raises(ValueError, match=message):
        ActionSpace(described)
