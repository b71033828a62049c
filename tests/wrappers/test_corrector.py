import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from ssm_metarl_gym.agents import DynamicsModel
from ssm_metarl_gym.wrappers.corrector import Corrector

OPTIONS = {
    "match": None,
    "gate": 1.5,
    "effect_gate": 0.9,
    "prior_steps": 0.0,
    "decay": 0.5,
    "regularisation": 0.0,
}
ALL = np.ones(1, dtype=np.bool_)


def linear_model(action_space, actions, drift=None):
    """``f(o, u) = drift + actions u``, exactly: the change of two numbers."""
    model = DynamicsModel(spaces.Box(-1.0, 1.0, (2,)), action_space, nn.Identity())
    weight = torch.zeros(2, 2 + np.shape(actions)[1])
    weight[:, 2:] = torch.tensor(actions)
    with torch.no_grad():
        model.head.weight.copy_(weight)
        model.head.bias.copy_(torch.zeros(2) if drift is None else torch.tensor(drift))
    return model


def predict_by(model):
    def predict(observations, actions, rows):
        assert len(rows) == len(observations) == len(actions)
        n, p = observations.shape[:2]
        flat = observations.reshape(n * p, -1), actions.reshape(n * p, *actions.shape[2:])
        return model(model.encode(*flat)).unflatten(0, (n, p))

    return predict


def predict_by_both(model, twin):
    return lambda *probes: (predict_by(model)(*probes), predict_by(twin)(*probes))


def correct(space, reference, adapted, asked, **options):
    corrector = Corrector(reference, space, len(asked), **OPTIONS | options)
    rows = np.ones(len(asked), dtype=np.bool_)
    return corrector.correct(
        predict_by(adapted), np.zeros((len(asked), 2), dtype=np.float32), np.asarray(asked, space.dtype), rows
    )


PLANE = spaces.Box(-1.0, 1.0, (2,))
IDENTITY = [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("now", "asked", "taken"),
    [
        (IDENTITY, [0.5, -0.2], [0.5, -0.2]),
        ([[-1.0, 0.0], [0.0, 1.0]], [0.5, -0.2], [-0.5, -0.2]),  # a motor the other way round
        ([[2.0, 0.0], [0.0, 0.5]], [0.5, -0.2], [0.25, -0.4]),  # gains
        ([[0.0, -1.0], [1.0, 0.0]], [0.5, -0.2], [-0.2, -0.5]),  # a quarter turn
        ([[0.0, 1.0], [1.0, 0.0]], [0.5, -0.2], [-0.2, 0.5]),  # two motors swapped
        ([[0.5, 0.0], [0.0, 1.0]], [0.8, -0.2], [1.0, -0.2]),  # out of reach: the bound
    ],
)
def test_a_map_on_the_actions_is_undone(now, asked, taken):
    corrected = correct(PLANE, linear_model(PLANE, IDENTITY), linear_model(PLANE, now), [asked])
    np.testing.assert_allclose(corrected, [taken], atol=1e-4)
    assert corrected.dtype == PLANE.dtype


def test_regularisation_shrinks_as_ridge_regression_does():
    """``argmin (u - 0.6)^2 + 0.5 u^2 = 0.6 / 1.5``, in half ranges."""
    space = spaces.Box(-1.0, 1.0, (1,))
    model = linear_model(space, [[1.0], [0.0]])
    corrected = correct(space, model, model, np.array([[0.6]], dtype=np.float32), regularisation=0.5)
    np.testing.assert_allclose(corrected, [[0.4]], atol=1e-4)


def test_change_undoes_the_drift_too_and_effect_does_not():
    reference, adapted = linear_model(PLANE, IDENTITY), linear_model(PLANE, IDENTITY, drift=[0.3, 0.0])
    asked = [[0.5, -0.2]]
    np.testing.assert_allclose(correct(PLANE, reference, adapted, asked), [[0.2, -0.2]], atol=1e-4)
    np.testing.assert_allclose(correct(PLANE, reference, adapted, asked, match="effect"), asked, atol=1e-4)


