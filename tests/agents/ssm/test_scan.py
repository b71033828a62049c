import functools
import itertools
import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, linearize, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from ssm_metarl_gym.agents.ssm.scan import (
    by_doubling,
    by_numpy,
    linear_recurrence,
    step_by_step,
)

B, T, P = 3, 7, 4


def as_complex(pairs):
    return pairs.numpy()[..., 0, :] + 1j * pairs.numpy()[..., 1, :]


def scan(decay, inputs, state, start=None):
    """The recurrence of complex numbers kept as real pairs ``[... 2 P]``."""
    numbers = (torch.complex(*pairs.unbind(-2)) for pairs in (decay, inputs, state))
    states = linear_recurrence(*numbers, start)
    return torch.stack([states.real, states.imag], dim=-2)


def example(dtype=torch.float64):
    """Decay, inputs, state and a start mask that is true at a first, a middle and two successive steps."""
    start = torch.zeros(B, T, dtype=torch.bool)
    start[0, 0] = start[1, 3] = start[2, 4] = start[2, 5] = True
    return *(torch.randn(shape, dtype=dtype) for shape in ((2, P), (B, T, 2, P), (B, 2, P))), start


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        # i/2 turns by a quarter and halves: 4 -> 2i + 1 -> -1 + i/2 + 1 -> -1/4 + 1.
        (None, [[1, 2], [0, 0.5], [0.75, 0]]),
        # The same from zero at the second step: 1 -> i/2 + 1.
        ([[False, True, False]], [[1, 2], [1, 0], [1, 0.5]]),
    ],
)
def test_a_hand_computed_recurrence(start, expected):
    decay, state = torch.tensor([[0.0], [0.5]]), torch.tensor([[[4.0], [0.0]]])
    inputs = torch.tensor([[1.0, 0.0]] * 3)[None, :, :, None]
    states = scan(decay, inputs, state, None if start is None else torch.tensor(start))
    assert states[0, :, :, 0].tolist() == expected


@pytest.mark.parametrize("starts", [False, True])
def test_scan_is_the_complex_recurrence(starts):
    decay, inputs, state, start = example()
    expected, h = [], as_complex(state)
    for t in range(T):
        h = np.where(starts & start[:, t, None].numpy(), 0.0, h)
        h = as_complex(decay) * h + as_complex(inputs)[:, t]
        expected.append(h)
    states = scan(decay, inputs, state, start if starts else None)
    np.testing.assert_allclose(as_complex(states), np.stack(expected, axis=1), rtol=1e-12)


@pytest.mark.parametrize("cut", range(1, T))
def test_chunked_is_whole(cut):
    decay, inputs, state, start = example(torch.float32)
    whole = scan(decay, inputs, state, start)
    first = scan(decay, inputs[:, :cut], state, start[:, :cut])
    second = scan(decay, inputs[:, cut:], first[:, -1], start[:, cut:])
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=1e-5, atol=1e-5)


def test_a_start_is_a_fresh_state_even_after_a_nan():
    decay, inputs, state, start = example()
    for row, last in ((0, 0), (1, 3), (2, 5)):
        dirty_inputs, dirty_state = inputs.clone(), state.clone()
        dirty_inputs[row, :last], dirty_state[row] = math.nan, math.inf
        after = scan(decay, dirty_inputs, dirty_state, start)[row, last:]
        fresh = scan(decay, inputs[row : row + 1, last:], torch.zeros(1, 2, P, dtype=torch.float64))[0]
        assert torch.equal(after, fresh)


def test_rows_are_independent():
    decay, inputs, state, start = example(torch.float32)
    whole = scan(decay, inputs, state, start)
    for row in range(B):
        alone = scan(decay, inputs[row : row + 1], state[row : row + 1], start[row : row + 1])
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-5, atol=1e-5)


def test_gradients_of_both_orders():
    *tensors, start = example()
    tensors = [tensor[..., :2].requires_grad_() for tensor in tensors]
    for function in (lambda *args: scan(*args, start), lambda *args: scan(*args)):
        assert gradcheck(function, tensors, fast_mode=True)
        assert gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradients_of_real_and_of_complex_recurrences(dtype):
    start = torch.rand(B, T) < 0.3
    tensors = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in ((2,), (B, T, 2), (B, 2))]
    assert gradcheck(lambda *args: linear_recurrence(*args, start), tensors, fast_mode=True)
    assert gradgradcheck(lambda *args: linear_recurrence(*args, start), tensors, fast_mode=True)


