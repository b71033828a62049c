import numpy as np
import pytest
from gymnasium import spaces

from ssm_metarl_gym.envs.observation_noise import ObservationNoise


def make(scale, num_rows=4, width=3):
    noise = ObservationNoise(scale, num_rows, width)
    noise.rng = np.random.default_rng(0)
    return noise


def test_rows_keep_their_noise_until_it_is_drawn_again():
    noise, observations = make(0.5), np.zeros((4, 3), dtype=np.float32)
    assert not noise.add(observations).any()
    noise.draw(np.arange(4))
    first = noise.add(observations)
    assert np.array_equal(noise.add(observations), first)
    noise.draw(np.array([1, 3]))
    changed = (noise.add(observations) != first).all(axis=1)
    assert changed.tolist() == [False, True, False, True]
    assert first.dtype == np.float32
    assert first == pytest.approx(0.5 * np.random.default_rng(0).standard_normal((4, 3)), rel=1e-6)


def test_without_noise_nothing_is_drawn_or_copied():
    noise, observations = make(0.0), np.ones((4, 3))
    state = noise.rng.bit_generator.state
    noise.draw(np.arange(4))
    assert noise.rng.bit_generator.state == state
    assert noise.add(observations) is observations


def test_noise_takes_the_bounds_from_a_space():
    space = spaces.Box(-1.0, 1.0, (3,), np.float32)
    assert make(0.0).space(space) is space
    assert make(0.1).space(space) == spaces.Box(-np.inf, np.inf, (3,), np.float32)
