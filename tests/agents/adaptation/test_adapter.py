import contextlib
import copy
import io
import math
import os
import pickle
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Categorical, MultivariateNormal, Normal
from torch.nn import functional as F

from ssm_metarl_gym import agents
from ssm_metarl_gym.agents import SSM, AdaptationConfig, Adapter, AdapterStats

MSE = nn.MSELoss()
UNBOUNDED = {
    "lr": 0.1,
    "grad_clip_norm": math.inf,
    "trust_region_eps": math.inf,
    "ema_decay": 0.5,
    "entropy_weight": 0.0,
    "max_steps_per_call": 1,
}


def config(**changes):
    return AdaptationConfig(**UNBOUNDED | changes)


def make_batch(num_rows=8):
    return {"states": torch.randn(num_rows, 4), "targets": torch.randn(num_rows, 1)}


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def scalar_model(weight=2.0):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, weight)
    return model


# Loss ((w - 1)^2 + (2w - 1)^2) / 2 with the slope 5w - 3.
SCALAR_BATCH = {"states": torch.tensor([[1.0], [2.0]]), "targets": torch.tensor([[1.0], [1.0]])}


class Everything(nn.Module):
    """All that a module can have to put back: running statistics, dropout, noise, and buffers of its own."""

    def __init__(self, head=None):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 5))
        self.head = nn.Linear(5, 1) if head is None else head
        self.register_buffer("num_calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(4))
        self.modes = []

    def forward(self, states):
        self.modes.append(self.training or self.body.training)
        self.num_calls += 1
        self.last = states[-1]  # assigned, not written
        return self.head(self.body(states) + 0.0 * torch.randn(5))


class CategoricalHead(nn.Linear):
    def __init__(self):
        super().__init__(5, 3)

    def forward(self, features):
        return Categorical(logits=super().forward(features))


def classify(distribution, targets):
    classes, weights = (targets[:, 0] > 0).long(), 1.0 + 0.0 * targets[:, 0]  # so that a NaN counts here too
    return -(weights * distribution.log_prob(classes)).mean()


CASES = pytest.mark.parametrize(
    ("make_model", "loss_fn"),
    [(Everything, MSE), (lambda: Everything(CategoricalHead()), classify)],
    ids=["tensor", "distribution"],
)


class Cast(nn.Sequential):
    """Layers of different types of numbers."""

    def forward(self, x):
        for layer in self:
            x = layer(x.to(layer.weight.dtype))
        return x.float()


def equal(one, other):
    """Whether two nested states are the same, bit for bit (NaN equals NaN)."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one.nan_to_num(nan=-12345.0), other.nan_to_num(nan=-12345.0))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other or (math.isnan(one) and math.isnan(other))


def without_stats(adapter):
    return {key: value for key, value in adapter.state_dict().items() if key != "stats"}


class TestSteps:
    def test_hand_computed_descent(self):
        for num_steps, weight, loss in ((1, 1.3, 1.325), (2, 0.95, 0.40625)):
            adapter = Adapter(scalar_model(), config(max_steps_per_call=num_steps))
            assert adapter.adapt(MSE, SCALAR_BATCH) == pytest.approx(loss)
            assert adapter.model.weight.item() == pytest.approx(weight)
            assert adapter.stats == AdapterStats(
                calls=1, steps=num_steps, loss_mean=5.0, distance=pytest.approx(1.0 - weight / 2.0)
            )

    @pytest.mark.parametrize("make_model", [lambda: nn.Linear(4, 1), lambda: SSM(4, 6, 1)])
    def test_steps_are_gradient_descent(self, make_model):
        model, batch = make_model(), make_batch()
        twin = copy.deepcopy(model)
        loss = Adapter(model, config(max_steps_per_call=3)).adapt(MSE, batch)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            MSE(twin(batch["states"]), batch["targets"]).backward()
            optimizer.step()
        torch.testing.assert_close(flat(model), flat(twin))
        assert loss == pytest.approx(MSE(model(batch["states"]), batch["targets"]).item())

    @pytest.mark.parametrize("frozen", [{"lr": 0.0}, {"trust_region_eps": 0.0}])
    def test_a_frozen_model_is_evaluated_only(self, look, frozen):
        model, batch = nn.Linear(4, 1), make_batch()
        before = look(model)
        adapter = Adapter(model, config(max_steps_per_call=3, **frozen))
        assert adapter.adapt(MSE, batch) == MSE(model(batch["states"]), batch["targets"]).item()
        assert look(model) == before
        assert adapter.stats == AdapterStats(calls=1, loss_mean=adapter.stats.loss_mean)

    @pytest.mark.parametrize("factor", [math.inf, math.nan])
    def test_a_loss_that_is_not_finite_is_nan_even_where_no_step_is_taken(self, factor):
        adapter = Adapter(scalar_model(), config(lr=0.0))
        assert math.isnan(adapter.adapt(lambda *args: factor * MSE(*args), SCALAR_BATCH))
        assert adapter.stats.rejected_steps == 1

    def test_a_gradient_is_clipped_to_its_norm_bound_before_every_step(self):
        # A first slope of 7 and then, at 2 - 0.1 * 2, one of 6: both are clipped to 2.
        adapter = Adapter(scalar_model(), config(grad_clip_norm=2.0, max_steps_per_call=2))
        adapter.adapt(MSE, SCALAR_BATCH)
        assert adapter.model.weight.item() == pytest.approx(1.6)
        assert adapter.stats.clipped_steps == 2

    def test_clipping_is_global_and_keeps_the_direction(self):
        model, batch = Everything().body, make_batch()
        batch["targets"] = torch.randn(8, 5)
        steps = []
        for clip in (math.inf, 100.0, 0.01):
            adapter = Adapter(copy.deepcopy(model), config(grad_clip_norm=clip))
            adapter.adapt(MSE, batch)
            steps.append(flat(adapter.model) - flat(model))
            assert adapter.stats.clipped_steps == (clip == 0.01)
        assert torch.equal(steps[0], steps[1])
        assert steps[2].norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)
        assert torch.cosine_similarity(steps[0], steps[2], dim=0).item() == pytest.approx(1.0, abs=1e-4)

    def test_frozen_parameters_are_untouched(self):
        model, batch = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1)), make_batch()
        model[0].requires_grad_(False)
        before = copy.deepcopy(model)
        adapter = Adapter(model, config())
        adapter.adapt(MSE, batch)
        assert torch.equal(flat(model[0]), flat(before[0]))
        assert not torch.equal(flat(model[1]), flat(before[1]))
        assert set(adapter.averaged_weights()) == {"1.weight", "1.bias"}

    def test_a_parameter_that_the_loss_does_not_depend_on_stays(self):
        model = nn.ModuleDict({"used": nn.Linear(4, 1), "unused": nn.Linear(2, 2)})
        model.forward = lambda states: model["used"](states)
        before = copy.deepcopy(model)
        Adapter(model, config()).adapt(MSE, make_batch())
        assert torch.equal(flat(model["unused"]), flat(before["unused"]))
        assert not torch.equal(flat(model["used"]), flat(before["used"]))


class TestTrustRegion:
    @settings(deadline=None, max_examples=60)
    @given(
        types=st.sampled_from(
            [
                (torch.float32, torch.float32),
                (torch.float64, torch.float64),
                (torch.bfloat16, torch.bfloat16),
                (torch.float16, torch.float16),
                (torch.float32, torch.bfloat16),
                (torch.float16, torch.float64),
            ]
        ),
        eps=st.floats(1e-9, 10.0),
        lr=st.floats(1e-3, 1e3),
        width=st.integers(1, 5),
        scale=st.sampled_from([1e-2, 1.0, 1e3]),
        seed=st.integers(0, 2**31),
    )
    def test_the_weights_never_leave_the_ball(self, types, eps, lr, width, scale, seed):
        torch.manual_seed(seed)
        model = Cast(nn.Linear(width, 3), nn.Linear(3, 1))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(scale)
        for part, dtype in zip(model, types, strict=True):
            part.to(dtype)
        source = flat(model).double()
        adapter = Adapter(model, config(lr=lr, grad_clip_norm=10.0, trust_region_eps=eps, max_steps_per_call=2))
        for _ in range(3):
            batch = {"states": torch.randn(4, width), "targets": 10.0 * torch.randn(4, 1)}
            adapter.adapt(MSE, batch)
            distance = (flat(model).double() - source).norm().item()
            assert distance <= (1.0 + 1e-6) * eps * source.norm().item()
            # That of the exact weights, which those of half precision are the nearest to.
            rounding = (1.0 + eps) * max(1e-7, *(torch.finfo(dtype).eps for dtype in types))
            assert adapter.stats.distance == pytest.approx(distance / source.norm().item(), rel=1e-3, abs=rounding)
            assert all(part.weight.dtype == dtype for part, dtype in zip(model, types, strict=True))

    def test_the_projection_is_onto_the_border(self):
        model, batch = nn.Linear(4, 1), make_batch()
        source, free = flat(model), copy.deepcopy(model)
        Adapter(free, config()).adapt(MSE, batch)
        adapter = Adapter(model, config(trust_region_eps=1e-3))
        adapter.adapt(MSE, batch)
        step, unbounded = flat(model) - source, flat(free) - source
        assert step.norm().item() == pytest.approx(1e-3 * source.norm().item(), rel=1e-3)
        assert torch.cosine_similarity(step, unbounded, dim=0).item() == pytest.approx(1.0, abs=1e-5)
        assert adapter.stats.projected_steps == 1
        assert adapter.stats.distance == pytest.approx(1e-3, rel=1e-3)

    def test_the_ball_is_around_the_source_and_not_the_last_weights(self):
        model = scalar_model()
        adapter = Adapter(model, config(lr=1.0, grad_clip_norm=0.1, trust_region_eps=0.125))
        weights = [adapter.adapt(MSE, SCALAR_BATCH) and model.weight.item() for _ in range(4)]
        assert weights == pytest.approx([1.9, 1.8, 1.75, 1.75], rel=1e-6)
        assert adapter.stats.projected_steps == 2

    @pytest.mark.parametrize(("eps", "moves"), [(1.0, False), (math.inf, True)])
    def test_around_a_source_of_zeros_only_an_infinite_ball_has_room(self, eps, moves):
        adapter = Adapter(scalar_model(0.0), config(trust_region_eps=eps))
        assert math.isfinite(adapter.adapt(MSE, SCALAR_BATCH))
        assert adapter.model.weight.item() == pytest.approx(0.3 if moves else 0.0)
        assert adapter.stats.distance == (math.inf if moves else 0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
class TestHalfPrecision:
    @staticmethod
    def falling(prediction, _):
        """A slope of 1, whatever the weights."""
        return prediction.mean()

    @staticmethod
    def adapter(dtype, weight=2.0, **changes):
        batch = dict.fromkeys(("states", "targets"), torch.ones(1, 1, dtype=dtype))
        return Adapter(scalar_model(weight).to(dtype), config(**{"lr": 1e-4} | changes)), batch

    def test_steps_too_small_for_the_type_add_up(self, dtype):
        adapter, batch = self.adapter(dtype, max_steps_per_call=3, ema_decay=0.0)
        for call in range(1, 41):
            adapter.adapt(self.falling, batch)
            exact = 2.0 - 3e-4 * call
            assert adapter.model.weight.item() == torch.tensor(exact, dtype=dtype).item()
            assert adapter.stats.distance == pytest.approx(1.5e-4 * call, rel=1e-3)
            average = adapter.averaged_weights()["weight"]
            assert average.dtype == dtype
            assert average.item() == adapter.model.weight.item()
        assert adapter.model.weight.item() < 2.0
        assert adapter.stats.steps == 120

    def test_the_average_does_not_stall(self, dtype):
        adapter, batch = self.adapter(dtype, ema_decay=0.99)
        averages, weight = [2.0], 2.0
        for _ in range(150):
            adapter.adapt(self.falling, batch)
            weight -= 1e-4
            averages.append(0.99 * averages[-1] + 0.01 * weight)
        assert adapter.averaged_weights()["weight"].item() == torch.tensor(averages[-1], dtype=dtype).item() < 2.0

    def test_it_learns_within_a_small_ball(self, dtype):
        model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)).to(dtype)
        batch = {key: tensor.to(dtype) for key, tensor in make_batch(64).items()}
        source, before = flat(model).double(), MSE(model(batch["states"]), batch["targets"]).item()
        adapter = Adapter(model, config(trust_region_eps=0.05, max_steps_per_call=20))
        assert adapter.adapt(MSE, batch) < before
        assert (flat(model).double() - source).norm() <= 0.05 * source.norm()
        assert (flat(model) != source).float().mean() > 0.3
        assert adapter.stats.projected_steps > 0

    def test_back_and_forth(self, dtype, look):
        adapter, batch = self.adapter(dtype)
        before, fresh = look(adapter.model), adapter.state_dict()
        for _ in range(7):
            adapter.adapt(self.falling, batch)
        state = adapter.state_dict()
        adapter.adapt(self.falling, batch)
        adapter.rollback()
        assert equal(adapter.state_dict(), state)
        other, _ = self.adapter(dtype)
        other.load_state_dict(state)
        for _ in range(30):
            assert other.adapt(self.falling, batch) == adapter.adapt(self.falling, batch)
        assert equal(other.state_dict(), adapter.state_dict())
        adapter.reset()
        assert look(adapter.model) == before
        assert equal(adapter.state_dict(), fresh)

    def test_weights_beyond_the_type_are_undone(self, dtype, look):
        adapter, batch = self.adapter(dtype, -3e4, lr=1e39)
        before = look(adapter.model)
        assert math.isnan(adapter.adapt(self.falling, batch))
        assert look(adapter.model) == before
        assert adapter.stats.rejected_steps == 1


class TestRejection:
    @staticmethod
    def fault(name, batch, loss_fn):
        """What must be undone: a changed batch, loss function or configuration."""
        if name in ("states", "targets"):
            return {**batch, name: torch.full_like(batch[name], math.nan)}, loss_fn, {}
        if name == "infinite state":
            return {**batch, "states": batch["states"].masked_fill(torch.eye(8, 4).bool(), math.inf)}, loss_fn, {}
        if name == "loss":
            return batch, lambda *args: loss_fn(*args) * math.inf, {}
        if name == "gradient":
            return batch, lambda *args: loss_fn(*args) + (loss_fn(*args) * 0.0).sqrt(), {}
        return batch, loss_fn, {"lr": {"weights": 1e38, "overshoot": 1e30, "loss after the step": 1e17}[name]}

    @pytest.mark.each_value
    @CASES
    @pytest.mark.parametrize(
        "name",
        [
            "states",
            "infinite state",
            "targets",
            "loss",
            "gradient",
            "weights",
            "overshoot",
            "loss after the step",
        ],
    )
    @pytest.mark.parametrize("mode", [True, False])
    def test_what_is_not_finite_is_undone_bit_for_bit(self, look, make_model, loss_fn, name, mode):
        model, batch = make_model().train(mode), make_batch()
        bad_batch, bad_loss_fn, changes = self.fault(name, batch, loss_fn)
        good = Adapter(model, config())
        good.adapt(loss_fn, batch)
        adapter = Adapter(model, config(max_steps_per_call=3, **changes))
        adapter.load_state_dict(good.state_dict())
        before, state = look(model), adapter.state_dict()

        assert math.isnan(adapter.adapt(bad_loss_fn, bad_batch))
        assert look(model) == before
        stats = {**state["stats"], "calls": 2, "rejected_steps": 1}
        assert equal(adapter.state_dict(), {**state, "stats": stats})

    @CASES
    def test_earlier_steps_of_the_call_stay(self, look, make_model, loss_fn):
        model, batch, losses = make_model(), make_batch(), []
        once = Adapter(copy.deepcopy(model), config())
        once.adapt(loss_fn, batch)

        def third_time_bad(prediction, targets):
            losses.append(loss_fn(prediction, targets))
            return losses[-1] * (math.nan if len(losses) == 3 else 1.0)

        adapter = Adapter(model, config(max_steps_per_call=5))
        assert math.isnan(adapter.adapt(third_time_bad, batch))
        assert len(losses) == 3
        assert look(model) == look(once.model)
        assert equal(without_stats(adapter), without_stats(once))
        assert adapter.stats.steps == adapter.stats.rejected_steps == 1
        assert adapter.stats.distance == once.stats.distance

    def test_the_next_call_is_as_if_nothing_had_happened(self):
        model, batch = nn.Linear(4, 1), make_batch()
        adapters = [Adapter(copy.deepcopy(model), config(max_steps_per_call=2)) for _ in range(2)]
        adapters[0].adapt(MSE, {**batch, "targets": batch["targets"] * math.nan})
        assert adapters[0].adapt(MSE, batch) == adapters[1].adapt(MSE, batch)
        assert torch.equal(flat(adapters[0].model), flat(adapters[1].model))

    def test_an_empty_batch_is_counted_and_changes_nothing(self, look):
        model = Everything()
        adapter, before = Adapter(model, config()), look(model)
        assert math.isnan(adapter.adapt(MSE, make_batch(0)))
        assert look(model) == before
        assert equal(vars(adapter.stats), vars(AdapterStats(calls=1, empty_calls=1)))


class TestAverages:
    def test_hand_computed_loss_statistics(self):
        adapter = Adapter(scalar_model(), config(lr=0.0, ema_decay=0.75))
        seen = []
        for loss in (1.0, 3.0, math.nan, 2.5):
            adapter.adapt(
                lambda _, targets: targets.mean(), {"states": torch.ones(1, 1), "targets": torch.tensor([loss])}
            )
            seen.append((adapter.stats.loss_mean, adapter.stats.loss_variance))
        # A deviation of 2 moves the mean by 2/4 and the variance to 3/4 * (0 + 4/4), one of 1 to 3/4 * (3/4 + 1/4).
        assert seen == [(1.0, 0.0), (1.5, 0.75), (1.5, 0.75), (1.75, 0.75)]

    def test_the_statistics_are_of_the_loss_before_adaptation(self):
        adapter = Adapter(scalar_model(), config(max_steps_per_call=2))
        adapter.adapt(MSE, SCALAR_BATCH)
        assert adapter.stats.loss_mean == 5.0

    def test_hand_computed_averaged_weights(self):
        # The loss is the weight, so that each of the two steps of a call takes 1 from it: 4 -> 2 -> 0.
        adapter = Adapter(scalar_model(4.0), config(lr=1.0, ema_decay=0.75, max_steps_per_call=2))
        averages = [adapter.averaged_weights()["weight"].item()]
        for _ in range(2):
            adapter.adapt(
                lambda prediction, _: prediction.mean(), {"states": torch.ones(1, 1), "targets": torch.ones(1)}
            )
            averages.append(adapter.averaged_weights()["weight"].item())
        assert averages == [4.0, 0.75 * 4.0 + 0.25 * 2.0, 0.75 * 3.5 + 0.25 * 0.0]

    def test_averaged_weights_are_a_copy(self):
        adapter = Adapter(scalar_model(), config())
        adapter.averaged_weights()["weight"].zero_()
        assert adapter.averaged_weights()["weight"].item() == 2.0
        assert adapter.model.weight.item() == 2.0


class TestEntropy:
    @pytest.mark.parametrize("weight", [1.0, -1.0])
    def test_a_positive_weight_lowers_the_entropy_and_a_negative_one_raises_it(self, weight):
        model, batch = nn.Sequential(nn.Linear(4, 5), CategoricalHead()), make_batch()
        before = model(batch["states"]).entropy().mean().item()

        def no_loss(distribution, _):
            return 0.0 * distribution.logits.sum()

        adapter = Adapter(model, config(entropy_weight=weight, max_steps_per_call=5))
        assert adapter.adapt(no_loss, batch) == 0.0
        change = model(batch["states"]).entropy().mean().item() - before
        assert -weight * change > 0.01

    def test_the_step_descends_loss_plus_weighted_entropy(self):
        model, batch = nn.Sequential(nn.Linear(4, 5), CategoricalHead()), make_batch()
        twin = copy.deepcopy(model)
        loss = Adapter(model, config(entropy_weight=0.3)).adapt(classify, batch)
        distribution = twin(batch["states"])
        (classify(distribution, batch["targets"]) + 0.3 * distribution.entropy().mean()).backward()
        torch.optim.SGD(twin.parameters(), lr=0.1).step()
        torch.testing.assert_close(flat(model), flat(twin))
        assert loss == pytest.approx(classify(twin(batch["states"]), batch["targets"]).item())

    def test_a_tensor_has_no_entropy(self):
        batch, source, results = make_batch(), nn.Linear(4, 1), []
        for weight in (0.0, 5.0):
            model = copy.deepcopy(source)
            results.append((Adapter(model, config(entropy_weight=weight)).adapt(MSE, batch), flat(model).tolist()))
        assert results[0] == results[1]


class TestSurroundings:
    @staticmethod
    def mixed():
        model = Everything().train()
        model.body[1].eval()
        model.body[0].bias.requires_grad_(False)
        model.body[0].weight.grad = torch.ones(6, 4)
        return model

    def test_all_but_the_weights_comes_back(self, look, untouched_rng):
        model, batch = self.mixed(), make_batch()
        parameters, buffers, modes = look(model)
        adapter = Adapter(model, config(max_steps_per_call=3))
        with untouched_rng():
            assert math.isfinite(adapter.adapt(MSE, batch))
        after, buffers_after, modes_after = look(model)
        assert modes_after == modes
        assert model.modes == [False] * 4
        assert [value[1:] for value in after.values()] == [value[1:] for value in parameters.values()]
        assert [value[0] != parameters[name][0] for name, value in after.items()] == [p[2] for p in parameters.values()]
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert buffers_after[f"body.1.{name}"] == buffers[f"body.1.{name}"]

    def test_training_mode_makes_no_difference(self):
        model, batch = Everything(), make_batch()
        losses, weights = [], []
        for mode in (True, False):
            twin = copy.deepcopy(model).train(mode)
            losses.append(Adapter(twin, config(max_steps_per_call=2)).adapt(MSE, batch))
            weights.append(flat(twin))
        assert losses[0] == losses[1]
        assert torch.equal(*weights)

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_contexts_without_gradients_make_no_difference(self, context):
        model, batch = Everything(CategoricalHead()), make_batch()
        plain = Adapter(copy.deepcopy(model), config(max_steps_per_call=2, entropy_weight=0.1))
        plain.adapt(classify, batch)
        plain_loss = plain.adapt(classify, batch)
        with context():
            adapter = Adapter(model, config(max_steps_per_call=2, entropy_weight=0.1))
            inside = {key: value.clone() for key, value in batch.items()}
            adapter.adapt(classify, inside)
            adapter.reset()
            adapter.adapt(classify, inside)
            adapter.adapt(classify, inside)
            adapter.rollback()
            assert torch.is_inference_mode_enabled() == (context is torch.inference_mode)
            assert not torch.is_grad_enabled()
        assert copy.deepcopy(adapter).adapt(classify, batch) == plain_loss
        assert adapter.adapt(classify, batch) == plain_loss
        assert equal(without_stats(adapter), without_stats(plain))
        classify(model(batch["states"]), batch["targets"]).backward()

    def test_the_default_device_makes_no_difference(self):
        model, batch = Everything().body, make_batch() | {"targets": torch.ones(8, 5)}
        adapters = [Adapter(copy.deepcopy(model), config(max_steps_per_call=2, trust_region_eps=1e-3))]
        with torch.device("meta"):
            adapters.append(Adapter(model, adapters[0].cfg))
            losses = [adapter.adapt(MSE, batch) for adapter in adapters]
            state = copy.deepcopy(adapters[1]).state_dict()
            adapters[1].load_state_dict(state)
        assert losses[0] == losses[1]
        assert equal(adapters[0].state_dict(), adapters[1].state_dict())

    def test_a_recurrent_network_adapts_in_training_mode(self):
        class Recurrent(nn.Module):
            def __init__(self):
                super().__init__()
                self.lstm = nn.LSTM(4, 1, batch_first=True)

            def forward(self, states):
                return self.lstm(states[:, None])[0][:, 0]

        model, batch = Recurrent().train(), make_batch()
        before = MSE(model(batch["states"]), batch["targets"]).item()
        assert Adapter(model, config()).adapt(MSE, batch) < before
        assert model.lstm.training

    @pytest.mark.each_value
    @pytest.mark.parametrize("call", [1, 2])
    @pytest.mark.parametrize("error", [KeyError, ValueError, KeyboardInterrupt])
    @CASES
    def test_an_exception_leaves_everything_as_it_was(self, look, make_model, loss_fn, call, error, untouched_rng):
        model, batch, calls = make_model().train(), make_batch(), []
        adapter = Adapter(model, config(max_steps_per_call=3))
        adapter.adapt(loss_fn, batch)
        before, state = look(model), adapter.state_dict()

        def failing(*args):
            calls.append(None)
            if len(calls) == call:
                raise error("broken")
            return loss_fn(*args)

        with untouched_rng(), pytest.raises(error, match="broken"):
            adapter.adapt(failing, batch)
        assert look(model) == before
        assert equal(adapter.state_dict(), state)
        assert torch.is_grad_enabled()

    def test_distributions_refuse_nan_within_and_afterwards(self):
        adapter, refused = Adapter(Everything(CategoricalHead()), config()), []

        def watching(*args):
            with pytest.raises(ValueError, match="logits"):
                Categorical(logits=torch.tensor([math.nan, 0.0]))
            refused.append(True)
            return classify(*args)

        adapter.adapt(watching, make_batch())
        with pytest.raises(ZeroDivisionError):
            adapter.adapt(lambda *_: 1 / 0, make_batch())
        assert refused
        with pytest.raises(ValueError, match="logits"):
            Categorical(logits=torch.tensor([math.nan, 0.0]))

    @pytest.mark.parametrize("draws", [True, False])
    def test_other_threads_draw_undisturbed_and_their_distributions_refuse_nan(self, draws):
        torch.manual_seed(1)
        expected = torch.cat([torch.rand(1) for _ in range(200)])
        models = [Everything(CategoricalHead()) if draws else nn.Linear(4, 1) for _ in range(2)]
        adapters = [Adapter(model, config()) for model in models]
        stop, batch = threading.Event(), make_batch()

        def adapt(adapter):
            while not stop.is_set():
                assert math.isfinite(adapter.adapt(classify if draws else MSE, batch))

        threads = [threading.Thread(target=adapt, args=(adapter,)) for adapter in adapters]
        torch.manual_seed(1)
        for thread in threads:
            thread.start()
        try:
            drawn = []
            for _ in range(200):
                drawn.append(torch.rand(1))
                with pytest.raises(ValueError, match="logits"):
                    Categorical(logits=torch.tensor([math.nan, 0.0]))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert torch.equal(torch.cat(drawn), expected)
        assert all(adapter.stats.calls > 1 for adapter in adapters)
        with pytest.raises(ValueError, match="logits"):
            Categorical(logits=torch.tensor([math.nan, 0.0]))

    @pytest.mark.parametrize("every", [pytest.param(5, marks=pytest.mark.slow), 29])
    def test_ctrl_c_at_any_line_leaves_all_as_before_or_as_after(self, look, untouched_rng, every):
        """Python raises KeyboardInterrupt between two lines: here at lines of the room, one after the other."""
        room, batch = os.path.dirname(agents.adaptation.__file__) + os.sep, make_batch()
        started = Adapter(Everything().train(), config(max_steps_per_call=2))
        started.adapt(MSE, batch)
        before = look(started.model), started.state_dict()
        twin = copy.deepcopy(started)
        twin.adapt(MSE, batch)
        after = look(twin.model), twin.state_dict()
        reached, line = True, 0
        while reached:
            line += every
            reached = False
            adapter = copy.deepcopy(started)
            lines_left = line

            def interrupt(frame, event, _):
                nonlocal lines_left, reached
                if not frame.f_code.co_filename.startswith(room):  # which every call within torch asks
                    return None
                lines_left -= event == "line"
                if not lines_left and event == "line":
                    reached = True
                    raise KeyboardInterrupt
                return interrupt

            with untouched_rng(), contextlib.suppress(KeyboardInterrupt):
                tracer = sys.gettrace()
                sys.settrace(interrupt)
                try:
                    adapter.adapt(MSE, batch)
                finally:
                    sys.settrace(tracer)
            assert torch.is_grad_enabled()
            state = look(adapter.model)
            assert state in (before[0], after[0])
            assert equal(adapter.state_dict(), (before if state == before[0] else after)[1])
        assert line > 100


class TestGoingBack:
    @CASES
    def test_reset_is_fresh(self, look, make_model, loss_fn):
        model, batch = make_model(), make_batch()
        before, twin = look(model), copy.deepcopy(model)
        adapter, fresh = Adapter(model, config()), Adapter(twin, config())
        for _ in range(3):
            adapter.adapt(loss_fn, batch)
        adapter.adapt(loss_fn, {**batch, "states": batch["states"] * math.nan})
        assert look(model) != before
        adapter.reset()
        assert look(model) == before
        assert equal(adapter.state_dict(), fresh.state_dict())
        with pytest.raises(RuntimeError, match="none to undo"):
            adapter.rollback()
        for one in (adapter, fresh):
            one.adapt(loss_fn, batch)
        assert equal(adapter.state_dict(), fresh.state_dict())

    @pytest.mark.each_value
    @CASES
    @pytest.mark.parametrize("num_rows", [8, 0])
    @pytest.mark.parametrize("factor", [1.0, math.nan])
    def test_rollback_undoes_one_call_exactly(self, look, make_model, loss_fn, num_rows, factor):
        model, batch = make_model(), make_batch()
        adapter = Adapter(model, config(max_steps_per_call=2))
        adapter.adapt(loss_fn, batch)
        before, state = look(model), adapter.state_dict()
        other = make_batch(num_rows)
        adapter.adapt(loss_fn, {**other, "states": factor * other["states"]})
        assert not equal(adapter.state_dict(), state)
        adapter.rollback()
        assert look(model) == before
        assert equal(adapter.state_dict(), state)
        with pytest.raises(RuntimeError, match="undoes the last call of adapt"):
            adapter.rollback()

    def test_there_is_nothing_to_roll_back_at_first(self):
        with pytest.raises(RuntimeError, match="none to undo"):
            Adapter(scalar_model(), config()).rollback()

    @CASES
    def test_a_deep_copy_lives_on_its_own(self, look, make_model, loss_fn):
        batch, model = make_batch(), make_model()
        adapter, control = Adapter(model, config()), Adapter(copy.deepcopy(model), config())
        for one in (adapter, control):
            one.adapt(loss_fn, batch)
        before, state = look(model), adapter.state_dict()
        for twin in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):  # noqa: S301
            twin.adapt(loss_fn, batch)
            assert not torch.equal(flat(twin.model), flat(model))
            twin.rollback()
            assert equal(twin.state_dict(), state)
            twin.reset()
            assert look(model) == before
            assert equal(adapter.state_dict(), state)
        for one in (adapter, control):
            one.adapt(loss_fn, batch)
        assert equal(adapter.state_dict(), control.state_dict())


class TestStateDict:
    @CASES
    def test_a_saved_adapter_goes_on_identically(self, make_model, loss_fn):
        batch = make_batch()
        adapter = Adapter(make_model(), config(trust_region_eps=0.05, max_steps_per_call=2))
        adapter.adapt(loss_fn, batch)
        adapter.adapt(loss_fn, {**batch, "states": batch["states"] * math.nan})
        file = io.BytesIO()
        torch.save(adapter.state_dict(), file)
        file.seek(0)
        other = Adapter(make_model(), adapter.cfg)
        other.adapt(loss_fn, make_batch())
        assert not equal(other.state_dict(), adapter.state_dict())
        other.load_state_dict(torch.load(file, weights_only=True))
        assert equal(other.state_dict(), adapter.state_dict())
        with pytest.raises(RuntimeError):
            other.rollback()
        assert other.adapt(loss_fn, batch) == adapter.adapt(loss_fn, batch)
        assert equal(other.state_dict(), adapter.state_dict())
        for one in (adapter, other):
            one.reset()
        assert equal(other.state_dict(), adapter.state_dict())

    @pytest.mark.parametrize("loaded", [False, True])
    def test_it_shares_no_memory(self, look, loaded):
        adapter = Adapter(Everything(), config())
        state, expected = adapter.state_dict(), adapter.state_dict()
        before = look(adapter.model)
        if loaded:
            adapter.load_state_dict(state)
        for part in ("weights", "averaged_weights", "source_weights"):
            for tensor in state[part].values():
                tensor.add_(1.0)
        for buffer in (*state["buffers"].values(), *state["source_buffers"].values()):
            buffer.add_(1)
        assert equal(adapter.state_dict(), expected)
        adapter.reset()
        assert look(adapter.model) == before

    @pytest.mark.parametrize(
        "damage",
        [
            lambda state: {},
            lambda state: None,
            lambda state: {**state, "weights": None},
            lambda state: {**state, "weights": dict.fromkeys(state["weights"], 1.0)},
            lambda state: {**state, "weights": {**state["weights"], "more": torch.zeros(1)}},
            lambda state: {**state, "source_weights": dict(list(state["weights"].items())[1:])},
            lambda state: {**state, "averaged_weights": {name: w[None] for name, w in state["weights"].items()}},
            lambda state: {**state, "buffers": dict(list(state["buffers"].items())[1:])},
            lambda state: {**state, "source_buffers": {name: b[None] for name, b in state["buffers"].items()}},
            lambda state: {**state, "stats": {"calls": 1, "invented": 2}},
            lambda state: {**state, "stats": None},
            lambda state: {**state, "stats": {**state["stats"], "calls": "many"}},
            lambda state: {**state, "weights": "many"},
            lambda state: {**state, "buffers": "many"},
            lambda state: {**state, "buffers": dict.fromkeys(state["buffers"], "many")},
            lambda state: {**state, "weights": {name: w * math.nan for name, w in state["weights"].items()}},
            lambda state: {**state, "source_weights": {name: w / 0.0 for name, w in state["weights"].items()}},
            lambda state: {**state, "weights": {name: w + 1.0 for name, w in state["weights"].items()}},
            lambda state: {**state, "averaged_weights": {name: w + 1.0 for name, w in state["weights"].items()}},
            lambda state: {**state, "weights": {name: w.long() for name, w in state["weights"].items()}},
            lambda state: "many",
        ],
    )
    def test_a_state_of_another_model_is_refused_and_changes_nothing(self, look, damage):
        adapter = Adapter(Everything(), config(trust_region_eps=0.1))
        adapter.adapt(MSE, make_batch())
        before, state = look(adapter.model), adapter.state_dict()
        other = Adapter(Everything(), config()).state_dict()
        with pytest.raises(ValueError, match="the state must be of an adapter of the same model"):
            adapter.load_state_dict(damage(other))
        assert look(adapter.model) == before
        assert equal(adapter.state_dict(), state)
        adapter.rollback()


class TestAttributes:
    """What a module keeps beside parameters and buffers."""

    class Attentive(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 1)
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x):
            output = self.linear(x)
            self.map = output
            self.seen = output.mean()[None]
            return output

    @pytest.mark.parametrize("adapts", [False, True])
    def test_an_adapter_whose_model_keeps_a_graph_can_be_copied(self, adapts):
        model, batch = self.Attentive(), make_batch()
        adapter = Adapter(model, config())
        model(batch["states"])
        if adapts:
            adapter.adapt(MSE, batch)
            model(batch["states"])
        assert model.map.grad_fn is not None
        twin = copy.deepcopy(adapter)
        assert torch.equal(twin.model.map, model.map)
        assert twin.model.map.grad_fn is None
        assert twin.adapt(MSE, batch) == adapter.adapt(MSE, batch)
        assert equal(twin.state_dict(), adapter.state_dict())

    def test_a_copy_is_of_the_same_kind(self):
        class Own(Adapter):
            more = None

        adapter = Own(scalar_model(), config())
        adapter.more = [1]
        twin = copy.deepcopy({"a": adapter, "again": adapter})
        assert twin["a"] is twin["again"]
        assert type(twin["a"]) is Own
        assert twin["a"].more == [1]
        assert twin["a"].more is not adapter.more


class TestMidEpisode:
    """Nothing that can come up in an episode raises an error, and what does is the caller's mistake and says so."""

    def test_a_config_of_numpy_s_numbers(self):
        numbers = {name: np.float32(value) for name, value in UNBOUNDED.items() if name != "max_steps_per_call"}
        adapter = Adapter(scalar_model(), AdaptationConfig(**numbers, max_steps_per_call=np.int64(3)))
        assert type(adapter.adapt(MSE, SCALAR_BATCH)) is float
        assert adapter.stats.steps == 3

    @pytest.mark.parametrize("key", ["states", "targets"])
    def test_a_batch_with_a_graph(self, key):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
        twin, batch = copy.deepcopy(model), make_batch()
        batch[key] = model[0](batch["states"]) if key == "states" else model(batch["states"]) + 1.0
        adapter = Adapter(model, config(max_steps_per_call=3))
        plain = Adapter(twin, config(max_steps_per_call=3))
        assert adapter.adapt(MSE, batch) == plain.adapt(MSE, {**batch, key: batch[key].detach()})
        assert adapter.stats.steps == 3

    @pytest.mark.parametrize("size", [1e154, 1e200, -1e300])
    def test_a_huge_loss(self, size):
        adapter = Adapter(scalar_model().double(), config(lr=0.0))
        for factor in (0.0, 1.0, -1.0):
            batch = {
                "states": torch.ones(1, 1).double(),
                "targets": torch.full((1, 1), factor * size, dtype=torch.float64),
            }
            assert adapter.adapt(lambda _, targets: targets.mean(), batch) == factor * size
        assert math.isfinite(adapter.stats.loss_mean)
        assert math.isfinite(adapter.stats.loss_variance)
        adapter.load_state_dict(adapter.state_dict())

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.bfloat16, torch.float64])
    def test_a_loss_of_any_type_is_returned_as_a_float(self, dtype):
        loss = Adapter(scalar_model(), config(lr=0.0)).adapt(lambda *_: torch.ones((), dtype=dtype), SCALAR_BATCH)
        assert (type(loss), loss) == (float, 1.0)

    @pytest.mark.parametrize("lr", [1e39, 1e300])
    def test_a_step_too_large_for_the_type(self, look, lr):
        model = scalar_model()
        before, adapter = look(model), Adapter(model, config(lr=lr))
        assert math.isnan(adapter.adapt(MSE, SCALAR_BATCH))
        assert look(model) == before

    def test_sparse_gradients(self):
        class Words(nn.Module):
            def __init__(self, sparse):
                super().__init__()
                self.table = nn.Embedding(5, 1, sparse=sparse)

            def forward(self, words):
                return self.table(words)

        batch = {"states": torch.tensor([1, 3, 3]), "targets": torch.ones(3, 1)}
        sparse, dense = Words(True), Words(False)
        dense.load_state_dict(sparse.state_dict())
        losses = [Adapter(model, config(max_steps_per_call=2)).adapt(MSE, batch) for model in (sparse, dense)]
        assert losses[0] == losses[1]
        assert torch.equal(flat(sparse), flat(dense))

    @pytest.mark.parametrize(
        "predict",
        [
            lambda x: Normal(x, x.detach() - 1e9),
            lambda x: Normal(x * math.nan, 1.0),
            lambda x: Categorical(logits=torch.cat([x, x * math.inf], dim=1)),
            lambda x: MultivariateNormal(x, x.detach()[:, :, None] * math.nan),
            lambda x: Normal(torch.linalg.solve(torch.zeros(1, 1), x.T).T, 1.0),
        ],
    )
    def test_a_prediction_of_numbers_that_are_not_valid(self, look, predict):
        model = nn.Linear(4, 1)
        model.register_forward_hook(lambda *args: predict(args[-1]))
        before, adapter = look(model), Adapter(model, config())
        loss = adapter.adapt(lambda prediction, targets: -prediction.log_prob(targets).mean(), make_batch())
        assert math.isnan(loss)
        assert look(model) == before
        assert adapter.stats.rejected_steps == 1

    def test_targets_that_no_distribution_supports(self):
        model = nn.Sequential(nn.Linear(4, 5), CategoricalHead())
        adapter, batch = Adapter(model, config()), make_batch()

        def loss_fn(distribution, targets):
            return -distribution.log_prob(targets[:, 0]).mean()

        assert math.isnan(adapter.adapt(loss_fn, {**batch, "targets": batch["targets"] * math.nan}))
        with pytest.raises(ValueError, match="to be within the support"):
            adapter.adapt(loss_fn, {**batch, "targets": torch.full((8, 1), 7.0)})

    @pytest.mark.parametrize(
        ("states", "targets", "loss_fn"),
        [
            (torch.zeros(8, 3), torch.zeros(8, 1), MSE),
            (torch.zeros(8, 4, dtype=torch.float64), torch.zeros(8, 1), MSE),
            (torch.zeros(8, 4, dtype=torch.long), torch.zeros(8, 1), MSE),
            (torch.zeros(8, 4), torch.zeros(8, 2), lambda x, y: (x - y[:, :1].expand(8, 3).reshape(3, 8)).mean()),
            (torch.zeros(8, 4), torch.full((8,), 5), lambda x, y: F.cross_entropy(x.expand(8, 3), y)),
            (torch.zeros(8, 4), torch.zeros(8, 1, dtype=torch.complex64), MSE),
        ],
    )
    def test_a_batch_that_does_not_fit_is_a_value_error_that_says_so(self, look, states, targets, loss_fn):
        model = Everything()
        adapter = Adapter(model, config())
        adapter.adapt(MSE, make_batch())
        before, state = look(model), adapter.state_dict()
        shapes = rf"states of shape \({states.shape[0]}, .* and {states.dtype}, targets of shape .* and {targets.dtype}"
        with pytest.raises(ValueError, match=f"the model must take the states.*{shapes}"):
            adapter.adapt(loss_fn, {"states": states, "targets": targets})
        assert look(model) == before
        assert equal(adapter.state_dict(), state)

    def test_too_little_memory_is_no_mistake_of_the_caller(self):
        def greedy(prediction, _):
            return prediction.mean() + torch.empty(2**60, dtype=torch.uint8).sum()

        with pytest.raises(RuntimeError, match="memory"):
            Adapter(scalar_model(), config()).adapt(greedy, SCALAR_BATCH)

    @pytest.mark.parametrize("batch", [{}, {"states": torch.zeros(2, 9), "targets": torch.zeros(2, 1)}])
    def test_of_a_call_that_was_refused_there_is_nothing_to_undo(self, batch):
        adapter = Adapter(nn.Linear(4, 1), config())
        adapter.adapt(MSE, make_batch())
        state = adapter.state_dict()
        with pytest.raises(ValueError, match="must"):
            adapter.adapt(MSE, batch)
        adapter.rollback()
        assert equal(adapter.state_dict(), state)
        with pytest.raises(RuntimeError, match="none to undo"):
            adapter.rollback()

    @pytest.mark.slow
    def test_ten_thousand_random_batches_and_models(self, look):
        """Each call gives a float or a ValueError, and one that is not accepted changes nothing."""
        rng, types = np.random.default_rng(0), [torch.float32, torch.float64, torch.float16, torch.bfloat16]
        numbers = [0.0, 1.0, -1.0, 1e-30, 1e30, -1e38, 1e200, math.inf, -math.inf, math.nan]
        odd_losses = [lambda x, y: y.mean(), lambda x, y: 1.0, lambda x, y: y]
        losses = [MSE, F.l1_loss, F.huber_loss, nn.CrossEntropyLoss(), lambda x, y: (x - y).pow(4).mean().sqrt()]
        classifying = [classify, lambda x, y: -x.log_prob(y[:, 0]).mean(), lambda x, y: x.logits.square().mean()]
        counts = {"accepted": 0, "rejected": 0, "refused": 0}

        def pick(options):
            return options[rng.integers(len(options))]

        def tensor(width, num_rows):
            values = torch.from_numpy(rng.normal(size=(num_rows, width)) * 10.0 ** rng.integers(-3, 4))
            if rng.random() < 0.2:
                values[rng.random(values.shape) < 0.2] = pick(numbers)
            kind = pick([model_type] * 8 + types + [torch.int64, torch.bool, torch.complex64])
            return values.to(kind)

        for _ in range(200):
            model_type = pick(types)
            predicts_classes = rng.random() < 0.3
            model = Everything(CategoricalHead() if predicts_classes else None).to(model_type)
            changes = {"lr": pick([0.0, 1e-3, 0.1, 10.0, 1e30, 1e300]), "max_steps_per_call": int(rng.integers(1, 4))}
            changes |= {
                "grad_clip_norm": pick([1e-3, 1.0, math.inf]),
                "trust_region_eps": pick([0.0, 1e-3, 1.0, math.inf]),
            }
            adapter = Adapter(model, config(**changes, entropy_weight=pick([0.0, 0.1])))
            for _ in range(50):
                num_rows = int(pick([0, 1, 2, 5, 8]))
                batch = {
                    "states": tensor(pick([4] * 9 + [3]), num_rows),
                    "targets": tensor(pick([1] * 5 + [2]), num_rows if rng.random() < 0.95 else 3),
                }
                before, stats = look(model), adapter.stats
                try:
                    loss_fn = pick((classifying if predicts_classes else losses) * 3 + odd_losses)
                    loss = adapter.adapt(loss_fn, batch)
                except ValueError:
                    counts["refused"] += 1
                    assert look(model) == before
                    assert equal(vars(adapter.stats), vars(stats))
                    continue
                assert type(loss) is float
                counts["rejected" if math.isnan(loss) else "accepted"] += 1
                if adapter.stats.steps == stats.steps and math.isnan(loss):
                    assert look(model) == before
                assert all(parameter.isfinite().all() for parameter in model.parameters())
        assert min(counts.values()) > 500, counts


