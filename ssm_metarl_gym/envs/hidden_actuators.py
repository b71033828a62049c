"""Hidden motors on any environment with a Box of actions."""

from collections.abc import Mapping
from typing import Any, SupportsFloat, cast

import gymnasium as gym
import numpy as np

from ssm_metarl_gym.envs.actuators import Actuators, check_actuator_switch, task_after_switch
from ssm_metarl_gym.envs.arguments import Family, check_reset_options, parse_task
from ssm_metarl_gym.envs.hidden_task import observable_space, shown_parameters
from ssm_metarl_gym.tasks.actuators import ActuatorTask
from ssm_metarl_gym.tasks.families import TaskFamily, actuator_family, parse_family

__all__ = ["HiddenActuators"]


class HiddenActuators(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Makes a task family of any environment with a bounded Box of actions: its motors obey a hidden map.

    The action executed is ``clip(M a + offset)``, some steps late, where 0 is the middle of the Box and 1 its half
    range: by task motors are weak, strong, reversed, swapped, mixed, dead, biased or late. Before a late action arrives
    the motors are told the middle of the Box. An action outside of the Box counts as the nearest bound.

    Every reset draws a task. Tasks and switches have random streams of their own, seeded with the environment, so that
    none of them changes the states that a seed leads to. ``reset(options={"task": ...})`` chooses the task of an
    episode; the other options go to the environment. ``info`` holds ``task_id`` and ``task_params``, those of the
    *next* step. Those of a wrapped environment that has hidden tasks itself are replaced.

    Example:
        >>> env = HiddenActuators(gym.make("Pendulum-v1"), task={"map_0_0": -0.5})
        >>> observation, info = env.reset(seed=0)
        >>> info["task_params"]
        {'map_0_0': -0.5, 'offset_0': 0.0, 'delay': 0.0}

    Args:
        env: The environment.
        family: What tasks are drawn from: a ``TaskFamily``, a distribution to train on, or what the ``to_dict`` of
            either gives; None for ``actuator_family(d)``: each motor has a hidden sign and a gain of 0.6 to 1.4, in
            extrapolation of 0.4 or 1.7.
        split: ``"train"``, ``"interpolation"`` or ``"extrapolation"``.
        context: ``"hidden"``, or ``"visible"`` to append the parameters that vary in the training tasks to the
            observation, scaled to [-1, 1]. Tasks of other splits and failed motors may lie outside.
        task: A dictionary of parameters (see ``ActuatorTask``) that every episode has, or None to draw them.
        switch: ``{"step": n}`` draws a new task after n steps, ``{"probability": p}`` after any step with probability
            p, None never. With ``"motor": g`` beside it, a motor drawn at random has g times its gain from then on in
            place of a new task: 0 for a motor that dies, -1 for one that is reversed, 0.5 for a weak one.

    Attributes:
        task: The task that governs the next step. Set it to a task or to a dictionary of parameters.

    Raises:
        ValueError: The environment has other actions, or an argument has no valid value.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        family: Family | None = None,
        *,
        split: str = "train",
        context: str = "hidden",
        task: Mapping[str, float] | None = None,
        switch: Mapping[str, float] | None = None,
    ) -> None:
        self._actuators = Actuators(env.action_space)
        self._task_type = self._actuators.task_type
        num_motors = self._task_type.num_motors()
        self._family = parse_family(actuator_family(num_motors) if family is None else family, self._task_type)
        self._switch = check_actuator_switch(switch)
        gym.utils.RecordConstructorArgs.__init__(
            self,
            family=None if family is None else self._family.to_dict(),
            split=split,
            context=context,
            task=None if task is None else parse_task(task, self._task_type).to_dict(),
            switch=self._switch or None,
        )
        super().__init__(env)
        self._split = split
        self._distribution = self._family.distribution(split)
        self._fixed_task = None if task is None else parse_task(task, self._task_type)
        fixed = () if self._fixed_task is None else (self._fixed_task,)
        self._context = shown_parameters(self._family, context, switch, fixed)
        if self._context is not None:
            self.observation_space = observable_space(env.observation_space, self._context)
        # How many of these wrappers lie within this one.
        self._depth, inside = 0, env
        while isinstance(inside, gym.Wrapper):
            self._depth += isinstance(inside, HiddenActuators)
            inside = inside.env
        self._task_rng: np.random.Generator | None = None
        self._switch_rng: np.random.Generator | None = None
        self._steps_to_switch: int | None = None
        self.task = self._fixed_task or self._task_type()

    @property
    def family(self) -> TaskFamily:
        """What tasks are drawn from."""
        return self._family

    def set_family(self, family: Family) -> None:
        """Draw the tasks of later resets from another family, see :meth:`HiddenTask.set_family`."""
        parsed = parse_family(family, self._task_type)
        self._distribution = parsed.distribution(self._split)
        self._family = parsed

    @property
    def task(self) -> ActuatorTask:
        """The task that governs the next step."""
        return self._task

    @task.setter
    def task(self, task: Any) -> None:
        self._task = parse_task(task, self._task_type)
        self._task_id, self._parameters = self._task.task_id, self._task.to_dict()
        self._actuators.obey(self._task)
        if self._context is not None:
            self._shown = self._context.normalise(self._task)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode with a new task: a drawn one, or that of the option ``task``."""
        others = dict(check_reset_options(options))
        given = others.pop("task", None)
        task = None if given is None else parse_task(given, self._task_type)
        observation, info = self.env.reset(seed=seed, options=others or None)
        if seed is not None or self._task_rng is None:
            self._seed_streams(seed)
        # Draws are made even where a given task makes them needless: later episodes do not depend on it.
        drawn = cast("ActuatorTask", self._distribution.sample(cast("np.random.Generator", self._task_rng)))
        self.task = task or self._fixed_task or drawn
        self._actuators.clear()
        self._steps_to_switch = self._draw_switch(first=True)
        return self._observe(observation), info | self._info()

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Execute what the actuators make of the action, then change the task where a switch is due."""
        executed = self._actuators.execute(action)
        try:
            observation, reward, terminated, truncated, info = self.env.step(executed)
        except BaseException:
            self._actuators.take_back()
            raise
        if self._steps_to_switch is not None:
            self._steps_to_switch -= 1
            if self._steps_to_switch == 0:
                rng = cast("np.random.Generator", self._switch_rng)
                self.task = task_after_switch(self._task, self._switch, self._distribution, rng)
                self._steps_to_switch = self._draw_switch(first=False)
        return self._observe(observation), reward, terminated, truncated, info | self._info()

    def _seed_streams(self, seed: int | None) -> None:
        """Seed the streams of tasks and switches with an environment that was just seeded."""
        if seed is None:
            seed = self.unwrapped.np_random_seed
            # A generator that the user set has no known seed: then the streams start from a draw of it.
            seed = seed if seed is not None and seed >= 0 else int(self.unwrapped.np_random.integers(2**63))
        # The first two are those of a wrapped environment with hidden tasks of its own, the next those of hidden motors
        # within these.
        *_, self._task_rng, self._switch_rng = self._family.generator(self._split, seed).spawn(3 + 2 * self._depth)

    def _draw_switch(self, *, first: bool) -> int | None:
        """The number of steps until the task changes, or None where it does not change any more."""
        if self._switch.get("probability", 0.0) > 0.0:
            return int(cast("np.random.Generator", self._switch_rng).geometric(self._switch["probability"]))
        return int(self._switch["step"]) if first and "step" in self._switch else None

    def _observe(self, observation: Any) -> Any:
        if self._context is None:
            return observation
        return np.concatenate([observation, self._shown], dtype=observation.dtype)

    def _info(self) -> dict[str, Any]:
        return {"task_id": self._task_id, "task_params": dict(self._parameters)}
