"""Settings that must precede the first import of pygame and torch, and what several test modules share."""

import gc
import json
import os
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it at import: small tensors are fastest on one thread

import pytest
from gymnasium.envs.classic_control import CartPoleEnv, PendulumEnv


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of the combinations of a test marked ``each_value``, take few that show each value, and make the others slow."""
    combinations = defaultdict(dict)
    for item in items:
        if item.get_closest_marker("each_value") and not item.get_closest_marker("slow"):
            values = {(name, id(value)) for name, value in item.callspec.params.items()}
            combinations[item.nodeid.partition("[")[0]][item] = values
    for values_of in combinations.values():
        unseen = set().union(*values_of.values())
        while unseen:
            item = max(values_of, key=lambda item, values_of=values_of, unseen=unseen: len(values_of[item] & unseen))
            unseen -= values_of.pop(item)
        for item in values_of:
            item.add_marker("slow")


def pytest_collection_finish():
    """What was imported stays: spare every later search for garbage the way through it, a tenth of all the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def checkout():
    """The root of the repository; skips where the tests run against an installed package."""
    root = Path(__file__).parents[1]
    if not (root / "agents").is_dir():
        pytest.skip("needs a checkout")
    return root


@pytest.fixture(scope="session")
def make_run():
    """A function that makes the folder of a finished run of train_ppo.py, whose agent has learned nothing."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import VecNormalize

    from ssm_metarl_gym.agents import SSMPPO
    from ssm_metarl_gym.wrappers import make_sb3_env

    def make(folder, policy="mlp", seed=0, *, env="ssm_metarl/CartPolePolarity-v0", **changes):
        algorithm, name, observation = {
            "mlp": (PPO, "MlpPolicy", "plain"),
            "ssm": (SSMPPO, "SSMPolicy", "transition"),
        }[policy]
        config = {
            "algorithm": algorithm.__name__,
            "observation": observation,
            "env": env,
            "env_kwargs": {"max_episode_steps": 60},
            "policy": policy,
            "seed": seed,
            "window": 16,
            "algorithm_arguments": {"n_steps": 4},
            "finished": True,
            "cpu_seconds": 1.5,
            **changes,
        }
        rows = VecNormalize(make_sb3_env(env, 2, observation=observation, **config["env_kwargs"]))
        agent = algorithm(name, rows, n_steps=4, batch_size=8, seed=seed, device="cpu")
        folder.mkdir(parents=True, exist_ok=True)
        agent.save(folder / "model.zip")
        rows.save(str(folder / "vecnormalize.pkl"))
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture
def fast_windows(monkeypatch):
    """Windows that do not wait for real time to pass."""
    for env_type in (CartPoleEnv, PendulumEnv):
        monkeypatch.setitem(env_type.metadata, "render_fps", 10_000)


@pytest.fixture(scope="session")
def rollout():
    """A function that plays the same random actions in every environment and returns all that these give back."""

    def play(env, num_steps, seed=None):
        history = [] if seed is None else [env.reset(seed=seed)]
        env.action_space.seed(7)
        for _ in range(num_steps):
            history.append(env.step(env.action_space.sample()))
            if history[-1][2] or history[-1][3]:
                history.append(env.reset())
        return [(observation.tolist(), *rest) for observation, *rest in history]

    return play
