"""What both adapters in closed form share; each has a file of its own for its arithmetic."""

import copy
import io
import math
import pickle

import gymnasium as gym
import pytest
import torch
from torch import nn

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.agents import AdapterStats, DynamicsModel, KalmanAdapter, RecursiveLeastSquares
from ssm_metarl_gym.wrappers import OnlineAdaptation

MSE = nn.MSELoss()


class Affine(nn.Module):
    """Targets that are linear in the weights: those of Float[N 6] are ``w[0] x[0:3] + w[1] x[3:6] + 1``."""

    filtered_parameters = ("w",)

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -0.5]))
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("residual_variance", torch.tensor([0.5, 1.0, 2.0]))

    def forward(self, states):
        return self.linearise(self.dropout(states), self.w.expand(len(states), -1))[0]

    def linearise(self, encoded, weights):
        jacobian, weights = encoded.unflatten(1, (2, 3)).mT, weights.to(encoded.dtype)
        return (jacobian @ weights[..., None])[..., 0] + 1.0, jacobian


def deep_head():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3))
    model[0].requires_grad_(False)
    return model


MAKERS = {
    "least squares": lambda **options: RecursiveLeastSquares(deep_head(), **options),
    "kalman": lambda **options: KalmanAdapter(Affine(), **options),
}
each = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def stream(num_rows, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(num_rows, 6, generator=generator, dtype=dtype)
    return states, states[:, :3] - 2.0 * states[:, 3:] + torch.randn(num_rows, 3, generator=generator, dtype=dtype)


def batch(states, targets):
    return {"states": states, "targets": targets}


def flat(adapter):
    return torch.cat([parameter.detach().flatten() for parameter in adapter.model.parameters()])


def equal(one, other):
    """Whether two nested states are the same, bit for bit (NaN equals NaN)."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(
            one.double().nan_to_num(nan=-7.0), other.double().nan_to_num(nan=-7.0)
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other or (math.isnan(one) and math.isnan(other))


def known(adapter):
    """The whole state but for what the last batch was and how the calls went."""
    state = adapter.state_dict()
    return {key: state[key] for key in ("weights", "filter", "source_weights")}


@each
class TestEvidence:
    def test_a_window_that_slides_counts_each_row_once(self, make):
        states, targets = stream(12)
        sliding, single, whole = make(), make(), make()
        for t in range(12):
            window = slice(max(0, t - 4), t + 1)
            sliding.adapt(MSE, batch(states[window], targets[window]))
            single.adapt(MSE, batch(states[t : t + 1], targets[t : t + 1]))
        whole.adapt(MSE, batch(states, targets))
        assert equal(known(sliding), known(single))
        assert equal(known(sliding), known(whole))
        assert sliding.stats.steps == 12

    def test_windows_several_steps_apart(self, make):
        states, targets = stream(12)
        sliding, whole = make(), make()
        for t in range(3, 13, 3):
            window = slice(max(0, t - 5), t)
            sliding.adapt(MSE, batch(states[window], targets[window]))
        whole.adapt(MSE, batch(states, targets))
        assert equal(known(sliding), known(whole))

    def test_a_bad_row_in_the_window_counts_once_and_spoils_nothing(self, make):
        states, targets = stream(12)
        targets[4, 1] = math.nan
        states[7, 0] = math.inf
        good = [t for t in range(12) if t not in (4, 7)]
        sliding, whole = make(), make()
        losses = []
        for t in range(12):
            window = slice(max(0, t - 4), t + 1)
            losses.append(sliding.adapt(MSE, batch(states[window], targets[window])))
        whole.adapt(MSE, batch(states[good], targets[good]))
        assert equal(known(sliding)["weights"], known(whole)["weights"])
        assert all(map(math.isfinite, losses))
        assert (sliding.stats.steps, sliding.stats.rejected_steps) == (10, 2)

    def test_after_a_reset_old_rows_count_again(self, make):
        states, targets = stream(6)
        adapter, fresh = make(), make()
        for one in (adapter, fresh):
            one.adapt(MSE, batch(states, targets))
        adapter.reset()
        adapter.adapt(MSE, batch(states, targets))
        assert equal(adapter.state_dict(), fresh.state_dict())

    def test_it_learns(self, make):
        states, targets = stream(200)
        adapter = make(trust_region_eps=math.inf)
        before = MSE(adapter.model.eval()(states), targets).item()
        adapter.adapt(MSE, batch(states, targets))
        assert MSE(adapter.model(states), targets).item() < 0.7 * before


@each
class TestCalls:
    def test_the_loss_is_that_after_the_call_and_the_statistics_have_those_before(self, make):
        states, targets = stream(8)
        adapter = make(ema_decay=0.75)
        adapter.model.eval()
        first = MSE(adapter.model(states), targets).item()
        loss = adapter.adapt(MSE, batch(states, targets))
        assert loss == MSE(adapter.model(states), targets).item()
        assert adapter.adapt(MSE, batch(states, targets)) == loss  # nothing is new
        assert adapter.stats.loss_mean == pytest.approx(0.75 * first + 0.25 * loss)
        assert adapter.stats.loss_variance == pytest.approx(0.75 * 0.25 * (loss - first) ** 2)

    def test_counts_and_distance(self, make):
        states, targets = stream(8)
        adapter = make()
        source = torch.cat([p.detach().flatten() for p in adapter.model.parameters() if p.requires_grad])
        adapter.adapt(MSE, batch(states, targets))
        adapter.adapt(MSE, batch(states[:0], targets[:0]))
        weights = torch.cat([p.detach().flatten() for p in adapter.model.parameters() if p.requires_grad])
        stats = adapter.stats
        assert (stats.calls, stats.empty_calls, stats.steps, stats.rejected_steps) == (2, 1, 8, 0)
        assert stats.distance == pytest.approx(((weights - source).norm() / source.norm()).item())

    @pytest.mark.each_value
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_what_is_not_finite_changes_nothing_and_is_counted(self, look, make, value):
        adapter = make()
        adapter.adapt(MSE, batch(*stream(5)))
        before, state = look(adapter.model), adapter.state_dict()
        states, targets = stream(3, seed=1)
        targets[:] = value
        assert math.isnan(adapter.adapt(MSE, batch(states, targets)))
        assert look(adapter.model) == before
        after = adapter.state_dict()
        assert equal(after["stats"], state["stats"] | {"calls": 2, "rejected_steps": 3})
        assert equal(after["weights"], state["weights"])

    def test_the_model_is_left_as_it_was_but_for_what_adapts(self, look, untouched_rng, make):
        adapter = make()
        adapter.model.train()
        (parameters, buffers, modes) = look(adapter.model)
        adapting = {name for name, parameter in adapter.model.named_parameters() if parameter.requires_grad}
        with untouched_rng():
            adapter.adapt(MSE, batch(*stream(5)))
        after, buffers_after, modes_after = look(adapter.model)
        assert {name for name in parameters if parameters[name] != after[name]} == adapting
        assert buffers == buffers_after
        assert modes == modes_after

    def test_two_are_the_same_and_dropout_is_off(self, make):
        torch.manual_seed(1)
        one = make()
        other = copy.deepcopy(one)
        for seed in range(3):
            assert one.adapt(MSE, batch(*stream(4, seed))) == other.adapt(MSE, batch(*stream(4, seed)))
        assert equal(one.state_dict(), other.state_dict())

    @pytest.mark.each_value
    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_without_gradients(self, make, mode):
        adapter = make()
        twin = copy.deepcopy(adapter)
        with mode():
            loss = adapter.adapt(MSE, batch(*stream(4)))
        assert loss == twin.adapt(MSE, batch(*stream(4)))
        adapter.adapt(MSE, batch(*stream(4, seed=1)))
        assert not adapter.model(stream(2)[0]).isnan().any()

    @pytest.mark.each_value
    @pytest.mark.parametrize("eps", [0.0, 0.05])
    def test_the_weights_never_leave_the_ball(self, make, eps):
        adapter = make(trust_region_eps=eps)
        for seed in range(5):
            states, targets = stream(3, seed)
            adapter.adapt(MSE, batch(states, 100.0 * targets))
            assert adapter.stats.distance <= eps * (1.0 + 1e-6)
        assert adapter.stats.projected_steps == 15

    @pytest.mark.each_value
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_the_type_stays(self, make, dtype):
        adapter = make()
        model = adapter.model.to(dtype)
        adapter = type(adapter)(model)
        states, targets = stream(5, dtype=dtype)
        adapter.adapt(MSE, batch(states, targets))
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert adapter.stats.steps == 5
        assert 0.0 < adapter.stats.distance < math.inf
        rows = adapter.weights(adapter.initial_state(4))
        assert {name: (w.dtype, w.shape) for name, w in rows.items()} == {
            name: (dtype, (4, *p.shape)) for name, p in model.named_parameters() if p.requires_grad
        }

    def test_a_loss_that_raises_changes_nothing(self, look, make):
        adapter = make()
        adapter.adapt(MSE, batch(*stream(5)))
        before, state = look(adapter.model), adapter.state_dict()
        with pytest.raises(ValueError, match="loss_fn must return a scalar tensor"):
            adapter.adapt(nn.MSELoss(reduction="none"), batch(*stream(3, seed=1)))
        assert look(adapter.model) == before
        assert equal(adapter.state_dict(), state)

    def test_targets_of_another_shape(self, make):
        states, targets = stream(3)
        with pytest.raises(ValueError, match=r"the targets must have the shape \(.*3\); got \(1, 2\)"):
            make().adapt(lambda *_: torch.zeros(()), batch(states, targets[:, :2]))


@each
class TestGoingBack:
    def test_reset_is_a_fresh_one(self, look, make):
        adapter = make()
        before, state = look(adapter.model), adapter.state_dict()
        adapter.adapt(MSE, batch(*stream(5)))
        adapter.reset_covariance()
        adapter.adapt(MSE, batch(*stream(5, seed=1)))
        adapter.reset()
        assert look(adapter.model) == before
        assert equal({**adapter.state_dict(), "last_rows": 0}, {**state, "last_rows": 0})
        with pytest.raises(RuntimeError, match="there is none to undo"):
            adapter.rollback()

    def test_rollback_undoes_one_call_whole(self, look, make):
        adapter = make()
        adapter.adapt(MSE, batch(*stream(5)))
        before, state = look(adapter.model), adapter.state_dict()
        adapter.adapt(MSE, batch(*stream(5, seed=1)))
        adapter.rollback()
        assert look(adapter.model) == before
        assert equal(adapter.state_dict(), state)
        with pytest.raises(RuntimeError, match="there is none to undo"):
            adapter.rollback()

    def test_a_state_goes_through_a_file_and_goes_on_bit_for_bit(self, make):
        adapter = make()
        other = copy.deepcopy(adapter)
        adapter.adapt(MSE, batch(*stream(5)))
        file = io.BytesIO()
        torch.save(adapter.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        states, targets = (torch.cat(pair) for pair in zip(stream(5), stream(4, seed=1), strict=True))
        for one in (adapter, other):
            one.adapt(MSE, batch(states, targets))  # of which the first five were seen
        assert adapter.stats.steps == 9
        assert equal(adapter.state_dict(), other.state_dict())

    def test_a_state_is_a_copy(self, make):
        adapter = make()
        adapter.adapt(MSE, batch(*stream(5)))
        state, expected = adapter.state_dict(), adapter.state_dict()
        for part in ("weights", "source_weights", "filter"):
            for tensor in state[part].values():
                tensor.fill_(0)
        state["last_rows"].fill_(0)
        assert equal(adapter.state_dict(), expected)

    @pytest.mark.each_value
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])  # noqa: S301
    def test_copies_go_on_alone(self, make, copied):
        adapter = make()
        adapter.adapt(MSE, batch(*stream(5)))
        twin = copied(adapter)
        before = flat(adapter)
        twin.adapt(MSE, batch(*stream(5, seed=1)))
        assert torch.equal(flat(adapter), before)
        adapter.adapt(MSE, batch(*stream(5, seed=1)))
        assert equal(adapter.state_dict(), twin.state_dict())

    @pytest.mark.each_value
    @pytest.mark.parametrize(
        "damage",
        [
            lambda state: {},
            lambda state: None,
            lambda state: {**state, "weights": {**state["weights"], "more": torch.zeros(1)}},
            lambda state: {**state, "filter": {}},
            lambda state: {**state, "filter": {name: tensor[None] for name, tensor in state["filter"].items()}},
            lambda state: {**state, "last_rows": None},
            lambda state: {**state, "stats": {"invented": 2}},
        ],
    )
    def test_a_state_of_another_adapter_is_refused_and_changes_nothing(self, make, damage):
        adapter = make()
        adapter.adapt(MSE, batch(*stream(5)))
        state = adapter.state_dict()
        with pytest.raises(ValueError, match="the state must be of an adapter of the same"):
            adapter.load_state_dict(damage(make().state_dict()))
        assert equal(adapter.state_dict(), state)
        adapter.rollback()


@each
class TestRows:
    def test_each_row_is_a_single_adapter(self, make):
        num_rows, num_steps = 5, 7
        adapter = make()
        adapter.model.eval()
        state = adapter.initial_state(num_rows)
        singles = [copy.deepcopy(adapter) for _ in range(num_rows)]
        streams = [stream(num_steps, seed) for seed in range(num_rows)]
        generator = torch.Generator().manual_seed(0)
        for t in range(num_steps):
            counted = torch.rand(num_rows, generator=generator) < 0.8
            states, targets = (torch.stack([one[part][t] for one in streams]) for part in (0, 1))
            targets[t % num_rows] *= 1.0 if t % 2 else math.nan
            state = adapter.update(state, states, targets, counted)
            for row in counted.nonzero().flatten().tolist():
                singles[row].adapt(MSE, batch(states[row : row + 1], targets[row : row + 1]))
        rows = adapter.weights(state)
        for row, single in enumerate(singles):
            for name, own in single.model.named_parameters():
                if own.requires_grad:
                    torch.testing.assert_close(rows[name][row], own.detach())
            counts = state.counts[row].tolist()
            assert counts[:3] == [single.stats.steps, single.stats.rejected_steps, single.stats.clipped_steps]
        assert equal(adapter.state_dict(), make_again(adapter).state_dict())

    def test_rows_are_put_back_one_by_one(self, make):
        adapter = make()
        adapter.model.eval()
        prior = adapter.initial_state(3)
        state = adapter.update(prior, *stream(3))
        mixed = prior.where(torch.tensor([True, False, True]), state)
        for name, tensor in vars(mixed).items():
            for row, origin in enumerate((prior, state, prior)):
                assert torch.equal(tensor[row], vars(origin)[name][row]), name


def make_again(adapter):
    """A fresh adapter of a copy of the model, which it has never changed."""
    return type(adapter)(copy.deepcopy(adapter.model))


@each
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trust_region_eps": -1.0}, r"trust_region_eps must be a number >= 0 .*; got -1\.0"),
        ({"ema_decay": 1.0}, r"ema_decay must be a number in \[0, 1\); got 1\.0"),
        ({"ema_decay": "1"}, "ema_decay must be a number"),
    ],
)
def test_shared_options_outside_their_range(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_weights_that_half_precision_cannot_hold_are_undone(look):
    model = nn.Linear(1, 1, bias=False).half()
    adapter, before = RecursiveLeastSquares(model, ridge=1e-9), look(model)
    # The weight would be 6e4 / .5.
    adapter.adapt(MSE, batch(torch.full((2, 1), 0.5).half(), torch.full((2, 1), 6e4).half()))
    assert look(model) == before
    assert (adapter.stats.steps, adapter.stats.rejected_steps) == (0, 2)


def test_complex_parameters_are_refused():
    with pytest.raises(ValueError, match="the parameters must be real for RecursiveLeastSquares; weight is complex"):
        RecursiveLeastSquares(nn.Linear(2, 1, dtype=torch.complex64))


@pytest.mark.slow
def test_they_adapt_during_an_episode():
    make_env = lambda sign: gym.make("ssm_metarl/PendulumPolarity-v0", task={"polarity": sign})  # noqa: E731
    env = make_env(1)
    core = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
    model = DynamicsModel(env.observation_space, env.action_space, core, adapts="action_map")
    model.fit(env, num_transitions=1000, num_updates=500, learning_rate=5e-3)
    env = OnlineAdaptation(make_env(-1), KalmanAdapter(model), window=8)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(30):
        *_, info = env.step(env.action_space.sample())
    assert info["adaptation"]["num_changes"] == 0
    assert info["adaptation"]["steps"] == 30 - info["adaptation"]["num_outliers"]
    assert env.model.action_map.item() == pytest.approx(-1.0, abs=0.1)
    assert model.action_map.item() == 1.0


def test_the_statistics_begin_at_nothing():
    for make in MAKERS.values():
        assert vars(make().stats) == pytest.approx(vars(AdapterStats()), nan_ok=True)
