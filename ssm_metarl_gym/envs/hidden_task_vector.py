"""What the batched environments share: n tasks, each in its own episode, stepped at once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from ssm_metarl_gym.checks import check_choice, check_integer, shown
from ssm_metarl_gym.envs.arguments import (
    Family,
    check_reset_options,
    check_seed,
    check_switch,
    parse_autoreset_mode,
    parse_reset_mask,
    parse_state,
    parse_time_limit,
)
from ssm_metarl_gym.envs.classic import ClassicHiddenTask
from ssm_metarl_gym.envs.hidden_task import EnvStreams, observable_space
from ssm_metarl_gym.envs.observation_noise import ObservationNoise
from ssm_metarl_gym.envs.row_starts import RowStarts
from ssm_metarl_gym.envs.row_tasks import RowTasks
from ssm_metarl_gym.envs.rows import AttributeOfARow, copies_of_rows, read_only
from ssm_metarl_gym.tasks.distributions import TaskSet
from ssm_metarl_gym.tasks.families import TaskFamily
from ssm_metarl_gym.tasks.task import Task, TaskBatch

__all__ = ["HiddenTaskVectorEnv"]

Rows = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]
Observations = npt.NDArray[np.float32]

# A time limit that no episode reaches.
_NEVER: Final = np.iinfo(np.int64).max


class HiddenTaskVectorEnv(gym.vector.VectorEnv[Observations, npt.NDArray[Any], npt.NDArray[Any]]):
    """n environments with hidden tasks, each row with its own task, stepped together in NumPy.

    Given the same tasks, states and actions, every row is equal (``==``) to the single environment. The rows share one
    stream of tasks, one of switches and one of states: rows that begin an episode in the same step draw in their order.
    One row alone is equal to the single environment under the same seed, too.

    A subclass names the single environment and provides the physics: :meth:`_derive`, :meth:`_parse_actions`,
    :meth:`_advance` and :meth:`_observe_state`. The type of the tasks, the limits of the state and the starting states
    are those of a single environment with the same arguments.

    Args:
        num_envs: Number of rows n.
        family: As for the single environment, so are ``split``, ``context``, ``on_failure``, ``observation_noise`` and
            ``warm_up_steps``; None for the plain family.
        max_episode_steps: Number of steps after which an episode is truncated; -1 or None for no limit.
        task: The task that every episode has, or a sequence with one for each row; or (JSON can hold that) a dictionary
            of parameters, where a value may be a list with one number for each row.
        switch: As for the single environment; ``{"step": [...]}`` may hold one number for each row.
        render_mode: ``"rgb_array"``, or None.
        autoreset_mode: ``"NextStep"``, ``"SameStep"`` or ``"Disabled"``; or a member of Gymnasium's ``AutoresetMode``,
            which JSON cannot hold.
        dtype: ``"float64"`` is exact; ``"float32"`` is faster and drifts from the single environment by rounding.
        **kwargs: What else the single environment takes.

    ``reset(options=...)`` takes what the single environment takes, with an entry for each row: ``tasks`` in place of
    ``task`` (a sequence of tasks or dictionaries, or a dictionary of columns), ``state`` (``Float[n S]``), bounds of
    the starting states (as for the single environment, or with one entry for each row), and ``reset_mask``
    (``Bool[n]``).

    Attributes:
        tasks: The tasks that govern the next step, a ``TaskBatch``.
        state: The physical states ``Float[n S]``, a copy; None before the first reset.
    """

    # The environment of one row: it gives the spaces, the starting states and the names of options, and draws pictures.
    single_env_type: ClassVar[type[ClassicHiddenTask[Any]]]
    # The environment of one row, None until it is made: Gymnasium closes one whose arguments were refused, too.
    _single: Any = None

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
        observation_noise: float = 0.0,
        warm_up_steps: int = 0,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        dtype: str = "float64",
        **kwargs: Any,
    ) -> None:
        check_integer("num_envs", num_envs)
        check_choice("dtype", dtype, ("float64", "float32"))
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array'; got {shown(render_mode)}.")
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.max_episode_steps = parse_time_limit(max_episode_steps)
        self.autoreset_mode = parse_autoreset_mode(autoreset_mode)
        self._dtype = np.dtype(dtype)
        single = self.single_env_type(
            family,
            split=split,
            on_failure=on_failure,
            observation_noise=observation_noise,
            warm_up_steps=warm_up_steps,
            render_mode=render_mode,
            **kwargs,
        )
        self._single = single
        self._is_trial = on_failure == "restart" and single.failure_penalty is not None
        self._warm_up_steps = warm_up_steps
        self._tells_restarts = single.failure_penalty is not None or warm_up_steps > 0
        self._state_size = len(single.state_limits)
        self._row_tasks = RowTasks(
            num_envs,
            single.family,
            self._derive,
            split=split,
            context=context,
            task=task,
            switch=self._check_switch(switch),
            change=self._change_at(switch),
            dtype=self._dtype,
        )

        self.metadata = single.metadata | {"render_modes": ["rgb_array"], "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = observable_space(single.observation_space, self._row_tasks.shown_parameters)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.single_action_space = single.action_space
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._state = np.zeros((self._state_size, num_envs), dtype=self._dtype)
        self._noise = ObservationNoise(
            observation_noise, num_envs, cast("spaces.Box", single.observation_space).shape[0]
        )
        self._starts = RowStarts(num_envs, single.parse_bounds({}, ()))
        self._allocate()
        self._started = False
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._time_limit = _NEVER if self.max_episode_steps is None else self.max_episode_steps
        # The rows whose episode ended in the last step and has not begun anew, and how many they are.
        self._ended = np.zeros(num_envs, dtype=np.bool_)
        self._num_ended = 0
        self._all_rows = np.arange(num_envs)
        self._nowhere = read_only(np.zeros(num_envs, dtype=np.bool_))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        single_env_type = getattr(cls, "single_env_type", None)
        parameters = [] if single_env_type is None else single_env_type.task_type.parameter_names()
        for name in ("task", *parameters):
            setattr(cls, name, AttributeOfARow(name))

    @property
    def family(self) -> TaskFamily:
        """What tasks are drawn from."""
        return self._row_tasks.family

    def set_family(self, family: Family) -> None:
        """Draw the tasks of later episodes of all rows from another family, see :meth:`HiddenTask.set_family`."""
        self._single.set_family(family)
        self._row_tasks.draw_from(self._single.family)

    @property
    def tasks(self) -> TaskBatch:
        """The tasks that govern the next step, one a row. Set them to a sequence of tasks, or to a dictionary."""
        return self._row_tasks.batch

    @tasks.setter
    def tasks(self, tasks: Any) -> None:
        self._row_tasks.give(self._row_tasks.parse(tasks))

    @property
    def state(self) -> npt.NDArray[Any] | None:
        """The physical states, one a row: ``Float[n S]``, a copy; None before the first reset."""
        return self._state.T.copy() if self._started else None

    @state.setter
    def state(self, state: Any) -> None:
        if not self._started:
            raise gym.error.ResetNeeded("reset() must be called before the state is set.")
        self._state[:] = parse_state(state, self._single.state_limits, self.num_envs).T

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Start an episode in every row, or in those of a mask.

        Args:
            seed: Seeds all streams. One number, however many rows there are, and only where all of them are reset.
            options: What the single environment takes, with one entry for each row: ``tasks`` (a sequence of tasks or a
                dictionary of columns) and ``state`` (``Float[n S]``). ``reset_mask`` (``Bool[n]``) chooses the rows;
                the tasks and states of the others are then ignored.

        Returns:
            The observations of all rows, and the infos, with masks for the rows that were reset.

        Raises:
            ValueError: An option does not exist, has another number of rows or no valid value; nothing was changed.
            TypeError: The mask is no array of booleans.
        """
        valid = ("tasks", "state", "reset_mask", *self.single_env_type.bound_options)
        options = dict(check_reset_options(options, valid))
        mask = parse_reset_mask(options.pop("reset_mask", None), self.num_envs, started=self._started)
        given = options.pop("tasks", None)
        tasks = None if given is None else self._row_tasks.parse(given, mask)
        limits = self._single.state_limits
        states = parse_state(options.pop("state"), limits, self.num_envs, mask) if "state" in options else None
        bounds = self._single.parse_bounds(options, (self.num_envs,)) if options else None
        check_seed(seed, mask, self.num_envs)
        # Nothing may change before every option is known to be valid.
        super().reset(seed=None if seed is None else int(seed))
        if seed is not None or not self._row_tasks.is_seeded:
            streams = EnvStreams.of(self, self._row_tasks.family, self._row_tasks.split)
            self._row_tasks.seed(streams)
            self._noise.rng = streams.noise
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
        # The physics, in the present tasks.
        rewards, ended = self._advance(self._parse_actions(actions))
        self._elapsed += 1
        truncated = self._elapsed >= self._time_limit
        if resetting is not None:
            ended[resetting] = False
        # A failure ends an episode or, in a trial, costs a penalty and starts another attempt.
        terminated, restarted = ended, self._nowhere
        if self._is_trial:
            terminated, restarted = self._nowhere.copy(), read_only(ended)
            if np.count_nonzero(ended):
                rewards[ended] -= cast("float", self._single.failure_penalty)
        if self._warm_up_steps:
            terminated, restarted = self._end_warm_up(rewards, terminated, restarted, resetting)
        if restarted is not self._nowhere and np.count_nonzero(restarted):
            self._draw_states(restarted.nonzero()[0])
        # The switches, so that all that is told from here on is of the next step.
        self._row_tasks.end_step(resetting)
        self._noise.draw(self._all_rows if resetting is None else np.delete(self._all_rows, resetting))
        # The resets of NEXT_STEP.
        if resetting is not None:
            rewards[resetting], truncated[resetting] = 0.0, False
            self._begin(resetting)
        np.logical_or(terminated, truncated, out=self._ended)
        self._num_ended = int(np.count_nonzero(self._ended))
        observations = self._observe()
        # The resets of SAME_STEP, which tell first what the episodes ended with.
        final: dict[str, Any] = {}
        if self._num_ended and self.autoreset_mode is AutoresetMode.SAME_STEP:
            ended = read_only(self._ended.copy())
            final = {"final_obs": copies_of_rows(observations, ended), "_final_obs": ended}
            final |= {"final_info": self._infos(restarted, ended), "_final_info": ended}
            self._begin(ended.nonzero()[0])
            self._ended[:], self._num_ended = False, 0
            observations = self._observe()
            restarted = read_only(restarted & ~ended)
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
        if self._single is not None:
            self._single.close()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        read_only(self._nowhere)  # NumPy's copies of read-only arrays can be written

    # What a subclass may change.

    def _check_switch(self, switch: Mapping[str, Any] | None) -> dict[str, Any]:
        """The switch that a user gave, an empty dictionary for None."""
        return check_switch(switch, self._single.task_type, self.num_envs)

    def _change_at(self, switch: Any) -> Callable[[TaskBatch, np.random.Generator], TaskBatch] | None:
        """What a switch makes of tasks, where that does not follow from their type."""

    # What a subclass provides.

    def _allocate(self) -> None:
        """Make the arrays that the physics work in, of n numbers of type ``_dtype`` each."""
        raise NotImplementedError

    def _derive(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """What the physics compute from the parameters ``Float64[P k]`` of k tasks alone: ``Float64[C k]``."""
        raise NotImplementedError

    def _advance(self, actions: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Move ``_state`` on by one step; the new rewards ``Float64[n]`` and failures ``Bool[n]``, new arrays."""
        raise NotImplementedError

    def _parse_actions(self, actions: Any) -> npt.NDArray[Any]:
        """What :meth:`_advance` takes, or a ValueError that names the first row whose action is not in the space."""
        raise NotImplementedError

    def _observe_state(self) -> Observations:
        """What the agents see of the state: a new array ``Float32[n D]``."""
        raise NotImplementedError

    def _prepare_painter(self, row: int) -> None:
        """Set what a picture shows beside the state and the task."""

    # Episodes.

    @property
    def _derived(self) -> npt.NDArray[Any]:
        """What :meth:`_derive` gave for the present tasks: ``Float[C n]``."""
        return self._row_tasks.derived

    def _end_warm_up(
        self,
        rewards: Floats,
        terminated: npt.NDArray[np.bool_],
        restarted: npt.NDArray[np.bool_],
        resetting: Rows | None,
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """No reward in a warm-up, in which an attempt may end but no episode; and the rows that begin one anew."""
        warm = self._elapsed <= self._warm_up_steps
        rewards[warm] = 0.0
        restarted = restarted | (warm & (terminated | (self._elapsed == self._warm_up_steps)))
        if resetting is not None:
            restarted[resetting] = False
        return terminated & ~warm, read_only(restarted)

    def _begin(self, rows: Rows, bounds: tuple[Floats, Floats] | None = None, tasks: TaskBatch | None = None) -> None:
        """Start an episode in ``rows``, in theirs of the ``tasks [n]`` where they are given."""
        self._row_tasks.begin(rows, tasks)
        self._elapsed[rows] = 0
        self._starts.begin(rows, bounds)
        self._draw_states(rows)
        self._noise.draw(rows)

    def _draw_states(self, rows: Rows) -> None:
        self._state.T[rows] = self._single.start_states(self._starts.draw(rows, self.np_random))

    # What is handed out.

    def _observe(self) -> Observations:
        observations, shown = self._noise.add(self._observe_state()), self._row_tasks.shown
        return observations if shown is None else np.concatenate([observations, shown], axis=1)

    def _infos(self, restarted: npt.NDArray[np.bool_], mask: npt.NDArray[np.bool_] | None = None) -> dict[str, Any]:
        """What is told of all rows or, with zeros elsewhere, of those of a mask."""
        infos = self._row_tasks.infos(mask)
        if not self._tells_restarts:
            return infos
        return infos | {"restarted": restarted if mask is None else restarted & mask, "_restarted": infos["_task_id"]}

    def _draw(self, row: int) -> Any:
        if not self._started:
            raise gym.error.ResetNeeded("reset() must be called before render().")
        self._single.task = self.tasks[row]
        self._single.state = self._state[:, row].astype(np.float64)
        self._prepare_painter(row)
        return self._single.render()
