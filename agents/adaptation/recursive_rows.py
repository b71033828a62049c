"""Adapters in closed form for many rows, each with a window of its own."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ssm_metarl_gym.agents.adaptation.adapter import Adapter
from ssm_metarl_gym.agents.adaptation.batch import row_bytes
from ssm_metarl_gym.agents.adaptation.recursive import COUNTS, FilterState, RecursiveAdapter
from ssm_metarl_gym.agents.adaptation.rows import AdapterRows

__all__ = ["RecursiveRows", "make_adapter_rows"]


class RecursiveRows(AdapterRows):
    """What a :class:`RecursiveAdapter` does to a module, for N rows at once: each has weights and evidence of its own.

    A batch of :meth:`adapt` holds the windows of the rows. A transition is taken in once, so it must keep its place in
    the window until a newer one takes it. Which are new is told by their arrivals, or else by their bits: then one that
    equals the one whose place it takes, as of what is periodic, looks like that one and is not taken in.

    Args:
        adapter: The adapter, whose source the rows start from. It and its model stay as they are.
        num_rows: Number of rows N.

    Attributes:
        state: What each row knows.
    """

    _adapter: RecursiveAdapter[Any]

    @torch.inference_mode(False)
    def __init__(self, adapter: RecursiveAdapter[Any], num_rows: int) -> None:
        super().__init__(adapter, num_rows)
        self.state: FilterState = self._adapter.initial_state(num_rows)
        self._windows = _Windows(num_rows)

    @property
    def adapter(self) -> RecursiveAdapter[Any]:
        """The adapter at its source, whose arithmetic that of the rows is."""
        return self._adapter

    def reset(self, rows: Tensor | None = None) -> None:
        """Go back to the source in these rows ``Bool[N]``, in all where it is None."""
        super().reset(rows)
        rows = torch.ones(self.num_rows, dtype=torch.bool) if rows is None else torch.as_tensor(rows)
        self.state = self._adapter.initial_state(self.num_rows).where(rows, self.state)
        self._windows.forget(rows)

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
        """Take in the transitions of each row that are new.

        Args:
            loss_fn: Takes the predictions and the targets of one row, gives a scalar; it measures, and no more.
            batch_dict: ``{"states": Float[N K ...], "targets": Float[N K D]}``; with ``"arrivals": Int[N K]``, numbers
                >= 0 of the transitions of a row, each greater than those of all that came before it.
            mask: ``Bool[N K]``, which of the transitions of a row there are; None for all.
            rows: ``Bool[N]``, the rows that adapt; None for all.

        Returns:
            ``Float64[N]``, the loss of each row over its transitions that are finite, with its weights after the call;
            nan where there are none, and where the row does not adapt.
        """
        states, targets = batch_dict["states"], batch_dict["targets"]
        mask = torch.ones(targets.shape[:2], dtype=torch.bool) if mask is None else torch.as_tensor(mask)
        rows = torch.ones(self.num_rows, dtype=torch.bool) if rows is None else torch.as_tensor(rows)
        finite = mask & states.flatten(2).isfinite().all(2) & targets.flatten(2).isfinite().all(2)
        measured = rows & finite.any(dim=1)
        told = batch_dict.get("arrivals")
        before = self._measure(loss_fn, states, targets, finite, measured, told)
        # Take in what was not there in the last call, the oldest first.
        index = torch.arange(self.num_rows)
        there = mask & rows[:, None]
        arrivals = told
        if arrivals is None:
            bits = row_bytes(states.flatten(0, 1), targets.flatten(0, 1)).unflatten(0, mask.shape)
            arrivals = self._windows.inferred_arrivals(bits, there)
        for places, counted in self._windows.take(arrivals, there):
            self.state = self._adapter.update(self.state, states[index, places], targets[index, places], counted)
        # Of the rows that took part: what a filter expects beforehand need not be the source, where others are still.
        weights = self._layout.weights(self._adapter.flat_weights(self.state).to(self._weights.dtype))
        self._weights = torch.where(there.any(dim=1, keepdim=True), weights, self._weights)
        # Tell what happened.
        stats = self.stats
        stats.calls += rows
        stats.empty_calls += rows & ~mask.any(dim=1)
        for name, count in zip(COUNTS, self.state.counts.unbind(1), strict=True):
            getattr(stats, name).copy_(count)
        stats.distance.copy_(torch.from_numpy(self._distances(self._weights)))
        self._track(slice(None), before.numpy(), ~before.isnan().numpy())
        return self._measure(loss_fn, states, targets, finite, measured, told)

    def _measure(
        self,
        loss_fn: Callable[[Any, Tensor], Tensor],
        states: Tensor,
        targets: Tensor,
        mask: Tensor,
        rows: Tensor,
        arrivals: Tensor | None,
    ) -> Tensor:
        """The loss of each row ``Float64[N]`` over the transitions of the mask, nan where it is not finite."""
        losses = torch.full((self.num_rows,), torch.nan, dtype=torch.float64)
        for index, objective in self._objectives(loss_fn, states, targets, mask, rows.numpy(), arrivals):
            losses[index] = objective(self._weights[index], with_gradient=False)[0].double()
        return torch.where(rows & losses.isfinite(), losses, torch.nan)


class _Windows:
    """Which places of the windows of N rows hold what was not taken yet, and in which order it came.

    Args:
        num_rows: Number of rows N.
    """

    def __init__(self, num_rows: int) -> None:
        self._bits = torch.empty(num_rows, 0, 0, dtype=torch.uint8)  # N K bytes, what was there in the last call
        self._came = torch.empty(num_rows, 0, dtype=torch.int64)  # N K, when what was there came
        self._taken = torch.empty(num_rows, 0, dtype=torch.bool)  # N K
        self._now = 0

    def forget(self, rows: Tensor) -> None:
        """Take all that is in these rows ``Bool[N]`` once more."""
        self._taken[rows] = False

    def take(self, arrivals: Tensor, there: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What was not taken yet: one place ``Int[N]`` of each row after the other, and whether there is, ``Bool[N]``.

        Args:
            arrivals: ``Int[N K]``, of the transitions in their places.
            there: ``Bool[N K]``, the places that hold one, of the rows that are asked.
        """
        if self._came.shape != there.shape:
            self._forget_places(there)
        came = there & (arrivals != self._came)
        self._came = torch.where(came, arrivals, self._came)
        new = there & (came | ~self._taken)
        self._taken = torch.where(there, True, self._taken)
        order = torch.where(new, self._came, torch.iinfo(torch.int64).max).argsort(dim=1)  # N K
        num_new = new.sum(dim=1)
        return [(order[:, i], num_new > i) for i in range(int(num_new.max()))]

    def inferred_arrivals(self, bits: Tensor, there: Tensor) -> Tensor:
        """Those of transitions ``UInt8[N K bytes]`` that nobody tells: ``Int[N K]``, see :meth:`take`."""
        if self._bits.shape != bits.shape:
            self._bits = torch.zeros_like(bits)
            self._forget_places(there)
        # What came together stands side by side, around the end of the window; the oldest follows what was there.
        came = there & ((self._came < 0) | (bits != self._bits).any(dim=2))
        oldest = (came & ~came.roll(1, dims=1)).int().argmax(dim=1, keepdim=True)  # N 1
        num_places = there.shape[1]
        ages = (torch.arange(num_places) - oldest) % num_places
        self._bits = torch.where(came[..., None], bits, self._bits)
        self._now += num_places
        return torch.where(came, self._now + ages, self._came)

    def _forget_places(self, there: Tensor) -> None:
        """Begin with windows of another size."""
        self._came = torch.full(there.shape, -1)
        self._taken = torch.zeros_like(there)


def make_adapter_rows(adapter: Adapter, num_rows: int) -> AdapterRows:
    """N rows of an adapter of any kind.

    Args:
        adapter: The adapter, whose source the rows start from. It and its model stay as they are.
        num_rows: Number of rows N.
    """
    return RecursiveRows(adapter, num_rows) if isinstance(adapter, RecursiveAdapter) else AdapterRows(adapter, num_rows)
