import numpy as np
import pytest

from ssm_metarl_gym import CartPoleTask
from ssm_metarl_gym.agents.meta_training.archive import to_plain_values


def test_plain_values():
    value = {"task": CartPoleTask(length=0.3), "number": np.float64(0.5), "array": np.arange(2), "pair": (1, None)}
    expected = {"task": CartPoleTask(length=0.3).to_dict(), "number": 0.5, "array": [0, 1], "pair": [1, None]}
    assert to_plain_values(value) == expected
    with pytest.raises(ValueError, match=r"must hold what the file of a trainer can hold: .* got <object"):
        to_plain_values({"inner": [object()]})
