import copy
import math
import pickle
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3
from torch import nn
from torch.nn import functional as F

from ssm_metarl_gym.agents import AdaptationConfig, Adapter, DynamicsModel, MetaTrainer
from ssm_metarl_gym.wrappers import OnlineAdaptation

CARTPOLE, PENDULUM = "ssm_metarl/CartPolePolarity-v0", "ssm_metarl/PendulumSwitch-v0"
CARTPOLE_SPACE = gym.make(CARTPOLE).observation_space
BOUNDS = AdaptationConfig(
    lr=0.1, grad_clip_norm=1.0, trust_region_eps=0.5, ema_decay=0.9, entropy_weight=0.0, max_steps_per_call=2
)
REPORT = {
    "error",
    "loss",
    "steps",
    "rejected_steps",
    "distance",
    "cut_calls",
    "source_used",
    "left_out",
    "num_source_used",
    "num_transitions",
    "num_outliers",
    "num_suspicions",
    "num_changes",
}
# A model with random weights is surprised by everything.
NEVER_SURPRISED = {"outlier_error": math.inf, "change_ratio": math.inf}

both_envs = pytest.mark.parametrize("env_id", [CARTPOLE, PENDULUM])
both_ways = pytest.mark.parametrize("adapts", ["last_layer", "all"])


class SpyAdapter(Adapter):
    """Remembers what it was called with."""

    def __init__(self, model, cfg=BOUNDS):
        super().__init__(model, cfg)
        self.calls = []

    def adapt(self, loss_fn, batch_dict):
        self.calls.append((loss_fn, batch_dict["states"].tolist(), batch_dict["targets"].tolist()))
        return super().adapt(loss_fn, batch_dict)


def make_model(env, adapts="last_layer"):
    """A small model with random weights, and targets that the changes in the environments are a fair match for."""
    torch.manual_seed(0)
    core = nn.Sequential(nn.Linear(DynamicsModel.input_dim(env.observation_space, env.action_space), 16), nn.Tanh())
    model = DynamicsModel(env.observation_space, env.action_space, core, adapts=adapts)
    model.target_scale.fill_(0.1)
    model.prepare_to_adapt()
    return model


def wrap(env_id, adapts="last_layer", bounds=BOUNDS, max_episode_steps=None, **kwargs):
    env = gym.make(env_id, max_episode_steps=max_episode_steps)
    return OnlineAdaptation(env, Adapter(make_model(env, adapts), bounds), **kwargs)


def wrap_script(env, **kwargs):
    """Here the inputs of the model are the plain observation and the one-hot action, and the targets plain changes."""
    model = make_model(env, adapts="all")
    model.target_scale.fill_(1.0)
    wrapped = OnlineAdaptation(env, SpyAdapter(model), **NEVER_SURPRISED | kwargs)
    return wrapped, wrapped.adapter.calls


def predict(model, observation, probes):
    with torch.no_grad():
        return model(model.encode(np.tile(observation, (len(probes), 1)), np.array(probes))).flatten().numpy()


@pytest.mark.each_value
@both_envs
@pytest.mark.parametrize("observe_predictions", [False, True])
def test_rewards_flags_and_the_wrapped_observation_stay_as_they_are(env_id, observe_predictions, rollout):
    plain = rollout(gym.make(env_id, max_episode_steps=15), 40, seed=1)
    wrapped = rollout(wrap(env_id, observe_predictions=observe_predictions, max_episode_steps=15), 40, seed=1)
    dim = len(plain[0][0])
    assert [observation[:dim] for observation, *_ in wrapped] == [observation for observation, *_ in plain]
    for *_, info in wrapped:
        assert info.pop("adaptation").keys() == REPORT
    assert [rest for _, *rest in wrapped] == [rest for _, *rest in plain]


