"""What the environments share whose physics are a few numbers, so that many of them can be stepped at once."""

from collections.abc import Mapping
from typing import Any, ClassVar, Final, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.checks import check_choice, check_integer
from ssm_metarl_gym.envs.arguments import Family, SomeTask, check_reset_options, parse_state
from ssm_metarl_gym.envs.hidden_task import EnvStreams, HiddenTask
from ssm_metarl_gym.envs.observation_noise import ObservationNoise

__all__ = ["ClassicHiddenTask"]

Floats = npt.NDArray[np.float64]

# The index of the one row that a single environment is.
_THE_ROW: Final = np.zeros(1, dtype=np.intp)


class ClassicHiddenTask(HiddenTask[SomeTask]):
    """A hidden task in physics whose state is an array of a few numbers, drawn from a box when an episode starts.

    Subclass it together with the environment; say the box in :meth:`parse_bounds`, the physics in :meth:`_parse_action`
    and :meth:`_advance`, and what is seen of the state in :meth:`_observe_state`.

    Args:
        family: As for :class:`HiddenTask`; None for the plain family.
        split: ``"train"``, ``"interpolation"`` or ``"extrapolation"``.
        context: ``"hidden"``, or ``"visible"`` to append the parameters to the observation.
        task: A dictionary of parameters that every episode has, or None to draw them.
        switch: When the task changes, or None.
        on_failure: ``"terminate"``, or ``"restart"`` for trials, where there is such a thing as a failure.
        observation_noise: Standard deviation of the noise on each component of what is seen of the state.
        warm_up_steps: Steps at the start of every episode that are not rewarded; then the state is drawn anew, and the
            task stays. They count towards the time limit.
        render_mode: As in Gymnasium.
        **kwargs: What the environment takes.

    Attributes:
        state: The physical state ``Float64[S]``, None before the first reset.
    """

    # The name of the family that an environment has if it is given none.
    plain_family: ClassVar[str]
    # The greatest size of each of the S numbers of a state.
    state_limits: tuple[float, ...]
    # The options of a reset that :meth:`parse_bounds` reads.
    bound_options: ClassVar[tuple[str, ...]] = ()
    # What a failure costs in a trial; None where nothing can fail, so that every end is a success.
    failure_penalty: ClassVar[float | None] = None

    state: Any

    def __init__(
        self,
        family: Family | None = None,
        *,
        split: str = "train",
        context: str = "hidden",
        task: Mapping[str, float] | None = None,
        switch: Mapping[str, float] | None = None,
        on_failure: str = "terminate",
        observation_noise: float = 0.0,
        warm_up_steps: int = 0,
        render_mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        check_choice("on_failure", on_failure, ("terminate", "restart"))
        check_integer("warm_up_steps", warm_up_steps, least=0)
        self._is_trial = on_failure == "restart" and self.failure_penalty is not None
        self._warm_up_steps = warm_up_steps
        self._tells_restarts = self.failure_penalty is not None or warm_up_steps > 0
        self._elapsed = 0
        self._bounds = self.parse_bounds({}, ())
        super().__init__(
            self.plain_family if family is None else family,
            split=split,
            context=context,
            task=task,
            switch=switch,
            render_mode=render_mode,
            **kwargs,
        )
        num_shown = 0 if self._context is None else len(self._context.parameters)
        (num_seen,) = cast("tuple[int]", self.observation_space.shape)
        self._noise = ObservationNoise(observation_noise, 1, num_seen - num_shown)
        self.observation_space = self._noise.space(self.observation_space)
        self.state = None

    def parse_bounds(self, options: Mapping[str, Any], rows: tuple[int, ...]) -> tuple[Floats, Floats]:
        """The lowest and the highest starting state under the options of a reset.

        Args:
            options: The options, of which those of ``bound_options`` count.
            rows: ``()``, or ``(n,)`` where the options may have an entry for each of n rows.

        Returns:
            Two of ``Float64[*rows S]``.

        Raises:
            ValueError: An option has no valid value.
        """
        raise NotImplementedError

    def start_states(self, drawn: Floats) -> Floats:
        """The starting states that draws ``Float64[... S]`` from the box stand for: these themselves by default."""
        return drawn

    def step(self, action: Any) -> tuple[npt.NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Move the physics on by a step; what it takes as an action and how, the class tells."""
        parsed = self._parse_action(action)
        if self.state is None:
            raise gym.error.ResetNeeded("reset() must be called before step().")
        reward, ended = self._advance(parsed)
        self._elapsed += 1
        # A failure ends an episode or, in a trial, costs a penalty and starts another attempt.
        restarted = ended and self._is_trial
        if restarted:
            reward -= cast("float", self.failure_penalty)
        if self._elapsed <= self._warm_up_steps:
            reward, restarted = 0.0, ended or self._elapsed == self._warm_up_steps
        if restarted:
            ended = False
            self._draw_state()
        self._end_step()
        info = self._info() | ({"restarted": restarted} if self._tells_restarts else {})
        return self._observe(self._observe_state()), reward, ended, False, info

    def _parse_action(self, action: Any) -> Any:
        """What :meth:`_advance` takes, or a ValueError where the action is not in the space."""
        raise NotImplementedError

    def _advance(self, action: Any) -> tuple[float, bool]:
        """Move the state on by one step: the reward, and whether the episode or the attempt ends."""
        raise NotImplementedError

    def _observe_state(self) -> npt.NDArray[np.float32]:
        """What an agent sees of the state: ``Float32[D]``."""
        raise NotImplementedError

    def _observe(self, observation: npt.NDArray[Any]) -> npt.NDArray[Any]:
        self._noise.draw(_THE_ROW)
        return super()._observe(self._noise.add(observation[None])[0])

    def _seed_streams(self, streams: EnvStreams) -> None:
        super()._seed_streams(streams)
        self._noise.rng = streams.noise

    def _draw_state(self) -> None:
        self.state = self.start_states(self.np_random.uniform(*self._bounds))

    def _parse_start(self, options: dict[str, Any]) -> tuple[tuple[Floats, Floats], Floats | None]:
        check_reset_options(options, ("task", "state", *self.bound_options))
        state = parse_state(options["state"], self.state_limits) if "state" in options else None
        return self.parse_bounds(options, ()), state

    def _start(self, start: tuple[tuple[Floats, Floats], Floats | None]) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        self._bounds, state = start
        self._elapsed = 0
        # A state is drawn even where a given one makes that needless: later episodes do not depend on it.
        self._draw_state()
        if state is not None:
            self.state = state
        if self.render_mode == "human":
            self.render()
        return self._observe_state(), {"restarted": False} if self._tells_restarts else {}
