"""Normal noise on observations, from a stream of its own."""

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from ssm_metarl_gym.checks import Rule, check_number

__all__ = ["ObservationNoise"]

_RULE: Final[Rule] = ("a finite number >= 0", lambda value: 0.0 <= value < math.inf)


class ObservationNoise:
    """The noise on the present observations of n rows, drawn once for each of them.

    Args:
        scale: Standard deviation of each component; with 0 there is no noise, and nothing is drawn.
        num_rows: Number of rows n.
        width: The size of an observation D.

    Attributes:
        rng: What draws it: the stream of an environment that was seeded.

    Raises:
        ValueError: The scale is negative or not finite.
    """

    rng: np.random.Generator

    def __init__(self, scale: Any, num_rows: int, width: int) -> None:
        check_number("observation_noise", scale, _RULE)
        self._scale = float(scale)
        self._noise = np.zeros((num_rows, width))

    def draw(self, rows: npt.NDArray[np.intp]) -> None:
        """Draw the noise on the new observations of some rows."""
        if self._scale:
            self._noise[rows] = self._scale * self.rng.standard_normal((len(rows), self._noise.shape[1]))

    def add(self, observations: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The observations ``Float[n D]`` with their noise."""
        return (observations + self._noise).astype(observations.dtype) if self._scale else observations

    def space(self, space: Any) -> Any:
        """The space of one observation: where there is noise it has no bounds."""
        return spaces.Box(-np.inf, np.inf, space.shape, space.dtype) if self._scale else space
