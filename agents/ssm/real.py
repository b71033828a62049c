"""A state-space model in real numbers: of operations that other runtimes than PyTorch have, too."""

from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ssm_metarl_gym.agents.ssm.model import SSM, SSMLayer
from ssm_metarl_gym.agents.ssm.stepper import StepperLayer
from ssm_metarl_gym.agents.stateless import copy_module

__all__ = ["RealSSM", "real_copy"]

Module = TypeVar("Module", bound=nn.Module)


class RealSSM(nn.Module):
    """What an :class:`SSM` computes, without complex numbers and without a scan: ONNX has neither.

    The states of a sequence of T steps are sums over pairs of steps, of which there are T^2: for windows, not for
    episodes. Sizes are not checked, because tracing would take a comparison of them for a promise.

    Args:
        model: The model, whose present weights are copied.
    """

    def __init__(self, model: SSM) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.decoder = model.decoder
        self.layers = nn.ModuleList(_RealLayer(layer) for layer in model.layers)  # type: ignore[arg-type]
        self._state_shape = model.initial_state(1).shape[1:]

    def forward(self, x: Tensor) -> Tensor:
        """From the zero state: ``Float[B state_dim]`` or ``Float[B T state_dim]`` -> features of the same rank."""
        state = self.initial_state(x.shape[0])
        return self.step(x, state)[0] if x.ndim == 2 else self.scan(x, state)[0]

    def initial_state(self, batch_size: int) -> Tensor:
        """The state before anything was seen: zeros ``Float[B L 2 P]``."""
        return self.decoder.weight.new_zeros(batch_size, *self._state_shape)

    def step(self, x: Tensor, state: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step, as :meth:`SSM.step` takes it: ``Float[B output_dim]`` and ``Float[B L 2 P]``."""
        if start is not None:
            state = torch.where(start[:, None, None, None], torch.zeros_like(state), state)
        features, states = self.encoder(x), []
        for layer, layer_state in zip(self.layers, state.flatten(2).unbind(1), strict=True):
            features, layer_state = layer.step(features, layer_state)  # type: ignore[operator]
            states.append(layer_state)
        return self.decoder(features), torch.stack(states, dim=1).unflatten(2, self._state_shape[1:])

    def scan(
        self, x: Tensor, state: Tensor | None = None, start: Tensor | None = None, *, only_last: bool = False
    ) -> tuple[Tensor, Tensor]:
        """All steps of ``Float[B T state_dim]``, as :meth:`SSM.scan` takes them."""
        state = self.initial_state(x.shape[0]) if state is None else state
        start = torch.zeros_like(x[..., 0], dtype=torch.bool) if start is None else start
        num_starts = start.cumsum(1)  # B T
        features, states = self.encoder(x), []
        for layer, layer_state in zip(self.layers, state.flatten(2).unbind(1), strict=True):
            features, layer_state = layer.scan(features, layer_state, num_starts)  # type: ignore[operator]
            states.append(layer_state)
        output = self.decoder(features[:, -1:] if only_last else features)
        return output, torch.stack(states, dim=1).unflatten(2, self._state_shape[1:])


class _RealLayer(nn.Module):
    """A layer with what its steps and its powers need as buffers; a state is ``Float[B 2P]``, real parts first."""

    decay_rate: Tensor
    angle: Tensor

    def __init__(self, layer: SSMLayer) -> None:
        super().__init__()
        folded = layer.folded()
        self._names = [field.name for field in fields(StepperLayer)]
        for name in self._names:
            self.register_buffer(name, getattr(folded, name))
        # lambda = exp(-decay_rate + i angle)
        self.register_buffer("decay_rate", layer.nu.detach().double().exp())
        self.register_buffer("angle", layer.theta.detach().double().exp())

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self._stepper().step(x, state)

    def scan(self, x: Tensor, state: Tensor, num_starts: Tensor) -> tuple[Tensor, Tensor]:
        stepper = self._stepper()
        normed = stepper.normed(x)
        inputs = (normed @ stepper.b).unflatten(2, (2, -1))[:, None]  # B 1 T 2 P
        time = torch.arange(x.shape[1])
        # Step s is in the state of a step t that is not before it, unless an episode started in between.
        elapsed = time[:, None] - time  # T T
        is_seen = (num_starts[:, :, None] == num_starts[:, None]) & (elapsed >= 0)  # B T T
        states = self._turned(inputs, elapsed.clamp(min=0), is_seen).sum(2)  # B T 2 P
        before = state.unflatten(1, (2, -1))[:, None]  # B 1 2 P
        states = (states + self._turned(before, time + 1, num_starts == 0)).flatten(2)  # B T 2P
        features = stepper.output(x.flatten(0, 1), normed.flatten(0, 1), states.flatten(0, 1))
        return features.unflatten(0, x.shape[:2]), states[:, -1]

    def _turned(self, values: Tensor, steps: Tensor, is_seen: Tensor) -> Tensor:
        """Complex ``[... 2 P]`` times lambda to the power of the steps ``[T ...]``, zero where it is not seen."""
        number = steps[..., None].double()
        radius = torch.exp(-self.decay_rate * number)
        real = (radius * torch.cos(self.angle * number)).to(values.dtype)
        imaginary = (radius * torch.sin(self.angle * number)).to(values.dtype)
        x, y = values.unbind(-2)
        turned = torch.stack([real * x - imaginary * y, imaginary * x + real * y], dim=-2)
        return torch.where(is_seen[..., None, None], turned, torch.zeros_like(turned))

    def _stepper(self) -> StepperLayer:
        buffers: dict[str, Any] = {name: getattr(self, name) for name in self._names}
        return StepperLayer(**buffers)


def real_copy(module: Module) -> Module:
    """A copy on the CPU, in evaluation mode, in which every :class:`SSM` is a :class:`RealSSM`."""
    copied = copy_module(module).cpu().eval()
    for parent in list(copied.modules()):
        for name, child in parent.named_children():
            if isinstance(child, SSM):
                setattr(parent, name, RealSSM(child).eval())
    return copied
