"""What the environments share whose physics are a few numbers, so that many of them can be stepped at once."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.checks import check_choice
from ssm_metarl_gym.envs.arguments import Family, SomeTask, check_reset_options, parse_state
from ssm_metarl_gym.envs.hidden_task import HiddenTask

__all__ = ["ClassicHiddenTask"]

Floats = npt.NDArray[np.float64]


class ClassicHiddenTask(HiddenTask[SomeTask]):
    """A hidden task in physics whose state is an array of a few numbers, drawn from a box when an episode starts.

    Subclass it together with the environment; say the box in :meth:`parse_bounds` and what is seen of the state in
    :meth:`_observe_state`. The batched form of the environment takes both from here.

    Args:
        family: As for :class:`HiddenTask`; None for the plain family.
        split: ``"train"``, ``"interpolation"`` or ``"extrapolation"``.
        context: ``"hidden"``, or ``"visible"`` to append the parameters to the observation.
        task: A dictionary of parameters that every episode has, or None to draw them.
        switch: When the sign of the task flips, or None.
        on_failure: ``"terminate"``, or ``"restart"`` for trials, where there is such a thing as a failure.
        render_mode: As in Gymnasium.
        **kwargs: What the environment takes.

    Attributes:
        state: The physical state ``Float64[S]``, None before the first reset.
    """

    # The name of the family that an environment has if it is given none.
    plain_family: ClassVar[str]
    # The greatest size of each of the S numbers of a state.
    state_limits: ClassVar[tuple[float, ...]]
    # The options of a reset that :meth:`parse_bounds` reads.
    bound_options: ClassVar[tuple[str, ...]] = ()

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
        render_mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        check_choice("on_failure", on_failure, ("terminate", "restart"))
        self._is_trial = on_failure == "restart"
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
        self.state = None

    @classmethod
    def parse_bounds(cls, options: Mapping[str, Any], rows: tuple[int, ...]) -> tuple[Floats, Floats]:
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

    def _observe_state(self) -> npt.NDArray[np.float32]:
        """What an agent sees of the state: ``Float32[D]``."""
        raise NotImplementedError

    def _draw_state(self) -> None:
        self.state = self.np_random.uniform(*self._bounds)

    def _parse_start(self, options: dict[str, Any]) -> tuple[tuple[Floats, Floats], Floats | None]:
        check_reset_options(options, ("task", "state", *self.bound_options))
        state = parse_state(options["state"], self.state_limits) if "state" in options else None
        return self.parse_bounds(options, ()), state

    def _start(self, start: tuple[tuple[Floats, Floats], Floats | None]) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        self._bounds, state = start
        # A state is drawn even where a given one makes that needless: later episodes do not depend on it.
        self._draw_state()
        if state is not None:
            self.state = state
        if self.render_mode == "human":
            self.render()
        return self._observe_state(), {}
