"""Recurrent policies of Stable-Baselines3 whose memory is a state-space model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy, BaseModel
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    MlpExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor

from ssm_metarl_gym.agents.ssm.model import SSM
from ssm_metarl_gym.agents.ssm.sequences import Sequences
from ssm_metarl_gym.agents.ssm.stepper import SSMStepper

__all__ = ["CnnSSMPolicy", "MultiInputSSMPolicy", "SSMPolicy"]


class SSMPolicy(ActorCriticPolicy):
    """An actor and a critic that share one memory, an :class:`~ssm_metarl_gym.agents.SSM`.

    ``features extractor -> SSM -> net_arch -> action and value``. The memory is one tensor ``Float[n L 2 P]``, a row
    for each environment, which the caller carries from step to step: the policy itself keeps nothing.

    Args:
        observation_space: As in every policy of SB3.
        action_space: As in every policy of SB3.
        lr_schedule: As in every policy of SB3.
        net_arch: The networks between the SSM and the outputs, as in SB3.
        ssm_kwargs: Arguments of the SSM, of which ``hidden_dim`` and ``output_dim`` are 64 unless they are given.
        **kwargs: All other arguments of SB3's ``ActorCriticPolicy``.

    Raises:
        ValueError: ``share_features_extractor`` is False: there is one memory, and so one extractor before it. Or the
            observations are dictionaries and the extractor cannot read them, or the reverse. Or an argument of the SSM
            is not valid.
    """

    default_extractor: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        *,
        ssm_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not kwargs.get("share_features_extractor", True):
            raise ValueError(
                "share_features_extractor must be True, because actor and critic share one memory; got False. Leave "
                "it out."
            )
        extractor = kwargs.setdefault("features_extractor_class", self.default_extractor)
        if isinstance(observation_space, spaces.Dict) and issubclass(extractor, FlattenExtractor):
            raise ValueError(
                f"{extractor.__name__} cannot read observations that are dictionaries; got {observation_space}. Use "
                "'MultiInputSSMPolicy' instead."
            )
        if not isinstance(observation_space, spaces.Dict) and issubclass(extractor, CombinedExtractor):
            raise ValueError(
                f"{extractor.__name__} reads observations that are dictionaries; got {observation_space}. Use "
                "'SSMPolicy' instead, or 'CnnSSMPolicy' for images."
            )
        if "state_dim" in (ssm_kwargs or {}):
            raise ValueError(
                "ssm_kwargs must leave state_dim to the policy, which knows the width of its features; got "
                f"{ssm_kwargs}. Leave it out."
            )
        self.ssm_kwargs = {"hidden_dim": 64, "output_dim": 64} | (ssm_kwargs or {})
        self._stepper: SSMStepper | None = None
        if kwargs.get("optimizer_class", torch.optim.Adam) is torch.optim.Adam and not kwargs.get("optimizer_kwargs"):
            # SB3's Adam, in one operation for all tensors instead of several for each.
            kwargs["optimizer_kwargs"] = {"eps": 1e-5, "fused": True}
        super().__init__(observation_space, action_space, lr_schedule, net_arch, **kwargs)

    def _build_mlp_extractor(self) -> None:
        """Make the memory and what follows it, at the moment when SB3 asks for it: before its one optimiser is made."""
        self.ssm = SSM(self.features_dim, **self.ssm_kwargs)
        self.mlp_extractor = MlpExtractor(
            self.ssm.output_dim, net_arch=self.net_arch, activation_fn=self.activation_fn, device=self.device
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"ssm_kwargs": self.ssm_kwargs}

    def __getstate__(self) -> dict[str, Any]:
        # A copy made in mid-rollout, by a callback, is of the weights and not of the snapshot of them.
        return {**self.__dict__, "_stepper": None}

    def initial_state(self, num_envs: int) -> Tensor:
        """The memory of environments in which nothing was seen yet: ``Float[n L 2 P]``."""
        return self.ssm.initial_state(num_envs)

    @contextmanager
    def memory_snapshot(self) -> Iterator[None]:
        """For rollouts: within it, steps use a snapshot of the SSM's weights: faster, and no change reaches them."""
        self._stepper = self.ssm.stepper()
        try:
            yield
        finally:
            self._stepper = None

    def forward(  # type: ignore[override]
        self, obs: PyTorchObs, state: Tensor, episode_start: Tensor, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One step of n environments.

        Args:
            obs: Observations, n rows.
            state: ``Float[n L 2 P]``, the memory before this step.
            episode_start: ``Bool[n]``, where an episode starts, before which the memory is cleared.
            deterministic: The most probable action instead of a drawn one.

        Returns:
            Actions, values ``[n 1]``, log-probabilities ``[n]``, and the memory after this step.
        """
        features, state = self._remember(obs, state, episode_start)
        latent_pi, latent_vf = self.mlp_extractor(features)
        distribution = self._get_action_dist_from_latent(latent_pi)
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        actions = actions.reshape((-1, *cast("tuple[int, ...]", self.action_space.shape)))
        return actions, self.value_net(latent_vf), log_prob, state

    def evaluate_actions(  # type: ignore[override]
        self, obs: Sequences, actions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values ``[B*T 1]``, log-probabilities ``[B*T]`` and entropies ``[B*T]`` of actions taken along sequences."""
        inputs = self._extract(obs.observations).unflatten(0, obs.start.shape)  # B T F
        features, _ = self.ssm.scan(inputs, obs.state, obs.start)
        latent_pi, latent_vf = self.mlp_extractor(features.flatten(0, 1))
        distribution = self._get_action_dist_from_latent(latent_pi)
        return self.value_net(latent_vf), distribution.log_prob(actions), distribution.entropy()

    def get_distribution(  # type: ignore[override]
        self, obs: PyTorchObs, state: Tensor, episode_start: Tensor
    ) -> tuple[Distribution, Tensor]:
        """The distribution of the actions at one step, and the memory after it."""
        features, state = self._remember(obs, state, episode_start)
        return self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(features)), state

    def predict_values(  # type: ignore[override]
        self, obs: PyTorchObs, state: Tensor, episode_start: Tensor
    ) -> Tensor:
        """The values ``[n 1]`` at one step."""
        features, _ = self._remember(obs, state, episode_start)
        return self.value_net(self.mlp_extractor.forward_critic(features))  # type: ignore[no-any-return]

    def predict(  # type: ignore[override]
        self,
        observation: npt.NDArray[Any] | dict[str, npt.NDArray[Any]],
        state: npt.NDArray[np.float32] | None = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
        """The action for an observation, or for n of them, and the memory to give at the next step.

        Args:
            observation: One observation, or n of them.
            state: ``Float[n L 2 P]``, what the last call returned; None where nothing was seen yet.
            episode_start: ``Bool[n]``, where an episode starts, before which the memory is cleared; None for nowhere.
            deterministic: The most probable action instead of a drawn one.

        Raises:
            ValueError: The observation is a tuple, or ``state`` or ``episode_start`` is of another number of rows.
        """
        if isinstance(observation, tuple):
            raise ValueError(
                "observation must be an array or a dictionary; got a tuple, as Gymnasium's reset() gives it. Unpack it "
                "first: obs, info = env.reset()."
            )
        self.set_training_mode(False)
        tensors, is_batch = self.obs_to_tensor(observation)
        num_envs = len(next(iter(tensors.values())) if isinstance(tensors, dict) else tensors)
        memory = self.initial_state(num_envs)
        if state is not None:
            if np.shape(state) != memory.shape:
                raise ValueError(
                    f"state must be the array of shape {tuple(memory.shape)} that the last call returned; got one of "
                    f"shape {np.shape(state)}. Use None where nothing was seen yet."
                )
            memory = torch.as_tensor(state, dtype=memory.dtype, device=memory.device)
        start = np.zeros(num_envs) if episode_start is None else np.asarray(episode_start, dtype=np.float32).ravel()
        if start.size != num_envs:
            raise ValueError(
                f"episode_start must have one flag for each of the {num_envs} observations; got {start.size}. Use None "
                "where no episode starts."
            )
        with torch.no_grad():
            distribution, memory = self.get_distribution(
                tensors, memory, torch.as_tensor(start > 0, device=memory.device)
            )
            actions = distribution.get_actions(deterministic=deterministic).cpu().numpy()
        actions = self.to_environment(actions.reshape((-1, *cast("tuple[int, ...]", self.action_space.shape))))
        return actions if is_batch else actions.squeeze(axis=0), memory.cpu().numpy()

    def to_environment(self, actions: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Actions of this policy within the bounds of the environment's."""
        if not isinstance(self.action_space, spaces.Box):
            return actions
        if self.squash_output:
            return self.unscale_action(actions)
        return np.clip(actions, self.action_space.low, self.action_space.high)  # type: ignore[no-any-return]

    def _remember(self, obs: PyTorchObs, state: Tensor, episode_start: Tensor) -> tuple[Tensor, Tensor]:
        """What the SSM makes of one step of n environments, and its state after it."""
        memory = self.ssm if self._stepper is None else self._stepper
        return memory.step(self._extract(obs), state, episode_start)

    def _extract(self, obs: PyTorchObs) -> Tensor:
        return BaseModel.extract_features(self, obs, self.features_extractor)


class CnnSSMPolicy(SSMPolicy):
    """:class:`SSMPolicy` for images, which SB3's convolutional network reads."""

    default_extractor = NatureCNN


class MultiInputSSMPolicy(SSMPolicy):
    """:class:`SSMPolicy` for ``Dict`` observations, whose parts SB3's extractor puts together."""

    default_extractor = CombinedExtractor