@pytest.mark.each_value
@both_envs
@both_ways
@pytest.mark.parametrize("restore", ["episode", "call", "never"])
@pytest.mark.parametrize(
    ("schedule", "num_steps"),
    [({"window": 5, "every": 3, "warmup": 4}, 14), pytest.param({}, 40, marks=pytest.mark.slow)],
)
def test_it_does_what_one_would_do_by_hand(env_id, adapts, restore, schedule, num_steps):
    """By hand, everything is computed anew from the raw transitions of the episode."""
    env = wrap(env_id, adapts, restore=restore, observe_predictions=True, clip=0.7, **schedule, **NEVER_SURPRISED)
    window, every, warmup = ({"window": 16, "every": 1, "warmup": 1} | schedule).values()
    plain, adapter = gym.make(env_id), Adapter(copy.deepcopy(env.model), BOUNDS)
    source = copy.deepcopy(env.model)
    probes = [0, 1] if env_id == CARTPOLE else [[-1.0], [0.0], [1.0]]
    env.action_space.seed(0)
    for episode in range(2):
        before, _ = plain.reset(seed=episode)
        shown, _ = env.reset(seed=episode)
        if restore != "never":
            adapter.reset()
        transitions, means, source_used, num_source_used = [], None, False, 0
        for step in range(num_steps):
            expected = predict(source if source_used else adapter.model, before, probes).clip(-0.7, 0.7)
            np.testing.assert_allclose(shown[len(before) :], expected, rtol=1e-4, atol=1e-5)
            action = env.action_space.sample()
            shown, *_, info = env.step(action)
            after, *_, plain_info = plain.step(action)
            if not plain_info.get("restarted"):
                transitions.append((before, action, after))
            error = loss = None
            if not plain_info.get("restarted"):
                target = adapter.model.targets(before[None], after[None]).numpy()
                errors = [np.square(predict(one, before, [action]) - target).mean() for one in (adapter.model, source)]
                error = errors[0]
                means = np.array(errors) if means is None else 0.9 * means + 0.1 * np.array(errors)
                source_used = means[0] > 1.01 * means[1]
                num_source_used += source_used
            if len(transitions) >= warmup and (step + 1) % every == 0:
                if restore == "call":
                    adapter.reset()
                observations, actions, next_observations = map(np.array, zip(*transitions[-window:], strict=True))
                encoded = adapter.model.encode(observations, actions)
                targets = adapter.model.targets(observations, next_observations)
                loss = adapter.adapt(F.mse_loss, {"states": encoded, "targets": targets})
            assert info["adaptation"] == {
                "error": error if error is None else pytest.approx(error, rel=1e-3),
                "loss": loss if loss is None else pytest.approx(loss, rel=1e-3),
                "steps": adapter.stats.steps,
                "rejected_steps": 0,
                "distance": pytest.approx(adapter.stats.distance, rel=1e-3),
                "cut_calls": 0,
                "source_used": source_used,
                "left_out": False,
                "num_source_used": num_source_used,
                "num_transitions": min(len(transitions), window),
                "num_outliers": 0,
                "num_suspicions": 0,
                "num_changes": 0,
            }
            before = after


def test_the_window_holds_the_last_transitions_but_none_across_a_restart_or_a_reset(scripted):
    episodes = [[[0], [1], [3], [6], [10], [15]], [[20], [27], [27], [27], [27], [27]]]
    env, calls = wrap_script(scripted(episodes, restarts=[3]), window=2)
    env.reset()
    for action in (0, 1, 0, 1, 0):
        env.step(action)
    env.reset()
    env.step(1)
    assert [(states, targets) for _, states, targets in calls] == [
        ([[0, 1, 0]], [[1]]),
        ([[0, 1, 0], [1, 0, 1]], [[1], [2]]),
        ([[0, 1, 0], [1, 0, 1]], [[1], [2]]),  # 3 -> 6 was the restart
        ([[1, 0, 1], [6, 0, 1]], [[2], [4]]),
        ([[6, 0, 1], [10, 1, 0]], [[4], [5]]),
        ([[20, 0, 1]], [[7]]),
    ]


