"""Keeping a policy in physics that it was not trained in: its actions, corrected by the adapted model."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal, SupportsFloat, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn
from typing_extensions import Self

from ssm_metarl_gym.agents.adaptation.recursive_rows import make_adapter_rows
from ssm_metarl_gym.agents.adaptation.rows import AdapterRows
from ssm_metarl_gym.agents.models.dynamics import DynamicsModel
from ssm_metarl_gym.agents.stateless import copy_module
from ssm_metarl_gym.seeding import row_seeds
from ssm_metarl_gym.wrappers.action_maps import MAP_OPTIONS, MapCorrector
from ssm_metarl_gym.wrappers.adapted_model import encode_rows
from ssm_metarl_gym.wrappers.correction_archive import SavedCorrection, read_correction, write_correction
from ssm_metarl_gym.wrappers.corrector import Corrector
from ssm_metarl_gym.wrappers.episode_observation import VectorEpisodeObservation
from ssm_metarl_gym.wrappers.online_adaptation import OnlineAdaptation
from ssm_metarl_gym.wrappers.online_rows import OnlineRows
from ssm_metarl_gym.wrappers.vector_online_adaptation import VectorOnlineAdaptation

__all__ = ["ActionCorrection", "VectorActionCorrection"]

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

# Of the squared size of an action beside the squared error of what it is to do: of a prediction, of a mapped action.
_REGULARISATION: Final = 0.005
_MAP_REGULARISATION: Final = 0.02
_ONE: Final = np.ones(1, dtype=np.bool_)  # the row of a single environment


class _Correction:
    """What both wrappers do: N rows, of which a single environment is one."""

    def __init__(
        self,
        wrapper_name: str,
        env: OnlineAdaptation | VectorOnlineAdaptation,
        reference: DynamicsModel | None,
        action_space: gym.Space[Any],
        twin: AdapterRows,
        options: dict[str, Any],
    ) -> None:
        source = cast("DynamicsModel", twin.model)
        reference = _check_reference(wrapper_name, reference, source)
        of_maps = source.adapts == reference.adapts == "action_map"
        if options["regularisation"] is None:
            options = options | {"regularisation": _MAP_REGULARISATION if of_maps else _REGULARISATION}
        # In the precision of the model that adapts, to which its predictions are what is wanted.
        reference = copy_module(reference).eval().to(source.head.weight.dtype)
        own = reference, action_space, twin.num_rows
        if of_maps:
            self.corrector: Corrector = MapCorrector(env.adapter, *own, **options)
        else:
            self.corrector = Corrector(*own, **{name: options[name] for name in options if name not in MAP_OPTIONS})
        self._options = options
        self._online = env
        # Not the fallback: the source was never adapted to these physics. If the adapted model is bad, the gate stays
        # closed.
        self._model = env.model
        # Adapts by the same steps on the same inputs, to what the reference would have done.
        self._twin = twin
        self._twin_rows = OnlineRows(twin, env.options)
        self._predicted = torch.zeros(2, twin.num_rows, reference.observation_dim)

    def act(
        self, predict: Any, observations: Floats, asked: npt.NDArray[Any], going: Flags
    ) -> tuple[npt.NDArray[Any], Flags]:
        """The actions to take, and the rows whose gate is open; the others take what was asked, bit for bit.

        Args:
            predict: The adapted model.
            observations: ``Float[N D]``.
            asked: The actions.
            going: ``Bool[N]``, the rows that take a step; the others only begin an episode.

        Returns:
            The actions, and ``Bool[N]``.
        """
        with torch.no_grad():
            # A sensor that fails for a moment says nothing of what an action would do, and what is no number is no
            # action whose effect could be matched: there the asked one is taken.
            are_numbers: Flags = np.isfinite(asked).reshape(len(asked), -1).all(axis=1)
            sees: Flags = going & np.isfinite(observations).all(axis=1) & are_numbers
            seen = np.where(sees[:, None], observations, 0.0).astype(observations.dtype)
            finite = asked.copy()
            finite[~are_numbers] = 0
            if self.corrector.compares_effects:
                self.corrector.compare_effects(predict, self._predict_twin, seen, finite, sees)
            is_open = self.corrector.is_open() & sees
            taken = asked.copy()
            if is_open.any():
                taken[is_open] = self.corrector.correct(predict, seen, finite, is_open)[is_open]
            reference = self.corrector.reference
            self._predicted = torch.stack(
                [
                    predict(observations[:, None], taken[:, None])[:, 0],
                    reference(reference.encode(observations, taken)),
                ]
            )
        return taken, is_open

    def advance(
        self, observations: Floats, taken: npt.NDArray[Any], next_observations: Floats, going: Flags, kept: Flags
    ) -> None:
        """Learn how well both models predicted a step, and let the twin adapt to what the reference predicted.

        Args:
            observations: ``Float[N D]``, where the step began.
            taken: The actions.
            next_observations: ``Float[N D]``, where it led.
            going: ``Bool[N]``, the rows that took a step.
            kept: ``Bool[N]``, those of them whose trial was not restarted.
        """
        verdict = self._online.verdict
        kept = kept & ~verdict.outliers
        with torch.no_grad(), np.errstate(invalid="ignore"):
            targets = self._model.targets(observations, next_observations)
            adapted_error, reference_error = (self._predicted - targets).square().mean(-1)
        # In other physics the means begin anew, with what the model makes of it after this step, of which it knows more
        # if it was time to adapt.
        self.corrector.begin(verdict.changes)
        now = np.where(verdict.changes, self._online.errors_after, adapted_error.double().numpy())
        self.corrector.learn(now, reference_error.double().numpy(), kept)
        if self.corrector.compares_effects:
            encoded = self._model.encode(observations, taken)
            self._twin_rows.advance(encoded, self._predicted[1], going, kept, verdict.changes)

    def seed(self, seed: int | Sequence[int | None] | None, rows: Flags) -> None:
        """Seed what is random in those of these rows ``[N]`` that the seed of a reset is for."""
        for row, own in row_seeds(seed, rows):
            self.corrector.seed(row, own)

    def save(self, path: str | Path) -> None:
        """Write what both wrappers are made of."""
        online = self._online
        write_correction(
            path, SavedCorrection(online.source, self.corrector.reference, online.arguments, self._options)
        )

    def begin(self, rows: Flags) -> None:
        """Forget what these rows ``[N]`` have seen."""
        self.corrector.begin(rows)
        self._twin_rows.begin(rows)

    def _predict_twin(self, observations: npt.NDArray[Any], actions: npt.NDArray[Any]) -> Tensor:
        predicted: Tensor = self._twin.predict(encode_rows(self._model, observations, actions))
        return predicted

    def report(self, asked: npt.NDArray[Any], taken: npt.NDArray[Any], is_open: Flags) -> dict[str, Any]:
        """``info["correction"]`` of all rows."""
        return {
            "asked": asked.copy(),
            "taken": taken.copy(),
            "gate_open": is_open.copy(),
            "adapted_error": self.corrector.adapted_error.copy(),
            "reference_error": self.corrector.reference_error.copy(),
            "effect": self.corrector.effect.copy(),
        }


def _check_reference(wrapper_name: str, reference: DynamicsModel | None, source: DynamicsModel) -> DynamicsModel:
    """The reference of a wrapper, which must be like the source of the model that adapts, and may be that of a map."""
    if reference is None and source.adapts == "action_map":
        return source
    if not isinstance(reference, DynamicsModel):
        raise ValueError(
            f"{wrapper_name} needs a DynamicsModel as reference; got {type(reference).__name__}. Make one with "
            "MetaTrainer.reference(). (A model that adapts an action map needs none.)"
        )
    if (
        reference.action_space != source.action_space
        or reference.observation_dim != source.observation_dim
        or not torch.allclose(reference.target_scale.double(), source.target_scale.double())
    ):
        raise ValueError(
            "the reference must be made for the spaces and have the normalisation of the model that adapts; it is "
            f"for {reference.observation_dim} observations and {reference.action_space}, the model for "
            f"{source.observation_dim} and {source.action_space}. Make it with MetaTrainer.reference()."
        )
    return reference


class ActionCorrection(gym.Wrapper[Floats, Any, Floats, Any], gym.utils.RecordConstructorArgs):
    """Replaces each action by the one whose effect *now* is what the action had in the physics it was learned in.

    Around :class:`OnlineAdaptation`, whose model adapts to the physics at hand, and with a *reference*, a model of the
    physics that a policy was trained in (:meth:`MetaTrainer.reference`; a model that adapts an action map is its own).
    The policy stays as it is, and so do spaces,
    rewards and flags: whatever has ``predict`` runs in it. The wanted change is what the reference predicts for the
    action that was asked for; the action taken is the one for which the adapted model predicts that. (Christiano et al.
    2016, https://arxiv.org/abs/1610.03518, find it by a learned inverse model; Hanna and Stone 2017, grounded action
    transformation, change a simulator so.)

    Two gates let the policy's own action pass, bit for bit. One is closed while the reference predicts recent
    transitions as well as the adapted model does: nothing has changed. The other, of a ``Box`` of actions, is closed
    while actions do at least what they do in the reference: what has changed is not what the policy does, and a policy
    that copes with it by itself is not to be disturbed. It takes the more to open it the less was seen. No reward is
    used.

    **An action map** (``DynamicsModel(adapts="action_map")``) needs no search. The reference is the model itself with
    the map A of its source, the identity of one that was fitted, and the action taken is
    ``argmin_u |A u - u_asked|^2 + regularisation |u|^2``. Of a :class:`KalmanAdapter`, which knows how sure it is of A,
    the gate is another one: open while A deviates significantly from the identity. While that is so and A is known
    badly (a variance of more than 0.05 on average, where the prior is 1), a little noise explores what actions do.

    ``info["correction"]`` holds, at every step, ``asked`` and ``taken`` (actions), ``gate_open``, ``adapted_error`` and
    ``reference_error`` (running means of the squared one-step errors, in variances of the change; None at first) and
    ``effect`` (what actions do, in units of what they do in the reference; None at first, for ``Discrete`` actions and
    without that gate).

    Example:
        >>> trainer = MetaTrainer("ssm_metarl/CartPolePolarity-v0").learn(800)
        >>> adapter = Adapter(trainer.model, trainer.adaptation_config())
        >>> env = OnlineAdaptation(gym.make("ssm_metarl/CartPolePolarity-v0"), adapter)
        >>> env = ActionCorrection(env, trainer.reference())

    Args:
        env: The environment, wrapped by :class:`OnlineAdaptation`.
        reference: The model of the physics that the policy knows. The wrapper works on a copy, in the precision of
            the model that adapts. None for an action map, whose reference differs in the map alone.
        match: What is to be as it was: the whole ``"change"`` of the observation, or only what the action adds to it,
            the ``"effect"``. None for ``"effect"`` of ``Discrete`` actions, which can add nothing else, and
            ``"change"`` of a ``Box``.
        gate: How many times as large as that of the adapted model the error of the reference must be. inf corrects
            nothing, whatever adapts. The map of a :class:`KalmanAdapter` has its own gate, ``map_gate``, which asks
            neither for another value of this nor for ``match``, ``effect_gate`` and ``prior_steps``; ``decay`` is then
            only for what is reported.
        effect_gate: What actions do must fall below this share of what they do in the reference. inf leaves this to
            the first gate alone.
        prior_steps: How many steps of evidence it takes to believe half of that: what actions do counts as the mean of
            the estimate, once for each step of the episode, and of 1, so many times.
        map_gate: How many times as large as its uncertainty explains the squared deviation of an action map from the
            identity must be, the mean over its entries.
        decay: Decay of the running means.
        regularisation: Weight of the squared size of the action, in half ranges of a ``Box``, beside the squared error
            of the prediction, in variances of the change, or of the mapped action, in half ranges. None for 0.005 and
            0.02.
        exploration: Standard deviation of the noise while an action map is known badly, in half ranges. Its stream is
            seeded by ``reset``.

    Raises:
        ValueError: The environment is not so wrapped, the reference is not like the model that adapts, the actions are
            of another kind, or an option is outside its range.
    """

    def __init__(
        self,
        env: OnlineAdaptation,
        reference: DynamicsModel | None = None,
        *,
        match: Literal["change", "effect"] | None = None,
        gate: float = 1.5,
        effect_gate: float = 0.9,
        prior_steps: float = 16.0,
        map_gate: float = 6.0,
        decay: float = 0.9,
        regularisation: float | None = None,
        exploration: float = 0.05,
    ) -> None:
        options: dict[str, Any] = {
            "match": match,
            "gate": gate,
            "effect_gate": effect_gate,
            "prior_steps": prior_steps,
            "map_gate": map_gate,
            "decay": decay,
            "regularisation": regularisation,
            "exploration": exploration,
        }
        gym.utils.RecordConstructorArgs.__init__(self, reference=reference, **options)
        super().__init__(env)
        if not isinstance(env, OnlineAdaptation):
            raise ValueError(f"ActionCorrection must be right around OnlineAdaptation; got {env}. Wrap it so.")
        self._online = env
        self._dim = env.model.observation_dim
        self._observation: Floats | None = None  # where the next transition starts, if that is known
        self._correction = _Correction(
            type(self).__name__, env, reference, env.action_space, make_adapter_rows(env.adapter, 1), options
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Start an episode with both gates closed."""
        self._observation = None
        observation, info = self.env.reset(seed=seed, options=options)
        self._correction.seed(seed, _ONE)
        self._correction.begin(_ONE)
        self._observation = observation[: self._dim].copy()
        return observation, info

    def step(self, action: Any) -> tuple[Floats, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take the corrected action."""
        asked = np.asarray(action)[None]
        # Unknown until the step has succeeded: after one that failed half-way, no false transition is learned from.
        before, self._observation = self._observation, None
        known = before is not None
        begins = np.full((1, self._dim), np.nan, dtype=np.float32) if before is None else before[None]
        taken, is_open = self._correction.act(self._predict, begins, asked, _ONE)
        observation, reward, terminated, truncated, info = self.env.step(taken[0] if is_open[0] else action)
        kept = np.array([known and not info.get("restarted", False)])
        self._correction.advance(begins, taken, observation[None, : self._dim], _ONE, kept)
        self._observation = observation[: self._dim].copy()
        report = self._correction.report(asked, taken, is_open)
        row = {name: value[0] if value[0].ndim else value[0].item() for name, value in report.items()}
        for name in ("adapted_error", "reference_error", "effect"):
            # Not nan, which is unequal to itself: one seed would not give one info.
            row[name] = None if math.isnan(row[name]) else row[name]
        return observation, reward, terminated, truncated, info | {"correction": row}

    def save(self, path: str | Path) -> None:
        """Write all that stands between the policy and the environment to one file; a missing folder is made.

        These are both models and the options of both wrappers, without what was adapted to: :meth:`load` begins at the
        source. :class:`VectorActionCorrection` reads and writes the same files.

        Args:
            path: The file.

        Raises:
            ValueError: The adapter is of a class of one's own.
        """
        self._correction.save(path)

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: gym.Env[Floats, Any],
        *,
        core: nn.Module | None = None,
        loss_fn: Callable[[Any, Tensor], Tensor] | None = None,
    ) -> Self:
        """Wrap an environment in what was saved, :class:`OnlineAdaptation` and this; no code from the file is run.

        Args:
            path: The file.
            env: The environment, not wrapped by :class:`OnlineAdaptation` yet.
            core: A module that is built like the cores of both models; None for the default cores and other simple
                ones, which the file describes: an :class:`SSM`, or a sequence of ``Linear``, ``Tanh``, ``ReLU`` and
                ``SiLU``.
            loss_fn: The loss; None for the one that the file names, a mean over elements of torch's.

        Raises:
            ValueError: The file is damaged or another file, the environment has other spaces, or a core or a loss must
                be given.
            OSError: The file cannot be read.
        """
        saved = read_correction(path, env.observation_space, env.action_space, core=core, loss_fn=loss_fn)
        return cls(OnlineAdaptation(env, saved.adapter, **saved.online), saved.reference, **saved.correction)

    def _predict(self, observations: npt.NDArray[Any], actions: npt.NDArray[Any]) -> Tensor:
        encoded = encode_rows(self._online.model, observations, actions)
        predicted: Tensor = self._online.model(encoded[0])
        return predicted[None]


class VectorActionCorrection(VectorEpisodeObservation, gym.utils.RecordConstructorArgs):
    """:class:`ActionCorrection` for a vector environment, row by row equal to it around single environments.

    ``infos["correction"]`` holds the fields that it names as arrays of N, nan in place of None. It is always about the
    step that was just taken, also of rows whose episode ended with it.

    Example:
        >>> trainer = MetaTrainer("ssm_metarl/CartPolePolarity-v0").learn(800)
        >>> adapter = Adapter(trainer.model, trainer.adaptation_config())
        >>> envs = VectorOnlineAdaptation(gym.make_vec("ssm_metarl/CartPolePolarity-v0", num_envs=64), adapter)
        >>> envs = VectorActionCorrection(envs, trainer.reference())

    Args:
        env: The environments, wrapped by :class:`VectorOnlineAdaptation`.
        reference: As for :class:`ActionCorrection`, and so are all that follow.
        match: What is to be as it was.
        gate: How many times as large the error of the reference must be.
        effect_gate: Below which share of what they do in the reference actions are corrected.
        prior_steps: How many steps of evidence it takes to believe half of that.
        map_gate: From which deviation on an action map is corrected.
        decay: Decay of the running means.
        regularisation: Weight of the squared size of the action.
        exploration: Standard deviation of the noise while an action map is known badly. Row i explores as a single
            environment does whose seed is greater by i.

    Raises:
        ValueError: As for :class:`ActionCorrection`.
    """

    def __init__(
        self,
        env: VectorOnlineAdaptation,
        reference: DynamicsModel | None = None,
        *,
        match: Literal["change", "effect"] | None = None,
        gate: float = 1.5,
        effect_gate: float = 0.9,
        prior_steps: float = 16.0,
        map_gate: float = 6.0,
        decay: float = 0.9,
        regularisation: float | None = None,
        exploration: float = 0.05,
    ) -> None:
        options: dict[str, Any] = {
            "match": match,
            "gate": gate,
            "effect_gate": effect_gate,
            "prior_steps": prior_steps,
            "map_gate": map_gate,
            "decay": decay,
            "regularisation": regularisation,
            "exploration": exploration,
        }
        gym.utils.RecordConstructorArgs.__init__(self, reference=reference, **options)
        super().__init__(env)
        if not isinstance(env, VectorOnlineAdaptation):
            raise ValueError(
                f"VectorActionCorrection must be right around VectorOnlineAdaptation; got {env}. Wrap it so."
            )
        self._online = env
        self._dim = env.model.observation_dim
        twin = copy_module(env.adapter)
        twin.reset()
        self._correction = _Correction(type(self).__name__, env, reference, env.single_action_space, twin, options)
        shape = cast("tuple[int, ...]", env.observation_space.shape)
        self._shown = np.zeros(shape, dtype=env.observation_space.dtype)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        """Start an episode in every row, or in those of ``options["reset_mask"]``, with the gates closed."""
        shown, infos = super().reset(seed=seed, options=options)
        self._correction.seed(seed, self._rows_to_reset(options))
        return shown, infos

    def step(self, actions: Any) -> tuple[Floats, Any, Any, Any, dict[str, Any]]:
        """Take the corrected actions in every row."""
        asked = np.asarray(actions)
        taken, is_open = self._correction.act(self._predict, self._shown[:, : self._dim], asked, self._going())
        self._asked = asked
        self._is_open = is_open
        shown, rewards, terminations, truncations, infos = super().step(taken if is_open.any() else actions)
        return shown, rewards, terminations, truncations, infos | {"correction": self._report}

    def save(self, path: str | Path) -> None:
        """Write what :meth:`ActionCorrection.save` writes."""
        self._correction.save(path)

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: gym.vector.VectorEnv[Any, Any, Any],
        *,
        core: nn.Module | None = None,
        loss_fn: Callable[[Any, Tensor], Tensor] | None = None,
    ) -> Self:
        """Wrap vector environments in what was saved, as :meth:`ActionCorrection.load` does a single one."""
        spaces = env.single_observation_space, env.single_action_space
        saved = read_correction(path, *spaces, core=core, loss_fn=loss_fn)
        return cls(VectorOnlineAdaptation(env, saved.adapter, **saved.online), saved.reference, **saved.correction)

    def _predict(self, observations: npt.NDArray[Any], actions: npt.NDArray[Any]) -> Tensor:
        predicted: Tensor = self._online.adapter.predict(encode_rows(self._online.model, observations, actions))
        return predicted

    def _going(self) -> Flags:
        """The rows ``[N]`` that make a transition on this step: not those that only begin an episode."""
        return ~self._ended if self._mode is AutoresetMode.NEXT_STEP else np.ones_like(self._ended)

    def _begin(self, rows: Flags, observations: Floats) -> None:
        self._correction.begin(rows)
        self._shown[rows] = observations[rows]

    def _advance(self, actions: Any, rewards: Any, observations: Floats, restarted: Flags) -> None:
        going = self._going()
        before, after = self._shown[:, : self._dim], np.asarray(observations)[:, : self._dim]
        taken = np.asarray(actions)
        self._correction.advance(before, taken, after, going, going & ~restarted)
        # Now, because rows may begin their next episode before this step has ended.
        self._report = self._correction.report(self._asked, taken, self._is_open)
        self._shown = np.array(observations, dtype=self._shown.dtype)
