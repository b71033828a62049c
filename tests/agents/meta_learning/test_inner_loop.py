import math

import pytest
import torch
from torch import nn
from torch.func import vmap

from ssm_metarl_gym.agents.meta_learning.inner_loop import InnerLoop


def make_inner(**options):
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    return InnerLoop(model, 0.3, **options)


def loss_of(weights, x):
    """Of the network of ``make_inner``."""
    hidden = torch.tanh(nn.functional.linear(x, weights["0.weight"], weights["0.bias"]))
    return nn.functional.linear(hidden, weights["2.weight"], weights["2.bias"]).square().mean()


def make_x(*shape):
    return torch.randn(*shape, 2, dtype=torch.float64)


def scalar(value, **options):
    """An inner loop over one number, ``w``."""
    model = nn.Module()
    model.w = nn.Parameter(torch.tensor(value, dtype=torch.float64))
    return InnerLoop(model, 0.1, **options)


class TestStep:
    @pytest.mark.parametrize("functional", [True, False])
    @pytest.mark.parametrize(("first_order", "slope"), [(False, 1.0 - 0.1 * 12.0), (True, 1.0)])
    def test_hand_computed(self, functional, first_order, slope):
        # w^3 has the slope 12 and the curvature 12 at 2: 2 -> 2 - 0.1 * 12, whose slope is 1 - 0.1 * 12.
        inner = scalar(2.0, first_order=first_order)
        after = inner.step(lambda weights: weights["w"] ** 3, inner.weights(), functional=functional)["w"]
        assert after.item() == pytest.approx(0.8)
        assert torch.autograd.grad(after, inner.model.w)[0].item() == pytest.approx(slope)

    @pytest.mark.each_value
    @pytest.mark.parametrize("learned_rates", [None, "tensor", "step", "element"])
    @pytest.mark.parametrize("first_order", [False, True])
    def test_both_ways_to_differentiate_are_equal(self, first_order, learned_rates):
        inner, x = make_inner(first_order=first_order, learned_rates=learned_rates, grad_clip_norm=0.1), make_x(2, 5)
        results = []
        for functional in (True, False):
            weights = inner.weights()
            for index in range(2):
                weights = inner.step(lambda w: loss_of(w, x[0]), weights, index, functional=functional)
            parameters = [*inner.weights().values(), *inner.rates.values()]
            slopes = torch.autograd.grad(loss_of(weights, x[1]), parameters, allow_unused=True)
            results.append([*weights.values(), *slopes])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)

    def test_mapped_over_tasks(self):
        inner, x = make_inner(learned_rates="element", grad_clip_norm=0.5), make_x(4, 5)
        together = vmap(lambda x: inner.step(lambda w: loss_of(w, x), inner.weights()))(x)
        for task in range(4):
            alone = inner.step(lambda w, task=task: loss_of(w, x[task]), inner.weights())
            for name, weight in alone.items():
                torch.testing.assert_close(together[name][task], weight)

    def test_what_does_not_adapt_is_passed_on(self):
        model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
        model[2].bias.requires_grad_(False)
        inner = InnerLoop(model, 0.3, adapts=lambda name: name.startswith("2."))
        assert inner.trained == ("0.weight", "0.bias", "2.weight")
        assert inner.adapted == ("2.weight",)
        x = make_x(5)
        after = inner.step(lambda w: loss_of(w | {"2.bias": model[2].bias}, x), inner.weights())
        assert after["0.weight"] is model[0].weight
        assert after["0.bias"] is model[0].bias
        assert (after["2.weight"] != model[2].weight).all()

    @pytest.mark.parametrize("functional", [True, False])
    def test_a_weight_that_the_loss_does_not_depend_on_stays(self, functional):
        inner = make_inner(grad_clip_norm=1.0)
        weights = inner.weights()
        after = inner.step(lambda w: w["2.bias"].square().sum(), weights, functional=functional)
        assert torch.equal(after["0.weight"], weights["0.weight"])
        assert not torch.equal(after["2.bias"], weights["2.bias"])

    def test_a_sparse_gradient(self):
        model = nn.Module()
        model.table = nn.Parameter(torch.ones(3, 2))
        inner, rows = InnerLoop(model, 0.1), torch.tensor([0, 1])
        with pytest.raises(ValueError, match=r"must be dense; got sparse ones of \['table'\]\. Use sparse=False"):
            inner.step(
                lambda w: nn.functional.embedding(rows, w["table"], sparse=True).sum(),
                inner.weights(),
                functional=False,
            )