@pytest.mark.parametrize(
    ("kwargs", "restarts", "expected"),
    [
        ({}, [], [1, 2, 3, 4, 5, 6, 7]),
        ({"every": 3}, [], [3, 6]),
        ({"warmup": 3}, [], [3, 4, 5, 6, 7]),
        ({"warmup": 3}, [2], [4, 5, 6, 7]),
        ({"every": 2, "warmup": 3}, [], [4, 6]),
        ({"every": 8}, [], []),
    ],
)
def test_the_adapter_is_called_every_n_steps_after_the_warmup(scripted, kwargs, restarts, expected):
    env, calls = wrap_script(scripted([np.arange(8.0)[:, None]], restarts), loss_fn=F.huber_loss, **kwargs)
    for _ in range(2):
        calls.clear()
        reports, called_at = [env.reset()[1]["adaptation"]], []
        for step in range(1, 8):
            num_calls = len(calls)
            reports.append(env.step(0)[-1]["adaptation"])
            called_at += [step] * (len(calls) - num_calls)
        assert called_at == expected
        assert all(loss_fn is F.huber_loss for loss_fn, *_ in calls)
        assert [step for step, report in enumerate(reports) if report["loss"] is not None] == expected
        assert all(report.keys() == REPORT for report in reports)


PROBES = [
    (spaces.Discrete(2), None, [0, 1]),
    (spaces.Discrete(3, start=-1), None, [-1, 0, 1]),
    (spaces.Discrete(3), [2], [2]),
    (spaces.Box(-2.0, 1.0, (2,)), None, [[-2, -2], [0, 0], [1, 1]]),
    (spaces.Box(0.5, 1.0, (1,)), None, [[0.5], [0.5], [1]]),
    (spaces.Box(-np.inf, np.inf, (1,)), [[-3], [0.25]], [[-3], [0.25]]),
]


@pytest.mark.each_value
@both_ways
@pytest.mark.parametrize(("space", "given", "probes"), PROBES)
def test_the_predictions_are_those_of_the_adapted_model_for_every_probe(scripted, space, given, probes, adapts):
    script = scripted([np.random.default_rng(0).normal(size=(6, 3))], action_space=space)
    adapter = Adapter(make_model(script, adapts), BOUNDS)
    env = OnlineAdaptation(script, adapter, observe_predictions=True, probe_actions=given)
    adapter, source = env.adapter, adapter.model
    assert env.observation_space == spaces.Box(
        np.array([-np.inf] * 3 + [-5.0] * (3 * len(probes)), np.float32),
        np.array([np.inf] * 3 + [5.0] * (3 * len(probes)), np.float32),
    )
    observations = [env.reset()[0]] + [env.step(env.action_space.sample())[0] for _ in range(5)]
    assert all(env.observation_space.contains(observation) for observation in observations)
    np.testing.assert_allclose(observations[0][3:], predict(source, observations[0][:3], probes), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        observations[-1][3:], predict(adapter.model, observations[-1][:3], probes), rtol=1e-4, atol=1e-6
    )
    assert not np.allclose(observations[-1][3:], predict(source, observations[-1][:3], probes), rtol=1e-2)


def test_predictions_are_clipped():
    env = wrap(CARTPOLE, observe_predictions=True, clip=1e-4)
    for observation in [env.reset(seed=0)[0]] + [env.step(0)[0] for _ in range(20)]:
        assert env.observation_space.contains(observation)
        assert np.all(np.abs(observation[4:]) == np.float32(1e-4))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_no_observation_loses_precision(scripted, dtype):
    value = dtype(200) / dtype(3) if dtype != np.uint8 else dtype(200)
    space = spaces.Box(0, 255, (1,), dtype=dtype)
    env, _ = wrap_script(scripted([[[value], [value]]], observation_space=space), observe_predictions=True)
    for observation in (env.reset()[0], env.step(0)[0]):
        assert observation[0] == value
        assert env.observation_space.contains(observation)


