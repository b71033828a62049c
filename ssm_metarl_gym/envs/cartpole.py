"""CartPole with a hidden task."""

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from ssm_metarl_gym.checks import shown
from ssm_metarl_gym.envs.arguments import LARGEST, Family, parse_array
from ssm_metarl_gym.envs.classic import ClassicHiddenTask
from ssm_metarl_gym.envs.hidden_task import DerivedQuantity, TaskParameter, observable_space
from ssm_metarl_gym.tasks.classic import CartPoleTask

__all__ = ["TaskCartPoleEnv"]

# What a fall costs in a trial. With the reward of 1 for the step itself, a fall is rewarded with -9.
FAILURE_PENALTY: Final = 10.0
# The options of a reset that bound the starting state, and what they are by default.
_DEFAULT_BOUNDS: Final = (("low", -0.05), ("high", 0.05))

Floats = npt.NDArray[np.float64]


class TaskCartPoleEnv(ClassicHiddenTask[CartPoleTask], CartPoleEnv):
    """Gymnasium's CartPole, with physics that are drawn anew at every reset and that the agent is not told.

    With the default task it steps bit for bit like ``CartPole-v1``. Physics and ranges: Packer et al. 2018,
    https://arxiv.org/abs/1810.12282.

    ## Action space
    ``Discrete(2)``: push the cart to the left (0) or to the right (1); the other way round where ``polarity`` is -1.

    ## Observation space
    ``Box`` of cart position (m), cart velocity (m/s), pole angle (rad) and pole angular velocity (rad/s); with
    ``context="visible"`` followed by the parameters that vary in the family, scaled to [-1, 1] over the training
    range. It has no bounds: a short pole passes in one step what Gymnasium's environment gives as bound of the angle.

    ## Rewards
    1 for every step; with ``sutton_barto_reward=True`` 0, and -1 for a step in which the pole falls or the cart leaves
    the track. In a trial such a step costs 10 more.

    ## Starting state
    Every component uniform in [-0.05, 0.05], or within the options ``low`` and ``high``.

    ## Episode end
    The pole leans more than 12 degrees or the cart is more than 2.4 m from the centre (not in a trial), or the time
    limit: 500 steps for ``CartPole-v0``, 200 for ``CartPolePolarity-v0`` and ``CartPoleSwitch-v0``.

    ## Arguments
    * ``split``: ``"train"``, ``"interpolation"`` (the training ranges, from a stream of its own) or
      ``"extrapolation"``.
    * ``context``: ``"hidden"``, or ``"visible"`` to append the parameters to the observation.
    * ``task``: a dictionary of parameters (see ``CartPoleTask``) that every episode has, or ``None`` to draw them.
    * ``switch``: ``{"step": n}`` flips the polarity after n steps, ``{"probability": p}`` after any step with
      probability p, ``None`` never.
    * ``on_failure``: ``"terminate"``, or ``"restart"`` for a trial: a fall costs a penalty of 10 and re-draws the
      state, the task stays, and only the time limit ends the episode.
    * ``observation_noise``: standard deviation of the noise on each component of what is seen of the state.
    * ``warm_up_steps``: steps at the start of every episode that are not rewarded; then the state is drawn anew.
    * ``sutton_barto_reward``: as in Gymnasium.

    ``reset(options=...)`` takes ``task`` (a dictionary or a ``CartPoleTask``, for this episode), ``state`` (the four
    components) and Gymnasium's ``low`` and ``high`` (a number, or one for each component). ``info`` holds ``task_id``,
    ``task_params`` (those of the *next* step) and ``restarted`` (the observation starts a new attempt of a trial).

    ## Version history
    * v0: initial version.
    """

    # Reset options under which random actions visit the states that matter: x +-2, angle +-0.18, speeds +-1.5.
    wide_start: ClassVar[dict[str, Any]] = {"low": [-2.0, -1.5, -0.18, -1.5], "high": [2.0, 1.5, 0.18, 1.5]}

    task_type = CartPoleTask
    plain_family = "CartPole"
    state_limits = (LARGEST, LARGEST, LARGEST, LARGEST)
    bound_options = ("low", "high")
    failure_penalty = FAILURE_PENALTY
    polarity = TaskParameter()
    gravity = TaskParameter()
    masscart = TaskParameter()
    masspole = TaskParameter()
    length = TaskParameter()
    force_mag = TaskParameter()
    total_mass = DerivedQuantity(lambda env: env.masspole + env.masscart)
    polemass_length = DerivedQuantity(lambda env: env.masspole * env.length)

    def __init__(self, family: Family | None = None, **kwargs: Any) -> None:
        super().__init__(family, **kwargs)
        self.observation_space = observable_space(spaces.Box(-np.inf, np.inf, (4,), np.float32), self._context)

    def parse_bounds(self, options: Mapping[str, Any], rows: tuple[int, ...]) -> tuple[Floats, Floats]:
        """The options ``low`` and ``high`` of a reset, each a number or as many as fit: two of ``Float64[*rows 4]``."""
        low, high = (_parse_bound(name, options.get(name, default), rows) for name, default in _DEFAULT_BOUNDS)
        if np.any(low > high):
            raise ValueError(f"the option 'low' must not be greater than 'high'; got {low} and {high}.")
        return low, high

    def _parse_action(self, action: Any) -> Any:
        if not self.action_space.contains(action):
            raise ValueError(f"an action must be 0 or 1; got {shown(action)}.")
        return action

    def _advance(self, action: Any) -> tuple[float, bool]:
        push = action if self.task.polarity > 0 else 1 - action
        _, reward, failed, _, _ = CartPoleEnv.step(self, push)
        return reward, failed

    def _observe_state(self) -> npt.NDArray[np.float32]:
        return np.array(self.state, dtype=np.float32)

    def _draw_state(self) -> None:
        super()._draw_state()
        self.steps_beyond_terminated = None


def _parse_bound(name: str, bound: Any, rows: tuple[int, ...]) -> Floats:
    try:
        parsed = np.broadcast_to(parse_array(bound), (*rows, 4))
    except ValueError:  # of another shape
        parsed = np.full(4, np.nan)
    if not (np.abs(parsed) <= LARGEST).all():
        each = f", or four for each of the {rows[0]} rows" if rows else ""
        rule = f"must be a finite number or four of them{each}, of at most {LARGEST:g}"
        raise ValueError(f"the option {name!r} {rule}; got {shown(bound)}.")
    return parsed
