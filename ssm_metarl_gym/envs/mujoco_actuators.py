"""The MuJoCo families with hidden motors: Gymnasium's robots, whose motors are reversed, weak, swapped or fail."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np

from ssm_metarl_gym.envs.actuators import Actuators, check_actuator_switch, task_after_switch
from ssm_metarl_gym.envs.arguments import Family
from ssm_metarl_gym.envs.mujoco_imports import AntEnv, HalfCheetahEnv, HopperEnv, ReacherEnv, Walker2dEnv
from ssm_metarl_gym.envs.mujoco_task import MujocoHiddenTask
from ssm_metarl_gym.tasks.actuators import ActuatorTask, actuator_task_type
from ssm_metarl_gym.tasks.families import actuator_family

__all__ = [
    "MujocoActuators",
    "TaskAntActuatorsEnv",
    "TaskHalfCheetahActuatorsEnv",
    "TaskHopperActuatorsEnv",
    "TaskReacherActuatorsEnv",
    "TaskWalker2dActuatorsEnv",
]


class MujocoActuators(MujocoHiddenTask[ActuatorTask]):
    """A hidden map between the actions and the motors of one of Gymnasium's MuJoCo environments.

    It is what :class:`HiddenActuators` makes of the environment, bit for bit, as an environment of its own: with
    ``env.unwrapped.task``, copies that go on in mid-episode and an id. The motors execute ``clip(M a + offset)``, some
    steps late; with the default task, M = 1, it steps bit for bit like Gymnasium's, as long as actions are ``float32``
    within their bounds.

    Subclass it together with the environment, and say the number of motors:

    Example:
        >>> from gymnasium.envs.mujoco.swimmer_v5 import SwimmerEnv
        >>> class TaskSwimmerActuatorsEnv(MujocoActuators, SwimmerEnv):
        ...     task_type = actuator_task_type(2)
        >>> env = TaskSwimmerActuatorsEnv(actuator_family(2, dead=1))
        >>> _, info = env.reset(seed=0)
        >>> int(np.linalg.matrix_rank(env.task.matrix))
        1

    ## Rewards
    Those of Gymnasium's environment; costs of control count what the motors execute.

    ## Arguments
    * ``switch``: ``{"step": n}`` draws a new task after n steps, ``{"probability": p}`` after any step with probability
      p, None never. With ``"motor": g`` beside it, a motor drawn at random has g times its gain from then on in place
      of a new task: 0 for a motor that dies, -1 for one that is reversed, 0.5 for a weak one.
    * The others: see :class:`MujocoHiddenTask`. ``family`` may be any over these tasks, as ``actuator_family`` makes
      them: ``family=actuator_family(6, permutation=True).to_dict()``. None for that of the id or, of a class of your
      own, for ``actuator_family(d)``.
    """

    # The name of the family that an environment has if it is given none.
    plain_family: ClassVar[str | None] = None

    def __init__(self, family: Family | None = None, **kwargs: Any) -> None:
        if family is None:
            family = self.plain_family or actuator_family(self.task_type.num_motors())
        super().__init__(family, **kwargs)

    def _set_action_space(self) -> Any:
        space = super()._set_action_space()  # type: ignore[misc]
        self._actuators = Actuators(space)
        if self._actuators.task_type is not self.task_type:
            num_motors = self._actuators.task_type.num_motors()
            raise ValueError(
                f"task_type must be actuator_task_type({num_motors}), of as many motors as the environment has; "
                f"got {self.task_type.__name__}."
            )
        return space

    def _check_switch(self, switch: Mapping[str, Any] | None) -> dict[str, Any]:
        return check_actuator_switch(switch)

    def _apply_task(self) -> None:
        self._actuators.obey(self.task)

    def _task_after_switch(self) -> ActuatorTask:
        rng = cast("np.random.Generator", self._switch_rng)
        task: ActuatorTask = task_after_switch(self.task, self._switch, self._distribution, rng)
        return task

    def _start(self, start: Any) -> Any:
        self._actuators.clear()
        return super()._start(start)

    def step(self, action: Any) -> Any:
        """Execute what the motors make of the action, then change the task where a switch is due."""
        executed = self._actuators.execute(action)
        try:
            return super().step(executed)
        except BaseException:
            self._actuators.take_back()
            raise


class TaskReacherActuatorsEnv(MujocoActuators, ReacherEnv):
    """Gymnasium's Reacher, whose two motors are reversed, weak, strong or swapped, which the agent is not told.

    The physics of ``Reacher-v5`` under a hidden map: see :class:`MujocoActuators`. Each motor is reversed with
    probability 1/2 and has a gain of 0.6 to 1.4, in extrapolation of 0.4 or 1.7; in half of the tasks they are swapped.

    ## Rewards
    ``-|fingertip - target| - sum(executed^2)``, as in ``Reacher-v5``.
    """

    task_type = actuator_task_type(2)
    plain_family = "ReacherActuators"


class TaskHalfCheetahActuatorsEnv(MujocoActuators, HalfCheetahEnv):
    """Gymnasium's HalfCheetah, whose six motors are reversed, weak or strong, which the agent is not told.

    The physics of ``HalfCheetah-v5`` under a hidden map: see :class:`MujocoActuators`. Each motor is reversed with
    probability 1/2 and has a gain of 0.6 to 1.4, in extrapolation of 0.4 or 1.7.

    ## Rewards
    ``v - 0.1 * sum(executed^2)`` with the forward velocity v (m/s), as in ``HalfCheetah-v5``.
    """

    task_type = actuator_task_type(6)
    plain_family = "HalfCheetahActuators"


class TaskAntActuatorsEnv(MujocoActuators, AntEnv):
    """Gymnasium's Ant, whose eight motors are reversed, weak or strong, which the agent is not told.

    The physics of ``Ant-v5`` under a hidden map: see :class:`MujocoActuators`. Each motor is reversed with probability
    1/2 and has a gain of 0.6 to 1.4, in extrapolation of 0.4 or 1.7.

    ## Rewards
    ``v + 1 - 0.5 * sum(executed^2) - 0.0005 * sum(contact_forces^2)`` with the forward velocity v (m/s); the 1 for each
    step that ends healthy, as in ``Ant-v5``.
    """

    task_type = actuator_task_type(8)
    plain_family = "AntActuators"


class TaskHopperActuatorsEnv(MujocoActuators, HopperEnv):
    """Gymnasium's Hopper, whose three motors are reversed, weak or strong, which the agent is not told.

    The physics of ``Hopper-v5`` under a hidden map: see :class:`MujocoActuators`. Each motor is reversed with
    probability 1/2 and has a gain of 0.6 to 1.4, in extrapolation of 0.4 or 1.7.

    ## Rewards
    ``v + 1 - 0.001 * sum(executed^2)`` with the forward velocity v (m/s); the 1 for each step that ends healthy, as in
    ``Hopper-v5``.
    """

    task_type = actuator_task_type(3)
    plain_family = "HopperActuators"


class TaskWalker2dActuatorsEnv(MujocoActuators, Walker2dEnv):
    """Gymnasium's Walker2d, whose six motors are reversed, weak or strong, which the agent is not told.

    The physics of ``Walker2d-v5`` under a hidden map: see :class:`MujocoActuators`. Each motor is reversed with
    probability 1/2 and has a gain of 0.6 to 1.4, in extrapolation of 0.4 or 1.7.

    ## Rewards
    ``v + 1 - 0.001 * sum(executed^2)`` with the forward velocity v (m/s); the 1 for each step that ends healthy, as in
    ``Walker2d-v5``.
    """

    task_type = actuator_task_type(6)
    plain_family = "Walker2dActuators"
