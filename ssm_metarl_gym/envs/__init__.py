"""The environments of the ``ssm_metarl`` namespace, and their registration with Gymnasium."""

from typing import Any

import gymnasium as gym

from ssm_metarl_gym.envs.cartpole import TaskCartPoleEnv
from ssm_metarl_gym.envs.cartpole_vector import TaskCartPoleVectorEnv
from ssm_metarl_gym.envs.hidden_task import DerivedQuantity, HiddenTask, TaskParameter
from ssm_metarl_gym.envs.hidden_task_vector import HiddenTaskVectorEnv
from ssm_metarl_gym.envs.pendulum import TaskPendulumEnv
from ssm_metarl_gym.envs.pendulum_vector import TaskPendulumVectorEnv
from ssm_metarl_gym.envs.point_navigation import TaskPointNavigationEnv
from ssm_metarl_gym.envs.point_navigation_vector import TaskPointNavigationVectorEnv
from ssm_metarl_gym.envs.repeat_observation import RepeatObservationEnv
from ssm_metarl_gym.envs.repeat_observation_vector import RepeatObservationVectorEnv

__all__ = [
    "DerivedQuantity",
    "HiddenTask",
    "HiddenTaskVectorEnv",
    "RepeatObservationEnv",
    "RepeatObservationVectorEnv",
    "TaskCartPoleEnv",
    "TaskCartPoleVectorEnv",
    "TaskParameter",
    "TaskPendulumEnv",
    "TaskPendulumVectorEnv",
    "TaskPointNavigationEnv",
    "TaskPointNavigationVectorEnv",
    "register_environments",
]

# On average one change in a trial of 200 steps.
_SWITCHING: dict[str, Any] = {"switch": {"probability": 0.005}}
_TRIALS: dict[str, Any] = {"on_failure": "restart"}

# Family, entry point, time limit and the keyword arguments that differ from the constructor's defaults.
_REGISTRATIONS: tuple[tuple[str, str, int, dict[str, Any]], ...] = (
    ("CartPole", "cartpole:TaskCartPoleEnv", 500, {}),
    ("CartPolePolarity", "cartpole:TaskCartPoleEnv", 200, _TRIALS),
    ("CartPoleSwitch", "cartpole:TaskCartPoleEnv", 200, _TRIALS | _SWITCHING),
    ("Pendulum", "pendulum:TaskPendulumEnv", 200, {}),
    ("PendulumPolarity", "pendulum:TaskPendulumEnv", 200, {}),
    ("PendulumSwitch", "pendulum:TaskPendulumEnv", 200, _SWITCHING),
    ("PointNavigation", "point_navigation:TaskPointNavigationEnv", 100, {}),
    # These need MuJoCo, which is imported with the first of them.
    ("HalfCheetahVel", "mujoco:TaskHalfCheetahVelEnv", 200, {}),
    ("HalfCheetahDir", "mujoco:TaskHalfCheetahDirEnv", 200, {}),
    ("AntDir", "mujoco:TaskAntDirEnv", 200, {}),
    ("HopperParams", "mujoco:TaskHopperEnv", 200, {}),
    ("Walker2dParams", "mujoco:TaskWalker2dEnv", 200, {}),
)

# The batched form of an entry point, where there is one.
_BATCHED = {
    "cartpole:TaskCartPoleEnv": "ssm_metarl_gym.envs.cartpole_vector:TaskCartPoleVectorEnv",
    "pendulum:TaskPendulumEnv": "ssm_metarl_gym.envs.pendulum_vector:TaskPendulumVectorEnv",
    "point_navigation:TaskPointNavigationEnv": (
        "ssm_metarl_gym.envs.point_navigation_vector:TaskPointNavigationVectorEnv"
    ),
}


def register_environments() -> None:
    """Register every family as ``ssm_metarl/<family>-v0``, and the probe. Calling it again changes nothing."""
    for family, entry_point, max_episode_steps, kwargs in _REGISTRATIONS:
        env_id = f"ssm_metarl/{family}-v0"
        if env_id not in gym.registry:
            gym.register(
                id=env_id,
                entry_point=f"ssm_metarl_gym.envs.{entry_point}",
                vector_entry_point=_BATCHED.get(entry_point),
                max_episode_steps=max_episode_steps,
                kwargs={"family": family, **kwargs},
            )
    # It ends by itself, after as many steps as its arguments say: hence no time limit.
    if "ssm_metarl/RepeatObservation-v0" not in gym.registry:
        gym.register(
            id="ssm_metarl/RepeatObservation-v0",
            entry_point="ssm_metarl_gym.envs.repeat_observation:RepeatObservationEnv",
            vector_entry_point="ssm_metarl_gym.envs.repeat_observation_vector:RepeatObservationVectorEnv",
        )
