import gymnasium as gym
import numpy as np
import pytest

from ssm_metarl_gym.tasks.aib import AIB_CONTEXTS


def make(name="DoubleIntegrator", **kwargs):
    return gym.make(f"ssm_metarl/{name}-v0", **kwargs)


def test_a_step_by_hand():
    env = make(task={"sign": -1, "mass": 0.5, "friction": 1.0})
    env.reset(options={"state": [0.5, -0.2, 0.4, -0.9]})
    observation, reward, terminated, truncated, _ = env.step(np.array([0.5, 3.0]))  # as 1
    # The old velocity moves the mass; then 0.1 * 1 / 0.5 of it is lost, and -0.1 * force / 0.5 is gained.
    assert observation == pytest.approx([0.54, -0.29, 0.8 * 0.4 - 0.2 * 0.5, 0.8 * -0.9 - 0.2], rel=1e-6)
    assert (reward, terminated, truncated) == (0.0, False, False)


def test_positions_and_velocities_are_clipped():
    env = make(task={"mass": 0.1})
    env.reset(options={"state": [0.99, -1.0, 0.5, -1.0]})
    assert env.step(np.array([1.0, 0.0]))[0].tolist() == [1.0, -1.0, 1.0, -1.0]


@pytest.mark.parametrize(
    ("position", "reward"), [([0.0, 0.0], 1.0), ([0.06, 0.0799], 1.0), ([0.08, 0.08], 0.0), ([0.0, -0.101], 0.0)]
)
def test_what_lies_within_a_tenth_of_the_centre_is_rewarded(position, reward):
    env = make(task={})
    env.reset(options={"state": [*position, 0.0, 0.0]})
    assert env.step(np.zeros(2))[1] == reward


def test_starts_at_rest_far_from_both_axes():
    env = gym.make_vec("ssm_metarl/DoubleIntegrator-v0", 400)
    observations, _ = env.reset(seed=0)
    assert not observations[:, 2:].any()
    sizes = np.abs(observations[:, :2])
    assert 0.8 <= sizes.min() < 0.81 < 0.99 < sizes.max() <= 1.0
    quadrants = np.unique(np.sign(observations[:, :2]), axis=0, return_counts=True)[1]
    assert len(quadrants) == 4
    assert quadrants.min() > 60  # 100 expected, standard deviation 9


def test_a_given_state_stays_as_it_is():
    env = make()
    assert env.reset(options={"state": [0.3, 0.0, 0.1, 0.0]})[0] == pytest.approx([0.3, 0.0, 0.1, 0.0])


@pytest.mark.parametrize("name", ["DoubleIntegrator", "DoubleIntegratorFriction"])
@pytest.mark.parametrize("split", ["train", "interpolation", "extrapolation"])
def test_contexts_are_those_of_the_benchmark(name, split):
    env = gym.make_vec(f"ssm_metarl/{name}-v0", 300, contexts="aib", split=split)
    env.reset(seed=0)
    assert set(env.unwrapped.tasks) == set(AIB_CONTEXTS[name].distribution(split).tasks)


def test_the_sign_flips_in_mid_episode():
    env = make("DoubleIntegratorFriction", switch={"step": 2}, contexts="aib", context="visible")
    assert env.reset(seed=0)[0].shape == (4 + 3,)
    signs = [env.step(np.zeros(2))[-1]["task_params"]["sign"] for _ in range(4)]
    assert signs == [1, -1, -1, -1]


def test_a_friction_is_at_least_zero():
    make(task={"friction": 0.0})
    with pytest.raises(ValueError, match=r"friction must be a number in \[0, 1e\+06\]; got -0.1"):
        make(task={"friction": -0.1})
