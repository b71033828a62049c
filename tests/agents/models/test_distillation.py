import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from ssm_metarl_gym.agents import SSMPPO, distill
from ssm_metarl_gym.wrappers import make_sb3_env

CARTPOLE, PENDULUM = "ssm_metarl/CartPolePolarity-v0", "ssm_metarl/PendulumPolarity-v0"
SHORT = {"num_rounds": 3, "steps_per_round": 20, "updates_per_round": 30, "batch_size": 64, "learning_rate": 1e-2}
TINY = {"num_rounds": 2, "steps_per_round": 5, "updates_per_round": 2}


class PushByPolarity:
    """Told the parameters, pushes right where the last of them, the sign, is positive, and left otherwise."""

    def __init__(self, space):
        self.space = space

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        is_positive = observation[:, -1] > 0.0
        if isinstance(self.space, spaces.Discrete):
            return is_positive.astype(np.int64), state
        return np.where(is_positive, 0.5, -0.5).astype(np.float32)[:, None], state


def make_student(env_id, algorithm=PPO, *, scaled=False, **kwargs):
    env = make_sb3_env(env_id, 8, observation="transition")
    env = VecNormalize(env, norm_reward=False) if scaled else env
    policy_kwargs = {"net_arch": [32]}
    return algorithm("MlpPolicy", env, n_steps=8, policy_kwargs=policy_kwargs, seed=0, device="cpu", **kwargs)


def told(env_id, num_rows=8):
    return make_sb3_env(env_id, num_rows, context="visible")


def actor(student):
    return {name: weights.clone() for name, weights in student.policy.named_parameters()}


@pytest.mark.parametrize(("env_id", "scaled"), [(CARTPOLE, False), (PENDULUM, True)], ids=["discrete", "box, scaled"])
def test_the_student_learns_what_it_is_not_told(env_id, scaled):
    student, env = make_student(env_id, scaled=scaled), told(env_id)
    losses = distill(PushByPolarity(env.action_space), student, env, **(SHORT | {"num_rounds": 6}))
    assert len(losses) == 6
    # It sees what its last action led to, which tells the sign; without that, the loss of a coin is log(2).
    assert losses[-1] < (0.4 if env_id == CARTPOLE else losses[0] - 0.2)


class Drifting(gym.Env):
    """Shows two random numbers, whatever is done."""

    observation_space = spaces.Box(-1.0, 1.0, (2,))
    action_space = spaces.Box(-2.0, 6.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.step(None)[0], {}

    def step(self, action):
        return self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32), 0.0, False, False, {}


class Matrix(Drifting):
    """The same, with actions of two axes."""

    action_space = spaces.Box(-1.0, 1.0, (2, 2))


