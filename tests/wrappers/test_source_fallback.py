import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn
from torch.nn import functional as F

from ssm_metarl_gym.agents import AdaptationConfig, Adapter, DynamicsModel
from ssm_metarl_gym.bundle.source_fallback import SourceFallback
from ssm_metarl_gym.bundle.surprises import Verdict
from ssm_metarl_gym.wrappers import OnlineAdaptation, VectorOnlineAdaptation

BOUNDS = AdaptationConfig(
    lr=0.3, grad_clip_norm=10.0, trust_region_eps=10.0, ema_decay=0.9, entropy_weight=0.0, max_steps_per_call=3
)
NEVER_SURPRISED = {"outlier_error": np.inf, "change_ratio": np.inf}
ALL = np.ones(1, dtype=np.bool_)


def learn(fallback, adapted_error, source_error, *, outlier=False, suspicion=False, change=False):
    verdict = Verdict(*np.array([[outlier], [suspicion], [change]]))
    fallback.learn(np.array([adapted_error]), np.array([source_error]), ALL, verdict)
    return bool(fallback.used[0])


def test_the_source_is_used_where_the_running_mean_of_its_errors_is_smaller():
    fallback = SourceFallback(1)
    assert not fallback.used[0]
    # The means: (.2, .1), (.2, .19), (.18, .271), (.262, .3439), (.3358, .30951).
    errors = [(0.2, 0.1), (0.2, 1.0), (0.0, 1.0), (1.0, 1.0), (1.0, 0.0)]
    assert [learn(fallback, *pair) for pair in errors] == [True, True, False, False, True]
    assert fallback.num_used[0] == 3


def test_equal_errors_are_no_reason():
    fallback = SourceFallback(1)
    assert not learn(fallback, 0.1 + 1e-5, 0.1)


def test_what_is_left_out_says_nothing_and_a_change_begins_anew():
    fallback = SourceFallback(1)
    assert learn(fallback, 0.2, 0.1)
    assert learn(fallback, 0.0, 40.0, outlier=True)
    assert learn(fallback, 0.0, 40.0, suspicion=True)
    assert learn(fallback, 0.0, np.nan)
    assert learn(fallback, np.inf, 0.1)
    assert not learn(fallback, 0.2, 0.1, change=True)
    assert not learn(fallback, 0.1, 0.2)
    fallback.forget(ALL)
    assert fallback.num_used[0] == 0


def make_adapter(space, action_space, adapts="last_layer", bounds=BOUNDS):
    torch.manual_seed(0)
    core = nn.Sequential(nn.Linear(DynamicsModel.input_dim(space, action_space), 8), nn.Tanh())
    return Adapter(DynamicsModel(space, action_space, core, adapts=adapts), bounds)


def noise(num_steps=30):
    """What nothing can predict: whoever adapts to the last few changes does worse than who does not."""
    return np.cumsum(np.random.default_rng(1).normal(size=(2, num_steps + 1, 2)), axis=1)


@pytest.mark.parametrize("adapts", ["last_layer", "all"])
def test_what_adapting_spoils_the_source_predicts(scripted, adapts):
    script = scripted(noise())
    adapter = make_adapter(script.observation_space, script.action_space, adapts)
    env = OnlineAdaptation(script, adapter, window=1, observe_predictions=True, clip=100.0, **NEVER_SURPRISED)
    observation, _ = env.reset()
    flags = []
    for _ in range(30):
        observation, *_, info = env.step(0)
        model = adapter.model if info["adaptation"]["source_used"] else env.model
        with torch.no_grad():
            expected = model(model.encode(np.tile(observation[:2], (2, 1)), np.array([0, 1])))
        np.testing.assert_array_equal(observation[2:], expected.flatten().numpy())
        np.testing.assert_allclose(env.predict(observation[None, :2], np.array([1])), expected[1:], rtol=1e-5)
        flags.append(info["adaptation"]["source_used"])
    assert 15 < sum(flags) == info["adaptation"]["num_source_used"] < 30
    assert env.reset()[1]["adaptation"]["num_source_used"] == 0


@pytest.mark.parametrize("adapts", ["last_layer", "all"])
def test_every_row_uses_the_source_where_a_single_wrapper_does(scripted, adapts):
    rng = np.random.default_rng(0)
    # A row of noise, one whose physics the model learns, and one that falls and rests.
    learnable = np.cumsum(np.full((1, 21, 2), 0.3) + 0.01 * rng.normal(size=(1, 21, 2)), axis=1)
    scripts = [noise(20)[:1], learnable, noise(9)[1:]]
    options = {"window": 2, "observe_predictions": True, "loss_fn": F.huber_loss, **NEVER_SURPRISED}
    vector = SyncVectorEnv([lambda own=own: scripted(own) for own in scripts], autoreset_mode=AutoresetMode.DISABLED)
    adapter = make_adapter(vector.single_observation_space, vector.single_action_space, adapts)
    envs = VectorOnlineAdaptation(vector, adapter, **options)
    singles = [OnlineAdaptation(scripted(own), adapter, **options) for own in scripts]
    for env in (envs, *singles):
        env.reset()
    for _ in range(9):
        observations, *_, infos = envs.step(np.zeros(3, dtype=int))
        for i, single in enumerate(singles):
            observation, *_, info = single.step(0)
            np.testing.assert_allclose(observations[i], observation, rtol=1e-4, atol=1e-5)
            for name in ("source_used", "num_source_used"):
                assert infos["adaptation"][name][i] == info["adaptation"][name]
            probes = np.array([0, 1])
            expected = single.predict(np.tile(observation[:2], (2, 1)), probes)
            own = envs.predict(np.tile(observations[:, None, :2], (1, 2, 1)), np.tile(probes, (3, 1)))[i]
            np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-5)
    assert infos["adaptation"]["num_source_used"][0] > 0
    assert infos["adaptation"]["num_source_used"][1] == 0
