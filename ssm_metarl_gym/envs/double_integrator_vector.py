"""Many masses under hidden forces, moved at once."""

from ssm_metarl_gym.envs.double_integrator import TaskDoubleIntegratorEnv
from ssm_metarl_gym.envs.row_physics_vector import RowPhysicsVectorEnv

__all__ = ["TaskDoubleIntegratorVectorEnv"]


class TaskDoubleIntegratorVectorEnv(RowPhysicsVectorEnv):
    """n masses, each with a task of its own: what ``gym.make_vec("ssm_metarl/DoubleIntegrator-v0", num_envs=n)`` makes.

    Every row is equal (``==``) to a :class:`TaskDoubleIntegratorEnv`, whose documentation holds spaces, rewards and
    options, given the same task, states and actions.

    Example:
        >>> envs = gym.make_vec("ssm_metarl/DoubleIntegrator-v0", num_envs=20, contexts="aib", split="extrapolation")
        >>> observations, infos = envs.reset(seed=0)
        >>> observations.shape
        (20, 4)

    Arguments and options of a reset: see :class:`HiddenTaskVectorEnv`.
    """

    single_env_type = TaskDoubleIntegratorEnv
