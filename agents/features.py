"""The state-space model as a features extractor of Stable-Baselines3."""

from typing import cast

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from ssm_metarl_gym.agents.ssm import SSM

__all__ = ["SSMFeaturesExtractor"]


class SSMFeaturesExtractor(BaseFeaturesExtractor):
    """Features of an observation, or of the window of observations that ``HistoryWindow`` gives, made by an SSM.

    Of a window, the features are those of its last step. Steps before the start of the episode never change them,
    because the last column of a window marks where the state must be cleared.

    Example:
        >>> env = HistoryWindow(gym.make("ssm_metarl/CartPolePolarity-v0"), 16)
        >>> model = PPO("MlpPolicy", env, policy_kwargs=dict(features_extractor_class=SSMFeaturesExtractor))

    Args:
        observation_space: A ``Box`` of shape (observation,) or, with the start mask as its last column,
            (time, observation + 1).
        features_dim: Number of features.
        hidden_dim: Width of the SSM.
        num_layers: Number of layers of the SSM.

    Raises:
        ValueError: The observation space is of another kind.
    """

    def __init__(
        self,
        observation_space: spaces.Space[object],
        features_dim: int = 64,
        *,
        hidden_dim: int = 64,
        num_layers: int = 2,
    ) -> None:
        if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) not in (1, 2):
            raise ValueError(
                "SSMFeaturesExtractor needs a Box of shape (observation,), or of shape (time, observation + 1) as "
                f"HistoryWindow gives it; got {observation_space}."
            )
        super().__init__(observation_space, features_dim)
        self._is_window = len(observation_space.shape) == 2
        if self._is_window and not (
            np.all(observation_space.low[:, -1] == 0.0) and np.all(observation_space.high[:, -1] == 1.0)
        ):
            raise ValueError(
                "the last column of a window must be a start mask in [0, 1], as HistoryWindow gives it; got "
                f"{observation_space}. Use HistoryWindow instead of another stack of observations."
            )
        observation_dim = observation_space.shape[-1] - self._is_window
        self.ssm = SSM(observation_dim, hidden_dim, features_dim, num_layers=num_layers)

    def forward(self, observations: Tensor) -> Tensor:
        """``Float[B D]`` or ``Float[B T D+1]`` -> ``Float[B features_dim]``."""
        if not self._is_window:
            return cast("Tensor", self.ssm(observations))
        features, _ = self.ssm.scan(observations[..., :-1], start=observations[..., -1] > 0.5)
        return features[:, -1]
