"""What the environments with a hidden task share: drawing it, switching it, observing it and showing it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, Generic, TypeVar, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from ssm_metarl_gym.checks import check_choice
from ssm_metarl_gym.tasks import FAMILIES, Choice, Task, TaskDistribution

__all__ = ["DerivedQuantity", "HiddenTask", "TaskParameter"]

# Bounds of an observation that has none: finite, because environment checkers warn of infinite ones.
_UNBOUNDED: Final = float(np.finfo(np.float32).max)
_CONTEXTS: Final = ("hidden", "visible")

SomeTask = TypeVar("SomeTask", bound=Task)


class HiddenTask(gym.Env[npt.NDArray[np.float32], Any], Generic[SomeTask]):
    """A mixin for one of Gymnasium's environments, which adds a task that is drawn anew at every reset.

    The task has a random stream of its own, seeded with the environment: whether a task is drawn or given never
    changes the physical states that a seed leads to.
    """

    task_type: type[SomeTask]

    def __init__(
        self,
        *,
        family: str,
        split: str,
        context: str,
        task: Mapping[str, float] | None,
        switch: Mapping[str, float] | None,
        **kwargs: Any,
    ) -> None:
        check_choice("family", family, [name for name in FAMILIES if FAMILIES[name].train.task_type is self.task_type])
        check_choice("context", context, _CONTEXTS)
        self._family = FAMILIES[family]
        self._distribution = self._family.distribution(split)
        self._split = split
        self._context_visible = context == "visible"
        self._fixed_task = None if task is None else self._parse_task(task)
        self._switch = _check_switch(switch)
        # Whoever is told the parameters must see the polarity flip, even in a family where it does not vary.
        shown = self._family.train.parameters | ({"polarity": Choice(-1, 1)} if self._switch else {})
        self._context = TaskDistribution(self.task_type, shown)
        self._task_rng: np.random.Generator | None = None
        self._switch_rng: np.random.Generator | None = None
        self._steps_to_switch: int | None = None
        # Gymnasium's constructor sets every parameter to its default, so the task comes into force after it.
        self.task = self.task_type()
        super().__init__(**kwargs)
        self.task = self._fixed_task or self.task_type()
        self.observation_space = self._observable(self.observation_space)

    @property
    def task(self) -> SomeTask:
        """The task that governs the next step."""
        return self._task

    @task.setter
    def task(self, task: SomeTask) -> None:
        self._task = self._parse_task(task)
        self._task_id = task.task_id

    def _observable(self, space: Any) -> Any:
        """The space of the observations: finite bounds, and room for the parameters where they are visible."""
        high = np.nan_to_num(space.high, posinf=_UNBOUNDED)
        if self._context_visible:
            high = np.append(high, np.full(len(self._context.parameters), _UNBOUNDED)).astype(np.float32)
        return spaces.Box(-high, high, dtype=np.float32)

    def _observe(self, observation: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What the agent sees: the physical observation and, where they are visible, the normalised parameters."""
        if not self._context_visible:
            return observation
        return np.concatenate([observation, self._context.normalise(self._task)])

    def _info(self) -> dict[str, Any]:
        return {"task_id": self._task_id, "task_params": self._task.to_dict()}

    def _parse_task(self, task: Any) -> SomeTask:
        """The task that a user gave, as a dictionary of parameters or as it is."""
        parsed = task if isinstance(task, Task) else self.task_type.from_dict(task)
        if not isinstance(parsed, self.task_type):
            raise ValueError(f"task must be a {self.task_type.__name__}; got {task!r}.")
        return parsed

    def _begin_task(self, seed: int | None, task: SomeTask | None) -> None:
        """Start an episode: seed the task stream where ``seed`` is given, choose the task, draw the first switch.

        The draws are made even where a given task makes them needless, so that later episodes do not depend on it.
        """
        if seed is not None or self._task_rng is None:
            # A generator that the user set has no known seed (-1): then the stream starts from a draw of it.
            known = self.np_random_seed if self.np_random_seed >= 0 else int(self.np_random.integers(2**63))
            self._task_rng = self._family.generator(self._split, known)
            # Another stream for the switches: how many an episode sees must not change the tasks of later ones.
            (self._switch_rng,) = self._task_rng.spawn(1)
        drawn = cast("SomeTask", self._distribution.sample(self._task_rng))
        self.task = task or self._fixed_task or drawn
        self._steps_to_switch = self._draw_switch(first=True)

    def _draw_switch(self, *, first: bool) -> int | None:
        """The number of steps until the polarity flips, or None where it does not flip any more."""
        if "probability" in self._switch and self._switch["probability"] > 0.0:
            rng = cast("np.random.Generator", self._switch_rng)
            return int(rng.geometric(self._switch["probability"]))
        return int(self._switch["step"]) if first and "step" in self._switch else None

    def _end_step(self) -> None:
        """Flip the polarity where a switch is due, so that ``task`` is always the one of the next step."""
        if self._steps_to_switch is None:
            return
        self._steps_to_switch -= 1
        if self._steps_to_switch == 0:
            self.task = replace(self._task, polarity=-self._task.polarity)
            self._steps_to_switch = self._draw_switch(first=False)

    def render(self) -> Any:
        """Gymnasium's picture of the physics, with the hidden task as a caption."""
        frame = super().render()
        screen = getattr(self, "screen", None)
        if screen is None or self.render_mode is None:
            return frame
        import pygame

        pygame.font.init()
        defaults, varying = self.task_type().to_dict(), self._distribution.parameters
        told = [f"polarity {self._task.polarity:+d}"] + [
            f"{name} {value:.3g}"
            for name, value in self._task.to_dict().items()
            if name != "polarity" and (name in varying or value != defaults[name])
        ]
        caption = pygame.font.Font(None, 24).render("   ".join(told), True, (60, 60, 60), (255, 255, 255))
        area = screen.blit(caption, (10, 10))
        if self.render_mode == "human":
            pygame.display.update(area)
            return None
        return np.transpose(np.array(pygame.surfarray.pixels3d(screen)), axes=(1, 0, 2))

    def __getstate__(self) -> dict[str, Any]:
        # Pygame's surfaces can be neither copied nor pickled; the next render makes new ones.
        return self.__dict__ | {name: None for name in ("screen", "clock", "surf") if name in self.__dict__}


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
            raise ValueError(f"{self._name} follows from the task and cannot be set; got {value!r}. Set the task.")


