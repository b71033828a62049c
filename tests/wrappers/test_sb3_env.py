import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize, is_vecenv_wrapped

from ssm_metarl_gym.agents import SSMFeaturesExtractor
from ssm_metarl_gym.envs import HiddenTaskVectorEnv
from ssm_metarl_gym.tasks import FAMILIES
from ssm_metarl_gym.wrappers import (
    HistoryWindow,
    SB3VecEnv,
    TransitionObservation,
    VectorHistoryWindow,
    VectorTransitionObservation,
    make_sb3_env,
)

POLARITY = "ssm_metarl/CartPolePolarity-v0"
OBSERVATIONS = ("plain", "transition", "window")

every_observation = pytest.mark.parametrize("observation", OBSERVATIONS)


def wrapped(env_id, observation, window, **kwargs):
    """Three rows put together by hand: around ours as a whole, around others row by row."""

    def wrap(env, transition_wrapper, window_wrapper):
        env = env if observation == "plain" else transition_wrapper(env)
        return window_wrapper(env, window) if observation == "window" else env

    if env_id.startswith("ssm_metarl/"):
        env = gym.make_vec(env_id, 3, autoreset_mode="SameStep", **kwargs)
        return wrap(env, VectorTransitionObservation, VectorHistoryWindow)
    rows = [lambda: wrap(gym.make(env_id, **kwargs), TransitionObservation, HistoryWindow)] * 3
    return SyncVectorEnv(rows, autoreset_mode="SameStep")


def sb3_tasks(env):
    """The tasks that the rows draw first."""
    env.reset()
    return env.get_attr("task")


def play(env, num_steps, seed=3):
    """Observations, rewards and dones under actions that are always the same."""
    env.seed(seed)
    env.action_space.seed(7)
    history = [env.reset()]
    for _ in range(num_steps):
        observations, rewards, dones, infos = env.step(
            np.array([env.action_space.sample() for _ in range(env.num_envs)])
        )
        history.append((observations, rewards, dones, infos))
    return history


@pytest.mark.each_value
@every_observation
@pytest.mark.parametrize("env_id", [POLARITY, "ssm_metarl/Pendulum-v0", "CartPole-v1"])
def test_it_is_what_one_would_put_together_by_hand(env_id, observation):
    kwargs = {"max_episode_steps": 15}
    expected = play(VecMonitor(SB3VecEnv(wrapped(env_id, observation, 4, **kwargs))), 35)
    present = play(make_sb3_env(env_id, 3, observation=observation, window=4, **kwargs), 35)
    assert present[0].tolist() == expected[0].tolist()
    num_episodes = 0
    for (*arrays, infos), (*expected_arrays, expected_infos) in zip(present[1:], expected[1:], strict=True):
        for array, expected_array in zip(arrays, expected_arrays, strict=True):
            assert array.tolist() == expected_array.tolist()
        for row in np.flatnonzero(arrays[2]):
            num_episodes += 1
            info, expected_info = infos[row], expected_infos[row]
            assert info["episode"]["r"] == expected_info["episode"]["r"]
            assert info["terminal_observation"].tolist() == expected_info["terminal_observation"].tolist()
    assert num_episodes >= 3


@pytest.mark.parametrize(
    ("env_id", "is_batched"),
    [(POLARITY, True), (f"ssm_metarl_gym:{POLARITY}", True), ("CartPole-v1", False), ("Pendulum-v1", False)],
)
def test_only_our_batched_environments_step_all_rows_at_once(env_id, is_batched):
    env = make_sb3_env(env_id, 2).unwrapped.env.unwrapped
    assert isinstance(env, HiddenTaskVectorEnv if is_batched else SyncVectorEnv)


@pytest.mark.slow
@every_observation
def test_processes_give_what_one_process_gives(observation):
    kwargs = {"observation": observation, "window": 3, "max_episode_steps": 15}
    histories = []
    for processes in (False, True):
        env = make_sb3_env("CartPole-v1", 2, processes=processes, **kwargs)
        histories.append(play(env, 35))
        env.close()
    for one, other in zip(*(history[1:] for history in histories), strict=True):
        assert [array.tolist() for array in one[:3]] == [array.tolist() for array in other[:3]]
    assert sum(step[2].sum() for step in histories[0][1:]) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_processes_that_are_started_afresh_know_the_ids(start_method):
    # As in a notebook: there is no file whose imports a new process could repeat.
    script = f"""if True:
        import multiprocessing
        multiprocessing.set_start_method({start_method!r})
        from stable_baselines3.common.env_util import make_vec_env
        from stable_baselines3.common.vec_env import SubprocVecEnv
        from ssm_metarl_gym.wrappers import make_sb3_env
        named = "ssm_metarl_gym:{POLARITY}"
        kwargs = dict(vec_env_cls=SubprocVecEnv, vec_env_kwargs=dict(start_method={start_method!r}))
        for env in (make_sb3_env("{POLARITY}", 1, processes=True), make_vec_env(named, 1, **kwargs)):
            print(env.reset().shape)
            env.close()
    """
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603
    assert run.stdout.split("\n") == ["(1, 4)", "(1, 4)", ""]


def test_what_mujoco_simulates_is_stepped_row_by_row():
    pytest.importorskip("mujoco", reason="the MuJoCo families need the extra mujoco")
    env = make_sb3_env("ssm_metarl/HalfCheetahDir-v0", 2, observation="window", window=3)
    assert isinstance(env.unwrapped.env.unwrapped, SyncVectorEnv)
    observations, rewards, _, _ = play(env, 2)[-1]
    assert observations.shape == (2, 3, 17 + 17 + 6 + 2 + 1)
    assert np.isfinite(rewards).all()


def test_arguments_arrive_and_tasks_are_those_to_train_on():
    env = make_sb3_env(POLARITY, 2, task={"length": 0.3}, on_failure="terminate")
    assert [task.length for task in sb3_tasks(env)] == [0.3, 0.3]
    inside = [FAMILIES["CartPolePolarity"].train.contains(task) for task in sb3_tasks(make_sb3_env(POLARITY, 50))]
    assert all(inside)
    assert play(env, 50)  # a fall ends an episode: no trials
    assert is_vecenv_wrapped(env, VecMonitor)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"observation": "windw"}, "observation must be one of .*; got 'windw'. Did you mean 'window'"),
        ({"num_envs": 0}, "num_envs must be an int >= 1; got 0"),
        ({"window": 1.5}, "window must be an int >= 1; got 1.5"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_sb3_env(POLARITY, **arguments)


def test_unknown_environments_are_refused():
    with pytest.raises(gym.error.Error, match="CartPoleX"):
        make_sb3_env("ssm_metarl/CartPoleX-v0")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        make_sb3_env(f"no_such_module:{POLARITY}")


def test_an_algorithm_learns_on_it():
    env = VecNormalize(make_sb3_env(POLARITY, 2, observation="window", window=4))
    policy_kwargs = {"features_extractor_class": SSMFeaturesExtractor, "net_arch": []}
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, policy_kwargs=policy_kwargs, device="cpu")
    assert model.learn(32).num_timesteps == 32
