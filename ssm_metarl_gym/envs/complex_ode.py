"""A number whose rate is a hidden polynomial of a complex action."""

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
from ssm_metarl_gym.tasks.classic import ComplexODETask

__all__ = ["TaskComplexODEEnv"]

Floats = npt.NDArray[np.float64]

# Seconds of a step, the greatest size of the number, and that of the starting one.
_DT: Final = 0.01
_EDGE: Final = 20.0
_START: Final = 1.0
# How near to zero what is rewarded how much; farther away nothing is.
_DISTANCES: Final = np.array([0.05, 0.1, 0.2, 0.5, 2.0])
_REWARDS: Final = np.array([1.0, 1 / 2, 1 / 3, 1 / 4, 0.05, 0.0])
_GOAL_COLOUR: Final = (46, 125, 50)


class TaskComplexODEEnv(RowPhysicsEnv[ComplexODETask], PlaneEnv):
    """A number to be brought to zero by a complex action, of which the agent is not told what it does.

    The *ODE* of AIB, the Actuator Inversion Benchmark (DMA*-SH, Benad et al. 2026, https://arxiv.org/abs/2602.06550),
    written anew from what it does.

    ## Action space
    ``Box(-1, 1, (2,))``: the real and the imaginary part of the action ``a``.

    ## Observation space
    ``Box(-20, 20, (1,))``: the number x; with ``context="visible"`` followed by the parameters that vary in the family,
    scaled to [-1, 1] over the training range.

    ## Dynamics
    ``x += 0.01 Re(c0 a + c1 a^2)``, clipped to [-20, 20].

    ## Rewards
    1, 1/2, 1/3, 1/4 or 0.05 where x after the step is within 0.05, 0.1, 0.2, 0.5 or 2 of zero, else 0.

    ## Starting state
    Uniform in [-1, 1].

    ## Episode end
    The time limit of 200 steps.

    ## Arguments
    * ``contexts``: ``"ranges"``, or ``"aib"`` for AIB's three sets of 20 tasks out of these ranges.
    * ``split``: ``"train"``, ``"interpolation"`` or ``"extrapolation"``.
    * ``context``: ``"hidden"``, or ``"visible"`` to append the parameters to the observation.
    * ``task``: a dictionary of parameters (see ``ComplexODETask``) that every episode has, or ``None`` to draw them.
    * ``switch``: ``{"step": n}`` draws a new task after n steps, ``{"probability": p}`` after any step with probability
      p, ``None`` never.
    * ``on_failure``: ``"terminate"`` or ``"restart"``, as for CartPole; nothing can fail.
    * ``observation_noise``: standard deviation of the noise on the observation.
    * ``warm_up_steps``: steps at the start of every episode that are not rewarded; then the state is drawn anew.

    ``reset(options=...)`` takes ``task`` (a dictionary or a ``ComplexODETask``, for this episode) and ``state``.
    ``info`` holds ``task_id`` and ``task_params`` (those of the *next* step).

    ## Version history
    * v0: initial version.
    """

    edge = 2.5
    task_type = ComplexODETask
    plain_family = "ComplexODE"
    state_limits = (_EDGE,)
    c0 = TaskParameter()
    c1 = TaskParameter()

    def __init__(self, family: Family | None = None, *, contexts: str = "ranges", **kwargs: Any) -> None:
        family = choose_contexts(self.plain_family if family is None else family, contexts)
        space = spaces.Box(-_EDGE, _EDGE, shape=(1,), dtype=np.float32)
        super().__init__(family, observation_space=space, num_actions=2, **kwargs)

    def parse_bounds(self, options: Mapping[str, Any], rows: tuple[int, ...]) -> tuple[Floats, Floats]:
        """An interval around zero: two of ``Float64[*rows 1]``."""
        high = np.full((*rows, 1), _START)
        return -high, high

    def derive(self, values: Floats) -> Floats:
        """The coefficients."""
        return values

    def advance(
        self, state: npt.NDArray[Any], derived: npt.NDArray[Any], commands: npt.NDArray[Any]
    ) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Add the real part of the polynomial."""
        c0, c1 = derived
        real, imaginary = commands
        rate = c0 * real
        rate += c1 * (real * real - imaginary * imaginary)
        rate *= _DT
        state += rate
        np.clip(state, -_EDGE, _EDGE, out=state)
        rewards: Floats = _REWARDS[np.searchsorted(_DISTANCES, np.abs(state[0]))]
        return rewards, np.zeros(state.shape[1], dtype=np.bool_)

    def _paint(self, pygame: Any) -> None:
        """The number on its axis (red), and where it is rewarded (green)."""
        edge = self.edge
        pygame.draw.line(self.screen, LINE_COLOUR, self._pixels(-edge, 0.0), self._pixels(edge, 0.0), width=3)
        for distance, width in zip(_DISTANCES.tolist(), (0.5, 0.4, 0.3, 0.2, 0.1), strict=True):
            for x in (-distance, distance):
                line = self._pixels(x, -width), self._pixels(x, width)
                pygame.draw.line(self.screen, _GOAL_COLOUR, *line, width=2)
        pygame.draw.circle(self.screen, POINT_COLOUR, self._pixels(float(self.state[0]), 0.0), 7)
