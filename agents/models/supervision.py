"""Plain supervision in one simulator: transitions of random actions and of a policy, and the descent on them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize
from torch import Tensor, nn
from torch.nn import functional as F

from ssm_metarl_gym.checks import has_bounds
from ssm_metarl_gym.seeding import seed_sequence

__all__ = [
    "NOISE",
    "Policy",
    "SimulatorEnv",
    "Transitions",
    "collect_transitions",
    "descend",
    "random_actions",
    "with_noise",
]

SimulatorEnv: TypeAlias = gym.Env[Any, Any] | VectorEnv[Any, Any, Any] | VecEnv

# The noise around a policy's actions, in half ranges, and what share of the transitions is of random actions.
NOISE: Final = (0.05, 0.2, 0.5)
_RANDOM_SHARE: Final = 1.0 / 3.0


class Policy(Protocol):
    """Whatever has the ``predict`` of Stable-Baselines3."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[npt.NDArray[Any], Any]:
        """The action for each row, and what the policy wants to be given back at the next step."""


@dataclass(frozen=True)
class Transitions:
    """Transitions in the order of time.

    Attributes:
        observations: ``Float[N D]``.
        actions: ``Int[N]`` or ``Float[N A]``.
        next_observations: ``Float[N D]``; where an episode ended, its last observation.
    """

    observations: npt.NDArray[Any]
    actions: npt.NDArray[Any]
    next_observations: npt.NDArray[Any]

    @classmethod
    def joined(cls, parts: Iterable["Transitions"]) -> "Transitions":
        """The transitions of several, one after the other."""
        return cls(*(np.concatenate(column) for column in zip(*(vars(part).values() for part in parts), strict=True)))

    def as_seen(self, noise: npt.NDArray[Any], rng: np.random.Generator) -> "Transitions":
        """What sensors show of them whose noise has these standard deviations, ``Float[]`` or ``Float[D]``."""
        seen = (one + noise * rng.normal(size=one.shape) for one in (self.observations, self.next_observations))
        return Transitions(next(seen), self.actions, next(seen))

    def split(self, share: float, num_stretches: int = 1) -> tuple["Transitions", "Transitions"]:
        """The first ``share`` of each of so many stretches of time, or of as many as are ten long, and the rest."""
        indices = np.arange(len(self.actions))
        stretches = np.array_split(indices, max(1, min(num_stretches, len(indices) // 10)))
        is_first = np.concatenate([np.arange(len(each)) < int(share * len(each)) for each in stretches])
        columns = vars(self).values()
        return Transitions(*(column[is_first] for column in columns)), Transitions(
            *(column[~is_first] for column in columns)
        )


def collect_transitions(env: SimulatorEnv, policy: Policy | None, num_transitions: int, seed: int) -> list[Transitions]:
    """Transitions of each way to act: at random, then as a policy does with ever more noise.

    Those onto the restart of a trial (``info["restarted"]``), which no model can predict, are left out, and so are
    those to and from an observation that is not finite.

    Args:
        env: The simulator. A ``VecNormalize`` normalises what the policy is shown, but not the transitions.
        policy: The policy; None for random actions alone.
        num_transitions: About how many transitions to collect, those included that are not finite.
        seed: Seeds the environment and the actions.

    Raises:
        ValueError: The action space is neither ``Discrete`` nor a bounded ``Box``, or no way to act gives two
            transitions that are finite.
    """
    rng = np.random.default_rng(seed_sequence(seed, "transitions"))
    rows = _make_rows(env)
    rows.reset(seed)
    if policy is None:
        parts = [_collect(rows, None, 0.0, num_transitions, rng)]
    else:
        num_random = round(_RANDOM_SHARE * num_transitions)
        num_noisy = (num_transitions - num_random) // len(NOISE)
        noisy = [_collect(rows, policy, noise, num_noisy, rng) for noise in NOISE]
        parts = [_collect(rows, None, 0.0, num_random, rng), *noisy]
    if max(len(part.actions) for part in parts) < 2:
        raise ValueError(
            "the simulator must show finite observations, two transitions between such at least; of about "
            f"{num_transitions} there are {sum(len(part.actions) for part in parts)}. Mend what it shows."
        )
    return parts


def random_actions(space: spaces.Space[Any], rng: np.random.Generator, size: tuple[int, ...]) -> npt.NDArray[Any]:
    """Many actions at once: sampling a space thousands of times would take as long as the environment itself.

    Raises:
        ValueError: The space is neither ``Discrete`` nor a bounded ``Box``.
    """
    if isinstance(space, spaces.Discrete):
        return rng.integers(space.start, space.start + space.n, size=size)
    if isinstance(space, spaces.Box) and has_bounds(space).all():
        return rng.uniform(space.low, space.high, (*size, *space.shape)).astype(_float_type(space))
    raise ValueError(f"the action space must be Discrete or a bounded Box; got {space}.")


def descend(
    predict: Callable[[Tensor], Tensor],
    parameters: Iterable[nn.Parameter],
    inputs: Tensor,
    targets: Tensor,
    *,
    num_updates: int,
    batch_size: int,
    learning_rate: float,
    rng: np.random.Generator,
) -> None:
    """Minimise the mean squared error by Adam, with a step size that falls linearly to zero.

    Args:
        predict: The network.
        parameters: Its parameters.
        inputs: ``Float[N in]``.
        targets: ``Float[N D]``.
        num_updates: Number of steps.
        batch_size: Number of rows in a step.
        learning_rate: The first step size.
        rng: Draws the batches.

    Raises:
        FloatingPointError: The parameters are not finite afterwards.
    """
    parameters = list(parameters)
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    for update in range(num_updates):
        optimizer.param_groups[0]["lr"] = learning_rate * (1.0 - update / num_updates)
        rows = torch.as_tensor(rng.integers(len(inputs), size=batch_size), device=inputs.device)
        optimizer.zero_grad()
        with torch.enable_grad():
            F.mse_loss(predict(inputs[rows]), targets[rows]).backward()
        optimizer.step()
    if not all(torch.isfinite(parameter).all() for parameter in parameters):
        raise FloatingPointError(
            f"the weights must be finite after the fit; they are not, of {parameters[0].dtype} with a step size of "
            f"{learning_rate}. Use a smaller one, and a model of single precision at least."
        )


def _collect(
    rows: "_Rows", policy: Policy | None, noise: float, num_transitions: int, rng: np.random.Generator
) -> Transitions:
    """What a policy does with noise on its actions, or random actions without one."""
    columns: list[tuple[npt.NDArray[Any], ...]] = []
    state, starts, num_collected = None, np.ones(rows.num_rows, dtype=np.bool_), 0
    while num_collected < num_transitions:
        observations = rows.observations
        actions = random_actions(rows.action_space, rng, (rows.num_rows,))
        if policy is not None:
            chosen, state = policy.predict(
                without_failures(rows.shown()), state=state, episode_start=starts, deterministic=True
            )
            actions = with_noise(chosen, actions, rows.action_space, noise, rng)
        next_observations, starts, counted = rows.step(actions)
        # What is not finite counts too, so that there is an end where nothing else comes.
        num_collected += int(counted.sum())
        kept = counted & np.isfinite(observations).all(axis=1) & np.isfinite(next_observations).all(axis=1)
        columns.append((observations[kept], actions[kept], next_observations[kept]))
    return Transitions(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def with_noise(
    chosen: npt.NDArray[Any],
    at_random: npt.NDArray[Any],
    space: spaces.Space[Any],
    noise: float,
    rng: np.random.Generator,
) -> npt.NDArray[Any]:
    """The chosen actions with Gaussian noise in half ranges of a Box, or as often replaced by random ones."""
    if isinstance(space, spaces.Box):
        scale = noise * (space.high - space.low) / 2.0
        noisy = np.clip(chosen + scale * rng.normal(size=chosen.shape), space.low, space.high)
        return noisy.astype(_float_type(space))
    return np.where(rng.random(len(chosen)) < noise, at_random, chosen)


def _float_type(space: spaces.Box) -> npt.DTypeLike:
    """The type of a Box's numbers, which rounds none of them out of it; single precision where these are whole."""
    return space.dtype if np.issubdtype(space.dtype, np.floating) else np.float32


def without_failures(observations: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What a policy is shown of sensors that fail now and then: zeros. What it does then is not learned from."""
    shown: npt.NDArray[Any] = np.nan_to_num(observations, nan=0.0, posinf=0.0, neginf=0.0)
    return shown


class _Rows(Protocol):
    """Environments side by side, each of which starts anew when its episode has ended."""

    num_rows: int
    action_space: spaces.Space[Any]
    observations: npt.NDArray[Any]  # the present ones

    def reset(self, seed: int) -> None:
        """Start all rows."""

    def shown(self) -> npt.NDArray[Any]:
        """The present observations as a policy is shown them."""

    def step(self, actions: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Where the actions led to, which rows show the start of an episode now, and which transitions count."""


class _SB3Rows:
    """The rows of a ``VecEnv`` of Stable-Baselines3."""

    def __init__(self, env: VecEnv) -> None:
        self._normaliser = env if isinstance(env, VecNormalize) else None
        # Stepping a VecNormalize would move its statistics.
        self._env = env.venv if isinstance(env, VecNormalize) else env
        if unwrap_vec_normalize(self._env) is not None:
            raise ValueError(f"VecNormalize must be the outermost wrapper; got {self._env} around it. Give it itself.")
        self.num_rows = env.num_envs
        self.action_space = env.action_space

    def reset(self, seed: int) -> None:
        self._env.seed(seed)
        self.observations: npt.NDArray[Any] = np.asarray(self._env.reset())

    def shown(self) -> npt.NDArray[Any]:
        return (
            self.observations
            if self._normaliser is None
            else np.asarray(self._normaliser.normalize_obs(self.observations))
        )

    def step(self, actions: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        observations, _, ended, infos = self._env.step(actions)
        self.observations = np.asarray(observations)
        next_observations = self.observations.copy()
        for i in np.flatnonzero(ended):
            next_observations[i] = infos[i]["terminal_observation"]
        return next_observations, ended, np.array([not info.get("restarted", False) for info in infos])


class _VectorRows:
    """The rows of a vector environment of Gymnasium, in any autoreset mode."""

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        self._env = env
        self._mode = AutoresetMode(env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        self.num_rows = env.num_envs
        self.action_space = env.single_action_space

    def reset(self, seed: int) -> None:
        self.observations: npt.NDArray[Any] = np.array(self._env.reset(seed=seed)[0])
        self._resets = np.zeros(self.num_rows, dtype=np.bool_)

    def shown(self) -> npt.NDArray[Any]:
        return self.observations

    def step(self, actions: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        observations, _, terminated, truncated, infos = self._env.step(actions)
        next_observations, self.observations = np.array(observations), np.array(observations)
        ended = np.logical_or(terminated, truncated)
        counted = ~np.logical_or(self._resets, infos.get("restarted", False))
        if self._mode is AutoresetMode.SAME_STEP and ended.any():
            next_observations[ended] = np.stack(list(infos["final_obs"][ended]))
            counted[ended] = ~np.broadcast_to(infos["final_info"].get("restarted", False), ended.shape)[ended]
        if self._mode is AutoresetMode.DISABLED and ended.any():
            self.observations = np.array(self._env.reset(options={"reset_mask": ended})[0])
        if self._mode is not AutoresetMode.NEXT_STEP:
            return next_observations, ended, counted
        # In this mode a row shows its last observation first, and the step after that is its reset.
        starts, self._resets = self._resets, ended
        return next_observations, starts, counted


def _make_rows(env: SimulatorEnv) -> _Rows:
    if isinstance(env, VectorEnv):
        return _VectorRows(env)
    return _SB3Rows(env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env]))
