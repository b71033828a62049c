import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from ssm_metarl_gym.envs import TaskPointNavigationEnv, TaskPointNavigationVectorEnv

MODES = [mode.value for mode in AutoresetMode]
each_mode = pytest.mark.parametrize("mode", MODES)


def make(num_envs=3, **kwargs):
    return gym.make_vec("ssm_metarl/PointNavigation-v0", num_envs, **kwargs)


def test_is_what_make_vec_makes():
    env = make()
    assert type(env) is TaskPointNavigationVectorEnv
    assert TaskPointNavigationVectorEnv.single_env_type is TaskPointNavigationEnv
    assert env.metadata["render_modes"] == ["rgb_array"]


@pytest.mark.each_value
@each_mode
@pytest.mark.parametrize("on_failure", ["terminate", "restart"])
def test_rows_that_reach_their_goal_end_as_single_environments_do(mode, on_failure, leader_and_rows, assert_same):
    env, rows = leader_and_rows(
        "ssm_metarl/PointNavigation-v0", 3, autoreset_mode=mode, max_episode_steps=9, on_failure=on_failure
    )
    terminations = np.zeros((30, 3), dtype=np.bool_)
    assert_same(env.reset(seed=0), rows.reset(seed=0))
    for step in range(30):
        goals = env.unwrapped.tasks.values.T
        actions = (goals - env.unwrapped.state) / 0.1
        actions[2] = -1.0  # the last one walks away, until the time limit
        result = env.step(actions)
        assert_same(result, rows.step(actions))
        terminations[step] = result[2]
        if mode == "Disabled" and (result[2] | result[3]).any():
            for each in (env, rows):
                each.reset(options={"reset_mask": result[2] | result[3]})
    assert np.all(terminations.sum(axis=0)[:2] >= 3)
    assert not terminations[:, 2].any()


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("scale", [0.9, 1.7])  # beyond the bounds too
def test_actions_of_any_type_act_as_on_single_environments(dtype, scale, leader_and_rows, play_both):
    env, rows = leader_and_rows("ssm_metarl/PointNavigation-v0", 3, max_episode_steps=12)
    play_both(env, rows, 20, scale=scale, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_ring_around_the_goal(dtype):
    env = make(4, dtype=dtype, task={"goal_x": 0.3, "goal_y": 0.4}, autoreset_mode="Disabled")
    env.reset(options={"state": [[0.3, 0.4], [0.307, 0.407], [0.308, 0.408], [0.3, 0.3899]]})
    _, rewards, terminated, truncated, _ = env.step(np.zeros((4, 2)))
    assert terminated.tolist() == [True, True, False, False]
    assert not truncated.any()
    assert rewards == pytest.approx([0.0, -9.8e-5, -1.28e-4, -1.0201e-4], rel=1e-4, abs=1e-12)
    assert rewards.dtype == np.float64


def test_all_start_at_the_origin():
    env = make(4, autoreset_mode="SameStep", max_episode_steps=2)
    observations, _ = env.reset(seed=0)
    assert not observations.any()
    for _ in range(2):
        observations, *_ = env.step(np.ones((4, 2)))
    assert not observations.any()
    assert not env.unwrapped.state.any()


def test_the_actions_of_the_caller_stay_as_they_are():
    env, actions = make(), np.full((3, 2), 5.0)
    env.reset(seed=0)
    env.step(actions)
    assert actions.tolist() == [[5.0, 5.0]] * 3


@pytest.mark.each_value
@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([[0.0, 0.0], [math.nan, 0.0], [0.0, 0.0]], r"an action must be finite; got \[nan, 0.0\] in row 1"),
        ([[0.0, 0.0], [0.0, 0.0], [0.0, -math.inf]], r"an action must be finite; got \[0.0, -inf\] in row 2"),
        ([0.0] * 6, r"actions must be numbers in an array of shape \(3, 2\); got shape \(6,\)"),
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
    assert env.step(np.ones((3, 2)))[0].tolist() == twin.step(np.ones((3, 2)))[0].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 0.1}, "an option of reset must be one of .*got 'low'"),
        ({"tasks": {"goal": 0.1}}, r"Did you mean 'goal_[xy]'\?"),
        (
            {"tasks": {"goal_x": [0.1, 0.2, math.inf]}},
            r"task 2: goal_x must be a number in .*; got inf",
        ),
        ({"state": [0.0, 0.0]}, "'state' must be 2 finite numbers for each of the 3 rows"),
    ],
)
def test_refuses_other_options_and_changes_nothing(options, message):
    env, twin = make(), make()
    for each in (env, twin):
        each.reset(seed=0)
        each.step(np.ones((3, 2)))
    with pytest.raises(ValueError, match=message):
        env.reset(seed=1, options=options)
    assert env.unwrapped.tasks == twin.unwrapped.tasks
    assert env.unwrapped.state.tolist() == twin.unwrapped.state.tolist()
    assert env.reset()[1]["task_id"].tolist() == twin.reset()[1]["task_id"].tolist()


def test_a_goal_has_no_sign_to_flip():
    with pytest.raises(ValueError, match="switch must be None, as a PointNavigationTask has no sign to flip"):
        make(switch={"step": 3})