class TestRates:
    @pytest.mark.parametrize(
        ("learned_rates", "shapes"),
        [("tensor", [(), ()]), ("step", [(4,), (4,)]), ("element", [(3, 2), (3,)])],
    )
    def test_one_for_each(self, learned_rates, shapes):
        inner = make_inner(learned_rates=learned_rates, num_steps=4, adapts=lambda name: name.startswith("0."))
        assert list(inner.rates) == ["0.weight", "0.bias"]
        assert [tuple(rate.shape) for rate in inner.rates.values()] == shapes
        for rate in inner.rates.values():
            assert rate.requires_grad
            torch.testing.assert_close(rate.exp(), torch.full_like(rate, 0.3))

    def test_by_default_there_are_none(self):
        inner = make_inner()
        assert inner.rates == {}
        assert inner.rate("0.bias", 7) == 0.3

    def test_steps_beyond_the_last_use_its_step_size(self):
        inner = scalar(1.0, learned_rates="step", num_steps=2)
        with torch.no_grad():
            inner.rates["w"].copy_(torch.tensor([0.5, 0.25]).log())
        assert [inner.rate("w", index).item() for index in range(4)] == pytest.approx([0.5, 0.25, 0.25, 0.25])

    @pytest.mark.parametrize("first_order", [False, True])
    def test_the_slope_by_a_logarithm_is_hand_computed(self, first_order):
        # The loss w^2 after a step from 3 is (3 - 6a)^2: by log a, a * 2 * (3 - 6a) * -6 = -2.88 at 0.1 (a = e^log a).
        inner = scalar(3.0, learned_rates="tensor", first_order=first_order)
        loss = inner.step(lambda w: w["w"] ** 2, inner.weights())["w"] ** 2
        assert torch.autograd.grad(loss, inner.rates["w"])[0].item() == pytest.approx(-2.88)


class TestClipping:
    @pytest.mark.parametrize(("norm", "after"), [(1.0, [2.4, 3.2]), (10.0, [0.0, 0.0]), (math.inf, [0.0, 0.0])])
    def test_hand_computed(self, norm, after):
        # The slope of |w|^2 / 2 at (3, 4) is (3, 4), of length 5: clipped at 1, a step of size 1 goes to 4 / 5 of it.
        model = nn.Module()
        model.a, model.b = nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.tensor(4.0))
        inner = InnerLoop(model, 1.0, grad_clip_norm=norm)
        weights = inner.step(lambda w: (w["a"] ** 2 + w["b"] ** 2) / 2.0, inner.weights())
        assert [weights["a"].item(), weights["b"].item()] == pytest.approx(after)

    @pytest.mark.parametrize("functional", [True, False])
    def test_no_gradient_is_no_trouble(self, functional):
        inner = scalar(0.0, grad_clip_norm=0.5)
        after = inner.step(lambda w: w["w"] ** 2, inner.weights(), functional=functional)["w"]
        assert after.item() == 0.0
        assert torch.autograd.grad(after, inner.model.w)[0].item() == pytest.approx(0.8)  # 1 - 0.1 * 2

    def test_second_order_is_through_the_clipping(self):
        inner, x = make_inner(grad_clip_norm=0.05), make_x(2, 5)
        weights = tuple(inner.weights().values())

        def loss(*weights):
            after = inner.step(lambda w: loss_of(w, x[0]), dict(zip(inner.trained, weights, strict=True)))
            return loss_of(after, x[1])

        assert torch.autograd.gradcheck(loss, weights)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(3.0 + 4.0j))


