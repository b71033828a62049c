import io
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.autograd import gradgradcheck
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vmap

from ssm_metarl_gym.agents import SSM

B, T, D, H, OUT, LAYERS = 3, 6, 4, 8, 2, 2


@pytest.fixture
def model():
    return SSM(D, H, OUT, num_layers=LAYERS)


@pytest.fixture
def start():
    mask = torch.zeros(B, T, dtype=torch.bool)
    mask[0, 0] = mask[1, 3] = mask[1, 4] = True
    return mask


def sequence(*, dtype=torch.float32):
    return torch.randn(B, T, D, dtype=dtype), torch.randn(B, LAYERS, 2, H // 2, dtype=dtype)


def reference(model, x, state, start):
    """The equations of Orvieto et al. 2023 with complex numbers, written out: ``x`` ``Float[B T D]``."""
    p = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    h = state.numpy()[:, :, 0] + 1j * state.numpy()[:, :, 1]  # B L P
    outputs = []
    for t in range(x.shape[1]):
        h = np.where(start[:, t, None, None], 0.0, h)
        y = x[:, t].numpy() @ p["encoder.weight"].T + p["encoder.bias"]
        for k in range(model.num_layers):
            q = {name.removeprefix(f"layers.{k}."): array for name, array in p.items()}
            centred = y - y.mean(-1, keepdims=True)
            normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * q["norm_weight"] + q["norm_bias"]
            decay = np.exp(-np.exp(q["nu"]) + 1j * np.exp(q["theta"]))
            b = q["b"][::2] + 1j * q["b"][1::2]
            h[:, k] = decay * h[:, k] + np.sqrt(1.0 - np.abs(decay) ** 2) * (normed @ b.T)
            mixed = np.stack([h[:, k].real, h[:, k].imag], -1).reshape(len(h), -1) @ q["c"].T + q["d"] * normed
            gelu = mixed * 0.5 * (1.0 + np.vectorize(math.erf)(mixed / math.sqrt(2.0)))
            value, gate = np.split(gelu @ q["gate_weight"].T + q["gate_bias"], 2, axis=-1)
            y = y + value / (1.0 + np.exp(-gate))
        outputs.append(y @ p["decoder.weight"].T + p["decoder.bias"])
    return np.stack(outputs, axis=1), np.stack([h.real, h.imag], axis=2)


class TestScan:
    def test_the_last_step_alone_is_the_last_of_all_with_its_gradients(self, model, start):
        x, state = sequence()
        features, after = model.scan(x, state, start)
        last, last_after = model.scan(x, state, start, only_last=True)
        torch.testing.assert_close(last, features[:, -1:])
        torch.testing.assert_close(last_after, after)
        ours, expected = (torch.autograd.grad(y.square().sum(), model.parameters()) for y in (last, features[:, -1]))
        torch.testing.assert_close(ours, expected)

    def test_it_follows_the_published_equations(self, model, start):
        model.double()
        x, state = sequence(dtype=torch.float64)
        for actual, expected in zip(model.scan(x, state, start), reference(model, x, state, start), strict=True):
            np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=1e-9, atol=1e-12)

    def test_scan_is_a_loop_over_step(self, model, start):
        x, state = sequence()
        y, last = model.scan(x, state, start)
        for t in range(T):
            y_t, state = model.step(x[:, t], state, start[:, t])
            torch.testing.assert_close(y_t, y[:, t])
        torch.testing.assert_close(state, last)

    def test_a_long_scan_is_a_loop_over_step_in_single_precision(self):
        model, num_steps = SSM(D, 64, OUT), 200
        x, state, start = torch.randn(B, num_steps, D), model.initial_state(B), torch.rand(B, num_steps) < 0.05
        with torch.no_grad():
            y, last = model.scan(x, state, start)
            assert torch.equal(model.scan(x, state, start)[0], y)
            for t in range(num_steps):
                y_t, state = model.step(x[:, t], state, start[:, t])
                assert (y_t - y[:, t]).abs().max() < 1e-5
        assert (state - last).abs().max() < 1e-5

    @pytest.mark.parametrize("cut", [1, 3, 5])
    def test_chunked_is_whole(self, model, start, cut):
        x, state = sequence()
        y, last = model.scan(x, state, start)
        first, middle = model.scan(x[:, :cut], state, start[:, :cut])
        second, end = model.scan(x[:, cut:], middle, start[:, cut:])
        torch.testing.assert_close(torch.cat([first, second], dim=1), y)
        torch.testing.assert_close(end, last)

    def test_rows_are_independent(self, model, start):
        x, state = sequence()
        y, _ = model.scan(x, state, start)
        x[0], state[0] = math.nan, math.nan
        assert torch.equal(model.scan(x, state, start)[0][1:], y[1:])

    def test_a_start_is_a_fresh_state_even_after_a_nan(self, model):
        x, state = sequence()
        fresh, _ = model.scan(x[:, 3:])
        x[:, :3], state[:] = math.nan, math.inf
        start = torch.zeros(B, T, dtype=torch.bool)
        start[:, 3] = True
        y, last = model.scan(x, state, start)
        assert y[:, :3].isnan().all()
        torch.testing.assert_close(y[:, 3:], fresh)
        assert last.isfinite().all()

    def test_no_state_is_the_zero_state(self, model):
        x, _ = sequence()
        for implicit, explicit in zip(model.scan(x), model.scan(x, model.initial_state(B)), strict=True):
            assert torch.equal(implicit, explicit)

    def test_a_start_mask_of_numbers_counts_as_booleans(self, model, start):
        x, state = sequence()
        assert torch.equal(model.scan(x, state, start.float())[0], model.scan(x, state, start)[0])


