"""The state-space model: a stack of diagonal linear recurrences with gated outputs."""

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssm_metarl_gym.agents.ssm.scan import linear_recurrence
from ssm_metarl_gym.agents.ssm.stepper import SSMStepper, StepperLayer
from ssm_metarl_gym.checks import check_integer, is_number

__all__ = ["SSM", "SSMLayer"]

_MIN_ANGLE: Final = 0.01  # of lambda before training: theta is its logarithm


class SSM(nn.Module):
    """A state-space model that maps an observation, or a sequence of them, to features.

    Each layer is the linear recurrent unit of Orvieto et al. 2023 (https://arxiv.org/abs/2303.06349),
    ``h_t = lambda * h_tm1 + sqrt(1 - |lambda|^2) * B LN(x_t)`` with ``lambda = exp(-exp(nu) + i exp(theta))``, which is
    stable whatever the parameters, followed by ``x_t + GLU(W gelu(C [Re h_t, Im h_t] + D LN(x_t)))``.

    ``forward`` keeps nothing between calls: whoever needs memory across calls carries the state, see :meth:`scan` and
    :meth:`step`. Every operation is safe under ``torch.func`` (vmap, grad, jvp and their compositions, but for a jvp of
    a jvp, which PyTorch lacks for gated linear units). A model of half precision computes its recurrence in single
    precision.

    Example:
        >>> SSM(state_dim=10, hidden_dim=128, output_dim=32)(torch.randn(32, 10)).shape
        torch.Size([32, 32])

    Args:
        state_dim: Width of the input (the observation).
        hidden_dim: Width of the layers, even: each has ``hidden_dim / 2`` complex states.
        output_dim: Width of the output.
        device: Where the parameters live.
        num_layers: Number of layers.
        radius: The range of ``|lambda|`` before training. A state forgets half in ``log(0.5) / log|lambda|`` steps: one
            to 69 of them by default. What is to be remembered exactly, or longer, needs radii close to 1.
        max_angle: The largest angle of lambda before training, in radians. States that turn by all angles up to pi
            tell all steps of the past apart.

    Raises:
        ValueError: A size is not a positive integer, ``hidden_dim`` is odd, or a range is empty or beyond its bounds.
    """

    def __init__(
        self,
        state_dim: int,
        hidden_dim: int = 128,
        output_dim: int = 32,
        device: str = "cpu",
        *,
        num_layers: int = 2,
        radius: tuple[float, float] = (0.5, 0.99),
        max_angle: float = math.pi / 2,
    ) -> None:
        super().__init__()
        sizes = {"state_dim": state_dim, "hidden_dim": hidden_dim, "output_dim": output_dim, "num_layers": num_layers}
        for name, size in sizes.items():
            check_integer(name, size)
        if hidden_dim % 2:
            raise ValueError(f"hidden_dim must be even (two real numbers make a complex state); got {hidden_dim}.")
        # Closer to 0 or 1, single precision has no logarithm of the logarithm.
        if (
            not isinstance(radius, (tuple, list))
            or len(radius) != 2
            or not all(map(is_number, radius))
            or not 1e-6 <= radius[0] < radius[1] <= 1.0 - 1e-6
        ):
            raise ValueError(
                f"radius must be two numbers, 1e-6 <= low < high <= 1 - 1e-6; got {radius!r}. Use (0.5, 0.99)."
            )
        if not is_number(max_angle) or not _MIN_ANGLE < max_angle <= 2.0 * math.pi:
            raise ValueError(f"max_angle must be in ({_MIN_ANGLE}, 2 pi] radians; got {max_angle!r}. Use pi / 2.")
        self.state_dim = int(state_dim)
        self.hidden_dim = int(hidden_dim)
        self.output_dim = int(output_dim)
        self.num_layers = int(num_layers)
        with torch.device("cpu"):  # so that a seed means the same weights everywhere
            self.encoder = nn.Linear(state_dim, hidden_dim)
            self.layers = nn.ModuleList(SSMLayer(hidden_dim, radius, max_angle) for _ in range(num_layers))
            self.decoder = nn.Linear(hidden_dim, output_dim)
        self.to(device)

    def forward(self, x: Tensor, hidden_state: Tensor | None = None) -> Tensor:
        """Features of one step or of a sequence, from the zero state or from ``hidden_state``.

        Args:
            x: ``Float[B state_dim]`` for one step or ``Float[B T state_dim]`` for a sequence.
            hidden_state: ``Float[B L 2 P]``, as made by :meth:`initial_state`, :meth:`step` or :meth:`scan`.

        Returns:
            ``Float[B output_dim]`` or ``Float[B T output_dim]``: always one tensor, never the new state.
        """
        if x.ndim == 3:
            return self.scan(x, hidden_state)[0]
        if hidden_state is not None:
            return self.step(x, hidden_state)[0]
        # From the zero state the state after one step is its input: no need to make and decay zeros.
        self._check_input(x, (2,))
        features = self.encoder(x)
        for layer in self.layers:
            features, _ = layer(features)
        return self.decoder(features)  # type: ignore[no-any-return]

    def initial_state(self, batch_size: int) -> Tensor:
        """The state before anything was seen: zeros ``Float[B L 2 P]`` on the device and of the type of the model."""
        return self.decoder.weight.new_zeros(batch_size, self.num_layers, 2, self.hidden_dim // 2)

    def step(self, x: Tensor, state: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step of :meth:`scan`: ``Float[B state_dim]``, ``start`` ``Bool[B]`` -> ``Float[B output_dim]``, state."""
        self._check_input(x, (2,))
        y, state = self.scan(x[:, None], state, None if start is None else start[:, None])
        return y[:, 0], state

    def scan(
        self, x: Tensor, state: Tensor | None = None, start: Tensor | None = None, *, only_last: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Features of every step of a sequence, and the state after its last step.

        Args:
            x: ``Float[B T state_dim]``.
            state: ``Float[B L 2 P]``; None for the zero state.
            start: ``Bool[B T]``, true at the first steps of episodes: the state is cleared *before* such a step.
            only_last: The features of the last step alone, ``Float[B 1 output_dim]``, which takes less time.

        Returns:
            ``Float[B T output_dim]`` and ``Float[B L 2 P]``.
        """
        self._check_input(x, (3,))
        state = self.initial_state(x.shape[0]) if state is None else state
        expected = (x.shape[0], self.num_layers, 2, self.hidden_dim // 2)
        if state.shape != expected:
            raise ValueError(
                f"the state must have shape {expected} (batch, layers, 2, hidden_dim / 2); got {tuple(state.shape)}. "
                "Start from initial_state(batch_size)."
            )
        if start is not None:
            if start.shape != x.shape[:2]:
                raise ValueError(
                    f"start must have the shape {tuple(x.shape[:2])} of the steps; got {tuple(start.shape)}. Give one "
                    "flag for each step, or None where no episode starts."
                )
            start = start.bool()
        features, states = self.encoder(x), []
        # There are no complex numbers of half precision: the recurrence itself is computed in single precision then.
        pairs = state.to(_at_least_single(self.decoder.weight.dtype))
        for layer, layer_state in zip(self.layers, torch.complex(*pairs.unbind(2)).unbind(1), strict=True):
            features, layer_state = layer(features, layer_state, start, only_last and layer is self.layers[-1])
            states.append(layer_state)
        after = torch.stack(states, dim=1)  # B L P
        return self.decoder(features), torch.stack([after.real, after.imag], dim=2).to(self.decoder.weight.dtype)

    def stepper(self) -> SSMStepper:
        """A snapshot of the present weights that takes the steps of a rollout fast and without gradients.

        Later changes of the weights do not reach it: make a new one after each.
        """
        encoder, decoder = (
            (linear.weight.detach().t().clone(memory_format=torch.contiguous_format), linear.bias.detach().clone())
            for linear in (self.encoder, self.decoder)
        )
        return SSMStepper(encoder, [layer.folded() for layer in self.layers], decoder)  # type: ignore[operator]

    def _check_input(self, x: Tensor, ndims: tuple[int, ...]) -> None:
        if x.ndim not in ndims or x.shape[-1] != self.state_dim or 0 in x.shape[1:]:
            raise ValueError(
                f"the input must have shape (batch, {self.state_dim}) for one step or (batch, time, {self.state_dim}) "
                f"for a sequence of one step or more; got {tuple(x.shape)}."
            )


class SSMLayer(nn.Module):
    """One linear recurrent unit with its normalisation, gate and residual connection.

    Its parameters lie here and not in submodules, whose calls would take as long as the arithmetic of a single step.
    """

    def __init__(self, width: int, radius: tuple[float, float], max_angle: float) -> None:
        super().__init__()
        num_states = width // 2
        self.nu = nn.Parameter(torch.log(-torch.log(torch.empty(num_states).uniform_(*radius))))
        self.theta = nn.Parameter(torch.log(torch.empty(num_states).uniform_(_MIN_ANGLE, max_angle)))
        self.norm_weight = nn.Parameter(torch.ones(width))
        self.norm_bias = nn.Parameter(torch.zeros(width))
        # Of b the rows, of c the columns are the real and the imaginary part of one state after the other.
        self.b = _linear_weight(2 * num_states, width)
        self.c = _linear_weight(width, 2 * num_states)
        self.d = nn.Parameter(torch.randn(width))
        self.gate_weight = _linear_weight(2 * width, width)  # W
        self.gate_bias = nn.Parameter(torch.zeros(2 * width))

    def forward(
        self, x: Tensor, state: Tensor | None = None, start: Tensor | None = None, only_last: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """``x`` ``Float[B (T) H]``, ``state`` ``Complex[B P]`` -> the same; no state where none was given."""
        # Scaled by a second operation, because vmap gets second derivatives of an affine layer_norm wrong
        # (https://github.com/pytorch/functorch/issues/534).
        normed = torch.addcmul(self.norm_bias, F.layer_norm(x, self.norm_weight.shape), self.norm_weight)
        pairs = F.linear(normed, self.scaled_b())  # B (T) 2P
        if state is not None:
            pairs = pairs.to(_at_least_single(pairs.dtype))
            inputs = torch.view_as_complex(pairs.unflatten(-1, (-1, 2)))  # B T P
            states = linear_recurrence(self.decay(), inputs, state, start)  # B T P
            state = states[:, -1]
            if only_last:
                x, normed, states = x[:, -1:], normed[:, -1:], states[:, -1:]
            pairs = torch.view_as_real(states).flatten(-2).to(self.c.dtype)
        mixed = F.gelu(torch.addcmul(F.linear(pairs, self.c), self.d, normed))  # B (T) H
        return x + F.glu(F.linear(mixed, self.gate_weight, self.gate_bias), dim=-1), state

    def decay(self) -> Tensor:
        """lambda, ``Complex[P]``."""
        nu, theta = (parameter.to(_at_least_single(parameter.dtype)) for parameter in (self.nu, self.theta))
        return torch.polar(torch.exp(-torch.exp(nu)), torch.exp(theta))

    def scaled_b(self) -> Tensor:
        """sqrt(1 - |lambda|^2) B, ``Float[2P H]``: the scale of a state for its real and its imaginary part."""
        nu = self.nu.to(_at_least_single(self.nu.dtype))
        scale = torch.sqrt(-torch.expm1(-2.0 * torch.exp(nu))).repeat_interleave(2)  # 2P
        return (scale[:, None] * self.b).to(self.b.dtype)

    @torch.no_grad()
    def folded(self) -> StepperLayer:
        """What single steps need of the present parameters."""
        decay = self.decay()
        real, imaginary = decay.real.diag(), decay.imag.diag()  # P P
        # A stepper has all real parts before all imaginary ones, as the state has.
        halves = torch.arange(2 * len(decay), device=decay.device).view(-1, 2).t().flatten()
        rotation = torch.cat([torch.cat([real, imaginary], dim=1), torch.cat([-imaginary, real], dim=1)])
        half = math.sqrt(0.5)
        return StepperLayer(
            rotation=rotation.to(self.b.dtype),
            norm_weight=self.norm_weight.clone(),
            norm_bias=self.norm_bias.clone(),
            b=self.scaled_b()[halves].t().contiguous(),
            c=half * self.c.t()[halves],
            d=half * self.d,
            gate_weight=half * self.gate_weight.t().contiguous(),
            gate_bias=self.gate_bias.clone(),
        )


def _at_least_single(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _linear_weight(num_outputs: int, num_inputs: int) -> nn.Parameter:
    """A weight matrix drawn like that of ``nn.Linear``."""
    bound = 1.0 / math.sqrt(num_inputs)
    return nn.Parameter(torch.empty(num_outputs, num_inputs).uniform_(-bound, bound))
