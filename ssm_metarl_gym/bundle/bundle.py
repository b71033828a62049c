"""A policy behind both wrappers, as a robot runs it: observations in, actions out."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.bundle.action_space import ActionSpace
from ssm_metarl_gym.bundle.adapters import AdaptingWeights, GradientSteps
from ssm_metarl_gym.bundle.bundle_file import read_bundle
from ssm_metarl_gym.bundle.corrector import make_corrector
from ssm_metarl_gym.bundle.kalman import KalmanFilter
from ssm_metarl_gym.bundle.layers import Floats
from ssm_metarl_gym.bundle.model import Model
from ssm_metarl_gym.bundle.online import Online, Transition
from ssm_metarl_gym.bundle.policy import make_policy
from ssm_metarl_gym.bundle.recursive import LeastSquares
from ssm_metarl_gym.checks import as_array, check_integer, shown

__all__ = ["Bundle", "load_bundle"]

_ADAPTERS: Final[dict[str, Any]] = {
    "Adapter": GradientSteps,
    "RecursiveLeastSquares": LeastSquares,
    "KalmanAdapter": KalmanFilter,
}


class Bundle:
    """A policy whose actions are corrected by a model that keeps adapting, on numpy alone.

    What :meth:`ssm_metarl_gym.wrappers.ActionCorrection.save_bundle` wrote; :func:`load_bundle` makes it. Its actions
    are those of the policy behind the wrappers. It never raises an error because of numbers, and its actions are finite
    and within the bounds:

    - **A bad sensor.** Where components of an observation are not finite, the policy is shown their last finite values
      (zeros before the first one), its action is not corrected, and nothing is learned from the transitions to and from
      that observation. Where the policy itself gives what is no number, or one of the numbers that it chooses by is
      none, the action that was taken before is taken once more, as it was (the one nearest to zero before the first
      one).
    - **A missed tick.** Say so by ``missed=True``: no transition leads from the observation before to this one.
    - **A reset.** :meth:`reset` begins an episode: the weights go back to the source, unless the wrappers were made to
      never restore them.

    docs/bundle.md has an example.

    Attributes:
        observation_dim: The length D of an observation.
    """

    def __init__(self, described: Mapping[str, Any], weights: Mapping[str, Mapping[str, Floats]]) -> None:
        self.observation_dim: int = described["observation_dim"]
        self._space = ActionSpace(described["action_space"])
        own = {"observation_dim": self.observation_dim, "space": self._space}
        model = Model(described["model"], weights["model"], **own)
        same = described["reference"] is None
        reference = model if same else Model(described["reference"], weights["reference"], **own)
        options = described["adapter"]
        adapter: AdaptingWeights = _ADAPTERS[options["kind"]](model, options)
        self._corrector = make_corrector(adapter, reference, described["correction"])
        twin = _ADAPTERS[options["kind"]](model, options) if self._corrector.compares_effects else None
        self._online = Online(adapter, twin, described["online"], expects_source=same)
        self._policy = make_policy(described["policy"], weights["policy"], self._space)
        self._twin = twin
        self.reset()
        # What does not fit together is found here and not on the robot's first step.
        with np.errstate(all="ignore"):
            asked = self._policy(self._online.shown(np.zeros(self.observation_dim)))
        if asked.shape != self._space.zero.shape:
            raise ValueError(f"the policy must give an action of the shape {self._space.zero.shape}; it gave {asked}.")
        if not self._space.contains(asked):
            raise ValueError(f"the policy must give an action of its space; it gave {asked}.")
        self.reset(seed=0)

    def reset(self, *, seed: int | None = None) -> None:
        """Begin an episode.

        Args:
            seed: Of what is random, the exploration of an action map that is known badly and which episodes are left
                out; None goes on with the streams there are, which are those of the seed 0 at first.

        Raises:
            ValueError: The seed is no whole number >= 0.
        """
        if seed is not None:
            check_integer("seed", seed, least=0)
            self._corrector.seed(seed)
        self._online.reset(seed)
        self._corrector.begin()
        self._policy.reset()
        self._before: tuple[Floats, Floats] | None = None  # the last observation and the action
        self._last_seen = np.zeros(self.observation_dim)
        self._asked = self._taken = self._space.zero
        self._is_open = self._was_refused = False

    @property
    def info(self) -> dict[str, dict[str, Any]]:
        """What the infos of the wrappers hold: ``"adaptation"`` and, once there was an action, ``"correction"``.

        The first tells what was learned from the step that led to the last observation, the second what was asked for
        there and is taken.
        """
        with np.errstate(all="ignore"):
            adaptation = self._online.info
        return {"adaptation": adaptation} | ({} if self._before is None else {"correction": self._report()})

    def act(self, observation: npt.ArrayLike, *, missed: bool = False) -> npt.NDArray[Any]:
        """Learn from the step that led here, and say what to do next.

        Args:
            observation: ``Float[D]``, as it comes from the sensors.
            missed: Whether the last action did not lead here, or not in the time of one step: a tick was missed, or
                a trial starts again.

        Returns:
            ``Int[]`` of choices, ``Float[A]`` of a box.

        Raises:
            ValueError: The observation is not a vector of D numbers. Nothing is learned from the step that follows, as
                nobody knows where it began.
        """
        raw = as_array(observation)
        if raw.shape != (self.observation_dim,) or raw.dtype.kind not in "biuf":
            self._was_refused = True
            raise ValueError(
                f"observation must be {self.observation_dim} numbers; got {shown(observation)}. Give that of one "
                "robot, without a dimension for rows."
            )
        missed, self._was_refused = missed or self._was_refused, False
        with np.errstate(all="ignore"):
            here = raw.astype(np.float32)
            self._learn(here, missed)
            are_finite = np.isfinite(here)
            self._last_seen = np.where(are_finite, raw, self._last_seen).astype(np.float64)
            asked = self._policy(self._online.shown(self._last_seen))
            is_number = bool(np.isfinite(asked).all())
            if not is_number:
                asked = self._taken  # which was corrected where that was called for: not once more
            taken, is_open = asked, False
            if is_number and are_finite.all():
                taken, is_open = self._correct(here, asked)
            self._before = here, taken
        self._asked, self._taken, self._is_open = asked, taken, is_open
        return taken.copy()

    def _learn(self, here: Floats, missed: bool) -> None:
        """Adapt to the step from the last observation to this one, if there was one."""
        if self._before is None:
            return
        transition = None
        if not missed:
            before, action = self._before
            target = self._online.adapter.model.targets(before, here)
            transition = Transition(target[None], *self._corrector.expect(before, action))
        self._corrector.learn(self._online.learn(transition))

    def _correct(self, here: Floats, asked: Floats) -> tuple[Floats, bool]:
        """The action to take, and whether it is a corrected one."""
        corrector = self._corrector
        if self._twin is not None:
            corrector.compare_effects(self._twin, here, asked)
        if not corrector.is_open():
            return asked, False
        try:
            taken = corrector.correct(here, asked)
        except np.linalg.LinAlgError:  # where the numbers of a filter have become none
            return asked, False
        return (taken, True) if np.isfinite(taken).all() else (asked, False)

    def _report(self) -> dict[str, Any]:
        corrector = self._corrector
        means = {name: getattr(corrector, name) for name in ("adapted_error", "reference_error", "effect")}
        return {
            "asked": self._asked.copy(),
            "taken": self._taken.copy(),
            "gate_open": self._is_open,
            **{name: None if math.isnan(mean) else mean for name, mean in means.items()},
        }


def load_bundle(path: str | Path) -> Bundle:
    """Read what :meth:`ssm_metarl_gym.wrappers.ActionCorrection.save_bundle` wrote; no code from the file is run.

    Args:
        path: The file.

    Raises:
        ValueError: The file is damaged, another file, or of another version.
        ImportError: The policy is no plain network, and onnxruntime is not installed.
        OSError: The file cannot be read.
    """
    described, weights = read_bundle(path)
    try:
        return Bundle(described, weights)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not fit: {error}") from error
