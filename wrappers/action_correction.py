"""Keeping a policy in physics that it was not trained in: its actions, corrected by the adapted model."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, SupportsFloat

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn
from typing_extensions import Self

from ssm_metarl_gym.agents.models.dynamics import DynamicsModel
from ssm_metarl_gym.wrappers.bundle_writing import BundledPolicy
from ssm_metarl_gym.wrappers.correction import Correction, as_asked
from ssm_metarl_gym.wrappers.correction_archive import read_correction
from ssm_metarl_gym.wrappers.corrector import Index
from ssm_metarl_gym.wrappers.episode_observation import check_single
from ssm_metarl_gym.wrappers.online_adaptation import OnlineAdaptation

__all__ = ["ActionCorrection"]

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

_ONE: Final = np.ones(1, dtype=np.bool_)  # the row of a single environment


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
    the map and the offset of its source, the identity and zero of one that was fitted, of which the action taken is
    ``argmin_u |A u + c - u_asked|^2 + regularisation |u|^2``. Of a :class:`KalmanAdapter`, which knows how sure it is
    of A, the gate is another one: open while the odds that there is a map at all are large. While that is so and A is
    known badly (its entries have a variance of more than 0.05 on average), a little noise explores what actions do.
    Before any transition that average is 1.47 for one motor and 0.12 for six, and from ten motors on less than 0.05, so
    that A then counts as known until the transitions speak for a mix of the actions.

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
        map_gate: How many times as probable as that the map is still that of the source it must be that it is not:
            the odds by all that a :class:`KalmanAdapter` has seen.
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
        map_gate: float = 10.0,
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
        check_single("ActionCorrection", env)
        gym.utils.RecordConstructorArgs.__init__(self, reference=reference, **options)
        super().__init__(env)
        if not isinstance(env, OnlineAdaptation):
            raise ValueError(f"ActionCorrection must be right around OnlineAdaptation; got {env}. Wrap it so.")
        self._online = env
        self._dim = env.model.observation_dim
        self._observation: Floats | None = None  # where the next transition starts, if that is known
        self._correction = Correction(type(self).__name__, env, reference, env.action_space, options)

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
        asked = as_asked(action, self.action_space)
        # Unknown until the step has succeeded: after one that failed half-way, no false transition is learned from.
        before, self._observation = self._observation, None
        known = before is not None
        begins = np.full((1, self._dim), np.nan, dtype=np.float32) if before is None else before[None]
        taken, is_open = self._correction.act(self._predict, begins, asked, _ONE)
        observation, reward, terminated, truncated, info = self.env.step(taken[0] if is_open[0] else action)
        kept = np.array([known and not info.get("restarted", False)])
        self._correction.advance(_ONE, kept)
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
            ValueError: The adapter or a model is of a class of one's own, or a model has hooks beside its core.
        """
        self._correction.save(path)

    def save_bundle(self, path: str | Path, policy: BundledPolicy, *, normalizer: VecNormalize | None = None) -> None:
        """Write the policy and all that stands between it and the environment to one file, which needs no torch.

        A robot runs it on numpy alone: ``ssm_metarl_gym.bundle.load_bundle(path).act(observation)``. docs/bundle.md
        tells how. What was adapted to is not saved; :class:`VectorActionCorrection` writes the same files.

        Args:
            path: The file, whose ending should be ``.safetensors``; a missing folder is made.
            policy: An algorithm of Stable-Baselines3 or its policy, whose deterministic actions are taken, or a
                :class:`MetaPolicy`. One that is no plain network becomes part of the file as an ONNX file, which takes
                the extra ``export`` here and onnxruntime on the robot.
            normalizer: The ``VecNormalize`` that the policy was trained in; None for that of the algorithm's
                environment, where there is one.

        Raises:
            ValueError: A core, a loss, an adapter or a policy is of a kind that a bundle cannot hold.
            ImportError: The extra ``export`` is needed and not installed.
            OSError: The file cannot be written.
        """
        self._correction.save_bundle(path, policy, normalizer)

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

    def _predict(self, encoded: Tensor, index: Index | None) -> Tensor:
        """What the adapted model predicts, for the only row that there is: ``Float[1 P F]`` -> ``Float[1 P D]``."""
        predicted: Tensor = self._online.model(encoded[0])
        return predicted[None]
