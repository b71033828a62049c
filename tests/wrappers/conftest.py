import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces


class ScriptedEnv(gym.Env):
    """Shows the given observations, episode by episode and over again, whatever the actions.

    ``restarts`` are the steps of an episode whose ``info`` says that a trial was restarted.
    """

    def __init__(self, episodes, restarts=(), observation_space=None, action_space=None):
        dim = len(episodes[0][0])
        self.observation_space = observation_space or spaces.Box(-np.inf, np.inf, (dim,))
        self._episodes = np.array(episodes, dtype=self.observation_space.dtype)  # E T+1 D
        self.num_steps = self._episodes.shape[1] - 1
        self._restarts = restarts
        self.action_space = action_space or spaces.Discrete(2)
        self._episode = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._episode, self._t = (self._episode + 1) % len(self._episodes), 0
        return self._episodes[self._episode, 0].copy(), {}

    def step(self, action):
        self._t += 1
        observation = self._episodes[self._episode, self._t].copy()
        truncated = self._t + 1 == self._episodes.shape[1]
        return observation, float(self._t), False, truncated, {"restarted": self._t in self._restarts}


@pytest.fixture
def scripted():
    return ScriptedEnv
