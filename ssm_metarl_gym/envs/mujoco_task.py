"""What all families in Gymnasium's MuJoCo environments share."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.checks import as_array, shown
from ssm_metarl_gym.envs.arguments import SomeTask, check_reset_options
from ssm_metarl_gym.envs.hidden_task import HiddenTask

__all__ = ["MujocoHiddenTask"]

Floats = npt.NDArray[np.float64]


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
