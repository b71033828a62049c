"""sb3-contrib's RecurrentPPO, of which an update reads each sequence in one pass, so that it can be measured often."""

from typing import Any, ClassVar

import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from torch import Tensor, nn

__all__ = ["OnePassLstmPolicy", "OnePassRecurrentPPO"]


class OnePassLstmPolicy(RecurrentActorCriticPolicy):
    """``MlpLstmPolicy``, faster: its LSTMs read sequences that begin with an episode at once, not step by step.

    RecurrentPPO cuts the sequences of its updates where episodes start, so that no state has to be reset within one.
    What it computes is the same up to rounding.
    """

    @staticmethod
    def _process_sequence(
        features: Tensor, lstm_states: tuple[Tensor, Tensor], episode_starts: Tensor, lstm: nn.LSTM
    ) -> Any:
        num_sequences = lstm_states[0].shape[1]
        starts = episode_starts.reshape(num_sequences, -1)
        if bool(starts[:, 1:].any()):
            return RecurrentActorCriticPolicy._process_sequence(features, lstm_states, episode_starts, lstm)
        kept = (1.0 - starts[:, 0]).view(1, num_sequences, 1)
        none_starts = torch.zeros_like(episode_starts)
        states = (kept * lstm_states[0], kept * lstm_states[1])
        return RecurrentActorCriticPolicy._process_sequence(features, states, none_starts, lstm)


class OnePassRecurrentPPO(RecurrentPPO):
    """``RecurrentPPO`` whose ``"MlpLstmPolicy"`` is :class:`OnePassLstmPolicy`."""

    policy_aliases: ClassVar[dict[str, Any]] = {**RecurrentPPO.policy_aliases, "MlpLstmPolicy": OnePassLstmPolicy}
