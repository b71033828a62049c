"""The last transition as part of the observation."""

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from ssm_metarl_gym.checks import check_flat_box
from ssm_metarl_gym.wrappers.episode_observation import VectorEpisodeObservation, check_single

__all__ = ["TransitionObservation", "VectorTransitionObservation"]


class TransitionObservation(
    gym.Wrapper[npt.NDArray[np.float32], Any, npt.NDArray[np.float32], Any], gym.utils.RecordConstructorArgs
):
    """Shows what an agent must see to infer the task: the observation, and how the last step led to it.

    The observation is ``Float[2 D + A + 2]``: the observation (D), the previous action (A: one-hot for ``Discrete``,
    one one-hot after the other for ``MultiDiscrete``, the values for ``MultiBinary`` and ``Box``), the previous reward,
    the change of the observation (D) and a flag, 1 where a new attempt starts. At the start of an episode action,
    reward and change are zero. At the restart of a trial (``info["restarted"]``) action and reward are those of the
    fall, which tell of the task, and the change is zero.

    These are the inputs of RL^2, Duan et al. 2016, https://arxiv.org/abs/1611.02779 (observation, action, reward,
    termination), and the change: what the memory agents of this project's study read.

    Example:
        >>> env = TransitionObservation(gym.make("ssm_metarl/CartPolePolarity-v0"))
        >>> first, _ = env.reset(seed=0, options={"state": [0.0, 0.5, 0.0, 0.0]})
        >>> first.tolist()  # observation, action, reward, change, flag
        [0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
        >>> env.step(1)[0][4:7].tolist()
        [0.0, 1.0, 1.0]

    Args:
        env: An environment with a one-dimensional ``Box`` as observation space, and a ``Discrete``, ``MultiDiscrete``,
            ``MultiBinary`` or one-dimensional ``Box`` as action space.

    Raises:
        ValueError: Another observation or action space, or an environment that is not single, or has an ``Autoreset``
            within.
    """

    def __init__(self, env: gym.Env[npt.NDArray[np.float32], Any]) -> None:
        check_single("TransitionObservation", env)
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self._transitions = _Transitions(self, env.observation_space, env.action_space)
        self.observation_space = self._transitions.space(env.observation_space)
        self._shown = self._transitions.nothing(1)
        self._lost = True  # whether nobody knows where the next step starts, as where others made the last reset

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start an episode, of which there is no transition yet."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._shown = self._transitions.first(np.asarray(observation)[None])
        self._lost = False
        return self._shown[0].copy(), info

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, and show the transition."""
        lost, self._lost = self._lost, True  # until the step has succeeded
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._lost = False
        restarted = np.array([lost or info.get("restarted", False)], dtype=np.bool_)
        rewards, observations = np.array([reward]), np.asarray(observation)[None]
        self._shown = self._transitions.next(self._shown, np.asarray(action)[None], rewards, observations, restarted)
        return self._shown[0].copy(), reward, terminated, truncated, info


class VectorTransitionObservation(VectorEpisodeObservation, gym.utils.RecordConstructorArgs):
    """:class:`TransitionObservation` for a vector environment, row by row equal to it around single environments.

    The observation is ``Float[n 2 D + A + 2]``. In the autoreset mode ``NEXT_STEP`` a row shows zeros and the flag on
    the step that resets it, where its action is ignored; in ``SAME_STEP``, ``infos["final_obs"]`` holds what the last
    step of each episode that ended led to, with the action, the reward and the change of that step.

    Example:
        >>> envs = gym.make_vec("ssm_metarl/CartPole-v0", num_envs=3)
        >>> VectorTransitionObservation(envs).observation_space.shape
        (3, 12)

    Args:
        env: A vector environment whose rows have spaces that :class:`TransitionObservation` takes.

    Raises:
        ValueError: Another observation or action space, or an unknown autoreset mode.
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self._transitions = _Transitions(self, env.single_observation_space, env.single_action_space)
        self.single_observation_space = self._transitions.space(env.single_observation_space)
        self.observation_space = self._transitions.space(env.observation_space)
        self._shown = self._transitions.nothing(self.num_envs)

    def _begin(self, rows: npt.NDArray[np.bool_], observations: npt.NDArray[np.float32]) -> None:
        self._shown[rows] = self._transitions.first(observations[rows])

    def _advance(
        self, actions: Any, rewards: Any, observations: npt.NDArray[np.float32], restarted: npt.NDArray[np.bool_]
    ) -> None:
        self._shown = self._transitions.next(self._shown, actions, rewards, observations, restarted)


