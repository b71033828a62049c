"""Bounded adaptation of many copies of a module, each to data of its own, all together."""

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import vmap

from ssm_metarl_gym.agents.adaptation.adapter import Adapter
from ssm_metarl_gym.agents.adaptation.batched_network import find_network
from ssm_metarl_gym.agents.adaptation.buffers import Buffers
from ssm_metarl_gym.agents.adaptation.config import AdaptationConfig
from ssm_metarl_gym.agents.adaptation.row_layout import RowLayout
from ssm_metarl_gym.agents.adaptation.trust_region import LARGEST_TRACKED, moving_moments
from ssm_metarl_gym.agents.losses import MaskedLoss, checked_loss, is_mean_over_elements, masked_loss
from ssm_metarl_gym.agents.stateless import StatelessModule, attributes_kept
from ssm_metarl_gym.budget import StepTimer

__all__ = ["AdapterRows", "RowStats"]

Flags: TypeAlias = npt.NDArray[np.bool_]
Floats: TypeAlias = npt.NDArray[np.float64]
# Some of the rows: their indices, or a slice where all of it are meant.
Rows: TypeAlias = npt.NDArray[np.int64] | slice
# Float[R W], and whether the gradient is wanted -> the losses Float[R], and the gradient Float[R W].
Objective: TypeAlias = Callable[..., tuple[Tensor, Tensor]]

# Measured: so many weights at once stay in the cache of a core while steps are taken on them.
_CACHED_NUMBERS: Final = 2**18
_LEAST_ROWS: Final = 32  # below which more is spent on calls than on numbers
_SLACK: Final = 1.001  # of distances, for what rounding makes of them


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
        cut_calls: ``Int[N]``, calls whose ``budget_ms`` left no time for the row's next step.
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
    cut_calls: Tensor

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


class _RowSteps(NamedTuple):
    """Where one step of each row led.

    Attributes:
        weights: ``Float[R W]``.
        reach: ``Float64[R]``; the weights are no farther than that from the source.
        clipped: ``Bool[R]``, whether the gradient was clipped.
        projected: ``Bool[R]``, whether the step ended on the border of the trust region.
        is_finite: ``Bool[R]``, whether gradient and weights are finite.
    """

    weights: Tensor
    reach: Floats
    clipped: Flags
    projected: Flags
    is_finite: Flags


