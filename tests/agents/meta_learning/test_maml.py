import copy
import gc
import io
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.func import functional_call

from ssm_metarl_gym.agents import SSM, MetaMAML
from ssm_metarl_gym.agents.meta_learning.low_rank import LowRankNetwork
from ssm_metarl_gym.agents.meta_learning.tasks import as_inputs

MSE = nn.MSELoss()
SGD = torch.optim.SGD


def tanh_mlp():
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


def tiny_ssm():
    return SSM(2, 4, 1, num_layers=1)


def normalised_mlp():
    return nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Tanh(), nn.Linear(3, 1))


def batch_normalised_mlp():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1))


class TiedMLP(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
        self[2].weight = self[0].weight


class LSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, 3, batch_first=True)
        self.head = nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


def make_tasks(num_tasks=3, num_rows=5, time=(), dtype=torch.float32):
    """Tasks for a model from two numbers to one."""
    return [tuple(torch.randn(num_rows, *time, width, dtype=dtype) for width in (2, 1, 2, 1)) for _ in range(num_tasks)]


def make_ragged_tasks(dtype=torch.float64):
    sizes = [(3, 4), (5, 2), (1, 1), (3, 6)]
    return [
        (*make_tasks(1, support, dtype=dtype)[0][:2], *make_tasks(1, query, dtype=dtype)[0][2:])
        for support, query in sizes
    ]


def with_state(tasks):
    """The same tasks for sequences that begin in a given hidden state of ``tiny_ssm``."""
    return [
        tuple(
            (part, torch.randn(len(part), 1, 2, 2, dtype=part.dtype)) if index in (0, 2) else part
            for index, part in enumerate(task)
        )
        for task in tasks
    ]


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def meta_gradient(model, tasks, loss_fn=MSE, **options):
    """The gradient that ``meta_update`` descends: by how much plain gradient descent of rate 1 changes the weights."""
    model = copy.deepcopy(model)
    maml = MetaMAML(model, 0.3, 1.0, **{"inner_steps": 2, "optimizer_class": SGD, **options})
    before = flat(model.parameters())
    maml.meta_update(tasks, loss_fn)
    return before - flat(model.parameters())


def plain_loss(model, task, loss_fn=MSE, *, inner_steps=2, first_order=False, adapts=None, shares=None):
    """The loss of a task by a plain loop over the steps; with shares, those of the losses after each step."""
    support_x, support_y, query_x, query_y = task
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    tensors = {name: buffer.clone() for name, buffer in model.named_buffers()}
    adapted = [name for name in weights if adapts is None or adapts(name)]
    losses = []
    for step in range(inner_steps + 1):
        if step == inner_steps or shares is not None:
            query_loss = loss_fn(functional_call(model, tensors | weights, as_inputs(query_x)), query_y)
            losses.append(query_loss)
        if step < inner_steps:
            loss = loss_fn(functional_call(model, tensors | weights, as_inputs(support_x)), support_y)
            parts = [weights[name] for name in adapted]
            slopes = torch.autograd.grad(loss, parts, create_graph=not first_order, materialize_grads=True)
            weights |= {name: weights[name] - 0.3 * slope for name, slope in zip(adapted, slopes, strict=True)}
    return losses[0] if shares is None else sum(share * loss for share, loss in zip(shares, losses, strict=True))


def plain_gradient(model, tasks, loss_fn=MSE, **options):
    """The gradient of the mean loss by a plain loop over the tasks."""
    model = copy.deepcopy(model)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    loss = sum(plain_loss(model, task, loss_fn, **options) for task in tasks) / len(tasks)
    slopes = iter(torch.autograd.grad(loss, trained, materialize_grads=True))
    return flat(next(slopes) if weight.requires_grad else torch.zeros_like(weight) for weight in model.parameters())


class TestAdapt:
    def test_hand_computed_steps(self):
        # Loss ((w - 1)^2 + (2w - 1)^2) / 2 with the slope 5w - 3: 2 -> 2 - 0.1 * 7 -> 1.3 - 0.1 * 3.5.
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, 2.0)
        x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [1.0]])
        maml = MetaMAML(model, inner_lr=0.1, outer_lr=1.0)
        for num_steps, expected in ((0, 2.0), (1, 1.3), (2, 0.95)):
            assert maml.adapt(x, y, MSE, num_steps).weight.item() == pytest.approx(expected)

    @pytest.mark.each_value
    @pytest.mark.parametrize("make_model", [tanh_mlp, tiny_ssm])
    @pytest.mark.parametrize("first_order", [False, True])
    def test_steps_are_gradient_descent(self, make_model, first_order):
        model = make_model()
        x, y, *_ = make_tasks(1)[0]
        adapted = MetaMAML(model, 0.1, 1.0, first_order).adapt(x, y, MSE, num_steps=3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            MSE(model(x), y).backward()
            optimizer.step()
        torch.testing.assert_close(flat(adapted.parameters()), flat(model.parameters()))

    def test_the_model_is_untouched(self, look, untouched_rng):
        model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3).eval(), nn.Linear(3, 1))
        model[0].weight.grad = torch.ones(3, 2)
        model[2].bias.requires_grad_(False)
        x, y, *_ = make_tasks(1)[0]
        maml, before = MetaMAML(model, 0.1, 1.0), look(model)
        with untouched_rng():
            adapted = maml.adapt(x, y, MSE, num_steps=2)
        assert look(model) == before
        assert [part.training for part in adapted.modules()] == [part.training for part in model.modules()]
        assert not adapted[2].bias.requires_grad

    def test_the_copy_lives_on_its_own(self, look):
        model = tanh_mlp()
        x, y, *_ = make_tasks(1)[0]
        adapted, before = MetaMAML(model, 0.1, 1.0).adapt(x, y, MSE, num_steps=2), look(model)
        saved = io.BytesIO()
        torch.save(adapted.state_dict(), saved)
        saved.seek(0)
        restored = tanh_mlp()
        restored.load_state_dict(torch.load(saved, weights_only=True))
        for twin in (copy.deepcopy(adapted), pickle.loads(pickle.dumps(adapted)), restored):  # noqa: S301
            assert look(twin) == look(adapted)
        loss = MSE(adapted(x), y)
        loss.backward()
        torch.optim.SGD(adapted.parameters(), lr=0.01).step()
        assert MSE(adapted(x), y) < loss
        assert look(model) == before

    def test_threads_may_adapt_at_the_same_time(self, look):
        model, tasks = Attention(fused=False).eval(), make_tasks(8)
        maml, before = MetaMAML(model, 0.1, 1.0), look(model)
        expected = [look(maml.adapt(*task[:2], MSE, 5)) for task in tasks]
        with ThreadPoolExecutor(4) as pool:
            actual = list(pool.map(lambda task: look(maml.adapt(*task[:2], MSE, 5)), tasks))
        assert actual == expected
        assert look(model) == before

    def test_no_steps_make_a_copy(self, look):
        model = tanh_mlp()
        x, y, *_ = make_tasks(1)[0]
        adapted = MetaMAML(model, 0.1, 1.0).adapt(x, y, MSE, num_steps=0)
        assert look(adapted) == look(model)
        assert not {id(p) for p in adapted.parameters()} & {id(p) for p in model.parameters()}

    @pytest.mark.parametrize("num_steps", [-1, 1.0, None])
    def test_the_number_of_steps_is_checked(self, num_steps):
        x, y, *_ = make_tasks(1)[0]
        with pytest.raises(ValueError, match=f"num_steps must be an int >= 0; got {num_steps}"):
            MetaMAML(tanh_mlp(), 0.1, 1.0).adapt(x, y, MSE, num_steps)


