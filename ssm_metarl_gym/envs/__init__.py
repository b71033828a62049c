"""The environments of the ``ssm_metarl`` namespace, single and batched, what they share, and their registration."""

from typing import Any

import gymnasium as gym

from ssm_metarl_gym.envs.cartpole import TaskCartPoleEnv
from ssm_metarl_gym.envs.cartpole_vector import TaskCartPoleVectorEnv
from ssm_metarl_gym.envs.complex_ode import TaskComplexODEEnv
from ssm_metarl_gym.envs.complex_ode_vector import TaskComplexODEVectorEnv
from ssm_metarl_gym.envs.double_integrator import TaskDoubleIntegratorEnv
from ssm_metarl_gym.envs.double_integrator_vector import TaskDoubleIntegratorVectorEnv
from ssm_metarl_gym.envs.hidden_actuators import HiddenActuators
from ssm_metarl_gym.envs.hidden_task import DerivedQuantity, HiddenTask, TaskParameter
from ssm_metarl_gym.envs.hidden_task_vector import HiddenTaskVectorEnv
from ssm_metarl_gym.envs.pendulum import TaskPendulumEnv
from ssm_metarl_gym.envs.pendulum_vector import TaskPendulumVectorEnv
from ssm_metarl_gym.envs.point_actuators import TaskPointActuatorsEnv
from ssm_metarl_gym.envs.point_actuators_vector import TaskPointActuatorsVectorEnv
from ssm_metarl_gym.envs.point_navigation import TaskPointNavigationEnv
from ssm_metarl_gym.envs.point_navigation_vector import TaskPointNavigationVectorEnv
from ssm_metarl_gym.envs.repeat_observation import RepeatObservationEnv
from ssm_metarl_gym.envs.repeat_observation_vector import RepeatObservationVectorEnv
from ssm_metarl_gym.tasks.families import FAMILIES

__all__ = [
    "DerivedQuantity",
    "HiddenActuators",
    "HiddenTask",
    "HiddenTaskVectorEnv",
    "RepeatObservationEnv",
    "RepeatObservationVectorEnv",
    "TaskCartPoleEnv",
    "TaskCartPoleVectorEnv",
    "TaskComplexODEEnv",
    "TaskComplexODEVectorEnv",
    "TaskDoubleIntegratorEnv",
    "TaskDoubleIntegratorVectorEnv",
    "TaskParameter",
    "TaskPendulumEnv",
    "TaskPendulumVectorEnv",
    "TaskPointActuatorsEnv",
    "TaskPointActuatorsVectorEnv",
    "TaskPointNavigationEnv",
    "TaskPointNavigationVectorEnv",
    "register_environments",
]

# The single and the batched form of each environment, by module; what MuJoCo simulates, which is imported with the
# first of them, has no batched form.
_CARTPOLE = ("cartpole:TaskCartPoleEnv", "cartpole_vector:TaskCartPoleVectorEnv")
_PENDULUM = ("pendulum:TaskPendulumEnv", "pendulum_vector:TaskPendulumVectorEnv")
_POINT_ACTUATORS = ("point_actuators:TaskPointActuatorsEnv", "point_actuators_vector:TaskPointActuatorsVectorEnv")
_INTEGRATOR = (
    "double_integrator:TaskDoubleIntegratorEnv",
    "double_integrator_vector:TaskDoubleIntegratorVectorEnv",
)
_ODE = ("complex_ode:TaskComplexODEEnv", "complex_ode_vector:TaskComplexODEVectorEnv")
_POINT = ("point_navigation:TaskPointNavigationEnv", "point_navigation_vector:TaskPointNavigationVectorEnv")
_REPEAT = ("repeat_observation:RepeatObservationEnv", "repeat_observation_vector:RepeatObservationVectorEnv")

# Trials, and a switch that comes on average once in a trial of 200 steps.
_TRIALS: dict[str, Any] = {"on_failure": "restart"}
_SWITCHING: dict[str, Any] = {"switch": {"probability": 0.005}}

# By name: the two forms, the time limit, the return from which a task counts as solved (where there is such a thing, as
# in Gymnasium), and the arguments that differ from the constructor's defaults; those of a family hold its name, too.
_REGISTRATIONS: dict[str, tuple[tuple[str, str | None], int | None, float | None, dict[str, Any]]] = {
    "CartPole": (_CARTPOLE, 500, 475.0, {}),
    "CartPolePolarity": (_CARTPOLE, 200, 195.0, _TRIALS),
    "CartPoleSwitch": (_CARTPOLE, 200, 195.0, _TRIALS | _SWITCHING),
    "Pendulum": (_PENDULUM, 200, None, {}),
    "PendulumPolarity": (_PENDULUM, 200, None, {}),
    "PendulumSwitch": (_PENDULUM, 200, None, _SWITCHING),
    "PointNavigation": (_POINT, 100, None, {}),
    "PointActuators": (_POINT_ACTUATORS, 100, None, {}),
    "DoubleIntegrator": (_INTEGRATOR, 100, None, {}),
    "DoubleIntegratorFriction": (_INTEGRATOR, 100, None, {}),
    "ComplexODE": (_ODE, 200, None, {}),
    "HalfCheetahVel": (("mujoco:TaskHalfCheetahVelEnv", None), 200, None, {}),
    "HalfCheetahDir": (("mujoco:TaskHalfCheetahDirEnv", None), 200, None, {}),
    "AntDir": (("mujoco:TaskAntDirEnv", None), 200, None, {}),
    "HopperParams": (("mujoco:TaskHopperEnv", None), 200, None, {}),
    "Walker2dParams": (("mujoco:TaskWalker2dEnv", None), 200, None, {}),
    "ReacherActuators": (("mujoco_actuators:TaskReacherActuatorsEnv", None), 50, None, {}),
    "HalfCheetahActuators": (("mujoco_actuators:TaskHalfCheetahActuatorsEnv", None), 400, None, {}),
    "AntActuators": (("mujoco_actuators:TaskAntActuatorsEnv", None), 400, None, {}),
    "HopperActuators": (("mujoco_actuators:TaskHopperActuatorsEnv", None), 400, None, {}),
    "Walker2dActuators": (("mujoco_actuators:TaskWalker2dActuatorsEnv", None), 400, None, {}),
    # A probe ends by itself, after as many steps as its arguments say: hence no time limit.
    "RepeatObservation": (_REPEAT, None, 0.9, {}),
}


def register_environments() -> None:
    """Register every family and the probe as ``ssm_metarl/<name>-v0``. Calling it again changes nothing."""
    for name, ((single, batched), max_episode_steps, reward_threshold, kwargs) in _REGISTRATIONS.items():
        env_id = f"ssm_metarl/{name}-v0"
        if env_id not in gym.registry:
            gym.register(
                id=env_id,
                entry_point=f"ssm_metarl_gym.envs.{single}",
                vector_entry_point=None if batched is None else f"ssm_metarl_gym.envs.{batched}",
                reward_threshold=reward_threshold,
                max_episode_steps=max_episode_steps,
                kwargs={"family": name, **kwargs} if name in FAMILIES else kwargs,
            )
