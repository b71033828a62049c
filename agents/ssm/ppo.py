"""Proximal policy optimisation with a state-space model as memory."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs
from torch import Tensor
from typing_extensions import Self

from ssm_metarl_gym.agents.ssm.export import export_onnx
from ssm_metarl_gym.agents.ssm.policies import CnnSSMPolicy, MultiInputSSMPolicy, SSMPolicy
from ssm_metarl_gym.agents.ssm.sequences import DictSequenceRolloutBuffer, SequenceRolloutBuffer
from ssm_metarl_gym.checks import check_choice, check_integer

__all__ = ["SSMPPO"]


class SSMPPO(PPO):
    """PPO (Schulman et al. 2017, https://arxiv.org/abs/1707.06347) for policies that remember.

    It is SB3's ``PPO`` in everything but what a minibatch is: all steps of some of the environments, each as one dense
    sequence with its episodes' starts marked, and the state that the memory had before the first of them. A callback
    that sets weights in mid-rollout changes the memory's steps from the next rollout on.

    Example:
        >>> model = SSMPPO("SSMPolicy", "CartPole-v1", n_steps=64).learn(128)
        >>> env = model.get_env()
        >>> observation, state, start = env.reset(), None, np.ones(1, dtype=bool)
        >>> for _ in range(10):
        ...     action, state = model.predict(observation, state, start, deterministic=True)
        ...     observation, reward, start, info = env.step(action)

    Args:
        policy: ``"SSMPolicy"``, ``"MultiInputSSMPolicy"`` for ``Dict`` observations, ``"CnnSSMPolicy"`` for images, or
            a subclass of :class:`~ssm_metarl_gym.agents.SSMPolicy`.
        env: The environment, or the id of a registered one.
        learning_rate: As in PPO; every argument that is not described here is.
        n_steps: Steps of a rollout in each environment: the length of a sequence, beyond which no gradient flows.
        batch_size: Steps of a minibatch, a multiple of ``n_steps``, which makes ``batch_size / n_steps`` environments;
            None for one environment.

    Raises:
        ValueError: ``batch_size`` is not a multiple of ``n_steps``, or the policy is no ``SSMPolicy``.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "SSMPolicy": SSMPolicy,
        "MultiInputSSMPolicy": MultiInputSSMPolicy,
        "CnnSSMPolicy": CnnSSMPolicy,
    }
    policy: SSMPolicy
    rollout_buffer: SequenceRolloutBuffer | DictSequenceRolloutBuffer

    def __init__(
        self,
        policy: str | type[SSMPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 128,
        batch_size: int | None = None,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        given, batch_size = batch_size, n_steps if batch_size is None else batch_size
        _check_sizes(n_steps, batch_size)
        if batch_size == 1 and normalize_advantage:
            raise ValueError(
                "batch_size must be at least 2 where advantages are normalised, as the spread of one is none; got "
                f"batch_size={given} and n_steps={n_steps}. Use batch_size=2, or as many as there are environments."
            )
        if isinstance(policy, str):
            check_choice("policy", policy, list(self.policy_aliases))
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            normalize_advantage=normalize_advantage,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )

    def _setup_model(self) -> None:
        _check_sizes(self.n_steps, self.batch_size)  # loading may have changed one of them
        is_dict = isinstance(self.observation_space, spaces.Dict)
        self.rollout_buffer_class = DictSequenceRolloutBuffer if is_dict else SequenceRolloutBuffer
        if not issubclass(self.policy_class, SSMPolicy):
            raise ValueError(f"the policy must be a subclass of SSMPolicy; got {self.policy_class.__name__}.")
        super()._setup_model()
        # The memory after the last step taken. Where an episode starts it is cleared, so any will do before the first.
        self._last_state: Tensor = self.policy.initial_state(self.n_envs)
        if self._last_episode_starts is not None:
            # A loaded algorithm that goes on in mid-episode has no memory of it: to learning, that is a start.
            self._last_episode_starts = np.ones(self.n_envs, dtype=bool)

    def _excluded_save_params(self) -> list[str]:
        # The class of the buffer follows from the observation space; an archive would name the module that it lies in.
        return [*super()._excluded_save_params(), "_last_state", "rollout_buffer_class"]

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fill the buffer with steps of the present policy; False where the callback ended the training."""
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        rollout_buffer.states = self._last_state  # type: ignore[attr-defined]
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)
        callback.on_rollout_start()

        # The names of the local variables are those that callbacks find in SB3's own algorithms. Callbacks and
        # environments may need gradients, so only the policy's calls go without.
        with self.policy.memory_snapshot():
            for n_steps in range(n_rollout_steps):
                if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                    self.policy.reset_noise(env.num_envs)
                # Act: one step of the memory and of the policy, in all environments.
                obs_tensor = obs_as_tensor(self._last_obs, self.device)  # type: ignore[arg-type]
                starts = torch.as_tensor(self._last_episode_starts, device=self.device)
                with torch.no_grad():
                    tensors, values, log_probs, state = self.policy(obs_tensor, self._last_state, starts)
                actions = tensors.cpu().numpy()
                # Step the environments.
                clipped_actions = self.policy.to_environment(actions)
                new_obs, rewards, dones, infos = env.step(clipped_actions)
                self.num_timesteps += env.num_envs
                if not np.issubdtype(rewards.dtype, np.floating):  # so that what lies beyond a time limit can be added
                    rewards = rewards.astype(np.float32)

                callback.update_locals(locals())
                if not callback.on_step():
                    # Training may go on later: from here, not from before a step that may have ended an episode.
                    self._go_on_from(new_obs, dones, state)
                    return False

                # Store the step, as seen from before it.
                self._update_info_buffer(infos, dones)
                self._add_values_beyond_time_limits(rewards, dones, infos, state)
                if isinstance(self.action_space, spaces.Discrete):
                    actions = actions.reshape(-1, 1)
                rollout_buffer.add(self._last_obs, actions, rewards, self._last_episode_starts, values, log_probs)  # type: ignore[arg-type]
                self._go_on_from(new_obs, dones, state)

            # Value what follows the last step, and from it and the rewards compute the advantages.
            starts = torch.as_tensor(dones, device=self.device)
            with torch.no_grad():
                values = self.policy.predict_values(obs_as_tensor(new_obs, self.device), state, starts)  # type: ignore[arg-type]
        rollout_buffer.compute_returns_and_advantage(last_values=values, dones=dones)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _go_on_from(self, obs: VecEnvObs, episode_starts: npt.NDArray[np.bool_], state: Tensor) -> None:
        """Remember what the next step of the rollout sees, where episodes start, and the memory before it."""
        self._last_obs = obs  # type: ignore[assignment]
        self._last_episode_starts = episode_starts
        self._last_state = state

    @torch.no_grad()
    def _add_values_beyond_time_limits(
        self, rewards: npt.NDArray[np.float32], dones: npt.NDArray[np.bool_], infos: list[dict[str, Any]], state: Tensor
    ) -> None:
        """Add what would have followed to the rewards of episodes that a time limit cut off."""
        cut = [
            row
            for row in np.flatnonzero(dones)
            if infos[row].get("TimeLimit.truncated", False) and infos[row].get("terminal_observation") is not None
        ]
        if not cut:
            return
        last = [infos[row]["terminal_observation"] for row in cut]
        stacked = (
            {key: np.stack([obs[key] for obs in last]) for key in last[0]}
            if isinstance(last[0], dict)
            else np.stack(last)
        )
        obs_tensor, _ = self.policy.obs_to_tensor(stacked)
        rows = torch.as_tensor(cut, device=self.device)
        going_on = torch.zeros(len(cut), dtype=torch.bool, device=self.device)
        values = self.policy.predict_values(obs_tensor, state[rows], going_on)
        rewards[cut] += self.gamma * values.flatten().cpu().numpy()

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "SSMPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train for ``total_timesteps`` steps, as in every algorithm of SB3."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def export_onnx(self, path: str | Path, *, normalizer: VecNormalize | None = None) -> None:
        """Write the deterministic policy as an ONNX file, as :func:`~ssm_metarl_gym.agents.export_onnx` does."""
        export_onnx(self, path, normalizer=normalizer)


def _check_sizes(n_steps: int, batch_size: int) -> None:
    check_integer("n_steps", n_steps)
    check_integer("batch_size", batch_size)
    if batch_size % n_steps:
        raise ValueError(
            f"batch_size must be a multiple of n_steps, because a minibatch holds whole sequences; got batch_size "
            f"{batch_size} and n_steps {n_steps}. Use batch_size={max(1, batch_size // n_steps) * n_steps}."
        )
