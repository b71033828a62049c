"""Many point masses with hidden motors, moved at once."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.envs.actuators import check_actuator_switch, fail_motors
from ssm_metarl_gym.envs.point_actuators import LateCommands, TaskPointActuatorsEnv
from ssm_metarl_gym.envs.row_physics_vector import RowPhysicsVectorEnv
from ssm_metarl_gym.tasks.task import TaskBatch

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

    def _check_switch(self, switch: Mapping[str, Any] | None) -> dict[str, Any]:
        return check_actuator_switch(switch, self.num_envs)

    def _change_at(self, switch: Any) -> Callable[[TaskBatch, np.random.Generator], TaskBatch] | None:
        return partial(fail_motors, gain=float(switch["motor"])) if "motor" in (switch or ()) else None

    def _arriving(self, commands: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return self._late.send(commands, self._derived[-1], self._elapsed)
