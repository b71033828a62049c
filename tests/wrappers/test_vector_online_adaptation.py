import copy
import itertools
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO
from torch import nn

from ssm_metarl_gym import budget
from ssm_metarl_gym.agents import AdaptationConfig, Adapter, DynamicsModel
from ssm_metarl_gym.wrappers import OnlineAdaptation, SB3VecEnv, VectorOnlineAdaptation

BOUNDS = AdaptationConfig(
    lr=0.2, grad_clip_norm=1.0, trust_region_eps=0.3, ema_decay=0.9, entropy_weight=0.0, max_steps_per_call=2
)
LENGTHS = (3, 5, 9)  # of the episodes of each row
CARTPOLE, PENDULUM = "ssm_metarl/CartPolePolarity-v0", "ssm_metarl/PendulumSwitch-v0"


def make_adapter(observation_space, action_space, adapts="last_layer", bounds=BOUNDS, **options):
    torch.manual_seed(0)
    core = nn.Sequential(nn.Linear(DynamicsModel.input_dim(observation_space, action_space), 8), nn.Tanh())
    model = DynamicsModel(observation_space, action_space, core, adapts=adapts)
    model.target_scale.fill_(0.5)
    return Adapter(model, bounds, **options)


@pytest.fixture
def make_envs(scripted):
    """Makes environments whose rows show random episodes of their own lengths, the last row with restarts."""

    def make():
        rng = np.random.default_rng(0)
        episodes = [rng.normal(size=(4, length + 1, 2)) for length in LENGTHS]
        return [scripted(own, restarts=(2, 4) if i == 2 else ()) for i, own in enumerate(episodes)]

    return make


def play_single(env, actions):
    """What a wrapped environment shows, step by step: the observation and the report; a reset takes no step."""
    observation, info = env.reset()
    shown = [(observation, info["adaptation"])]
    for action in actions:
        observation, _, terminated, truncated, info = env.step(action)
        shown.append((observation, info["adaptation"]))
        if terminated or truncated:
            observation, info = env.reset()
            shown.append((observation, info["adaptation"]))
    return shown


def assert_close(shown, expected):
    assert len(shown) == len(expected)
    for (observation, report), (own_observation, own_report) in zip(shown, expected, strict=True):
        np.testing.assert_allclose(observation, own_observation, rtol=1e-4, atol=1e-5)
        assert report.keys() == own_report.keys()
        for name, value in own_report.items():
            np.testing.assert_allclose(report[name], np.nan if value is None else value, rtol=1e-4, atol=1e-5)


def row_of(infos, i):
    return {name: value[i] for name, value in infos["adaptation"].items()}


def largest_deviation(prediction, target):
    """A loss that the rows share no sum of."""
    return (prediction - target).abs().amax()


@pytest.mark.each_value
@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize(
    ("adapts", "options", "loss_fn"),
    [
        ("last_layer", {}, nn.HuberLoss()),
        ("last_layer", {"restore": "never", "every": 2, "window": 3}, largest_deviation),
        ("all", {"restore": "call", "warmup": 3, "window": 4}, nn.HuberLoss()),
        ("all", {}, largest_deviation),
    ],
)
def test_every_row_is_that_of_a_single_wrapper(make_envs, mode, adapts, options, loss_fn):
    options = options | {"loss_fn": loss_fn, "observe_predictions": True}
    vector = SyncVectorEnv([lambda env=env: env for env in make_envs()], autoreset_mode=mode)
    adapter = make_adapter(vector.single_observation_space, vector.single_action_space, adapts)
    envs = VectorOnlineAdaptation(vector, adapter, **options)
    actions = np.random.default_rng(1).integers(2, size=(25, len(LENGTHS)))

    observations, infos = envs.reset()
    shown = [[(observations[i], row_of(infos, i))] for i in range(len(LENGTHS))]
    taken = [[] for _ in LENGTHS]
    ended = np.zeros(len(LENGTHS), dtype=bool)
    for chosen in actions:
        began = ended if mode is AutoresetMode.NEXT_STEP else np.zeros_like(ended)
        observations, _, terminations, truncations, infos = envs.step(chosen)
        ended = terminations | truncations
        for i in range(len(LENGTHS)):
            if not began[i]:
                taken[i].append(chosen[i])
            if mode is AutoresetMode.SAME_STEP and ended[i]:
                shown[i].append((infos["final_obs"][i], row_of(infos["final_info"], i)))
            shown[i].append((observations[i], row_of(infos, i)))
        if mode is AutoresetMode.DISABLED and ended.any():
            observations, infos = envs.reset(options={"reset_mask": ended})
            for i in ended.nonzero()[0]:
                shown[i].append((observations[i], row_of(infos, i)))

    for i, env in enumerate(make_envs()):
        expected = play_single(OnlineAdaptation(env, adapter, **options), taken[i])
        if mode is AutoresetMode.NEXT_STEP and ended[i]:
            expected.pop()  # the reset that comes with the next step
        assert_close(shown[i], expected)


