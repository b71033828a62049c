"""What a user gives to environments, to their resets and to their steps: checked, in one form."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from ssm_metarl_gym.checks import as_array, check_choice, check_integer, is_number, shown
from ssm_metarl_gym.envs.rows import read_only
from ssm_metarl_gym.tasks.distributions import Distribution, TaskSet
from ssm_metarl_gym.tasks.families import TaskFamily
from ssm_metarl_gym.tasks.task import Task, TaskBatch

__all__ = [
    "LARGEST",
    "Family",
    "check_reset_options",
    "check_seed",
    "check_steps_or_probability",
    "check_switch",
    "parse_array",
    "parse_autoreset_mode",
    "parse_numbers",
    "parse_reset_mask",
    "parse_state",
    "parse_task",
    "parse_tasks",
    "parse_time_limit",
    "parse_whole_numbers",
]

SomeTask = TypeVar("SomeTask", bound=Task)
# The greatest number that a state may hold: its squares, times those of a task, are far from the end of float32.
LARGEST: Final = 1e6

Family: TypeAlias = str | TaskFamily | Distribution | Mapping[str, Any]


def parse_task(task: Any, task_type: type[SomeTask]) -> SomeTask:
    """The task that a user gave, as it is or as a dictionary of parameters."""
    parsed = task if isinstance(task, Task) else task_type.from_dict(task)
    if not isinstance(parsed, task_type):
        raise ValueError(f"task must be a {task_type.__name__}; got {shown(task)}.")
    return parsed


def parse_tasks(
    tasks: Any, task_type: type[Task], num_rows: int, mask: npt.NDArray[np.bool_] | None = None
) -> TaskBatch:
    """The tasks that a user gave, one a row: as they are, as dictionaries, or as a dictionary of columns.

    A single task is that of all rows. Where a mask ``Bool[n]`` leaves rows out, whatever was given for them is ignored,
    and the task of the first row in it stands in its place.
    """
    if isinstance(tasks, Task):
        tasks = TaskBatch.from_tasks([tasks])[np.zeros(num_rows, dtype=np.intp)]
    if isinstance(tasks, TaskSet):
        tasks = tasks.tasks
    chosen = np.arange(num_rows) if mask is None else np.where(mask, np.arange(num_rows), mask.argmax())
    if isinstance(tasks, Mapping):
        if mask is not None:
            tasks = {name: _of_rows(column, num_rows, chosen) for name, column in tasks.items()}
        return TaskBatch(task_type, tasks, num_rows)
    if not isinstance(tasks, Sequence) or isinstance(tasks, str | bytes) or len(tasks) != num_rows:
        raise ValueError(f"there must be one task for each of the {num_rows} rows; got {shown(tasks)}.")
    if mask is not None:
        tasks = tasks[chosen] if isinstance(tasks, TaskBatch) else [tasks[row] for row in chosen.tolist()]
    if not isinstance(tasks, TaskBatch):
        tasks = [task_type.from_dict(task) if isinstance(task, Mapping) else task for task in tasks]
    batch = TaskBatch.from_tasks(tasks)
    if batch.task_type is not task_type:
        raise ValueError(f"tasks must be {task_type.__name__}s; got {batch.task_type.__name__}s.")
    return batch


def _of_rows(column: Any, num_rows: int, chosen: npt.NDArray[np.intp]) -> Any:
    """Of a column with a value for each row those of some rows, whatever the others are; all else as it is."""
    values = column.tolist() if isinstance(column, np.ndarray) else column
    has_rows = isinstance(values, Sequence) and not isinstance(values, str | bytes) and len(values) == num_rows
    return [values[row] for row in chosen.tolist()] if has_rows else column


def check_reset_options(options: Any, valid: tuple[str, ...] | None = None) -> Mapping[str, Any]:
    """The options of a reset, or a ValueError that names the nearest of the valid keys where one does not exist."""
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise ValueError(f"the options of a reset must be a dictionary or None; got {shown(options)}.")
    if valid is not None:
        for name in options:
            check_choice("an option of reset", name, valid)
    return options


def parse_state(
    state: Any,
    limits: tuple[float, ...],
    num_rows: int | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.float64]:
    """The physical state that a user gave: ``Float64[S]``, or one for each of n rows: ``Float64[n S]``.

    Args:
        state: What the user gave.
        limits: The greatest size of each of the S numbers.
        num_rows: Number of rows n, or None for one state alone.
        mask: ``Bool[n]``, the rows whose state counts; the others are zero. None for all.
    """
    parsed = parse_array(state)
    shape = (len(limits),) if num_rows is None else (num_rows, len(limits))
    if mask is not None and parsed.shape == shape:
        parsed[~mask] = 0.0
    if parsed.shape != shape or not (np.abs(parsed) <= limits).all():
        rows = "" if num_rows is None else f" for each of the {num_rows} rows"
        most = " and ".join(f"{limit:g}" for limit in dict.fromkeys(limits))
        raise ValueError(
            f"the option 'state' must be {len(limits)} finite numbers{rows}, of at most {most}; got {shown(state)}."
        )
    return parsed


def parse_array(numbers: Any) -> npt.NDArray[np.float64]:
    """A new array of the numbers that a user gave, however nested, or one of NaN where they are none."""
    try:
        return np.array(numbers, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return np.array(np.nan)


def check_switch(
    switch: Mapping[str, Any] | None, task_type: type[Task], num_rows: int | None = None
) -> dict[str, Any]:
    """The switch that a user gave, an empty dictionary for None; with ``num_rows`` a step may be one for each row."""
    if switch is not None and not (task_type.signs or task_type.switch_draws):
        raise ValueError(
            f"switch must be None, as a {task_type.__name__} has no sign to flip; got {shown(switch)}. Leave it out, "
            "or let the class of the tasks name signs, or say switch_draws = True."
        )
    return check_steps_or_probability(switch, num_rows)


def check_steps_or_probability(switch: Mapping[str, Any] | None, num_rows: int | None = None) -> dict[str, Any]:
    """When something shall happen in an episode: the arguments of :func:`check_switch`, of any type of tasks.

    Returns:
        It in numbers of Python, which JSON can hold, or an empty dictionary for None.
    """
    if switch is None:
        return {}
    if isinstance(switch, Mapping) and len(switch) == 1:
        name, value = next(iter(switch.items()))
        if name == "probability" and is_number(value) and 0.0 <= value <= 1.0:
            return {name: float(value)}
        steps = as_array(value)
        shapes: tuple[tuple[int, ...], ...] = ((),) if num_rows is None else ((), (num_rows,))
        if name == "step" and steps.dtype.kind in "iu" and steps.shape in shapes and (steps >= 1).all():
            return {name: steps.tolist()}
    rows = "" if num_rows is None else f", or {num_rows} of them, one for each row"
    raise ValueError(
        "switch must be None, {'probability': p} with p in [0, 1] or {'step': n} with a whole number n >= 1"
        f"{rows}; got {shown(switch)}."
    )


def parse_autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    """The mode that a user gave, by its name or as it is."""
    if not isinstance(mode, AutoresetMode):
        check_choice("autoreset_mode", mode, [valid.value for valid in AutoresetMode])
    return AutoresetMode(mode)


def parse_time_limit(max_episode_steps: Any) -> int | None:
    """The steps after which an episode is truncated, or None for no limit, for which ``gym.make`` takes -1, too."""
    if max_episode_steps is None or (max_episode_steps == -1 and not isinstance(max_episode_steps, bool)):
        return None
    check_integer("max_episode_steps", max_episode_steps)
    return int(max_episode_steps)


def check_seed(seed: object, mask: npt.NDArray[np.bool_] | None, num_envs: int) -> None:
    """``seed`` must be one for all rows, and given only where all of them are reset."""
    if not (seed is None or isinstance(seed, int | np.integer)):
        raise ValueError(f"seed must be one int for all {num_envs} rows, or None; got {shown(seed)}.")
    if seed is not None and mask is not None and not mask.all():
        raise ValueError(f"a seed is for all rows, which share their streams; got seed={seed} with a 'reset_mask'.")


def parse_reset_mask(mask: Any, num_envs: int, *, started: bool) -> npt.NDArray[np.bool_] | None:
    """The rows that a user chose to reset, ``Bool[n]``, or None for all."""
    if mask is None:
        return None
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        kind = mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__
        raise TypeError(f"the option 'reset_mask' must be a NumPy array of booleans; got {kind}.")
    if mask.shape != (num_envs,) or not mask.any():
        raise ValueError(
            f"the option 'reset_mask' must have one entry for each of the {num_envs} rows, and at least one "
            f"True; got shape {mask.shape} with {np.count_nonzero(mask)} True."
        )
    if not (started or mask.all()):
        raise gym.error.ResetNeeded("the first reset must be of all rows; got a 'reset_mask' that leaves some out.")
    return read_only(mask.copy())


def parse_whole_numbers(actions: Any, num_envs: int) -> npt.NDArray[Any]:
    """The discrete actions of all rows, ``Int[n]``, of any type of integers."""
    parsed = as_array(actions)
    if parsed.shape != (num_envs,) or parsed.dtype.kind not in "iu":
        raise ValueError(
            f"actions must be {num_envs} whole numbers, one for each row; got shape {parsed.shape} of {parsed.dtype}."
        )
    return parsed


def parse_numbers(actions: Any, num_envs: int, width: int) -> npt.NDArray[Any]:
    """The continuous actions of all rows, ``[n width]``, finite and of any type of real numbers."""
    parsed = as_array(actions)
    if parsed.shape != (num_envs, width) or parsed.dtype.kind not in "iuf":
        raise ValueError(
            f"actions must be numbers in an array of shape ({num_envs}, {width}); "
            f"got shape {parsed.shape} of {parsed.dtype}."
        )
    finite = np.isfinite(parsed)
    if np.count_nonzero(finite) < finite.size:
        row = int(np.argmin(finite.all(axis=1)))
        raise ValueError(f"an action must be finite; got {parsed[row].tolist()} in row {row}.")
    return parsed
