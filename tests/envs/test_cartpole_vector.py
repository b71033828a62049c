import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from ssm_metarl_gym.envs import TaskCartPoleEnv, TaskCartPoleVectorEnv

FALLING = [0.0, 0.0, 0.25, 0.0]  # beyond the 12 degrees at which the pole counts as fallen
STILL = [0.0, 0.0, 0.0, 0.0]

each_mode = pytest.mark.parametrize("mode", [mode.value for mode in AutoresetMode])


def make(num_envs=3, family="CartPole", **kwargs):
    return gym.make_vec(f"ssm_metarl/{family}-v0", num_envs, **kwargs)


def starts(num_envs, options, seeds=30, **kwargs):
    """Starting states ``[seeds n 4]``."""
    env = make(num_envs, **kwargs)
    return np.array([env.reset(seed=seed, options=options) and env.unwrapped.state for seed in range(seeds)])


def test_is_what_make_vec_makes():
    env = make()
    assert type(env) is TaskCartPoleVectorEnv
    assert TaskCartPoleVectorEnv.single_env_type is TaskCartPoleEnv
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert env.metadata["render_modes"] == ["rgb_array"]


def test_a_fall_is_a_position_or_an_angle_beyond_the_limits():
    limit, angle = 2.4, 12 * 2 * math.pi / 360
    states = [[x, 0.0, theta, 0.0] for x in (-limit, limit) for theta in (-angle, angle)]
    outside = [[sign * 2.41, 0.0, 0.0, 0.0] for sign in (-1, 1)] + [[0.0, 0.0, sign * 0.2096, 0.0] for sign in (-1, 1)]
    env = make(8, autoreset_mode="Disabled")
    env.reset(seed=0, options={"state": states + outside})
    assert env.step(np.zeros(8, dtype=int))[2].tolist() == [False] * 4 + [True] * 4


@each_mode
def test_a_fall_in_a_trial_costs_a_penalty_and_draws_a_new_state(mode):
    env = make(3, "CartPolePolarity", autoreset_mode=mode)
    _, first = env.reset(seed=0, options={"state": [STILL, FALLING, STILL]})
    observations, rewards, terminations, truncations, infos = env.step(np.array([0, 1, 1]))
    assert rewards.tolist() == [1.0, -9.0, 1.0]
    assert not np.any([terminations, truncations])
    assert infos["restarted"].tolist() == [False, True, False]
    assert infos["task_id"].tolist() == first["task_id"].tolist()
    assert observations.tolist() == env.unwrapped.state.astype(np.float32).tolist()
    assert 0 < np.abs(observations[1]).max() <= 0.05
    _, rewards, _, _, infos = env.step(np.array([0, 1, 1]))
    assert rewards.tolist() == [1.0, 1.0, 1.0]
    assert not infos["restarted"].any()


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0.01, 0.02),
        ([0.1, 0.2, -0.1, 0.4], [0.2, 0.3, 0.1, 0.5]),
        (np.arange(12).reshape(3, 4) / 100, np.arange(12).reshape(3, 4) / 100 + 0.005),
        (-0.01, [0.1, 0.2, 0.1, 0.4]),
    ],
)
def test_starting_states_lie_within_the_bounds_of_their_row(low, high):
    states = starts(3, {"low": low, "high": high})
    low, high = np.broadcast_to(low, (3, 4)), np.broadcast_to(high, (3, 4))
    assert np.all((low <= states) & (states <= high))
    assert np.all(states.max(axis=0) - states.min(axis=0) > 0.8 * (high - low))


def test_starting_states_fill_the_default_bounds_and_the_wide_ones():
    for options, width in (({}, 0.05), (TaskCartPoleEnv.wide_start, [2.0, 1.5, 0.18, 1.5])):
        states = starts(3, options)
        assert np.all(np.abs(states) <= width)
        assert np.all(states.max(axis=0) > 0.8 * np.array(width))
        assert np.all(states.min(axis=0) < -0.8 * np.array(width))


def test_one_bound_leaves_the_other_at_its_default():
    assert np.all(np.abs(starts(3, {"low": 0.04}) - 0.045) <= 0.005)
    assert np.all(np.abs(starts(3, {"high": -0.04}) + 0.045) <= 0.005)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_bounds_hold_for_the_attempts_of_their_trial(mode):
    env = make(3, "CartPolePolarity", autoreset_mode=mode, max_episode_steps=4)
    low, high = np.array([[0.01], [0.02], [0.03]]) * np.ones(4), np.array([[0.015], [0.025], [0.035]]) * np.ones(4)
    env.reset(seed=0, options={"low": low, "high": high})
    for _ in range(3):
        env.unwrapped.state = [FALLING] * 3
        assert env.step(np.zeros(3, dtype=int))[-1]["restarted"].all()
        assert np.all((low <= env.unwrapped.state) & (env.unwrapped.state <= high))
    # The next episode, and its attempts, have the default ones again.
    for _ in range(5):
        env.unwrapped.state = [FALLING] * 3
        env.step(np.zeros(3, dtype=int))
    assert np.all(np.abs(env.unwrapped.state) <= 0.05)
    assert not np.any((low <= env.unwrapped.state) & (env.unwrapped.state <= high), axis=1).all()
    assert np.any(env.unwrapped.state < 0)