class TestErrors:
    @pytest.mark.parametrize(
        "change",
        [
            lambda model: model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True),
            lambda model: setattr(model, "head", nn.Linear(5, 1)),
            lambda model: model.head.requires_grad_(False),
        ],
    )
    def test_a_model_that_is_another_one_by_now_is_noticed_whatever_is_asked_for(self, look, change):
        model = Everything()
        adapter = Adapter(model, config())
        adapter.adapt(MSE, make_batch())
        state = adapter.state_dict()
        change(model)
        before = look(model)
        for call in (
            lambda: adapter.adapt(MSE, make_batch()),
            adapter.reset,
            adapter.rollback,
            adapter.state_dict,
            lambda: adapter.load_state_dict(state),
        ):
            with pytest.raises(ValueError, match=r"when the adapter was made.*Make a new adapter\.$"):
                call()
        assert look(model) == before
        assert Adapter(model, config()).adapt(MSE, make_batch()) > 0.0

    def test_a_model_must_have_something_to_train(self):
        for model in (nn.Linear(2, 1).requires_grad_(False), nn.Tanh()):
            with pytest.raises(ValueError, match=r"must have a parameter that requires a gradient.*requires_grad_"):
                Adapter(model, config())

    def test_the_configuration_must_be_one(self):
        with pytest.raises(ValueError, match=r"cfg must be an AdaptationConfig; got \{'lr': 1}"):
            Adapter(scalar_model(), {"lr": 1})

    @pytest.mark.parametrize(
        "batch",
        [
            None,
            [torch.zeros(2, 4), torch.zeros(2, 1)],
            {},
            {"states": torch.zeros(2, 4)},
            {"states": torch.zeros(2, 4), 1: torch.zeros(2, 1)},
            {"states": torch.zeros(2, 4), "targets": [0.0, 0.0]},
            {"states": torch.zeros(2, 4), "targets": torch.zeros(3, 1)},
            {"states": torch.zeros(2, 4), "targets": torch.zeros(())},
            {"states": torch.zeros(()), "targets": torch.zeros(())},
        ],
        ids=str,
    )
    def test_a_malformed_batch(self, batch):
        adapter = Adapter(nn.Linear(4, 1), config())
        adapter.adapt(MSE, make_batch())
        state = adapter.state_dict()
        with pytest.raises(ValueError, match=r"must (be a dictionary|have the same number of rows).*; got"):
            adapter.adapt(MSE, batch)
        assert equal(adapter.state_dict(), state)

    @pytest.mark.parametrize(
        ("loss_fn", "message"),
        [
            (lambda prediction, target: 1.0, "loss_fn must return a scalar tensor; got 1.0"),
            (lambda prediction, target: prediction.mean() * 1j, "loss_fn must return a scalar tensor; got complex"),
            (lambda prediction, target: target.sum(), "the loss must depend on what the model predicts"),
        ],
    )
    def test_a_loss_that_gives_nothing_to_descend(self, loss_fn, message):
        with pytest.raises(ValueError, match=message):
            Adapter(Everything(), config()).adapt(loss_fn, make_batch())

    def test_targets_of_another_shape(self):
        batch = make_batch()
        with pytest.raises(ValueError, match=r"predictions and targets must have the same shape; got \(8, 1\) and"):
            Adapter(Everything(), config()).adapt(nn.MSELoss(), batch | {"targets": batch["targets"][:, 0]})

    def test_a_loss_that_is_no_scalar(self, look):
        model = Everything()
        before = look(model)
        with pytest.raises(ValueError, match=r"loss_fn must return a scalar tensor; got shape \(8, 1\)"):
            Adapter(model, config()).adapt(nn.MSELoss(reduction="none"), make_batch())
        assert look(model) == before