def check_reset_options(options: Mapping[str, Any] | None, valid: tuple[str, ...]) -> Mapping[str, Any]:
    """The options of a reset, or a ValueError that names the nearest valid key where one does not exist."""
    for name in options or {}:
        check_choice("an option of reset", name, valid)
    return options or {}


def parse_state(state: Any, size: int) -> npt.NDArray[np.float64]:
    """The physical state that a user gave: ``Float[size]``, finite."""
    try:
        parsed = np.array(state, dtype=np.float64)
    except (TypeError, ValueError):
        parsed = np.full(size, np.nan)
    if parsed.shape != (size,) or not np.isfinite(parsed).all():
        raise ValueError(f"the option 'state' must be {size} finite numbers; got {state!r}.")
    return parsed


def _check_switch(switch: Mapping[str, float] | None) -> dict[str, float]:
    if switch is None:
        return {}
    if isinstance(switch, Mapping) and len(switch) == 1:
        name, value = next(iter(switch.items()))
        if name == "probability" and isinstance(value, (int, float)) and 0.0 <= value <= 1.0:
            return {name: value}
        if name == "step" and isinstance(value, (int, np.integer)) and value >= 1:
            return {name: value}
    raise ValueError(
        "switch must be None, {'probability': p} with p in [0, 1] or {'step': n} with a whole number n >= 1; "
        f"got {switch!r}."
    )
