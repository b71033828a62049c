"""The resettable linear recurrence at the heart of the state-space model."""

import torch
from torch import Tensor

__all__ = ["complex_multiply", "scan"]


def complex_multiply(a: Tensor, b: Tensor) -> Tensor:
    """The product of complex numbers kept as real pairs: ``Float[... 2 P]``, real part first.

    Pairs, not complex tensors, because a state must be one real tensor that SB3's buffers can hold.
    """
    a_re, a_im = a.unbind(-2)
    b_re, b_im = b.unbind(-2)
    return torch.stack([a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re], dim=-2)


def scan(decay: Tensor, inputs: Tensor, state: Tensor, start: Tensor | None = None) -> Tensor:
    """The states ``h_t = decay * h_tm1 + inputs_t`` of a diagonal complex recurrence.

    Where ``start_t`` is true, ``h_tm1`` counts as zero (Lu et al. 2023, https://arxiv.org/abs/2303.03982). It is
    cleared by selection, never by multiplication, so that not even a NaN crosses the start of an episode.

    Args:
        decay: ``Float[2 P]``.
        inputs: ``Float[B T 2 P]``.
        state: ``Float[B 2 P]``, the state before the first step.
        start: ``Bool[B T]``, the first steps of episodes; None where there is none.

    Returns:
        ``Float[B T 2 P]``, the state after each step.
    """
    states = []
    for t, inputs_t in enumerate(inputs.unbind(1)):
        if start is not None:
            state = torch.where(start[:, t, None, None], 0.0, state)
        state = complex_multiply(decay, state) + inputs_t  # B 2 P
        states.append(state)
    return torch.stack(states, dim=1)
