from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ssm_metarl_gym.agents import (
    SSM,
    AdaptationConfig,
    Adapter,
    DynamicsModel,
    KalmanAdapter,
    MetaTrainer,
    RecursiveLeastSquares,
)
from ssm_metarl_gym.wrappers import ActionCorrection, OnlineAdaptation, VectorActionCorrection, VectorOnlineAdaptation

CARTPOLE, PENDULUM = "ssm_metarl/CartPolePolarity-v0", "ssm_metarl/PendulumPolarity-v0"
BOUNDS = AdaptationConfig(
    lr=0.3, grad_clip_norm=1.0, trust_region_eps=1.0, ema_decay=0.9, entropy_weight=0.0, max_steps_per_call=2
)


class OwnCore(nn.Module):
    """Two layers in a class of one's own."""

    def __init__(self, input_dim, width=8):
        super().__init__()
        self.first, self.second = nn.Linear(input_dim, width), nn.Linear(width, width)

    def forward(self, x):
        return self.second(self.first(x).tanh())


def make_model(env_id, seed, make_core, adapts="last_layer"):
    env = gym.make(env_id)
    torch.manual_seed(seed)
    input_dim = DynamicsModel.input_dim(env.observation_space, env.action_space)
    model = DynamicsModel(env.observation_space, env.action_space, make_core and make_core(input_dim), adapts=adapts)
    model.target_scale.fill_(0.1)
    model.residual_variance.fill_(0.01)
    return model


def small(input_dim):
    return nn.Sequential(nn.Linear(input_dim, 8), nn.Tanh(), nn.Linear(8, 8, bias=False), nn.SiLU())


MAKERS = {  # environment, core, what adapts, adapter, options of the online wrapper and of the correction
    "gradients": (CARTPOLE, small, "last_layer", lambda m: Adapter(m, BOUNDS), {}, {}),
    "all layers": (
        CARTPOLE,
        lambda n: SSM(n, 8, 4, num_layers=1),
        "all",
        lambda m: Adapter(m, replace(BOUNDS, grad_clip_norm=np.inf), budget_ms=1e9),
        {"loss_fn": nn.HuberLoss(delta=0.5), "window": 5, "restore": "call", "observe_predictions": True},
        {"match": "change"},
    ),
    "double precision": (
        PENDULUM,
        lambda n: small(n).double(),
        "last_layer",
        lambda m: RecursiveLeastSquares(m, ridge=0.3, forgetting=np.float64(0.9)),
        {"loss_fn": F.l1_loss, "observe_predictions": True, "probe_actions": [[0.1], np.array([-0.5])]},
        {"match": "effect", "regularisation": 0.1},
    ),
    "filter": (
        PENDULUM,
        None,
        "action_map",
        lambda m: KalmanAdapter(m, noise_scale=2.0, mixed=True),
        {"warmup": 2},
        {"map_gate": 0.0},
    ),
}
ways = pytest.mark.parametrize("way", list(MAKERS))


def make(way, num_envs=None):
    env_id, make_core, adapts, make_adapter, online, correction = MAKERS[way]
    adapter = make_adapter(make_model(env_id, 0, make_core, adapts))
    reference = make_model(env_id, 1, make_core, adapts)
    correction = {"gate": 0.5, "effect_gate": np.inf} | correction
    if num_envs is None:
        return ActionCorrection(OnlineAdaptation(gym.make(env_id), adapter, **online), reference, **correction)
    envs = VectorOnlineAdaptation(gym.make_vec(env_id, num_envs), adapter, **online)
    return VectorActionCorrection(envs, reference, **correction)


def load(way, path, num_envs=None, **options):
    env_id = MAKERS[way][0]
    if num_envs is None:
        return ActionCorrection.load(path, gym.make(env_id), **options)
    return VectorActionCorrection.load(path, gym.make_vec(env_id, num_envs), **options)


def bits(value):
    """A value whose equality is that of all bits in it, of arrays and of nan, too."""
    if isinstance(value, dict):
        return {name: bits(part) for name, part in value.items()}
    array = np.asarray(value)
    return value if array.dtype == object else (array.dtype, array.shape, array.tobytes())


def play(env, num_steps=8):
    env.action_space.seed(0)
    shown = [env.reset(seed=0)]
    shown += [env.step(env.action_space.sample()) for _ in range(num_steps)]
    assert np.any(shown[-1][-1]["correction"]["gate_open"])
    return [tuple(map(bits, step)) for step in shown]


@ways
@pytest.mark.parametrize("num_envs", [None, 3])
def test_what_is_loaded_does_bit_for_bit_what_was_saved(way, num_envs, tmp_path):
    env = make(way, num_envs)
    expected = play(env)
    env.save(tmp_path / "new" / "correction.pt")  # while it is adapted to something
    assert play(load(way, tmp_path / "new" / "correction.pt", num_envs)) == expected