def test_bounds_that_are_not_symmetric():
    space = spaces.Box(np.array([0.0], np.float32), np.array([4.0], np.float32))
    reference, adapted = linear_model(space, [[1.0], [0.0]]), linear_model(space, [[2.0], [0.0]])
    np.testing.assert_allclose(correct(space, reference, adapted, np.array([[3.0]], np.float32)), [[1.5]], atol=1e-3)


# Its second motor can do one thing only.
FIXED = spaces.Box(np.array([-1.0, 0.5], np.float32), np.array([1.0, 0.5], np.float32))


@pytest.mark.parametrize("regularisation", [0.0, 1e-6])
def test_a_range_of_no_length_stays_where_it_is(regularisation):
    reference, adapted = linear_model(FIXED, IDENTITY), linear_model(FIXED, [[-2.0, 0.0], [0.0, 1.0]])
    corrected = correct(FIXED, reference, adapted, [[0.6, 0.5]], regularisation=regularisation)
    np.testing.assert_allclose(corrected, [[-0.3, 0.5]], atol=1e-4)
    assert corrected[0, 1] == 0.5


CHOICES = spaces.Discrete(3, start=1)
PUSHES = [[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("asked", [1, 2, 3])
def test_the_choice_with_the_nearest_effect_is_taken(asked):
    reversed_pushes = [[1.0, 0.0, -1.0], [0.0, 0.0, 0.0]]
    reference = linear_model(CHOICES, PUSHES)
    assert correct(CHOICES, reference, linear_model(CHOICES, PUSHES), np.array([asked])) == [asked]
    assert correct(CHOICES, reference, linear_model(CHOICES, reversed_pushes), np.array([asked])) == [4 - asked]


def test_among_equal_choices_the_asked_one_is_taken():
    useless = linear_model(CHOICES, np.zeros((2, 3)))
    assert correct(CHOICES, linear_model(CHOICES, PUSHES), useless, np.array([3])) == [3]


@pytest.mark.parametrize("match", ["change", "effect"])
@pytest.mark.parametrize("unknown", [1, 2, 3])
def test_where_some_predictions_are_no_numbers_the_asked_choice_is_taken(match, unknown):
    reversed_pushes = np.array([[1.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    reversed_pushes[0, unknown - 1] = np.nan
    now = linear_model(CHOICES, reversed_pushes.tolist())
    for asked in (1, 2, 3):
        assert correct(CHOICES, linear_model(CHOICES, PUSHES), now, np.array([asked]), match=match) == [asked]


@pytest.mark.parametrize("regularisation", [0.0, 0.1])
@pytest.mark.parametrize("match", ["change", "effect"])
def test_where_predictions_are_no_numbers_the_asked_action_is_taken_and_other_rows_are_corrected(match, regularisation):
    reference, adapted = linear_model(PLANE, IDENTITY), linear_model(PLANE, [[-1.0, 0.0], [0.0, 1.0]])

    def predict(observations, actions, rows):
        predicted = predict_by(adapted)(observations, actions, rows)
        predicted[0] = np.nan
        return predicted

    corrector = Corrector(reference, PLANE, 2, **OPTIONS | {"match": match, "regularisation": regularisation})
    asked = np.array([[0.5, -0.2], [0.5, -0.2]], np.float32)
    taken = corrector.correct(predict, np.zeros((2, 2), np.float32), asked, ALL.repeat(2))
    shrunk = 1.0 / (1.0 + regularisation)
    np.testing.assert_array_equal(taken[0], asked[0])
    np.testing.assert_allclose(taken[1], [-0.5 * shrunk, -0.2 * shrunk], atol=1e-4)


def test_the_effect_of_choices_ignores_what_all_of_them_share():
    drifting = linear_model(CHOICES, PUSHES, drift=[-1.2, 0.0])
    reference = linear_model(CHOICES, PUSHES)
    assert correct(CHOICES, reference, drifting, np.array([2])) == [2]
    assert correct(CHOICES, reference, drifting, np.array([2]), match="change") == [3]


class TestGates:
    def make(self, **options):
        return Corrector(linear_model(PLANE, IDENTITY), PLANE, 2, **OPTIONS | options)

    def test_both_are_closed_without_evidence(self):
        assert not self.make().is_open().any()
        assert not self.make(gate=0.0, effect_gate=np.inf).is_open().any()

    def test_without_the_second_gate_no_effects_are_compared(self):
        assert self.make().compares_effects
        corrector = self.make(effect_gate=np.inf)
        assert not corrector.compares_effects
        corrector.learn(np.array([1.0, 1.0]), np.array([1.6, 1.4]), np.array([True, True]))
        assert corrector.is_open().tolist() == [True, False]

    def test_errors_are_running_means_that_begin_with_the_first_value(self):
        corrector = self.make()
        for adapted, reference in (([1.0, 4.0], [2.0, 8.0]), ([3.0, 2.0], [2.0, np.nan])):
            rows = np.array([True, True])
            corrector.learn(np.array(adapted), np.array(reference), rows)
        assert corrector.adapted_error.tolist() == [2.0, 3.0]
        assert corrector.reference_error.tolist() == [2.0, 8.0]  # what is not finite does not count
        corrector.begin(np.array([True, False]))
        np.testing.assert_array_equal(corrector.adapted_error, [np.nan, 3.0])

    @pytest.mark.parametrize(
        ("reference_error", "effect", "is_open"),
        [(1.6, 0.8, True), (1.4, 0.8, False), (1.6, 1.0, False), (9.0, -1.0, True)],
    )
    def test_it_opens_where_the_physics_differ_and_actions_do_less(self, reference_error, effect, is_open):
        corrector = self.make()
        rows = np.array([True, False])
        corrector.learn(np.array([1.0, 1.0]), np.array([reference_error, 9.0]), rows)
        now = linear_model(PLANE, (effect * np.eye(2)).tolist())
        asked = np.array([[0.3, -0.9], [0.0, 0.0]], dtype=np.float32)
        predict = predict_by_both(now, linear_model(PLANE, IDENTITY))
        corrector.compare_effects(predict, np.zeros((2, 2), np.float32), asked, rows)
        np.testing.assert_allclose(corrector.effect, [effect, np.nan], rtol=1e-5)
        assert corrector.is_open().tolist() == [is_open, False]

    @pytest.mark.parametrize(
        ("gain", "angle", "expected"),
        # Weaker, as strong and stronger; of what is turned the cosine counts where it is less than what lies along.
        [(0.5, 0.0, 0.5), (2.0, 0.0, 1.0), (0.5, 60.0, 0.25), (2.0, 60.0, 0.5), (3.0, 90.0, 0.0), (2.0, 180.0, -2.0)],
    )
    def test_the_effect_of_several_motors_counts_as_no_more_than_its_cosine(self, gain, angle, expected):
        corrector = self.make(prior_steps=0.0)
        corrector.learn(np.ones(2), np.ones(2), ALL.repeat(2))
        cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        now = linear_model(PLANE, (gain * np.array([[cos, -sin], [sin, cos]])).tolist())
        asked = np.array([[0.3, -0.9], [1.0, 0.0]], dtype=np.float32)
        predict = predict_by_both(now, linear_model(PLANE, IDENTITY))
        corrector.compare_effects(predict, np.zeros((2, 2), np.float32), asked, ALL.repeat(2))
        np.testing.assert_allclose(corrector.effect, [expected] * 2, atol=1e-5)

    def test_the_effect_of_one_motor_is_its_ratio(self):
        line = spaces.Box(-1.0, 1.0, (1,))
        corrector = Corrector(linear_model(line, [[1.0], [0.0]]), line, 1, **OPTIONS | {"prior_steps": 0.0})
        corrector.learn(np.ones(1), np.ones(1), ALL)
        predict = predict_by_both(linear_model(line, [[2.0], [2.0]]), linear_model(line, [[1.0], [0.0]]))
        corrector.compare_effects(predict, np.zeros((1, 2), np.float32), np.ones((1, 1), np.float32), ALL)
        np.testing.assert_allclose(corrector.effect, [2.0], rtol=1e-5)

    def test_a_range_of_no_length_has_no_part_in_the_effect(self):
        corrector = Corrector(linear_model(FIXED, IDENTITY), FIXED, 1, **OPTIONS)
        corrector.learn(np.ones(1), np.ones(1), ALL)
        predict = predict_by_both(linear_model(FIXED, [[0.5, 0.0], [0.0, 7.0]]), linear_model(FIXED, IDENTITY))
        corrector.compare_effects(predict, np.zeros((1, 2), np.float32), np.array([[0.3, 0.5]], np.float32), ALL)
        np.testing.assert_allclose(corrector.effect, [0.5], rtol=1e-5)

    @pytest.mark.parametrize(
        ("effect", "believed"),
        # After n steps (4 + n e) / (4 + n): of 0.5, below 0.9 from the second step on, 2 * 0.5 / 6 short of 1.
        [(-1.0, [1.0, 0.6, 1 / 3, 1 / 7]), (0.5, [1.0, 0.9, 5 / 6, 11 / 14]), (0.8, [1.0, 0.96, 14 / 15, 32 / 35])],
    )
    def test_the_effect_is_believed_step_by_step(self, effect, believed):
        corrector = self.make(prior_steps=4.0, gate=1.5)
        now, reference = linear_model(PLANE, (effect * np.eye(2)).tolist()), linear_model(PLANE, IDENTITY)
        here, asked = np.zeros((2, 2), np.float32), np.array([[0.3, -0.9], [0.3, -0.9]], dtype=np.float32)

        def compare(rows):
            corrector.compare_effects(predict_by_both(now, reference), here, asked, np.array(rows))

        for expected in believed:
            compare([True, True])
            np.testing.assert_allclose(corrector.effect, [expected, 1.0], rtol=1e-5)  # no step of the second row counts
            corrector.learn(np.array([1.0, 1.0]), np.array([2.0, 2.0]), np.array([True, False]))
            assert corrector.is_open().tolist() == [expected < 0.9 - 1e-6, False]
        # In other physics the evidence of the old ones does not count.
        corrector.begin(np.array([True, False]))
        np.testing.assert_allclose(corrector.effect, [np.nan, 1.0])
        compare([True, True])
        np.testing.assert_allclose(corrector.effect, [1.0, 1.0])

    def test_where_actions_do_nothing_in_the_reference_the_estimate_stays(self):
        corrector = self.make()
        corrector.learn(np.ones(2), np.ones(2), ALL.repeat(2))
        useless, asked = linear_model(PLANE, np.zeros((2, 2))), np.array([[0.3, -0.9], [1.0, 0.0]], dtype=np.float32)
        arguments = np.zeros((2, 2), np.float32), asked, np.array([True, True])
        corrector.compare_effects(predict_by_both(linear_model(PLANE, IDENTITY), useless), *arguments)
        np.testing.assert_array_equal(corrector.effect, [np.nan, np.nan])


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        (spaces.Box(-np.inf, np.inf, (1,)), {}, "must be Discrete, or of a bounded one-dimensional Box"),
        (spaces.MultiDiscrete([2, 2]), {}, "must be Discrete, or of a bounded one-dimensional Box"),
        (PLANE, {"match": "affect"}, "match must be one of .* Did you mean 'effect'"),
        (PLANE, {"gate": -1.0}, r"gate must be a number >= 0 .*; got -1\.0"),
        (PLANE, {"prior_steps": np.inf}, "prior_steps must be a finite number >= 0"),
        (PLANE, {"decay": 1.0}, r"decay must be a number in \[0, 1\)"),
        (PLANE, {"regularisation": np.nan}, "regularisation must be a finite number"),
    ],
)
def test_wrong_options(space, options, message):
    with pytest.raises(ValueError, match=message):
        Corrector(linear_model(PLANE, IDENTITY), space, 1, **OPTIONS | options)