class TestComplexWeights:
    @pytest.mark.parametrize("functional", [True, False])
    def test_clipping_is_hand_computed(self, functional):
        # |w|^2 / 2 is steepest along w, of length 5: clipped at 1, a step of size 1 goes to 4 / 5 of it.
        inner = InnerLoop(Complex(), 1.0, grad_clip_norm=1.0)
        after = inner.step(lambda w: (w["w"] * w["w"].conj()).real / 2.0, inner.weights(), functional=functional)["w"]
        torch.testing.assert_close(after, torch.tensor(2.4 + 3.2j))

    @pytest.mark.parametrize("learned_rates", ["tensor", "step", "element"])
    def test_learned_step_sizes_are_real(self, learned_rates):
        inner = InnerLoop(Complex(), 0.1, learned_rates=learned_rates)
        assert inner.rates["w"].dtype == torch.float32
        after = inner.step(lambda w: (w["w"] * w["w"].conj()).real / 2.0, inner.weights())["w"]
        torch.testing.assert_close(after, torch.tensor(2.7 + 3.6j))


class TestDetached:
    @pytest.mark.parametrize("functional", [True, False])
    def test_the_same_numbers_without_a_graph(self, functional):
        inner, x = make_inner(learned_rates="step", grad_clip_norm=0.5), make_x(5)
        results = []
        for one in (inner, inner.detached()):
            weights = one.weights()
            results.append(one.step(lambda w: loss_of(w, x), weights, functional=functional))
        for name, weight in results[1].items():
            assert not weight.requires_grad
            assert torch.equal(weight, results[0][name])
        assert all(weight.requires_grad for weight in inner.weights().values())


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"grad_clip_norm": 0.0}, "must be > 0; got 0.0"),
            ({"grad_clip_norm": math.nan}, "must be > 0; got nan"),
            ({"grad_clip_norm": None}, "must be > 0; got None"),
            ({"learned_rates": "elements"}, "learned_rates must be one of .* Did you mean 'element'"),
            ({"num_steps": -1}, "num_steps must be an int >= 0; got -1"),
            ({"adapts": lambda _: False}, r"it has none. Unfreeze one with requires_grad_\(True\)"),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            make_inner(**options)

    @pytest.mark.parametrize("learned_rates", ["tensor", "step", "element"])
    def test_a_model_that_has_moved(self, learned_rates):
        inner = make_inner(learned_rates=learned_rates)
        inner.model.to("meta")
        with pytest.raises(
            ValueError, match=r"device of its learned step sizes, cpu; got meta\. Move the model before"
        ):
            inner.step(lambda w: w["2.bias"].square().sum(), inner.weights())

    def test_first_order_is_a_flag(self):
        with pytest.raises(ValueError, match="first_order must be True or False; got 'False'"):
            scalar(3.0, first_order="False")

    @pytest.mark.parametrize("inner_lr", [0.0, -1.0, math.nan, math.inf, None])
    def test_step_size(self, inner_lr):
        with pytest.raises(ValueError, match=f"inner_lr must be finite and > 0; got {inner_lr}"):
            InnerLoop(nn.Linear(1, 1), inner_lr)


def test_learned_rates_of_half_precision_are_single():
    inner = InnerLoop(nn.Linear(1, 1).bfloat16(), 0.1, learned_rates="tensor")
    assert {rate.dtype for rate in inner.rates.values()} == {torch.float32}
    assert [rate.exp().item() for rate in inner.rates.values()] == pytest.approx([0.1, 0.1])
    stepped = inner.step(lambda w: w["weight"].square().sum(), inner.weights())
    assert {weight.dtype for weight in stepped.values()} == {torch.bfloat16}


def test_a_frozen_embedding_that_changes_its_weights_is_refused_too():
    model = nn.Sequential(nn.Embedding(5, 3, max_norm=1.0).requires_grad_(False), nn.Linear(3, 1))
    with pytest.raises(ValueError, match=r"must have max_norm=None; got 1\.0 in Embedding '0'"):
        InnerLoop(model, 0.1)


