"""Keeping a policy in the physics of many environments at once, each of which it was not trained in."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn
from typing_extensions import Self

from ssm_metarl_gym.agents.models.dynamics import DynamicsModel
from ssm_metarl_gym.wrappers.adapted_model import valid_where_ignored
from ssm_metarl_gym.wrappers.bundle_writing import BundledPolicy
from ssm_metarl_gym.wrappers.correction import Correction, as_asked
from ssm_metarl_gym.wrappers.correction_archive import read_correction
from ssm_metarl_gym.wrappers.episode_observation import VectorEpisodeObservation
from ssm_metarl_gym.wrappers.vector_online_adaptation import VectorOnlineAdaptation

__all__ = ["VectorActionCorrection"]

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


class VectorActionCorrection(VectorEpisodeObservation, gym.utils.RecordConstructorArgs):
    """:class:`ActionCorrection` for a vector environment, row by row equal to it around single environments.

    ``infos["correction"]`` holds the fields that it names as arrays of N, nan in place of None. It is always about the
    step that was just taken, also of rows whose episode ended with it. ``infos["_correction"]`` says which rows have it
    in the info of a single environment: not those that have just begun another episode. In the mode ``SAME_STEP``,
    ``infos["final_info"]`` holds it for the episodes that ended.

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
        map_gate: From which odds on an action map is corrected.
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
        gym.utils.RecordConstructorArgs.__init__(self, reference=reference, **options)
        super().__init__(env)
        if not isinstance(env, VectorOnlineAdaptation):
            raise ValueError(
                f"VectorActionCorrection must be right around VectorOnlineAdaptation; got {env}. Wrap it so."
            )
        self._online = env
        self._dim = env.model.observation_dim
        self._correction = Correction(type(self).__name__, env, reference, env.single_action_space, options)
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
        going = self._going()
        asked = as_asked(actions, self.single_action_space, going)
        asked = valid_where_ignored(asked, self.single_action_space, going)
        begins = self._shown[:, : self._dim].astype(np.result_type(self._shown.dtype, np.float32))
        begins[self._lost] = np.nan
        taken, is_open = self._correction.act(self._online.adapter.predict, begins, asked, going)
        self._asked = asked
        self._is_open = is_open
        shown, rewards, terminations, truncations, infos = super().step(taken if is_open.any() else actions)
        if self._mode is AutoresetMode.SAME_STEP:
            if "final_info" in infos:
                report = {name: column.copy() for name, column in self._report.items()}
                final = {"correction": report, "_correction": self._ended.copy()}
                infos = infos | {"final_info": infos["final_info"] | final}
            going = ~self._ended
        infos = infos | {"correction": self._report, "_correction": going}
        return shown, rewards, terminations, truncations, infos

    def save(self, path: str | Path) -> None:
        """Write what :meth:`ActionCorrection.save` writes."""
        self._correction.save(path)

    def save_bundle(self, path: str | Path, policy: BundledPolicy, *, normalizer: VecNormalize | None = None) -> None:
        """Write what :meth:`ActionCorrection.save_bundle` writes: one file, for one robot."""
        self._correction.save_bundle(path, policy, normalizer)

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

    def _going(self) -> Flags:
        """The rows ``[N]`` that make a transition on this step: not those that only begin an episode."""
        return ~self._ended if self._mode is AutoresetMode.NEXT_STEP else np.ones_like(self._ended)

    def _begin(self, rows: Flags, observations: Floats) -> None:
        self._correction.begin(rows)
        self._shown[rows] = observations[rows]

    def _advance(self, actions: Any, rewards: Any, observations: Floats, restarted: Flags) -> None:
        going = self._going()
        self._correction.advance(going, going & ~restarted)
        # Now, because rows may begin their next episode before this step has ended.
        self._report = self._correction.report(self._asked, np.asarray(actions), self._is_open)
        self._shown = np.array(observations, dtype=self._shown.dtype)
