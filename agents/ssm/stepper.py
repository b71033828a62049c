"""One step at a time and no gradients: a state-space model as rollouts need it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["SSMStepper", "StepperLayer"]


@dataclass(frozen=True, kw_only=True)
class StepperLayer:
    """A layer as a step needs it: its matrices are transposed, and constant factors went into them.

    A step of a few rows takes as long as its operations are many. Hence the rotation is a matrix, and hence
    ``sqrt(1/2)`` is in three others: with ``v = sqrt(1/2) u``, ``gelu(u) = sqrt(1/2) (v + v erf(v))``, whose two
    operations take a third of the time of ``F.gelu`` on a few numbers.

    Attributes:
        rotation: ``Float[2P 2P]``, the product with lambda.
        norm_weight: ``Float[H]``.
        norm_bias: ``Float[H]``.
        b: ``Float[H 2P]``, with the scale of the states' input.
        c: ``Float[2P H]``, with sqrt(1/2).
        d: ``Float[H]``, with sqrt(1/2).
        gate_weight: ``Float[H 2H]``, with sqrt(1/2).
        gate_bias: ``Float[2H]``.
    """

    rotation: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    gate_weight: Tensor
    gate_bias: Tensor

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` ``Float[B H]`` and ``state`` ``Float[B 2P]`` -> the same. Must be called without gradients."""
        normed = self.normed(x)
        state = torch.mm(state, self.rotation).addmm_(normed, self.b)
        return self.output(x, normed, state), state

    def normed(self, x: Tensor) -> Tensor:
        """``x`` ``Float[... H]`` as the recurrence takes it."""
        return torch.layer_norm(x, self.norm_bias.shape, self.norm_weight, self.norm_bias)

    def output(self, x: Tensor, normed: Tensor, state: Tensor) -> Tensor:
        """What leaves the layer, ``Float[B H]``, once its state ``Float[B 2P]`` is known."""
        mixed = torch.mul(normed, self.d).addmm_(state, self.c)  # v
        mixed.addcmul_(mixed, mixed.erf())
        return F.glu(torch.addmm(self.gate_bias, mixed, self.gate_weight)).add_(x)


class SSMStepper:
    """A snapshot of a state-space model that takes single steps, faster than the model does and without gradients.

    Made by :meth:`SSM.stepper`. Later changes of the model's weights do not reach it: make a new one after each.

    Example:
        >>> model = SSM(state_dim=4, output_dim=2)
        >>> stepper, state = model.stepper(), model.initial_state(batch_size=1)
        >>> y, state = stepper.step(torch.randn(1, 4), state, start=torch.tensor([True]))
        >>> y.shape
        torch.Size([1, 2])

    Args:
        encoder: The matrix and the bias before the layers, ``Float[state_dim H]`` and ``Float[H]``.
        layers: The layers, first to last.
        decoder: The matrix and the bias after them, ``Float[H output_dim]`` and ``Float[output_dim]``.
    """

    def __init__(
        self, encoder: tuple[Tensor, Tensor], layers: Sequence[StepperLayer], decoder: tuple[Tensor, Tensor]
    ) -> None:
        self._encoder = encoder
        self._layers = tuple(layers)
        self._decoder = decoder
        self._input_shape = encoder[0].shape[:1]
        self._state_shape = (len(layers), 2, layers[0].rotation.shape[0] // 2)
        self._zero = encoder[0].new_zeros(())

    @torch.no_grad()
    def step(self, x: Tensor, state: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What :meth:`SSM.step` gives, without gradients.

        Args:
            x: ``Float[B state_dim]``.
            state: ``Float[B L 2 P]``.
            start: ``Bool[B]``, true where an episode starts: the state is cleared *before* the step.

        Returns:
            ``Float[B output_dim]`` and ``Float[B L 2 P]``.

        Raises:
            ValueError: A shape is another one.
        """
        self._check(x, state, start)
        if start is not None:
            state = torch.where(start.bool().view(-1, 1, 1, 1), self._zero, state)
        features, states = torch.addmm(self._encoder[1], x, self._encoder[0]), []
        for layer, layer_state in zip(self._layers, state.flatten(2).unbind(1), strict=True):
            features, layer_state = layer.step(features, layer_state)
            states.append(layer_state)
        # Not view(state.shape): given a Size, a view takes several times as long.
        return torch.addmm(self._decoder[1], features, self._decoder[0]), torch.cat(states, dim=1).view_as(state)

    def _check(self, x: Tensor, state: Tensor, start: Tensor | None) -> None:
        if (
            x.ndim != 2
            or x.shape[1:] != self._input_shape
            or state.shape != (len(x), *self._state_shape)
            or (start is not None and start.shape != x.shape[:1])
        ):
            raise ValueError(
                f"a step takes an input of shape (batch, {self._input_shape[0]}), a state of shape (batch, "
                f"{', '.join(map(str, self._state_shape))}) and start flags of shape (batch,) or None; got "
                f"{tuple(x.shape)}, {tuple(state.shape)} and {None if start is None else tuple(start.shape)}. "
                "Begin with initial_state(batch)."
            )
