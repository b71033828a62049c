"""What the environments with a hidden task share: drawing it, switching it, observing it and showing it."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Generic, NamedTuple, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils import EzPickle

from ssm_metarl_gym.checks import check_choice, shown
from ssm_metarl_gym.envs.arguments import Family, SomeTask, check_reset_options, check_switch, parse_task
from ssm_metarl_gym.envs.rows import read_only
from ssm_metarl_gym.seeding import seed_sequence
from ssm_metarl_gym.tasks.distributions import TaskDistribution, TaskSet
from ssm_metarl_gym.tasks.families import TaskFamily, parse_family
from ssm_metarl_gym.tasks.marginals import Choice, Marginal, Uniform
from ssm_metarl_gym.tasks.task import Task

__all__ = [
    "DerivedQuantity",
    "EnvStreams",
    "HiddenTask",
    "TaskParameter",
    "observable_space",
    "shown_parameters",
]


class HiddenTask(gym.Env[npt.NDArray[Any], Any], Generic[SomeTask]):
    """A mixin that makes a family of tasks of any Gymnasium environment class with parameters that can be set.

    Subclass it together with the environment, name the type of the tasks, and say what a parameter sets: an attribute
    of the environment (``TaskParameter``), one that follows from others (``DerivedQuantity``), or anything else
    (:meth:`_apply_task`, which is called whenever the task changes). The environment must draw from its ``np_random``
    and have a ``Box`` as observation space.

    Every reset draws a task. The task has a random stream of its own, seeded with the environment: whether a task is
    drawn or given never changes the physical states that a seed leads to.

    Example:
        >>> from gymnasium.envs.classic_control import MountainCarEnv
        >>> @dataclass(frozen=True)
        ... class MountainCarTask(Task):
        ...     gravity: float = 0.0025
        >>> class TaskMountainCarEnv(HiddenTask, MountainCarEnv):
        ...     task_type = MountainCarTask
        ...     gravity = TaskParameter()
        >>> env = TaskMountainCarEnv(TaskDistribution(MountainCarTask, {"gravity": Uniform((0.002, 0.003))}))
        >>> observation, info = env.reset(seed=0)
        >>> round(info["task_params"]["gravity"], 4) == round(env.gravity, 4)
        True

    Args:
        family: The name of a family in the catalogue, or a ``TaskFamily``, a ``TaskDistribution`` to train on, or what
            the ``to_dict`` of either gives, which JSON can hold.
        split: ``"train"``, ``"interpolation"`` or ``"extrapolation"``.
        context: ``"hidden"``, or ``"visible"`` to append the parameters that vary in the training tasks to the
            observation, scaled to [-1, 1].
        task: A dictionary of parameters that every episode has, or None to draw them.
        switch: ``{"step": n}`` flips the sign of the task after n steps, ``{"probability": p}`` after any step with
            probability p, None never. Where ``Task.switch_draws`` says so, it draws another task instead.
        **kwargs: What the environment takes.
    """

    task_type: type[SomeTask]

    def __init__(
        self,
        family: Family,
        *,
        split: str = "train",
        context: str = "hidden",
        task: Mapping[str, float] | None = None,
        switch: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self._check_parameters(kwargs)
        self._family = parse_family(family, self.task_type)
        self._distribution = self._family.distribution(split)
        self._split = split
        self._switch = self._check_switch(switch)
        self._fixed_task = None if task is None else self._parse_task(task)
        fixed = () if self._fixed_task is None else (self._fixed_task,)
        self._context = shown_parameters(self._family, context, switch, fixed)
        self._task_rng: np.random.Generator | None = None
        self._switch_rng: np.random.Generator | None = None
        self._steps_to_switch: int | None = None
        # Gymnasium's constructor sets every parameter to its default, so the task comes into force after it.
        self._constructed = False
        self.task = self.task_type()
        given = {name: vars(self)[name] for name in _GIVEN}
        super().__init__(**kwargs)
        self._check_names(given)
        self._constructed = True
        self.task = self._fixed_task or self.task_type()
        self.observation_space = observable_space(self.observation_space, self._context)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in _behind(cls):
            if taken := sorted(_own_names() & vars(base).keys()):
                raise ValueError(
                    f"{base.__name__} must not have {', '.join(taken)}, as HiddenTask has for itself. Rename it there."
                )

    def _check_names(self, given: Mapping[str, Any]) -> None:
        """The environment's own constructor must have left alone what HiddenTask has for itself."""
        taken = {name for name in given if vars(self).get(name) is not given[name]}
        taken |= (_own_names() - {"_varying"}) & vars(self).keys()
        if not isinstance(self._task, self.task_type):
            taken.add("_task")
        elif (self._task_id, self._parameters) != (self._task.task_id, self._task.to_dict()):
            taken |= {"_task_id", "_parameters"}
        if taken:
            raise ValueError(
                f"{type(self).__name__} must not set {', '.join(sorted(taken))}, as HiddenTask has for itself. Rename "
                "it in the environment."
            )

    @classmethod
    def _check_parameters(cls, kwargs: Mapping[str, Any]) -> None:
        """Every ``TaskParameter`` must be one of the task, which alone sets it."""
        for name in dir(cls):
            if isinstance(getattr(cls, name), TaskParameter):
                check_choice(f"a TaskParameter of {cls.__name__}", name, cls.task_type.parameter_names())
                if name in kwargs:
                    raise ValueError(f"{name} is set by the task; got {name}={shown(kwargs[name])}. Give task={{...}}.")

    def _check_switch(self, switch: Mapping[str, Any] | None) -> dict[str, Any]:
        """The switch that a user gave, an empty dictionary for None."""
        return check_switch(switch, self.task_type)

    @property
    def family(self) -> TaskFamily:
        """What tasks are drawn from."""
        return self._family

    def set_family(self, family: Family) -> None:
        """Draw the tasks of later resets from another family over the same type of task.

        The episode goes on with its task. What ``context="visible"`` shows, and its scale, stay those of the family
        that the environment was made with.

        Args:
            family: In any form that the constructor takes.

        Raises:
            ValueError: It is of another type of task, or has no tasks for the split.
        """
        parsed = parse_family(family, self.task_type)
        self._distribution = parsed.distribution(self._split)
        self._family = parsed
        self.__dict__.pop("_varying", None)

    @property
    def task(self) -> SomeTask:
        """The task that governs the next step."""
        return self._task

    @task.setter
    def task(self, task: SomeTask) -> None:
        self._task = self._parse_task(task)
        self._task_id, self._parameters = self._task.task_id, self._task.to_dict()
        if self._context is not None:
            self._shown = self._context.normalise(self._task)
        if self._constructed:
            self._apply_task()

    def _apply_task(self) -> None:
        """Bring the new task into force, where that takes more than a ``TaskParameter``."""

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        """Start an episode with a new task: a drawn one, or that of the option ``task``."""
        others = dict(check_reset_options(options))
        given = others.pop("task", None)
        task = None if given is None else self._parse_task(given)
        start = self._parse_start(others)
        # Nothing may change before every option is known to be valid.
        gym.Env.reset(self, seed=seed)
        self._begin_task(seed, task)
        observation, info = self._start(start)
        return self._observe(observation), info | self._info()

    def _parse_start(self, options: dict[str, Any]) -> Any:
        """What :meth:`_start` takes, from the options of a reset without the task; a ValueError where one is wrong."""
        return options

    def _start(self, start: Any) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        """Start the physics of an episode in the present task, and give what Gymnasium's ``reset`` would."""
        return super().reset(options=start or None)

    def step(self, action: Any) -> tuple[npt.NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Step with the present task, then change it where a switch is due."""
        observation, reward, terminated, truncated, info = super().step(action)
        self._end_step()
        return self._observe(observation), float(reward), terminated, truncated, info | self._info()

    def _observe(self, observation: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What the agent sees: the physical observation and, where they are visible, the normalised parameters."""
        if self._context is None:
            return observation
        return np.concatenate([observation, self._shown], dtype=observation.dtype)

    def _info(self) -> dict[str, Any]:
        return {"task_id": self._task_id, "task_params": dict(self._parameters)}

    def _parse_task(self, task: Any) -> SomeTask:
        return parse_task(task, self.task_type)

    def _begin_task(self, seed: int | None, task: SomeTask | None) -> None:
        """Start an episode: seed the task stream where ``seed`` is given, choose the task, draw the first switch.

        The draws are made even where a given task makes them needless, so that later episodes do not depend on it.
        """
        if seed is not None or self._task_rng is None:
            self._seed_streams(EnvStreams.of(self, self._family, self._split))
        drawn = cast("SomeTask", self._distribution.sample(cast("np.random.Generator", self._task_rng)))
        self.task = task or self._fixed_task or drawn
        self._steps_to_switch = self._draw_switch(first=True)

    def _seed_streams(self, streams: "EnvStreams") -> None:
        """Go on with the streams of an environment that was just seeded."""
        self._task_rng, self._switch_rng = streams.tasks, streams.switches

    def _draw_switch(self, *, first: bool) -> int | None:
        """The number of steps until the task changes, or None where it does not change any more."""
        if "probability" in self._switch and self._switch["probability"] > 0.0:
            rng = cast("np.random.Generator", self._switch_rng)
            return int(rng.geometric(self._switch["probability"]))
        return int(self._switch["step"]) if first and "step" in self._switch else None

    def _end_step(self) -> None:
        """Change the task where a switch is due, so that ``task`` is always the one of the next step."""
        if self._steps_to_switch is None:
            return
        self._steps_to_switch -= 1
        if self._steps_to_switch == 0:
            self.task = self._task_after_switch()
            self._steps_to_switch = self._draw_switch(first=False)

    def _task_after_switch(self) -> SomeTask:
        """The present task with its sign flipped or, where that is what a switch does, another one."""
        if self.task_type.switch_draws:
            return cast("SomeTask", self._distribution.sample(cast("np.random.Generator", self._switch_rng)))
        sign = self.task_type.signs[0]
        return replace(self._task, **{sign: -getattr(self._task, sign)})

    def render(self) -> Any:
        """Gymnasium's picture of the physics, with the hidden task as a caption."""
        frame: Any = super().render()
        screen = getattr(self, "screen", None)
        if screen is None or self.render_mode is None:
            return frame
        caption = _caption(self._task, self._varying)
        if self.render_mode == "human":
            import pygame

            pygame.display.update(screen.blit(pygame.surfarray.make_surface(caption), _CAPTION_PLACE))
            return None
        # Into the array that Gymnasium made of the screen, of which another copy would take as long as the picture.
        columns, rows = (slice(start, start + size) for start, size in zip(_CAPTION_PLACE, caption.shape, strict=False))
        area = frame[rows, columns]
        area[:] = caption.swapaxes(0, 1)[: area.shape[0], : area.shape[1]]
        return frame

    @functools.cached_property
    def _varying(self) -> frozenset[str]:
        """The parameters that vary in the split."""
        return frozenset(self._distribution.parameters)

    def __getstate__(self) -> dict[str, Any]:
        of_base = _state_of_base(self)
        state = self.__dict__ if of_base is None else of_base | {_IS_OF_BASE: True}
        # Pygame's surfaces can be neither copied nor pickled; the next render makes new ones.
        return {name: None if _is_picture(value) else value for name, value in state.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        is_of_base = state.pop(_IS_OF_BASE, False)
        # Gymnasium's EzPickle would call the environment's own constructor instead, without the family.
        self.__dict__.update(state)
        if is_of_base and (of_base := _method_of_base(self, "__setstate__")) is not None:
            of_base(state)
            self.__dict__.update({name: state[name] for name in (*_OURS, "observation_space") if name in state})


# What HiddenTask keeps: what it was given, and what the course of an episode changes.
_GIVEN: Final = ("_family", "_distribution", "_split", "_switch", "_fixed_task", "_context")
_CHANGING: Final = ("_task_rng", "_switch_rng", "_steps_to_switch", "_constructed")
_OURS: Final = (*_GIVEN, *_CHANGING, "_task", "_task_id", "_parameters", "_shown")
_IS_OF_BASE: Final = "_is_of_base"  # in a state: whether it is what the base gave


@functools.cache
def _own_names() -> frozenset[str]:
    """What a class behind HiddenTask cannot have, as HiddenTask's would take its place."""
    names = {name for name in vars(HiddenTask) if not name.startswith("__")}
    return frozenset(names - {"reset", "step", "render"})


def _behind(env_type: type) -> Iterator[type]:
    """The classes behind HiddenTask that are none of its subclasses: what it would hide the methods of."""
    order = env_type.__mro__
    return (base for base in order[order.index(HiddenTask) :] if not issubclass(base, HiddenTask))


def _method_of_base(env: HiddenTask[Any], name: str) -> Callable[..., Any] | None:
    """A method of the first class behind HiddenTask that has one of its own; EzPickle's does not count."""
    for base in _behind(type(env)):
        if name in vars(base) and base not in (object, EzPickle):
            return cast("Callable[..., Any]", vars(base)[name].__get__(env))
    return None


def _state_of_base(env: HiddenTask[Any]) -> dict[str, Any] | None:
    """The attributes, without those that a base leaves out as it makes them anew; None where none does so.

    A base that keeps something else, as the arguments of its constructor, knows nothing of the task.
    """
    if (of_base := _method_of_base(env, "__getstate__")) is None:
        return None
    state = of_base()
    is_of_attributes = isinstance(state, dict) and state.keys() >= {name for name in _OURS if name in vars(env)}
    return state if is_of_attributes else None


def _is_picture(value: object) -> bool:
    kind = type(value)
    return kind.__module__.partition(".")[0] == "pygame" and kind.__name__ in ("Surface", "Clock", "Font")


# Where the caption of a picture is, from the left and from the top.
_CAPTION_PLACE: Final = (10, 10)


@functools.lru_cache(maxsize=256)
def _caption(task: Task, varying: frozenset[str]) -> npt.NDArray[np.uint8]:
    """The signs of a task, what varies and what differs from the default, drawn: ``UInt8[W H 3]``."""
    import pygame

    # The font is made anew with each caption, as closing a window makes all fonts useless.
    pygame.font.init()
    defaults, signs = type(task)().to_dict(), task.signs
    told = [
        f"{name} {value:+d}" if name in signs else f"{name} {value:.3g}"
        for name, value in task.to_dict().items()
        if name in signs or name in varying or value != defaults[name]
    ]
    drawn = pygame.font.Font(None, 24).render("   ".join(told), True, (60, 60, 60), (255, 255, 255))
    return read_only(pygame.surfarray.array3d(drawn))


class TaskParameter:
    """A parameter that lives in the task alone, so that it, the task and what is derived from both never disagree."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, env: HiddenTask[Any], owner: type | None = None) -> Any:
        return self if env is None else getattr(env.task, self._name)

    def __set__(self, env: HiddenTask[Any], value: float) -> None:
        env.task = replace(env.task, **{self._name: value})


class DerivedQuantity:
    """A quantity that follows from the task, so that it never goes stale and cannot be set."""

    def __init__(self, formula: Callable[[Any], float]) -> None:
        self._formula = formula

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, env: HiddenTask[Any], owner: type | None = None) -> Any:
        return self if env is None else self._formula(env)

    def __set__(self, env: HiddenTask[Any], value: float) -> None:
        # Gymnasium's constructors assign it, to what it is anyway.
        if value != self._formula(env):
            raise ValueError(f"{self._name} follows from the task and cannot be set; got {shown(value)}. Set the task.")


def shown_parameters(
    family: TaskFamily, context: str, switch: Mapping[str, Any] | None, fixed: Sequence[Task] = ()
) -> TaskDistribution | None:
    """The parameters that the observation shows, as the distribution that scales them, or None for hidden ones.

    Args:
        family: The family.
        context: ``"hidden"`` or ``"visible"``.
        switch: What changes in mid-episode.
        fixed: The tasks that episodes have in place of drawn ones.
    """
    check_choice("context", context, ("hidden", "visible"))
    if context == "hidden":
        return None
    parameters = family.train.parameters
    # Whoever is told the parameters must see them change, even in a family where they do not vary: the sign that flips,
    # and all that a motor does which fails.
    changes: dict[str, Marginal] = dict.fromkeys(family.task_type.signs[:1], Choice(-1, 1)) if switch else {}
    if switch and "motor" in switch:
        known = family.train.tasks if isinstance(family.train, TaskSet) else ()
        numbers = [task.to_dict() for task in (family.task_type(), *fixed, *known)]
        for name in family.task_type.parameter_names():
            most = max(abs(one[name]) for one in numbers)
            if name.startswith("map_") and name not in parameters and most > 0.0:
                changes[name] = Uniform((-most, most))
    return TaskDistribution(family.task_type, parameters | changes)


def observable_space(space: Any, context: TaskDistribution | None) -> Any:
    """The space of the observations: that of the physics, with room for the parameters where they are visible."""
    if not isinstance(space, spaces.Box):
        raise ValueError(f"an environment with a hidden task must have a Box as observation space; got {space}.")
    if not np.issubdtype(space.dtype, np.floating) or len(space.shape) != 1:
        if context is not None:
            raise ValueError(f"context='visible' needs a one-dimensional Box of floats to append to; got {space}.")
        return space
    # A bound as large as a type can hold is none, and must say so: whatever scales by bounds then refuses to, as with
    # Gymnasium's own environments, where it would take all numbers to the middle of its range without a word.
    largest = np.finfo(np.float32).max
    low = np.where(space.low <= -largest, -np.inf, space.low)
    high = np.where(space.high >= largest, np.inf, space.high)
    if context is not None:
        room = np.full(len(context.parameters), np.inf)  # a task may lie outside of the training range
        low, high = np.append(low, -room), np.append(high, room)
    return spaces.Box(low.astype(space.dtype), high.astype(space.dtype), dtype=space.dtype)


class EnvStreams(NamedTuple):
    """The random streams of an environment beside that of its states: none changes what comes from another."""

    tasks: np.random.Generator
    switches: np.random.Generator
    noise: np.random.Generator

    @classmethod
    def of(
        cls, env: gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any], family: TaskFamily, split: str
    ) -> "EnvStreams":
        """Those of an environment that was just seeded."""
        # A generator that the user set has no known seed (-1): then the streams start from a draw of it.
        seed = cast("int", env.np_random_seed)
        seed = seed if seed >= 0 else int(env.np_random.integers(2**63))
        tasks = family.generator(split, seed)
        # Another stream for the switches: how many an episode sees must not change the tasks of later ones.
        (switches,) = tasks.spawn(1)
        return cls(tasks, switches, np.random.default_rng(seed_sequence(seed, "observation noise")))
