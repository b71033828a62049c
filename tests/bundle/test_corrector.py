"""What the corrector of a robot does where a model has come to what is no number."""

import numpy as np
import pytest

from ssm_metarl_gym.bundle.action_space import ActionSpace
from ssm_metarl_gym.bundle.adapters import GradientSteps
from ssm_metarl_gym.bundle.corrector import make_corrector
from ssm_metarl_gym.bundle.model import Model

STEPS = {"lr": 0.1, "grad_clip_norm": 1.0, "trust_region_eps": 1.0, "max_steps_per_call": 1, "budget_ms": None}
OPTIONS = {
    "gate": 0.0,
    "effect_gate": np.inf,
    "prior_steps": 0.0,
    "map_gate": 0.0,
    "decay": 0.5,
    "exploration": 0.0,
}
CHOICES = {"n": 2, "start": 1}
LINE = {"low": [-1.0, -1.0], "high": [1.0, 1.0], "dtype": "float32"}


def correct(space, asked, weight, **options):
    """The action in the place of the asked one where a model ``f(o, u) = u`` has come to ``f(o, u) = weight u``."""
    space = ActionSpace(space)
    head = np.concatenate([np.zeros((2, 2)), np.eye(2)], axis=1).astype(np.float32)
    weights = {"head.weight": head, "head.bias": np.zeros(2, np.float32)}
    weights |= {"input_shift": np.zeros(4, np.float32), "input_scale": np.ones(4, np.float32)}
    weights |= {"target_scale": np.ones(2, np.float32), "residual_variance": np.ones(2, np.float32)}
    described = {"adapts": "last_layer", "core": {"layers": []}}
    adapter = GradientSteps(Model(described, weights, observation_dim=2, space=space), STEPS)
    adapter.weights["head.weight"][:, 2:] = weight
    reference = Model(described, weights, observation_dim=2, space=space)
    corrector = make_corrector(adapter, reference, OPTIONS | options)
    with np.errstate(all="ignore"):
        return corrector.correct(np.zeros(2, np.float32), np.array(asked, space.dtype)).tolist()


@pytest.mark.parametrize("match", ["change", "effect"])
@pytest.mark.parametrize("asked", [1, 2])
def test_where_some_predictions_are_no_numbers_the_asked_choice_is_taken(match, asked):
    options = {"match": match, "regularisation": 0.0}
    assert correct(CHOICES, asked, [[0.0, 1.0], [1.0, 0.0]], **options) == 3 - asked
    for unknown in ([[np.nan, 1.0], [1.0, 0.0]], [[0.0, np.nan], [1.0, 0.0]], np.nan):
        assert correct(CHOICES, asked, unknown, **options) == asked


@pytest.mark.parametrize("match", ["change", "effect"])
@pytest.mark.parametrize("regularisation", [0.0, 1e-9])
def test_where_no_prediction_is_a_number_the_asked_action_is_taken(match, regularisation):
    options = {"match": match, "regularisation": regularisation}
    assert correct(LINE, [0.5, -0.25], [[-1.0, 0.0], [0.0, 1.0]], **options) == pytest.approx([-0.5, -0.25], abs=1e-5)
    assert correct(LINE, [0.5, -0.25], [[np.nan, 0.0], [0.0, 1.0]], **options) == [0.5, -0.25]