@pytest.mark.parametrize("way", ["gradients", "filter"])
def test_single_wrappers_and_those_of_many_have_the_same_files(way, tmp_path):
    make(way).save(tmp_path / "single.pt")
    make(way, 3).save(tmp_path / "vector.pt")
    assert play(load(way, tmp_path / "single.pt", 3)) == play(make(way, 3))
    assert play(load(way, tmp_path / "vector.pt")) == play(make(way))


def test_what_adapts_is_what_adapted(tmp_path):
    env = gym.make(CARTPOLE)
    model = make_model(CARTPOLE, 0, small, "all")
    model.core.requires_grad_(False)
    env = ActionCorrection(OnlineAdaptation(env, Adapter(model, BOUNDS)), make_model(CARTPOLE, 1, small))
    env.save(tmp_path / "correction.pt")
    again = ActionCorrection.load(tmp_path / "correction.pt", gym.make(CARTPOLE))
    adapting = [name for name, parameter in again.env.model.named_parameters() if parameter.requires_grad]
    assert adapting == ["head.weight", "head.bias"]


class TestOwn:
    @pytest.fixture
    def path(self, tmp_path):
        adapter = Adapter(make_model(CARTPOLE, 0, OwnCore), BOUNDS)
        env = OnlineAdaptation(gym.make(CARTPOLE), adapter, loss_fn=lambda x, y: (x - y).abs().amax())
        ActionCorrection(env, make_model(CARTPOLE, 1, OwnCore)).save(tmp_path / "own.pt")
        return tmp_path / "own.pt"

    def test_a_core_and_a_loss_are_given(self, path):
        core = OwnCore(6)
        before = core.first.weight.clone()
        env = ActionCorrection.load(path, gym.make(CARTPOLE), core=core, loss_fn=F.mse_loss)
        assert torch.equal(env.env.model.core.first.weight, make_model(CARTPOLE, 0, OwnCore).core.first.weight)
        assert torch.equal(core.first.weight, before)
        assert env.env.options.loss_fn is F.mse_loss

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "core must be given .* got None. Give a module that is built like it"),
            ({"core": OwnCore(6, width=9)}, "the core must be built like the one that was stored"),
            ({"core": nn.Identity()}, "the core must be built like the one that was stored"),
            ({"core": OwnCore(6)}, "loss_fn must be given"),
        ],
    )
    def test_what_is_not_given_or_does_not_fit_is_named(self, path, options, message):
        with pytest.raises(ValueError, match=rf"own\.pt does not fit: {message}"):
            ActionCorrection.load(path, gym.make(CARTPOLE), **options)

    def test_an_adapter_of_ones_own_is_not_saved(self, tmp_path):
        class OwnAdapter(Adapter):
            pass

        env = OnlineAdaptation(gym.make(CARTPOLE), OwnAdapter(make_model(CARTPOLE, 0, small), BOUNDS))
        env = ActionCorrection(env, make_model(CARTPOLE, 1, small))
        with pytest.raises(ValueError, match=r"the adapter must be one of Adapter, .* got OwnAdapter"):
            env.save(tmp_path / "own.pt")
        assert not list(tmp_path.iterdir())


class TestRefuses:
    @pytest.fixture
    def path(self, tmp_path):
        make("gradients").save(tmp_path / "correction.pt")
        return tmp_path / "correction.pt"

    def test_a_flipped_bit_in_the_weights(self, path, tmp_path):
        damaged = bytearray(path.read_bytes())
        weights = make("gradients").env.model.core[0].weight.detach().numpy().tobytes()
        damaged[damaged.index(weights) + 5] ^= 4
        (tmp_path / "damaged.pt").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged\.pt must be a file written by ActionCorrection\.save"):
            load("gradients", tmp_path / "damaged.pt")

    def test_half_a_file_and_other_files(self, path, tmp_path):
        (tmp_path / "half.pt").write_bytes(path.read_bytes()[:-300])
        (tmp_path / "text.pt").write_text("hello")
        torch.save({"format": 2}, tmp_path / "other.pt")
        MetaTrainer(CARTPOLE, num_streams=2).save(tmp_path / "trainer.pt")
        for name in ("half.pt", "text.pt", "other.pt", "trainer.pt"):
            with pytest.raises(ValueError, match=rf"{name} must be a file written by ActionCorrection\.save"):
                load("gradients", tmp_path / name)

    def test_another_environment(self, path):
        with pytest.raises(ValueError, match=r"correction\.pt does not fit: the environment must have 4 observations"):
            ActionCorrection.load(path, gym.make(PENDULUM))

    def test_a_file_that_names_what_is_not_known(self, path, tmp_path):
        state = torch.load(path, weights_only=True)
        for part, wrong in [("adapter", {"kind": "eval", "options": {}}), ("action_space", {}), ("model", {})]:
            torch.save(state | {part: wrong}, tmp_path / "wrong.pt")
            with pytest.raises(ValueError, match=r"wrong\.pt does not fit"):
                load("gradients", tmp_path / "wrong.pt")
