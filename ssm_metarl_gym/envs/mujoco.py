"""The MuJoCo families: Gymnasium's locomotion environments with a hidden target or hidden physics."""

import copy
import math
from collections.abc import Callable
from typing import Any, Final

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.checks import as_array, shown
from ssm_metarl_gym.envs.arguments import Family, SomeTask, check_reset_options
from ssm_metarl_gym.envs.hidden_task import HiddenTask
from ssm_metarl_gym.envs.mujoco_imports import AntEnv, HalfCheetahEnv, HopperEnv, Walker2dEnv, mujoco
from ssm_metarl_gym.tasks.mujoco import AntDirTask, HalfCheetahDirTask, HalfCheetahVelTask, HopperTask, Walker2dTask

__all__ = ["TaskAntDirEnv", "TaskHalfCheetahDirEnv", "TaskHalfCheetahVelEnv", "TaskHopperEnv", "TaskWalker2dEnv"]

Floats = npt.NDArray[np.float64]

# What a parameter "<part>_<quantity>" of a task multiplies: an array of the model and where the part is in it.
_QUANTITIES: Final[dict[str, tuple[str, Callable[[Any, str], int]]]] = {
    "mass": ("body_mass", lambda model, body: int(model.body(body).id)),
    "inertia": ("body_inertia", lambda model, body: int(model.body(body).id)),
    "damping": ("dof_damping", lambda model, joint: int(model.joint(f"{joint}_joint").dofadr[0])),
    "friction": ("geom_friction", lambda model, geom: int(model.geom(geom if geom == "floor" else f"{geom}_geom").id)),
}


class MujocoHiddenTask(HiddenTask[SomeTask]):
    """A hidden task in one of Gymnasium's MuJoCo environments: what all of these families share.

    ## Action and observation space
    Those of Gymnasium's environment; with ``context="visible"`` the parameters that vary in the family follow the
    observation, scaled to [-1, 1] over the training range (multipliers: their logarithms).

    ## Episode end
    The time limit (of the families of MAML, ProMP and PEARL 200 steps, as in PEARL's code); termination as in
    Gymnasium's environment.

    ## Arguments
    * ``family``: the distributions of the tasks, by name or as :class:`HiddenTask` takes them.
    * ``split``: ``"train"``, ``"interpolation"`` (the training range, from a stream of its own) or, where the family
      has one, ``"extrapolation"``.
    * ``context``: ``"hidden"``, or ``"visible"`` to append the parameters to the observation.
    * ``task``: a dictionary of parameters that every episode has, or ``None`` to draw them.
    * ``switch``: where a parameter is a sign, ``{"step": n}`` flips it after n steps, ``{"probability": p}`` after any
      step with probability p; ``None`` never.
    * ``render_mode`` and every other argument: those of Gymnasium's environment (``width``, ``reset_noise_scale``,
      ``terminate_when_unhealthy``, ...). To render without a display, set the environment variable ``MUJOCO_GL=egl``.

    ``reset(options=...)`` takes ``task`` (a dictionary or a task, for this episode). ``info`` holds ``task_id`` and
    ``task_params`` (those of the *next* step), and what Gymnasium's holds. To change the task during an episode, assign
    ``env.unwrapped.task``.

    ## Vectorised use
    ``gym.make_vec(id, num_envs=8, vectorization_mode="sync")``: each row its own task.
    """

    mujoco_renderer: Any

    def _parse_start(self, options: dict[str, Any]) -> dict[str, Any]:
        check_reset_options(options, ("task",))
        return options

    def step(self, action: Any) -> tuple[Floats, Any, bool, bool, dict[str, Any]]:
        """Apply the torques for one step. The motors clip them, the cost counts them as given, as Gymnasium's do."""
        action = as_array(action)
        if action.shape != self.action_space.shape or action.dtype.kind not in "iuf" or not np.isfinite(action).all():
            raise ValueError(
                f"an action must be finite numbers in an array of shape {self.action_space.shape}; got {shown(action)}."
            )
        if self._task_rng is None:
            raise gym.error.ResetNeeded("reset() must be called before step().")
        return super().step(action)

    def __getstate__(self) -> dict[str, Any]:
        # Gymnasium pickles the constructor's arguments alone; a copy that goes on needs the rest, except for windows.
        renderer = copy.copy(self.mujoco_renderer)
        renderer.viewer, renderer._viewers = None, {}
        return super().__getstate__() | {"mujoco_renderer": renderer}


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


class MujocoHiddenModel(MujocoHiddenTask[SomeTask]):
    """A hidden task whose parameters multiply quantities of the MuJoCo model, always those of the model file.

    The masses and rotational inertias of the bodies, the damping of the joints and the friction of the geoms (the floor
    is one) have a multiplier each. With the default task, all multipliers 1, it steps bit for bit like Gymnasium's.

    The training ranges are those of rand_param_envs (https://github.com/dennisl88/rand_param_envs), which ProMP
    (Rothfuss et al. 2019, https://arxiv.org/abs/1810.06784) and PEARL (Rakelly et al. 2019,
    https://arxiv.org/abs/1903.08254) used: ``1.5^U(-3, 3)`` for mass, inertia and friction, ``1.3^U(-3, 3)`` for
    damping. Extrapolation is this project's: all exponents at once in [-4, -3] or [3, 4]. Differences to
    rand_param_envs: one multiplier for the three principal moments of a body and one for the three friction
    coefficients of a geom, of which motion in a plane feels a single one each; and MuJoCo's derived constants
    (``mj_setConst``) always belong to the present masses, which rand_param_envs left to the nominal ones.

    ## Rewards
    Those of Gymnasium's: ``v + 1 - 0.001 * sum(action^2)`` with the forward velocity v (m/s); the 1 for each step that
    ends healthy.
    """

    model: Any
    data: Any

    def _initialize_simulation(self) -> tuple[Any, Any]:
        self.model, self.data = super()._initialize_simulation()  # type: ignore[misc]
        self._nominal = {field: getattr(self.model, field).copy() for field, _ in _QUANTITIES.values()}
        self._places = []
        for name in self.task_type.parameter_names():
            part, _, quantity = name.rpartition("_")
            field, find = _QUANTITIES[quantity]
            self._places.append((field, find(self.model, part)))
        self._scratch = mujoco.MjData(self.model)
        return self.model, self.data

    def _apply_task(self) -> None:
        for field, nominal in self._nominal.items():
            getattr(self.model, field)[:] = nominal
        for (field, place), multiplier in zip(self._places, self.task.to_dict().values(), strict=True):
            getattr(self.model, field)[place] *= multiplier
        # What MuJoCo derives from masses and inertias (e.g. the weights of contacts). This moves the data that it is
        # given to the reference position, so these are not those of the running episode.
        mujoco.mj_setConst(self.model, self._scratch)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        del state["_scratch"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._scratch = mujoco.MjData(self.model)


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
