import gymnasium as gym
import numpy as np
import pytest

from ssm_metarl_gym.tasks.aib import AIB_CONTEXTS


def make(**kwargs):
    return gym.make("ssm_metarl/ComplexODE-v0", **kwargs)


@pytest.mark.parametrize(
    ("c0", "c1", "action"), [(2.0, 0.0, [0.5, 1.0]), (-1.5, 3.0, [0.5, -0.25]), (0.0, -4.0, [0, 1])]
)
def test_a_step_by_hand(c0, c1, action):
    env = make(task={"c0": c0, "c1": c1})
    env.reset(options={"state": [0.7]})
    observation, *_ = env.step(np.array(action))
    a = complex(*action)
    assert observation == pytest.approx([0.7 + 0.01 * (c0 * a + c1 * a**2).real], rel=1e-6)


@pytest.mark.parametrize(
    ("x", "reward"),
    [
        (0.0, 1),
        (-0.05, 1),
        (0.0501, 1 / 2),
        (-0.1, 1 / 2),
        (0.2, 1 / 3),
        (0.5, 1 / 4),
        (-2.0, 0.05),
        (2.01, 0),
        (20, 0),
    ],
)
def test_what_is_near_zero_is_rewarded(x, reward):
    env = make()
    env.reset(options={"state": [x]})
    assert env.step(np.zeros(2))[1] == pytest.approx(reward)


def test_the_number_is_clipped():
    env = make(task={"c0": 10.0})
    env.reset(options={"state": [19.95]})
    assert env.step(np.array([1.0, 0.0]))[0] == pytest.approx([20.0])


def test_starts_near_zero_and_lasts_two_hundred_steps():
    env = gym.make_vec("ssm_metarl/ComplexODE-v0", 300)
    observations, _ = env.reset(seed=0)
    assert -1.0 <= observations.min() < -0.95 < 0.95 < observations.max() <= 1.0
    assert env.unwrapped.max_episode_steps == 200


def test_a_switch_draws_another_context():
    env = make(switch={"step": 2}, contexts="aib")
    env.reset(seed=0)
    tasks = [env.unwrapped.task] + [env.step(np.zeros(2)) and env.unwrapped.task for _ in range(3)]
    assert tasks[0] == tasks[1] != tasks[2] == tasks[3]
    assert set(tasks) <= set(AIB_CONTEXTS["ComplexODE"].train.tasks)
