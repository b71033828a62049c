import numpy as np
import pytest
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from ssm_metarl_gym import CartPoleTask, TaskDistribution, Uniform
from ssm_metarl_gym.experiments.curriculum import Curriculum
from ssm_metarl_gym.wrappers import make_sb3_env

ENV_ID = "ssm_metarl/CartPole-v0"


def lengths(share):
    return TaskDistribution(CartPoleTask, {"length": Uniform((0.5 - 0.4 * share, 0.5 + 0.4 * share))})


class Watching(Curriculum):
    """Remembers how far training was when each stage began."""

    def __init__(self, *args, **kwargs):
        super().__init__(self.watch, *args, **kwargs)
        self.begun = []

    def watch(self, share):
        self.begun.append((self.num_timesteps, share))
        return lengths(share)


def test_stages_begin_with_rollouts_and_end_with_the_whole():
    curriculum = Watching(num_steps=64, num_stages=4)
    envs = VecNormalize(make_sb3_env(ENV_ID, 4, family=lengths(0.25), max_episode_steps=1))
    PPO("MlpPolicy", envs, n_steps=2, batch_size=8, n_epochs=1, seed=0, device="cpu").learn(96, callback=curriculum)
    assert curriculum.begun == [(0, 0.25), (16, 0.5), (32, 0.75), (48, 1.0)]
    assert envs.get_attr("family")[0].train == lengths(1.0)
    drawn = np.array([task.length for _ in range(50) for task in envs.get_attr("task") if envs.reset() is not None])
    assert 0.1 <= drawn.min() < 0.2
    assert 0.8 < drawn.max() <= 0.9


def test_tasks_of_a_stage_are_drawn_from_it():
    envs = make_sb3_env(ENV_ID, 4, family=lengths(0.01), max_episode_steps=1)
    curriculum = Watching(num_steps=10**9, num_stages=100)
    PPO("MlpPolicy", envs, n_steps=4, batch_size=8, n_epochs=1, seed=0, device="cpu").learn(32, callback=curriculum)
    assert curriculum.begun == [(0, 0.01)]
    assert all(abs(task.length - 0.5) <= 0.004 for task in envs.get_attr("task"))


def test_single_environments_and_other_algorithms_have_one_too():
    envs = make_vec_env(ENV_ID, 1, env_kwargs={"family": lengths(0.5)})
    curriculum = Watching(num_steps=4, num_stages=2)
    DQN("MlpPolicy", envs, learning_starts=100, buffer_size=10, seed=0, device="cpu").learn(8, callback=curriculum)
    assert [share for _, share in curriculum.begun] == [0.5, 1.0]
    assert envs.get_attr("unwrapped")[0].family.train == lengths(1.0)


def test_training_that_goes_on_begins_at_its_stage():
    curriculum = Watching(num_steps=32, num_stages=2)
    model = PPO("MlpPolicy", make_sb3_env(ENV_ID, 4), n_steps=4, batch_size=8, n_epochs=1, seed=0, device="cpu").learn(
        32
    )
    model.learn(16, callback=curriculum, reset_num_timesteps=False)
    assert curriculum.begun == [(32, 1.0)]


@pytest.mark.parametrize("numbers", [{"num_steps": 0}, {"num_steps": 1, "num_stages": 0}])
def test_numbers_are_checked(numbers):
    with pytest.raises(ValueError, match="must be an int >= 1; got 0"):
        Curriculum(lengths, **numbers)