@pytest.mark.each_value
@pytest.mark.parametrize(("env_id", "adapts"), [(CARTPOLE, "all"), (PENDULUM, "last_layer")])
@pytest.mark.parametrize("bounds", [replace(BOUNDS, lr=0.0), replace(BOUNDS, trust_region_eps=0.0)])
def test_a_frozen_model_predicts_what_the_source_does(env_id, adapts, bounds, rollout):
    frozen = wrap(env_id, adapts, bounds, observe_predictions=True)
    never_called = wrap(env_id, adapts, every=10**6, observe_predictions=True)
    plays = [rollout(env, 15, seed=2) for env in (frozen, never_called)]
    assert [observation for observation, *_ in plays[0]] == [observation for observation, *_ in plays[1]]
    adapted = rollout(wrap(env_id, adapts, observe_predictions=True), 15, seed=2)
    assert [observation for observation, *_ in adapted] != [observation for observation, *_ in plays[1]]


@both_envs
def test_all_layers_with_a_frozen_core_adapt_like_the_last_layer(env_id, rollout):
    env = gym.make(env_id)
    model = make_model(env, "all")
    model.core.requires_grad_(False)
    all_layers = OnlineAdaptation(env, Adapter(model, BOUNDS), observe_predictions=True)
    last_layer = wrap(env_id, observe_predictions=True)
    plays = zip(rollout(all_layers, 15, seed=2), rollout(last_layer, 15, seed=2), strict=True)
    for (observation, *_), (expected, *_) in plays:
        np.testing.assert_allclose(observation, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_left_out_and_counted(scripted, missing):
    episode = [[0.1], [0.2], [0.3], [missing], [0.4], [0.5], [0.6], [0.7]]
    env, calls = wrap_script(scripted([episode]), window=3, observe_predictions=True)
    env.reset()
    steps = [env.step(0) for _ in range(7)]
    reports = [info["adaptation"] for *_, info in steps]
    # The missing value is in the third and the fourth transition.
    assert [report["num_outliers"] for report in reports] == [0, 0, 1, 2, 2, 2, 2]
    assert [report["num_transitions"] for report in reports] == [1, 2, 2, 2, 3, 3, 3]
    assert [bool(np.isfinite(report["error"])) for report in reports] == [True, True, False, False, True, True, True]
    assert all(math.isfinite(report["loss"]) and report["rejected_steps"] == 0 for report in reports)
    assert len(calls) == 7
    assert all(np.isfinite(states).all() and np.isfinite(targets).all() for _, states, targets in calls)
    assert [bool(np.isfinite(observation).all()) for observation, *_ in steps] == [True, True, False] + 4 * [True]


def changing(values):
    """A script of one dimension whose changes are these."""
    return np.cumsum([0.0, *values])[:, None]


class TestSurprises:
    """With a model that predicts no change at all, the error of a transition is the square of its change."""

    @staticmethod
    def play(script, **kwargs):
        env, calls = wrap_script(script, **{"outlier_error": 50.0, "change_ratio": 20.0} | kwargs)
        nn.init.zeros_(env.model.head.weight)
        nn.init.zeros_(env.model.head.bias)
        env.adapter = Adapter(env.model, replace(BOUNDS, lr=0.0))
        env.reset()
        return [env.step(0)[-1]["adaptation"] for _ in range(script.num_steps)], env, calls

    def test_the_error_is_of_the_model_before_it_adapts(self, scripted):
        reports, *_ = self.play(scripted([changing([0.1, -0.2, 0.3])]))
        assert [report["error"] for report in reports] == pytest.approx([0.01, 0.04, 0.09], rel=1e-4)

    def test_an_outlier_is_left_out(self, scripted):
        reports, *_ = self.play(scripted([changing([0.1, 8.0, 0.1, 0.1])]))
        assert [report["num_outliers"] for report in reports] == [0, 1, 1, 1]
        assert [report["num_transitions"] for report in reports] == [1, 1, 2, 3]
        assert reports[1]["error"] == pytest.approx(64.0, rel=1e-4)

    def test_a_surprise_is_held_back_and_three_are_a_change_that_leaves_these_three(self, scripted):
        values = [0.1, 0.1, 2.0, 0.1, 0.1, 2.1, 2.2, 2.3, 0.1]
        reports, *_ = self.play(scripted([changing(values)]))
        assert [report["num_transitions"] for report in reports] == [1, 2, 2, 3, 4, 4, 4, 3, 4]
        assert [report["num_suspicions"] for report in reports] == [0, 0, 1, 1, 1, 2, 3, 3, 3]
        assert [report["num_changes"] for report in reports] == [0, 0, 0, 0, 0, 0, 0, 1, 1]
        assert all(report["num_outliers"] == 0 for report in reports)

    def test_the_first_surprises_of_an_episode_are_kept(self, scripted):
        reports, *_ = self.play(scripted([changing([2.0, 2.1, 0.1, 5.0])]))
        assert [report["num_transitions"] for report in reports] == [1, 2, 3, 3]
        assert [report["num_suspicions"] for report in reports] == [0, 0, 0, 1]

    def test_a_restart_is_not_judged(self, scripted):
        reports, *_ = self.play(scripted([changing([0.1, 2.0, 0.1, 2.0])], restarts=[2]))
        assert [report["error"] is None for report in reports] == [False, True, False, False]
        assert reports[-1]["num_changes"] == 0

    def test_an_episode_begins_without_suspicion(self, scripted):
        _, env, _ = self.play(scripted([changing([0.1, 2.0])]))
        env.reset()
        report = env.step(0)[-1]["adaptation"]
        assert report["num_changes"] == report["num_outliers"] == 0
        assert report["num_transitions"] == 1

    @pytest.mark.parametrize(("restore", "goes_back"), [("episode", True), ("call", True), ("never", False)])
    def test_at_a_change_the_weights_go_back_to_the_source(self, scripted, restore, goes_back):
        episode = changing([0.1, 3.0, -3.0, 3.0])
        env, _ = wrap_script(scripted([episode]), restore=restore, every=4, outlier_error=50.0, change_ratio=20.0)
        env.reset()
        source = env.model.head.weight.clone()
        with torch.no_grad():
            env.model.head.weight.add_(0.1)
        reports = []
        for _ in range(3):
            reports.append(env.step(0)[-1]["adaptation"])
            assert not torch.equal(env.model.head.weight, source)
        env.adapter.adapt = lambda *_: 0.0
        reports.append(env.step(0)[-1]["adaptation"])
        assert reports[-1]["num_changes"] == 1
        assert torch.equal(env.model.head.weight, source) == goes_back


def test_after_an_error_no_false_transition_is_joined(scripted):
    class Failing(gym.Wrapper):
        """Steps, and then fails; the reward of a script is the number of the step."""

        failures = ()

        def step(self, action):
            step = super().step(action)
            if step[1] in self.failures:
                raise ConnectionError("lost")
            return step

    script = Failing(scripted([[[0], [1], [3], [6], [10], [15], [21]]]))
    script.failures = (2, 3)
    env, calls = wrap_script(script, observe_predictions=True)
    env.reset()
    assert env.step(0)[-1]["adaptation"]["num_transitions"] == 1
    for _ in range(2):
        with pytest.raises(ConnectionError):
            env.step(0)
    observation, *_, info = env.step(0)  # from somewhere unknown to 10
    assert info["adaptation"]["error"] is None
    assert info["adaptation"]["num_transitions"] == 1
    np.testing.assert_allclose(observation[1:], predict(env.model, observation[:1], [0, 1]), rtol=1e-4, atol=1e-6)
    env.step(1)
    assert calls[-1][1:] == ([[0, 1, 0], [10, 0, 1]], [[1], [5]])


def test_after_an_error_of_the_loss_the_next_transition_is_a_true_one(scripted):
    failures = [True, False, False]

    def loss_fn(*args):
        if failures.pop(0):
            raise ZeroDivisionError
        return F.mse_loss(*args)

    env, calls = wrap_script(scripted([[[0], [1], [3]]]), loss_fn=loss_fn)
    env.adapter.cfg = replace(BOUNDS, lr=0.0)
    env.reset()
    with pytest.raises(ZeroDivisionError):
        env.step(0)
    env.step(1)
    assert calls[-1][1:] == ([[0, 1, 0], [1, 0, 1]], [[1], [2]])


def test_after_an_error_of_reset_nothing_is_joined(scripted):
    env, calls = wrap_script(scripted([[[0], [1], [3]], [[7], [9], [10]]]))
    env.reset()
    env.step(0)
    calls.clear()
    plain_reset, env.env.reset = env.env.reset, lambda **_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        env.reset()
    env.env.reset = plain_reset
    assert env.step(0)[-1]["adaptation"]["error"] is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_of_another_type_of_numbers_shows_observations_of_the_space(dtype):
    env = gym.make(CARTPOLE)
    model = make_model(env).to(dtype)
    env = OnlineAdaptation(env, Adapter(model, BOUNDS), observe_predictions=True, clip=1e-3)
    observation, _ = env.reset(seed=0)
    for _ in range(3):
        assert observation.dtype == env.observation_space.dtype == np.float32
        assert env.observation_space.contains(observation)
        observation, *_, info = env.step(0)
        assert math.isfinite(info["adaptation"]["loss"])
    assert info["adaptation"]["steps"] > 0


class Glitches(gym.ObservationWrapper):
    """Shows now and then a hundred times what there is, and keeps that as ``clean``."""

    def __init__(self, env, share):
        super().__init__(env)
        self.share, self.rng = share, np.random.default_rng(0)

    def observation(self, observation):
        self.clean = observation.copy()
        return observation * np.float32(100.0 if self.rng.random() < self.share else 1.0)


def prediction_errors(trainer, seed, share, num_steps=100):
    """The mean errors on true transitions of an adapted model, which sees the glitches, and of a frozen one."""
    split = "interpolation" if seed % 2 else "extrapolation"
    glitches = Glitches(gym.make(trainer.env_id, split=split), share)
    adapter = Adapter(copy.deepcopy(trainer.model), trainer.adaptation_config())
    env, models, errors = OnlineAdaptation(glitches, adapter), [], []
    models = [env.model, trainer.model]
    env.reset(seed=seed)
    env.action_space.seed(seed)
    for _ in range(num_steps):
        before, action = glitches.clean, env.action_space.sample()
        predicted = [torch.from_numpy(predict(model, before, [action])) for model in models]
        *_, info = env.step(action)
        if not info.get("restarted"):
            target = trainer.model.targets(before[None], glitches.clean[None])[0]
            errors.append([float((prediction - target).square().mean()) for prediction in predicted])
    return np.mean(errors, axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", [CARTPOLE, "ssm_metarl/PendulumPolarity-v0"])
def test_glitches_make_the_adapted_model_worse_than_the_frozen_one_in_no_task(env_id):
    env = gym.make(env_id)
    torch.manual_seed(0)
    core = nn.Sequential(nn.Linear(DynamicsModel.input_dim(env.observation_space, env.action_space), 64), nn.Tanh())
    model = DynamicsModel(env.observation_space, env.action_space, core.extend([nn.Linear(64, 32), nn.Tanh()]))
    trainer = MetaTrainer(env_id, model, num_streams=300).learn(200)
    adapted, frozen = np.transpose([prediction_errors(trainer, 1000 + task, 0.1) for task in range(20)])
    assert np.sum(adapted > 1.02 * frozen) == 0
    clean, _ = np.transpose([prediction_errors(trainer, 1000 + task, 0.0) for task in range(8)])
    assert np.median(adapted[:8]) < 1.5 * np.median(clean)


@pytest.fixture(scope="module")
def trained():
    """A model that was meta-trained for a second or two."""
    env = gym.make(CARTPOLE)
    torch.manual_seed(0)
    core = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh())
    model = DynamicsModel(env.observation_space, env.action_space, core)
    return MetaTrainer(CARTPOLE, model, num_streams=64, stream_length=32, outer_lr=0.01).learn(100)


@pytest.mark.slow
@pytest.mark.parametrize("polarity", [-1, 1])
def test_a_meta_trained_model_finds_the_sign_of_the_force_and_follows_its_change(trained, polarity):
    env = gym.make(CARTPOLE, task={"polarity": polarity}, switch={"step": 30})
    adapter = Adapter(copy.deepcopy(trained.model), trained.adaptation_config())
    env = OnlineAdaptation(env, adapter, window=4, observe_predictions=True)
    env.reset(seed=0)
    env.action_space.seed(0)
    pushes = []
    for _ in range(60):
        predictions = env.step(env.action_space.sample())[0][4:].reshape(2, 4)
        pushes.append(float(np.sign(predictions[1, 1] - predictions[0, 1])))  # what 1 does to the speed, against 0
    assert pushes[3:30] == [polarity] * 27
    assert pushes[40:] == [-polarity] * 20


@both_envs
def test_a_seed_determines_everything(env_id, rollout):
    env = wrap(env_id, observe_predictions=True)
    first = rollout(env, 15, seed=4)
    assert rollout(env, 15, seed=4) == first
    assert rollout(wrap(env_id, observe_predictions=True), 15, seed=4) == first


@pytest.mark.each_value
@both_ways
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_without_autograd(adapts, mode, rollout):
    env = wrap(CARTPOLE, adapts, observe_predictions=True)
    expected = rollout(env, 10, seed=4)
    with mode():
        assert rollout(env, 10, seed=4) == expected


def test_a_model_in_training_mode_draws_nothing_and_stays_as_it_is(rollout):
    env = gym.make(CARTPOLE)
    core = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    model = DynamicsModel(env.observation_space, env.action_space, core)
    expected = rollout(OnlineAdaptation(env, Adapter(model, BOUNDS), observe_predictions=True), 10, seed=4)
    model.train()
    before = torch.get_rng_state()
    assert rollout(OnlineAdaptation(env, Adapter(model, BOUNDS), observe_predictions=True), 10, seed=4) == expected
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training


def test_a_model_that_keeps_what_it_computed_can_be_adapted():
    env = gym.make(CARTPOLE)
    model = make_model(env)
    model.seen = model.head.weight.mean()
    assert model.seen.requires_grad
    wrapped = OnlineAdaptation(env, Adapter(model, BOUNDS))
    assert wrapped.model is not model
    assert wrapped.model.seen == model.seen


@pytest.mark.each_value
@both_envs
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])  # noqa: S301
def test_a_copy_in_mid_episode_goes_on_alone(env_id, clone):
    env = wrap(env_id, observe_predictions=True)
    env.reset(seed=0)
    actions = [env.action_space.sample() for _ in range(20)]
    for action in actions[:10]:
        env.step(action)
    twin = clone(env)
    played = [[copied.step(action)[0].tolist() for action in actions[10:]] for copied in (twin, env)]
    assert played[0] == played[1]