MODELS = {
    "MLP": (tanh_mlp, make_tasks),
    "MLP on sequences": (tanh_mlp, lambda *args, **kwargs: make_tasks(*args, time=(4,), **kwargs)),
    "tied MLP": (TiedMLP, make_tasks),
    "layer normalisation": (normalised_mlp, make_tasks),
    "batch normalisation": (batch_normalised_mlp, make_tasks),
    "SSM": (tiny_ssm, make_tasks),
    "SSM on sequences": (tiny_ssm, lambda *args, **kwargs: make_tasks(*args, time=(4,), **kwargs)),
    "SSM from a state": (tiny_ssm, lambda *args, **kwargs: with_state(make_tasks(*args, time=(4,), **kwargs))),
    "SSM step": (tiny_ssm, lambda *args, **kwargs: with_state(make_tasks(*args, **kwargs))),
    "LSTM": (LSTM, lambda *args, **kwargs: make_tasks(*args, time=(4,), **kwargs)),
}


def some(*names):
    """All models, but those of other names are slow."""
    return [pytest.param(name, marks=[] if name in names else pytest.mark.slow) for name in MODELS]


class TestMetaGradient:
    @pytest.mark.each_value
    @pytest.mark.parametrize("first_order", [False, True])
    @pytest.mark.parametrize("name", some("MLP", "tied MLP", "SSM from a state", "LSTM"))
    def test_it_is_that_of_a_plain_loop(self, name, first_order):
        make_model, make = MODELS[name]
        model, tasks = make_model().double(), make(3, dtype=torch.float64)
        actual = meta_gradient(model, tasks, first_order=first_order)
        torch.testing.assert_close(actual, plain_gradient(model, tasks, first_order=first_order))

    @pytest.mark.parametrize("name", some("MLP", "SSM on sequences", "LSTM"))
    def test_second_order_is_exact(self, name):
        make_model, make = MODELS[name]
        model, tasks = make_model().double(), make(2, dtype=torch.float64)
        source, maml = flat(model.parameters()), MetaMAML(model, 0.3, 1.0)

        def loss(weights):
            nn.utils.vector_to_parameters(weights, model.parameters())
            return maml.query_losses(tasks, MSE, [2]).mean().item()

        exact, first_order = (meta_gradient(model, tasks, first_order=value) for value in (False, True))
        direction = torch.randn_like(source)
        slope = (loss(source + 1e-6 * direction) - loss(source - 1e-6 * direction)) / 2e-6
        assert exact @ direction == pytest.approx(slope, rel=1e-6, abs=1e-8)
        assert (exact - first_order).norm() > 0.05 * exact.norm()

    @pytest.mark.each_value
    @pytest.mark.parametrize(
        ("inner_steps", "adapts"),
        [(0, None), (3, None), (3, lambda name: "bias" in name), (3, lambda name: name.startswith("2."))],
    )
    @pytest.mark.parametrize("first_order", [False, True])
    def test_both_ways_for_plain_networks(self, way, inner_steps, first_order, adapts):
        model, tasks = tanh_mlp().double(), make_ragged_tasks()
        options = {"inner_steps": inner_steps, "first_order": first_order, "adapts": adapts}
        torch.testing.assert_close(meta_gradient(model, tasks, **options), plain_gradient(model, tasks, **options))

    @pytest.mark.each_value
    @pytest.mark.parametrize("adapts", [None, lambda name: "decoder" in name])
    @pytest.mark.parametrize("first_order", [False, True])
    def test_tasks_of_different_lengths(self, caplog, first_order, adapts):
        model, tasks = tiny_ssm().double(), make_ragged_tasks()
        options = {"first_order": first_order, "adapts": adapts}
        torch.testing.assert_close(meta_gradient(model, tasks, **options), plain_gradient(model, tasks, **options))
        assert not caplog.records  # shapes are no reason to give up on vmap

    @pytest.mark.each_value
    @pytest.mark.parametrize("make_model", [tanh_mlp, tiny_ssm])
    def test_frozen_weights(self, way, make_model):
        model, tasks = make_model().double(), make_tasks(dtype=torch.float64)
        next(model.parameters()).requires_grad_(False)
        torch.testing.assert_close(meta_gradient(model, tasks), plain_gradient(model, tasks))

    @pytest.mark.each_value
    @pytest.mark.parametrize(
        ("make_model", "algorithm"),
        [
            (tanh_mlp, "maml"),
            (tanh_mlp, "reptile"),
            (tiny_ssm, "maml"),
            (LSTM, "reptile"),
            (batch_normalised_mlp, "maml"),
        ],
    )
    def test_chunks_make_no_difference(self, make_model, algorithm):
        time = (4,) if make_model is LSTM else ()
        model, tasks = make_model().double(), make_tasks(5, time=time, dtype=torch.float64)
        whole = meta_gradient(model, tasks, algorithm=algorithm)
        torch.testing.assert_close(meta_gradient(model, tasks, algorithm=algorithm, task_chunk_size=2), whole)

    def test_single_precision(self, way):
        model, tasks = tanh_mlp(), make_tasks(8)
        assert (meta_gradient(model, tasks) - plain_gradient(model, tasks)).abs().max() < 1e-5