def test_bounds_of_a_mask_are_those_of_its_rows():
    env = make(3, "CartPolePolarity")
    env.reset(seed=0, options={"low": 0.03})
    env.reset(options={"reset_mask": np.array([False, True, False]), "low": 1.0, "high": 2.0})
    for _ in range(3):
        env.unwrapped.state = [FALLING] * 3
        env.step(np.zeros(3, dtype=int))
        assert np.all(env.unwrapped.state[[0, 2]] >= 0.03)
        assert np.all(env.unwrapped.state[[0, 2]] <= 0.05)
        assert np.all(env.unwrapped.state[1] >= 1.0)
    env.reset(options={"reset_mask": np.array([True, False, False])})
    env.unwrapped.state = [FALLING] * 3
    env.step(np.zeros(3, dtype=int))
    assert np.any(env.unwrapped.state[0] < 0.03)
    assert np.all(env.unwrapped.state[1] >= 1.0)
    assert np.all(env.unwrapped.state[2] >= 0.03)


@pytest.mark.parametrize("family", ["CartPole", "CartPolePolarity"])
def test_bounds_are_those_of_single_environments(family, leader_and_rows, play_both):
    env, rows = leader_and_rows(f"ssm_metarl/{family}-v0", 3, max_episode_steps=9)
    play_both(env, rows, 25, options={"low": [-0.5, 0.1, -0.1, 0.3], "high": 0.4})


def test_given_bounds_leave_later_states_as_they_are():
    env, other = make(), make()
    env.reset(seed=0, options={"low": 0.0, "high": 1.0})
    other.reset(seed=0)
    for _ in range(2):
        assert env.reset()[0].tolist() == other.reset()[0].tolist()


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int8, np.uint8, list])
def test_whole_numbers_of_any_type_are_actions(dtype):
    env, reference = make(), make()
    for each in (env, reference):
        each.reset(seed=0)
    actions = np.array([0, 1, 1])
    given = actions.tolist() if dtype is list else actions.astype(dtype)
    assert env.step(given)[0].tolist() == reference.step(actions)[0].tolist()


@pytest.mark.each_value
@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([0, 1, 2], "an action must be 0 or 1; got 2 in row 2"),
        ([0, -1, 1], "an action must be 0 or 1; got -1 in row 1"),
        ([255, 1, 1], "an action must be 0 or 1; got 255 in row 0"),
        ([0, 1, 1, 0], r"got shape \(4,\)"),
        ([0.0, 1.0, 1.0], "of float64"),
    ],
)
@each_mode
def test_refuses_other_actions(mode, actions, message):
    env = make(autoreset_mode=mode)
    env.reset(seed=0)
    before = env.unwrapped.state
    with pytest.raises(ValueError, match=message):
        env.step(actions)
    assert env.unwrapped.state.tolist() == before.tolist()
    twin = make(autoreset_mode=mode)
    twin.reset(seed=0)
    assert env.step(np.array([0, 1, 1]))[0].tolist() == twin.step(np.array([0, 1, 1]))[0].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 0.1}, "'low' must not be greater than 'high'"),
        ({"low": [[0.0] * 4, [0.0] * 4, [0.0, 0.0, 0.0, 0.06]]}, "'low' must not be greater than 'high'"),
        ({"low": [0.0, 0.0, 0.0]}, "'low' must be a finite number or four of them, or four for each of the 3 rows"),
        ({"high": np.zeros((2, 4))}, "'high' must be a finite number or four of them, or four for each of the 3 rows"),
        ({"high": "wide"}, "'high' must be a finite number .*; got 'wide'"),
        ({"high": math.inf}, "'high' must be a finite number"),
        ({"low": None}, "'low' must be a finite number"),
        ({"low": [0, 0, math.nan, 0]}, "'low' must be a finite number"),
        ({"x_init": 0.1}, "an option of reset must be one of .*got 'x_init'"),
        ({"lo": 0.1}, r"Did you mean 'low'\?"),
    ],
)
def test_refuses_other_bounds_and_changes_nothing(options, message):
    env, twin = make(), make()
    for each in (env, twin):
        each.reset(seed=0, options={"low": 0.0})
    with pytest.raises(ValueError, match=message):
        env.reset(seed=1, options={"tasks": {"polarity": -1}, **options})
    assert env.unwrapped.tasks == twin.unwrapped.tasks
    assert env.unwrapped.state.tolist() == twin.unwrapped.state.tolist()
    assert env.reset()[0].tolist() == twin.reset()[0].tolist()
