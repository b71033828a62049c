import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap

from ssm_metarl_gym.agents.scan import complex_multiply, scan

B, T, P = 3, 7, 4


def as_complex(pairs):
    return pairs.numpy()[..., 0, :] + 1j * pairs.numpy()[..., 1, :]


def example(dtype=torch.float64):
    """Decay, inputs, state and a start mask that is true at a first, a middle and two successive steps."""
    start = torch.zeros(B, T, dtype=torch.bool)
    start[0, 0] = start[1, 3] = start[2, 4] = start[2, 5] = True
    return *(torch.randn(shape, dtype=dtype) for shape in ((2, P), (B, T, 2, P), (B, 2, P))), start


def test_complex_multiply_is_the_product_of_complex_numbers():
    a, b = torch.randn(2, P, dtype=torch.float64), torch.randn(B, T, 2, P, dtype=torch.float64)
    np.testing.assert_allclose(as_complex(complex_multiply(a, b)), as_complex(a) * as_complex(b), rtol=1e-12)


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
    assert torch.equal(torch.cat([first, second], dim=1), whole)


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
        assert torch.equal(alone[0], whole[row])


def test_gradients_of_both_orders():
    *tensors, start = example()
    tensors = [tensor[..., :2].requires_grad_() for tensor in tensors]
    assert gradcheck(lambda *args: scan(*args, start), tensors, fast_mode=True)
    assert gradgradcheck(lambda *args: scan(*args, start), tensors, fast_mode=True)


def test_vmap_is_the_loop():
    decays = torch.randn(5, 2, P)
    _, inputs, state, start = example(torch.float32)
    together = vmap(scan, in_dims=(0, None, None, None))(decays, inputs, state, start)
    torch.testing.assert_close(together, torch.stack([scan(decay, inputs, state, start) for decay in decays]))
