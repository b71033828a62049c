"""The state-space model as a features extractor of Stable-Baselines3."""

from functools import partial
from typing import TypeGuard

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor
from torch import Tensor, nn

from ssm_metarl_gym.agents.ssm.model import SSM
from ssm_metarl_gym.checks import check_integer

__all__ = ["SSMFeaturesExtractor", "WindowExtractor"]

_ALONE = "observation"  # the key of an observation that is no dictionary
_LEAST_IMAGE = 36  # pixels: of fewer, the convolutions of SB3's NatureCNN leave nothing


class SSMFeaturesExtractor(BaseFeaturesExtractor):
    """Features of an observation, of a window of them as ``HistoryWindow`` gives it, or of a dictionary, made by SSMs.

    Of a window, the features are those of its last step. Its last column marks where the episode starts: whatever the
    rows before that hold, NaN included, changes neither the features nor the gradients.
    Any other observation is one step from the zero state, without memory: flattened, an image through
    Stable-Baselines3's ``NatureCNN``.

    In a dictionary each window has its own SSM, and all other keys, read as by Stable-Baselines3's
    ``CombinedExtractor``, share one. Their features are added: as every SSM ends in a linear layer, that is a linear
    map of all of them side by side, and ``features_dim`` is what was asked for.

    Example:
        >>> env = HistoryWindow(gym.make("ssm_metarl/CartPolePolarity-v0"), 16)
        >>> model = PPO("MlpPolicy", env, policy_kwargs=dict(features_extractor_class=SSMFeaturesExtractor))

    Args:
        observation_space: A ``Box`` of shape (observation,), or of floats of shape (time, observation + 1) with the
            start mask in [0, 1] as its last column; an image of at least 36 x 36, channels first, as
            Stable-Baselines3 turns them; a ``Discrete``, ``MultiDiscrete`` or ``MultiBinary``; or a ``Dict`` of these
            and of boxes of any other shape, which are flattened.
        features_dim: Number of features.
        hidden_dim: Width of each SSM.
        num_layers: Number of layers of each SSM.
        cnn_output_dim: Number of features of each image before the SSM.
        normalized_image: Whether images are floats already, to be given along with the policy's
            ``normalize_images=False``: every box with three axes is then an image.

    Raises:
        ValueError: The observation space is of another kind, or a size is not a positive integer.
    """

    def __init__(
        self,
        observation_space: spaces.Space[object],
        features_dim: int = 64,
        *,
        hidden_dim: int = 64,
        num_layers: int = 2,
        cnn_output_dim: int = 256,
        normalized_image: bool = False,
    ) -> None:
        check_integer("cnn_output_dim", cnn_output_dim)
        if isinstance(observation_space, spaces.Dict):
            subspaces = dict(observation_space.spaces)
        else:
            _check_box_alone(observation_space, normalized_image)
            subspaces = {_ALONE: observation_space}
        for key, space in subspaces.items():
            _check_readable(key, space, normalized_image)
        ssm = partial(SSM, hidden_dim=hidden_dim, output_dim=features_dim, num_layers=num_layers)
        parts: list[nn.Module] = [
            WindowExtractor(key, ssm(space.shape[1] - 1)) for key, space in subspaces.items() if _is_window(space)
        ]
        others = {key: space for key, space in subspaces.items() if not _is_window(space)}
        if others or not parts:
            encoder = CombinedExtractor(spaces.Dict(others), cnn_output_dim, normalized_image)
            parts.append(nn.Sequential(encoder, ssm(encoder.features_dim)))
        # Last, so that the SSM says what is wrong with features_dim.
        super().__init__(observation_space, features_dim)
        self.parts = nn.ModuleList(parts)

    def forward(self, observations: Tensor | dict[str, Tensor]) -> Tensor:
        """``Float[B ...]`` or a dictionary of them, as Stable-Baselines3 prepares them -> ``Float[B features_dim]``."""
        if isinstance(observations, Tensor):
            observations = {_ALONE: observations}
        return torch.stack([part(observations) for part in self.parts]).sum(dim=0)


class WindowExtractor(nn.Module):
    """The features of the last step of the window under a key."""

    def __init__(self, key: str, ssm: SSM) -> None:
        super().__init__()
        self.key = key
        self.ssm = ssm

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """``Float[B T D+1]`` under the key -> ``Float[B features_dim]``."""
        window = observations[self.key]
        # Above zero and not above a half: SB3's VecNormalize takes a mean between 0 and 1 off the mask.
        start = window[..., -1] > 0.0  # B T
        starts_from_here_on = start.flip(1).cumsum(1).flip(1)  # B T
        # What lies before the last start is not seen, but a NaN there would be in the gradients (0 * NaN is NaN).
        unseen = starts_from_here_on > start
        seen = window[..., :-1].masked_fill(unseen[..., None], 0.0)  # B T D
        features, _ = self.ssm.scan(seen, start=start, only_last=True)
        return features[:, -1]


def _is_window(space: spaces.Space[object]) -> TypeGuard[spaces.Box]:
    """Whether the space looks like that of a ``HistoryWindow``: floats, and a start mask as the last column."""
    return (
        isinstance(space, spaces.Box)
        and len(space.shape) == 2
        and space.shape[1] > 1
        and np.issubdtype(space.dtype, np.floating)
        and bool(np.all(space.low[:, -1] == 0.0) and np.all(space.high[:, -1] == 1.0))
    )


def _check_box_alone(space: spaces.Space[object], normalized_image: bool) -> None:
    """Refuse a ``Box`` of several axes that is neither a window nor an image: to flatten it would be a guess."""
    if not isinstance(space, spaces.Box) or len(space.shape) < 2:
        return
    if len(space.shape) == 2 and not _is_window(space):
        raise ValueError(
            "the last column of a window must be a start mask in [0, 1], of floats, as HistoryWindow gives it; got "
            f"{space}. Use HistoryWindow instead of another stack of observations, or FlattenObservation if the rows "
            "are no steps of time."
        )
    if len(space.shape) > 2 and not is_image_space(space, normalized_image=normalized_image):
        raise ValueError(
            f"a Box of three axes or more must be an image of uint8 in [0, 255]; got {space}. Pass "
            "normalized_image=True for an image of floats, or use FlattenObservation if it is no image."
        )


def _check_readable(key: str, space: spaces.Space[object], normalized_image: bool) -> None:
    readable = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    if not isinstance(space, readable) or (isinstance(space, spaces.Box) and space.shape == ()):
        raise ValueError(
            "SSMFeaturesExtractor needs a Box with at least one axis, a Discrete, a MultiDiscrete, a MultiBinary, or a "
            f"Dict of these; got {space} as {key}. Flatten it with Gymnasium's FlattenObservation."
        )
    if is_image_space(space, normalized_image=normalized_image) and min((space.shape or ())[1:]) < _LEAST_IMAGE:
        raise ValueError(
            f"an image must be at least {_LEAST_IMAGE} x {_LEAST_IMAGE}, channels first; got {space} as {key}. Enlarge "
            "it with Gymnasium's ResizeObservation."
        )
