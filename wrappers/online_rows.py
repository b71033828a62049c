"""The latest transitions of many rows, and the rows of weights that keep adapting to them."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssm_metarl_gym.agents.adaptation.rows import AdapterRows
from ssm_metarl_gym.agents.adaptation.twins import TwinRows
from ssm_metarl_gym.bundle.surprises import SURPRISES_OF_A_CHANGE, Verdict
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

    @torch.inference_mode(False)
    def __init__(self, adapter: AdapterRows | TwinRows, options: OnlineOptions) -> None:
        self._adapter = adapter
        self._options = options
        n = adapter.num_rows
        # N K ..., made with the first transition; the next one of a row takes the place of its oldest.
        self._states = torch.empty(n, 0)
        self._targets = torch.empty(n, 0)
        # N H ..., the last transitions of each row that were held back.
        self._held_states = torch.empty(n, 0)
        self._held_targets = torch.empty(n, 0)
        # N K, when they came: the number of the call of `_keep`.
        self._arrivals = torch.zeros(n, options.window, dtype=torch.int64)
        self._num_arrivals = 0
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

    def advance(self, states: Tensor, targets: Tensor, going: Flags, kept: Flags, verdict: Verdict) -> None:
        """Keep the transitions of this step, and adapt the rows whose turn it is.

        Where the physics changed, what was held back and the transition of this step alone are kept, and adaptation
        begins anew.

        Args:
            states: ``Float[N F]``, what the model takes.
            targets: ``Float[N D]``, what it should have predicted.
            going: ``Bool[N]``, the rows that took a step.
            kept: ``Bool[N]``, those of them whose transition counts.
            verdict: Of which transitions to hold back, and where the physics changed.
        """
        if not self._states.shape[1]:
            num_held = SURPRISES_OF_A_CHANGE - 1
            with torch.inference_mode(False):  # a tensor that is made in that mode can be written in that mode alone
                self._states = states.new_zeros((*self._filled.shape, *states.shape[1:]))
                self._targets = targets.new_zeros((*self._filled.shape, *targets.shape[1:]))
                self._held_states = states.new_zeros((len(states), num_held, *states.shape[1:]))
                self._held_targets = targets.new_zeros((len(targets), num_held, *targets.shape[1:]))
        suspected = torch.as_tensor(verdict.suspicions)
        for held, new in ((self._held_states, states), (self._held_targets, targets)):
            held[suspected] = torch.cat([held[suspected, 1:], new[suspected, None]], dim=1)
        if verdict.changes.any():
            changed = torch.as_tensor(verdict.changes)
            self._filled[changed] = False
            for i in range(SURPRISES_OF_A_CHANGE - 1):
                self._keep(verdict.changes, self._held_states[:, i], self._held_targets[:, i])
            if self._options.restore != "never":
                self._adapter.reset(changed)
        self._keep(kept, states, targets)
        self._num_steps += going

        due = going & (self.num_transitions() >= self._options.warmup) & (self._num_steps % self._options.every == 0)
        self.losses = np.full(len(going), np.nan)
        if due.any():
            chosen = torch.as_tensor(due)
            if self._options.restore == "call":
                self._adapter.reset(chosen)
            batch = {"states": self._states, "targets": self._targets, "arrivals": self._arrivals}
            self.losses = self._adapter.adapt(self._options.loss_fn, batch, mask=self._filled, rows=chosen).numpy()

    def _keep(self, rows: Flags, states: Tensor, targets: Tensor) -> None:
        """Let these rows ``[N]`` of ``Float[N F]`` and ``Float[N D]`` join the window."""
        index = torch.as_tensor(rows.nonzero()[0])
        place = torch.as_tensor(self._places[rows] % self._filled.shape[1])
        self._states[index, place] = states[index]
        self._targets[index, place] = targets[index]
        self._num_arrivals += 1  # for good, so that no two transitions of a row have the same number
        self._arrivals[index, place] = self._num_arrivals
        self._filled[index, place] = True
        self._places[rows] += 1
