"""The tasks of n rows: drawn or given at the start of each row's episode, switched in its course, told in infos."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.envs.arguments import parse_tasks
from ssm_metarl_gym.envs.hidden_task import EnvStreams, shown_parameters
from ssm_metarl_gym.envs.rows import read_only
from ssm_metarl_gym.tasks.families import TaskFamily
from ssm_metarl_gym.tasks.task import TaskBatch

__all__ = ["RowTasks"]

Rows = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]

# The least number of tasks that are drawn at once.
_BLOCK: Final = 256
# The countdown of a row whose task does not change any more.
_NEVER: Final = np.iinfo(np.int64).max


class _Tasks(NamedTuple):
    """k tasks and all that a row needs of them.

    Attributes:
        values: ``Float64[P k]``, as in a ``TaskBatch``.
        task_ids: ``Int64[k]``.
        derived: ``Float[C k]``, what the physics compute from the parameters alone.
    """

    values: Floats
    task_ids: npt.NDArray[np.int64]
    derived: npt.NDArray[Any]

    def part(self, start: int, stop: int) -> "_Tasks":
        """The tasks from one index up to another."""
        return _Tasks(self.values[:, start:stop], self.task_ids[start:stop], self.derived[:, start:stop])


class RowTasks:
    """The tasks of n rows that share one stream of tasks and one of switches.

    Rows that begin an episode in the same step draw in their order. Arrays that were handed out never change.

    Args:
        num_rows: Number of rows n.
        family: What tasks are drawn from.
        derive: What the physics compute from the parameters ``Float64[P k]`` of k tasks alone: ``Float64[C k]``.
        split: ``"train"``, ``"interpolation"`` or ``"extrapolation"``.
        context: ``"hidden"``, or ``"visible"`` to show the parameters.
        task: The task of every episode, or one for each row; None to draw them.
        switch: When tasks change, as ``check_switch`` gave it.
        change: What a switch makes of tasks; None for another sign or other tasks, whatever is of their type.
        dtype: The type of what is derived.

    Attributes:
        family: What tasks are drawn from.
        split: The split that they are drawn from.
        shown_parameters: The distribution that scales the parameters that are shown, or None for hidden ones.
        derived: What the physics compute from the tasks, ``Float[C n]``, by rows.
        shown: The scaled parameters ``Float32[n C]``, or None for hidden ones.

    Raises:
        ValueError: An argument has no valid value.
    """

    def __init__(
        self,
        num_rows: int,
        family: TaskFamily,
        derive: Callable[[Floats], Floats],
        *,
        split: str,
        context: str,
        task: Any,
        switch: dict[str, Any],
        change: Callable[[TaskBatch, np.random.Generator], TaskBatch] | None = None,
        dtype: np.dtype[Any],
    ) -> None:
        self._num_rows = num_rows
        self.family = family
        self.split = split
        self._distribution = family.distribution(split)
        self._task_type = family.task_type
        self._derive = derive
        self._dtype = dtype
        self._switch = switch
        self._change = change
        self._fixed = None if task is None else self.parse(task)
        self.shown_parameters = shown_parameters(family, context, switch, self._fixed or ())
        if "step" in self._switch:
            # One for each row, in an array that the caller does not share.
            self._switch["step"] = np.full(num_rows, self._switch["step"])
        self._task_rng: np.random.Generator | None = None
        self._switch_rng: np.random.Generator | None = None
        self._steps_to_switch = np.full(num_rows, _NEVER)

        names = self._task_type.parameter_names()
        self._names = names
        self._mask_names = [f"_{name}" for name in names]
        self._sign_indices = [(name, names.index(name)) for name in self._task_type.signs]
        self._all_rows = np.arange(num_rows)
        self._everywhere = read_only(np.ones(num_rows, dtype=np.bool_))

        self._values: Floats
        self._task_ids: npt.NDArray[np.int64]
        self._columns: dict[str, Any]
        self.derived: npt.NDArray[Any]
        self.shown: npt.NDArray[np.float32] | None = None
        tasks = self._with_derived(TaskBatch(self._task_type, {}, num_rows) if self._fixed is None else self._fixed)
        self._set(self._all_rows, tasks)
        # The tasks that were drawn last, and the index of the first of them that no row has been given yet.
        self._drawn = tasks
        self._next = num_rows

    @property
    def batch(self) -> TaskBatch:
        """The tasks that govern the next step, one a row."""
        return TaskBatch.from_values(self._task_type, self._values)

    def parse(self, tasks: Any, mask: npt.NDArray[np.bool_] | None = None) -> TaskBatch:
        """The tasks that a user gave, one a row, of which those of a mask ``Bool[n]`` count."""
        return parse_tasks(tasks, self._task_type, self._num_rows, mask)

    def give(self, tasks: TaskBatch) -> None:
        """Give every row its task of ``tasks`` at once, in the midst of its episode."""
        self._set(self._all_rows, self._with_derived(tasks))

    @property
    def is_seeded(self) -> bool:
        """Whether the streams were seeded."""
        return self._task_rng is not None

    def seed(self, streams: EnvStreams) -> None:
        """Go on with the streams of an environment that was just seeded."""
        self._task_rng, self._switch_rng = streams.tasks, streams.switches
        self._next = len(self._drawn.task_ids)

    def draw_from(self, family: TaskFamily) -> None:
        """Draw the tasks of later episodes from another family, and forget those that were drawn ahead."""
        self._distribution = family.distribution(self.split)
        self.family = family
        self._next = len(self._drawn.task_ids)

    def begin(self, rows: Rows, given: TaskBatch | None = None) -> None:
        """Give tasks to ``rows``, which begin an episode: theirs of ``given [n]``, the fixed ones, or drawn ones.

        As in the single environment, tasks are drawn even where given ones make that needless.
        """
        tasks = self._draw(len(rows))
        chosen = self._fixed if given is None else given
        if chosen is not None:
            tasks = self._with_derived(chosen[rows])
        self._set(rows, tasks)
        if self._switch:
            self._steps_to_switch[rows] = self._draw_switches(rows, first=True)

    def end_step(self, resetting: Rows | None) -> None:
        """Change the tasks where a switch is due, so that they are always those of the next step.

        The episodes of the rows ``resetting`` are over: theirs changes no more.
        """
        if not self._switch:
            return
        self._steps_to_switch -= 1
        if resetting is not None:
            self._steps_to_switch[resetting] = _NEVER
        rows = (self._steps_to_switch == 0).nonzero()[0]
        if len(rows):
            self._set(rows, self._with_derived(self._switched(rows)))
            self._steps_to_switch[rows] = self._draw_switches(rows, first=False)

    def _switched(self, rows: Rows) -> TaskBatch:
        """What a switch makes of the tasks of ``rows``."""
        rng, values = cast("np.random.Generator", self._switch_rng), self._values[:, rows]
        if self._change is not None:
            return self._change(TaskBatch.from_values(self._task_type, values), rng)
        if self._task_type.switch_draws:
            return self._distribution.sample_batch(rng, len(rows))
        _, sign = self._sign_indices[0]
        values[sign] *= -1.0
        return TaskBatch.from_values(self._task_type, values)

    def infos(self, mask: npt.NDArray[np.bool_] | None = None) -> dict[str, Any]:
        """New dictionaries; the arrays in them are read-only and never change after they were handed out.

        With a mask, those of its rows alone and zeros elsewhere, as Gymnasium's own vector environments give them.
        """
        if mask is None:
            task_ids, columns, told = self._task_ids, dict(self._columns), self._everywhere
        else:
            task_ids, told = read_only(np.where(mask, self._task_ids, 0)), mask
            columns = self._name_columns(read_only(np.where(mask, self._values, 0.0)), mask)
        return {"task_id": task_ids, "_task_id": told, "task_params": columns, "_task_params": told}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # NumPy's copies of read-only arrays can be written, and infos hand these out.
        for array in (self._everywhere, self._task_ids, *self._columns.values()):
            read_only(array)

    def _draw(self, num_tasks: int) -> _Tasks:
        """The next tasks of the stream. They are drawn many at a time: rows seldom begin together, and draws cost."""
        start, stop = self._next, self._next + num_tasks
        taken = self._drawn.part(start, stop)
        missing = stop - len(self._drawn.task_ids)
        if missing > 0:
            # A row alone draws one at a time, and so the tasks of the single environment.
            size = 1 if self._num_rows == 1 else max(self._num_rows, _BLOCK)
            rng = cast("np.random.Generator", self._task_rng)
            self._drawn, stop = self._with_derived(self._distribution.sample_batch(rng, size)), missing
            pairs = zip(taken, self._drawn.part(0, missing), strict=True)
            taken = _Tasks(*(np.concatenate(pair, axis=-1) for pair in pairs))
        self._next = stop
        return taken

    def _draw_switches(self, rows: Rows, *, first: bool) -> Any:
        """The number of steps until the task of each of ``rows`` changes."""
        if "probability" in self._switch:
            probability, rng = self._switch["probability"], cast("np.random.Generator", self._switch_rng)
            return rng.geometric(probability, len(rows)) if probability > 0.0 else _NEVER
        return self._switch["step"][rows] if first else _NEVER

    def _with_derived(self, tasks: TaskBatch) -> _Tasks:
        derived = self._derive(tasks.values).astype(self._dtype, copy=False)
        return _Tasks(tasks.values, tasks.task_ids, derived)

    def _set(self, rows: Rows, tasks: _Tasks) -> None:
        """Give ``rows`` new tasks, and renew all that follows from them. Arrays handed out before stay as they are."""
        values, task_ids = tasks.values, tasks.task_ids
        if len(rows) == self._num_rows:
            self.derived = tasks.derived.copy(order="C")
        else:
            values, task_ids = self._values.copy(), self._task_ids.copy()
            values.T[rows], task_ids[rows] = tasks.values.T, tasks.task_ids
            self.derived[:, rows] = tasks.derived
        self._values = read_only(values)
        self._task_ids = read_only(task_ids)
        self._columns = self._name_columns(values, self._everywhere)
        if self.shown_parameters is not None:
            self.shown = self.shown_parameters.normalise(self.batch)

    def _name_columns(self, values: Floats, mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
        """The parameters ``Float64[P n]`` by name, each with the mask of the rows that have it."""
        columns: dict[str, Any] = dict(zip(self._names, values, strict=True))
        for name, index in self._sign_indices:
            columns[name] = read_only(values[index].astype(np.int64))
        return columns | dict.fromkeys(self._mask_names, mask)