def test_the_caller_may_change_what_it_got_and_what_it_gave(scripted):
    actions = [np.zeros(1, np.float32) for _ in range(2)]
    env, calls = wrap_script(scripted([[[1], [2], [4]]], action_space=spaces.Box(-1, 1, (1,))))
    observation, _ = env.reset()
    for action in actions:
        observation[:] = 100.0
        observation, *_ = env.step(action)
        action[:] = 1.0
    assert calls[-1][1:] == ([[1, 0], [2, 0]], [[1], [2]])


@pytest.mark.each_value
@both_envs
@both_ways
@pytest.mark.usefixtures("fast_windows")
@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")
def test_the_checkers_find_no_fault(env_id, adapts):
    env = wrap(env_id, adapts, observe_predictions=True)
    check_env(env)
    check_env_for_sb3(env)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"window": 0}, "window must be an int >= 1; got 0"),
        ({"window": 1.5}, r"window must be an int >= 1; got 1\.5"),
        ({"every": 0}, "every must be an int >= 1; got 0"),
        ({"warmup": 0}, "warmup must be an int >= 1; got 0"),
        ({"window": 4, "warmup": 5}, r"warmup must be at most window \(4\); got 5"),
        ({"restore": "always"}, "restore must be one of .*; got 'always'"),
        ({"clip": 0.0}, r"clip must be a number > 0 .*; got 0\.0"),
        ({"clip": math.nan}, "clip must be a number > 0 .*; got nan"),
        ({"clip": None}, "clip must be a number > 0 .*; got None"),
        ({"probe_actions": []}, r"one or more actions of Discrete\(2\); got \[\]"),
        ({"probe_actions": [0, 2]}, r"one or more actions of Discrete\(2\); got \[0, 2\]"),
        ({"probe_actions": [0.5]}, r"one or more actions of Discrete\(2\); got \[0\.5\]"),
        ({"probe_actions": ["left"]}, r"one or more actions of Discrete\(2\); got \['left'\]"),
    ],
)
def test_invalid_options_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        wrap(CARTPOLE, observe_predictions=True, **kwargs)


