"""Many environments of :class:`RowPhysicsEnv`, stepped at once."""

from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.envs.arguments import parse_numbers
from ssm_metarl_gym.envs.hidden_task_vector import HiddenTaskVectorEnv, Observations
from ssm_metarl_gym.envs.row_physics import RowPhysicsEnv

__all__ = ["RowPhysicsVectorEnv"]

Floats = npt.NDArray[np.float64]


class RowPhysicsVectorEnv(HiddenTaskVectorEnv):
    """n rows of the physics of a single environment, which a subclass names; all else is told there."""

    def _allocate(self) -> None:
        (num_actions,) = cast("tuple[int]", self.single_action_space.shape)
        self._commands = np.empty((num_actions, self.num_envs), dtype=self._dtype)

    def _derive(self, values: Floats) -> Floats:
        derived: Floats = self._single.derive(values)
        return derived

    def _parse_actions(self, actions: Any) -> npt.NDArray[Any]:
        parsed = parse_numbers(actions, self.num_envs, len(self._commands))
        return np.clip(parsed.T, -1.0, 1.0, out=self._commands)

    def _advance(self, actions: npt.NDArray[Any]) -> tuple[Floats, npt.NDArray[np.bool_]]:
        single: RowPhysicsEnv[Any] = self._single
        return single.advance(self._state, self._derived, self._arriving(actions))

    def _arriving(self, commands: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What acts in this step, ``Float[A n]``, where that is not what was commanded just now."""
        return commands

    def _observe_state(self) -> Observations:
        return self._state.T.astype(np.float32)
