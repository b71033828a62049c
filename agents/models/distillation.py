"""Teacher and student: what a policy does that is told the task, learned by one that must find the task out."""

import inspect
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from ssm_metarl_gym.agents.models.supervision import Policy
from ssm_metarl_gym.checks import check_integer, check_number
from ssm_metarl_gym.seeding import seed_sequence

__all__ = ["distill"]

_MAX_GRAD_NORM = 1.0


def distill(
    teacher: Policy,
    student: OnPolicyAlgorithm,
    teacher_env: VecEnv,
    *,
    num_rounds: int = 20,
    steps_per_round: int = 100,
    updates_per_round: int = 100,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> list[float]:
    """Teach a policy that sees a history to act as one does that is told the hidden task, without any reward.

    The environments of both run side by side, through the same episodes under the same actions: one shows the teacher
    what it is told (``context="visible"``), the other the student what it will have to act on, such as a window of
    transitions. Actions are the student's own, so that it learns what to do where *it* gets to, and the teacher says
    what it would have done there. After every round of steps the student learns from all that was said so far, by its
    log-likelihood: DAgger (Ross et al. 2011, https://arxiv.org/abs/1011.0686). Rapid motor adaptation (RMA, Kumar et
    al. 2021, https://arxiv.org/abs/2107.04034) does so with what its student believes of the task, here it is actions.

    Example:
        >>> told = make_sb3_env("ssm_metarl/PendulumPolarity-v0", 8, context="visible")
        >>> teacher = PPO("MlpPolicy", told, n_steps=64).learn(512)
        >>> window = make_sb3_env("ssm_metarl/PendulumPolarity-v0", 8, observation="window")
        >>> policy_kwargs = {"features_extractor_class": SSMFeaturesExtractor}
        >>> student = PPO("MlpPolicy", window, n_steps=64, policy_kwargs=policy_kwargs)
        >>> losses = distill(teacher, student, told, num_rounds=1, updates_per_round=5)

    Args:
        teacher: Whatever has the ``predict`` of Stable-Baselines3; it acts without noise.
        student: An algorithm whose policy has no memory of its own (``PPO``, ``A2C``), with its environment. Its actor
            is changed in place; what is the critic's alone, and its optimiser, are not. A ``VecNormalize`` goes on to
            follow the observations, and what was seen earlier is shown as it scales it at last.
        teacher_env: The environment as the teacher sees it, with as many rows. A ``VecNormalize`` should have
            ``training=False``.
        num_rounds: Number of rounds.
        steps_per_round: Steps of each row in a round.
        updates_per_round: Steps of Adam after each round, on batches of all that was seen so far.
        batch_size: Size of a batch.
        learning_rate: The first step size of Adam, which falls linearly to zero.
        seed: Seeds both environments and the batches.

    Returns:
        The mean loss of each round: the negative log-likelihood of the teacher's actions.

    Raises:
        ValueError: A number is not valid, the student has no environment, sees dictionaries or has a memory of its
            own, or the environments differ in their rows, in their actions or in the course of their episodes.
    """
    for name, value in (
        ("num_rounds", num_rounds),
        ("steps_per_round", steps_per_round),
        ("updates_per_round", updates_per_round),
        ("batch_size", batch_size),
    ):
        check_integer(name, value)
    check_integer("seed", seed, least=0)
    check_number("learning_rate", learning_rate, ("a finite number > 0", lambda value: 0.0 < value < np.inf))
    policy = _check_student(student)
    pair = _Pair(teacher, student, teacher_env, seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=learning_rate)
    rng = np.random.default_rng(seed_sequence(seed, "batches"))
    seen: list[npt.NDArray[Any]] = []
    said: list[npt.NDArray[Any]] = []
    losses = []
    for round_index in range(num_rounds):
        for _ in range(steps_per_round):
            observations, actions = pair.step()
            seen.append(observations)
            said.append(actions)
        all_seen, all_said = np.concatenate(seen), np.concatenate(said)
        seen, said = [all_seen], [all_said]
        total = 0.0
        policy.set_training_mode(True)
        for update in range(updates_per_round):
            done = (round_index * updates_per_round + update) / (num_rounds * updates_per_round)
            optimizer.param_groups[0]["lr"] = learning_rate * (1.0 - done)
            rows = rng.integers(len(all_seen), size=batch_size)
            batch, _ = policy.obs_to_tensor(pair.scaled(all_seen[rows]))
            # A squashed distribution is over [-1, 1], whatever the bounds of the environment's actions.
            answers = policy.scale_action(all_said[rows]) if policy.squash_output else all_said[rows]
            # Of an action of several axes a distribution knows the numbers side by side.
            flat = answers.reshape(batch_size, -1) if isinstance(policy.action_space, spaces.Box) else answers
            targets = torch.as_tensor(flat, device=policy.device)
            loss = -policy.get_distribution(batch).log_prob(targets).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), _MAX_GRAD_NORM)
            optimizer.step()
            total += loss.item()
        policy.set_training_mode(False)
        losses.append(total / updates_per_round)
    student._last_obs = None  # the environments are elsewhere now: what learns on begins with a reset
    return losses


