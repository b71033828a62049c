"""What the batched environments share: n tasks, each in its own episode, stepped at once."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from ssm_metarl_gym.checks import check_choice, check_integer
from ssm_metarl_gym.envs.arguments import (
    Family,
    check_reset_options,
    check_seed,
    check_switch,
    parse_autoreset_mode,
    parse_reset_mask,
    parse_state,
)
from ssm_metarl_gym.envs.hidden_task import HiddenTask, observable_space, shown_parameters, task_streams
from ssm_metarl_gym.tasks.distributions import TaskSet
from ssm_metarl_gym.tasks.families import parse_family
from ssm_metarl_gym.tasks.task import Task, TaskBatch

__all__ = [
    "HiddenTaskVectorEnv",
    "rows_of",
]

Rows = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]
Observations = npt.NDArray[np.float32]

# The least number of tasks that are drawn at once.
_BLOCK: Final = 256
# The countdown of a row whose sign does not flip any more.
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
        """The tasks from one number up to another."""
        return _Tasks(self.values[:, start:stop], self.task_ids[start:stop], self.derived[:, start:stop])


class HiddenTaskVectorEnv(gym.vector.VectorEnv[Observations, npt.NDArray[Any], npt.NDArray[Any]]):
    """n environments with hidden tasks, each row with its own task, stepped together in NumPy.

    Given the same tasks, states and actions, every row is equal (``==``) to the single environment. The rows share one
    stream of tasks, one of switches and one of states: rows that begin an episode in the same step draw in their order.
    One row alone is equal to the single environment under the same seed, too.

    A subclass provides the physics: :meth:`_derive`, :meth:`_parse_actions`, :meth:`_advance`, :meth:`_parse_bounds`
    and :meth:`_observe_state`.
    """

    # The environment of one row: it gives the spaces and draws the pictures.
    single_env_type: ClassVar[type[HiddenTask[Any]]]
    plain_family: ClassVar[str]
    state_size: ClassVar[int]
    reset_options: ClassVar[tuple[str, ...]]
    # None until it is made: Gymnasium closes an environment whose arguments were refused, too.
    _painter: Any = None

    def __init__(
        self,
        num_envs: int = 1,
        family: Family | None = None,
        *,
        max_episode_steps: int | None = None,
        split: str = "train",
        context: str = "hidden",
        task: Mapping[str, npt.ArrayLike] | Task | Sequence[Task] | TaskSet | None = None,
        switch: Mapping[str, Any] | None = None,
        on_failure: str = "terminate",
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        dtype: str = "float64",
    ) -> None:
        check_integer("num_envs", num_envs)
        if max_episode_steps == -1:  # as gym.make understands it
            max_episode_steps = None
        if max_episode_steps is not None:
            check_integer("max_episode_steps", max_episode_steps)
        check_choice("dtype", dtype, ("float64", "float32"))
        check_choice("on_failure", on_failure, ("terminate", "restart"))
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array'; got {render_mode!r}.")
        self.num_envs, self.render_mode, self.max_episode_steps = num_envs, render_mode, max_episode_steps
        self.autoreset_mode = parse_autoreset_mode(autoreset_mode)
        self._trial = on_failure == "restart"
        self._task_type: type[Task] = self.single_env_type.task_type
        self._family = parse_family(self.plain_family if family is None else family, self._task_type)
        self._distribution = self._family.distribution(split)
        self._split = split
        self._context = shown_parameters(self._family, context, switch)
        self._switch = check_switch(switch, self._task_type, num_envs)
        if "step" in self._switch:
            # One for each row, in an array that the caller does not share.
            self._switch["step"] = np.full(num_envs, self._switch["step"])
        self._fixed_tasks = None if task is None else self._parse_tasks(task)
        self._task_rng: np.random.Generator | None = None
        self._switch_rng: np.random.Generator | None = None

        single = self.single_env_type(family=self._family, split=split, render_mode=render_mode)
        self._painter = single
        self.metadata = single.metadata | {"render_modes": ["rgb_array"], "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = observable_space(single.observation_space, self._context)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.single_action_space = single.action_space
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._dtype = np.dtype(dtype)
        self._state = np.zeros((self.state_size, num_envs), dtype=self._dtype)
        # The lowest starting state of each row and how far above it others lie: None as long as no reset has given any.
        self._default_bounds = _low_and_spread(self._parse_bounds({}, ()))
        self._bounds: tuple[Floats, Floats] | None = None
        self._allocate()
        self._started = False
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        # The rows whose episode ended in the last step and has not begun anew, and how many they are.
        self._ended, self._num_ended = np.zeros(num_envs, dtype=np.bool_), 0
        self._time_limit = _NEVER if max_episode_steps is None else max_episode_steps
        self._steps_to_switch = np.full(num_envs, _NEVER)
        self._all_rows = np.arange(num_envs)
        self._everywhere, self._nowhere = _read_only(np.ones(num_envs, np.bool_)), _read_only(self._ended.copy())
        self._values: Floats
        self._task_ids: npt.NDArray[np.int64]
        names, signs = self._task_type.parameter_names(), self._task_type.signs
        self._sign_rows = [(name, names.index(name)) for name in signs]
        self._parameter_names = names
        self._mask_names = [f"_{name}" for name in names]
        tasks = TaskBatch(self._task_type, {}, num_envs) if self._fixed_tasks is None else self._fixed_tasks
        self._set_tasks(self._all_rows, self._in_force(tasks))
        # The tasks that were drawn last, and the first of them that no row has been given yet.
        self._drawn, self._next = self._in_force(tasks), num_envs

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("task", *cls.single_env_type.task_type.parameter_names()):
            setattr(cls, name, _AttributeOfARow(name))

    @property
    def tasks(self) -> TaskBatch:
        """The tasks that govern the next step, one a row. Set them to a sequence of tasks, or to a dictionary."""
        return TaskBatch.from_values(self._task_type, self._values)

    @tasks.setter
    def tasks(self, tasks: Any) -> None:
        self._set_tasks(self._all_rows, self._in_force(self._parse_tasks(tasks)))

    @property
    def state(self) -> npt.NDArray[Any] | None:
        """The physical states, one a row: ``Float[n S]``, a copy; None before the first reset."""
        return self._state.T.copy() if self._started else None

    @state.setter
    def state(self, state: Any) -> None:
        self._state[:] = parse_state(state, (self.num_envs, self.state_size)).T

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Start an episode in every row, or in those of a mask.

        Args:
            seed: Seeds all streams. One number, however many rows there are, and only where all of them are reset.
            options: What the single environment takes, with one entry for each row: ``tasks`` (a sequence of tasks or a
                dictionary of columns) and ``state`` (``Float[n S]``). ``reset_mask`` (``Bool[n]``) chooses the rows;
                those of the others are then ignored.

        Returns:
            The observations of all rows, and the infos, with masks for the rows that were reset.

        Raises:
            ValueError: An option does not exist, has another number of rows or no valid value; nothing was changed.
            TypeError: The mask is no array of booleans.
        """
        options = dict(check_reset_options(options, ("tasks", "state", "reset_mask", *self.reset_options)))
        mask = parse_reset_mask(options.pop("reset_mask", None), self.num_envs, started=self._started)
        given = options.pop("tasks", None)
        tasks = None if given is None else self._parse_tasks(given)
        shape = (self.num_envs, self.state_size)
        states = parse_state(options.pop("state"), shape) if "state" in options else None
        bounds = _low_and_spread(self._parse_bounds(options, (self.num_envs,))) if options else None
        check_seed(seed, mask, self.num_envs)
        # Nothing may change before every option is known to be valid.
        super().reset(seed=None if seed is None else int(seed))
        if seed is not None or self._task_rng is None:
            self._task_rng, self._switch_rng = task_streams(self, self._family, self._split)
            self._next = len(self._drawn.task_ids)
        rows = self._all_rows if mask is None else np.flatnonzero(mask)
        self._begin(rows, bounds, tasks)
        self._ended[rows] = False
        self._num_ended = int(np.count_nonzero(self._ended))
        if states is not None:
            self._state[:, rows] = states[rows].T
        self._started = True
        return self._observe(), self._infos(self._nowhere, mask)

    def step(
        self, actions: npt.NDArray[Any]
    ) -> tuple[Observations, npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]]:
        """Step every row; what becomes of a row whose episode ended, ``autoreset_mode`` says."""
        if not self._started:
            raise gym.error.ResetNeeded("reset() must be called before step().")
        # The rows that NEXT_STEP resets in this step: they take no part in anything else.
        resetting = self._ended.nonzero()[0] if self._num_ended else None
        if resetting is not None and self.autoreset_mode is AutoresetMode.DISABLED:
            raise gym.error.ResetNeeded(
                f"rows whose episode ended must be reset before step(); got {resetting.tolist()}. "
                "Call reset(options={'reset_mask': terminations | truncations})."
            )
        rewards, failed = self._advance(self._parse_actions(actions))
        if resetting is not None:
            failed[resetting] = False
        restarted, terminated = (_read_only(failed), self._nowhere.copy()) if self._trial else (self._nowhere, failed)
        if self._trial and np.count_nonzero(failed):
            rewards[failed] -= self._failure_penalty
            self._draw_states(failed.nonzero()[0])
        if self._switch:
            self._count_down(resetting)
        self._elapsed += 1
        truncated = self._elapsed >= self._time_limit
        if resetting is not None:
            rewards[resetting], truncated[resetting] = 0.0, False
            self._begin(resetting)
        np.logical_or(terminated, truncated, out=self._ended)
        self._num_ended = int(np.count_nonzero(self._ended))
        observations = self._observe()
        final: dict[str, Any] = {}
        if self._num_ended and self.autoreset_mode is AutoresetMode.SAME_STEP:
            ended = _read_only(self._ended.copy())
            final = {"final_obs": rows_of(observations, ended), "_final_obs": ended}
            final |= {"final_info": self._infos(restarted, ended), "_final_info": ended}
            self._begin(ended.nonzero()[0])
            self._ended[:], self._num_ended = False, 0
            observations = self._observe()
            restarted = _read_only(restarted & ~ended)
        return observations, rewards, terminated, truncated, self._infos(restarted) | final

    def render(self) -> tuple[Any, ...] | None:
        """The picture of every row, as the single environment draws it: a tuple of n frames ``UInt8[H W 3]``."""
        if self.render_mode is None:
            gym.logger.warn('render() needs a render mode. Give gym.make_vec(..., render_mode="rgb_array").')
            return None
        return tuple(self._draw(row) for row in range(self.num_envs))

    def render_grid(self, num_rows: int = 16) -> npt.NDArray[np.uint8]:
        """The pictures of the first rows as one, in a grid as square as can be: ``UInt8[H' W' 3]``."""
        check_integer("num_rows", num_rows)
        if self.render_mode is None:
            raise ValueError("render_grid needs render_mode='rgb_array'; got None. Give it to gym.make_vec.")
        frames = [self._draw(row) for row in range(min(num_rows, self.num_envs))]
        columns = int(np.ceil(np.sqrt(len(frames))))
        frames += [np.full_like(frames[0], 255)] * (-len(frames) % columns)
        lines = [np.concatenate(frames[start : start + columns], axis=1) for start in range(0, len(frames), columns)]
        return np.concatenate(lines)

    def close_extras(self, **kwargs: Any) -> None:
        """Close the window in which the pictures are drawn."""
        if self._painter is not None:
            self._painter.close()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        # NumPy's copies of read-only arrays can be written, and infos hand these out.
        for array in (self._nowhere, self._everywhere, self._task_ids, *self._task_params.values()):
            _read_only(array)

    # What a subclass provides.

    # What a fall costs in a trial.
    _failure_penalty: ClassVar[float] = 0.0

    def _allocate(self) -> None:
        """Make the arrays that the physics work in, of n numbers of type ``_dtype`` each."""
        raise NotImplementedError

    def _derive(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """What the physics compute from the parameters ``Float64[P k]`` alone: ``Float64[C k]``; see ``_derived``."""
        raise NotImplementedError

    def _advance(self, actions: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Move ``_state`` on by one step; the new rewards ``Float64[n]`` and failures ``Bool[n]``, new arrays."""
        raise NotImplementedError

    def _parse_actions(self, actions: Any) -> npt.NDArray[Any]:
        """What :meth:`_advance` takes, or a ValueError that names the first row whose action is not in the space."""
        raise NotImplementedError

    def _parse_bounds(self, options: Mapping[str, Any], rows: tuple[int, ...]) -> tuple[Floats, Floats]:
        """The lowest and the highest starting state under the options of a reset: two of ``Float64[*rows S]``."""
        raise NotImplementedError

    def _observe_state(self) -> Observations:
        """What the agents see of the state: a new array ``Float32[n D]``."""
        raise NotImplementedError

    def _prepare_painter(self, row: int) -> None:
        """Set what a picture shows beside the state and the task."""

    # Episodes and tasks.

    def _begin(
        self,
        rows: Rows,
        bounds: tuple[Floats, Floats] | None = None,
        tasks: TaskBatch | None = None,
    ) -> None:
        """Start an episode in ``rows``, in ``tasks[rows]`` where tasks are given.

        As in the single environment, tasks are drawn even where given ones make that needless.
        """
        drawn = self._next_tasks(len(rows))
        chosen = self._fixed_tasks if tasks is None else tasks
        if chosen is not None:
            drawn = self._in_force(chosen[rows])
        self._set_tasks(rows, drawn)
        self._elapsed[rows] = 0
        if self._switch:
            self._steps_to_switch[rows] = self._draw_switches(rows, first=True)
        if bounds is not None or self._bounds is not None:
            self._set_bounds(rows, bounds or self._default_bounds)
        self._draw_states(rows)

    def _set_bounds(self, rows: Rows, bounds: tuple[Floats, Floats]) -> None:
        """The bounds of the starting states of ``rows``, which hold until their episodes end."""
        shape = (self.num_envs, self.state_size)
        if self._bounds is None:
            low, spread = self._default_bounds
            self._bounds = np.broadcast_to(low, shape).copy(), np.broadcast_to(spread, shape).copy()
        for own, new in zip(self._bounds, bounds, strict=True):
            own[rows] = np.broadcast_to(new, shape)[rows]

    def _next_tasks(self, num_tasks: int) -> "_Tasks":
        """The next tasks of the stream. They are drawn many at a time: rows seldom begin together, and draws cost."""
        start, stop = self._next, self._next + num_tasks
        taken = self._drawn.part(start, stop)
        missing = stop - len(self._drawn.task_ids)
        if missing > 0:
            # A row alone draws one at a time, and so the tasks of the single environment.
            size = 1 if self.num_envs == 1 else max(self.num_envs, _BLOCK)
            rng = cast("np.random.Generator", self._task_rng)
            self._drawn, stop = self._in_force(self._distribution.sample_batch(rng, size)), missing
            pairs = zip(taken, self._drawn.part(0, missing), strict=True)
            taken = _Tasks(*(np.concatenate(pair, axis=-1) for pair in pairs))
        self._next = stop
        return taken

    def _draw_states(self, rows: Rows) -> None:
        low, spread = self._default_bounds if self._bounds is None else (bound[rows] for bound in self._bounds)
        # As Generator.uniform computes it, which takes longer.
        states = self.np_random.random((len(rows), self.state_size))
        states *= spread
        states += low
        self._state.T[rows] = states

    def _draw_switches(self, rows: Rows, *, first: bool) -> Any:
        """The number of steps until the sign of each of ``rows`` flips."""
        if "probability" in self._switch:
            probability, rng = self._switch["probability"], cast("np.random.Generator", self._switch_rng)
            return rng.geometric(probability, len(rows)) if probability > 0.0 else _NEVER
        return self._switch["step"][rows] if first else _NEVER

    def _count_down(self, resetting: Rows | None) -> None:
        """Flip the sign where a switch is due, so that ``tasks`` are always those of the next step."""
        self._steps_to_switch -= 1
        if resetting is not None:
            self._steps_to_switch[resetting] = _NEVER
        rows = (self._steps_to_switch == 0).nonzero()[0]
        if len(rows):
            values = self._values[:, rows]
            values[self._sign_rows[0][1]] *= -1.0
            self._set_tasks(rows, self._in_force(TaskBatch.from_values(self._task_type, values)))
            self._steps_to_switch[rows] = self._draw_switches(rows, first=False)

    def _in_force(self, tasks: TaskBatch) -> "_Tasks":
        derived = self._derive(tasks.values).astype(self._dtype, copy=False)
        return _Tasks(tasks.values, tasks.task_ids, derived)

    def _set_tasks(self, rows: Rows, tasks: "_Tasks") -> None:
        """Give ``rows`` new tasks, and renew all that follows from them. Arrays handed out before stay as they are."""
        values, task_ids = tasks.values, tasks.task_ids
        if len(rows) == self.num_envs:
            self._derived = [column.copy() for column in tasks.derived]
        else:
            values, task_ids = self._values.copy(), self._task_ids.copy()
            values.T[rows], task_ids[rows] = tasks.values.T, tasks.task_ids
            for column, new in zip(self._derived, tasks.derived, strict=True):
                column[rows] = new
        self._values, self._task_ids = _read_only(values), _read_only(task_ids)
        self._task_params = self._name_columns(values, self._everywhere)
        if self._context is not None:
            self._shown = self._context.normalise(self.tasks)

    def _parse_tasks(self, tasks: Any) -> TaskBatch:
        """The tasks that a user gave, one a row: as they are, as dictionaries, or as a dictionary of columns.

        A single task is that of all rows.
        """
        if isinstance(tasks, Task):
            tasks = TaskBatch.from_tasks([tasks])[np.zeros(self.num_envs, dtype=np.intp)]
        if isinstance(tasks, TaskSet):
            tasks = tasks.tasks
        if isinstance(tasks, Mapping):
            return TaskBatch(self._task_type, tasks, self.num_envs)
        if not isinstance(tasks, Sequence) or isinstance(tasks, str | bytes) or len(tasks) != self.num_envs:
            raise ValueError(f"there must be one task for each of the {self.num_envs} rows; got {tasks!r:.200}.")
        if not isinstance(tasks, TaskBatch):
            tasks = [self._task_type.from_dict(task) if isinstance(task, Mapping) else task for task in tasks]
        batch = TaskBatch.from_tasks(tasks)
        if batch.task_type is not self._task_type:
            raise ValueError(f"tasks must be {self._task_type.__name__}s; got {batch.task_type.__name__}s.")
        return batch

    # What is handed out.

    def _observe(self) -> Observations:
        observations = self._observe_state()
        return observations if self._context is None else np.concatenate([observations, self._shown], axis=1)

    def _infos(self, restarted: npt.NDArray[np.bool_], mask: npt.NDArray[np.bool_] | None = None) -> dict[str, Any]:
        """New dictionaries; the arrays in them are read-only and never change after they were handed out.

        With a mask, those of its rows alone and zeros elsewhere, as Gymnasium's own vector environments give them.
        """
        task_ids, params = self._task_ids, self._task_params
        if mask is not None:
            task_ids = _read_only(np.where(mask, task_ids, 0))
            params = self._name_columns(_read_only(np.where(mask, self._values, 0.0)), mask)
        everywhere = self._everywhere if mask is None else mask
        return {"task_id": task_ids, "_task_id": everywhere, "task_params": dict(params), "_task_params": everywhere}

    def _name_columns(self, values: Floats, mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
        """The parameters ``Float64[P n]`` by name, each with the mask of the rows that have it."""
        columns: dict[str, Any] = dict(zip(self._parameter_names, values, strict=True))
        for name, index in self._sign_rows:
            columns[name] = _read_only(values[index].astype(np.int64))
        return columns | dict.fromkeys(self._mask_names, mask)

    def _draw(self, row: int) -> Any:
        if not self._started:
            raise gym.error.ResetNeeded("reset() must be called before render().")
        self._painter.task = self.tasks[row]
        self._painter.state = self._state[:, row].astype(np.float64)
        self._prepare_painter(row)
        return self._painter.render()


class _AttributeOfARow:
    """What a single environment has and many together have not: setting it must not pass for setting the tasks."""

    def __init__(self, name: str) -> None:
        self._message = f"a batched environment has no {name!r} but one for each row: use its attribute 'tasks'."

    def __get__(self, env: Any, owner: type | None = None) -> Any:
        raise AttributeError(self._message)

    def __set__(self, env: Any, value: Any) -> None:
        raise AttributeError(self._message)


def _low_and_spread(bounds: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    low, high = bounds
    spread = high - low
    if (low == low.flat[0]).all() and (spread == spread.flat[0]).all():
        return low.flat[0], spread.flat[0]  # type: ignore[return-value]  # arithmetic with one number is faster
    return low, spread


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.setflags(write=False)  # twice as fast as the attribute of the flags
    return array


def rows_of(array: npt.NDArray[Any], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.object_]:
    """One array for each row of ``mask``, None for the others: ``Object[n]``."""
    rows = np.full(len(array), None, dtype=object)
    for row in mask.nonzero()[0].tolist():
        rows[row] = array[row].copy()
    return rows
