"""The resettable linear recurrence at the heart of the state-space model."""

import math
from typing import Any, Final

import torch
from torch import Tensor

__all__ = ["complex_multiply", "linear_recurrence", "scan"]

# A sequence of at least so many steps, each of at most so many numbers, is cut into pieces that run side by side: there
# a step costs more than its arithmetic. Measured, forward and backward of up to 1024 numbers: pieces are 1.05 to 1.5
# times as fast as steps at 128 steps and 1.3 to 3 times at 512. At 64 steps a whole model shows no difference; 2048
# numbers gain nothing up to 256 steps, 4096 lose at 64. Doubling is never faster than pieces from 64 steps on.
_LONG: Final = 128
_NARROW: Final = 2048


def complex_multiply(a: Tensor, b: Tensor) -> Tensor:
    """The product of complex numbers kept as real pairs: ``Float[... 2 P]``, real part first.

    Pairs, not complex tensors, because a state must be one real tensor that SB3's buffers can hold.
    """
    a_re, a_im = a.unbind(-2)
    b_re, b_im = b.unbind(-2)
    return torch.stack([a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re], dim=-2)


def scan(decay: Tensor, inputs: Tensor, state: Tensor, start: Tensor | None = None) -> Tensor:
    """:func:`linear_recurrence` of complex numbers that are kept as real pairs, real part first.

    Args:
        decay: ``Float[2 P]``.
        inputs: ``Float[B T 2 P]``.
        state: ``Float[B 2 P]``, the state before the first step.
        start: ``Bool[B T]``, the first steps of episodes; None where there is none.

    Returns:
        ``Float[B T 2 P]``, the state after each step.
    """
    if inputs.shape[1] == 1:
        # One step: the operations themselves are cheaper than a graph node of their own.
        if start is not None:
            state = torch.where(start[:, 0, None, None], 0.0, state)
        return (complex_multiply(decay, state) + inputs[:, 0])[:, None]
    states = linear_recurrence(_to_complex(decay), _to_complex(inputs), _to_complex(state), start)
    return torch.stack([states.real, states.imag], dim=-2)


def _to_complex(pairs: Tensor) -> Tensor:
    real, imaginary = pairs.unbind(-2)
    return torch.complex(real, imaginary)


