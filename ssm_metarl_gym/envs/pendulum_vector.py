"""Many pendulums with hidden tasks, stepped at once."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.envs.arguments import parse_numbers
from ssm_metarl_gym.envs.hidden_task_vector import HiddenTaskVectorEnv, Observations
from ssm_metarl_gym.envs.pendulum import MAX_SPEED, MAX_TORQUE, TaskPendulumEnv

__all__ = ["TaskPendulumVectorEnv"]

# Seconds of a step: Gymnasium's.
_DT: Final = 0.05


class TaskPendulumVectorEnv(HiddenTaskVectorEnv):
    """n pendulums, each with a task of its own: what ``gym.make_vec("ssm_metarl/Pendulum-v0", num_envs=n)`` makes.

    Every row is equal (``==``) to a :class:`TaskPendulumEnv`, whose documentation holds spaces, rewards and options,
    given the same task, states and actions.

    Example:
        >>> envs = gym.make_vec("ssm_metarl/PendulumSwitch-v0", num_envs=3, switch={"step": [10, 20, 30]})
        >>> observations, infos = envs.reset(seed=0)
        >>> observations.shape, envs.unwrapped.tasks
        ((3, 3), TaskBatch(PendulumTask, num_tasks=3))

    Arguments and options of a reset: see :class:`HiddenTaskVectorEnv`.
    """

    single_env_type = TaskPendulumEnv

    def _allocate(self) -> None:
        self._scratch = np.empty((3, self.num_envs), dtype=self._dtype)
        self._torque = np.empty(self.num_envs, dtype=self._dtype)

    def _derive(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        polarity, g, m, length, gain = values
        # Gymnasium squares with Python's power, which is not always the product: this keeps every bit the same.
        inertia = m * np.float_power(length, 2.0)
        # The factors of the sine of the angle and of the torque, and the torque of the action 1.
        return np.stack([3 * g / (2 * length), 3.0 / inertia, MAX_TORQUE * gain * polarity])

    def _parse_actions(self, actions: Any) -> npt.NDArray[Any]:
        commands: npt.NDArray[Any] = parse_numbers(actions, self.num_envs, 1)[:, 0]
        return commands

    def _advance(self, actions: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        # In the order of Gymnasium's equations, operation by operation, so that every bit is the same.
        gravity, torque_factor, max_torque = self._derived
        acceleration, work, _ = self._scratch
        angle, speed = self._state
        np.clip(actions, -1.0, 1.0, out=self._torque)
        self._torque *= max_torque
        # cost = wrapped_angle^2 + 0.1 * speed^2 + 0.001 * torque^2
        np.add(angle, np.pi, out=work)
        np.remainder(work, 2 * np.pi, out=work)
        work -= np.pi
        rewards = self._square(work).astype(np.float64)
        np.multiply(0.1, self._square(speed), out=work)
        rewards += work
        np.multiply(0.001, self._square(self._torque), out=work)
        rewards += work
        np.negative(rewards, out=rewards)
        # speed += (gravity_factor * sin + torque_factor * torque) * dt, and the angle moves with the new speed.
        np.sin(angle, out=acceleration)
        acceleration *= gravity
        acceleration += np.multiply(torque_factor, self._torque, out=work)
        acceleration *= _DT
        speed += acceleration
        np.clip(speed, -MAX_SPEED, MAX_SPEED, out=speed)
        angle += np.multiply(speed, _DT, out=work)
        return rewards, np.zeros(self.num_envs, dtype=np.bool_)

    def _square(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        square: npt.NDArray[Any] = self._scratch[2]
        if square.dtype == np.float32:
            np.square(values, out=square)
        else:
            np.float_power(values, 2.0, out=square)  # as the power of a NumPy scalar rounds
        return square

    def _observe_state(self) -> Observations:
        angle, speed = self._state
        observations = np.empty((3, self.num_envs), dtype=np.float32)
        observations[0] = np.cos(angle, out=self._scratch[0])
        observations[1] = np.sin(angle, out=self._scratch[0])
        observations[2] = speed
        return observations.T

    def _prepare_painter(self, row: int) -> None:
        # No torque has acted yet where the episode has only begun, or begun anew after the warm-up.
        has_acted = self._elapsed[row] not in (0, self._warm_up_steps)
        self._single.last_u = float(self._torque[row]) if has_acted else None
