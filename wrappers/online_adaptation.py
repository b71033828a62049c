"""Adapting a model of the dynamics during an episode, and showing an agent what it predicts."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, SupportsFloat, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ssm_metarl_gym.agents.adaptation.adapter import Adapter
from ssm_metarl_gym.agents.models.dynamics import DynamicsModel
from ssm_metarl_gym.agents.stateless import copy_module
from ssm_metarl_gym.bundle.left_out import LeftOutEpisodes
from ssm_metarl_gym.bundle.source_fallback import SourceFallback
from ssm_metarl_gym.bundle.surprises import SURPRISES_OF_A_CHANGE, Surprises, Verdict
from ssm_metarl_gym.wrappers.adapted_model import (
    LatestTransition,
    OnlineOptions,
    check_adapted_model,
    parse_change_ratio,
    parse_probes,
    with_predictions,
    within_bounds,
)
from ssm_metarl_gym.wrappers.episode_observation import check_single
from ssm_metarl_gym.wrappers.sent_commands import SentCommands

__all__ = ["OnlineAdaptation"]


class OnlineAdaptation(
    gym.Wrapper[npt.NDArray[np.float32], Any, npt.NDArray[np.float32], Any], gym.utils.RecordConstructorArgs
):
    """Keeps adapting a :class:`DynamicsModel` to the transitions of the running episode.

    After every step the latest transition joins the last ``window`` ones and ``adapter.adapt`` is called on them. No
    reward is used. Transitions onto the restart of a trial (``info["restarted"]``) are left out. Rewards, flags and the
    wrapped observation stay as they are.

    Each transition is judged by the *error* of the adapted model on it, before it adapts to it: the mean squared error
    of the change of the observation, in variances. An *outlier*, whose error is beyond that of any physics or not
    finite, is left out. A *surprise* is an error many times the running mean of unsurprising ones. It is held back;
    three, with nothing but outliers between, are a *change* of the physics: the window keeps these three only, and the
    weights go back to the source, unless ``restore="never"``. What the next transitions do not confirm is left out. (A
    model that has not predicted a single transition well yet is in no position to doubt one: until then, surprises stay
    in the window.)

    While the running mean of the adapted model's errors is above that of the source's, predictions are those of the
    source: those that are shown, and those of :meth:`predict`.

    With ``observe_predictions`` the observation is ``Float[D + K D]``: the wrapped one, and behind it what the adapted
    model predicts for each of K probe actions, in their order: the normalised change of the observation, clipped. So an
    ordinary, memoryless policy sees what each action would do *now*; train it with the wrapper in place.

    ``info["adaptation"]`` holds, at every step, ``error`` (of the adapted model before it adapts to the transition;
    None where none was judged), ``loss`` (after adapting; None where nothing was adapted), ``steps`` and
    ``rejected_steps`` (since the source was last restored), ``distance`` (of the weights from the source, relative),
    ``num_transitions`` (in the window), ``cut_calls`` (that a budget of the adapter ended, since the source was last
    restored), ``source_used`` (for now), ``left_out`` (whether the predictions of the episode are), and
    ``num_source_used``, ``num_outliers``, ``num_suspicions`` (held back) and ``num_changes`` (in this episode).

    Example:
        >>> trainer = MetaTrainer("ssm_metarl/CartPolePolarity-v0").learn(800)
        >>> adapter = Adapter(trainer.model, trainer.adaptation_config())
        >>> env = OnlineAdaptation(gym.make("ssm_metarl/CartPolePolarity-v0"), adapter, observe_predictions=True)

    Args:
        env: An environment with the spaces of the model.
        adapter: An adapter of a :class:`DynamicsModel`. The wrapper works on a copy, its attribute ``adapter``, in
            evaluation mode, which begins at its source.
        window: Number of transitions that are kept.
        every: Number of steps between two calls of the adapter. Where they are more than ``window``, transitions that
            have left the window by then are never adapted to.
        warmup: Number of transitions that must be there before the first call.
        restore: When the adapter goes back to the source: at every reset (``"episode"``), before every call as well
            (``"call"``) or ``"never"``.
        loss_fn: Takes predicted and true changes of the observation, normalised, the oldest first, and gives a scalar.
        observe_predictions: Whether the predictions join the observation.
        probe_actions: The actions to predict for; None for every action of a ``Discrete`` space and for the lowest, the
            zero and the highest action of a ``Box``.
        clip: Bound of the predictions, in standard deviations of the change.
        leave_out: The share of episodes whose predictions are all zero. A policy that was trained with 0.5 does without
            where there are none; 1 is what such a policy sees that has lost its adapter. Whether an episode is left out
            is drawn from a stream that follows from the seed of ``reset``. More than 0 takes ``observe_predictions``.
        outlier_error: The error, in variances, beyond which a transition is left out as an outlier; inf for none but
            those whose error is not finite.
        change_ratio: The multiple of the running mean beyond which an error is a surprise; inf for no surprises. None
            for 5, and for inf with a :class:`KalmanAdapter`, which tells changes by itself and keeps what it knows.
        error_start: The running mean of the errors at the start of an episode, and after a change at least.
        error_decay: The decay of that mean, in [0, 1). An error counts as three times the mean at most.
        error_floor: The least value of that mean.

    Attributes:
        arguments: What it was made with, beside the environment and the adapter.
        adapter: The adapter of this environment alone.
        source: The same at its source.
        model: Its model, which adapts.
        options: What is adapted to, and when.
        verdict: What the last transition was: an outlier, a suspicion, a change or none of them.
        errors_after: ``Float64[1]``, the error on the transition that told of the last change, once adapted to it.
        latest: The transition of the last step, ``N = 1``, its error nan where it does not count; None at first.

    Raises:
        ValueError: An argument is outside its range, the model is of another kind or of other spaces, or the
            environment is not single, or has an ``Autoreset`` within.
    """

    def __init__(
        self,
        env: gym.Env[npt.NDArray[np.float32], Any],
        adapter: Adapter,
        *,
        window: int = 16,
        every: int = 1,
        warmup: int = 1,
        restore: Literal["episode", "call", "never"] = "episode",
        loss_fn: Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
        observe_predictions: bool = False,
        probe_actions: Sequence[Any] | None = None,
        clip: float = 5.0,
        leave_out: float = 0.0,
        outlier_error: float = 50.0,
        change_ratio: float | None = None,
        error_start: float = 0.02,
        error_decay: float = 0.9,
        error_floor: float = 0.001,
    ) -> None:
        check_single("OnlineAdaptation", env)
        # One of its own: environments that shared one would adapt to each other's tasks, and the model of a trainer
        # would no longer be the one that was trained.
        adapter = copy_module(adapter)
        self.arguments: dict[str, Any] = {
            "window": window,
            "every": every,
            "warmup": warmup,
            "restore": restore,
            "loss_fn": loss_fn,
            "observe_predictions": observe_predictions,
            "probe_actions": probe_actions,
            "clip": clip,
            "leave_out": leave_out,
            "outlier_error": outlier_error,
            "change_ratio": change_ratio,
            "error_start": error_start,
            "error_decay": error_decay,
            "error_floor": error_floor,
        }
        gym.utils.RecordConstructorArgs.__init__(self, adapter=adapter, **self.arguments)
        super().__init__(env)
        self.options = OnlineOptions(window, every, warmup, restore, loss_fn, clip, leave_out, observe_predictions)
        self.adapter = adapter
        name = type(self).__name__
        self.model = check_adapted_model(name, adapter, env.observation_space, env.action_space)
        adapter.reset()
        self.model.eval()  # or what it predicts would be drawn, where it has dropout
        self.source = copy_module(adapter)
        self.source.reset()
        self._source_model = cast("DynamicsModel", self.source.model)
        self._sent = SentCommands(adapter, self.model, 1)
        self._fallback = SourceFallback(1)
        self._left_out = LeftOutEpisodes(1, leave_out)
        self._probes = np.empty((0, *(env.action_space.shape or ())), dtype=env.action_space.dtype)
        if observe_predictions:
            self._probes = parse_probes(env.action_space, probe_actions)
            self.observation_space = with_predictions(env.observation_space, len(self._probes), clip)
        self._surprises = Surprises(
            1,
            outlier_error=outlier_error,
            change_ratio=parse_change_ratio(change_ratio, adapter),
            error_start=error_start,
            error_decay=error_decay,
            error_floor=error_floor,
        )
        # What the model encodes, the target, and a number Int[1] of its own.
        self._transitions: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=self.options.window)
        self._held_back: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=SURPRISES_OF_A_CHANGE - 1)
        self._num_arrivals = 0  # of all episodes, so that no two transitions have the same number
        self._observation: npt.NDArray[np.float32] | None = None  # where the next transition starts, if that is known
        self._num_steps = 0
        self.latest: LatestTransition | None = None
        self.errors_after = np.full(1, np.nan)  # of the model once adapted to it, after the last change
        self._forget()

    def predict(self, observations: npt.NDArray[Any], actions: npt.NDArray[Any]) -> Tensor:
        """The change of the observation that the model in use, the adapted one or the source, predicts, normalised.

        Args:
            observations: ``Float[B D]``.
            actions: ``Int[B]`` or ``Float[B A]``.

        Returns:
            ``Float[B D]``.
        """
        with torch.no_grad():
            return self._predict(self.model.encode(observations, actions))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start an episode with an empty window and, unless ``restore="never"``, the source weights."""
        self._observation = None
        self._left_out.seed(seed, np.array([True]))
        observation, info = self.env.reset(seed=seed, options=options)
        if self.options.restore != "never":
            self.adapter.reset()
        self._forget()
        self._observation = observation.copy()  # the caller may change its own
        shown = self._observe(observation, self._encode_probes(observation))
        return shown, info | {"adaptation": self._report(None, None)}

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, adapt to the transition, and predict from where it led."""
        # Unknown until the step has succeeded: after one that failed half-way, no false transition is joined.
        before, self._observation = self._observation, None
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._observation = observation.copy()
        self._num_steps += 1
        executed = within_bounds(action, self.action_space)
        start = np.zeros_like(observation) if before is None else before
        encoded, encoded_probes = self._encode(start, executed, observation)
        encoded, targets = self._sent.behind(encoded), self.model.targets(start[None], observation[None])
        self._sent.send(executed[None])
        error = None
        self.verdict = Verdict.nothing(1)
        if before is not None and not info.get("restarted", False):
            error = self._join(encoded, targets)
        self.latest = LatestTransition(encoded, targets, np.array([np.nan if error is None else error]))
        loss = None
        if len(self._transitions) >= self.options.warmup and self._num_steps % self.options.every == 0:
            loss = self._adapt()
        if self.verdict.changes[0]:
            self.errors_after[0] = self._measure(self.model, *self._transitions[-1][:2])
        info = info | {"adaptation": self._report(error, loss)}
        return self._observe(observation, encoded_probes), reward, terminated, truncated, info

    def _forget(self) -> None:
        """Begin an episode."""
        self._transitions.clear()
        self._sent.forget(np.array([True]))
        self._surprises.forget(np.array([True]))
        self._fallback.forget(np.array([True]))
        self._left_out.begin(np.array([True]))
        self.verdict = Verdict.nothing(1)  # on the last transition
        self._num_steps = 0
        self._num_outliers = 0
        self._num_suspicions = 0
        self._num_changes = 0

    def _encode(
        self, before: npt.NDArray[np.float32], action: npt.NDArray[Any], observation: npt.NDArray[np.float32]
    ) -> tuple[Tensor, Tensor]:
        """What the model encodes of the last transition, ``Float[1 F]``, and of the probes, in one pass."""
        # Fractions stay, also of a Box of whole numbers, as they do on their way into the environment.
        given = action if action.dtype.kind == "f" else action.astype(self._probes.dtype, copy=False)
        actions = np.concatenate([given[None], self._probes])
        observations = np.concatenate([before[None], np.tile(observation, (len(self._probes), 1))])
        encoded = self.model.encode(observations, actions)
        return encoded[:1], encoded[1:]

    def _encode_probes(self, observation: npt.NDArray[np.float32]) -> Tensor:
        """What the model encodes of the probe actions in an observation: ``Float[K F]``."""
        if not len(self._probes):
            return torch.empty(0)
        return self.model.encode(np.tile(observation, (len(self._probes), 1)), self._probes)

    def _join(self, encoded: Tensor, target: Tensor) -> float:
        """Judge a transition by the model's error, which is returned, and let it join the window."""
        error = self._measure(self.model, encoded, target)
        errors, rows = np.array([error]), np.array([True])
        self.verdict = self._surprises.judge(errors, rows)
        source_errors = np.array([self._measure(self._source_model, encoded, target)])
        self._fallback.learn(errors, source_errors, rows, self.verdict)
        outlier, suspicion, change = (bool(flags[0]) for flags in self.verdict)
        self._num_outliers += outlier
        self._num_suspicions += suspicion
        self._num_changes += change
        self._num_arrivals += 1
        transition = encoded, target, torch.tensor([self._num_arrivals])
        if suspicion:
            self._held_back.append(transition)
        if change:
            self._transitions = deque(self._held_back, maxlen=self.options.window)
            if self.options.restore != "never":
                self.adapter.reset()
        if not self.verdict.doubted[0]:
            self._transitions.append(transition)
        return error

    def _measure(self, model: DynamicsModel, encoded: Tensor, target: Tensor) -> float:
        """The squared error of a model on a transition."""
        with torch.no_grad():
            return float((model(encoded) - target).float().square().mean())

    def _predict(self, encoded: Tensor) -> Tensor:
        """What the model in use predicts, ``Float[B F]`` -> ``Float[B D]``."""
        model = self._source_model if self._fallback.used[0] else self.model
        predictions: Tensor = model(encoded)
        return predictions

    def _observe(self, observation: npt.NDArray[np.float32], encoded_probes: Tensor) -> npt.NDArray[np.float32]:
        if not len(self._probes):
            return observation
        with torch.no_grad():
            predictions = self._predict(encoded_probes).float().clamp(-self.options.clip, self.options.clip)
        if self._left_out.rows[0]:
            predictions = torch.zeros_like(predictions)
        shown = np.concatenate([observation, predictions.flatten().cpu().numpy()])
        return shown.astype(self.observation_space.dtype, copy=False)

    def _adapt(self) -> float:
        if self.options.restore == "call":
            self.adapter.reset()
        columns = map(torch.cat, zip(*self._transitions, strict=True))
        batch = dict(zip(("states", "targets", "arrivals"), columns, strict=True))
        return self.adapter.adapt(self.options.loss_fn, batch)

    def _report(self, error: float | None, loss: float | None) -> dict[str, Any]:
        stats = self.adapter.stats
        return {
            "error": error,
            "loss": loss,
            "steps": stats.steps,
            "rejected_steps": stats.rejected_steps,
            "distance": stats.distance,
            "cut_calls": stats.cut_calls,
            "source_used": bool(self._fallback.used[0]),
            "num_source_used": int(self._fallback.num_used[0]),
            "left_out": bool(self._left_out.rows[0]),
            "num_transitions": len(self._transitions),
            "num_outliers": self._num_outliers,
            "num_suspicions": self._num_suspicions,
            "num_changes": self._num_changes,
        }
