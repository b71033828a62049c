import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.agents import DynamicsModel
from ssm_metarl_gym.agents.meta_training.reference import fit_reference


class Failing(gym.Env):
    """A point that is pushed; every few steps its sensor fails."""

    observation_space = spaces.Box(-9.0, 9.0, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self, every=7):
        self.every = every

    def reset(self, *, seed=None, options=None):
        self.position, self.num_steps = 0.0, 0
        return self.show(), {}

    def step(self, action):
        self.num_steps += 1
        self.position = 0.9 * self.position + float(action) - 0.5
        return self.show(), 0.0, False, self.num_steps == 50, {}

    def show(self):
        fails = self.num_steps % self.every == self.every - 1
        return np.array([np.nan if fails else self.position], dtype=np.float32)


gym.register("failing/Failing-v0", Failing)


def fit(**env_kwargs):
    model = DynamicsModel(Failing.observation_space, Failing.action_space, nn.Linear(3, 4))
    return fit_reference(model, "failing/Failing-v0", env_kwargs, seed=0, num_updates=2)


def test_nothing_is_learned_from_transitions_to_and_from_what_is_no_observation():
    assert all(weight.isfinite().all() for weight in fit().parameters())


def test_where_there_is_nothing_else_it_says_so():
    with pytest.raises(ValueError, match=r"finite ones; of 40000 in failing/Failing-v0 none does\. Mend"):
        fit(every=1)


@pytest.mark.parametrize(
    ("env_id", "env_kwargs"),
    [
        ("ssm_metarl/CartPoleSwitch-v0", {}),
        ("ssm_metarl/PointActuators-v0", {"switch": {"step": 50}}),
    ],
)
def test_the_task_is_the_same_throughout_where_the_environment_switches_it(env_id, env_kwargs):
    """It is the model of one physics: the same as in the environment without its switch."""

    def fit_in(**env_kwargs):
        env = gym.make(env_id, **env_kwargs)
        torch.manual_seed(0)
        core = nn.Linear(DynamicsModel.input_dim(env.observation_space, env.action_space), 4)
        model = DynamicsModel(env.observation_space, env.action_space, core)
        return fit_reference(model, env_id, env_kwargs, seed=0, num_updates=20).state_dict()

    switched, fixed = fit_in(**env_kwargs, task={}), fit_in(switch=None, task={})
    assert all(torch.equal(switched[name], fixed[name]) for name in fixed)
