"""What files and pickles name is public, so that no move of a module can break them."""

import base64
import copy
import inspect
import io
import json
import pickle
import pickletools
import re
import typing
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO

from ssm_metarl_gym import agents
from ssm_metarl_gym.agents import (
    SSM,
    SSMPPO,
    AdaptationConfig,
    AdapterStats,
    DynamicsModel,
    MetaPolicy,
    SSMFeaturesExtractor,
    SSMPolicy,
)

VECTOR, TWO = spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(2)
WINDOW = spaces.Box(np.tile([-1.0, -1.0, 0.0], (4, 1)), np.ones((4, 3)), dtype=np.float64)
IMAGE = spaces.Box(0, 255, (1, 36, 36), np.uint8)
PUBLIC = {"ssm_metarl_gym.agents", *(f"ssm_metarl_gym.agents.{name}" for name in agents.__all__)}
SMALL = {"ssm_kwargs": {"hidden_dim": 4}}
EXTRACTOR = {"features_extractor_class": SSMFeaturesExtractor, "features_extractor_kwargs": {"features_dim": 4}}


class Still(gym.Env):
    """Nothing happens, in episodes of three steps."""

    action_space = TWO

    def __init__(self, observation_space):
        self.observation_space = observation_space
        self.seen = copy.deepcopy(observation_space).sample()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps_left = 3
        return self.seen, {}

    def step(self, action):
        self.steps_left -= 1
        return self.seen, 0.0, self.steps_left == 0, False, {}


def paths_in_text(text):
    return set(re.findall(r"ssm_metarl_gym(?:\.\w+)*", text))


def paths_in_pickle(pickled):
    """Of classes and functions: their modules, and with these whatever else names one."""
    found = [paths_in_text(argument) for _, argument, _ in pickletools.genops(pickled) if isinstance(argument, str)]
    return set().union(*found)


def paths_in_archive(file):
    """Those in a zip file of pickles, of JSON that holds pickles, and of further such zip files."""
    found = set()
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            if name == "data":
                for value in json.loads(content).values():
                    serialized = value.pop(":serialized:", None) if isinstance(value, dict) else None
                    found |= paths_in_text(json.dumps(value))
                    found |= paths_in_pickle(base64.b64decode(serialized)) if serialized else set()
            elif name.endswith(".pth"):
                found |= paths_in_archive(io.BytesIO(content))
            elif name.endswith(".pkl"):
                found |= paths_in_pickle(content)
    return found


@pytest.mark.parametrize(
    ("algorithm", "policy", "space", "policy_kwargs"),
    [
        (SSMPPO, "SSMPolicy", WINDOW, SMALL | EXTRACTOR),
        pytest.param(SSMPPO, "MultiInputSSMPolicy", spaces.Dict(a=VECTOR), SMALL, marks=pytest.mark.slow),
        pytest.param(SSMPPO, "CnnSSMPolicy", IMAGE, SMALL, marks=pytest.mark.slow),
        (PPO, "MlpPolicy", WINDOW, EXTRACTOR),
    ],
)
def test_an_archive_of_stable_baselines3_names_nothing_inside(tmp_path, algorithm, policy, space, policy_kwargs):
    model = algorithm(policy, Still(space), n_steps=4, batch_size=4, n_epochs=1, policy_kwargs=policy_kwargs)
    model.learn(4).save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    assert "ssm_metarl_gym.agents" in paths_in_archive(tmp_path / "model.zip")
    for path in ("model.zip", "policy"):
        assert paths_in_archive(tmp_path / path) <= PUBLIC
    loaded = algorithm.load(tmp_path / "model", env=Still(space))
    assert type(loaded.rollout_buffer) is type(model.rollout_buffer)
    loaded.learn(4)
    loaded_policy = type(model.policy).load(tmp_path / "policy")
    observation = Still(space).seen
    for one in (loaded_policy, algorithm.load(tmp_path / "model").policy):
        torch.testing.assert_close(one.state_dict(), model.policy.state_dict())
        np.testing.assert_array_equal(
            one.predict(observation, deterministic=True)[0], model.policy.predict(observation, deterministic=True)[0]
        )


def test_paths_inside_would_be_seen(tmp_path):
    """The check above can fail: a function keeps its module."""
    model = PPO("MlpPolicy", Still(VECTOR), n_steps=4, batch_size=4)
    model.inside = [agents.losses.checked_loss]
    model.save(tmp_path / "model")
    assert paths_in_archive(tmp_path / "model.zip") == {"ssm_metarl_gym.agents.losses"}


OBJECTS = {
    "SSM": lambda: SSM(3, 4, 2),
    "SSMFeaturesExtractor": lambda: SSMFeaturesExtractor(WINDOW),
    "SSMPolicy": lambda: SSMPolicy(VECTOR, TWO, float),
    "DynamicsModel": lambda: DynamicsModel(VECTOR, TWO),
    "MetaPolicy of Discrete": lambda: MetaPolicy(VECTOR, TWO),
    "MetaPolicy of Box": lambda: MetaPolicy(VECTOR, VECTOR),
    "AdaptationConfig": lambda: AdaptationConfig(0.1, 1.0, 0.1, 0.9, 0.0, 1),
    "AdapterStats": lambda: AdapterStats(calls=3, loss_mean=1.0),
}


@pytest.mark.parametrize("make", OBJECTS.values(), ids=OBJECTS)
def test_a_pickle_names_nothing_inside_and_copies_are_equal(make):
    given = make()
    pickled = pickle.dumps(given)
    assert paths_in_pickle(pickled) == {"ssm_metarl_gym.agents"}
    for twin in (pickle.loads(pickled), copy.deepcopy(given)):  # noqa: S301
        assert type(twin) is type(given)
        if isinstance(given, torch.nn.Module):
            torch.testing.assert_close(twin.state_dict(), given.state_dict(), rtol=0, atol=0)
        else:
            assert twin == given


@pytest.mark.parametrize("name", agents.__all__)
def test_a_public_class_is_of_the_package_and_can_be_inspected(name):
    kind = getattr(agents, name)
    assert (kind.__module__, kind.__qualname__) == ("ssm_metarl_gym.agents", name)
    assert inspect.getmodule(kind) is agents
    assert not isinstance(kind, type) or inspect.signature(kind).return_annotation is None
    assert inspect.getdoc(kind)
    typing.get_type_hints(kind)
