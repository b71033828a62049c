"""What both forms of adaptation and correction, of one environment and of rows, do with what is unusual."""

import functools

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from ssm_metarl_gym.agents import AdaptationConfig, Adapter, DynamicsModel, KalmanAdapter, RecursiveLeastSquares
from ssm_metarl_gym.wrappers import (
    ActionCorrection,
    HistoryWindow,
    OnlineAdaptation,
    TransitionObservation,
    VectorActionCorrection,
    VectorOnlineAdaptation,
    VectorTransitionObservation,
)

BOUNDS = AdaptationConfig(
    lr=0.1, grad_clip_norm=1.0, trust_region_eps=1.0, ema_decay=0.9, entropy_weight=0.0, max_steps_per_call=2
)
HUGE = float(np.finfo(np.float32).max)
ACTIONS = np.random.default_rng(0).uniform(-0.7, 0.7, (10, 2)).astype(np.float32)


class Plane(gym.Env):
    """A point that moves by the negative of the action."""

    def __init__(self, action_space=None, dtype=np.float32):
        self.observation_space = spaces.Box(-100, 100, (2,), dtype=dtype)
        self.action_space = action_space or spaces.Box(-1.0, 1.0, (2,))
        self.fails = False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._x = self.np_random.normal(size=2)
        return self._x.astype(self.observation_space.dtype), {}

    def step(self, action):
        if self.fails:
            raise RuntimeError("the motor is hot")
        self._x = self._x - action
        return self._x.astype(self.observation_space.dtype), 0.0, False, False, {}


def make_model(adapts="last_layer", action_space=None):
    torch.manual_seed(0)
    action_space = action_space or Plane().action_space
    core = nn.Sequential(nn.Linear(2 + spaces.flatdim(action_space), 8), nn.Tanh())
    model = DynamicsModel(Plane().observation_space, action_space, core, adapts=adapts)
    model.residual_variance.fill_(0.01)
    return model


def make_adapters():
    delayed = KalmanAdapter(make_model("action_map"), largest_delay=1)
    return [Adapter(make_model(), BOUNDS), RecursiveLeastSquares(make_model()), delayed]


def corrected(adapter, num_rows=0, make_env=Plane, **options):
    reference = None if isinstance(adapter, KalmanAdapter) else adapter.model
    if num_rows:
        rows = VectorOnlineAdaptation(SyncVectorEnv([make_env] * num_rows), adapter)
        return VectorActionCorrection(rows, reference, **options)
    return ActionCorrection(OnlineAdaptation(make_env(), adapter), reference, **options)


def recent_first(prediction, target):
    """A loss for which the newest transition, the last one, counts most."""
    weights = 0.5 ** torch.arange(len(prediction) - 1, -1, -1, dtype=prediction.dtype)
    return (weights[:, None] * (prediction - target).square()).mean()


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("num_rows", [0, 2])
def test_steps_may_be_taken_within_inference_mode_and_then_without(index, num_rows):
    env = corrected(make_adapters()[index], num_rows)
    actions = np.stack([ACTIONS] * num_rows, axis=1) if num_rows else ACTIONS
    with torch.inference_mode():
        env.reset(seed=0)
        env.step(actions[0])
    env.step(actions[1])
    with torch.inference_mode():
        env.step(actions[2])
    env.reset()
    env.step(actions[3])


@pytest.mark.parametrize("kind", [lambda model: Adapter(model, BOUNDS), RecursiveLeastSquares])
def test_a_loss_of_ones_own_is_given_transitions_in_their_order(kind):
    options = {"loss_fn": recent_first, "window": 3, "change_ratio": np.inf}
    single = OnlineAdaptation(Plane(), kind(make_model()), **options)
    rows = VectorOnlineAdaptation(SyncVectorEnv([Plane] * 2), kind(make_model()), **options)
    single.reset(seed=0)
    rows.reset(seed=0)
    for action in ACTIONS:
        told = single.step(action)[-1]["adaptation"]
        of_rows = rows.step(np.stack([action] * 2))[-1]["adaptation"]
        assert of_rows["loss"][0] == pytest.approx(told["loss"], rel=1e-4)
        assert of_rows["distance"][0] == pytest.approx(told["distance"], rel=1e-4)


def test_bounds_as_large_as_a_type_can_hold_are_none():
    space = spaces.Box(-HUGE, HUGE, (2,))
    with pytest.raises(ValueError, match="bounded"):
        corrected(KalmanAdapter(make_model("action_map", space)), make_env=functools.partial(Plane, space))
    with pytest.raises(ValueError, match="probe_actions"):
        OnlineAdaptation(Plane(space), Adapter(make_model(action_space=space), BOUNDS), observe_predictions=True)


class Shifted(DynamicsModel):
    def forward(self, encoded):
        return super().forward(encoded) + 5.0


def with_a_hook(model):
    model.head.register_forward_hook(lambda module, inputs, output: output + 5.0)
    return model


def of_another_class(model):
    model.__class__ = Shifted
    return model


@pytest.mark.parametrize("change", [with_a_hook, of_another_class])
def test_a_model_that_computes_something_else_is_not_saved(change, tmp_path):
    env = corrected(Adapter(change(make_model()), BOUNDS))
    with pytest.raises(ValueError, match="DynamicsModel without hooks"):
        env.save(tmp_path / "file")


