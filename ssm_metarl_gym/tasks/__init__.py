"""What can be hidden: tasks, distributions over them, and the families that environment ids name."""

from ssm_metarl_gym.tasks.actuators import ActuatorDistribution, ActuatorTask, actuator_task_type
from ssm_metarl_gym.tasks.classic import CartPoleTask, PendulumTask, PointNavigationTask
from ssm_metarl_gym.tasks.distributions import Distribution, TaskDistribution, TaskSet, distribution_from_dict
from ssm_metarl_gym.tasks.families import FAMILIES, SPLITS, TaskFamily, actuator_family, parse_family
from ssm_metarl_gym.tasks.marginals import Choice, LogUniform, Marginal, Uniform
from ssm_metarl_gym.tasks.mujoco import (
    AntDirTask,
    HalfCheetahDirTask,
    HalfCheetahVelTask,
    HopperTask,
    ModelTask,
    Walker2dTask,
)
from ssm_metarl_gym.tasks.task import Task, TaskBatch

__all__ = [
    "FAMILIES",
    "SPLITS",
    "ActuatorDistribution",
    "ActuatorTask",
    "AntDirTask",
    "CartPoleTask",
    "Choice",
    "Distribution",
    "HalfCheetahDirTask",
    "HalfCheetahVelTask",
    "HopperTask",
    "LogUniform",
    "Marginal",
    "ModelTask",
    "PendulumTask",
    "PointNavigationTask",
    "Task",
    "TaskBatch",
    "TaskDistribution",
    "TaskFamily",
    "TaskSet",
    "Uniform",
    "Walker2dTask",
    "actuator_family",
    "actuator_task_type",
    "distribution_from_dict",
    "parse_family",
]
