"""Many points with hidden goals, moved at once."""

from ssm_metarl_gym.envs.point_navigation import TaskPointNavigationEnv
from ssm_metarl_gym.envs.row_physics_vector import RowPhysicsVectorEnv

__all__ = ["TaskPointNavigationVectorEnv"]


class TaskPointNavigationVectorEnv(RowPhysicsVectorEnv):
    """n points, each with a goal of its own: what ``gym.make_vec("ssm_metarl/PointNavigation-v0", num_envs=n)`` makes.

    Every row is equal (``==``) to a :class:`TaskPointNavigationEnv`, whose documentation holds spaces, rewards and
    options, given the same task, states and actions.

    Example:
        >>> envs = gym.make_vec("ssm_metarl/PointNavigation-v0", num_envs=2, task={"goal_x": [0.3, -0.1], "goal_y": 0})
        >>> observations, infos = envs.reset(seed=0)
        >>> envs.step(np.array([[1.0, 0.0], [-1.0, 0.0]]))[2]
        array([False,  True])

    Arguments and options of a reset: see :class:`HiddenTaskVectorEnv`.
    """

    single_env_type = TaskPointNavigationEnv
