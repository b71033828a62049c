import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from ssm_metarl_gym.agents import AdaptationConfig, Adapter, AdapterStats
from ssm_metarl_gym.agents.adaptation.rows import AdapterRows

N, K = 5, 6
BOUNDS = AdaptationConfig(
    lr=0.3, grad_clip_norm=1.0, trust_region_eps=0.5, ema_decay=0.9, entropy_weight=0.0, max_steps_per_call=3
)


def worst(prediction, target):
    """No mean over elements: nothing can be left out of it by a mask."""
    return (prediction - target).abs().amax()


def make_model(kind, dtype=torch.float32):
    if kind == "linear":
        return nn.Linear(3, 2).to(dtype)
    # The one is computed by batched products, the other by vmap.
    between = {"network": [nn.Tanh()], "normalised": [nn.LayerNorm(4), nn.Tanh()]}[kind]
    return nn.Sequential(nn.Linear(3, 4), *between, nn.Linear(4, 2)).to(dtype)


def make_batch(masked=True, dtype=torch.float32):
    mask = torch.rand(N, K) < 0.7 if masked else torch.ones(N, K, dtype=torch.bool)
    mask[0] = True
    mask[3] = not masked  # a row that has nothing yet
    return {"states": torch.randn(N, K, 3, dtype=dtype), "targets": 3.0 * torch.randn(N, K, 2, dtype=dtype)}, mask


def assert_rows_are_those_of(rows, singles, states):
    predictions = rows.predict(states)
    for i, single in enumerate(singles):
        with torch.no_grad():
            torch.testing.assert_close(predictions[i], single.model(states[i]), rtol=1e-4, atol=1e-5)
        own = {name: value[i].item() for name, value in vars(rows.stats).items()}
        assert own == pytest.approx(dataclasses.asdict(single.stats), rel=1e-4, abs=1e-5, nan_ok=True)


@pytest.mark.each_value
@pytest.mark.parametrize("kind", ["linear", "network", "normalised"])
@pytest.mark.parametrize("loss_fn", [nn.MSELoss(), nn.SmoothL1Loss(reduction="sum"), worst])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"grad_clip_norm": 0.1},
        {"trust_region_eps": 0.05},
        {"trust_region_eps": math.inf},
        {"lr": 0.0},
        {"lr": 1e30},
    ],
)
def test_every_row_does_what_an_adapter_does(kind, loss_fn, changes):
    adapter = Adapter(make_model(kind), dataclasses.replace(BOUNDS, **changes))
    rows, singles = AdapterRows(adapter, N), [copy.deepcopy(adapter) for _ in range(N)]
    for call in range(4):
        batch, mask = make_batch()
        if call == 2:
            batch["targets"][0, 1] = math.nan
        losses = rows.adapt(loss_fn, batch, mask=mask)
        for i, single in enumerate(singles):
            own = single.adapt(loss_fn, {name: part[i][mask[i]] for name, part in batch.items()})
            assert losses[i].item() == pytest.approx(own, rel=1e-4, abs=1e-5, nan_ok=True)
        assert_rows_are_those_of(rows, singles, batch["states"])


class Remarkable(nn.Module):
    """Has a layer that it calls twice, and keeps what it computed."""

    seen = None

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(3, 3), nn.Linear(3, 2)
        self.again = self.layer

    def forward(self, x):
        self.seen = self.again(self.layer(x).tanh())
        return self.head(self.seen)


def test_shared_parts_and_attributes_are_left_as_they_were():
    adapter = Adapter(Remarkable(), BOUNDS)
    rows, singles = AdapterRows(adapter, N), [copy.deepcopy(adapter) for _ in range(N)]
    for _ in range(2):
        batch, mask = make_batch()
        rows.adapt(nn.MSELoss(), batch, mask=mask)
        for i, single in enumerate(singles):
            single.adapt(nn.MSELoss(), {name: part[i][mask[i]] for name, part in batch.items()})
        assert_rows_are_those_of(rows, singles, batch["states"])
    assert rows.model.seen is None
    assert rows.model.again is rows.model.layer
    assert isinstance(rows.model.layer.weight, nn.Parameter)