class TestLearnedRates:
    @pytest.mark.each_value
    @pytest.mark.parametrize(
        ("learned_rates", "first_order", "make_model"),
        [(rates, order, tanh_mlp) for rates in ("tensor", "step", "element") for order in (False, True)]
        + [("step", False, LSTM)],
    )
    def test_their_gradient_is_exact(self, learned_rates, first_order, make_model):
        time = (3,) if make_model is LSTM else ()
        model, tasks = make_model().double(), make_tasks(2, time=time, dtype=torch.float64)
        # In first order the slope by the rates is only exact where there is but one step.
        inner_steps = 1 if first_order else 2
        maml = MetaMAML(
            model, 0.3, 1.0, first_order, inner_steps=inner_steps, learned_rates=learned_rates, optimizer_class=SGD
        )
        state = maml.state_dict()

        def loss(name, logarithms):
            rates = {**state["rates"], name: logarithms}
            maml.load_state_dict({**state, "rates": rates})
            return maml.query_losses(tasks, MSE, [inner_steps]).mean().item()

        slopes = {}
        for name, before in state["rates"].items():
            direction = torch.randn_like(before)
            ends = [loss(name, before + sign * 1e-6 * direction) for sign in (1.0, -1.0)]
            slopes[name] = direction, (ends[0] - ends[1]) / 2e-6
        maml.load_state_dict(state)
        maml.meta_update(tasks, MSE)
        for name, (direction, slope) in slopes.items():
            change = state["rates"][name] - maml.state_dict()["rates"][name]
            assert (change * direction).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-9)
            assert change.abs().sum() > 0.0

    @pytest.mark.parametrize("learned_rates", ["tensor", "step", "element"])
    def test_adapt_uses_them(self, learned_rates):
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, 2.0)
        maml = MetaMAML(model, 0.1, 1.0, inner_steps=2, learned_rates=learned_rates)
        state = maml.state_dict()
        logarithms = (
            torch.tensor([0.5, 0.25]).log() if learned_rates == "step" else state["rates"]["weight"] * 0.0 - math.log(4)
        )
        maml.load_state_dict({**state, "rates": {"weight": logarithms}})
        x = torch.ones(1, 1)
        adapted = maml.adapt(x, torch.zeros(1, 1), MSE, 3)  # the slope of w^2 is 2w
        expected = 2.0 * (0.0 if learned_rates == "step" else 0.5**3)
        assert adapted.weight.item() == pytest.approx(expected)
        adapted = maml.adapt(x, torch.ones(1, 1), MSE, 1)
        assert adapted.weight.item() == pytest.approx(1.0 if learned_rates == "step" else 1.5)

    @pytest.mark.parametrize("optimizer_kwargs", [{"weight_decay": 0.1}, {}])
    def test_no_decay_of_weights_moves_them(self, optimizer_kwargs):
        model, tasks = nn.Linear(2, 1), make_tasks()
        maml = MetaMAML(
            model,
            0.01,
            0.01,
            learned_rates="tensor",
            optimizer_class=torch.optim.AdamW,
            optimizer_kwargs=optimizer_kwargs,
        )
        size = model.weight.norm().item()
        for _ in range(20):
            maml.meta_update(tasks, lambda prediction, target: 1e-30 * (prediction - target).square().mean())
        rates = maml.state_dict()["rates"]
        assert [rate.exp().item() for rate in rates.values()] == pytest.approx([0.01, 0.01])
        assert model.weight.norm().item() < size


class TestMultiStepLosses:
    def test_earlier_losses_fade_out(self, way):
        # In the first update all three losses count alike, halfway the last one counts two thirds, then all.
        model, tasks = tanh_mlp().double(), make_tasks(dtype=torch.float64)
        maml = MetaMAML(model, 0.3, 1e-3, inner_steps=3, multi_step_updates=2, optimizer_class=SGD)
        for shares in ([0, 1 / 3, 1 / 3, 1 / 3], [0, 1 / 6, 1 / 6, 2 / 3], [0, 0, 0, 1], [0, 0, 0, 1]):
            expected = plain_gradient(model, tasks, inner_steps=3, shares=shares)
            mean = sum(plain_loss(model, task, inner_steps=3, shares=shares) for task in tasks) / len(tasks)
            before = flat(model.parameters())
            assert maml.meta_update(tasks, MSE) == pytest.approx(mean.item())
            torch.testing.assert_close((before - flat(model.parameters())) / 1e-3, expected)

    @pytest.mark.parametrize("inner_steps", [0, 1])
    def test_without_earlier_steps_it_changes_nothing(self, inner_steps):
        model, tasks = tanh_mlp(), make_tasks()
        assert torch.equal(
            meta_gradient(model, tasks, inner_steps=inner_steps, multi_step_updates=10),
            meta_gradient(model, tasks, inner_steps=inner_steps),
        )


class TestReptile:
    @pytest.mark.parametrize("make_model", [tanh_mlp, tiny_ssm, LSTM])
    def test_the_weights_move_towards_those_of_the_tasks(self, caplog, make_model):
        # Three steps: on the support, on the query, on the support.
        time = (4,) if make_model is LSTM else ()
        model, tasks = make_model().double(), make_tasks(time=time, dtype=torch.float64)
        before, adapted = flat(model.parameters()), []
        for support_x, support_y, query_x, query_y in tasks:
            one = copy.deepcopy(model)
            for x, y in ((support_x, support_y), (query_x, query_y), (support_x, support_y)):
                one = MetaMAML(one, 0.3, 1.0).adapt(x, y, MSE, 1)
            adapted.append((flat(one.parameters()), MSE(one(query_x), query_y).item()))
        caplog.clear()
        maml = MetaMAML(model, 0.3, 0.2, inner_steps=3, algorithm="reptile", optimizer_class=SGD)
        loss = maml.meta_update(tasks, MSE)
        assert loss == pytest.approx(sum(loss for _, loss in adapted) / 3)
        mean = sum(weights for weights, _ in adapted) / 3
        torch.testing.assert_close(flat(model.parameters()), before + 0.2 * (mean - before))
        assert ("one after the other" in caplog.text) == (make_model is LSTM)

    def test_only_what_adapts_moves(self):
        model, tasks = tanh_mlp(), make_tasks()
        before = copy.deepcopy(model)
        MetaMAML(model, 0.3, 0.1, algorithm="reptile", adapts=lambda name: "2." in name).meta_update(tasks, MSE)
        assert torch.equal(flat(model[0].parameters()), flat(before[0].parameters()))
        assert (flat(model[2].parameters()) != flat(before[2].parameters())).all()

    def test_layer_normalisation_needs_no_loop(self, caplog):
        MetaMAML(normalised_mlp(), 0.3, 0.1, algorithm="reptile").meta_update(make_tasks(), MSE)
        assert not caplog.records

    def test_complex_weights_move_towards_the_adapted_ones_too(self):
        model = nn.Linear(2, 1, bias=False, dtype=torch.complex64)
        task = torch.randn(5, 2).to(torch.complex64), torch.randn(5, 1).to(torch.complex64)

        def loss_fn(prediction, target):
            return (prediction - target).abs().square().mean()

        adapted = MetaMAML(model, 0.1, 0.1).adapt(*task, loss_fn, 1)
        way = model.weight.detach() - adapted.weight.detach()
        before = model.weight.detach().clone()
        options = {"optimizer_class": torch.optim.SGD}
        MetaMAML(model, 0.1, 0.5, algorithm="reptile", **options).meta_update([task * 2], loss_fn)
        torch.testing.assert_close(model.weight.detach(), before - 0.5 * way)


