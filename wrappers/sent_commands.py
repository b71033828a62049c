"""What was sent to motors that may be late: the last commands of many rows, of which a single environment is one."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssm_metarl_gym.agents.adaptation.adapter import Adapter
from ssm_metarl_gym.agents.adaptation.kalman import KalmanAdapter
from ssm_metarl_gym.agents.models.dynamics import DynamicsModel

__all__ = ["SentCommands"]

Flags = npt.NDArray[np.bool_]


class SentCommands:
    """Remembers the commands of every step, for a filter that reckons with delays; for all others it does nothing.

    A transition that is left out is one that the filter does not see. Its command may arrive later all the same.

    Args:
        adapter: The adapter.
        model: Its model.
        num_rows: Number of rows N.
    """

    @torch.inference_mode(False)  # a tensor that is made in that mode can be written in that mode alone
    def __init__(self, adapter: Adapter, model: DynamicsModel, num_rows: int) -> None:
        self._model = model
        self._length = adapter.largest_delay if isinstance(adapter, KalmanAdapter) else 0
        # N L A, the latest first; before the first command of an episode motors idle in the middle of their range.
        self._sent = torch.zeros(0)
        if self._length:
            self._sent = model.action_offset.detach().new_zeros(num_rows, self._length, len(model.action_offset))

    def forget(self, rows: Flags) -> None:
        """Begin an episode in these rows ``[N]``."""
        if self._length:
            self._sent[torch.as_tensor(rows)] = 0.0

    def behind(self, encoded: Tensor) -> Tensor:
        """What the model encodes of the transitions of a step, ``Float[N F]``, with the commands before it behind."""
        return torch.cat([encoded, self._sent.flatten(1)], dim=1) if self._length else encoded

    @torch.inference_mode(False)
    @torch.no_grad()
    def send(self, actions: npt.NDArray[Any]) -> None:
        """Remember the actions ``[N ...]`` of a step. Rows that begin an episode in it are to be forgotten."""
        if self._length:
            self._sent = torch.cat([self._model.commands(actions)[:, None], self._sent[:, :-1]], dim=1)
