"""Noise on observations and warm-ups, of all environments whose physics are a few numbers."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

FAMILIES = ["CartPolePolarity", "PendulumPolarity", "PointActuators", "ComplexODE"]
each_family = pytest.mark.parametrize("family", FAMILIES)


def make(family, **kwargs):
    return gym.make(f"ssm_metarl/{family}-v0", **kwargs)


def make_vec(family, num_envs=4, **kwargs):
    return gym.make_vec(f"ssm_metarl/{family}-v0", num_envs, **kwargs)


def play(env, num_steps, seed=0):
    """Observations, and tasks, rewards and states without noise, under the same actions."""
    observations, others = [env.reset(seed=seed)[0]], []
    env.action_space.seed(0)
    for _ in range(num_steps):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        observations.append(observation)
        state = np.asarray(env.unwrapped.state).tolist()
        others.append(
            [np.asarray(part).tolist() for part in (reward, terminated, truncated, info["task_id"])] + [state]
        )
    return np.array(observations), others


@pytest.mark.parametrize("num_steps", [1, 2, 4])
@pytest.mark.parametrize("mode", [mode.value for mode in AutoresetMode])
def test_one_row_is_equal_to_the_single_environment_however_its_warm_up_ends(mode, num_steps, play_both):
    kwargs = {
        "warm_up_steps": 2,
        "max_episode_steps": num_steps,
        "observation_noise": 0.1,
        "switch": {"probability": 0.3},
        "on_failure": "terminate",
    }
    one_row = make_vec("CartPoleSwitch", 1, autoreset_mode=mode, **kwargs)
    play_both(one_row, SyncVectorEnv([lambda: make("CartPoleSwitch", **kwargs)], autoreset_mode=mode), 40)


class TestNoise:
    @each_family
    @pytest.mark.parametrize("make", [make, make_vec], ids=["single", "batched"])
    def test_is_on_observations_alone(self, family, make):
        kwargs = {} if family == "ComplexODE" else {"switch": {"step": 5}}
        exact, expected = play(make(family, **kwargs), 15)
        seen, others = play(make(family, observation_noise=0.1, **kwargs), 15)
        assert others == expected
        noise = (seen - exact).ravel()
        assert np.abs(noise).min() > 0.0
        assert noise.std() == pytest.approx(0.1, rel=0.6)

    @each_family
    def test_has_a_standard_deviation(self, family):
        exact, seen = (play(make_vec(family, 200, observation_noise=scale), 5)[0] for scale in (0.0, 0.3))
        assert (seen - exact).std(axis=(0, 1)) == pytest.approx(np.full(exact.shape[-1], 0.3), rel=0.1)
        assert np.abs(np.corrcoef((seen - exact)[0, :, 0], (seen - exact)[1, :, 0])[0, 1]) < 0.3

    def test_one_seed_gives_one_noise_and_another_another(self):
        one, again, other = (play(make_vec("Pendulum", observation_noise=0.1), 5, seed=seed)[0] for seed in (1, 1, 2))
        assert np.array_equal(one, again)
        assert not np.array_equal(one, other)

    @each_family
    def test_leaves_parameters_that_are_shown(self, family):
        env = make(family, observation_noise=0.1, context="visible", task={})
        size = make(family).observation_space.shape[0]
        shown = [observation[size:].tolist() for observation in play(env, 5)[0]]
        assert len(set(map(tuple, shown))) == 1

    @each_family
    def test_leaves_no_bounds(self, family):
        for env in (make(family, observation_noise=0.1), make_vec(family, observation_noise=0.1)):
            assert np.isinf(env.observation_space.low).all()

    def test_a_masked_reset_draws_for_its_rows_alone(self):
        env = make_vec("Pendulum", observation_noise=0.1, autoreset_mode="Disabled")
        before, _ = env.reset(seed=0)
        after, _ = env.reset(options={"reset_mask": np.array([True, False, False, True])})
        assert np.array_equal(before[1:3], after[1:3])
        assert not np.array_equal(before[[0, 3]], after[[0, 3]])

    @pytest.mark.parametrize("noise", [-0.1, np.nan, np.inf, "much", None])
    def test_refuses_another_scale(self, noise):
        for maker in (make, make_vec):
            with pytest.raises(ValueError, match="observation_noise must be a finite number >= 0; got "):
                maker("Pendulum", observation_noise=noise)


class TestWarmUp:
    @each_family
    @pytest.mark.parametrize("mode", [mode.value for mode in AutoresetMode])
    def test_is_not_rewarded_and_ends_with_a_new_start_in_the_same_task(self, family, mode):
        plain, env = (
            make_vec(family, warm_up_steps=steps, max_episode_steps=9, autoreset_mode=mode) for steps in (0, 4)
        )
        starts = [each.reset(seed=0)[0] for each in (plain, env)]
        assert np.array_equal(*starts)
        rewards, restarts, ids = [], [], []
        env.action_space.seed(0)
        for _ in range(8):
            states = env.unwrapped.state
            _, reward, terminated, _, infos = env.step(env.action_space.sample())
            assert not terminated.any()
            rewards.append(reward)
            restarts.append(infos["restarted"])
            ids.append(infos["task_id"].tolist())
        assert not np.any(rewards[:4])
        assert np.all(rewards[4:] != np.zeros(4))
        assert np.all(restarts[3])
        assert states.shape == env.unwrapped.state.shape
        if family != "CartPolePolarity":  # in which a fall restarts, too
            assert np.sum(restarts) == 4
        assert len(set(map(tuple, ids))) == 1

    def test_a_fall_in_it_ends_no_episode(self):
        for on_failure in ("terminate", "restart"):
            env = make("CartPole", warm_up_steps=3, on_failure=on_failure)
            env.reset(seed=0, options={"state": [0.0, 0.0, 0.25, 0.0]})
            _, reward, terminated, _, info = env.step(0)
            assert (reward, terminated, info["restarted"]) == (0.0, False, True)
            assert np.abs(env.unwrapped.state).max() <= 0.05

    def test_each_episode_has_one(self):
        env = make("PointActuators", warm_up_steps=2)
        for _ in range(2):
            env.reset(seed=0)
            told = [env.step(np.zeros(2))[-1]["restarted"] for _ in range(4)]
            assert told == [False, True, False, False]

    def test_of_nothing_tells_nothing(self):
        env = make("PointActuators")
        assert "restarted" not in env.reset()[1]

    @pytest.mark.parametrize("steps", [-1, 2.5, "a", None])
    def test_refuses_other_numbers_of_steps(self, steps):
        for maker in (make, make_vec):
            with pytest.raises(ValueError, match="warm_up_steps must be an int >= 0; got "):
                maker("Pendulum", warm_up_steps=steps)