def test_rows_that_others_have_reset_begin_nobody_knows_where():
    envs = SyncVectorEnv([Plane] * 2)
    envs.reset(seed=0)
    rows = VectorOnlineAdaptation(envs, Adapter(make_model(), BOUNDS))
    assert np.isnan(rows.step(ACTIONS[:2])[-1]["adaptation"]["error"]).all()
    assert np.isfinite(rows.step(ACTIONS[:2])[-1]["adaptation"]["error"]).all()
    env = Plane()
    env.reset(seed=0)
    shown = TransitionObservation(env).step(ACTIONS[0])[0]
    envs.reset(seed=0)
    of_rows = VectorTransitionObservation(envs).step(ACTIONS[:2])[0]
    np.testing.assert_array_equal(of_rows[0], shown)
    assert shown[-3:].tolist() == [0.0, 0.0, 1.0]


def test_after_a_failed_step_whole_numbers_are_not_known_either():
    make_env = functools.partial(Plane, dtype=np.int64)
    rows = corrected(Adapter(make_model(), BOUNDS), 1, make_env, gate=0.0, effect_gate=np.inf)
    rows.reset(seed=0)
    for action in ACTIONS[:4]:
        is_open = rows.step(action[None])[-1]["correction"]["gate_open"]
    assert is_open.all()
    rows.unwrapped.envs[0].fails = True
    with pytest.raises(RuntimeError):
        rows.step(ACTIONS[:1])
    rows.unwrapped.envs[0].fails = False
    assert not rows.step(ACTIONS[:1])[-1]["correction"]["gate_open"].any()


def test_fractions_count_in_a_box_of_whole_numbers_too():
    space = spaces.Box(-3, 3, (2,), dtype=np.int32)
    make_env = functools.partial(Plane, space)
    single = OnlineAdaptation(make_env(), Adapter(make_model(action_space=space), BOUNDS))
    rows = VectorOnlineAdaptation(SyncVectorEnv([make_env]), Adapter(make_model(action_space=space), BOUNDS))
    single.reset(seed=0)
    rows.reset(seed=0)
    action = np.array([0.7, -1.6])
    error = single.step(action)[-1]["adaptation"]["error"]
    assert error == pytest.approx(rows.step(action[None])[-1]["adaptation"]["error"][0], rel=1e-5)


def test_an_action_that_is_ignored_may_be_anything(scripted):
    make_env = functools.partial(scripted, [[[0.0, 0.0], [1.0, 0.0], [2.0, 1.0]]])
    rows = corrected(Adapter(make_model(action_space=spaces.Discrete(2)), BOUNDS), 2, make_env)
    rows.reset(seed=0)
    for actions in ([0, 1], [1, 1], [7, -9], [0, 1]):
        infos = rows.step(np.array(actions))[-1]
    assert infos["_correction"].all()
    with pytest.raises(ValueError, match="what the policy asks for"):
        rows.step(np.array([7, 0]))


@pytest.mark.parametrize("restore", ["episode", "never"])
def test_an_adapter_that_has_adapted_begins_at_its_source(restore):
    adapter = KalmanAdapter(make_model("action_map"))
    env = OnlineAdaptation(Plane(), adapter, restore="never")
    env.reset(seed=0)
    for action in ACTIONS:
        env.step(action)
    source, adapted = KalmanAdapter(make_model("action_map")), env.adapter
    assert not torch.equal(adapted.model.action_map, source.model.action_map)
    single = OnlineAdaptation(Plane(), adapted, restore=restore)
    rows = VectorOnlineAdaptation(SyncVectorEnv([Plane]), adapted, restore=restore)
    single.reset(seed=0)
    rows.reset(seed=0)
    errors = single.step(ACTIONS[0])[-1]["adaptation"]["error"], rows.step(ACTIONS[:1])[-1]["adaptation"]["error"][0]
    fresh = OnlineAdaptation(Plane(), source)
    fresh.reset(seed=0)
    assert errors == pytest.approx([fresh.step(ACTIONS[0])[-1]["adaptation"]["error"]] * 2)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: OnlineAdaptation(env, Adapter(make_model(), BOUNDS)),
        lambda env: HistoryWindow(env, 3),
        TransitionObservation,
    ],
)
def test_episodes_that_begin_without_a_reset_are_refused(wrap):
    with pytest.raises(ValueError, match="Put Autoreset around this wrapper"):
        wrap(gym.wrappers.TimeLimit(gym.wrappers.Autoreset(Plane()), 5))
    gym.wrappers.Autoreset(wrap(Plane())).reset()


@pytest.mark.parametrize("make", [lambda: DummyVecEnv([Plane]), lambda: SyncVectorEnv([Plane])])
@pytest.mark.parametrize("wrapper", [OnlineAdaptation, HistoryWindow, TransitionObservation])
def test_single_wrappers_say_what_to_do_with_several(wrapper, make):
    arguments = {OnlineAdaptation: (Adapter(make_model(), BOUNDS),), HistoryWindow: (3,)}.get(wrapper, ())
    with pytest.raises(
        ValueError, match=f"got a (DummyVecEnv|SyncVectorEnv), .* or put Vector{wrapper.__name__} around"
    ):
        wrapper(make(), *arguments)


def test_vector_wrappers_say_what_to_do_with_those_of_sb3():
    with pytest.raises(
        ValueError, match=r"VectorTransitionObservation takes .* got a DummyVecEnv .* put SB3VecEnv around"
    ):
        VectorTransitionObservation(DummyVecEnv([Plane]))
