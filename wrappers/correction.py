"""What the correction of actions does for the rows of many environments, of which a single one is one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from ssm_metarl_gym.agents.adaptation.adapter import Adapter
from ssm_metarl_gym.agents.adaptation.recursive_rows import make_adapter_rows
from ssm_metarl_gym.agents.adaptation.rows import AdapterRows
from ssm_metarl_gym.agents.models.dynamics import DynamicsModel
from ssm_metarl_gym.agents.stateless import copy_module
from ssm_metarl_gym.checks import as_array, shown
from ssm_metarl_gym.seeding import row_seeds
from ssm_metarl_gym.wrappers.action_maps import MAP_OPTIONS, MapCorrector
from ssm_metarl_gym.wrappers.adapted_model import LatestTransition, encode_rows, within_bounds
from ssm_metarl_gym.wrappers.bundle_writing import BundledPolicy, save_bundle
from ssm_metarl_gym.wrappers.correction_archive import SavedCorrection, write_correction
from ssm_metarl_gym.wrappers.corrector import Corrector, Index
from ssm_metarl_gym.wrappers.online_adaptation import OnlineAdaptation
from ssm_metarl_gym.wrappers.online_rows import OnlineRows
from ssm_metarl_gym.wrappers.vector_online_adaptation import VectorOnlineAdaptation

__all__ = ["Correction", "as_asked"]

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
PredictEncoded = Callable[[Tensor, Index | None], Tensor]

# Of the squared size of an action beside the squared error of what it is to do: of a prediction, of a mapped action.
_REGULARISATION: Final = 0.005
_MAP_REGULARISATION: Final = 0.02


def as_asked(actions: Any, space: gym.Space[Any], going: Flags | None = None) -> npt.NDArray[Any]:
    """The actions ``[N ...]`` that a policy gives, in numbers that can hold corrected ones.

    Args:
        actions: ``[N ...]``, or ``[...]`` of a single environment. Those of a ``Box`` may be whole numbers.
        space: The space of the action of a row.
        going: ``Bool[N]``, the rows that take a step; None for a single environment.

    Raises:
        ValueError: They are of another shape or kind, or one of them is none of the choices that there are.
    """
    asked = as_array(actions)
    what = "an action" if going is None else f"{len(going)} actions"
    if going is None:
        asked, going = asked[None], np.ones(1, dtype=np.bool_)
    is_discrete = isinstance(space, spaces.Discrete)
    fits = asked.shape == (len(going), *(space.shape or ())) and asked.dtype.kind in ("iub" if is_discrete else "iubf")
    if fits and isinstance(space, spaces.Discrete):
        fits = bool(((space.start <= asked) & (asked < space.start + space.n))[going].all())
    if not fits:
        raise ValueError(
            f"what the policy asks for must be {what} of {space}; got {shown(actions)}. Give what its predict() gives."
        )
    return asked if is_discrete or asked.dtype.kind == "f" else asked.astype(space.dtype)


class Correction:
    """N rows: both gates, the reference, the twin, and the actions that are taken."""

    def __init__(
        self,
        wrapper_name: str,
        env: OnlineAdaptation | VectorOnlineAdaptation,
        reference: DynamicsModel | None,
        action_space: gym.Space[Any],
        options: dict[str, Any],
    ) -> None:
        source = cast("DynamicsModel", env.source.model)
        self._num_rows = env.num_envs if isinstance(env, VectorOnlineAdaptation) else 1
        reference = _check_reference(wrapper_name, reference, source)
        of_maps = source.adapts == reference.adapts == "action_map"
        if options["regularisation"] is None:
            options = options | {"regularisation": _MAP_REGULARISATION if of_maps else _REGULARISATION}
        # In the precision of the model that adapts, to which its predictions are what is wanted.
        reference = copy_module(reference).eval().to(source.head.weight.dtype).cpu()
        own = reference, action_space, self._num_rows
        if of_maps:
            self.corrector: Corrector = MapCorrector(cast("Adapter | AdapterRows", env.adapter), *own, **options)
        else:
            self.corrector = Corrector(*own, **{name: options[name] for name in options if name not in MAP_OPTIONS})
        self._options = options
        self._online = env
        self._space = action_space
        # A twin adapts by the same steps on the same inputs, to what the reference would have done.
        self._predict_twin: PredictEncoded | None = None
        self._twin_rows: OnlineRows | None = None  # where the online wrapper does not see to it
        if self.corrector.compares_effects:
            if isinstance(env, VectorOnlineAdaptation):
                self._predict_twin = env.add_twins().predict_twins
            else:
                twin = make_adapter_rows(env.source, 1)
                self._predict_twin = twin.predict
                self._twin_rows = OnlineRows(twin, env.options)
        # Not the fallback: the source was never adapted to these physics. If the adapted model is bad, the gate stays
        # closed.
        self._model = env.model
        self._predicted = torch.zeros(self._num_rows, reference.observation_dim)  # by the reference

    def act(
        self, predict: PredictEncoded, observations: Floats, asked: npt.NDArray[Any], going: Flags
    ) -> tuple[npt.NDArray[Any], Flags]:
        """The actions to take, and the rows whose gate is open; the others take what was asked, bit for bit.

        Args:
            predict: What the adapted models of some rows ``Int[M]`` predict, of all rows where that is None, for what
                their model encoded: ``Float[M P F]`` -> ``Float[M P D]``.
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
            finite = within_bounds(finite, self._space)
            if (predict_twin := self._predict_twin) is not None and sees.any():

                def predict_both(*probes: Any) -> tuple[Tensor, Tensor]:
                    encoded = self._encode(*probes)
                    return predict(*encoded), predict_twin(*encoded)

                self.corrector.compare_effects(predict_both, seen, finite, sees)
            is_open = self.corrector.is_open() & sees
            taken = asked.copy()
            if is_open.any():
                found = self.corrector.correct(lambda *probes: predict(*self._encode(*probes)), seen, finite, is_open)
                # An adapted model may have come to what is no number, and finds no action then.
                is_open = is_open & np.isfinite(found).reshape(len(found), -1).all(axis=1)
                taken[is_open] = found[is_open]
            reference = self.corrector.reference
            self._predicted = reference(reference.encode(observations, within_bounds(taken, self._space)))
            if self._predict_twin is not None and isinstance(self._online, VectorOnlineAdaptation):
                self._online.expect(self._predicted)
        return taken, is_open

    def advance(self, going: Flags, kept: Flags) -> None:
        """Learn how well both models predicted a step, and let the twin adapt to what the reference predicted.

        Args:
            going: ``Bool[N]``, the rows that took a step.
            kept: ``Bool[N]``, those of them whose trial was not restarted, and of which it is known where they began.
        """
        encoded, targets, errors = cast("LatestTransition", self._online.latest)
        verdict = self._online.verdict
        kept = kept & ~verdict.doubted
        with torch.no_grad(), np.errstate(invalid="ignore"):
            reference_errors = (self._predicted - targets).square().mean(-1).double().numpy()
        # In other physics the means begin anew, with what the model makes of it after this step, of which it knows more
        # if it was time to adapt.
        self.corrector.begin(verdict.changes)
        now = np.where(verdict.changes, self._online.errors_after, errors)
        self.corrector.learn(now, reference_errors, kept)
        if self._twin_rows is not None:
            self._twin_rows.advance(encoded, self._predicted, going, kept, verdict)

    def seed(self, seed: int | Sequence[int | None] | None, rows: Flags) -> None:
        """Seed what is random in those of these rows ``[N]`` that the seed of a reset is for."""
        for row, own in row_seeds(seed, rows):
            self.corrector.seed(row, own)

    def save(self, path: str | Path) -> None:
        """Write what both wrappers are made of."""
        write_correction(path, self._saved())

    def save_bundle(self, path: str | Path, policy: BundledPolicy, normalizer: VecNormalize | None) -> None:
        """Write that and a policy as what a robot runs."""
        save_bundle(path, self._saved(), self.corrector.match, policy, normalizer)

    def _saved(self) -> SavedCorrection:
        online = self._online
        return SavedCorrection(online.source, self.corrector.reference, online.arguments, self._options)

    def begin(self, rows: Flags) -> None:
        """Forget what these rows ``[N]`` have seen."""
        self.corrector.begin(rows)
        if self._twin_rows is not None:
            self._twin_rows.begin(rows)

    def _encode(
        self, observations: npt.NDArray[Any], actions: npt.NDArray[Any], index: Index
    ) -> tuple[Tensor, Index | None]:
        """What the model encodes of P actions in some rows ``Int[M]``: ``Float[M P F]``, and the rows if not all."""
        return encode_rows(self._model, observations, actions), index if len(index) < self._num_rows else None

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
    if source.head.weight.device.type != "cpu":
        raise ValueError(
            f"{wrapper_name} needs a model on the CPU; got one on {source.head.weight.device}. Use the model's cpu() "
            "before its adapter is made."
        )
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
        or not torch.allclose(reference.target_scale.double().cpu(), source.target_scale.double())
    ):
        raise ValueError(
            "the reference must be made for the spaces and have the normalisation of the model that adapts; it is "
            f"for {reference.observation_dim} observations and {reference.action_space}, the model for "
            f"{source.observation_dim} and {source.action_space}. Make it with MetaTrainer.reference()."
        )
    for name, weight in reference.state_dict().items():
        if not weight.isfinite().all():
            raise ValueError(
                f"the weights of the reference must be finite; {name} has {int((~weight.isfinite()).sum())} that are "
                "not. Make it anew with MetaTrainer.reference(), of a model whose weights are finite."
            )
    return reference
