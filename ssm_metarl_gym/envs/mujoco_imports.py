"""MuJoCo and Gymnasium's environments in it, or the error that says how to install them."""

import gymnasium as gym

try:
    import gymnasium.envs.mujoco.mujoco_rendering  # or the first constructor fails without saying what to install
    import mujoco
    from gymnasium.envs.mujoco.ant_v5 import AntEnv
    from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
    from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
    from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv
    from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv
except (ImportError, gym.error.DependencyNotInstalled) as error:
    raise gym.error.DependencyNotInstalled(
        "the Reacher, HalfCheetah, Ant, Hopper and Walker2d families need MuJoCo; "
        'run `pip install "ssm-metarl-gym[mujoco]"`.'
    ) from error

__all__ = ["AntEnv", "HalfCheetahEnv", "HopperEnv", "ReacherEnv", "Walker2dEnv", "mujoco"]
