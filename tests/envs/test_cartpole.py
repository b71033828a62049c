import math
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from ssm_metarl_gym import CartPoleTask

TASK = CartPoleTask(gravity=7.0, masscart=2.0, masspole=0.3, length=0.8, force_mag=12.0)
FALLING = [0.0, 0.0, 0.25, 0.0]  # beyond the 12 degrees at which the pole counts as fallen


def make(env_id="CartPole-v0", **kwargs):
    return gym.make(f"ssm_metarl/{env_id}", **kwargs)


@pytest.mark.parametrize("balancing", [0.0, 0.7, 1.0])
def test_the_default_task_is_gymnasiums_cartpole_bit_for_bit(balancing):
    env, reference, rng = make(task={}), gym.make("CartPole-v1"), np.random.default_rng(0)
    for seed in (3, None):  # None continues the stream of the first episode
        observation, expected = env.reset(seed=seed)[0], reference.reset(seed=seed)[0]
        ended = False
        while not ended:
            assert observation.dtype == expected.dtype
            assert observation.tolist() == expected.tolist()
            action = int(expected[2] + expected[3] > 0) if rng.random() < balancing else int(rng.integers(2))
            (observation, *outcome, _), (expected, *expected_outcome, _) = env.step(action), reference.step(action)
            assert outcome == expected_outcome
            ended = any(outcome[1:])
        assert env.unwrapped.state.tolist() == reference.unwrapped.state.tolist()


@pytest.mark.parametrize("action", [0, 1, np.int64(1)])
@pytest.mark.parametrize("polarity", [1, -1])
def test_one_step_solves_the_equations_of_motion(action, polarity):
    env = make(task=replace(TASK, polarity=polarity).to_dict())
    env.reset(options={"state": [0.1, -0.2, 0.15, 0.4]})
    observation = env.step(action)[0]
    x, x_dot, theta, theta_dot = 0.1, -0.2, 0.15, 0.4
    # (M + m) x'' + m l cos(theta) theta'' = F + m l sin(theta) theta'^2
    # cos(theta) x'' + 4/3 l theta'' = g sin(theta)
    force = 12.0 * polarity * (2 * action - 1)
    x_acc, theta_acc = np.linalg.solve(
        [[2.0 + 0.3, 0.3 * 0.8 * math.cos(theta)], [math.cos(theta), 4 / 3 * 0.8]],
        [force + 0.3 * 0.8 * math.sin(theta) * theta_dot**2, 7.0 * math.sin(theta)],
    )
    expected = [x + 0.02 * x_dot, x_dot + 0.02 * x_acc, theta + 0.02 * theta_dot, theta_dot + 0.02 * theta_acc]
    assert env.unwrapped.state == pytest.approx(expected, rel=1e-12)
    assert observation == pytest.approx(expected, rel=1e-6)


def test_polarity_mirrors_the_action():
    wired, crossed = make(task={}), make(task={"polarity": -1})
    assert wired.reset(seed=0)[0].tolist() == crossed.reset(seed=0)[0].tolist()
    for action in (0, 1, 1, 0, 1):
        assert wired.step(action)[0].tolist() == crossed.step(1 - action)[0].tolist()


def test_derived_quantities_follow_the_task():
    env = make().unwrapped
    assert (env.total_mass, env.polemass_length) == (0.1 + 1.0, 0.1 * 0.5)
    env.task = TASK
    assert (env.total_mass, env.polemass_length) == (0.3 + 2.0, 0.3 * 0.8)
    env.length, env.masscart = 0.25, 4.0
    assert (env.total_mass, env.polemass_length) == (0.3 + 4.0, 0.3 * 0.25)
    env.masspole = 0.2
    assert (env.total_mass, env.polemass_length) == (0.2 + 4.0, 0.2 * 0.25)


@pytest.mark.parametrize("env_id", ["CartPolePolarity-v0", "CartPoleSwitch-v0"])
def test_a_fall_in_a_trial_costs_a_penalty_and_draws_a_new_state(env_id):
    env = make(env_id, switch=None)
    _, info = env.reset(seed=0, options={"state": FALLING})
    assert info["restarted"] is False
    observation, reward, terminated, truncated, fallen = env.step(0)
    assert (reward, terminated, truncated, fallen["restarted"]) == (-9.0, False, False, True)
    assert fallen["task_params"] == info["task_params"]
    assert observation.tolist() == env.unwrapped.state.astype(np.float32).tolist()
    assert 0 < np.abs(observation).max() <= 0.05
    _, reward, _, _, info = env.step(0)
    assert (reward, info["restarted"]) == (1.0, False)


def test_restarts_draw_from_the_bounds_of_their_reset():
    env = make(on_failure="restart")
    low, high = np.array([0.1, 0.2, -0.1, 0.4]), np.array([0.2, 0.3, 0.1, 0.5])
    env.reset(seed=0, options={"state": FALLING, "low": low, "high": high})
    env.step(0)
    assert np.all((low <= env.unwrapped.state) & (env.unwrapped.state <= high))
    env.reset(options={"low": 0.01, "high": 0.02})
    assert np.all((env.unwrapped.state >= 0.01) & (env.unwrapped.state <= 0.02))
    env.reset()
    assert np.any(env.unwrapped.state < 0.01)