def test_a_filter_that_is_no_function_or_accepts_nothing():
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match=r"adapts must be a function.*got 'weight'"):
        InnerLoop(model, 0.1, adapts="weight")
    with pytest.raises(ValueError, match=r"of \['weight', 'bias'\] it has none"):
        InnerLoop(model, 0.1, adapts=lambda name: name.startswith("head."))


class TestModels:
    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (nn.Linear, r"must be a torch.nn.Module; got the class Linear\. Make an instance of it"),
            pytest.param(
                torch.tanh,
                r"must be a torch.nn.Module; got <.*tanh.*>\. Call a function in the forward of one",
                id="function",
            ),
            (None, r"must be a torch.nn.Module; got None"),
            (nn.LazyLinear(3), r"must have a shape; got weight, which has none yet\. Call the model once"),
            (nn.Sequential(nn.DataParallel(nn.Linear(1, 1))), r"of plain modules; got DataParallel '0'"),
        ],
        ids=str,
    )
    @pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
    def test_what_is_no_model(self, model, message):
        with pytest.raises(ValueError, match=message):
            InnerLoop(model, 0.1)

    @pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")
    def test_a_part_that_is_no_python(self):
        model = nn.Sequential(nn.Linear(1, 1), torch.jit.trace(nn.Linear(1, 1), torch.zeros(1)))
        message = r"of plain modules; got TopLevelTracedModule '1', which takes no other weights than its own\. Use the"
        with pytest.raises(ValueError, match=message):
            InnerLoop(model, 0.1)

    @pytest.mark.parametrize(("option", "value"), [("sparse", True), ("max_norm", 1.0)])
    @pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
    def test_embeddings_that_are_changed_by_other_things_than_dense_gradients(self, kind, option, value):
        model = nn.Sequential(kind(5, 3, **{option: value}), nn.Linear(3, 1))
        message = rf"must have {option}=(False|None); got {value} in {kind.__name__} '0'\. Make it without {option}"
        with pytest.raises(ValueError, match=message):
            InnerLoop(model, 0.1)
        model[0].requires_grad_(False)
        if option == "sparse":  # the other changes them without a gradient, too
            InnerLoop(model, 0.1)


def replaced(model):
    model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)


def new_head(model):
    model[2] = nn.Linear(3, 2).double()


def parametrised(model):
    nn.utils.parametrizations.weight_norm(model[2])


def added(model):
    model.append(nn.Linear(1, 1))


def frozen(model):
    model[2].bias.requires_grad_(False)


def removed(model):
    del model[2]


class TestCheckParameters:
    @pytest.mark.parametrize(
        ("change", "names"),
        [
            (replaced, ["0.weight", "0.bias", "2.weight", "2.bias"]),
            (new_head, ["2.weight", "2.bias"]),
            (removed, ["2.weight", "2.bias"]),
            (
                parametrised,
                ["2.weight", "2.parametrizations.weight.original0", "2.parametrizations.weight.original1"],
            ),
            (added, ["3.weight", "3.bias"]),
            (frozen, ["2.bias"]),
        ],
    )
    def test_what_changed_is_named(self, change, names):
        inner = make_inner()
        inner.check_parameters()
        change(inner.model)
        with pytest.raises(ValueError, match=r"the parameters that it had.*Make a new MetaMAML, or trainer") as error:
            inner.check_parameters()
        assert str(names) in str(error.value)

    def test_unfrozen_later(self):
        model = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1).requires_grad_(False))
        inner = InnerLoop(model, 0.1)
        model.requires_grad_(True)
        with pytest.raises(ValueError, match=r"frozen: \['1.weight', '1.bias'\]"):
            inner.check_parameters()

    def test_other_values_are_no_other_parameters(self):
        inner = make_inner()
        inner.model.load_state_dict({name: tensor + 1.0 for name, tensor in inner.model.state_dict().items()})
        inner.check_parameters()