class Counting(Drifting):
    """Shows how many steps it has taken since the reset, of ten."""

    observation_space = spaces.Box(0.0, 10.0, (1,))

    def reset(self, *, seed=None, options=None):
        gym.Env.reset(self, seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.full(1, self.count, np.float32), 0.0, False, self.count == 10, {}


class Linear:
    """Acts in proportion to the first number, within the bounds of the actions."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return 2.0 + 3.0 * observation[:, :1], state


def test_a_student_that_squashes_its_actions_learns_those_of_the_environment():
    policy_kwargs = {"squash_output": True, "net_arch": [32]}
    env, teacher_env = (DummyVecEnv([Drifting] * 8) for _ in range(2))
    student = PPO("MlpPolicy", env, n_steps=8, use_sde=True, policy_kwargs=policy_kwargs, seed=0, device="cpu")
    distill(Linear(), student, teacher_env, **(SHORT | {"updates_per_round": 60}))
    shown = np.random.default_rng(0).uniform(-1.0, 1.0, (200, 2)).astype(np.float32)
    actions, _ = student.predict(shown, deterministic=True)
    assert np.abs(actions - Linear().predict(shown)[0]).mean() < 0.5


def test_actions_of_several_axes_are_learned():
    env, teacher_env = (DummyVecEnv([Matrix] * 4) for _ in range(2))
    student = PPO("MlpPolicy", env, n_steps=8, batch_size=16, seed=0, device="cpu")

    class Teacher:
        def predict(self, observation, state=None, **_):
            return np.tile(np.array([[0.5, -0.5], [0.2, -0.2]], np.float32), (len(observation), 1, 1)), state

    distill(Teacher(), student, teacher_env, **SHORT)
    action, _ = student.predict(np.zeros((1, 2), np.float32), deterministic=True)
    np.testing.assert_allclose(action[0], [[0.5, -0.5], [0.2, -0.2]], atol=0.3)


def test_a_student_that_learns_on_begins_with_an_episode():
    env, teacher_env = (DummyVecEnv([Counting] * 2) for _ in range(2))
    student = PPO("MlpPolicy", env, n_steps=8, batch_size=16, n_epochs=1, seed=0, device="cpu").learn(16)
    distill(Linear(), student, teacher_env, **TINY | {"steps_per_round": 3})
    student.learn(16, reset_num_timesteps=False)
    buffer = student.rollout_buffer
    assert buffer.observations.reshape(2, 8).tolist() == [list(range(8))] * 2
    assert buffer.episode_starts[0].tolist() == [1.0, 1.0]


def test_one_seed_gives_one_student_and_another_another():
    weights = []
    for seed in (1, 1, 2):
        student = make_student(CARTPOLE, A2C)
        losses = distill(PushByPolarity(student.action_space), student, told(CARTPOLE), seed=seed, **TINY)
        weights.append((losses, [one.tolist() for one in actor(student).values()]))
    assert weights[0] == weights[1] != weights[2]


def test_the_critic_is_left_alone():
    student = make_student(CARTPOLE)
    before = actor(student)
    distill(PushByPolarity(student.action_space), student, told(CARTPOLE), **TINY)
    changed = {name for name, weights in actor(student).items() if not weights.equal(before[name])}
    assert changed == {name for name in before if "value" not in name}


def test_teacher_and_student_go_through_the_same_episodes():
    student = make_student(CARTPOLE)
    seen = []

    class Watching(PushByPolarity):
        def predict(self, observation, **kwargs):
            seen.append(observation[:, :4].copy())
            return super().predict(observation, **kwargs)

    env = student.get_env()
    step_wait, own = env.step_wait, []

    def watched_step():
        own.append(step_wait())
        return own[-1]

    env.step_wait = watched_step
    distill(Watching(student.action_space), student, told(CARTPOLE), **TINY)
    assert len(own) == len(seen) >= 10
    for told_observations, (observations, *_) in zip(seen[1:], own[:-1], strict=True):
        np.testing.assert_array_equal(told_observations, observations[:, :4])


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (
            lambda: SSMPPO("SSMPolicy", make_sb3_env(CARTPOLE, 8), n_steps=8),
            "without a memory of its own; got SSMPolicy",
        ),
        (lambda: RecurrentPPO("MlpLstmPolicy", make_sb3_env(CARTPOLE, 8), n_steps=8), "without a memory"),
        (lambda: SAC("MlpPolicy", make_sb3_env(PENDULUM, 8)), "actor without a memory of its own; got SACPolicy"),
    ],
    ids=["SSMPPO", "RecurrentPPO", "SAC"],
)
def test_who_cannot_be_taught_is_refused(student, message):
    with pytest.raises(ValueError, match=message):
        distill(PushByPolarity(spaces.Discrete(2)), student(), told(CARTPOLE))


def test_environments_that_differ_are_refused():
    student, teacher = make_student(CARTPOLE), PushByPolarity(spaces.Discrete(2))
    with pytest.raises(ValueError, match="got 4 rows"):
        distill(teacher, student, told(CARTPOLE, 4))
    with pytest.raises(ValueError, match="an environment each"):
        distill(teacher, student, student.get_env())
    with pytest.raises(ValueError, match="same episodes"):
        distill(teacher, student, make_sb3_env(CARTPOLE, 8, context="visible", split="extrapolation"), **TINY)
    with pytest.raises(ValueError, match="num_rounds must be"):
        distill(teacher, student, told(CARTPOLE), num_rounds=0)
    with pytest.raises(ValueError, match="learning_rate must be a finite number > 0; got 0"):
        distill(teacher, student, told(CARTPOLE), learning_rate=0.0)