@pytest.mark.parametrize("env_id", [CARTPOLE, PENDULUM])
def test_rewards_flags_and_the_wrapped_observations_stay_as_they_are(env_id):
    plain = gym.make_vec(env_id, 4, max_episode_steps=12)
    adapter = make_adapter(plain.single_observation_space, plain.single_action_space)
    envs = VectorOnlineAdaptation(gym.make_vec(env_id, 4, max_episode_steps=12), adapter, observe_predictions=True)
    dim = plain.single_observation_space.shape[0]
    assert envs.observation_space.shape[1] > dim
    plain.action_space.seed(0)
    np.testing.assert_array_equal(plain.reset(seed=3)[0], envs.reset(seed=3)[0][:, :dim])
    for _ in range(30):
        actions = plain.action_space.sample()
        (observations, *rest, infos), (own, *own_rest, own_infos) = plain.step(actions), envs.step(actions)
        np.testing.assert_array_equal(observations, own[:, :dim])
        assert own in envs.observation_space
        assert all(map(np.array_equal, rest, own_rest))
        assert own_infos.keys() == infos.keys() | {"adaptation"}


def test_predictions_are_those_of_the_adapted_rows():
    vector = gym.make_vec(CARTPOLE, 3)
    adapter = make_adapter(vector.single_observation_space, vector.single_action_space)
    envs = VectorOnlineAdaptation(vector, adapter, observe_predictions=True, clip=100.0)
    envs.reset(seed=0)
    shown, *_ = envs.step(np.array([0, 1, 0]))
    observations = np.repeat(shown[:, None, :4], 2, axis=1)
    predictions = envs.predict(observations, np.tile([0, 1], (3, 1)))
    np.testing.assert_allclose(predictions.flatten(1).numpy(), shown[:, 4:], rtol=1e-6)
    assert not torch.equal(predictions[0], predictions[1])


def test_the_adapter_that_is_given_stays_as_it_is():
    vector = gym.make_vec(CARTPOLE, 3)
    adapter = make_adapter(vector.single_observation_space, vector.single_action_space)
    before = copy.deepcopy(adapter.model.state_dict())
    envs = VectorOnlineAdaptation(vector, adapter)
    envs.reset(seed=0)
    envs.step(np.array([0, 1, 0]))
    assert (envs.adapter.stats.steps > 0).all()
    assert adapter.stats.calls == 0
    assert all(torch.equal(value, before[name]) for name, value in adapter.model.state_dict().items())


def test_calls_that_a_budget_ends_are_counted(monkeypatch):
    seconds = itertools.count()
    monkeypatch.setattr(budget, "perf_counter", lambda: next(seconds))
    vector = gym.make_vec(CARTPOLE, 3)
    adapter = make_adapter(vector.single_observation_space, vector.single_action_space, budget_ms=2500.0)
    options = {"change_ratio": np.inf, "outlier_error": np.inf}
    single = OnlineAdaptation(gym.make(CARTPOLE), adapter, **options)
    envs = VectorOnlineAdaptation(vector, adapter, **options)
    assert single.reset(seed=0)[1]["adaptation"]["cut_calls"] == 0
    envs.reset(seed=0)
    for num_calls in (1, 2, 3):
        report = single.step(0)[-1]["adaptation"]
        assert (report["steps"], report["cut_calls"]) == (num_calls, num_calls)
        reports = envs.step(np.zeros(3, dtype=int))[-1]["adaptation"]
        assert reports["steps"].tolist() == reports["cut_calls"].tolist() == 3 * [num_calls]


def test_twins_adapt_to_what_is_expected_and_the_rows_as_without_them():
    def make():
        vector = gym.make_vec(CARTPOLE, 3)
        return VectorOnlineAdaptation(vector, make_adapter(vector.single_observation_space, vector.single_action_space))

    alone, paired = make(), make()
    twins = paired.add_twins()
    states = alone.model.encode(np.zeros((3, 4), np.float32), np.ones(3, np.int64))[:, None]
    for envs in (alone, paired):
        envs.reset(seed=0)
    for _ in range(5):
        paired.expect(torch.full((3, 4), 2.0))
        own, others = (envs.step(np.ones(3, dtype=np.int64))[-1]["adaptation"] for envs in (alone, paired))
        np.testing.assert_allclose(own["loss"], others["loss"], rtol=1e-5)
        assert own.keys() == others.keys()
    torch.testing.assert_close(paired.adapter.predict(states), alone.adapter.predict(states))
    distances = [(predict(states) - 2.0).square().mean().item() for predict in (twins.predict_twins, twins.predict)]
    assert distances[0] < distances[1]