class _Transitions:
    """What is shown at the start of an episode and after a step, for n rows at once."""

    def __init__(self, wrapper: object, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self._dim = check_flat_box("the observation space", observation_space).shape[0]
        self._encoding = _ActionEncoding(wrapper, action_space)
        self._width = 2 * self._dim + self._encoding.low.size + 2

    def space(self, observation_space: Any) -> Any:
        """``Box[... 2 D + A + 2]`` for ``Box[... D]``."""
        unbounded = np.full(1 + self._dim, np.inf)  # the reward and the change
        low = _append(observation_space.low, [*self._encoding.low, *-unbounded, 0.0])
        high = _append(observation_space.high, [*self._encoding.high, *unbounded, 1.0])
        return spaces.Box(low, high, dtype=np.float32)

    def nothing(self, num_rows: int) -> npt.NDArray[np.float32]:
        """Zeros ``[n 2 D + A + 2]``."""
        return np.zeros((num_rows, self._width), dtype=np.float32)

    def first(self, observations: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The rows ``[n 2 D + A + 2]`` of the first ``observations [n D]`` of episodes."""
        shown = self.nothing(len(observations))
        shown[:, : self._dim], shown[:, -1] = observations, 1.0
        return shown

    def next(
        self,
        shown_tm1: npt.NDArray[np.float32],
        actions: Any,
        rewards: Any,
        observations: npt.NDArray[Any],
        restarted: npt.NDArray[np.bool_],
    ) -> npt.NDArray[np.float32]:
        """The rows ``[n 2 D + A + 2]`` after a step from ``shown_tm1``, with ``actions [n ...]``."""
        shown = self.first(observations)
        observation, transition = shown[:, : self._dim], shown[:, self._dim :]
        num_actions = self._encoding.low.size
        transition[:, :num_actions] = self._encoding(actions)
        transition[:, num_actions] = rewards
        # Of what is shown, in its precision: integers would wrap around. No step leads over a restart or a failed step.
        change = observation - shown_tm1[:, : self._dim]
        transition[:, num_actions + 1 : -1] = np.where(restarted[:, None], 0.0, change)
        transition[:, -1] = restarted
        return shown


class _ActionEncoding:
    """Actions as numbers, with their bounds ``low`` and ``high [A]``, which contain the zeros of "no action yet"."""

    def __init__(self, wrapper: object, space: spaces.Space[Any]) -> None:
        # Where actions are choices: the component of the action, and its value, that each entry of the code stands for.
        self._component: npt.NDArray[np.int_] | None = None
        if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
            counts = np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec)
            choices = [first + np.arange(count) for first, count in zip(np.ravel(space.start), counts, strict=True)]
            self._component = np.repeat(np.arange(counts.size), counts)
            self._value = np.concatenate(choices)
            self.low = np.zeros(self._value.size)
            self.high = np.ones(self._value.size)
        elif isinstance(space, spaces.MultiBinary):
            self.low = np.zeros(space.shape).ravel()
            self.high = np.ones(space.shape).ravel()
        elif isinstance(space, spaces.Box) and len(space.shape) == 1:
            self.low = np.minimum(space.low, 0.0)
            self.high = np.maximum(space.high, 0.0)
        else:
            raise ValueError(
                f"{type(wrapper).__name__} needs a Discrete, MultiDiscrete, MultiBinary or one-dimensional Box as "
                f"action space; got {space}. Use Gymnasium's TransformAction first."
            )

    def __call__(self, actions: Any) -> npt.NDArray[Any]:
        """``[n A]`` for actions ``[n ...]``."""
        flat = np.asarray(actions).reshape(len(actions), -1)
        return flat if self._component is None else flat[:, self._component] == self._value


def _append(rows: npt.NDArray[Any], values: list[float]) -> npt.NDArray[np.float32]:
    """Each of ``rows [... D]`` followed by the ``values [M]``: ``Float[... D+M]``."""
    return np.concatenate([rows, np.broadcast_to(values, (*rows.shape[:-1], len(values)))], -1).astype(np.float32)