def test_numbers_of_numpy_are_numbers(rollout):
    options = {"window": 3, "every": 2, "warmup": 2, "clip": 0.5}
    given = {name: np.int64(value) if isinstance(value, int) else np.float32(value) for name, value in options.items()}
    expected = rollout(wrap(CARTPOLE, observe_predictions=True, **options), 12, seed=0)
    assert rollout(wrap(CARTPOLE, observe_predictions=True, **given), 12, seed=0) == expected


@pytest.mark.parametrize("probes", [[[2.0]], [0.5], [[0.1, 0.2]], [[math.nan]]])
def test_probes_outside_a_box_are_refused(probes):
    with pytest.raises(ValueError, match=r"one or more actions of Box"):
        wrap(PENDULUM, observe_predictions=True, probe_actions=probes)


def test_an_unbounded_action_space_has_no_default_probes(scripted):
    env = scripted([[[0.0]]], action_space=spaces.Box(-np.inf, np.inf, (1,)))
    with pytest.raises(ValueError, match=r"probe_actions must be given for the action space Box"):
        wrap_script(env, observe_predictions=True)


def test_predictions_join_boxes_only(scripted):
    space = spaces.MultiBinary(1)
    adapter = Adapter(make_model(scripted([[[0.0]]])), BOUNDS)
    with pytest.raises(ValueError, match="the observation space must be a Box; got MultiBinary"):
        OnlineAdaptation(scripted([[[0]]], observation_space=space), adapter, observe_predictions=True)


