import math
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from ssm_metarl_gym import PendulumTask

TASK = PendulumTask(g=7.0, m=1.5, l=0.8, gain=1.3)


def make(env_id="Pendulum-v0", **kwargs):
    return gym.make(f"ssm_metarl/{env_id}", **kwargs)


def test_the_default_task_is_gymnasiums_pendulum_under_twice_the_action_bit_for_bit():
    env, reference, rng = make(task={}), gym.make("Pendulum-v1"), np.random.default_rng(0)
    for seed in (3, None):  # None continues the stream of the first episode
        observation, expected = env.reset(seed=seed)[0], reference.reset(seed=seed)[0]
        ended = False
        while not ended:
            assert observation.dtype == expected.dtype
            assert observation.tolist() == expected.tolist()
            action = rng.uniform(-1.2, 1.2, size=1).astype(np.float32)  # some out of bounds: both clip
            observation, *outcome, _ = env.step(action)
            expected, *expected_outcome, _ = reference.step(2 * action.astype(np.float64))
            assert outcome == expected_outcome
            ended = any(outcome[1:])
        assert env.unwrapped.state.tolist() == reference.unwrapped.state.tolist()


@pytest.mark.parametrize("polarity", [1, -1])
@pytest.mark.parametrize(("action", "fraction"), [(0.4, 0.4), (-3.0, -1.0)])
def test_one_step_solves_the_equation_of_motion(action, fraction, polarity):
    env = make(task=replace(TASK, polarity=polarity).to_dict())
    env.reset(options={"state": [2.0, -0.5]})
    observation, reward, *_ = env.step(np.array([action]))
    # A rod about its end: m l^2 / 3 theta'' = m g l / 2 sin(theta) + torque
    torque = 2.0 * 1.3 * polarity * fraction
    velocity = -0.5 + 0.05 * (1.5 * 7.0 * 0.8 / 2 * math.sin(2.0) + torque) / (1.5 * 0.8**2 / 3)
    angle = 2.0 + 0.05 * velocity
    assert env.unwrapped.state == pytest.approx([angle, velocity], rel=1e-12)
    assert observation == pytest.approx([math.cos(angle), math.sin(angle), velocity], rel=1e-6)
    assert reward == pytest.approx(-(2.0**2 + 0.1 * 0.5**2 + 0.001 * torque**2), rel=1e-12)
    assert type(reward) is float


def test_polarity_mirrors_the_action():
    wired, crossed = make(task={}), make(task={"polarity": -1})
    assert wired.reset(seed=0)[0].tolist() == crossed.reset(seed=0)[0].tolist()
    for action in np.linspace(-1, 1, 5, dtype=np.float32)[:, None]:
        assert wired.step(action)[0].tolist() == crossed.step(-action)[0].tolist()


def test_the_greatest_torque_follows_the_gain():
    env = make().unwrapped
    assert env.max_torque == 2.0
    env.task = TASK
    assert env.max_torque == 2.0 * 1.3
    env.gain = 3.0
    assert env.max_torque == 6.0


def test_the_starting_state_follows_its_options():
    env = make().unwrapped
    env.reset(options={"state": [1.0, -4.0]})
    assert env.state.tolist() == [1.0, -4.0]
    for options, bounds in (
        ({}, [np.pi, 1.0]),
        ({"x_init": 0.1, "y_init": 0.2}, [0.1, 0.2]),
        (env.wide_start, [np.pi, 8.0]),
    ):
        states = np.abs([env.reset(seed=seed, options=options) and env.state for seed in range(50)])
        assert np.all(states <= bounds)
        assert np.all(np.max(states, axis=0) > 0.9 * np.array(bounds))


@pytest.mark.parametrize("action", [[math.nan], [math.inf], [0.1, 0.2], 0.5, [[0.5]], [], "left", None])
def test_refuses_other_actions(action):
    env = make().unwrapped
    env.reset(seed=0)
    state = env.state.copy()
    with pytest.raises(ValueError, match=r"an action must be one finite number in an array of shape \(1,\); got "):
        env.step(action)
    assert env.state.tolist() == state.tolist()


@pytest.mark.parametrize("state", [[0.0], [0.0, math.inf], [0.0, 8.1], [2e6, 0.0], "upright", {"angle": 0}, None])
def test_refuses_other_states(state):
    with pytest.raises(ValueError, match=r"'state' must be 2 finite numbers, of at most 1e\+06 and 8; got "):
        make().reset(options={"state": state})
