import gymnasium as gym
import numpy as np
import onnxruntime
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
from torch.distributions import Distribution

from ssm_metarl_gym.agents import SSMPPO, SSMFeaturesExtractor, export_onnx
from ssm_metarl_gym.wrappers import HistoryWindow

ROWS = 2


class Parts(gym.ObservationWrapper):
    """An observation as a dictionary of two parts."""

    def __init__(self, env):
        super().__init__(env)
        low, high = env.observation_space.low, env.observation_space.high
        self.observation_space = spaces.Dict({"a": spaces.Box(low[:1], high[:1]), "c": spaces.Box(low[1:], high[1:])})

    def observation(self, observation):
        return {"a": observation[:1], "c": observation[1:]}


def signs(env):
    """Observations of which the signs alone are seen."""
    space = spaces.MultiBinary(env.observation_space.shape)
    return gym.wrappers.TransformObservation(env, lambda observation: (observation > 0.0).astype(np.int8), space)


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def largest_difference(model, path, num_steps=1000):
    """Of actions and states, between the file and ``predict``, along episodes of the environment with their resets."""
    runtime, env = session(path), model.get_env()
    raw = env.venv if isinstance(env, VecNormalize) else env
    has_state = "state" in [one.name for one in runtime.get_inputs()]
    observations, starts, state, difference = raw.reset(), np.ones(raw.num_envs, dtype=bool), None, 0.0
    memory = model.policy.initial_state(raw.num_envs).numpy() if has_state else None
    for _ in range(num_steps):
        shown = env.normalize_obs(observations) if env is not raw else observations
        actions, state = model.predict(shown, state, starts, deterministic=True)
        parts = observations if isinstance(observations, dict) else {"": observations}
        inputs = {f"observation.{key}" if key else "observation": part for key, part in parts.items()}
        outputs = runtime.run(None, inputs | ({"state": memory, "start": starts} if has_state else {}))
        assert outputs[0].shape == actions.shape
        assert outputs[0].dtype == actions.dtype
        difference = max(difference, np.abs(outputs[0].astype(float) - actions).max())
        if has_state:
            memory = outputs[1]
            difference = max(difference, np.abs(memory - state).max())
        observations, _, starts, _ = raw.step(actions)
    return difference


@pytest.mark.slow
def test_a_policy_that_remembers_equals_predict_over_a_thousand_steps_with_resets(tmp_path):
    env = VecNormalize(make_vec_env("ssm_metarl/CartPole-v0", ROWS))
    model = SSMPPO("SSMPolicy", env, n_steps=32).learn(64)
    checks = Distribution._validate_args
    model.policy.set_training_mode(True)
    path = tmp_path / "new" / "policy.onnx"
    model.export_onnx(path)
    assert model.policy.training
    assert Distribution._validate_args == checks
    assert largest_difference(model, path) < 1e-5
    assert [one.name for one in session(path).get_inputs()] == ["observation", "state", "start"]
    assert [one.name for one in session(path).get_outputs()] == ["action", "next_state"]
    assert [one.name for one in path.parent.iterdir()] == ["policy.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: SSMPPO("SSMPolicy", VecNormalize(make_vec_env("ssm_metarl/PendulumPolarity-v0", ROWS)), n_steps=32),
        lambda: SSMPPO(
            "MultiInputSSMPolicy", VecNormalize(make_vec_env(lambda: Parts(gym.make("CartPole-v1")), ROWS)), n_steps=32
        ),
        lambda: PPO(
            "MlpPolicy",
            VecNormalize(make_vec_env(lambda: HistoryWindow(gym.make("ssm_metarl/CartPole-v0"), 16), ROWS)),
            n_steps=32,
            policy_kwargs={"features_extractor_class": SSMFeaturesExtractor},
        ),
        lambda: PPO(
            "MultiInputPolicy",
            make_vec_env(lambda: Parts(gym.make("Pendulum-v1")), ROWS),
            n_steps=32,
            policy_kwargs={"features_extractor_class": SSMFeaturesExtractor},
        ),
        lambda: PPO("MlpPolicy", make_vec_env("FrozenLake-v1", ROWS), n_steps=32),
        lambda: SSMPPO("SSMPolicy", make_vec_env(lambda: signs(gym.make("CartPole-v1")), ROWS), n_steps=32),
        lambda: PPO("MlpPolicy", make_vec_env("Pendulum-v1", ROWS), n_steps=32, use_sde=True),
        lambda: SAC("MlpPolicy", make_vec_env("Pendulum-v1", ROWS), learning_starts=10),
        lambda: DQN("MlpPolicy", make_vec_env("CartPole-v1", ROWS), learning_starts=10),
    ],
    ids=["box", "parts", "window", "parts without memory", "discrete observations", "signs", "gSDE", "SAC", "DQN"],
)
def test_any_policy_equals_predict(make, tmp_path):
    model = make().learn(64)
    export_onnx(model, tmp_path / "policy.onnx")
    assert largest_difference(model, tmp_path / "policy.onnx") < 1e-5


