"""Many numbers whose rates are hidden polynomials, moved at once."""

from ssm_metarl_gym.envs.complex_ode import TaskComplexODEEnv
from ssm_metarl_gym.envs.row_physics_vector import RowPhysicsVectorEnv

__all__ = ["TaskComplexODEVectorEnv"]


class TaskComplexODEVectorEnv(RowPhysicsVectorEnv):
    """n numbers, each with a task of its own: what ``gym.make_vec("ssm_metarl/ComplexODE-v0", num_envs=n)`` makes.

    Every row is equal (``==``) to a :class:`TaskComplexODEEnv`, whose documentation holds spaces, rewards and options,
    given the same task, states and actions.

    Example:
        >>> envs = gym.make_vec("ssm_metarl/ComplexODE-v0", num_envs=3, task={"c0": [5, -5, 0], "c1": [0, 0, 5]})
        >>> observations, infos = envs.reset(seed=0, options={"state": [[0.03], [-0.03], [0.03]]})
        >>> envs.step(np.array([[-1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]))[0].ravel().round(3)
        array([-0.02,  0.02, -0.02], dtype=float32)

    Arguments and options of a reset: see :class:`HiddenTaskVectorEnv`.
    """

    single_env_type = TaskComplexODEEnv