class TestMultiTaskTraining:
    def test_it_is_plain_training_on_the_query_sets(self):
        model, tasks = tanh_mlp().double(), make_tasks(dtype=torch.float64)
        plain = copy.deepcopy(model)
        maml, optimizer = MetaMAML(model, 0.3, 0.01, inner_steps=0), torch.optim.Adam(plain.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            loss = sum(MSE(plain(query_x), query_y) for _, _, query_x, query_y in tasks) / len(tasks)
            loss.backward()
            optimizer.step()
            assert maml.meta_update(tasks, MSE) == pytest.approx(loss.item())
        torch.testing.assert_close(flat(model.parameters()), flat(plain.parameters()))


class TestMetaUpdate:
    def test_it_returns_the_loss_before_the_step(self):
        model, tasks = tanh_mlp(), make_tasks()
        maml = MetaMAML(model, 0.1, 0.01, inner_steps=2)
        expected = sum(MSE(maml.adapt(sx, sy, MSE, 2)(qx), qy).item() for sx, sy, qx, qy in tasks) / len(tasks)
        assert maml.meta_update(tasks, MSE) == pytest.approx(expected, rel=1e-5)
        assert maml.meta_update(tasks, MSE) < expected
        assert maml.num_updates == 2
        assert all(parameter.grad is None for parameter in model.parameters())

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "options",
        [{}, {"first_order": True}, {"algorithm": "reptile", "inner_steps": 4}, {"learned_rates": "step"}],
        ids=str,
    )
    def test_it_learns_a_family_of_lines(self, options, untouched_rng):
        # The lines cross at x = 0.5, y = 3: from there one step suffices, from anywhere else it does not.
        for seed in range(2):
            generator = torch.Generator().manual_seed(seed)

            def family(num_tasks, generator=generator):
                x = torch.rand(num_tasks, 2, 8, 1, generator=generator)
                slopes = 4.0 * torch.rand(num_tasks, 1, 1, 1, generator=generator) - 2.0
                y = 3.0 + slopes * (x - 0.5)
                return list(zip(x[:, 0], y[:, 0], x[:, 1], y[:, 1], strict=True))

            maml, test = MetaMAML(nn.Linear(1, 1), 0.2, 0.1, **options), family(50)
            before = maml.query_losses(test, MSE, [1]).mean().item()
            with untouched_rng():
                for _ in range(100):
                    maml.meta_update(family(8), MSE)
                after = maml.query_losses(test, MSE, [1]).mean().item()
            assert after < 0.1 * before

    @pytest.mark.parametrize(("make_model", "reason"), [(LSTM, "LSTM"), (normalised_mlp, "LayerNorm")])
    def test_a_module_that_vmap_cannot_compute_is_computed_task_by_task(self, caplog, make_model, reason):
        maml, tasks = MetaMAML(make_model(), 0.1, 0.1), make_tasks(2, time=(3,))
        losses = [maml.meta_update(tasks, MSE) for _ in range(10)]
        assert len(caplog.records) == 1
        assert "one after the other" in caplog.text
        assert reason in caplog.text
        assert losses[-1] < losses[0]

    def test_a_fault_of_the_tasks_changes_nothing(self, look):
        model = tanh_mlp()
        maml, before = MetaMAML(model, 0.1, 0.1), look(model)
        with pytest.raises(ValueError, match=r"must take the inputs.*got \(2, 3\).*shapes cannot be multiplied"):
            maml.meta_update([*make_tasks(2), (torch.zeros(2, 3), torch.zeros(2, 1)) * 2], MSE)
        with pytest.raises(ValueError, match=r"must take the inputs.*got \(2, 3\)"):
            maml.adapt(torch.zeros(2, 3), torch.zeros(2, 1), MSE, 1)
        assert look(model) == before

    def test_tasks_may_be_lists_and_tuples(self, way):
        tasks = make_tasks()
        wrapped = tuple([(sx,), sy, [qx], qy] for sx, sy, qx, qy in tasks)
        model = tanh_mlp()
        assert torch.equal(meta_gradient(model, wrapped), meta_gradient(model, tasks))

    def test_frozen_parameters_stay(self):
        model = tanh_mlp()
        model[0].requires_grad_(False)
        before = copy.deepcopy(model)
        maml, tasks = MetaMAML(model, 0.1, 0.1), make_tasks()
        maml.meta_update(tasks, MSE)
        adapted = maml.adapt(*tasks[0][:2], MSE, 1)
        for part in (model, adapted):
            assert torch.equal(flat(part[0].parameters()), flat(before[0].parameters()))
            assert (part[2].weight != before[2].weight).all()

    def test_a_filter_limits_the_inner_steps_but_not_the_outer(self):
        model, tasks = tanh_mlp(), make_tasks()
        before = copy.deepcopy(model)
        maml = MetaMAML(model, 0.1, 0.1, adapts=lambda name: name.startswith("2."))
        adapted = maml.adapt(*tasks[0][:2], MSE, 1)
        assert torch.equal(flat(adapted[0].parameters()), flat(model[0].parameters()))
        assert (adapted[2].weight != model[2].weight).all()
        maml.meta_update(tasks, MSE)
        assert (flat(model.parameters()) != flat(before.parameters())).all()

    def test_tied_weights_stay_tied(self):
        model, tasks = TiedMLP(), make_tasks()
        maml = MetaMAML(model, 0.1, 0.1)
        maml.meta_update(tasks, MSE)
        adapted = maml.adapt(*tasks[0][:2], MSE, 1)
        for part in (model, adapted):
            assert part[0].weight is part[2].weight

    @pytest.mark.parametrize("change", ["hook", "activation"])
    def test_what_is_changed_later_counts(self, monkeypatch, change):
        monkeypatch.setattr(LowRankNetwork, "pays", staticmethod(lambda *_: True))
        model, tasks = tanh_mlp(), make_tasks()
        maml = MetaMAML(model, 0.3, 0.1)
        if change == "hook":
            model[1].register_forward_hook(lambda module, args, y: 2.0 * y)
        else:
            model[1] = nn.Softmax(dim=-1)
        expected = sum(plain_loss(model, task, inner_steps=1).item() for task in tasks) / len(tasks)
        assert maml.meta_update(tasks, MSE) == pytest.approx(expected, rel=1e-5)