def test_copies_go_on_alike():
    vector = gym.make_vec(CARTPOLE, 3)
    adapter = make_adapter(vector.single_observation_space, vector.single_action_space)
    envs = VectorOnlineAdaptation(vector, adapter, observe_predictions=True)
    envs.reset(seed=0)
    envs.step(np.array([0, 1, 0]))
    for twin in (copy.deepcopy(envs), pickle.loads(pickle.dumps(envs))):  # noqa: S301
        original = copy.deepcopy(envs)
        for _ in range(3):
            np.testing.assert_array_equal(original.step(np.ones(3, dtype=int))[0], twin.step(np.ones(3, dtype=int))[0])


def test_ppo_learns_through_it():
    vector = gym.make_vec(CARTPOLE, 8, autoreset_mode="SameStep")
    adapter = make_adapter(vector.single_observation_space, vector.single_action_space)
    envs = SB3VecEnv(VectorOnlineAdaptation(vector, adapter, observe_predictions=True))
    model = PPO("MlpPolicy", envs, n_steps=8, batch_size=32, seed=0, device="cpu").learn(64)
    assert model.num_timesteps == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 2, "warmup": 3}, "warmup must be at most window"),
        ({"every": 0}, "every must be an int >= 1"),
        ({"restore": "always"}, "restore must be one of"),
        ({"clip": 0.0}, "clip must be a number > 0"),
        ({"observe_predictions": True, "probe_actions": [2]}, "probe_actions must be one or more actions"),
    ],
)
def test_wrong_options(options, message):
    vector = gym.make_vec(CARTPOLE, 3)
    adapter = make_adapter(vector.single_observation_space, vector.single_action_space)
    with pytest.raises(ValueError, match=message):
        VectorOnlineAdaptation(vector, adapter, **options)


def test_a_model_of_other_spaces():
    pendulum = gym.make_vec(PENDULUM, 3)
    adapter = make_adapter(pendulum.single_observation_space, pendulum.single_action_space)
    with pytest.raises(ValueError, match="the model must be made for the spaces of the environment"):
        VectorOnlineAdaptation(gym.make_vec(CARTPOLE, 3), adapter)


@pytest.mark.parametrize("restore", ["episode", "never"])
def test_every_row_doubts_and_begins_anew_where_a_single_wrapper_does(scripted, restore):
    quiet = 0.01 * np.random.default_rng(0).normal(size=(3, 14, 2))
    quiet[0, [4, 6], 0] = 30.0, 1.0  # an outlier and one surprise
    quiet[1, [5, 6, 8, 9, 10]] += 1.0  # two surprises and then a change
    quiet[2, [4, 5, 8]] -= 1.0  # a change with outliers in its midst
    quiet[2, 6, 1] = np.nan
    # What follows a missing observation is missing as well.
    scripts = [np.concatenate([np.zeros((1, 2)), changes.cumsum(axis=0)])[None] for changes in np.nan_to_num(quiet)]
    scripts[2][0, 7] = np.nan
    vector = SyncVectorEnv([lambda own=own: scripted(own) for own in scripts], autoreset_mode=AutoresetMode.DISABLED)
    model = make_adapter(vector.single_observation_space, vector.single_action_space).model
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    adapter = Adapter(model, BOUNDS)
    envs = VectorOnlineAdaptation(vector, adapter, restore=restore, observe_predictions=True)
    singles = [OnlineAdaptation(scripted(own), adapter, restore=restore, observe_predictions=True) for own in scripts]
    for env in (envs, *singles):
        env.reset()
    for _ in range(14):
        observations, *_, infos = envs.step(np.zeros(3, dtype=int))
        for i, single in enumerate(singles):
            observation, *_, info = single.step(0)
            np.testing.assert_allclose(observations[i], observation, rtol=1e-4, atol=1e-5)
            for name in ("num_transitions", "num_outliers", "num_suspicions", "num_changes", "steps"):
                assert infos["adaptation"][name][i] == info["adaptation"][name], (name, i)
    counts = [infos["adaptation"][f"num_{name}"].tolist() for name in ("outliers", "suspicions", "changes")]
    assert counts == [[1, 0, 2], [1, 4, 2], [0, 1, 1]]