@pytest.mark.slow
def test_a_policy_alone_takes_its_normaliser_as_an_argument(tmp_path):
    env = VecNormalize(make_vec_env("Pendulum-v1", ROWS))
    model = PPO("MlpPolicy", env, n_steps=32).learn(64)
    export_onnx(model.policy, tmp_path / "policy.onnx", normalizer=env)
    assert largest_difference(model, tmp_path / "policy.onnx", 100) < 1e-5


class Acting(gym.Env):
    """Two numbers, and actions of a space."""

    observation_space = spaces.Box(-9.0, 9.0, (2,))

    def __init__(self, action_space):
        self.action_space = action_space


def actions_of_file(model, path):
    export_onnx(model, path)
    observations = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    (actions,) = session(path).run(None, {"observation": observations})
    return actions, model.predict(observations, deterministic=True)[0]


@pytest.mark.slow
def test_actions_are_within_the_bounds_where_rounding_carries_predict_beyond(tmp_path):
    space = spaces.Box(np.float32([-0.1, -0.3, -0.7]), np.float32([0.7, 1.1, 0.4]))
    model = SAC("MlpPolicy", Acting(space), seed=0, device="cpu")
    model.policy.actor.mu.weight.data.mul_(1e5)
    actions, expected = actions_of_file(model, tmp_path / "policy.onnx")
    assert not all(map(space.contains, expected))
    assert all(map(space.contains, actions))
    np.testing.assert_allclose(actions, expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("space", [spaces.Discrete(3, start=-1), spaces.MultiDiscrete([3, 2], start=[1, 5])])
def test_choices_are_counted_from_the_start_of_their_space(space, tmp_path):
    model = PPO("MlpPolicy", Acting(space), seed=0, device="cpu")
    model.policy.action_net.weight.data.mul_(100.0)
    actions, expected = actions_of_file(model, tmp_path / "policy.onnx")
    assert all(map(space.contains, actions))
    assert np.array_equal(actions, expected + space.start)
    assert len(np.unique(actions, axis=0)) > 1


def test_what_is_no_policy_is_refused(tmp_path):
    with pytest.raises(ValueError, match="algorithm of Stable-Baselines3 or a policy; got Linear"):
        export_onnx(torch.nn.Linear(1, 1), tmp_path / "policy.onnx")


def test_a_policy_with_an_lstm_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must have no LSTM"):
        export_onnx(RecurrentPPO("MlpLstmPolicy", "CartPole-v1"), tmp_path / "policy.onnx")


def test_a_normaliser_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="normalizer must be a VecNormalize or None; got int"):
        export_onnx(PPO("MlpPolicy", "CartPole-v1"), tmp_path / "policy.onnx", normalizer=3)


def test_a_normaliser_of_other_observations_than_the_policy_s_is_refused(tmp_path):
    env = VecFrameStack(VecNormalize(make_vec_env("CartPole-v1", ROWS)), 2)
    with pytest.raises(ValueError, match=r"of the policy's shape \(8,\); got one of \(4,\)\. Train with it around"):
        export_onnx(PPO("MlpPolicy", env), tmp_path / "policy.onnx")
