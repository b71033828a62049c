"""Online adaptation of one robot's model: which transitions count, when it adapts, and what it reports."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ssm_metarl_gym.bundle.adapters import AdaptingWeights
from ssm_metarl_gym.bundle.judge import Judge, Judgement
from ssm_metarl_gym.bundle.layers import Floats, clipped
from ssm_metarl_gym.bundle.left_out import LeftOutEpisodes
from ssm_metarl_gym.bundle.losses import make_loss
from ssm_metarl_gym.bundle.surprises import SURPRISES_OF_A_CHANGE, Surprises
from ssm_metarl_gym.checks import check_choice, check_integer, check_number

__all__ = ["Learned", "Online", "check_online_options"]

_ROW = np.array([True])


class Transition(NamedTuple):
    """One transition.

    Attributes:
        target: The change, normalised, ``Float[1 D]``.
        encoded: What the model encodes of it, ``Float[1 F]``.
        by_adapted: What the model predicted before it adapted to it, ``Float[1 D]``.
        by_reference: What the reference predicted, ``Float[1 D]``.
        arrival: A number, greater than those of all that came before it.
    """

    target: Floats
    encoded: Floats
    by_adapted: Floats
    by_reference: Floats
    arrival: int = 0


class Learned(NamedTuple):
    """What a transition told.

    Attributes:
        error: The squared error of the adapted model on it, before it adapted to it; of one that told of a change,
            afterwards. NaN where there was no transition.
        reference_error: That of the reference.
        is_change: Whether the physics have changed.
        is_kept: Whether it is believed.
    """

    error: float
    reference_error: float
    is_change: bool
    is_kept: bool


class Online:
    """What :class:`ssm_metarl_gym.wrappers.OnlineAdaptation` does for one environment, and the twin beside it.

    Args:
        adapter: What adapts to what happened.
        twin: What adapts to what the reference would have done; None where nobody asks for it.
        options: Those of the wrapper, with ``loss`` as a bundle describes it.
        expects_source: Whether the reference is the model at its source, so that it need not be asked twice.
    """

    def __init__(
        self,
        adapter: AdaptingWeights,
        twin: AdaptingWeights | None,
        options: Mapping[str, Any],
        *,
        expects_source: bool,
    ) -> None:
        self.adapter = adapter
        self.twin = twin
        self._source = adapter.model.source
        self._expects_source = expects_source
        self._loss = make_loss(options["loss"])
        check_online_options(options)
        self._window, self._every, self._warmup = options["window"], options["every"], options["warmup"]
        self._restore: str = options["restore"]
        self._clip: float = options["clip"]
        probes = options["probe_actions"] if options["observe_predictions"] else []
        self._probes = np.array(probes, dtype=adapter.model.space.dtype)
        rules = ("outlier_error", "change_ratio", "error_start", "error_decay", "error_floor")
        self._judge = Judge(Surprises(1, **{name: options[name] for name in rules}))
        self._left_out = LeftOutEpisodes(1, options["leave_out"])
        self._num_arrivals = 0  # of all episodes
        self._transitions: list[Transition] = []
        self._held_back: list[Transition] = []
        self._forget()

    def reset(self, seed: int | None) -> None:
        """Begin an episode."""
        self._left_out.seed(seed, _ROW)
        if self._restore != "never":
            self._reset_weights()
        self._forget()

    def _forget(self) -> None:
        self._transitions.clear()
        self._judge.forget()
        self._left_out.begin(_ROW)
        self._num_steps = 0
        self._counts = {"num_outliers": 0, "num_suspicions": 0, "num_changes": 0}
        self._error_before: float | None = None
        self._loss_after: Callable[[], float] | None = None

    def learn(self, transition: Transition | None) -> Learned:
        """Adapt to a transition; None where nobody knows how the step went, which counts as one all the same."""
        self._num_steps += 1
        self._error_before, learned = None, Learned(math.nan, math.nan, False, False)
        if transition is not None:
            self._num_arrivals += 1
            transition = transition._replace(arrival=self._num_arrivals)
            error = self._error_before = _error(transition.by_adapted, transition)
            reference_error = _error(transition.by_reference, transition)
            judgement = self._judged(error, reference_error, transition)
            learned = Learned(error, reference_error, judgement.is_change, not judgement.is_doubted)
        self._loss_after = None
        if len(self._transitions) >= self._warmup and self._num_steps % self._every == 0:
            self._loss_after = self._adapt()
        if transition is not None and learned.is_change:
            # What the model makes of it now.
            learned = learned._replace(error=_error(self.adapter.predict(transition.encoded), transition))
        return learned

    def shown(self, observation: Floats) -> Floats:
        """The observation as the policy sees it, with predictions behind it where it was trained on these."""
        if not len(self._probes):
            return observation
        model = self.adapter.model
        encoded = model.encode(observation.astype(np.float32), self._probes)
        own = self._source if self._judge.is_source_used else self.adapter.weights
        predictions = clipped(model.predict(own, encoded).astype(np.float32), -self._clip, self._clip)
        if self._left_out.rows[0]:
            predictions = np.zeros_like(predictions)
        return np.concatenate([observation, predictions.ravel()])

    def _judged(self, error: float, reference_error: float, transition: Transition) -> Judgement:
        """What a transition is; it joins the window unless it is doubted."""
        source_error = reference_error
        if not self._expects_source:
            source_error = _error(self.adapter.model.predict(self._source, transition.encoded), transition)
        judgement = self._judge.judge(error, source_error)
        for name, is_so in zip(self._counts, judgement, strict=True):
            self._counts[name] += is_so
        if judgement.is_suspicion:
            self._held_back = [*self._held_back, transition][1 - SURPRISES_OF_A_CHANGE :]
        if judgement.is_change:
            self._transitions = self._held_back[-self._window :]
            if self._restore != "never":
                self._reset_weights()
        if not judgement.is_doubted:
            self._transitions = [*self._transitions, transition][-self._window :]
        return judgement

    def _adapt(self) -> Callable[[], float]:
        if self._restore == "call":
            self._reset_weights()
        window = self._transitions
        encoded = np.concatenate([transition.encoded for transition in window])
        arrivals = [transition.arrival for transition in window]
        if self.twin is not None:
            expected = np.concatenate([transition.by_reference for transition in window])
            self.twin.adapt(self._loss, encoded, expected, arrivals)
        targets = np.concatenate([transition.target for transition in window])
        return self.adapter.adapt(self._loss, encoded, targets, arrivals)

    def _reset_weights(self) -> None:
        self.adapter.reset()
        if self.twin is not None:
            self.twin.reset()

    @property
    def info(self) -> dict[str, Any]:
        """``info["adaptation"]`` of the wrapper."""
        return {
            "error": self._error_before,
            "loss": None if self._loss_after is None else self._loss_after(),
            **vars(self.adapter.report),
            "source_used": self._judge.is_source_used,
            "num_source_used": self._judge.num_used,
            "left_out": bool(self._left_out.rows[0]),
            "num_transitions": len(self._transitions),
            **self._counts,
        }


def check_online_options(options: Mapping[str, Any]) -> None:
    """What is adapted to, when, and how what is predicted is shown, must be as ``OnlineAdaptation`` takes it."""
    for name in ("window", "every", "warmup"):
        check_integer(name, options[name])
    if options["warmup"] > options["window"]:
        raise ValueError(f"warmup must be at most window ({options['window']}); got {options['warmup']}.")
    check_choice("restore", options["restore"], ["episode", "call", "never"])
    check_number("clip", options["clip"], ("a number > 0 (inf for no bound)", lambda value: value > 0.0))
    check_number("leave_out", options["leave_out"], ("a number in [0, 1]", lambda value: 0.0 <= value <= 1.0))
    if options["leave_out"] > 0.0 and not options["observe_predictions"]:
        raise ValueError(
            f"leave_out must be 0 where no predictions are shown; got {options['leave_out']!r}. Set "
            "observe_predictions=True, or leave leave_out as it is."
        )


def _error(predicted: Floats, transition: Transition) -> float:
    """The mean squared error of a prediction."""
    offset = (predicted - transition.target).astype(np.float32, copy=False)
    return float(np.vdot(offset, offset)) / offset.size
