"""Physics that are told for n rows at once, of which a single environment is one and a batched one many."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.checks import as_array, shown
from ssm_metarl_gym.envs.arguments import SomeTask
from ssm_metarl_gym.envs.classic import ClassicHiddenTask
from ssm_metarl_gym.tasks.task import TaskBatch

__all__ = ["RowPhysicsEnv"]

Floats = npt.NDArray[np.float64]


class RowPhysicsEnv(ClassicHiddenTask[SomeTask]):
    """A hidden task in physics of a few numbers, told once for single and batched environments: equal by construction.

    A subclass says what the physics compute from the tasks alone (:meth:`derive`), and how a step moves the states
    (:meth:`advance`). All operations must act on each row by itself and be rounded in the same way wherever a row
    stands: sums and products, roots, comparisons. The state is what is observed.
    """

    def derive(self, values: Floats) -> Floats:
        """What the physics compute from the parameters ``Float64[P k]`` of k tasks alone: ``Float64[C k]``."""
        raise NotImplementedError

    def advance(
        self, state: npt.NDArray[Any], derived: npt.NDArray[Any], commands: npt.NDArray[Any]
    ) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Move the states ``Float[S n]`` on by one step, in place.

        Args:
            state: The states.
            derived: What :meth:`derive` gave for the task of each row, ``Float[C n]``.
            commands: The actions, ``Float[A n]``, within their bounds; they may be overwritten.

        Returns:
            The rewards ``Float64[n]``, and which episodes end, ``Bool[n]``: new arrays.
        """
        raise NotImplementedError

    def _apply_task(self) -> None:
        self._derived = self.derive(TaskBatch.from_tasks([self.task]).values)

    def _parse_action(self, action: Any) -> Floats:
        action, space = as_array(action), self.action_space
        if action.shape != space.shape or action.dtype.kind not in "iuf" or not np.isfinite(action).all():
            raise ValueError(
                f"an action must be finite numbers in an array of shape {space.shape}; got {shown(action)}."
            )
        # In double precision, so that the same action has the same effect in every type of numbers; one outside
        # [-1, 1] counts as the nearest bound.
        command: Floats = np.clip(action.astype(np.float64), -1.0, 1.0)[:, None]
        return command

    def _advance(self, action: Floats) -> tuple[float, bool]:
        state = np.array(self.state, dtype=np.float64)[:, None]
        rewards, ended = self.advance(state, self._derived, self._arriving(action))
        self.state = state[:, 0]
        if self.render_mode == "human":
            self.render()
        return float(rewards[0]), bool(ended[0])

    def _arriving(self, commands: Floats) -> Floats:
        """What acts in this step, ``Float64[A 1]``, where that is not what was commanded just now."""
        return commands

    def _observe_state(self) -> npt.NDArray[np.float32]:
        return np.array(self.state, dtype=np.float32)
