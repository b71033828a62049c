import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from ssm_metarl_gym.envs import TaskPendulumEnv, TaskPendulumVectorEnv

each_mode = pytest.mark.parametrize("mode", [mode.value for mode in AutoresetMode])


def make(num_envs=3, family="Pendulum", **kwargs):
    return gym.make_vec(f"ssm_metarl/{family}-v0", num_envs, **kwargs)


def starts(num_envs, options, seeds=40):
    """Starting states ``[seeds n 2]``."""
    env = make(num_envs)
    return np.array([env.reset(seed=seed, options=options) and env.unwrapped.state for seed in range(seeds)])


def test_is_what_make_vec_makes():
    env = make()
    assert type(env) is TaskPendulumVectorEnv
    assert TaskPendulumVectorEnv.single_env_type is TaskPendulumEnv
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert env.metadata["render_modes"] == ["rgb_array"]


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("scale", [0.9, 1.7])  # beyond the bounds too
def test_actions_of_any_type_act_as_on_single_environments(dtype, scale, leader_and_rows, play_both):
    env, rows = leader_and_rows("ssm_metarl/PendulumSwitch-v0", 3, switch={"step": 5}, max_episode_steps=12)
    play_both(env, rows, 20, scale=scale, dtype=dtype)


def test_actions_out_of_bounds_count_as_the_nearest():
    env, reference = make(4), make(4)
    for each in (env, reference):
        each.reset(seed=0)
    given = np.array([[-1e300], [-1.001], [1.001], [5.0]])
    one, other = env.step(given), reference.step(np.sign(given))
    assert [column.tolist() for column in one[:4]] == [column.tolist() for column in other[:4]]


def test_lists_are_actions():
    env, reference = make(), make()
    for each in (env, reference):
        each.reset(seed=0)
    actions = [[0.1], [-0.4], [0.7]]
    assert env.step(actions)[1].tolist() == reference.step(np.array(actions))[1].tolist()


@pytest.mark.each_value
@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([[0.0], [math.nan], [0.0]], r"an action must be finite; got \[nan\] in row 1"),
        ([[0.0], [0.0], [-math.inf]], r"an action must be finite; got \[-inf\] in row 2"),
        ([0.0, 0.0, 0.0], r"actions must be numbers in an array of shape \(3, 1\); got shape \(3,\)"),
    ],
)
@each_mode
def test_refuses_other_actions(mode, actions, message):
    env, twin = make(autoreset_mode=mode), make(autoreset_mode=mode)
    for each in (env, twin):
        each.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(actions)
    assert env.unwrapped.state.tolist() == twin.unwrapped.state.tolist()
    assert env.step(np.ones((3, 1)))[0].tolist() == twin.step(np.ones((3, 1)))[0].tolist()


def test_speeds_are_limited_as_in_single_environments():
    env = make(2, task={})
    env.reset(options={"state": [[np.pi / 2, 7.9], [-np.pi / 2, -7.9]]})
    observations = env.step(np.array([[1.0], [-1.0]]))[0]
    assert env.unwrapped.state[:, 1].tolist() == observations[:, 2].tolist() == [8.0, -8.0]


