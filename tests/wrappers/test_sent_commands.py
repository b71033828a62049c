import functools

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import nn

from ssm_metarl_gym.agents import DynamicsModel, KalmanAdapter
from ssm_metarl_gym.wrappers import ActionCorrection, OnlineAdaptation, VectorOnlineAdaptation

BOX = spaces.Box(np.array([0.0, -1.0], dtype=np.float32), np.array([4.0, 1.0], dtype=np.float32))


class Plant(gym.Env):
    """Two motors, of which nothing is seen but what events there are: at 2 a restart, at 4 a sensor that fails."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = BOX

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.t += 1
        observation = np.array([np.nan if self.t == 4 else 0.1 * self.t], dtype=np.float32)
        return observation, 0.0, False, False, {"restarted": self.t == 2}


def make_adapter(largest_delay):
    model = DynamicsModel(Plant.observation_space, BOX, nn.Identity(), adapts="action_map")
    model.residual_variance.fill_(0.1)
    return KalmanAdapter(model, largest_delay=largest_delay)


def commands_of(env):
    """Those of the last transition: its own and those before it, the latest first."""
    encoded = env.latest.encoded[:, 1:]
    return encoded.unflatten(1, (-1, 2)).numpy()


ACTIONS = np.array([[0.0, 0.5], [4.0, 0.0], [3.0, 1.0], [2.0, -1.0], [1.0, 0.25], [9.0, -9.0]], dtype=np.float32)
# In half ranges around the middle, (2, 0), and within the bounds.
COMMANDS = np.array([[-1.0, 0.5], [1.0, 0.0], [0.5, 1.0], [0.0, -1.0], [-0.5, 0.25], [1.0, -1.0]])


@pytest.mark.parametrize("restore", ["episode", "never"])
def test_every_command_is_known_whatever_becomes_of_its_transition(restore):
    env = OnlineAdaptation(Plant(), make_adapter(2), restore=restore)
    for _ in range(2):  # motors are idle again in every episode
        env.reset(seed=0)
        known = np.concatenate([np.zeros((2, 2)), COMMANDS])
        for t, action in enumerate(ACTIONS):
            env.step(action)
            np.testing.assert_allclose(commands_of(env)[0], known[[t + 2, t + 1, t]])
            assert np.isnan(env.latest.errors[0]) == (t in (1, 3, 4))
    # Those onto the restart, and to and from the sensor that failed, are not learned from.
    assert env.adapter.stats.steps == (3 if restore == "episode" else 6)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_rows_know_theirs_and_begin_their_episodes_with_none(mode):
    makers = [functools.partial(gym.wrappers.TimeLimit, Plant(), 3), Plant]
    envs = VectorOnlineAdaptation(gym.vector.SyncVectorEnv(makers, autoreset_mode=mode), make_adapter(1))
    envs.reset(seed=0)
    ended = np.zeros(2, dtype=bool)
    sent = np.zeros((2, 2))
    for action, command in zip(ACTIONS, COMMANDS, strict=True):
        if mode is AutoresetMode.DISABLED and ended.any():
            envs.reset(options={"reset_mask": ended})
            sent[ended] = 0.0
        begins = ended & (mode is AutoresetMode.NEXT_STEP)
        _, _, _, truncations, _ = envs.step(np.stack([action, action]))
        found = commands_of(envs)
        np.testing.assert_allclose(found[~begins, 0], np.tile(command, (2, 1))[~begins])
        np.testing.assert_allclose(found[~begins, 1], sent[~begins])
        sent[:] = command
        sent[begins | (truncations & (mode is AutoresetMode.SAME_STEP))] = 0.0
        ended = truncations


def test_beside_a_reference_without_a_map_a_twin_adapts_to_as_many():
    reference = DynamicsModel(Plant.observation_space, BOX, nn.Identity())
    env = ActionCorrection(OnlineAdaptation(Plant(), make_adapter(1)), reference)
    env.reset(seed=0)
    for action in ACTIONS:
        assert "effect" in env.step(action)[-1]["correction"]


def test_without_delays_nothing_is_behind():
    env = OnlineAdaptation(Plant(), make_adapter(0))
    env.reset(seed=0)
    env.step(ACTIONS[0])
    assert env.latest.encoded.shape == (1, 3)


def test_a_model_says_which_commands_are_missing():
    model = make_adapter(2).model
    encoded = model.encode(np.zeros((5, 1), dtype=np.float32), np.tile(ACTIONS[0], (5, 1)))
    delays = torch.tensor([0, 2, 1])
    with pytest.raises(ValueError, match=r"must end with the 2 commands of 2 numbers .* got 0 numbers more than"):
        model.with_delays(encoded, delays)
    behind = torch.arange(20.0).view(5, 4)
    late = model.with_delays(torch.cat([encoded, behind], dim=1), delays)
    assert torch.equal(late[:, 0], encoded)
    assert torch.equal(late[:, 1], torch.cat([encoded[:, :1], behind[:, 2:]], dim=1))
    assert torch.equal(late[:, 2], torch.cat([encoded[:, :1], behind[:, :2]], dim=1))
    # What a model predicts of a transition, older commands do not change.
    assert torch.equal(model(torch.cat([encoded, behind], dim=1)), model(encoded))