class TestClipping:
    def test_of_the_inner_gradient(self):
        # The slope of (w - 10)^2 at 0 is -20: clipped at 2, a step of 0.1 goes to 0.2 instead of 2.
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        x, y = torch.ones(1, 1), torch.full((1, 1), 10.0)
        maml = MetaMAML(model, 0.1, 1.0, inner_grad_clip_norm=2.0)
        assert maml.adapt(x, y, MSE, 1).weight.item() == pytest.approx(0.2)
        assert maml.meta_update([(x, y, x, y)], MSE) == pytest.approx(9.8**2)

    def test_of_the_outer_gradient(self, way):
        model, tasks = tanh_mlp().double(), make_tasks(dtype=torch.float64)
        gradient = plain_gradient(model, tasks)
        norm = 0.5 * gradient.norm().item()
        torch.testing.assert_close(
            meta_gradient(model, tasks, grad_clip_norm=norm), 0.5 * gradient, rtol=1e-4, atol=0.0
        )
        torch.testing.assert_close(meta_gradient(model, tasks, grad_clip_norm=4.0 * norm), gradient)

    def test_a_solved_task_is_no_trouble(self):
        model = nn.Linear(1, 1)
        x = torch.randn(5, 1)
        task = (x, model(x).detach()) * 2
        before = flat(model.parameters())
        maml = MetaMAML(model, 0.1, 1.0, inner_grad_clip_norm=1.0, grad_clip_norm=1.0, optimizer_class=SGD)
        assert maml.meta_update([task], MSE) == 0.0
        assert torch.equal(flat(model.parameters()), before)


class TestOptimizer:
    @pytest.mark.each_value
    @pytest.mark.parametrize(
        ("optimizer_class", "kwargs"),
        [(SGD, {"momentum": 0.9, "nesterov": True}), (torch.optim.AdamW, {"betas": (0.5, 0.9)})],
    )
    def test_any_class_and_a_schedule(self, way, optimizer_class, kwargs):
        model, tasks = tanh_mlp().double(), make_tasks(dtype=torch.float64)
        plain = copy.deepcopy(model)
        maml = MetaMAML(model, 0.3, 0.05, inner_steps=2, optimizer_class=optimizer_class, optimizer_kwargs=kwargs)
        optimizers = [maml.optimizer, optimizer_class(plain.parameters(), lr=0.05, **kwargs)]
        schedules = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) for optimizer in optimizers]
        for _ in range(4):
            maml.meta_update(tasks, MSE)
            nn.utils.vector_to_parameters(
                plain_gradient(plain, tasks), gradients := [p.clone() for p in plain.parameters()]
            )
            for weight, gradient in zip(plain.parameters(), gradients, strict=True):
                weight.grad = gradient.detach()
            optimizers[1].step()
            for schedule in schedules:
                schedule.step()
        torch.testing.assert_close(flat(model.parameters()), flat(plain.parameters()))


def spoil(task, part, value):
    task = [tensor.clone() for tensor in task]
    task[part][0] = value
    return tuple(task)


# A loss that is not finite with a gradient that is, and the other way round: sqrt is infinitely steep at 0.
FAULTS = {
    "support": (MSE, 0, math.nan),
    "support target": (MSE, 1, math.inf),
    "query": (MSE, 2, math.inf),
    "query target": (MSE, 3, math.nan),
    "explosion": (MSE, 1, 1e30),
    "loss alone": (lambda prediction, target: prediction.mean() + target.square().mean(), 3, 1e30),
    "gradient alone": (lambda prediction, target: (prediction * target).abs().sqrt().mean(), 3, 0.0),
}


class Attention(nn.Module):
    """Attention over the two numbers of a row, as a module or as a function."""

    def __init__(self, fused):
        super().__init__()
        self.first, self.last = nn.Linear(1, 4), nn.Linear(8, 1)
        self.attention = None if fused else nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        y = self.first(x[..., None])  # N 2 4
        if self.attention is None:
            y = nn.functional.scaled_dot_product_attention(y, y, y)
        else:
            y, self.map = self.attention(y, y, y)
        return self.last(y.flatten(1))


class TestModes:
    @pytest.mark.each_value
    @pytest.mark.parametrize(("fused", "training"), [(False, False), (False, True), (True, False)])
    @pytest.mark.parametrize("first_order", [False, True])
    def test_attention(self, caplog, assert_same_gradient, fused, first_order, training):
        model = Attention(fused).double().train(training)
        maml = assert_same_gradient(model, make_tasks(dtype=torch.float64), MSE, first_order)
        tasks = make_tasks(dtype=torch.float64)
        torch.testing.assert_close(
            maml.query_losses(tasks, MSE, [1]), adapted_losses(maml, tasks, [1]), check_dtype=False
        )
        assert not caplog.records

    @pytest.mark.each_value
    @pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
    @pytest.mark.parametrize("make_model", [tanh_mlp, LSTM])
    def test_without_gradients_around_it_all_goes_on(self, mode, make_model):
        model, plain = make_model(), make_model()
        plain.load_state_dict(model.state_dict())
        with mode():
            tasks = make_tasks(time=(3,))
        copies = [tuple(part.clone() for part in task) for task in tasks]
        results = []
        for one, batch, context in ((model, tasks, mode), (plain, copies, torch.enable_grad)):
            maml = MetaMAML(one, 0.1, 0.1)
            with context():
                adapted = maml.adapt(*batch[0][:2], MSE, 2)
                losses = maml.query_losses(batch, MSE, [0, 2])
                loss = maml.meta_update(batch, MSE)
            assert not losses.requires_grad
            assert all(weight.requires_grad and not weight.is_inference() for weight in adapted.parameters())
            MSE(adapted(copies[0][0]), copies[0][1]).backward()
            results.append(
                [*losses.flatten().tolist(), loss, *flat([*adapted.parameters(), *one.parameters()]).tolist()]
            )
        assert results[0] == results[1]


class TestParametersThatAreNotThoseOfConstruction:
    @pytest.mark.parametrize("frozen", [False, True])
    def test_they_are_noticed_before_anything_is_done(self, look, frozen):
        model, tasks = tanh_mlp(), make_tasks()
        maml = MetaMAML(model, 0.1, 0.1)
        if frozen:
            model[2].requires_grad_(False)
        else:
            model[2] = nn.Linear(3, 1)
        before = look(model)
        for call in (
            lambda: maml.meta_update(tasks, MSE),
            lambda: maml.query_losses(tasks, MSE, [1]),
            lambda: maml.adapt(*tasks[0][:2], MSE, 1),
        ):
            with pytest.raises(ValueError, match=r"\['2.weight', '2.bias'\]\. Make a new MetaMAML, or trainer"):
                call()
        assert look(model) == before