class AdapterRows:
    """What an :class:`Adapter` does to a module, for N rows at once: each has weights of its own and its own batch.

    Row by row the result is that of N adapters, up to rounding. Every bound of :class:`AdaptationConfig` holds for
    each row by itself, and a step of one row that is not finite is undone for that row alone. ``budget_ms`` is the time
    of a call for all rows together. Averaged weights are not kept. The weights are those of the parameters that require
    a gradient; everything else, buffers included, is shared and stays as it is, in evaluation mode.

    Args:
        adapter: The adapter, whose source the rows start from. It and its model stay as they are.
        num_rows: Number of rows N.

    Raises:
        ValueError: The weights are not all of one type, single or double precision, or not on the CPU.

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
        devices = {str(p.device) for p in self.model.parameters() if p.device.type != "cpu"}
        if devices:
            raise ValueError(
                f"weights per row must be on the CPU; got {', '.join(sorted(devices))}. Use the model's cpu() before "
                "its adapter is made."
            )
        dtypes = {parameter.dtype for parameter in parameters.values()}
        if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
            raise ValueError(
                "weights per row must all be of single or all of double precision; got "
                f"{', '.join(sorted(map(str, dtypes)))}. Use the model's float() first."
            )
        # Of plain networks, batched products take the place of vmap and autograd.
        network = self._network = find_network(self.model)
        kernels = set() if network is None else {id(kernel) for kernel in network.kernels}
        turned = {name for name, p in self.model.named_parameters() if p.requires_grad and id(p) in kernels}
        self._layout = RowLayout(parameters, turned)
        self._buffers = Buffers()
        self._source = self._layout.weights(torch.cat([p.flatten() for p in parameters.values()]))  # W
        self._source_norm = float(torch.linalg.vector_norm(self._source))
        self._weights = self._source.repeat(num_rows, 1)  # N W
        self._num_rows_in_cache = max(_LEAST_ROWS, _CACHED_NUMBERS // len(self._source))
        self.stats = RowStats.zeros(num_rows)

    def predict(self, states: Tensor, rows: Rows | None = None) -> Any:
        """What the models of some rows predict.

        Args:
            states: ``Float[M P ...]``.
            rows: Which rows these are, ``Int[M]`` or a slice; None for all.

        Returns:
            ``Float[M P D]``.
        """
        with torch.no_grad():
            return self._forward(self._weights if rows is None else self._weights[rows], states)

    def weights(self) -> dict[str, Tensor]:
        """The weights of each row by the names of the parameters, ``{name: Float[N ...]}``."""
        return {name: part.clone() for name, part in self._layout.named(self._weights).items()}

    def reset(self, rows: Tensor | None = None) -> None:
        """Go back to the source in these rows ``Bool[N]``, in all where it is None."""
        rows = torch.ones(self.num_rows, dtype=torch.bool) if rows is None else torch.as_tensor(rows)
        self._weights[rows] = self._source
        self.stats.reset(rows)

    @torch.inference_mode(False)
    @torch.no_grad()
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
            batch_dict: ``{"states": Float[N K ...], "targets": Float[N K ...]}``; with ``"arrivals": Int[N K]`` a loss
                of one's own is given the transitions of a row in their order, the oldest first.
            mask: ``Bool[N K]``, which of the transitions of a row there are; None for all.
            rows: ``Bool[N]``, the rows that adapt; None for all.

        Returns:
            ``Float64[N]``, the loss of each row after its last accepted step; nan where a step was undone, where there
            was no transition and where the row does not adapt.
        """
        timer = StepTimer(self._adapter.budget_ms)
        # Autograd cannot save tensors of inference mode.
        states, targets = (
            tensor.clone() if tensor.is_inference() else tensor
            for tensor in (batch_dict["states"], batch_dict["targets"])
        )
        mask = torch.ones(targets.shape[:2], dtype=torch.bool) if mask is None else torch.as_tensor(mask)
        asked = np.ones(self.num_rows, dtype=np.bool_) if rows is None else np.asarray(rows)
        empty = asked & ~mask.any(dim=1).numpy()
        self.stats.calls.numpy()[asked] += 1
        self.stats.empty_calls.numpy()[empty] += 1
        losses = torch.full((self.num_rows,), math.nan, dtype=torch.float64)
        with np.errstate(all="ignore"):  # what is not finite is no step
            arrivals = batch_dict.get("arrivals")
            for index, objective in self._objectives(loss_fn, states, targets, mask, asked & ~empty, arrivals):
                losses.numpy()[index] = self._descend(objective, index, (asked & ~empty)[index], timer)
        return losses

    def _objectives(
        self,
        loss_fn: Callable[[Any, Tensor], Tensor],
        states: Tensor,
        targets: Tensor,
        mask: Tensor,
        rows: Flags,
        arrivals: Tensor | None,
    ) -> Iterator[tuple[Rows, Objective]]:
        """The rows that can be computed together, and their losses and gradients as a function of their weights."""
        network = self._network if states.ndim == 3 else None
        if network is not None and network.knows_gradient(loss_fn):
            for index, x, y, m in _in_parts(states, targets, mask, rows, self._num_rows_in_cache):
                yield index, functools.partial(network.losses, MaskedLoss(loss_fn, y, m), x)
            return
        # What is masked can be left out of a mean over elements; any other loss takes rows of one length together.
        groups: Iterator[tuple[Rows, Tensor, Tensor, Tensor | None]] = (
            _in_parts(states, targets, mask, rows, self.num_rows)
            if is_mean_over_elements(loss_fn)
            else _by_length(states, targets, mask, rows, arrivals)
        )
        for index, x, y, counted in groups:
            yield index, functools.partial(self._differentiate, loss_fn, x, y, counted)

    def _forward(self, weights: Tensor, states: Tensor) -> Any:
        """``Float[N W]`` and ``Float[N P ...]`` -> the predictions of each row."""
        if self._network is not None and states.ndim == 3:
            return self._network(weights, states)
        with attributes_kept(self.model):
            return vmap(lambda named, x: self._module(named, (x,)))(self._layout.named(weights), states)

    def _differentiate(
        self,
        loss_fn: Callable[[Any, Tensor], Tensor],
        states: Tensor,
        targets: Tensor,
        mask: Tensor | None,
        weights: Tensor,
        *,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        """Any loss of each row ``Float[R]``, and its gradient ``Float[R W]`` where that is wanted, by autograd."""
        with torch.set_grad_enabled(with_gradient):
            weights = weights.detach().clone().requires_grad_(with_gradient)
            predictions = self._forward(weights, states)
            if mask is not None:
                losses = masked_loss(loss_fn, predictions, targets, mask)
            else:
                losses = vmap(lambda prediction, y: checked_loss(loss_fn, prediction, y))(predictions, targets)
            if not with_gradient:
                return losses, weights
            # The rows do not depend on each other: the gradient of the sum holds that of each.
            (gradients,) = torch.autograd.grad(losses.sum(), weights)
        return losses.detach(), gradients

    def _descend(self, objective: Objective, index: Rows, going: Flags, timer: StepTimer) -> Floats:
        """Take the steps of these rows, and put what happened into their statistics.

        Args:
            objective: Their losses and gradients.
            index: Which rows these are.
            going: ``Bool[R]``, those of them that adapt; the others are only computed along.
            timer: Says whether there is time for a step.

        Returns:
            ``Float64[R]``, the losses, nan in rows that do not adapt.
        """
        cfg, stats = self.cfg, self.stats
        num_steps = 0 if cfg.lr == 0.0 or cfg.trust_region_eps == 0.0 else cfg.max_steps_per_call
        before = weights = self._weights[index]  # R W, a view of them where the index is a slice
        reach = stats.distance.numpy()[index] * self._source_norm
        tensor, gradients = objective(weights, with_gradient=num_steps > 0)
        asked, first = going, tensor.double().numpy()
        losses = np.where(asked, first, np.nan)
        going = asked & np.isfinite(first)
        taken, clipped, projected = (np.zeros(len(going), dtype=np.int64) for _ in range(3))
        try:
            for step in range(num_steps):
                if not timer.has_time():
                    stats.cut_calls.numpy()[index] += going
                    break
                # Not where the weights are now, to which a step that is undone goes back; the last one to where they
                # were at first.
                is_last = 0 < step == num_steps - 1
                out = before if is_last else self._buffers.take(f"weights {step % 2}", weights.shape, weights)
                led = self._step(weights, gradients, reach, going, out)
                candidates = _where_rows(led.is_finite, led.weights, weights)
                tensor, gradients = objective(candidates, with_gradient=step + 1 < num_steps)
                after = tensor.double().numpy()
                # A step is accepted where all is finite still; elsewhere the row stays where it was before the step.
                accepted = going & led.is_finite & np.isfinite(after)
                weights = _where_rows(accepted | ~going, candidates, weights)
                losses = np.where(accepted, after, np.where(going, np.nan, losses))
                taken += accepted
                clipped += accepted & led.clipped
                projected += accepted & led.projected
                reach, going = led.reach, accepted
        finally:
            if weights is not before or not isinstance(index, slice):
                self._weights[index] = weights
        stats.steps.numpy()[index] += taken
        stats.clipped_steps.numpy()[index] += clipped
        stats.projected_steps.numpy()[index] += projected
        losses = np.where(np.isfinite(losses), losses, np.nan)
        stats.rejected_steps.numpy()[index] += asked & np.isnan(losses)
        self._track(index, first, ~np.isnan(losses))
        stats.distance.numpy()[index] = self._distances(weights)
        return losses

    def _distances(self, weights: Tensor) -> Floats:
        """The distances of ``Float[R W]`` from the source, relative to its norm: ``Float64[R]``."""
        _, norms = self._offset(weights)
        distance: Floats = norms.double().numpy()
        return distance / self._source_norm if self._source_norm else np.where(distance > 0.0, np.inf, 0.0)

    def _offset(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Where ``Float[R W]`` are from the source, until the next call, and how far ``Float[R]``."""
        offset = torch.sub(weights, self._source, out=self._buffers.take("offset", (*weights.shape,), weights))
        return offset, torch.linalg.vector_norm(offset, dim=1)

    def _step(self, weights: Tensor, gradients: Tensor, reach: Floats, going: Flags, out: Tensor) -> "_RowSteps":
        """One clipped and projected step of each row.

        Args:
            weights: ``Float[R W]``.
            gradients: ``Float[R W]``.
            reach: ``Float64[R]``; the weights are no farther than that from the source.
            going: ``Bool[R]``, the rows that take a step; the others stay where they are.
            out: ``Float[R W]``, the memory for where the steps lead.
        """
        cfg, finfo = self.cfg, torch.finfo(weights.dtype)
        slope = torch.linalg.vector_norm(gradients, dim=1).numpy()
        # Clip the gradient to its largest norm, and descend.
        lr = min(cfg.lr, finfo.max) * np.minimum(1.0, cfg.grad_clip_norm / slope) * going
        weights = torch.addcmul(weights, torch.from_numpy(lr)[:, None], gradients, value=-1.0, out=out)
        clipped = slope > cfg.grad_clip_norm
        # Where no row can have come out of the ball, or to numbers whose squares overflow, no distance is measured.
        radius = cfg.trust_region_eps * self._source_norm if cfg.trust_region_eps < math.inf else math.inf
        rounding = finfo.eps * (self._source_norm + (radius if radius < math.inf else reach))
        reach = _SLACK * (reach + lr.astype(np.float64) * slope + rounding)
        if (reach < min(radius, math.sqrt(finfo.max))).all():
            return _RowSteps(weights, reach, clipped, np.zeros_like(clipped), np.ones_like(clipped))
        # Project onto the ball around the source.
        offset, norms = self._offset(weights)
        distance = norms.numpy()
        projected: Flags = going & (distance > radius)
        if projected.any():
            # It ends inside by what rounding can add, so that the weights cannot leave the ball.
            inner = max(radius - finfo.eps * (self._source_norm + radius), 0.0)
            (rows,) = projected.nonzero()
            scale = (inner / norms[rows].double()).to(offset.dtype)[:, None]
            weights[rows] = self._source + offset[rows] * scale
        reach = np.where(projected, radius, distance)
        return _RowSteps(weights, reach, clipped, projected, np.isfinite(slope) & np.isfinite(distance))

    def _track(self, index: Rows, losses: Floats, counted: Flags) -> None:
        """Move the running mean and variance towards the losses before adaptation, where they are finite."""
        losses = np.clip(losses, -LARGEST_TRACKED, LARGEST_TRACKED)
        means, variances = self.stats.loss_mean.numpy(), self.stats.loss_variance.numpy()
        mean, variance = means[index], variances[index]
        moved_mean, moved_variance = moving_moments(mean, variance, losses, self.cfg.ema_decay)
        new = np.isnan(mean)
        means[index], variances[index] = (
            np.where(counted, np.where(new, losses, moved_mean), mean),
            np.where(counted & ~new, moved_variance, variance),
        )


def _where_rows(rows: Flags, new: Tensor, old: Tensor) -> Tensor:
    """``new`` in these rows ``Bool[R]``, ``old`` in the others; most often it is all of them."""
    return new if rows.all() else torch.where(torch.from_numpy(rows)[:, None], new, old)


def _in_parts(
    states: Tensor, targets: Tensor, mask: Tensor, rows: Flags, size: int
) -> Iterator[tuple[Rows, Tensor, Tensor, Tensor]]:
    """At most so many rows after the other as ``size`` says: which they are, their states, targets and masks."""
    size = math.ceil(len(rows) / math.ceil(len(rows) / size))  # of equal parts
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        # Where most of them adapt, it is faster to compute the others along than to pick these out.
        index = part if rows[part].mean() > 0.5 else start + rows[part].nonzero()[0]
        x, m = states[index], mask[index]
        if len(m):
            # What is not there may be anything, and the gradient of what does not count is 0 times that.
            x = x if m.all() else x.masked_fill(~m.view(*m.shape, *[1] * (x.ndim - 2)), 0)
            yield index, x, targets[index], m


def _by_length(
    states: Tensor, targets: Tensor, mask: Tensor, rows: Flags, arrivals: Tensor | None
) -> Iterator[tuple[Rows, Tensor, Tensor, Tensor | None]]:
    """The rows that have equally many transitions: which they are, their states and targets, of which all count.

    The transitions of a row are in the order of their arrivals or, where nobody gave these, of their places.
    """
    if arrivals is not None:
        order = arrivals.argsort(dim=1, stable=True)
        beside = torch.arange(len(mask))[:, None]
        states, targets, mask = states[beside, order], targets[beside, order], mask[beside, order]
    lengths = mask.sum(dim=1).numpy()
    for length in np.unique(lengths[rows]).tolist():
        (index,) = (rows & (lengths == length)).nonzero()
        x, y = (tensor[index][mask[index]].unflatten(0, (len(index), length)) for tensor in (states, targets))
        yield index, x, y, None
