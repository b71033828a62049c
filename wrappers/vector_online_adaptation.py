"""Adapting the models of many rows at once, each to the transitions of its own episode."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor
from torch.nn import functional as F

from ssm_metarl_gym.agents.adaptation.adapter import Adapter
from ssm_metarl_gym.agents.adaptation.recursive_rows import make_adapter_rows
from ssm_metarl_gym.agents.adaptation.rows import AdapterRows
from ssm_metarl_gym.agents.adaptation.twins import TwinRows
from ssm_metarl_gym.agents.models.dynamics import DynamicsModel
from ssm_metarl_gym.agents.stateless import copy_module
from ssm_metarl_gym.bundle.left_out import LeftOutEpisodes
from ssm_metarl_gym.bundle.source_fallback import SourceFallback
from ssm_metarl_gym.bundle.surprises import Surprises, Verdict
from ssm_metarl_gym.wrappers.adapted_model import (
    LatestTransition,
    OnlineOptions,
    check_adapted_model,
    encode_rows,
    parse_change_ratio,
    parse_probes,
    valid_where_ignored,
    with_predictions,
    within_bounds,
)
from ssm_metarl_gym.wrappers.episode_observation import VectorEpisodeObservation
from ssm_metarl_gym.wrappers.online_rows import OnlineRows
from ssm_metarl_gym.wrappers.sent_commands import SentCommands

__all__ = ["VectorOnlineAdaptation"]

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


class VectorOnlineAdaptation(VectorEpisodeObservation, gym.utils.RecordConstructorArgs):
    """:class:`OnlineAdaptation` for a vector environment, row by row equal to it around single environments.

    Every row has weights and a window of its own, and all rows are adapted together. A row that begins an episode, or
    whose trial is restarted, leaves out that transition alone. The observation is ``Float[N D + P D]`` with
    ``observe_predictions``, for P probe actions, else as it was.

    ``infos["adaptation"]`` holds the fields that :class:`OnlineAdaptation` names, as arrays of N, nan in place of None.
    In the mode ``SAME_STEP``, ``infos["final_info"]`` holds those of the episodes that ended.

    Example:
        >>> envs = gym.make_vec("ssm_metarl/CartPolePolarity-v0", num_envs=64)
        >>> model = DynamicsModel(envs.single_observation_space, envs.single_action_space)
        >>> config = AdaptationConfig(
        ...     lr=0.3, grad_clip_norm=1.0, trust_region_eps=1.0, ema_decay=0.99, entropy_weight=0.0,
        ...     max_steps_per_call=3,
        ... )
        >>> envs = VectorOnlineAdaptation(envs, Adapter(model, config), observe_predictions=True)
        >>> envs.observation_space.shape
        (64, 12)

    Args:
        env: A vector environment whose rows have the spaces of the model.
        adapter: As for :class:`OnlineAdaptation`: the source of every row.
        window: As for :class:`OnlineAdaptation`, and so are all that follow, for each row by itself.
        every: Number of steps of a row between two calls, as for the wrapper of one environment.
        warmup: Number of transitions that a row must have before its first call.
        restore: When a row goes back to the source.
        loss_fn: The loss of a row.
        observe_predictions: Whether the predictions join the observation.
        probe_actions: The actions to predict for.
        clip: Bound of the predictions.
        leave_out: The share of episodes whose predictions are all zero, drawn for row i of a reset with seed s as by a
            single wrapper that is reset with the seed s + i.
        outlier_error: The error beyond which a transition is left out.
        change_ratio: The multiple of the running mean beyond which an error is a surprise.
        error_start: The running mean at the start of an episode and after a change.
        error_decay: The decay of that mean.
        error_floor: The least value of that mean.

    Attributes:
        arguments: What it was made with, beside the environments and the adapter.
        adapter: The weights of all rows.
        source: The adapter that was given, at its source.
        model: The model whose weights these are, itself with those of the source.
        options: What is adapted to, and when.
        verdict: What the last transition of each row was: an outlier, a suspicion, a change or none of them.
        errors_after: ``Float64[N]``, the error on the transition that told of a row's last change, once adapted to it.
        latest: The transitions of the last step; None before the first one.

    Raises:
        ValueError: An argument is outside its range, the model is of another kind or of other spaces, or the autoreset
            mode is unknown.
    """

    def __init__(
        self,
        env: gym.vector.VectorEnv[Any, Any, Any],
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
        name = type(self).__name__
        check_adapted_model(name, adapter, env.single_observation_space, env.single_action_space)
        self.source = copy_module(adapter)
        self.source.reset()
        self.adapter: AdapterRows | TwinRows = make_adapter_rows(self.source, self.num_envs)
        self.model = cast("DynamicsModel", self.adapter.model)
        self._sent = SentCommands(self.source, self.model, self.num_envs)
        self._fallback = SourceFallback(self.num_envs)
        self._left_out = LeftOutEpisodes(self.num_envs, leave_out)
        self._rows = OnlineRows(self.adapter, self.options)
        self._expected: Tensor | None = None  # by the twins, if there are any
        self._surprises = Surprises(
            self.num_envs,
            outlier_error=outlier_error,
            change_ratio=parse_change_ratio(change_ratio, adapter),
            error_start=error_start,
            error_decay=error_decay,
            error_floor=error_floor,
        )
        self.verdict = Verdict.nothing(self.num_envs)  # on the last transitions
        self.errors_after = np.full(self.num_envs, np.nan)  # of the models once adapted to them, after the last change
        self.latest: LatestTransition | None = None
        self._errors = np.full(self.num_envs, np.nan)
        self._num_outliers = np.zeros(self.num_envs, dtype=np.int64)
        self._num_suspicions = np.zeros(self.num_envs, dtype=np.int64)
        self._num_changes = np.zeros(self.num_envs, dtype=np.int64)
        action_shape = env.single_action_space.shape or ()
        self._probes = np.empty((0, *action_shape), dtype=env.single_action_space.dtype)
        if observe_predictions:
            self._probes = parse_probes(env.single_action_space, probe_actions)
            self.single_observation_space = with_predictions(env.single_observation_space, len(self._probes), clip)
            self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, self.num_envs)
        n, dim = self.num_envs, self.model.observation_dim
        dtype = self.single_observation_space.dtype  # what is shown is as exact as what is wrapped
        self._observations = np.zeros((n, dim), dtype=dtype)
        self._shown = np.zeros((n, dim * (1 + len(self._probes))), dtype=dtype)

    def add_twins(self) -> TwinRows:
        """Let a twin of each row adapt, by the same steps on the same inputs, to what :meth:`expect` says.

        All rows begin anew, at the source.

        Raises:
            ValueError: There are twins already, which another correction asked for.
        """
        if isinstance(self.adapter, TwinRows):
            raise ValueError(
                f"one VectorOnlineAdaptation must have one VectorActionCorrection around it; got {self}, "
                "which has one. Make another VectorOnlineAdaptation."
            )
        twins = self.adapter = TwinRows(self.source, self.num_envs)
        self.model = cast("DynamicsModel", twins.model)
        self._rows = OnlineRows(twins, self.options)
        self.expect(self.model.head.weight.new_zeros(self.num_envs, self.model.observation_dim))
        return twins

    def expect(self, changes: Tensor) -> None:
        """Say what twins are to adapt to of the next step: the normalised changes ``Float[N D]``."""
        self._expected = changes

    def predict(self, observations: npt.NDArray[Any], actions: npt.NDArray[Any]) -> Tensor:
        """The change of the observation that the model in use of each row predicts, normalised.

        Args:
            observations: ``Float[N P D]``.
            actions: ``Int[N P]`` or ``Float[N P A]``.

        Returns:
            ``Float[N P D]``.
        """
        encoded = encode_rows(self.model, observations, actions)
        predictions: Tensor = self.adapter.predict(encoded)
        if (used := self._fallback.used).any():
            predictions[used] = self._predict_by_source(encoded[used])
        return predictions

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        """Start an episode in every row, or in those of ``options["reset_mask"]``, with an empty window."""
        self._left_out.seed(seed, self._rows_to_reset(options))
        shown, infos = super().reset(seed=seed, options=options)
        return shown, infos | {"adaptation": self._report()}

    def step(self, actions: Any) -> tuple[Floats, Any, Any, Any, dict[str, Any]]:
        """Step every row, adapt each to its transition, and predict from where it led."""
        shown, rewards, terminations, truncations, infos = super().step(actions)
        if self._mode is AutoresetMode.SAME_STEP and "final_info" in infos:
            final = {"adaptation": self._final_report, "_adaptation": self._ended.copy()}
            infos = infos | {"final_info": infos["final_info"] | final}
        return shown, rewards, terminations, truncations, infos | {"adaptation": self._report()}

    def _begin(self, rows: Flags, observations: Floats) -> None:
        self._final_report = self._report()
        self._rows.begin(rows)
        self._sent.forget(rows)
        self._surprises.forget(rows)
        self._fallback.forget(rows)
        self._left_out.begin(rows)
        self._errors[rows] = np.nan
        self._num_outliers[rows] = 0
        self._num_suspicions[rows] = 0
        self._num_changes[rows] = 0
        self._observations[rows] = observations[rows]
        self._show()

    def _advance(self, actions: Any, rewards: Any, observations: Floats, restarted: Flags) -> None:
        # A row that only begins its episode on this step makes no transition.
        going = ~self._ended if self._mode is AutoresetMode.NEXT_STEP else np.ones_like(self._ended)
        executed = within_bounds(actions, self.single_action_space)
        executed = valid_where_ignored(executed, self.single_action_space, going)
        encoded = self._sent.behind(self.model.encode(self._observations, executed))  # N F
        targets = self.model.targets(self._observations, observations)
        self._sent.send(executed)
        judged = going & ~restarted
        errors = self._measure(self.adapter.predict, encoded, targets)
        self.latest = LatestTransition(encoded, targets, errors)
        self._errors = np.where(judged, errors, np.nan)
        self.verdict = self._surprises.judge(errors, judged)
        source_errors = self._measure(self._predict_by_source, encoded, targets)
        self._fallback.learn(errors, source_errors, judged, self.verdict)
        self._num_outliers += self.verdict.outliers
        self._num_suspicions += self.verdict.suspicions
        self._num_changes += self.verdict.changes
        wanted = targets if self._expected is None else torch.cat([targets, self._expected], dim=1)
        self._rows.advance(encoded, wanted, going, judged & ~self.verdict.doubted, self.verdict)
        if self.verdict.changes.any():
            now = self._measure(self.adapter.predict, encoded, targets)
            self.errors_after = np.where(self.verdict.changes, now, self.errors_after)
        self._observations = np.array(observations, dtype=self._observations.dtype)
        self._show()

    def _predict_by_source(self, encoded: Tensor) -> Tensor:
        """``Float[N P F]`` -> ``Float[N P D]``."""
        with torch.no_grad():
            predictions: Tensor = self.model(encoded.flatten(0, 1)).unflatten(0, encoded.shape[:2])
        return predictions

    def _measure(
        self, predict: Callable[[Tensor], Tensor], encoded: Tensor, targets: Tensor
    ) -> npt.NDArray[np.float64]:
        """The squared errors of predictions, ``Float[N P F]`` -> ``Float[N P D]``, on the last transitions: ``[N]``."""
        predictions = predict(encoded[:, None])[:, 0]
        errors: npt.NDArray[np.float64] = (predictions - targets).float().square().mean(-1).double().numpy()
        return errors

    def _show(self) -> None:
        dim, num_probes = self._observations.shape[1], len(self._probes)
        self._shown[:, :dim] = self._observations
        if num_probes:
            observations = np.repeat(self._observations[:, None], num_probes, axis=1)
            predictions = self.predict(
                observations, np.broadcast_to(self._probes, (self.num_envs, *self._probes.shape))
            )
            self._shown[:, dim:] = predictions.clamp(-self.options.clip, self.options.clip).flatten(1).cpu().numpy()
            self._shown[self._left_out.rows, dim:] = 0.0

    def _report(self) -> dict[str, Any]:
        stats = self.adapter.stats
        return {
            "error": self._errors.copy(),
            "loss": self._rows.losses.copy(),
            "steps": stats.steps.numpy().copy(),
            "rejected_steps": stats.rejected_steps.numpy().copy(),
            "distance": stats.distance.numpy().copy(),
            "cut_calls": stats.cut_calls.numpy().copy(),
            "source_used": self._fallback.used,
            "num_source_used": self._fallback.num_used.copy(),
            "left_out": self._left_out.rows.copy(),
            "num_transitions": self._rows.num_transitions(),
            "num_outliers": self._num_outliers.copy(),
            "num_suspicions": self._num_suspicions.copy(),
            "num_changes": self._num_changes.copy(),
        }