class TestForward:
    def test_a_step_is_a_sequence_of_one(self, model):
        x, _ = sequence()
        y, _ = model.scan(x[:, :1])
        torch.testing.assert_close(model(x[:, 0]), y[:, 0])

    def test_a_sequence_is_scanned(self, model):
        x, state = sequence()
        assert torch.equal(model(x), model.scan(x)[0])
        assert torch.equal(model(x, state), model.scan(x, state)[0])

    @pytest.mark.parametrize("num_steps", [None, T])
    def test_the_hidden_state_counts(self, model, num_steps):
        x, state = sequence()
        x = x[:, 0] if num_steps is None else x
        y = model(x, state)
        assert y.shape == (*x.shape[:-1], OUT)
        assert not torch.allclose(y, model(x))
        if num_steps is None:
            assert torch.equal(y, model.step(x, state)[0])

    def test_it_keeps_nothing(self, model, look):
        before, attributes = look(model), set(vars(model))
        for x in sequence()[0], sequence()[0][:, 0]:
            assert torch.equal(model(x), model(x))
        assert look(model) == before
        assert set(vars(model)) == attributes

    def test_the_initial_state_is_one_real_tensor_of_the_model_s_type(self, model):
        state = model.double().initial_state(5)
        assert state.shape == (5, LAYERS, 2, H // 2)
        assert state.dtype == torch.float64
        assert not state.any()


@settings(deadline=None, max_examples=50)
@given(st.floats(-30.0, 30.0), st.floats(-30.0, 30.0))
@example(0.0, 29.18)  # an angle of 4.7e12
def test_every_recurrence_is_stable(nu, theta):
    model = SSM(1, 2, 1, num_layers=1).double()
    with torch.no_grad():
        model.layers[0].nu.fill_(nu)
        model.layers[0].theta.fill_(theta)
        x, state = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([[[[0.6], [0.8]]]], dtype=torch.float64)
        # What is left of a difference of states after a step is that difference times lambda.
        left = model.step(x, state)[1] - model.step(x, torch.zeros_like(state))[1]
    assert left.norm() < 1.0
    if theta <= math.log(2.0 * math.pi):  # of many turns, two libraries round what is left of the last one differently
        expected = np.exp(-np.exp(nu) + 1j * np.exp(theta)) * (0.6 + 0.8j)
        np.testing.assert_allclose(left.flatten().numpy(), [expected.real, expected.imag], atol=1e-9)


class _Scan(torch.nn.Module):
    """``SSM.scan`` as a forward, which is what ``functional_call`` calls."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args):
        return self.model.scan(*args)


class TestFunctionalTransforms:
    @staticmethod
    def scan_of(model, *args):
        """The scan as a function of the weights."""
        return lambda weights: functional_call(_Scan(model), {f"model.{name}": w for name, w in weights.items()}, args)

    @pytest.fixture
    def scan(self, model, start):
        return self.scan_of(model, *sequence(), start)

    @pytest.fixture
    def loss(self, scan):
        return lambda weights: sum(part.square().mean() for part in scan(weights))

    @pytest.fixture
    def models(self):
        models = [SSM(D, H, OUT, num_layers=LAYERS) for _ in range(3)]
        return stack_module_state(models)[0], [dict(model.named_parameters()) for model in models]

    def test_vmap_over_models_is_the_loop(self, scan, models):
        stacked, single = models
        for together, alone in zip(vmap(scan)(stacked), zip(*map(scan, single), strict=True), strict=True):
            torch.testing.assert_close(together, torch.stack(alone))

    def test_vmap_of_grad_is_the_loop(self, loss, models):
        stacked, single = models
        together, alone = vmap(grad(loss))(stacked), [grad(loss)(weights) for weights in single]
        for name, gradients in together.items():
            loop = torch.stack([gradients[name] for gradients in alone])
            torch.testing.assert_close(gradients, loop, rtol=1e-4, atol=1e-5)

    def test_grad_and_grad_of_grad_are_those_of_autograd(self, model, loss):
        weights = dict(model.named_parameters())

        def slope(weights):
            return sum(g.square().sum() for g in grad(loss)(weights).values())

        first = torch.autograd.grad(loss(weights), weights.values(), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), weights.values())
        for transformed, expected in ((grad(loss), first), (grad(slope), second)):
            gradients = list(transformed(weights).values())
            assert all(g.any() for g in gradients)
            torch.testing.assert_close(gradients, list(expected), rtol=1e-4, atol=1e-5)

    def test_the_gradient_of_a_vmap_of_grad_is_that_of_the_loop(self, model, loss):
        weights, scales = dict(model.named_parameters()), torch.tensor([0.5, 2.0])

        def slope(scale):
            scaled = {name: scale * weight for name, weight in weights.items()}
            return sum(g.square().sum() for g in grad(loss)(scaled).values())

        together, loop = vmap(slope)(scales).sum(), slope(scales[0]) + slope(scales[1])
        gradients = [torch.autograd.grad(value, weights.values()) for value in (together, loop)]
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)

    # PyTorch's own forward derivatives are partly scripts.
    @pytest.mark.filterwarnings("ignore:.torch.jit.script")
    @pytest.mark.parametrize("num_steps", [1, 3])
    def test_forward_derivatives_are_those_of_finite_differences(self, num_steps):
        model = SSM(2, 4, 1).double()
        start = torch.tensor([[True, False, False], [False, False, True]])[:, -num_steps:]
        x = torch.randn(2, num_steps, 2, dtype=torch.float64)
        state = torch.randn(2, 2, 2, 2, dtype=torch.float64)
        weights = {name: weight.detach() for name, weight in model.named_parameters()}
        tangents = {name: torch.randn_like(weight) for name, weight in weights.items()}, torch.randn_like(x)

        def along(size, only_state=False):
            """The scan at a point on a line, the state alone or all its arguments changed."""
            step = 0.0 if only_state else size
            moved = {name: weight + step * tangents[0][name] for name, weight in weights.items()}
            return self.scan_of(model, x + step * tangents[1], (1.0 + size) * state, start)(moved)

        for only_state in (False, True):
            _, derivatives = jvp(lambda size: along(size, only_state), (torch.zeros(()),), (torch.ones(()),))  # noqa: B023
            high, low = along(1e-6, only_state), along(-1e-6, only_state)
            for derivative, above, below in zip(derivatives, high, low, strict=True):
                torch.testing.assert_close(derivative, (above - below) / 2e-6, rtol=1e-6, atol=1e-8)

    @pytest.mark.filterwarnings("ignore:.torch.jit.script", "ignore:There is a performance drop")
    def test_forward_over_backward_is_backward_over_backward(self):
        model = SSM(2, 4, 1).double()
        x, start = torch.randn(1, 3, 2, dtype=torch.float64), torch.tensor([[False, False, True]])
        slope = grad(lambda x: model.scan(x, start=start)[0].square().sum())
        torch.testing.assert_close(jacfwd(slope)(x), jacrev(slope)(x))

    def test_second_derivatives_are_those_of_finite_differences(self):
        model = SSM(2, 4, 1, num_layers=1).double()
        names, weights = zip(*model.named_parameters(), strict=True)
        start = torch.tensor([[True, False, False], [False, False, True]])
        scan = self.scan_of(model, torch.randn(2, 3, 2, dtype=torch.float64), model.initial_state(2), start)
        assert gradgradcheck(lambda *weights: scan(dict(zip(names, weights, strict=True))), weights, fast_mode=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
class TestHalfPrecision:
    def test_sequences_and_steps_are_those_of_single_precision(self, dtype, tolerance, start):
        model = SSM(D, H, OUT, num_layers=LAYERS).to(dtype)
        single = SSM(D, H, OUT, num_layers=LAYERS)
        single.load_state_dict(model.state_dict())
        x, state = (tensor.to(dtype) for tensor in sequence())
        for call in (
            lambda model, kind: model.scan(x.to(kind), state.to(kind), start),
            lambda model, kind: model.step(x[:, 0].to(kind), state.to(kind), start[:, 0]),
            lambda model, kind: model.stepper().step(x[:, 0].to(kind), state.to(kind), start[:, 0]),
            lambda model, kind: (model(x.to(kind)), model(x[:, 0].to(kind))),
        ):
            for half, expected in zip(call(model, dtype), call(single, torch.float32), strict=True):
                assert half.dtype == dtype
                torch.testing.assert_close(half.float(), expected.detach(), rtol=tolerance, atol=tolerance)

    def test_it_learns(self, dtype, tolerance):
        model = SSM(D, H, OUT).to(dtype)
        model(sequence()[0].to(dtype)).float().square().mean().backward()
        assert all(weight.grad.dtype == dtype and weight.grad.isfinite().all() for weight in model.parameters())

    def test_under_autocast_too(self, dtype, tolerance, model, start):
        x, state = sequence()
        expected = model.scan(x, state, start), model.step(x[:, 0], state)
        with torch.autocast("cpu", dtype):
            cast = model.scan(x, state, start), model.step(x[:, 0], state)
        for one, other in zip(cast, expected, strict=True):
            torch.testing.assert_close([part.float() for part in one], list(other), rtol=tolerance, atol=tolerance)


class TestConstruction:
    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_the_default_device_makes_no_difference(self, device, look):
        torch.manual_seed(0)
        expected = SSM(D, H, OUT, device=device)
        torch.manual_seed(0)
        with torch.device("meta"):
            model = SSM(D, H, OUT, device=device)
        assert {weight.device.type for weight in model.parameters()} == {device}
        if device == "cpu":
            assert look(model) == look(expected)

    def test_nothing_is_made_on_the_default_device(self, model, start):
        x, state = sequence()
        calls = [
            lambda: (model(x), model(x[:, 0])),
            lambda: model.scan(x, state, start),
            lambda: model.scan(x),
            lambda: model.step(x[:, 0], state, start[:, 0]),
            lambda: model.stepper().step(x[:, 0], state, start[:, 0]),
            lambda: (model.initial_state(2),),
        ]
        for call in calls:
            expected = call()
            with torch.device("meta"):
                elsewhere = call()
            torch.testing.assert_close(elsewhere, expected, rtol=0, atol=0)

    def test_a_saved_model_comes_back(self, model, look):
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        other = SSM(D, H, OUT, num_layers=LAYERS)
        assert look(other) != look(model)
        other.load_state_dict(torch.load(file, weights_only=True))
        assert look(other) == look(model)

    @pytest.mark.each_value
    @pytest.mark.parametrize("name", ["state_dim", "hidden_dim", "output_dim", "num_layers"])
    @pytest.mark.parametrize("value", [0, -2, 2.0, "2", None])
    def test_a_size_must_be_a_positive_int(self, name, value):
        with pytest.raises(ValueError, match=rf"{name} must be an int >= 1; got {value!r}"):
            SSM(**{"state_dim": 2, name: value})

    def test_an_odd_width_is_refused(self):
        with pytest.raises(ValueError, match=r"hidden_dim must be even .* got 7"):
            SSM(2, 7)

    @pytest.mark.each_value
    @pytest.mark.parametrize("radius", [(0.5, 0.99), (0.95, 0.999)])
    @pytest.mark.parametrize("max_angle", [0.1, math.pi, 2 * math.pi])
    def test_the_memory_starts_within_its_ranges(self, radius, max_angle):
        for layer in SSM(D, 400, OUT, radius=radius, max_angle=max_angle).layers:
            moduli, angles = layer.decay().abs(), layer.theta.exp()
            low, high = radius
            assert low - 1e-4 <= moduli.min() < low + 0.1 * (high - low)
            assert high - 0.1 * (high - low) < moduli.max() <= high + 1e-4
            assert 0.01 - 1e-6 <= angles.min() < 0.01 + 0.1 * max_angle
            assert 0.9 * max_angle < angles.max() <= max_angle + 1e-4

    @pytest.mark.parametrize("radius", [(0.0, 0.5), (0.5, 1.0 - 1e-9), (0.9, 0.5), (0.5, math.nan), (0.5,), "ab", 0.9])
    def test_a_radius_that_is_no_range_below_one_is_refused(self, radius):
        with pytest.raises(ValueError, match=r"radius must be two numbers, 1e-6 <= low < high <= 1 - 1e-6; got"):
            SSM(D, radius=radius)

    @pytest.mark.parametrize("max_angle", [0.0, 0.01, 7.0, math.nan, None])
    def test_an_angle_beyond_a_turn_is_refused(self, max_angle):
        with pytest.raises(ValueError, match=rf"max_angle must be in \(0.01, 2 pi\] radians; got {max_angle}"):
            SSM(D, max_angle=max_angle)

    @pytest.mark.parametrize("radius", [(1e-6, 2e-6), (1.0 - 2e-6, 1.0 - 1e-6)])
    def test_the_extreme_time_scales_have_finite_gradients(self, radius):
        model = SSM(D, H, OUT, radius=radius)
        model.scan(sequence()[0])[0].square().sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())

    @pytest.mark.parametrize("num_layers", [1, 3])
    def test_the_number_of_layers(self, num_layers):
        model = SSM(D, H, OUT, num_layers=num_layers)
        assert model.initial_state(1).shape[1] == num_layers
        assert model(torch.randn(2, D)).shape == (2, OUT)


@pytest.mark.parametrize("shape", [(D,), (B, D + 1), (B, T, D - 1), (B, T, 1, D), (B, 0, D)])
def test_an_input_of_another_shape_is_refused(model, shape):
    with pytest.raises(ValueError, match=r"the input must have shape \(batch, 4\)"):
        model(torch.zeros(shape))


@pytest.mark.parametrize("call", ["step", "scan"])
def test_step_and_scan_do_not_take_each_other_s_inputs(model, call):
    x = torch.zeros(B, T, D) if call == "step" else torch.zeros(B, D)
    with pytest.raises(ValueError, match="the input must have shape"):
        getattr(model, call)(x, model.initial_state(B))


@pytest.mark.parametrize("x", [torch.zeros(B, D), torch.zeros(B, T, D)])
@pytest.mark.parametrize("shape", [(B + 1, LAYERS, 2, H // 2), (B, 1, 2, H // 2), (B, LAYERS, 2, H), (B, H)])
def test_a_state_of_another_shape_is_refused(model, x, shape):
    with pytest.raises(ValueError, match=r"the state must have shape \(3, 2, 2, 4\)"):
        model(x, torch.zeros(shape))


@pytest.mark.parametrize("shape", [(B,), (B, T - 1), (B, T, 1)])
def test_a_start_mask_of_another_shape_is_refused(model, shape):
    with pytest.raises(ValueError, match="start must have the shape"):
        model.scan(torch.zeros(B, T, D), start=torch.zeros(shape, dtype=torch.bool))


@pytest.mark.slow
def test_an_exported_model_computes_the_same(model, start):
    x, state = sequence()
    scan = torch.export.export(_Scan(model), (x, state, start)).module()
    torch.testing.assert_close(scan(x, state, start), model.scan(x, state, start))


@pytest.mark.slow
def test_a_compiled_model_computes_the_same_and_its_gradients(model, start):
    x, state = sequence()
    start = start.clone()
    start[:, 0], state = True, torch.full_like(state, math.nan)  # which is in no gradient either
    found = []
    for scan in (model.scan, torch.compile(model.scan, backend="eager", fullgraph=True)):
        y, after = scan(x, state, start)
        found.append((y, after, torch.autograd.grad(y.square().sum() + after.square().sum(), model.parameters())))
    torch.testing.assert_close(found[1], found[0])
