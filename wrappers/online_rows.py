"""The latest transitions of many rows, and the rows of weights that keep adapting to them."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssm_metarl_gym.agents.adaptation.rows import AdapterRows
from ssm_metarl_gym.agents.adaptation.twins import TwinRows
from ssm_metarl_gym.wrappers.adapted_model import OnlineOptions

__all__ = ["OnlineRows"]

Flags = npt.NDArray[np.bool_]


class OnlineRows:
    """Keeps the last transitions of each row, and adapts its weights to them when it is time.

    Args:
        adapter: The weights of all rows.
        options: What is adapted to, and when, for each row by itself.

    Attributes:
        losses: ``Float64[N]``, the loss of each row after the last step, nan where nothing was adapted.
    """

    def __init__(self, adapter: AdapterRows | TwinRows, options: OnlineOptions) -> None:
        self._adapter = adapter
        self._options = options
        n = adapter.num_rows
        # N K ..., made with the first transition; the next one of a row takes the place of its oldest.
        self._states = torch.empty(n, 0)
        self._targets = torch.empty(n, 0)
        self._filled = torch.zeros(n, options.window, dtype=torch.bool)
        self._places = np.zeros(n, dtype=np.int64)
        self._num_steps = np.zeros(n, dtype=np.int64)
        self.losses = np.full(n, np.nan)

    def num_transitions(self) -> npt.NDArray[np.int64]:
        """``Int[N]``, how many transitions each row keeps."""
        return self._filled.sum(1).numpy()

    def begin(self, rows: Flags) -> None:
        """Begin anew in these rows ``[N]``: without transitions and, unless ``restore="never"``, from the source."""
        if self._options.restore != "never":
            self._adapter.reset(torch.as_tensor(rows))
        self._filled[torch.as_tensor(rows)] = False
        self._places[rows] = 0
        self._num_steps[rows] = 0
        self.losses[rows] = np.nan

    def advance(self, states: Tensor, targets: Tensor, going: Flags, kept: Flags, changes: Flags) -> None:
        """Keep the transitions of this step, and adapt the rows whose turn it is.

        Where the physics changed, the last two transitions alone are kept, and adaptation begins anew.

        Args:
            states: ``Float[N F]``, what the model takes.
            targets: ``Float[N D]``, what it should have predicted.
            going: ``Bool[N]``, the rows that took a step.
            kept: ``Bool[N]``, those of them whose transition counts.
            changes: ``Bool[N]``, those of them whose physics changed.
        """
        if not self._states.shape[1]:
            self._states = states.new_zeros((*self._filled.shape, *states.shape[1:]))
            self._targets = targets.new_zeros((*self._filled.shape, *targets.shape[1:]))
        (rows,) = kept.nonzero()
        index, place = torch.as_tensor(rows), torch.as_tensor(self._places[rows] % self._filled.shape[1])
        self._states[index, place] = states[index]
        self._targets[index, place] = targets[index]
        self._filled[index, place] = True
        self._places[rows] += 1
        self._num_steps += going
        if changes.any():
            (changed,) = changes.nonzero()
            self._filled[torch.as_tensor(changed)] = False
            for back in (1, 2):
                self._filled[changed, (self._places[changed] - back) % self._filled.shape[1]] = True
            if self._options.restore != "never":
                self._adapter.reset(torch.as_tensor(changes))

        due = going & (self.num_transitions() >= self._options.warmup) & (self._num_steps % self._options.every == 0)
        self.losses = np.full(len(going), np.nan)
        if due.any():
            chosen = torch.as_tensor(due)
            if self._options.restore == "call":
                self._adapter.reset(chosen)
            batch = {"states": self._states, "targets": self._targets}
            self.losses = self._adapter.adapt(self._options.loss_fn, batch, mask=self._filled, rows=chosen).numpy()