@pytest.mark.parametrize(
    ("options", "bounds"),
    [
        ({}, [np.pi, 1.0]),
        ({"x_init": 0.1}, [0.1, 1.0]),
        ({"y_init": 0.2}, [np.pi, 0.2]),
        (TaskPendulumEnv.wide_start, [np.pi, 8.0]),
        ({"x_init": [0.1, 0.5, 2.0], "y_init": 0.3}, [[0.1, 0.3], [0.5, 0.3], [2.0, 0.3]]),
        ({"x_init": 0.1, "y_init": np.array([1.0, 2.0, 3.0])}, [[0.1, 1.0], [0.1, 2.0], [0.1, 3.0]]),
        ({"x_init": 0.0, "y_init": 0}, [0.0, 0.0]),
    ],
)
def test_starting_states_fill_the_bounds_of_their_row(options, bounds):
    states, bounds = starts(3, options), np.broadcast_to(bounds, (3, 2))
    assert np.all(np.abs(states) <= bounds)
    assert np.all(states.max(axis=0) >= 0.8 * bounds)
    assert np.all(states.min(axis=0) <= -0.8 * bounds)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_bounds_end_with_their_episode(mode):
    env, other = (make(3, autoreset_mode=mode, max_episode_steps=2) for _ in range(2))
    env.reset(seed=0, options={"x_init": 0.0, "y_init": [0.0, 0.0, 0.1]})
    other.reset(seed=0)
    assert np.all(np.abs(env.unwrapped.state) <= [[0.0, 0.0], [0.0, 0.0], [0.0, 0.1]])
    for _ in range(2 if mode == "SameStep" else 3):
        for each in (env, other):
            each.step(np.zeros((3, 1)))
    assert env.unwrapped.state.tolist() == other.unwrapped.state.tolist()


def test_bounds_are_those_of_single_environments(leader_and_rows, play_both):
    env, rows = leader_and_rows("ssm_metarl/Pendulum-v0", 3, max_episode_steps=5)
    play_both(env, rows, 12, options={"x_init": 0.3, "y_init": 0.0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"x_init": -0.1},
            "'x_init' must be a finite number >= 0, or one for each of the 3 rows, of at most",
        ),
        ({"x_init": [0.1, 0.1, -0.1]}, "'x_init' must be a finite number >= 0, or one for each of the 3 rows"),
        ({"x_init": [0.1, 0.1]}, "'x_init' must be a finite number >= 0, or one for each of the 3 rows"),
        ({"y_init": math.nan}, "'y_init' must be a finite number >= 0"),
        ({"y_init": math.inf}, "'y_init' must be a finite number >= 0"),
        ({"y_init": "fast"}, "'y_init' must be a finite number >= 0.*; got 'fast'"),
        ({"y_init": None}, "'y_init' must be a finite number >= 0.*; got None"),
        ({"low": 0.1}, "an option of reset must be one of .*got 'low'"),
        ({"x_int": 0.1}, r"Did you mean 'x_init'\?"),
    ],
)
def test_refuses_other_bounds_and_changes_nothing(options, message):
    env, twin = make(), make()
    for each in (env, twin):
        each.reset(seed=0, options={"x_init": 0.1})
    with pytest.raises(ValueError, match=message):
        env.reset(seed=1, options={"tasks": {"polarity": -1}, **options})
    assert env.unwrapped.tasks == twin.unwrapped.tasks
    assert env.unwrapped.state.tolist() == twin.unwrapped.state.tolist()
    assert env.reset()[0].tolist() == twin.reset()[0].tolist()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_picture_of_a_new_episode_shows_no_torque(dtype):
    env = make(2, render_mode="rgb_array", dtype=dtype)
    state = np.array([[1.0, 0.0], [2.0, 0.0]])
    env.reset(options={"state": state, "tasks": {}})
    before = env.render()
    env.step(np.array([[1.0], [0.6]]))
    env.unwrapped.state = state
    after_a_step = env.render()
    env.reset(options={"state": state, "tasks": {}, "reset_mask": np.array([True, False])})
    after_a_reset = env.render()
    assert not np.array_equal(before[0], after_a_step[0])
    assert np.array_equal(before[0], after_a_reset[0])
    assert np.array_equal(after_a_step[1], after_a_reset[1])
    env.close()


def test_a_picture_after_the_warm_up_is_that_of_the_single_environment():
    env = make(1, render_mode="rgb_array", warm_up_steps=2)
    single = gym.make("ssm_metarl/Pendulum-v0", render_mode="rgb_array", warm_up_steps=2)
    env.reset(seed=0, options={"tasks": {}})
    single.reset(seed=0, options={"task": {}})
    for _ in range(4):
        env.step(np.array([[0.7]]))
        single.step(np.array([0.7]))
        single.unwrapped.state = env.unwrapped.state[0]
        assert np.array_equal(env.render()[0], single.render())
