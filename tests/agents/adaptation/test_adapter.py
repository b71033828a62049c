import copy
import io
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Categorical

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
        eps=st.floats(1e-9, 10.0),
        lr=st.floats(1e-3, 1e3),
        width=st.integers(1, 5),
        scale=st.sampled_from([1e-3, 1.0, 1e3]),
        seed=st.integers(0, 2**31),
    )
    def test_the_weights_never_leave_the_ball(self, eps, lr, width, scale, seed):
        torch.manual_seed(seed)
        model = nn.Linear(width, 1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(scale)
        source = flat(model).double()
        adapter = Adapter(model, config(lr=lr, grad_clip_norm=10.0, trust_region_eps=eps, max_steps_per_call=2))
        for _ in range(3):
            batch = {"states": torch.randn(4, width), "targets": 10.0 * torch.randn(4, 1)}
            adapter.adapt(MSE, batch)
            distance = (flat(model).double() - source).norm().item()
            assert distance <= (1.0 + 1e-6) * eps * source.norm().item()
            assert adapter.stats.distance == pytest.approx(distance / source.norm().item(), rel=1e-3, abs=1e-7)

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

    def test_distributions_refuse_nan_again_afterwards(self):
        adapter = Adapter(Everything(CategoricalHead()), config())
        adapter.adapt(classify, make_batch())
        with pytest.raises(ZeroDivisionError):
            adapter.adapt(lambda *_: 1 / 0, make_batch())
        with pytest.raises(ValueError, match="logits"):
            Categorical(logits=torch.tensor([math.nan, 0.0]))


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
        ],
    )
    def test_a_state_of_another_model_is_refused_and_changes_nothing(self, look, damage):
        adapter = Adapter(Everything(), config())
        adapter.adapt(MSE, make_batch())
        before, state = look(adapter.model), adapter.state_dict()
        other = Adapter(Everything(), config()).state_dict()
        with pytest.raises(ValueError, match="the state must be of an adapter of the same model"):
            adapter.load_state_dict(damage(other))
        assert look(adapter.model) == before
        assert equal(adapter.state_dict(), state)
        adapter.rollback()


class TestErrors:
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
