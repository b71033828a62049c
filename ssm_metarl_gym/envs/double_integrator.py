"""A mass that a hidden force pushes through the plane."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from ssm_metarl_gym.envs.arguments import Family
from ssm_metarl_gym.envs.hidden_task import TaskParameter
from ssm_metarl_gym.envs.plane import LINE_COLOUR, POINT_COLOUR, PlaneEnv
from ssm_metarl_gym.envs.row_physics import RowPhysicsEnv
from ssm_metarl_gym.tasks.aib import choose_contexts
from ssm_metarl_gym.tasks.classic import DoubleIntegratorTask

__all__ = ["TaskDoubleIntegratorEnv"]

Floats = npt.NDArray[np.float64]

# Seconds of a step, and the greatest size of each coordinate and of each velocity.
_DT: Final = 0.1
_EDGE: Final = 1.0
# The distance from the centre that is rewarded, and how far from it each coordinate is at the start, at least.
_RADIUS: Final = 0.1
_LEAST_START: Final = 0.8
_GOAL_COLOUR: Final = (46, 125, 50)


class TaskDoubleIntegratorEnv(RowPhysicsEnv[DoubleIntegratorTask], PlaneEnv):
    """A mass in the plane, to be brought to the centre and kept there by a force whose effect the agent is not told.

    The *DI* and *DI-friction* of AIB, the Actuator Inversion Benchmark (DMA*-SH, Benad et al. 2026,
    https://arxiv.org/abs/2602.06550), written anew from what they do.

    ## Action space
    ``Box(-1, 1, (2,))``: the force in x and y, times the hidden ``sign``.

    ## Observation space
    ``Box(-1, 1, (4,))``: position x and y, velocity x and y; with ``context="visible"`` followed by the parameters that
    vary in the family, scaled to [-1, 1] over the training range.

    ## Dynamics
    ``position += 0.1 velocity``, then ``velocity = (1 - 0.1 friction / mass) velocity + 0.1 force / mass``; each
    component of both is clipped to [-1, 1].

    ## Rewards
    1 within 0.1 of the centre after the step, else 0.

    ## Starting state
    At rest, each coordinate uniform in [-1, -0.8] or [0.8, 1].

    ## Episode end
    The time limit of 100 steps.

    ## Arguments
    * ``contexts``: ``"ranges"``, or ``"aib"`` for AIB's three sets of 20 tasks out of these ranges.
    * ``split``: ``"train"``, ``"interpolation"`` or ``"extrapolation"``.
    * ``context``: ``"hidden"``, or ``"visible"`` to append the parameters to the observation.
    * ``task``: a dictionary of parameters (see ``DoubleIntegratorTask``) that every episode has, or ``None`` to draw
      them.
    * ``switch``: ``{"step": n}`` flips the sign after n steps, ``{"probability": p}`` after any step with probability
      p, ``None`` never.
    * ``on_failure``: ``"terminate"`` or ``"restart"``, as for CartPole; nothing can fail.
    * ``observation_noise``: standard deviation of the noise on each component of the observation.
    * ``warm_up_steps``: steps at the start of every episode that are not rewarded; then the state is drawn anew.

    ``reset(options=...)`` takes ``task`` (a dictionary or a ``DoubleIntegratorTask``, for this episode) and ``state``.
    ``info`` holds ``task_id`` and ``task_params`` (those of the *next* step).

    ## Version history
    * v0: initial version.
    """

    edge = 1.1
    task_type = DoubleIntegratorTask
    plain_family = "DoubleIntegrator"
    state_limits = (_EDGE,) * 4
    sign = TaskParameter()
    mass = TaskParameter()
    friction = TaskParameter()

    def __init__(self, family: Family | None = None, *, contexts: str = "ranges", **kwargs: Any) -> None:
        family = choose_contexts(self.plain_family if family is None else family, contexts)
        space = spaces.Box(-_EDGE, _EDGE, shape=(4,), dtype=np.float32)
        super().__init__(family, observation_space=space, num_actions=2, **kwargs)

    def parse_bounds(self, options: Mapping[str, Any], rows: tuple[int, ...]) -> tuple[Floats, Floats]:
        """The square of the positions, at rest: two of ``Float64[*rows 4]``."""
        high = np.zeros((*rows, 4))
        high[..., :2] = _EDGE
        return -high, high

    def start_states(self, drawn: Floats) -> Floats:
        """Positions of any size become positions far from the axes, on the same side."""
        far = np.copysign(_LEAST_START + (_EDGE - _LEAST_START) * np.abs(drawn), drawn)
        return np.where(drawn == 0.0, 0.0, far)

    def derive(self, values: Floats) -> Floats:
        """What velocity is left after a step, and what is added to it by the command 1."""
        sign, mass, friction = values
        return np.stack([1.0 - _DT * friction / mass, _DT * sign / mass])

    def advance(
        self, state: npt.NDArray[Any], derived: npt.NDArray[Any], commands: npt.NDArray[Any]
    ) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Move the masses with their old velocities, then change these."""
        kept, push = derived
        positions, velocities = state[:2], state[2:]
        positions += _DT * velocities
        velocities *= kept
        commands *= push
        velocities += commands
        np.clip(state, -_EDGE, _EDGE, out=state)
        x, y = np.square(positions, out=commands)
        return (x + y <= _RADIUS**2).astype(np.float64), np.zeros(state.shape[1], dtype=np.bool_)

    def _paint(self, pygame: Any) -> None:
        """The mass (red) with its velocity, and the place that is rewarded (green)."""
        x, y, speed_x, speed_y = self.state
        pygame.draw.circle(self.screen, _GOAL_COLOUR, self._pixels(0.0, 0.0), self._lengths(_RADIUS), width=3)
        pygame.draw.line(self.screen, LINE_COLOUR, self._pixels(x, y), self._pixels(x + speed_x, y + speed_y), width=3)
        pygame.draw.circle(self.screen, POINT_COLOUR, self._pixels(x, y), round(7 * self.mass ** (1 / 3)))