@pytest.mark.parametrize(
    ("make_adapter", "message"),
    [
        (lambda: Adapter(nn.Linear(6, 4), BOUNDS), "an adapter of a DynamicsModel; got one of Linear"),
        (lambda: make_model(gym.make(CARTPOLE)), "an adapter of a DynamicsModel; got DynamicsModel"),
        (lambda: Adapter(DynamicsModel(CARTPOLE_SPACE, spaces.Discrete(3)), BOUNDS), r"it is for 4 .* Discrete\(3\)"),
        (lambda: Adapter(make_model(gym.make(CARTPOLE, context="visible")), BOUNDS), r"8 observations and Discrete"),
    ],
)
def test_the_model_must_fit_the_environment(make_adapter, message):
    with pytest.raises(ValueError, match=message):
        OnlineAdaptation(gym.make(CARTPOLE), make_adapter())


def test_environments_that_are_given_one_adapter_adapt_each_for_itself():
    given = Adapter(make_model(gym.make(CARTPOLE)), BOUNDS)
    weights = given.state_dict()["weights"]
    envs = [OnlineAdaptation(gym.make(CARTPOLE, task={"polarity": sign}), given) for sign in (-1, 1)]
    for env in (*envs, gym.make(envs[0].spec)):
        env.reset(seed=0)
        for _ in range(3):
            env.step(1)
    adapted = [env.adapter.state_dict()["weights"]["head.weight"] for env in envs]
    assert not torch.allclose(*adapted)
    assert torch.equal(given.model.head.weight, weights["head.weight"])
    assert given.stats.calls == 0