def test_only_the_time_limit_ends_a_trial():
    env = make("CartPolePolarity-v0")
    _, start = env.reset(seed=0)
    falls = 0
    for step in range(1, 201):
        observation, reward, terminated, truncated, info = env.step(1)
        assert (terminated, truncated) == (False, step == 200)
        assert abs(observation[2]) < math.radians(12)
        assert reward == (-9.0 if info["restarted"] else 1.0)
        assert info["task_id"] == start["task_id"]
        falls += info["restarted"]
    assert 10 < falls < 50


def test_a_fall_ends_an_ordinary_episode():
    env = make("CartPolePolarity-v0", on_failure="terminate")
    env.reset(options={"state": FALLING})
    observation, reward, terminated, truncated, info = env.step(0)
    assert (reward, terminated, truncated, info["restarted"]) == (1.0, True, False, False)
    assert observation[2] == np.float32(0.25)


def test_the_wide_start_is_a_valid_option():
    env = make("CartPolePolarity-v0").unwrapped
    states = [env.reset(seed=seed, options=env.wide_start) and env.state for seed in range(50)]
    assert np.all(np.abs(states) <= [2.0, 1.5, 0.18, 1.5])
    assert np.all(np.max(states, axis=0) > [1.5, 1.0, 0.12, 1.0])


@pytest.mark.parametrize("action", [2, -1, 0.5, "left", None, [1]])
def test_refuses_other_actions(action):
    env = make().unwrapped
    env.reset(seed=0)
    state = env.state.copy()
    with pytest.raises(ValueError, match="an action must be 0 or 1; got "):
        env.step(action)
    assert env.state.tolist() == state.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 0.1}, "'low' must not be greater than 'high'"),
        ({"low": [0.1, 0.2]}, "'low' must be a finite number or four"),
        ({"high": "wide"}, "'high' must be a finite number or four"),
        ({"high": math.inf}, "'high' must be a finite number or four"),
        ({"low": [0, 0, math.nan, 0]}, "'low' must be a finite number or four"),
        ({"state": [0, 0, 0]}, "'state' must be 4 finite numbers"),
        ({"state": [0, 0, math.nan, 0]}, "'state' must be 4 finite numbers"),
        ({"state": "upright"}, "'state' must be 4 finite numbers"),
        ({"state": {"x": 0}}, "'state' must be 4 finite numbers"),
    ],
)
def test_refuses_other_reset_options(options, message):
    with pytest.raises(ValueError, match=message):
        make().reset(options=options)


def test_refuses_other_ways_to_fail():
    with pytest.raises(ValueError, match=r"on_failure must be one of .*got 'restrat'. Did you mean 'restart'\?"):
        make(on_failure="restrat")


def test_a_derived_quantity_cannot_be_set():
    env = gym.make("ssm_metarl/CartPole-v0").unwrapped
    with pytest.raises(ValueError, match=r"total_mass follows from the task and cannot be set; got 50"):
        env.total_mass = 50.0


def test_no_pole_however_short_ends_outside_of_the_space():
    # Gymnasium's bounds are 24 degrees and 4.8 m: a pole of 5 cm passes from 11 to 29 degrees in a step.
    env = gym.make("ssm_metarl/CartPole-v0", split="extrapolation")
    env.reset(options={"task": {"length": 0.05}, "state": [0.0, 0.0, 0.2, 15.0]})
    observation, _, terminated, *_ = env.step(1)
    assert (observation[2], terminated) == (np.float32(0.2 + 0.02 * 15.0), True)
    assert env.observation_space.contains(observation)
    envs = gym.make_vec("ssm_metarl/CartPole-v0", num_envs=500, split="extrapolation", autoreset_mode="SameStep")
    envs.reset(seed=0)
    envs.action_space.seed(0)
    for _ in range(60):
        *_, infos = envs.step(envs.action_space.sample())
        for final in infos.get("final_obs", np.array([]))[infos.get("_final_obs", np.array([], np.bool_))]:
            assert envs.single_observation_space.contains(final)


@pytest.mark.parametrize("on_failure", ["terminate", "restart"])
def test_the_reward_of_sutton_and_barto(on_failure, leader_and_rows, play_both):
    env = gym.make("ssm_metarl/CartPole-v0", on_failure=on_failure, sutton_barto_reward=True)
    env.reset(options={"state": [0.0, 0.0, 0.0, 0.0]})
    assert env.step(1)[1] == 0.0
    env.reset(options={"state": [0.0, 0.0, 0.3, 0.0]})
    assert env.step(1)[1] == {"terminate": -1.0, "restart": -11.0}[on_failure]
    envs, rows = leader_and_rows(
        "ssm_metarl/CartPole-v0", 3, on_failure=on_failure, sutton_barto_reward=True, max_episode_steps=40
    )
    history = play_both(envs, rows, 60)
    rewards = {reward for step in history if len(step) == 5 for reward in step[1].tolist()}
    assert rewards == {"terminate": {0.0, -1.0}, "restart": {0.0, -11.0}}[on_failure]


def test_the_reward_of_sutton_and_barto_is_gymnasiums(rollout):
    env = gym.make("ssm_metarl/CartPole-v0", task={}, sutton_barto_reward=True)
    reference = gym.make("CartPole-v1", sutton_barto_reward=True)
    for own, expected in zip(rollout(env, 60, seed=3), rollout(reference, 60, seed=3), strict=True):
        assert own[:-1] == expected[:-1]