class TestTasksThatAreNotFinite:
    @pytest.mark.each_value
    @pytest.mark.parametrize("fault", FAULTS)
    @pytest.mark.parametrize(("make_model", "task_chunk_size"), [(tanh_mlp, None), (batch_normalised_mlp, 2)])
    def test_the_update_is_that_of_the_others(self, caplog, look, make_model, task_chunk_size, fault):
        loss_fn, part, value = FAULTS[fault]
        tasks = make_tasks(4)
        models = [make_model() for _ in range(2)]
        models[1].load_state_dict(models[0].state_dict())
        mamls = [MetaMAML(model, 0.1, 0.01, task_chunk_size=task_chunk_size) for model in models]
        losses = [
            mamls[0].meta_update([tasks[0], spoil(tasks[1], part, value), *tasks[2:]], loss_fn),
            mamls[1].meta_update([tasks[0], *tasks[2:]], loss_fn),
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        for tensor, expected in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
            torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-5)
        assert [maml.num_dropped for maml in mamls] == [1, 0]
        assert "1 of 4 tasks were left out" in caplog.text

    @pytest.mark.each_value
    @pytest.mark.parametrize(
        ("make_model", "fault"), [(tanh_mlp, fault) for fault in FAULTS] + [(batch_normalised_mlp, "query target")]
    )
    def test_where_none_is_left_nothing_changes(self, look, make_model, fault):
        loss_fn, part, value = FAULTS[fault]
        model, tasks = make_model(), make_tasks(2)
        maml = MetaMAML(model, 0.1, 0.1, learned_rates="tensor")
        maml.meta_update(tasks, loss_fn)
        before, state = look(model), maml.state_dict()
        with pytest.raises(FloatingPointError, match=r"the weights were left as they were\. Lower inner_lr"):
            maml.meta_update([spoil(task, part, value) for task in tasks], loss_fn)
        assert look(model) == before
        assert str(maml.state_dict()) == str({**state, "num_dropped": 2})

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("part", [0, 1])
    def test_adapt_refuses_them(self, part, value):
        with pytest.raises(ValueError, match=r"the support must be finite; got NaN or infinity\. Drop those rows"):
            MetaMAML(tanh_mlp(), 0.1, 0.1).adapt(*spoil(make_tasks(1)[0], part, value)[:2], MSE, 1)


