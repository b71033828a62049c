"""The resettable linear recurrence at the heart of the state-space model."""

import math
import sys
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch._functorch import eager_transforms

__all__ = ["linear_recurrence"]

# Steps of at most so many numbers are computed by NumPy, whose calls cost a fraction of PyTorch's.
_NARROW: Final = 8192
# Of those, sequences of at least so many steps of at most so many numbers are cut into pieces that run side by side.
_LONG: Final = 64
_PIECE: Final = 512
_NUMPY_TYPES: Final = (torch.float32, torch.float64, torch.complex64, torch.complex128)

Array: TypeAlias = npt.NDArray[Any]


def linear_recurrence(decay: Tensor, inputs: Tensor, state: Tensor, start: Tensor | None = None) -> Tensor:
    """The states ``h_t = decay * h_tm1 + inputs_t`` of a diagonal recurrence.

    Where ``start_t`` is true, ``h_tm1`` counts as zero (Lu et al. 2023, https://arxiv.org/abs/2303.03982). It is
    cleared by selection, never by multiplication, so that not even a NaN crosses the start of an episode.

    The gradient is the same recurrence run backwards in time, so that no graph of T steps is built. It may be
    differentiated any number of times, forwards too, and mapped with ``torch.vmap`` over any of the arguments.

    Args:
        decay: ``[P]``, real or complex, of the type of the others.
        inputs: ``[B T P]``.
        state: ``[B P]``, the state before the first step.
        start: ``Bool[B T]``, the first steps of episodes; None where there is none.

    Returns:
        ``[B T P]``, the state after each step.
    """
    if inputs.shape[1] == 1:
        # One step: the operations themselves are cheaper than a graph node of their own.
        if start is not None:
            state = torch.where(start, 0.0, state)
        return (decay * state + inputs[:, 0])[:, None]
    if start is None:
        start = torch.zeros(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
    recurrence = by_doubling if _needs_plain_operations() else _Recurrence.apply
    states: Tensor = recurrence(decay, inputs.transpose(0, 1), state, start.transpose(0, 1))
    return states.transpose(0, 1)


def _needs_plain_operations() -> bool:
    """Whether a function of autograd of one's own would be wrong here, where plain operations are right.

    torch.compile traces none that has forward derivatives; within one, PyTorch takes no forward derivative of another;
    and what make_fx and torch.func.linearize trace would hold the numbers that NumPy gave.
    """
    if torch.compiler.is_dynamo_compiling() or getattr(eager_transforms, "JVP_NESTING", 0) > 1:
        return True
    tracing = sys.modules.get("torch.fx.experimental.proxy_tensor")  # where it is not loaded, nothing is traced by it
    return tracing is not None and tracing.get_proxy_mode() is not None


class _Recurrence(torch.autograd.Function):
    """The recurrence, time first: ``decay`` ``[P]`` or ``[B P]``, ``inputs`` ``[T B P]``, ``start`` ``Bool[T B]``."""

    @staticmethod
    def forward(decay: Tensor, inputs: Tensor, state: Tensor, start: Tensor) -> Tensor:
        if inputs.is_cuda or torch.compiler.is_compiling():  # what is exported has neither NumPy nor a loop
            return by_doubling(decay, inputs, state, start)
        if inputs.device.type == "cpu" and inputs.dtype in _NUMPY_TYPES and inputs[0].numel() <= _NARROW:
            arrays = (x.detach().resolve_conj().resolve_neg().numpy() for x in (decay, inputs, state, start))
            return torch.from_numpy(by_numpy(*arrays))
        return step_by_step(decay, inputs, state, start)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        decay, _, state, start = inputs
        ctx.save_for_backward(decay, state, start, output)
        ctx.save_for_forward(decay, state, start, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        decay, state, start, states = ctx.saved_tensors
        conjugate = decay.conj().resolve_conj()
        # g_t = grad_t + conj(decay) * g_tp1, unless an episode starts at t + 1.
        stop = torch.cat([torch.zeros_like(start[:1]), start[1:].flip(0)])
        g = _Recurrence.apply(conjugate, grad.flip(0), torch.zeros_like(state), stop).flip(0)  # T B P
        before = _states_before(state, start, states)
        grad_decay = (before.conj() * g).sum(0 if decay.ndim == 2 else (0, 1))
        return grad_decay, g, torch.where(start[0, :, None], 0.0, conjugate * g[0]), None

    @staticmethod
    def jvp(
        ctx: Any, decay_tangent: Tensor | None, inputs_tangent: Tensor | None, state_tangent: Tensor | None, _: None
    ) -> Tensor:
        """The same recurrence, driven by the tangents: ``dh_t = decay dh_tm1 + ddecay h_tm1 + dinputs_t``."""
        decay, state, start, states = ctx.saved_tensors
        driven = torch.zeros_like(states) if inputs_tangent is None else inputs_tangent
        if decay_tangent is not None:
            driven = driven + decay_tangent * _states_before(state, start, states)
        first = torch.zeros_like(state) if state_tangent is None else state_tangent
        tangent: Tensor = _Recurrence.apply(decay, driven, first, start)
        return tangent

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


def _states_before(state: Tensor, start: Tensor, states: Tensor) -> Tensor:
    """The state before each step, ``[T B P]``: zero where an episode starts."""
    return torch.where(start[..., None], 0.0, torch.cat([state[None], states[:-1]]))


def step_by_step(decay: Tensor, inputs: Tensor, state: Tensor, start: Tensor) -> Tensor:
    """The recurrence as it is written, one step after the other: ``[T B P]``."""
    states = torch.empty_like(inputs, memory_format=torch.contiguous_format)
    starts = start.any(dim=1).tolist()
    for inputs_t, states_t, start_t, any_start in zip(inputs, states, start, starts, strict=True):
        if any_start:
            state = torch.where(start_t[:, None], 0.0, state)
        state = torch.addcmul(inputs_t, decay, state, out=states_t)
    return states


@np.errstate(all="ignore")  # PyTorch does not warn of overflow and NaN either
def by_numpy(decay: Array, inputs: Array, state: Array, start: Array) -> Array:
    """The recurrence in NumPy: pieces of a long sequence side by side, then what each inherits from the last one."""
    num_steps, batch_size, num_states = inputs.shape
    is_long = num_steps >= _LONG and batch_size * num_states <= _PIECE
    # About sqrt(T), and a power of two, as most sequences are as long as one, so that nothing has to be added.
    length = 1 << math.isqrt(num_steps - 1).bit_length() if is_long else num_steps
    num_pieces = -(-num_steps // length)
    shape = (num_pieces, length, batch_size)
    padding = num_pieces * length - num_steps
    if padding:
        inputs = np.concatenate([inputs, np.zeros((padding, batch_size, num_states), inputs.dtype)])
        start = np.concatenate([start, np.zeros((padding, batch_size), start.dtype)])
    pieces = inputs.reshape(*shape, num_states).swapaxes(0, 1)  # L C B P
    starts = start.reshape(*shape, 1).swapaxes(0, 1)  # L C B 1
    any_start = np.any(starts, axis=(1, 2, 3)).tolist()
    states = np.empty(pieces.shape, inputs.dtype)
    previous = np.zeros(pieces.shape[1:], inputs.dtype)  # C B P
    previous[0] = state
    for t, (inputs_t, states_t) in enumerate(zip(pieces, states, strict=True)):
        if any_start[t]:
            previous = np.where(starts[t], 0, previous)
        np.multiply(decay, previous, out=states_t)
        states_t += inputs_t
        previous = states_t
    if num_pieces == 1:
        return states[:, 0]
    powers = np.empty((length, *decay.shape), decay.dtype)
    powers[:] = decay
    powers = np.multiply.accumulate(powers).reshape(length, -1, num_states)  # L 1 P or L B P
    fresh = np.logical_or.accumulate(starts)  # L C B 1, a start so far in this piece
    any_fresh = fresh[-1].any(axis=(1, 2)).tolist()
    for piece in range(1, num_pieces):
        inherited = powers * states[-1, piece - 1]  # L B P
        states[:, piece] += np.where(fresh[:, piece], 0, inherited) if any_fresh[piece] else inherited
    return states.swapaxes(0, 1).reshape(num_pieces * length, batch_size, num_states)[:num_steps]


def by_doubling(decay: Tensor, inputs: Tensor, state: Tensor, start: Tensor) -> Tensor:
    """The recurrence in log2(T) passes over the sequence, each of which looks back twice as far: for many cores.

    What lies before a start is cleared before it is multiplied, so that a NaN there is in no gradient either. Decays
    must be at most 1 in size: their powers multiply zeros.
    """
    first = torch.addcmul(inputs[0], decay, torch.where(start[0, :, None], 0.0, state))
    states, fresh = torch.cat([first[None], inputs[1:]]), start[..., None]
    reach, power = 1, decay
    while reach < len(states):
        earlier = torch.where(fresh[reach:], 0.0, states[:-reach])
        states = torch.cat([states[:reach], torch.addcmul(states[reach:], power, earlier)])
        fresh = torch.cat([fresh[:reach], fresh[reach:] | fresh[:-reach]])
        reach, power = 2 * reach, power * power
    return states
