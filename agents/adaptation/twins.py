"""Many rows that adapt, and beside each of them a twin that adapts to other targets on the same inputs."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssm_metarl_gym.agents.adaptation.adapter import Adapter
from ssm_metarl_gym.agents.adaptation.recursive_rows import make_adapter_rows
from ssm_metarl_gym.agents.adaptation.rows import AdapterRows, RowStats

__all__ = ["TwinRows"]

Index = npt.NDArray[np.int64] | slice


class TwinRows:
    """N rows with the surface of :class:`AdapterRows`, and their twins, all of which adapt in one call.

    Both have the same inputs, and as targets each has its own columns. For few rows one call takes hardly longer than
    that of the rows alone. A budget of time is that of all.

    Args:
        adapter: The adapter, whose source all start from. It and its model stay as they are.
        num_rows: Number of rows N.

    Attributes:
        model: A copy of the module.
        num_rows: N.
    """

    def __init__(self, adapter: Adapter, num_rows: int) -> None:
        self._both: AdapterRows = make_adapter_rows(adapter, 2 * num_rows)  # the rows, and after them their twins
        self.model = self._both.model
        self.num_rows = num_rows

    @property
    def stats(self) -> RowStats:
        """What each row has done, without its twin."""
        return RowStats(**{name: value[: self.num_rows] for name, value in vars(self._both.stats).items()})

    def predict(self, states: Tensor, rows: npt.NDArray[np.int64] | None = None) -> Any:
        """What the models of these rows predict, see :meth:`AdapterRows.predict`."""
        return self._both.predict(states, slice(0, self.num_rows) if rows is None else rows)

    def predict_twins(self, states: Tensor, rows: npt.NDArray[np.int64] | None = None) -> Any:
        """The same of their twins."""
        twins: Index = slice(self.num_rows, None) if rows is None else rows + self.num_rows
        return self._both.predict(states, twins)

    def weights(self) -> dict[str, Tensor]:
        """The weights of each row by the names of the parameters, ``{name: Float[N ...]}``."""
        return {name: weight[: self.num_rows] for name, weight in self._both.weights().items()}

    def reset(self, rows: Tensor | None = None) -> None:
        """Go back to the source in these rows ``Bool[N]`` and their twins, in all where it is None."""
        self._both.reset(None if rows is None else torch.cat([rows, rows]))

    def adapt(
        self,
        loss_fn: Callable[[Any, Tensor], Tensor],
        batch_dict: Mapping[str, Tensor],
        *,
        mask: Tensor,
        rows: Tensor,
    ) -> Tensor:
        """Let rows and twins adapt, see :meth:`AdapterRows.adapt`.

        Args:
            loss_fn: Takes the predictions and the targets of one row, gives a scalar.
            batch_dict: ``{"states": Float[N K ...], "targets": Float[N K 2 D]}``, the targets of a row and, behind
                them, those of its twin; and ``"arrivals": Int[N K]``, see :meth:`RecursiveRows.adapt`.
            mask: ``Bool[N K]``, which of the transitions of a row there are.
            rows: ``Bool[N]``, the rows that adapt.

        Returns:
            ``Float64[N]``, the losses of the rows.
        """
        # What both have in common, and of the targets each its own.
        batch = {name: torch.cat([column, column]) for name, column in batch_dict.items() if name != "targets"}
        batch["targets"] = torch.cat(batch_dict["targets"].chunk(2, dim=2))
        losses = self._both.adapt(loss_fn, batch, mask=torch.cat([mask, mask]), rows=torch.cat([rows, rows]))
        return losses[: self.num_rows]
