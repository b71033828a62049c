"""Pendulum with a hidden task."""

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.envs.classic_control.pendulum import DEFAULT_X, DEFAULT_Y, PendulumEnv

from ssm_metarl_gym.checks import as_array, shown
from ssm_metarl_gym.envs.arguments import LARGEST, Family, parse_array
from ssm_metarl_gym.envs.classic import ClassicHiddenTask
from ssm_metarl_gym.envs.hidden_task import DerivedQuantity, TaskParameter
from ssm_metarl_gym.tasks.classic import PendulumTask

__all__ = ["TaskPendulumEnv"]

# The torque that the action 1 commands, N m: that of Gymnasium's Pendulum.
MAX_TORQUE: Final = 2.0
# The greatest angular velocity, rad/s: Gymnasium's.
MAX_SPEED: Final = 8.0

Floats = npt.NDArray[np.float64]


class TaskPendulumEnv(ClassicHiddenTask[PendulumTask], PendulumEnv):
    """Gymnasium's Pendulum, with physics that are drawn anew at every reset and that the agent is not told.

    With the default task it steps bit for bit like ``Pendulum-v1`` under twice the action. Physics and ranges: Packer
    et al. 2018, https://arxiv.org/abs/1810.12282.

    ## Action space
    ``Box(-1, 1, (1,))``: the torque as a fraction of 2 N m. (Gymnasium's own takes the torque itself; a normalised
    action is what SB3 and both environment checkers ask for.) The torque that acts is ``polarity * gain`` times that.

    ## Observation space
    ``Box`` of the cosine and the sine of the angle (0 is upright) and the angular velocity (rad/s, at most 8); with
    ``context="visible"`` followed by the parameters that vary in the family, scaled to [-1, 1] over the training
    range.

    ## Rewards
    ``-(angle^2 + 0.1 * velocity^2 + 0.001 * torque^2)``, with the torque that acts, before the step.

    ## Starting state
    Angle uniform in [-pi, pi], angular velocity in [-1, 1], or within the options ``x_init`` and ``y_init``.

    ## Episode end
    The time limit of 200 steps.

    ## Arguments
    * ``split``: ``"train"``, ``"interpolation"`` (the training ranges, from a stream of its own) or
      ``"extrapolation"``.
    * ``context``: ``"hidden"``, or ``"visible"`` to append the parameters to the observation.
    * ``task``: a dictionary of parameters (see ``PendulumTask``) that every episode has, or ``None`` to draw them.
    * ``switch``: ``{"step": n}`` flips the polarity after n steps, ``{"probability": p}`` after any step with
      probability p, ``None`` never.
    * ``on_failure``: ``"terminate"`` or ``"restart"``, as for CartPole; a pendulum cannot fail.
    * ``observation_noise``: standard deviation of the noise on each component of what is seen of the state.
    * ``warm_up_steps``: steps at the start of every episode that are not rewarded; then the state is drawn anew.

    ``reset(options=...)`` takes ``task`` (a dictionary or a ``PendulumTask``, for this episode), ``state`` (angle and
    angular velocity, at most 8) and Gymnasium's ``x_init`` and ``y_init`` (at most 8). ``info`` holds ``task_id`` and
    ``task_params`` (those of the *next* step).

    ## Version history
    * v0: initial version.
    """

    # Reset options under which random actions visit the states that matter: any angle, speeds up to the limit.
    wide_start: ClassVar[dict[str, Any]] = {"x_init": np.pi, "y_init": 8.0}

    task_type = PendulumTask
    plain_family = "Pendulum"
    state_limits = (LARGEST, MAX_SPEED)
    bound_options = ("x_init", "y_init")
    polarity = TaskParameter()
    gain = TaskParameter()
    g = TaskParameter()
    m = TaskParameter()
    l = TaskParameter()  # noqa: E741 - Gymnasium's own name for it
    max_torque = DerivedQuantity(lambda env: MAX_TORQUE * env.gain)

    def __init__(self, family: Family | None = None, **kwargs: Any) -> None:
        super().__init__(family, **kwargs)
        self.action_space = spaces.Box(-1.0, 1.0, shape=(1,), dtype=np.float32)

    def parse_bounds(self, options: Mapping[str, Any], rows: tuple[int, ...]) -> tuple[Floats, Floats]:
        """The options ``x_init`` and ``y_init`` of a reset, as bounds of the state: two of ``Float64[*rows 2]``."""
        high = np.empty((*rows, 2))
        for i, (name, default) in enumerate((("x_init", DEFAULT_X), ("y_init", DEFAULT_Y))):
            bound = options.get(name, default)
            try:
                high[..., i] = parse_array(bound)
            except ValueError:  # of another shape
                high[..., i] = np.nan
            if not ((high[..., i] >= 0.0) & (high[..., i] <= self.state_limits[i])).all():
                each = f", or one for each of the {rows[0]} rows" if rows else ""
                rule = f"must be a finite number >= 0{each}, of at most {self.state_limits[i]:g}"
                raise ValueError(f"the option {name!r} {rule}; got {shown(bound)}.")
        return -high, high

    def _parse_action(self, action: Any) -> Floats:
        action = as_array(action)
        if action.shape != (1,) or action.dtype.kind not in "iuf" or not np.isfinite(action).all():
            raise ValueError(f"an action must be one finite number in an array of shape (1,); got {shown(action)}.")
        # In double precision, so that the same action has the same effect in every type of numbers; one outside
        # [-1, 1] counts as the nearest bound, as in Gymnasium's.
        command: Floats = np.clip(action.astype(np.float64), -1.0, 1.0)
        return command

    def _advance(self, action: Floats) -> tuple[float, bool]:
        torque = action * (MAX_TORQUE * self.task.gain * self.task.polarity)
        _, reward, *_ = PendulumEnv.step(self, torque)
        return float(reward), False

    def _observe_state(self) -> npt.NDArray[np.float32]:
        observation: npt.NDArray[np.float32] = self._get_obs()
        return observation

    def _draw_state(self) -> None:
        super()._draw_state()
        self.last_u = None
