"""Many point masses with hidden motors, moved at once."""

from typing import Any

import numpy.typing as npt

from ssm_metarl_gym.envs.point_actuators import LateCommands, TaskPointActuatorsEnv
from ssm_metarl_gym.envs.row_physics_vector import RowPhysicsVectorEnv

__all__ = ["TaskPointActuatorsVectorEnv"]


class TaskPointActuatorsVectorEnv(RowPhysicsVectorEnv):
    """n points, each with a map of its own: what ``gym.make_vec("ssm_metarl/PointActuators-v0", num_envs=n)`` makes.

    Every row is equal (``==``) to a :class:`TaskPointActuatorsEnv`, whose documentation holds spaces, rewards and
    options, given the same task, states and actions.

    Example:
        >>> envs = gym.make_vec("ssm_metarl/PointActuators-v0", num_envs=1024, dimension=3, switch={"step": 50})
        >>> observations, infos = envs.reset(seed=0)
        >>> observations.shape, envs.unwrapped.tasks
        ((1024, 6), TaskBatch(ActuatorTask3, num_tasks=1024))

    Arguments and options of a reset: see :class:`HiddenTaskVectorEnv`.
    """

    single_env_type = TaskPointActuatorsEnv

    def _allocate(self) -> None:
        super()._allocate()
        self._late = LateCommands(self.max_episode_steps)

    def _arriving(self, commands: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return self._late.send(commands, self._derived[-1], self._elapsed)