def loop(decay, inputs, state, start):
    """The recurrence as autograd itself would differentiate it."""
    states = []
    for inputs_t, start_t in zip(inputs.unbind(1), start.unbind(1), strict=True):
        state = decay * torch.where(start_t[:, None], 0.0, state) + inputs_t
        states.append(state)
    return torch.stack(states, dim=1)


# Of decay, inputs, state and start: all together, and each alone.
SOME_DIMS = [(1, 2, 0, 1), (0, 0, 1, None), (0, None, None, None), (None, 2, None, None), (None, None, 1, None)]
SOME_DIMS += [(None, None, None, 1)]
ALL_DIMS = list(itertools.product([0, 1, None], [0, 2, None], [0, 1, None], [1, None]))[:-1]


@pytest.mark.parametrize(
    "in_dims", [dims if dims in SOME_DIMS else pytest.param(dims, marks=pytest.mark.slow) for dims in ALL_DIMS]
)
def test_vmap_over_any_argument_and_gradients_of_gradients_through_it(in_dims):
    size, shapes = 2, ((P,), (B, T, P), (B, P))
    arguments = [torch.randn(shape, dtype=torch.float64) for shape in shapes] + [torch.rand(B, T) < 0.3]
    mapped = [
        argument if dim is None else torch.stack([argument, argument.roll(1, -1)], dim=dim)
        for argument, dim in zip(arguments, in_dims, strict=True)
    ]
    assert all(dim is None or argument.shape[dim] == size for argument, dim in zip(mapped, in_dims, strict=True))

    def derivatives(function):
        def energy(*args):
            return function(*args).pow(3).sum()

        def of_gradients(*args):
            return sum(part.square().sum() for part in grad(energy, (0, 1, 2))(*args))

        return lambda *args: (function(*args), *grad(energy, (0, 1, 2))(*args), *grad(of_gradients, (0, 1, 2))(*args))

    ours, plain = (vmap(derivatives(function), in_dims)(*mapped) for function in (linear_recurrence, loop))
    torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("num_steps", [T, 64, 100, 513])
def test_single_precision_is_the_loop_to_five_digits_and_to_the_bit_each_time(num_steps):
    decay = torch.polar(torch.full((P,), 0.99), torch.rand(P))
    inputs, state = torch.randn(B, num_steps, P, dtype=torch.complex64), torch.randn(B, P, dtype=torch.complex64)
    start = torch.rand(B, num_steps) < 0.02
    states = linear_recurrence(decay, 0.1 * inputs, state, start)
    assert (states - loop(decay, 0.1 * inputs, state, start)).abs().max() < 1e-5
    assert torch.equal(states, linear_recurrence(decay, 0.1 * inputs, state, start))


def test_gradients_of_a_long_sequence_are_those_of_the_loop():
    start = torch.rand(B, 70) < 0.05
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in ((P,), (B, 70, P), (B, P))]
    tensors[0] = tensors[0].tanh()

    def derivatives(function):
        def energy(*args):
            return function(*args, start).pow(3).sum()

        def slope(*args):
            return sum(part.square().sum() for part in grad(energy, (0, 1, 2))(*args))

        return *grad(energy, (0, 1, 2))(*tensors), *grad(slope, (0, 1, 2))(*tensors)

    torch.testing.assert_close(derivatives(linear_recurrence), derivatives(loop))


# The state of five steps with inputs of 1 is d^4 + d^3 + d^2 + d + 1, and that of three d^2 + d + 1.
def last_state(num_steps):
    inputs, state = torch.ones(1, num_steps, 1).double(), torch.zeros(1, 1).double()
    return lambda decay: linear_recurrence(decay, inputs, state)[0, -1, 0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's own forward derivatives
@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([jacfwd, jacfwd], 2.0 + 6.0 * 0.5 + 12.0 * 0.25),
        ([hessian], 8.0),
        ([jacfwd, jacrev, jacfwd], 6.0 + 24.0 * 0.5),
        ([jacfwd, jacfwd, jacrev], 18.0),
        ([jacrev, jacfwd, jacfwd], 18.0),
        ([jacfwd, jacfwd, jacfwd], 18.0),
    ],
)
def test_derivatives_of_forward_derivatives(order, expected):
    function = last_state(5)
    for derivative in reversed(order):
        function = derivative(function)
    assert function(torch.tensor([0.5]).double()).item() == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*get_attr:UserWarning")
