"""A curriculum over tasks, for the algorithms of Stable-Baselines3."""

from collections.abc import Callable

from stable_baselines3.common.callbacks import BaseCallback

from ssm_metarl_gym.checks import check_integer
from ssm_metarl_gym.envs.arguments import Family

__all__ = ["Curriculum"]


class Curriculum(BaseCallback):
    """Changes what tasks are drawn from, in stages, as training goes on.

    Episodes that have begun keep their task, and the first one of each row begins before this is asked: make the
    environments with the family of the first stage. They must have a method ``set_family``, as all of this package with
    hidden tasks do, and all that :class:`~ssm_metarl_gym.envs.HiddenTask` makes, batched or not, in processes or not.

    Example:
        >>> def lengths(share):
        ...     return TaskDistribution(CartPoleTask, {"length": Uniform((0.5 - 0.25 * share, 0.5 + 0.25 * share))})
        >>> envs = make_sb3_env("ssm_metarl/CartPole-v0", 8, family=lengths(0.25))
        >>> curriculum = Curriculum(lengths, num_steps=512, num_stages=4)
        >>> model = PPO("MlpPolicy", envs, n_steps=32).learn(1024, callback=curriculum)

    Args:
        family_at: What tasks are drawn from, in any form that the environments take as ``family``, for a share in
            (0, 1] of the curriculum: ``1 / num_stages`` in the first stage, 1 in the last one.
        num_steps: Timesteps after which the curriculum is over. The last stage begins before that.
        num_stages: Number of stages, of equal lengths. A stage begins with a rollout.

    Raises:
        ValueError: A number is not positive.
    """

    def __init__(self, family_at: Callable[[float], Family], num_steps: int, num_stages: int = 10) -> None:
        check_integer("num_steps", num_steps)
        check_integer("num_stages", num_stages)
        super().__init__()
        self._family_at = family_at
        self._num_steps = num_steps
        self._num_stages = num_stages
        self._stage = 0

    def _on_training_start(self) -> None:
        self._stage = 0

    def _on_rollout_start(self) -> None:
        stage = min(self._num_stages, 1 + self.num_timesteps * self._num_stages // self._num_steps)
        if stage > self._stage:
            self._stage = stage
            self.training_env.env_method("set_family", self._family_at(stage / self._num_stages))

    def _on_step(self) -> bool:
        return True