def test_many_rows_are_computed_in_parts():
    model = nn.Linear(100, 80)  # of which 70 rows do not fit into the cache of a core
    adapter = Adapter(model, dataclasses.replace(BOUNDS, trust_region_eps=0.02))
    rows = AdapterRows(adapter, 70)
    batch = {"states": torch.randn(70, K, 100), "targets": torch.randn(70, K, 80)}
    mask, chosen = torch.rand(70, K) < 0.8, torch.arange(70) % 9 != 4
    mask[50] = False
    for _ in range(2):
        losses = rows.adapt(nn.MSELoss(), batch, mask=mask, rows=chosen)
    assert torch.equal(losses.isfinite(), chosen & mask.any(dim=1))
    for i in (0, 31, 33, 40, 50, 69):
        single = copy.deepcopy(adapter)
        for _ in range(2 * chosen[i]):
            single.adapt(nn.MSELoss(), {name: part[i][mask[i]] for name, part in batch.items()})
        own = {name: value[i].item() for name, value in vars(rows.stats).items()}
        assert own == pytest.approx(dataclasses.asdict(single.stats), rel=1e-4, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("nothing", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["linear", "network", "normalised"])
def test_what_the_mask_leaves_out_may_be_anything(kind, nothing):
    rows = AdapterRows(Adapter(make_model(kind), BOUNDS), N)
    expected = copy.deepcopy(rows)
    batch, mask = make_batch()
    losses = expected.adapt(nn.MSELoss(), batch, mask=mask)
    for part in batch.values():
        part[~mask] = nothing
    assert torch.equal(rows.adapt(nn.MSELoss(), batch, mask=mask).nan_to_num(), losses.nan_to_num())
    states = torch.randn(N, K, 3)
    assert torch.equal(rows.predict(states), expected.predict(states))


def test_rows_that_do_not_adapt_stay_as_they_are():
    rows = AdapterRows(Adapter(make_model("linear"), BOUNDS), N)
    batch, _ = make_batch(masked=False)
    before = rows.predict(batch["states"])
    chosen = torch.tensor([True, False, True, False, False])
    losses = rows.adapt(nn.MSELoss(), batch, rows=chosen)
    changed = (rows.predict(batch["states"]) != before).flatten(1).any(dim=1)
    assert torch.equal(changed, chosen)
    assert torch.equal(~losses.isnan(), chosen)
    assert torch.equal(rows.stats.calls, chosen.long())


@pytest.mark.parametrize("loss_fn", [nn.MSELoss(), worst])
def test_rows_computed_along_stay_as_they_are_whatever_they_hold(loss_fn):
    rows = AdapterRows(Adapter(make_model("network"), BOUNDS), N)
    batch, mask = make_batch(masked=False)
    for part in batch.values():
        part[1] = math.nan
        part[3] = 1e30
    before, stats = rows.weights(), copy.deepcopy(rows.stats)
    chosen = torch.tensor([True, False, True, False, True])
    expected = AdapterRows(Adapter(rows.model, BOUNDS), N)
    assert rows.adapt(loss_fn, batch, mask=mask, rows=chosen).isnan().tolist() == (~chosen).tolist()
    for name, weight in rows.weights().items():
        assert torch.equal((weight != before[name]).flatten(1).any(dim=1), chosen)
    for name, value in vars(rows.stats).items():
        torch.testing.assert_close(value[~chosen], getattr(stats, name)[~chosen], equal_nan=True)
    clean = {name: part.nan_to_num(0.0).clamp(-9.0, 9.0) for name, part in batch.items()}
    expected.adapt(loss_fn, clean, mask=mask)
    for name, weight in rows.weights().items():
        torch.testing.assert_close(weight[chosen], expected.weights()[name][chosen])


def test_some_rows_predict_as_all_do():
    rows = AdapterRows(Adapter(make_model("network"), BOUNDS), N)
    batch, mask = make_batch()
    rows.adapt(nn.MSELoss(), batch, mask=mask)
    some = torch.tensor([1, 4]).numpy()
    torch.testing.assert_close(rows.predict(batch["states"][some], some), rows.predict(batch["states"])[some])


def test_reset_goes_back_to_the_source_in_the_rows_given():
    rows = AdapterRows(Adapter(make_model("network"), BOUNDS), N)
    batch, _ = make_batch(masked=False)
    before = rows.predict(batch["states"])
    rows.adapt(nn.MSELoss(), batch)
    back = torch.tensor([False, True, False, False, True])
    rows.reset(back)
    unchanged = (rows.predict(batch["states"]) == before).flatten(1).all(dim=1)
    assert torch.equal(unchanged, back)
    assert torch.equal(rows.stats.steps == 0, back)
    assert {name: value[1].item() for name, value in vars(rows.stats).items()} == pytest.approx(
        dataclasses.asdict(AdapterStats()), nan_ok=True
    )
    rows.reset()
    assert torch.equal(rows.predict(batch["states"]), before)


def test_the_adapter_and_its_model_stay_as_they_are():
    adapter = Adapter(make_model("linear"), BOUNDS)
    batch, _ = make_batch(masked=False)
    adapter.adapt(nn.MSELoss(), {name: part[0] for name, part in batch.items()})
    weight, stats = adapter.model.weight.detach().clone(), adapter.stats
    rows = AdapterRows(adapter, N)
    rows.adapt(nn.MSELoss(), batch)
    assert torch.equal(adapter.model.weight, weight)
    assert adapter.stats == stats


def test_no_weight_leaves_the_ball():
    adapter = Adapter(make_model("network"), dataclasses.replace(BOUNDS, trust_region_eps=0.01, lr=10.0))
    source = torch.cat([parameter.detach().flatten() for parameter in adapter.model.parameters()])
    rows = AdapterRows(adapter, N)
    for _ in range(50):
        batch, _ = make_batch(masked=False)
        rows.adapt(nn.MSELoss(), batch)
    assert (rows.stats.distance <= 0.01).all()
    assert (rows.stats.projected_steps > 0).all()
    assert source.isfinite().all()


def test_losses_whose_squares_overflow_are_tracked_as_an_adapter_does():
    adapter = Adapter(nn.Linear(1, 1).double(), BOUNDS)
    rows = AdapterRows(adapter, 1)
    for size in (1e100, 1.0):
        batch = {"states": torch.ones(3, 1).double(), "targets": torch.full((3, 1), size, dtype=torch.float64)}
        adapter.adapt(nn.MSELoss(), batch)
        rows.adapt(nn.MSELoss(), {name: column[None] for name, column in batch.items()})
    assert math.isfinite(rows.stats.loss_variance.item())
    assert rows.stats.loss_variance.item() == pytest.approx(adapter.stats.loss_variance)


def test_double_precision_stays():
    rows = AdapterRows(Adapter(make_model("linear", torch.float64), BOUNDS), N)
    batch, mask = make_batch(dtype=torch.float64)
    rows.adapt(nn.MSELoss(), batch, mask=mask)
    assert rows.predict(batch["states"]).dtype == torch.float64


def test_half_precision_is_refused():
    adapter = Adapter(make_model("linear").bfloat16(), BOUNDS)
    with pytest.raises(ValueError, match=r"must all be of single or all of double precision; got torch\.bfloat16"):
        AdapterRows(adapter, N)


class OnAnAccelerator(nn.Parameter):
    """A parameter that says so, where there is none."""

    device = property(lambda self: torch.device("cuda:1"))


def test_another_device_than_the_cpu_is_refused():
    model = nn.Linear(5, 3)
    model.weight = OnAnAccelerator(model.weight.detach())
    with pytest.raises(ValueError, match=r"must be on the CPU; got cuda:1\. Use the model's cpu\(\) before"):
        AdapterRows(Adapter(model, BOUNDS), N)


def test_it_works_without_gradients_and_in_inference_mode():
    adapter = Adapter(make_model("linear"), BOUNDS)
    batch, _ = make_batch(masked=False)
    expected = AdapterRows(adapter, N).adapt(nn.MSELoss(), batch)
    with torch.no_grad():
        assert torch.equal(AdapterRows(adapter, N).adapt(nn.MSELoss(), batch), expected)
    with torch.inference_mode():
        assert torch.equal(AdapterRows(adapter, N).adapt(nn.MSELoss(), batch), expected)