def test_what_is_traced_is_no_constant():
    decay, other = torch.tensor([0.5]).double(), torch.tensor([0.25]).double()
    assert linearize(last_state(3), decay)[1](torch.ones(1).double()).item() == pytest.approx(2.0)
    assert make_fx(last_state(3))(decay)(other).item() == pytest.approx(1.0 + 0.25 + 0.0625)


def test_vmap_in_vmap():
    decays, inputs = torch.randn(2, 3, P), torch.randn(2, 3, B, T, P)
    state, start = torch.randn(B, P), torch.rand(B, T) < 0.3
    ours, plain = (
        vmap(vmap(functools.partial(function, state=state, start=start)))(decays, inputs)
        for function in (linear_recurrence, loop)
    )
    torch.testing.assert_close(ours, plain)


def in_numpy(*arguments):
    return torch.from_numpy(by_numpy(*(argument.numpy() for argument in arguments)))


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 16, 17, 64, 300])
@pytest.mark.parametrize("rows_decay_differently", [False, True])
@pytest.mark.parametrize("function", [in_numpy, by_doubling])
def test_other_orders_of_the_steps_give_the_same(function, rows_decay_differently, num_steps, dtype):
    decay = torch.randn((B, P) if rows_decay_differently else (P,), dtype=dtype)
    decay = 0.97 * decay / decay.abs()
    inputs, state = torch.randn(num_steps, B, P, dtype=dtype), torch.randn(B, P, dtype=dtype)
    start = torch.rand(num_steps, B) < 0.05
    expected = step_by_step(decay, inputs, state, start)
    torch.testing.assert_close(function(decay, inputs, state, start), expected)


@pytest.mark.parametrize("num_steps", [40, 100])
@pytest.mark.parametrize("function", [step_by_step, in_numpy, by_doubling])
def test_nothing_crosses_a_start_in_any_order(function, num_steps):
    decay, state = torch.full((P,), 0.5), torch.full((B, P), math.nan)
    inputs, start = torch.randn(num_steps, B, P), torch.zeros(num_steps, B, dtype=torch.bool)
    inputs[:13], inputs[20] = math.inf, math.nan
    start[13], start[21] = True, True
    states = function(decay, inputs, state, start)
    assert states[13:20].isfinite().all()
    assert states[20].isnan().all()
    torch.testing.assert_close(
        states[21:], function(decay, inputs[21:], torch.zeros(B, P), torch.zeros(num_steps - 21, B, dtype=torch.bool))
    )


@pytest.mark.parametrize("num_steps", [T, 300])
def test_no_gradient_crosses_a_start(num_steps):
    inputs = torch.randn(1, num_steps, P, requires_grad=True)
    state = torch.randn(1, P, requires_grad=True)
    start = torch.zeros(1, num_steps, dtype=torch.bool)
    start[:, 5] = True
    linear_recurrence(torch.full((P,), 0.9), inputs, state, start)[:, 5:].sum().backward()
    assert not state.grad.any()
    assert not inputs.grad[:, :5].any()
    assert inputs.grad[:, 5:].all()


def test_a_hundred_thousand_steps_stay_bounded():
    decay = torch.polar(torch.full((P,), 0.999), torch.rand(P))
    states = linear_recurrence(decay, torch.ones(1, 100_000, P, dtype=torch.complex64), torch.zeros(1, P) + 0j)
    assert states.abs().max() <= 1000.0
    limit = 1.0 / (1.0 - decay.to(torch.complex128))
    torch.testing.assert_close(states[0, -1].to(torch.complex128), limit, rtol=1e-3, atol=1e-3)


def test_vmap_is_the_loop():
    decays = torch.randn(5, 2, P)
    _, inputs, state, start = example(torch.float32)
    together = vmap(scan, in_dims=(0, None, None, None))(decays, inputs, state, start)
    torch.testing.assert_close(together, torch.stack([scan(decay, inputs, state, start) for decay in decays]))