class Steps(nn.Module):
    """Counts its calls and averages its inputs, and holds what no mean may touch."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("largest", torch.tensor(2**62 + 1))
        self.register_buffer("mean", torch.zeros(2), persistent=False)
        self.register_buffer("mask", torch.tensor([-math.inf, math.nan, 1.0 / 3.0]))
        self.register_buffer("phase", torch.tensor([1.0 + 2.0j]))
        self.register_buffer("flag", torch.tensor(True))

    def forward(self, x):
        self.calls += 1
        self.mean = 0.5 * self.mean + 0.5 * x.mean(dim=0)
        return self.linear(x)


class TestBuffers:
    def test_they_become_the_mean_of_what_the_tasks_make_of_them(self, look):
        model, tasks = Steps(), make_tasks()
        before = look(model)[1]
        MetaMAML(model, 0.1, 0.1, inner_steps=2).meta_update(tasks, MSE)
        means = [0.125 * sx.mean(dim=0) + 0.25 * sx.mean(dim=0) + 0.5 * qx.mean(dim=0) for sx, _, qx, _ in tasks]
        torch.testing.assert_close(model.mean, sum(means) / 3.0)
        assert model.calls.item() == 3
        assert model.calls.dtype == torch.int64
        after = look(model)[1]
        for name in ("largest", "mask", "phase", "flag"):
            assert after[name] == before[name]

    def test_batch_statistics(self):
        model, tasks = nn.Sequential(nn.BatchNorm1d(2, momentum=0.5), nn.Linear(2, 1)), make_tasks()
        MetaMAML(model, 0.1, 0.1, inner_steps=2).meta_update(tasks, MSE)
        means = [0.125 * sx.mean(dim=0) + 0.25 * sx.mean(dim=0) + 0.5 * qx.mean(dim=0) for sx, _, qx, _ in tasks]
        torch.testing.assert_close(model[0].running_mean, sum(means) / 3.0)
        assert model[0].num_batches_tracked.item() == 3

    def test_in_evaluation_they_stay(self, look):
        model = batch_normalised_mlp().eval()
        before = look(model)[1]
        MetaMAML(model, 0.1, 0.1).meta_update(make_tasks(), MSE)
        assert look(model)[1] == before

    def test_adapt_changes_those_of_the_copy(self, look):
        model, (task,) = batch_normalised_mlp(), make_tasks(1)
        before = look(model)
        adapted = MetaMAML(model, 0.1, 0.1).adapt(*task[:2], MSE, 3)
        assert adapted[1].num_batches_tracked.item() == 3
        assert look(model) == before

    def test_adapt_keeps_those_that_are_replaced_and_those_that_are_written_into(self):
        model, (task,) = Steps(), make_tasks(1)
        adapted = MetaMAML(model, 0.1, 0.1).adapt(*task[:2], MSE, 3)
        assert adapted.calls.item() == 3
        torch.testing.assert_close(adapted.mean, (1.0 - 0.5**3) * task[0].mean(dim=0))
        assert model.calls.item() == 0
        assert not model.mean.any()
        assert not adapted.mean.requires_grad

    def test_adapt_keeps_one_that_is_in_two_places_and_drops_one_that_the_forward_drops(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(2, 1), nn.Linear(2, 1)
                shared = torch.zeros(2)
                self.a.register_buffer("mean", shared)
                self.b.register_buffer("mean", shared)
                self.register_buffer("cache", torch.zeros(2))

            def forward(self, x):
                self.cache = None
                self.a.mean.mul_(0.5).add_(x.mean(dim=0).detach())
                return self.a(x) + self.b(x - self.b.mean)

        model, (task,) = Twice(), make_tasks(1)
        adapted = MetaMAML(model, 0.1, 0.1).adapt(*task[:2], MSE, 2)
        assert adapted.a.mean is adapted.b.mean
        torch.testing.assert_close(adapted.b.mean, 1.5 * task[0].mean(dim=0))
        assert adapted.cache is None
        assert not model.a.mean.any()


def adapted_losses(maml, tasks, num_steps):
    """The losses of copies of the model adapted one by one, ``Float[S K]``."""
    return torch.tensor(
        [
            [MSE(maml.adapt(sx, sy, MSE, steps)(*as_inputs(qx)), qy).item() for sx, sy, qx, qy in tasks]
            for steps in num_steps
        ]
    )


class TestQueryLosses:
    @pytest.mark.parametrize("name", some("MLP", "batch normalisation", "SSM step", "LSTM"))
    def test_they_are_those_of_adapted_copies(self, look, untouched_rng, name):
        make_model, make = MODELS[name]
        model, tasks = make_model(), make(2)
        maml, before = MetaMAML(model, 0.3, 0.1, learned_rates="step", inner_steps=2, task_chunk_size=1), look(model)
        with untouched_rng():
            losses = maml.query_losses(tasks, MSE, [3, 0, 1])
        assert not losses.requires_grad
        torch.testing.assert_close(losses, adapted_losses(maml, tasks, (3, 0, 1)), rtol=1e-4, atol=1e-6)
        assert look(model) == before

    @pytest.mark.each_value
    @pytest.mark.parametrize("inner_grad_clip_norm", [math.inf, 0.5])
    def test_both_ways_for_plain_networks(self, way, inner_grad_clip_norm):
        maml, tasks = MetaMAML(tanh_mlp(), 0.3, 0.1, inner_grad_clip_norm=inner_grad_clip_norm), make_tasks()
        torch.testing.assert_close(maml.query_losses(tasks, MSE, [1, 2]), adapted_losses(maml, tasks, (1, 2)))

    def test_what_is_not_finite_is_shown(self):
        tasks = make_tasks()
        losses = MetaMAML(tanh_mlp(), 0.1, 0.1).query_losses([tasks[0], spoil(tasks[1], 3, math.nan)], MSE, [1])
        assert losses.isnan().tolist() == [[False, True]]

    @pytest.mark.parametrize("num_steps", [1, [], None, [-1], [0.5]])
    def test_the_numbers_of_steps_are_checked(self, num_steps):
        with pytest.raises(ValueError, match=r"num_steps must be .* int"):
            MetaMAML(tanh_mlp(), 0.1, 0.1).query_losses(make_tasks(), MSE, num_steps)


class TestState:
    @pytest.mark.parametrize(
        ("options", "through_a_file"),
        [
            ({}, True),
            ({"optimizer_class": SGD, "optimizer_kwargs": {"momentum": 0.9}}, True),
            ({"learned_rates": "element"}, False),
            ({"learned_rates": "step"}, True),
        ],
        ids=str,
    )
    def test_training_goes_on_bit_for_bit(self, look, through_a_file, options):
        models, tasks = [tanh_mlp(), tanh_mlp()], make_tasks()
        options = {"inner_steps": 2, "multi_step_updates": 4, **options}
        first, second = mamls = [MetaMAML(model, 0.1, 0.05, **options) for model in models]
        for _ in range(2):
            first.meta_update(tasks, MSE)
        first.meta_update([tasks[0], spoil(tasks[1], 0, math.nan)], MSE)
        state = first.state_dict()
        if through_a_file:
            torch.save(state, file := io.BytesIO())
            file.seek(0)
            state = torch.load(file, weights_only=True)
        models[1].load_state_dict(models[0].state_dict())
        second.load_state_dict(state)
        assert second.num_updates == 3
        assert second.num_dropped == 1
        before = str(state)
        losses = [[maml.meta_update(tasks, MSE) for _ in range(2)] for maml in mamls]
        assert losses[0] == losses[1]
        assert look(models[0]) == look(models[1])
        assert str(first.state_dict()) == str(second.state_dict())
        assert str(state) == before

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"optimizer_class": SGD}, r"the state must be one of SGD; got one of Adam\. Use the same optimizer_class"),
            ({"learned_rates": "step"}, r"the learned rates must be of .*\(1,\).* Use the same learned_rates"),
            ({"learned_rates": None}, r"the learned rates must be of {}; got .* Use the same learned_rates"),
        ],
    )
    def test_a_state_of_something_else(self, look, options, message):
        state = MetaMAML(tanh_mlp(), 0.1, 0.1, learned_rates="tensor").state_dict()
        with pytest.raises(ValueError, match=message):
            MetaMAML(tanh_mlp(), 0.1, 0.1, **{"learned_rates": "tensor", **options}).load_state_dict(state)

    @pytest.mark.parametrize("state", [{}, {"optimizer": {}}])
    def test_no_state_at_all(self, state):
        with pytest.raises(ValueError, match="the state must be"):
            MetaMAML(tanh_mlp(), 0.1, 0.1).load_state_dict(state)

    def test_a_state_with_weights_and_rates_in_one_group_goes_on_too(self, look):
        options = {"learned_rates": "tensor", "optimizer_class": torch.optim.AdamW}
        models, tasks = [nn.Linear(2, 1), nn.Linear(2, 1)], make_tasks()
        first, second = (MetaMAML(model, 0.1, 0.05, **options) for model in models)
        first.meta_update(tasks, MSE)
        state = first.state_dict()
        groups = state["optimizer"]["param_groups"]
        merged = {**groups[0], "params": groups[0]["params"] + groups[1]["params"]}
        state["optimizer"]["param_groups"] = [merged]
        models[1].load_state_dict(models[0].state_dict())
        second.load_state_dict(state)
        for maml in (first, second):
            maml.meta_update(tasks, MSE)
        assert look(models[0]) == look(models[1])
        assert str(first.state_dict()["rates"]) == str(second.state_dict()["rates"])
        assert second.optimizer.param_groups[1]["weight_decay"] == 0.0

    def test_a_state_that_is_refused_changes_nothing(self, look):
        maml = MetaMAML(model := nn.Linear(4, 3), 0.1, 0.1, learned_rates="tensor")
        before = look(model), str(maml.state_dict())
        other = MetaMAML(nn.Linear(4, 8), 0.1, 0.1, learned_rates="tensor")
        other.meta_update([(torch.randn(5, 4), torch.randn(5, 8)) * 2], MSE)
        state = other.state_dict()
        for given, message in [
            ({name: part for name, part in state.items() if name != "num_updates"}, "num_updates of the state must be"),
            (state | {"optimizer": None}, "the optimizer's state must be what its state_dict"),
            (state, r"parameters of the same shapes; got exp_avg of shape \(8, 4\) for one of \(3, 4\)"),
        ]:
            with pytest.raises(ValueError, match=message):
                maml.load_state_dict(given)
        assert (look(model), str(maml.state_dict())) == before

    def test_a_state_of_another_model(self):
        state = MetaMAML(nn.Linear(2, 1), 0.1, 0.1).state_dict()
        with pytest.raises(ValueError, match="doesn't match the size"):
            MetaMAML(tanh_mlp(), 0.1, 0.1).load_state_dict(state)


class TestErrors:
    @pytest.mark.parametrize("loss_fn", [lambda p, y: y.mean(), lambda p, y: (p > y).float().mean()])
    def test_a_loss_that_depends_on_nothing(self, loss_fn):
        maml, tasks = MetaMAML(nn.Linear(2, 1), 0.1, 0.1), make_tasks()
        for use in (lambda: maml.meta_update(tasks, loss_fn), lambda: maml.adapt(*tasks[0][:2], loss_fn, 1)):
            with pytest.raises(ValueError, match="the loss must depend on what the model predicts"):
                use()

    @pytest.mark.parametrize("outer_lr", [None, "a", 0.0])
    def test_another_outer_step_size(self, outer_lr):
        with pytest.raises(ValueError, match="outer_lr must be finite and > 0; got"):
            MetaMAML(nn.Linear(2, 1), 0.1, outer_lr)

    @pytest.mark.parametrize("lengths", [(3, 4), (4, 3), (0, 0)])
    def test_lengths(self, lengths):
        maml = MetaMAML(tanh_mlp(), 0.1, 0.1)
        good, bad = make_tasks(1)[0], (torch.zeros(lengths[0], 2), torch.zeros(lengths[1], 1))
        with pytest.raises(ValueError, match="the support must have as many inputs as targets, at least one"):
            maml.adapt(*bad, MSE, 1)
        for call in (lambda tasks: maml.meta_update(tasks, MSE), lambda tasks: maml.query_losses(tasks, MSE, [1])):
            with pytest.raises(ValueError, match="the support of task 0 must have as many"):
                call([(*bad, *good[2:])])
            with pytest.raises(ValueError, match="the query of task 1 must have as many"):
                call([good, (*good[:2], *bad)])

    def test_no_tasks(self):
        maml = MetaMAML(tanh_mlp(), 0.1, 0.1)
        for call in (lambda: maml.meta_update([], MSE), lambda: maml.query_losses([], MSE, [1])):
            with pytest.raises(ValueError, match="tasks must hold at least one tuple"):
                call()

    def test_a_task_of_other_parts(self):
        with pytest.raises(ValueError, match=r"task 1 must be a tuple \(support_x, .*\); got 3 parts"):
            MetaMAML(tanh_mlp(), 0.1, 0.1).meta_update([make_tasks()[0], make_tasks()[0][:3]], MSE)

    def test_targets_of_another_shape(self, way):
        x, y, *query = make_tasks()[0]
        with pytest.raises(
            ValueError, match=r"predictions and targets must have the same shape; got \(5, 1\) and \(5,\)"
        ):
            MetaMAML(tanh_mlp(), 0.1, 0.1).meta_update([(x, y[:, 0], *query)], nn.MSELoss())

    def test_a_loss_that_is_no_scalar(self, way):
        maml, tasks = MetaMAML(tanh_mlp(), 0.1, 0.1), make_tasks()
        for call in (
            lambda loss_fn: maml.adapt(*tasks[0][:2], loss_fn, 1),
            lambda loss_fn: maml.meta_update(tasks, loss_fn),
        ):
            with pytest.raises(ValueError, match=r"loss_fn must return a scalar tensor; got shape \(5, 1\)"):
                call(nn.MSELoss(reduction="none"))

    @pytest.mark.each_value
    @pytest.mark.parametrize(
        ("loss_fn", "message"),
        [
            (nn.MSELoss, r"got the class MSELoss\. Use e\.g\. MSELoss\(\)"),
            ("mse", r"got 'mse'\. Use e\.g\. nn\.MSELoss\(\)"),
        ],
    )
    def test_a_loss_that_is_no_function(self, way, loss_fn, message):
        maml, tasks = MetaMAML(tanh_mlp(), 0.1, 0.1), make_tasks()
        for call in (
            lambda: maml.adapt(*tasks[0][:2], loss_fn, 1),
            lambda: maml.meta_update(tasks, loss_fn),
            lambda: maml.query_losses(tasks, loss_fn, [1]),
        ):
            with pytest.raises(ValueError, match=f"must be a function of a prediction and a target; {message}"):
                call()

    @pytest.mark.parametrize(
        ("name", "value"),
        [(name, value) for name in ("inner_lr", "outer_lr") for value in (0.0, -1.0, math.nan, math.inf)]
        + [("inner_steps", value) for value in (-1, 1.5)]
        + [("multi_step_updates", -1), ("task_chunk_size", 0), ("grad_clip_norm", 0.0), ("algorithm", "reptil")]
        + [("learned_rates", "layer")],
    )
    def test_options(self, name, value):
        with pytest.raises(ValueError, match=f"{name} must be .*; got {value!r}"):
            MetaMAML(tanh_mlp(), **{"inner_lr": 0.1, "outer_lr": 0.1, name: value})

    @pytest.mark.parametrize("options", [{"inner_steps": 0}, {"learned_rates": "step"}, {"multi_step_updates": 10}])
    def test_what_reptile_has_not(self, options):
        with pytest.raises(ValueError, match=r"Reptile takes at least one inner step.*Use algorithm='maml'"):
            MetaMAML(tanh_mlp(), 0.1, 0.1, algorithm="reptile", **options)

    @pytest.mark.parametrize("adapts", [None, lambda name: name == "nothing"])
    def test_nothing_to_adapt(self, adapts):
        model = tanh_mlp().requires_grad_(adapts is not None)
        with pytest.raises(ValueError, match="the model must have a parameter that requires a gradient"):
            MetaMAML(model, 0.1, 0.1, adapts=adapts)


class TestMemory:
    @pytest.mark.slow
    @pytest.mark.parametrize("make_model", [tanh_mlp, batch_normalised_mlp, Steps])
    @pytest.mark.parametrize("options", [{}, {"learned_rates": "step"}, {"algorithm": "reptile"}], ids=str)
    def test_it_is_flat(self, make_model, options):
        model, tasks = make_model(), [*make_tasks(), spoil(make_tasks()[0], 3, math.nan)]
        maml = MetaMAML(model, 0.01, 1e-4, inner_steps=2, **options)

        def num_tensors_after(num_updates):
            for _ in range(num_updates):
                maml.meta_update(tasks, MSE)
                maml.query_losses(tasks, MSE, [0, 2])
                model.load_state_dict(maml.adapt(*tasks[0][:2], MSE, 2).state_dict())
            gc.collect()
            return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

        assert num_tensors_after(10) == num_tensors_after(100)

    @pytest.mark.parametrize("make_model", [tanh_mlp, batch_normalised_mlp, tiny_ssm])
    def test_adapted_copies_have_no_past(self, make_model):
        model, (task,) = make_model(), make_tasks(1)
        for _ in range(5):
            model = MetaMAML(model, 0.01, 0.1, learned_rates="tensor").adapt(*task[:2], MSE, 2)
        assert all(weight.is_leaf and weight.requires_grad and weight.grad is None for weight in model.parameters())
        assert not any(buffer.requires_grad for buffer in model.buffers())
