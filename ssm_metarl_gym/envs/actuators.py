"""Motors with a hidden map, and how they fail: what the wrapper and the registered families share."""

from collections import deque
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from ssm_metarl_gym.checks import as_array, has_bounds, is_number, shown
from ssm_metarl_gym.envs.arguments import check_steps_or_probability
from ssm_metarl_gym.tasks.actuators import LARGEST_DELAY, ActuatorTask, actuator_task_type
from ssm_metarl_gym.tasks.distributions import Distribution
from ssm_metarl_gym.tasks.task import TaskBatch

__all__ = ["Actuators", "check_actuator_switch", "fail_motors", "task_after_switch"]

Floats = npt.NDArray[np.float64]


class Actuators:
    """The motors of an environment: they execute ``clip(M a + offset)``, some steps late.

    0 is the middle of the Box of actions and 1 its half range. Before a late action arrives they are told the middle.
    An action outside of the Box counts as the nearest bound.

    Args:
        space: The actions.

    Attributes:
        task_type: The class of the tasks.

    Raises:
        ValueError: The space is no bounded Box of floats, or a motor has no range in it.
    """

    def __init__(self, space: Any) -> None:
        if (
            not isinstance(space, spaces.Box)
            or not has_bounds(space).all()
            or not np.issubdtype(space.dtype, np.floating)
        ):
            raise ValueError(f"env must have a bounded Box of floats as action space; got {space}.")
        if not (space.low < space.high).all():
            raise ValueError(f"every motor must have a range, low < high; got {space}. Leave the others out of it.")
        self._space = space
        self.task_type = actuator_task_type(int(np.prod(space.shape)))
        # In double precision, so that the map is the same for every type of actions.
        low, high = space.low.astype(np.float64).ravel(), space.high.astype(np.float64).ravel()
        self._low, self._high, self._middle, self._half_range = low, high, (low + high) / 2.0, (high - low) / 2.0
        # The actions of this episode, in half ranges, the last one at the end, which may be taken back.
        self._commands: deque[Floats] = deque(maxlen=LARGEST_DELAY + 2)
        self.obey(self.task_type())

    def obey(self, task: ActuatorTask) -> None:
        """Obey the map of a task from the next step on."""
        self._matrix, self._offsets, self._delay = task.matrix, task.offsets, int(task.to_dict()["delay"])

    def clear(self) -> None:
        """Forget the actions of the last episode."""
        self._commands.clear()

    def take_back(self) -> None:
        """Forget the last action, whose step failed: it never took place."""
        if self._commands:
            self._commands.pop()

    def execute(self, action: Any) -> npt.NDArray[Any]:
        """What the motors do when they are told ``action``, an action of the Box, in numbers of its type.

        Raises:
            ValueError: The action has another shape or is not finite.
        """
        space, command = self._space, as_array(action)
        if command.shape != space.shape or command.dtype.kind not in "iuf" or not np.isfinite(command).all():
            raise ValueError(
                f"an action must be finite numbers in an array of shape {space.shape}; got {shown(action)}."
            )
        # Minima and maxima are what clip computes, in a third of the time.
        clipped = np.maximum(np.minimum(command.astype(np.float64).ravel(), self._high), self._low)
        self._commands.append((clipped - self._middle) / self._half_range)
        is_due = self._delay < len(self._commands)
        arrived = self._commands[-1 - self._delay] if is_due else np.zeros_like(self._middle)
        done = np.maximum(np.minimum(self._matrix @ arrived + self._offsets, 1.0), -1.0)
        executed = (self._middle + done * self._half_range).astype(space.dtype).reshape(space.shape)
        # Rounding must not carry it out of the Box.
        inside: npt.NDArray[Any] = np.maximum(np.minimum(executed, space.high), space.low)
        return inside


def check_actuator_switch(switch: Any, num_rows: int | None = None) -> dict[str, Any]:
    """The switch that a user gave, an empty dictionary for None; with ``num_rows`` a step may be one for each row."""
    if not isinstance(switch, Mapping) or "motor" not in switch:
        return check_steps_or_probability(switch, num_rows)
    gain = switch["motor"]
    if not is_number(gain) or not abs(gain) <= 1.0:
        raise ValueError(f"the 'motor' of a switch must be a number in [-1, 1], times its gain; got {shown(gain)}.")
    when = {name: switch[name] for name in switch if name != "motor"}
    if not when.keys() & {"step", "probability"}:
        raise ValueError(
            f"the 'motor' of a switch must have a 'step' or a 'probability' beside it; got {shown(switch)}. Use "
            "{'motor': 0.0, 'step': 100}, for example."
        )
    return check_steps_or_probability(when, num_rows) | {"motor": float(gain)}


def task_after_switch(
    task: ActuatorTask, switch: Mapping[str, Any], distribution: Distribution, rng: np.random.Generator
) -> Any:
    """A new task or, where the switch says ``"motor"``, the present one with a motor that has failed."""
    if "motor" not in switch:
        return distribution.sample(rng)
    matrix = task.matrix
    matrix[:, rng.integers(len(matrix))] *= switch["motor"]
    return task.from_matrix(matrix, task.offsets, int(task.to_dict()["delay"]))


def fail_motors(tasks: TaskBatch, rng: np.random.Generator, *, gain: float) -> TaskBatch:
    """The tasks with a motor of each, drawn at random, that has ``gain`` times its gain from now on."""
    num_motors, values = cast("type[ActuatorTask]", tasks.task_type).num_motors(), tasks.values.copy()
    motors = rng.integers(num_motors, size=len(tasks))
    maps = values[: num_motors**2].reshape(num_motors, num_motors, -1)
    maps[:, motors, np.arange(len(tasks))] *= gain
    return TaskBatch.from_values(tasks.task_type, values)
