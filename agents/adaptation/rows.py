"""Bounded adaptation of many copies of a module, each to data of its own, all together."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from ssm_metarl_gym.agents.adaptation.adapter import Adapter
from ssm_metarl_gym.agents.adaptation.config import AdaptationConfig
from ssm_metarl_gym.agents.adaptation.trust_region import moving_moments
from ssm_metarl_gym.agents.losses import checked_loss, is_mean_over_elements, masked_loss
from ssm_metarl_gym.agents.stateless import StatelessModule, attributes_kept

__all__ = ["AdapterRows", "RowStats"]


@dataclass
class RowStats:
    """What each row has done since it was made or reset: the fields of :class:`AdapterStats`, a number a row.

    Attributes:
        calls: ``Int[N]``, calls of ``adapt`` that the row took part in, empty ones included.
        empty_calls: ``Int[N]``, calls without a transition.
        steps: ``Int[N]``, accepted gradient steps.
        rejected_steps: ``Int[N]``, steps undone, or not taken, because something was not finite.
        clipped_steps: ``Int[N]``, accepted steps whose gradient was clipped.
        projected_steps: ``Int[N]``, accepted steps that ended on the border of the trust region.
        loss_mean: ``Float64[N]``, running mean of the losses *before* adaptation.
        loss_variance: ``Float64[N]``, running variance of the same.
        distance: ``Float64[N]``, of the weights from the source, relative to the norm of the source.
        covariance_resets: ``Int[N]``, how often the covariance of an adapter in closed form was put back to its prior.
    """

    calls: Tensor
    empty_calls: Tensor
    steps: Tensor
    rejected_steps: Tensor
    clipped_steps: Tensor
    projected_steps: Tensor
    loss_mean: Tensor
    loss_variance: Tensor
    distance: Tensor
    covariance_resets: Tensor

    @classmethod
    def zeros(cls, num_rows: int) -> "RowStats":
        """Those of rows that have done nothing."""
        counts = {field.name: torch.zeros(num_rows, dtype=torch.long) for field in fields(cls)}
        numbers = {name: torch.zeros(num_rows, dtype=torch.float64) for name in ("loss_variance", "distance")}
        return cls(**counts | numbers | {"loss_mean": torch.full((num_rows,), math.nan, dtype=torch.float64)})

    def reset(self, rows: Tensor) -> None:
        """Those of these rows ``Bool[N]`` are as of new ones."""
        for name, value in vars(RowStats.zeros(1)).items():
            getattr(self, name)[rows] = value


class AdapterRows:
    """What an :class:`Adapter` does to a module, for N rows at once: each has weights of its own and its own batch.

    Row by row the result is that of N adapters, up to rounding. Every bound of :class:`AdaptationConfig` holds for
    each row by itself, and a step of one row that is not finite is undone for that row alone. Averaged weights are not
    kept. The weights are those of the parameters that require a gradient; everything else, buffers included, is shared
    and stays as it is, in evaluation mode.

    Args:
        adapter: The adapter, whose source the rows start from. It and its model stay as they are.
        num_rows: Number of rows N.

    Raises:
        ValueError: The weights are not all of one type, single or double precision.

    Attributes:
        model: A copy of the module.
        cfg: The bounds.
        num_rows: N.
        stats: What each row has done.
    """

    @torch.inference_mode(False)
    def __init__(self, adapter: Adapter, num_rows: int) -> None:
        source = self._adapter = copy.deepcopy(adapter)
        source.reset()
        self.model: nn.Module = source.model
        self.model.eval()
        self._module = StatelessModule(self.model)
        self.cfg: AdaptationConfig = source.cfg
        self.num_rows = num_rows
        parameters = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        dtypes = {parameter.dtype for parameter in parameters.values()}
        if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
            raise ValueError(
                "weights per row must all be of single or all of double precision; got "
                f"{', '.join(sorted(map(str, dtypes)))}. Use the model's float() first."
            )
        self._shapes = {name: parameter.shape for name, parameter in parameters.items()}
        # All that adapts of many models is one linear layer, for which a batched product takes the place of vmap.
        layer = getattr(self.model, "adapted_layer", self.model)
        self._is_linear = type(layer) is nn.Linear and len(parameters) == 2 and layer.bias is not None
        self._source = torch.cat([parameter.flatten() for parameter in parameters.values()])  # W
        self._source_norm = float(torch.linalg.vector_norm(self._source))
        self._weights = self._source.repeat(num_rows, 1)  # N W
        self.stats = RowStats.zeros(num_rows)

    def predict(self, states: Tensor) -> Any:
        """What the model of each row predicts: ``Float[N P ...]`` -> ``Float[N P D]``."""
        with torch.no_grad():
            return self._forward(self._weights, states)

    def weights(self) -> dict[str, Tensor]:
        """The weights of each row by the names of the parameters, ``{name: Float[N ...]}``."""
        parts = self._weights.split([shape.numel() for shape in self._shapes.values()], dim=1)
        return {
            name: part.unflatten(1, shape).clone()
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    def reset(self, rows: Tensor | None = None) -> None:
        """Go back to the source in these rows ``Bool[N]``, in all where it is None."""
        rows = torch.ones(self.num_rows, dtype=torch.bool) if rows is None else torch.as_tensor(rows)
        self._weights[rows] = self._source
        self.stats.reset(rows)

    @torch.inference_mode(False)
    def adapt(
        self,
        loss_fn: Callable[[Any, Tensor], Tensor],
        batch_dict: Mapping[str, Tensor],
        *,
        mask: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Take up to ``max_steps_per_call`` gradient steps in each row, on its own batch.

        Args:
            loss_fn: Takes the predictions and the targets of one row, gives a scalar.
            batch_dict: ``{"states": Float[N K ...], "targets": Float[N K ...]}``.
            mask: ``Bool[N K]``, which of the transitions of a row there are; None for all.
            rows: ``Bool[N]``, the rows that adapt; None for all.

        Returns:
            ``Float64[N]``, the loss of each row after its last accepted step; nan where a step was undone, where there
            was no transition and where the row does not adapt.
        """
        # Autograd cannot save tensors of inference mode.
        states, targets = (
            tensor.clone() if tensor.is_inference() else tensor
            for tensor in (batch_dict["states"], batch_dict["targets"])
        )
        mask = torch.ones(targets.shape[:2], dtype=torch.bool) if mask is None else torch.as_tensor(mask)
        rows = torch.ones(self.num_rows, dtype=torch.bool) if rows is None else torch.as_tensor(rows)
        empty = rows & ~mask.any(dim=1)
        self.stats.calls += rows
        self.stats.empty_calls += empty
        losses = torch.full((self.num_rows,), math.nan, dtype=torch.float64)
        for index, losses_of in self._losses(loss_fn, states, targets, mask, rows & ~empty):
            losses[index] = self._descend(losses_of, index)
        return losses

    def _losses(
        self, loss_fn: Callable[[Any, Tensor], Tensor], states: Tensor, targets: Tensor, mask: Tensor, rows: Tensor
    ) -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
        """The rows that can be computed together, and their losses as a function of their weights ``Float[R W]``."""
        for index, x, y, m in _groups(states, targets, mask, rows, is_mean_over_elements(loss_fn)):

            def losses_of(weights: Tensor, x: Tensor = x, y: Tensor = y, m: Tensor | None = m) -> Tensor:
                predictions = self._forward(weights, x)
                if m is not None:
                    return masked_loss(loss_fn, predictions, y, m)
                result: Tensor = vmap(lambda prediction, y: checked_loss(loss_fn, prediction, y))(predictions, y)
                return result

            yield index, losses_of

    def _forward(self, weights: Tensor, states: Tensor) -> Any:
        """``Float[N W]`` and ``Float[N P ...]`` -> the predictions of each row."""
        parts = weights.split([shape.numel() for shape in self._shapes.values()], dim=1)
        named = {
            name: part.unflatten(1, shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }
        if self._is_linear:
            weight, bias = named.values()
            return torch.baddbmm(bias[:, None], states, weight.transpose(1, 2))
        with attributes_kept(self.model):
            return vmap(lambda named, x: self._module(named, (x,)))(named, states)

    def _descend(self, losses_of: Callable[[Tensor], Tensor], index: Tensor) -> Tensor:
        """Take the steps of these rows, and put what happened into their statistics: ``Float64[R]``."""
        cfg, stats = self.cfg, self.stats
        num_steps = 0 if cfg.lr == 0.0 or cfg.trust_region_eps == 0.0 else cfg.max_steps_per_call
        weights = self._weights[index]  # R W
        first, gradients = self._evaluate(losses_of, weights, with_gradient=num_steps > 0)
        losses = first
        going = torch.isfinite(first)
        for step in range(num_steps):
            candidates, clipped, projected, possible = self._step(weights, gradients)
            going_on = going & possible
            candidates = torch.where(going_on[:, None], candidates, weights)
            after, gradients = self._evaluate(losses_of, candidates, with_gradient=step + 1 < num_steps)
            # A step is accepted where all is finite still; elsewhere the row stays where it was before the step.
            accepted = going_on & torch.isfinite(after)
            weights = torch.where(accepted[:, None], candidates, weights)
            losses = torch.where(accepted, after, torch.where(going, math.nan, losses))
            stats.steps[index] += accepted
            stats.clipped_steps[index] += accepted & clipped
            stats.projected_steps[index] += accepted & projected
            going = accepted
        losses = torch.where(torch.isfinite(losses), losses, math.nan)
        undone = torch.isnan(losses)
        stats.rejected_steps[index] += undone
        self._track(index, first, ~undone)
        self._weights[index] = weights
        stats.distance[index] = self._distances(weights)
        return losses

    def _distances(self, weights: Tensor) -> Tensor:
        """The distances of ``Float[R W]`` from the source, relative to its norm: ``Float64[R]``."""
        offset = torch.linalg.vector_norm((weights - self._source).double(), dim=1)
        return offset / self._source_norm if self._source_norm else torch.where(offset > 0.0, math.inf, 0.0)

    def _evaluate(
        self, losses_of: Callable[[Tensor], Tensor], weights: Tensor, *, with_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        """The loss of each row ``Float64[R]``, and its gradient ``Float[R W]`` where that is wanted."""
        with torch.inference_mode(False), torch.set_grad_enabled(with_gradient):
            weights = weights.detach().clone().requires_grad_(with_gradient)
            losses = losses_of(weights)
            if not with_gradient:
                return losses.double(), weights
            # The rows do not depend on each other: the gradient of the sum holds that of each.
            (gradients,) = torch.autograd.grad(losses.sum(), weights)
        return losses.detach().double(), gradients

    def _step(self, weights: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One clipped and projected step of each row: where it leads, was it clipped, projected, is it finite?"""
        slope = torch.linalg.vector_norm(gradients, dim=1)
        # Clip the gradient to its largest norm, and descend.
        clipped = slope > self.cfg.grad_clip_norm
        lr = torch.where(clipped, self.cfg.lr * (self.cfg.grad_clip_norm / slope), self.cfg.lr)
        weights = weights - lr[:, None] * gradients
        # Project onto the ball around the source.
        offset = weights - self._source
        distance = torch.linalg.vector_norm(offset, dim=1)
        radius = self.cfg.trust_region_eps * self._source_norm if self.cfg.trust_region_eps < math.inf else math.inf
        projected = distance > radius
        if projected.any():
            # It ends inside by what rounding can add, so that the weights cannot leave the ball.
            inner = max(radius - torch.finfo(weights.dtype).eps * (self._source_norm + radius), 0.0)
            pulled = self._source + offset * (inner / distance.double()).to(offset.dtype)[:, None]
            weights = torch.where(projected[:, None], pulled, weights)
        return weights, clipped, projected, torch.isfinite(slope) & torch.isfinite(distance)

    def _track(self, index: Tensor, losses: Tensor, counted: Tensor) -> None:
        """Move the running mean and variance towards the losses before adaptation, where they are finite."""
        stats = self.stats
        mean, variance = stats.loss_mean[index], stats.loss_variance[index]
        moved = moving_moments(mean, variance, losses, self.cfg.ema_decay)
        new = torch.isnan(mean)
        stats.loss_mean[index] = torch.where(counted, torch.where(new, losses, moved[0]), mean)
        stats.loss_variance[index] = torch.where(counted & ~new, moved[1], variance)


def _groups(
    states: Tensor, targets: Tensor, mask: Tensor, rows: Tensor, by_mask: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """The rows that can be computed together: their indices, states, targets, and a mask where there is one.

    Where a loss is a mean over elements, what is masked can be left out of it. Any other takes together the rows that
    have equally many transitions.
    """
    if by_mask:
        index = rows.nonzero()[:, 0]
        if len(index):
            yield index, states[index], targets[index], mask[index]
        return
    lengths = mask.sum(dim=1)
    for length in lengths[rows].unique().tolist():
        index = (rows & (lengths == length)).nonzero()[:, 0]
        x, y = (tensor[index][mask[index]].unflatten(0, (len(index), length)) for tensor in (states, targets))
        yield index, x, y, None
