"""Many cart-poles with hidden tasks, stepped at once."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.envs.arguments import Family, parse_whole_numbers
from ssm_metarl_gym.envs.cartpole import TaskCartPoleEnv
from ssm_metarl_gym.envs.hidden_task_vector import HiddenTaskVectorEnv, Observations

__all__ = ["TaskCartPoleVectorEnv"]

# Seconds of a step, and the cart position (m) and the pole angle (rad) beyond which an attempt has failed: Gymnasium's.
_TAU, _LIMITS = 0.02, (2.4, 12 * 2 * np.pi / 360)


class TaskCartPoleVectorEnv(HiddenTaskVectorEnv):
    """n cart-poles, each with a task of its own: what ``gym.make_vec("ssm_metarl/CartPole-v0", num_envs=n)`` makes.

    Every row is equal (``==``) to a :class:`TaskCartPoleEnv`, whose documentation holds spaces, rewards and options,
    given the same task, states and actions.

    Example:
        >>> envs = gym.make_vec("ssm_metarl/CartPolePolarity-v0", num_envs=1024, split="extrapolation")
        >>> observations, infos = envs.reset(seed=0, options={"tasks": {"polarity": -1}})
        >>> observations.shape, infos["task_params"]["polarity"].sum()
        ((1024, 4), np.int64(-1024))

    Arguments and options of a reset: see :class:`HiddenTaskVectorEnv`.
    """

    single_env_type = TaskCartPoleEnv

    def __init__(
        self, num_envs: int = 1, family: Family | None = None, *, sutton_barto_reward: bool = False, **kwargs: Any
    ) -> None:
        self._sutton_barto_reward = sutton_barto_reward
        super().__init__(num_envs, family, **kwargs)

    def _allocate(self) -> None:
        shapes = (self.num_envs,), (self.num_envs,), (2, self.num_envs), (4, self.num_envs)
        self._scratch = [np.empty(shape, dtype=self._dtype) for shape in shapes]
        self._ones = np.ones(self.num_envs)
        # The direction of each action.
        self._signs = np.array([-1.0, 1.0], dtype=self._dtype)

    def _derive(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        polarity, gravity, masscart, masspole, length, force_mag = values
        derived = np.empty((6, values.shape[1]))
        derived[0], derived[1], derived[2] = gravity, masspole, length
        np.add(masspole, masscart, out=derived[3])
        np.multiply(masspole, length, out=derived[4])
        np.multiply(polarity, force_mag, out=derived[5])
        return derived

    def _parse_actions(self, actions: Any) -> npt.NDArray[Any]:
        parsed = parse_whole_numbers(actions, self.num_envs)
        # Shifted by a bit, 0 and 1 are 0 and nothing else is.
        if np.count_nonzero(parsed >> 1):
            row = int(np.argmax(parsed >> 1 != 0))
            raise ValueError(f"an action must be 0 or 1; got {parsed[row]} in row {row}.")
        return parsed.astype(np.intp, copy=False)

    def _advance(self, actions: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        # In the order of Gymnasium's equations, operation by operation, so that every bit is the same.
        gravity, masspole, length, total_mass, polemass_length, push = self._derived
        sine, cosine, quotients, changes = self._scratch
        temp, work = quotients
        acceleration, angle_acceleration = changes[1], changes[3]
        position, _, angle, angle_speed = self._state
        np.sin(angle, out=sine)
        np.cos(angle, out=cosine)
        # temp = (force + polemass_length * angle_speed^2 * sin) / total_mass, work = masspole * cos^2 / total_mass
        force = self._signs.take(actions, out=acceleration, mode="clip")
        force *= push
        np.square(angle_speed, out=temp)
        temp *= polemass_length
        temp *= sine
        temp += force
        np.square(cosine, out=work)
        work *= masspole
        quotients /= total_mass
        # angle_acceleration = (gravity * sin - cos * temp) / (length * (4/3 - work))
        np.multiply(gravity, sine, out=angle_acceleration)
        angle_acceleration -= np.multiply(cosine, temp, out=sine)
        np.subtract(4.0 / 3.0, work, out=work)
        work *= length
        angle_acceleration /= work
        # acceleration = temp - polemass_length * angle_acceleration * cos / total_mass
        np.multiply(polemass_length, angle_acceleration, out=work)
        work *= cosine
        work /= total_mass
        np.subtract(temp, work, out=acceleration)
        # Positions move with the old speeds.
        changes[0::2] = self._state[1::2]
        changes *= _TAU
        self._state += changes
        failed: npt.NDArray[np.bool_] = np.abs(position, out=sine) > _LIMITS[0]
        failed |= np.abs(angle, out=cosine) > _LIMITS[1]
        rewards = np.where(failed, -1.0, 0.0) if self._sutton_barto_reward else self._ones.copy()
        return rewards, failed

    def _observe_state(self) -> Observations:
        return self._state.T.astype(np.float32)
