"""Many points with hidden goals, moved at once."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.envs.arguments import parse_numbers
from ssm_metarl_gym.envs.hidden_task_vector import HiddenTaskVectorEnv, Observations
from ssm_metarl_gym.envs.point_navigation import GOAL_RADIUS, MAX_SPEED, TaskPointNavigationEnv

__all__ = ["TaskPointNavigationVectorEnv"]


class TaskPointNavigationVectorEnv(HiddenTaskVectorEnv):
    """n points, each with a goal of its own: what ``gym.make_vec("ssm_metarl/PointNavigation-v0", num_envs=n)`` makes.

    Every row is equal (``==``) to a :class:`TaskPointNavigationEnv`, whose documentation holds spaces, rewards and
    options, given the same task, states and actions.

    Example:
        >>> envs = gym.make_vec("ssm_metarl/PointNavigation-v0", num_envs=2, task={"goal_x": [0.3, -0.1], "goal_y": 0})
        >>> observations, infos = envs.reset(seed=0)
        >>> envs.step(np.array([[1.0, 0.0], [-1.0, 0.0]]))[2]
        array([False,  True])

    Arguments and options of a reset: see :class:`HiddenTaskVectorEnv`.
    """

    single_env_type = TaskPointNavigationEnv

    def _allocate(self) -> None:
        self._scratch = np.empty((2, self.num_envs), dtype=self._dtype)

    def _derive(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return values

    def _parse_actions(self, actions: Any) -> npt.NDArray[Any]:
        velocities: npt.NDArray[Any] = parse_numbers(actions, self.num_envs, 2).T
        return velocities

    def _advance(self, actions: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        # Operation by operation as in the single environment, so that every bit is the same.
        moves = np.clip(actions, -1.0, 1.0, out=self._scratch)
        moves *= MAX_SPEED
        self._state += moves
        for position, goal, away in zip(self._state, self._derived, self._scratch, strict=True):
            np.subtract(position, goal, out=away)
        squares = np.square(self._scratch, out=self._scratch)
        squared_distances = squares[0] + squares[1]
        reached: npt.NDArray[np.bool_] = squared_distances <= GOAL_RADIUS**2
        return np.negative(squared_distances, dtype=np.float64), reached

    def _observe_state(self) -> Observations:
        return self._state.T.astype(np.float32)