def linear_recurrence(decay: Tensor, inputs: Tensor, state: Tensor, start: Tensor | None = None) -> Tensor:
    """The states ``h_t = decay * h_tm1 + inputs_t`` of a diagonal recurrence.

    Where ``start_t`` is true, ``h_tm1`` counts as zero (Lu et al. 2023, https://arxiv.org/abs/2303.03982). It is
    cleared by selection, never by multiplication, so that not even a NaN crosses the start of an episode.

    The gradient is the same recurrence run backwards in time, so that no graph of T steps is built. It may be
    differentiated any number of times, and mapped with ``torch.vmap`` over any of the arguments.

    Args:
        decay: ``[P]``, real or complex, of the type of the others.
        inputs: ``[B T P]``.
        state: ``[B P]``, the state before the first step.
        start: ``Bool[B T]``, the first steps of episodes; None where there is none.

    Returns:
        ``[B T P]``, the state after each step.
    """
    if start is None:
        start = torch.zeros(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
    states: Tensor = _Recurrence.apply(decay, inputs.transpose(0, 1), state, start.transpose(0, 1))
    return states.transpose(0, 1)


class _Recurrence(torch.autograd.Function):
    """The recurrence, time first: ``decay`` ``[P]`` or ``[B P]``, ``inputs`` ``[T B P]``, ``start`` ``Bool[T B]``."""

    @staticmethod
    def forward(decay: Tensor, inputs: Tensor, state: Tensor, start: Tensor) -> Tensor:
        if inputs.is_cuda:
            return by_doubling(decay, inputs, state, start)
        if inputs.shape[0] >= _LONG and inputs[0].numel() <= _NARROW:
            return in_pieces(decay, inputs, state, start)
        return step_by_step(decay, inputs, state, start)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        decay, _, state, start = inputs
        ctx.save_for_backward(decay, state, start, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        decay, state, start, states = ctx.saved_tensors
        conjugate = decay.conj().resolve_conj()
        # g_t = grad_t + conj(decay) * g_tp1, unless an episode starts at t + 1.
        stop = torch.cat([torch.zeros_like(start[:1]), start[1:].flip(0)])
        g = _Recurrence.apply(conjugate, grad.flip(0), torch.zeros_like(state), stop).flip(0)  # T B P
        before = torch.where(start[..., None], 0.0, torch.cat([state[None], states[:-1]]))  # T B P
        grad_decay = (before.conj() * g).sum(0 if decay.ndim == 2 else (0, 1))
        return grad_decay, g, torch.where(start[0, :, None], 0.0, conjugate * g[0]), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        """The mapped dimension becomes one with the batch, whose rows may decay at rates of their own."""
        size = info.batch_size

        def merge(tensor: Tensor, in_dim: int | None, position: int) -> Tensor:
            if in_dim is None:
                shape = (*tensor.shape[:position], size, *tensor.shape[position:])
                tensor = tensor.unsqueeze(position).expand(shape)
            else:
                tensor = tensor.movedim(in_dim, position)
            return tensor.flatten(position, position + 1)  # K B -> KB

        decay, inputs, state, start = tensors
        state, dim = merge(state, in_dims[2], 0), in_dims[0]
        if dim is not None and decay.ndim == 2:
            # One decay for each entry of the mapped dimension, whatever the row of the batch.
            decay = decay.movedim(dim, 0).repeat_interleave(len(state) // size, dim=0)
        elif decay.ndim > 1:
            decay = merge(decay, dim, 0)
        states = _Recurrence.apply(decay, merge(inputs, in_dims[1], 1), state, merge(start, in_dims[3], 1))
        return states.unflatten(1, (size, -1)), 1


def step_by_step(decay: Tensor, inputs: Tensor, state: Tensor, start: Tensor) -> Tensor:
    """The recurrence as it is written, one step after the other: ``[T B P]``."""
    states = torch.empty_like(inputs, memory_format=torch.contiguous_format)
    _fill(states, decay, inputs, state, start)
    return states


def _fill(states: Tensor, decay: Tensor, inputs: Tensor, state: Tensor, start: Tensor) -> None:
    """Writes the states after each step into ``states`` ``[T ... P]``, step by step."""
    starts = start.flatten(1).any(dim=1).tolist() if start.any() else [False] * len(start)
    for inputs_t, states_t, start_t, any_start in zip(inputs, states, start, starts, strict=True):
        if any_start:
            state = torch.where(start_t[..., None], 0.0, state)
        state = torch.addcmul(inputs_t, decay, state, out=states_t)


def in_pieces(decay: Tensor, inputs: Tensor, state: Tensor, start: Tensor) -> Tensor:
    """Pieces of about sqrt(T) steps side by side, and then what each inherits from the one before it."""
    num_steps, batch_size, num_states = inputs.shape
    # A power of two, as most sequences are as long as one, so that nothing has to be added.
    length = 1 << (math.isqrt(num_steps - 1).bit_length())
    padding = -num_steps % length
    if padding:
        inputs = torch.cat([inputs, inputs.new_zeros(padding, batch_size, num_states)])
        start = torch.cat([start, start.new_zeros(padding, batch_size)])
    pieces, starts = inputs.unflatten(0, (-1, length)), start.unflatten(0, (-1, length))  # C L B P, C L B
    states = torch.empty_like(pieces, memory_format=torch.contiguous_format)
    first = torch.cat([state[None], state.new_zeros(len(pieces) - 1, batch_size, num_states)])  # C B P
    _fill(states.transpose(0, 1), decay, pieces.transpose(0, 1), first, starts.transpose(0, 1))
    powers = decay.expand(length, *decay.shape).cumprod(dim=0).view(length, -1, num_states)  # L 1 P or L B P
    fresh = starts.cummax(dim=1).values[..., None]  # C L B 1, a start so far in this piece
    any_start = fresh.flatten(1).any(dim=1).tolist()
    for piece in range(1, len(pieces)):
        whole = torch.addcmul(states[piece], powers, states[piece - 1, -1])
        states[piece] = torch.where(fresh[piece], states[piece], whole) if any_start[piece] else whole
    return states.flatten(0, 1)[:num_steps]


def by_doubling(decay: Tensor, inputs: Tensor, state: Tensor, start: Tensor) -> Tensor:
    """In log2(T) passes over the whole sequence, each of which looks back twice as far: for devices with many cores."""
    first = torch.where(start[0, :, None], inputs[0], torch.addcmul(inputs[0], decay, state))
    states, fresh = torch.cat([first[None], inputs[1:]]), start[..., None]
    reach, power = 1, decay
    while reach < len(states):
        grown = torch.addcmul(states[reach:], power, states[:-reach])
        states = torch.cat([states[:reach], torch.where(fresh[reach:], states[reach:], grown)])
        fresh = torch.cat([fresh[:reach], fresh[reach:] | fresh[:-reach]])
        reach, power = 2 * reach, power * power
    return states