def _check_student(student: OnPolicyAlgorithm) -> ActorCriticPolicy:
    """The policy of the student, or a ValueError where nothing can be distilled into it."""
    policy = student.policy
    if not isinstance(policy, ActorCriticPolicy) or len(inspect.signature(policy.get_distribution).parameters) != 1:
        raise ValueError(
            f"the student must have an actor without a memory of its own; got {type(policy).__name__}. Show a PPO a "
            'window of the past: make_sb3_env(..., observation="window").'
        )
    if student.get_env() is None:
        raise ValueError("the student must have an environment; got None. Give it one: student.set_env(env).")
    if student.observation_space.shape is None:
        raise ValueError(f"the student must see arrays; got {student.observation_space}. Show it a window alone.")
    return policy


class _Pair:
    """The environments of teacher and student, in step with each other."""

    def __init__(self, teacher: Policy, student: OnPolicyAlgorithm, teacher_env: VecEnv, seed: int) -> None:
        env = student.get_env()
        if env is None:  # which was checked
            raise ValueError("the student must have an environment.")
        if env is teacher_env or (env.num_envs, env.action_space) != (teacher_env.num_envs, teacher_env.action_space):
            raise ValueError(
                "teacher and student must have an environment each, with as many rows and the same actions; got "
                f"{teacher_env.num_envs} rows with {teacher_env.action_space} for the teacher and {env.num_envs} with "
                f"{env.action_space} for the student."
            )
        self._teacher, self._student = teacher, student
        self._teacher_env, self._env = teacher_env, env
        self._normaliser = student.get_vec_normalize_env()
        for each in (teacher_env, env):
            each.seed(seed)
        self._told: Any = teacher_env.reset()
        self._observations: Any = env.reset()
        self._teacher_state: Any = None
        self._starts = np.ones(env.num_envs, dtype=np.bool_)

    def step(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """What the student saw, before any scaling, and what the teacher would have done; then the student acts."""
        said, self._teacher_state = self._teacher.predict(
            self._told, state=self._teacher_state, episode_start=self._starts, deterministic=True
        )
        seen: Any = self._observations if self._normaliser is None else self._normaliser.get_original_obs()
        actions, _ = self._student.predict(self._observations, deterministic=True)
        self._told, _, starts, told_infos = self._teacher_env.step(actions)
        self._observations, _, self._starts, infos = self._env.step(actions)
        same_tasks = [one.get("task_id") == other.get("task_id") for one, other in zip(told_infos, infos, strict=True)]
        if not (np.array_equal(starts, self._starts) and all(same_tasks)):
            raise ValueError(
                "the environments of teacher and student must go through the same episodes; they do not. Make both of "
                "the same id with the same arguments, but for what they show."
            )
        return seen, said

    def scaled(self, observations: npt.NDArray[Any]) -> Any:
        """Observations as the student sees them."""
        return observations if self._normaliser is None else self._normaliser.normalize_obs(observations)
