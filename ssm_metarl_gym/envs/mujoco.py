"""The MuJoCo families with a hidden target or hidden physics, on Gymnasium's locomotion environments."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.envs.arguments import Family
from ssm_metarl_gym.envs.mujoco_imports import AntEnv, HalfCheetahEnv, HopperEnv, Walker2dEnv
from ssm_metarl_gym.envs.mujoco_models import MujocoHiddenModel
from ssm_metarl_gym.envs.mujoco_task import MujocoHiddenTask
from ssm_metarl_gym.tasks.mujoco import AntDirTask, HalfCheetahDirTask, HalfCheetahVelTask, HopperTask, Walker2dTask

__all__ = ["TaskAntDirEnv", "TaskHalfCheetahDirEnv", "TaskHalfCheetahVelEnv", "TaskHopperEnv", "TaskWalker2dEnv"]

Floats = npt.NDArray[np.float64]


class TaskHalfCheetahVelEnv(MujocoHiddenTask[HalfCheetahVelTask], HalfCheetahEnv):
    """Gymnasium's HalfCheetah, rewarded for running at a velocity that the agent is not told.

    The dynamics of ``HalfCheetah-v5``, bit for bit, and a hidden target velocity (m/s): drawn from U(0, 3) for the
    split ``train``, as by ProMP (Rothfuss et al. 2019, https://arxiv.org/abs/1810.06784) and PEARL (Rakelly et al.
    2019, https://arxiv.org/abs/1903.08254), and from U(3, 4) for ``extrapolation``. MAML (Finn et al. 2017,
    https://arxiv.org/abs/1703.03400), where the family comes from, drew from U(0, 2):
    ``family={"task_type": "HalfCheetahVelTask", "parameters": {"velocity": {"uniform": [[0, 2]]}}}``.

    Only the reward tells the tasks apart: an agent that shall find out needs it as an input.

    ## Rewards
    ``-|v - velocity| - 0.05 * sum(action^2)`` with the forward velocity v (m/s), as in ProMP's and PEARL's code.
    ``info["reward_forward"]`` is the first term and ``info["reward_ctrl"]`` the second.

    Spaces, arguments and the rest: see :class:`MujocoHiddenTask`.
    """

    task_type = HalfCheetahVelTask

    def __init__(self, family: Family = "HalfCheetahVel", *, ctrl_cost_weight: float = 0.05, **kwargs: Any) -> None:
        super().__init__(family, ctrl_cost_weight=ctrl_cost_weight, **kwargs)

    def _get_rew(self, x_velocity: float, action: Floats) -> Any:
        return super()._get_rew(-abs(x_velocity - self.task.velocity), action)


class TaskHalfCheetahDirEnv(MujocoHiddenTask[HalfCheetahDirTask], HalfCheetahEnv):
    """Gymnasium's HalfCheetah, rewarded for running forwards or backwards, which the agent is not told.

    The dynamics of ``HalfCheetah-v5``, bit for bit, and a hidden direction, +1 or -1 with equal probability: MAML (Finn
    et al. 2017, https://arxiv.org/abs/1703.03400), and as here ProMP (Rothfuss et al. 2019,
    https://arxiv.org/abs/1810.06784) and PEARL (Rakelly et al. 2019, https://arxiv.org/abs/1903.08254). There are no
    other tasks, hence no split ``extrapolation``.

    Only the reward tells the tasks apart: an agent that shall find out needs it as an input.

    ## Rewards
    ``direction * v - 0.05 * sum(action^2)`` with the forward velocity v (m/s), as in ProMP's and PEARL's code.
    ``info["reward_forward"]`` is the first term and ``info["reward_ctrl"]`` the second.

    Spaces, arguments and the rest: see :class:`MujocoHiddenTask`.
    """

    task_type = HalfCheetahDirTask

    def __init__(self, family: Family = "HalfCheetahDir", *, ctrl_cost_weight: float = 0.05, **kwargs: Any) -> None:
        super().__init__(family, ctrl_cost_weight=ctrl_cost_weight, **kwargs)

    def _get_rew(self, x_velocity: float, action: Floats) -> Any:
        return super()._get_rew(self.task.direction * x_velocity, action)


class TaskAntDirEnv(MujocoHiddenTask[AntDirTask], AntEnv):
    """Gymnasium's Ant, rewarded for running in a direction of the plane that the agent is not told.

    The dynamics of ``Ant-v5``, bit for bit, and a hidden direction, an angle drawn from U(0, 2 pi): ProMP (Rothfuss et
    al. 2019, https://arxiv.org/abs/1810.06784; "AntRandDirec2D") and PEARL's code (Rakelly et al. 2019,
    https://arxiv.org/abs/1903.08254; "ant-dir"). These are all directions, hence there is no split ``extrapolation``.
    PEARL's paper and MAML (Finn et al. 2017, https://arxiv.org/abs/1703.03400) knew forwards and backwards only:
    ``family=TaskDistribution(AntDirTask, {"direction": Choice(0, math.pi)}).to_dict()``.

    Only the reward tells the tasks apart: an agent that shall find out needs it as an input.

    ## Rewards
    ``vx * cos(direction) + vy * sin(direction) - 0.5 * sum(action^2) - 0.0005 * sum(contact_forces^2) + 1`` with the
    velocity (vx, vy) of the torso (m/s) and the contact forces clipped to [-1, 1], as in ProMP's and PEARL's code, save
    that, as in ``Ant-v5``, the step that ends an episode unhealthily does not earn the 1. With the direction 0 it is
    the reward of ``Ant-v5``. ``info`` holds the terms: ``reward_forward``, ``reward_ctrl``, ``reward_contact`` and
    ``reward_survive``.

    Spaces, arguments and the rest: see :class:`MujocoHiddenTask`.
    """

    task_type = AntDirTask

    def __init__(self, family: Family = "AntDir", **kwargs: Any) -> None:
        super().__init__(family, **kwargs)

    def do_simulation(self, ctrl: Floats, n_frames: int) -> None:
        """Simulate a step, and measure how fast the torso moves in the direction of the task (m/s)."""
        torso = self.data.body(self._main_body)
        before = torso.xpos[:2].copy()
        super().do_simulation(ctrl, n_frames)
        velocity_x, velocity_y = (torso.xpos[:2] - before) / self.dt
        angle = self.task.direction
        self._velocity_along = velocity_x * math.cos(angle) + velocity_y * math.sin(angle)

    def _get_rew(self, x_velocity: float, action: Floats) -> Any:
        return super()._get_rew(self._velocity_along, action)


class TaskHopperEnv(MujocoHiddenModel[HopperTask], HopperEnv):
    """Gymnasium's Hopper, with physics that are drawn anew at every reset and that the agent is not told.

    16 multipliers (see ``HopperTask``) of the physics of ``Hopper-v5``: four bodies, three joints and five geoms.

    Ranges, rewards and differences to others: see :class:`MujocoHiddenModel`; spaces, arguments and the rest: see
    :class:`MujocoHiddenTask`.
    """

    task_type = HopperTask

    def __init__(self, family: Family = "HopperParams", **kwargs: Any) -> None:
        super().__init__(family, **kwargs)


class TaskWalker2dEnv(MujocoHiddenModel[Walker2dTask], Walker2dEnv):
    """Gymnasium's Walker2d, with physics that are drawn anew at every reset and that the agent is not told.

    28 multipliers (see ``Walker2dTask``) of the physics of ``Walker2d-v5``: seven bodies, six joints and eight geoms. A
    step is 4 frames of 0.002 s, as in ``Walker2d-v5``, where it was 5 in rand_param_envs.

    Ranges, rewards and differences to others: see :class:`MujocoHiddenModel`; spaces, arguments and the rest: see
    :class:`MujocoHiddenTask`.
    """

    task_type = Walker2dTask

    def __init__(self, family: Family = "Walker2dParams", **kwargs: Any) -> None:
        super().__init__(family, **kwargs)
