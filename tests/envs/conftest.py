"""Single environments that begin their episodes as the rows of a batched one do, to be compared with it."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv, VectorWrapper

from ssm_metarl_gym.envs import TaskPointNavigationEnv


@pytest.fixture
def fast_windows(fast_windows, monkeypatch):
    """That of all tests, for the window of this package's own too."""
    monkeypatch.setitem(TaskPointNavigationEnv.metadata, "render_fps", 10_000)


class Leader(VectorWrapper):
    """A batched environment that remembers its last infos."""

    infos = {}  # noqa: RUF012 - replaced, never changed

    def reset(self, **kwargs):
        observations, self.infos = super().reset(**kwargs)
        return observations, self.infos

    def step(self, actions):
        *rest, self.infos = super().step(actions)
        return *rest, self.infos


class LedDraws(np.random.Generator):
    """What a single environment draws its states from: the one that a row of the leader, which steps first, drew."""

    def __init__(self, leader, row):
        super().__init__(np.random.PCG64(0))
        self._leader, self._row, self.of_reset = leader, row, False

    def uniform(self, low, high):
        if self.of_reset:  # which is given the state as an option
            return low
        state = self._leader.unwrapped.state[self._row]
        final = self._leader.infos.get("final_obs", {self._row: None})[self._row]
        if final is not None:  # an attempt that began in the last step of its trial is gone by now
            state = final[: len(state)].astype(np.float64)
        assert np.all(low - 1e-6 <= state)
        assert np.all(state <= high + 1e-6)
        return state


class Follower(gym.Wrapper):
    """A single environment that begins each episode, and each attempt of a trial, as a row of the leader does."""

    def __init__(self, env, leader, row):
        super().__init__(env)
        self._leader, self._row = leader.unwrapped, row
        self._draws = self.unwrapped.np_random = LedDraws(leader, row)

    def reset(self, *, seed=None, options=None):
        start = {"task": self._leader.tasks[self._row], "state": self._leader.state[self._row]}
        self._draws.of_reset = True
        result = self.env.reset(options=(options or {}) | start)
        self._draws.of_reset = False
        return result


def _rows_of(env_id, leader, row_kwargs, wrapper):
    def row_fn(row):
        kwargs = {name: value[row] for name, value in row_kwargs.items()}
        return lambda: wrapper(Follower(gym.make(env_id, **kwargs), leader, row))

    mode = leader.metadata["autoreset_mode"]
    return SyncVectorEnv([row_fn(row) for row in range(leader.num_envs)], autoreset_mode=mode)


@pytest.fixture(scope="session")
def leader_and_rows():
    """A function that makes a batched environment, and as many single ones in a ``SyncVectorEnv`` that follow it.

    Whatever is done to the batched one must then be done to the others, too.
    """

    def make(env_id, num_envs, *, autoreset_mode="NextStep", wrapper=lambda env: env, **kwargs):
        leader = Leader(gym.make_vec(env_id, num_envs, autoreset_mode=autoreset_mode, **kwargs))
        each = {name: [value] * num_envs for name, value in kwargs.items()}
        if isinstance((kwargs.get("switch") or {}).get("step"), list):
            each["switch"] = [{"step": step} for step in kwargs["switch"]["step"]]
        return leader, _rows_of(env_id, leader, each, wrapper)

    return make


@pytest.fixture(scope="session")
def assert_same():
    """A function that holds two results to be equal in every bit, type, key and length."""

    def check(one, other, path="result"):
        assert type(one) is type(other), path
        if isinstance(one, dict):
            assert one.keys() == other.keys(), path
            for key in one:
                check(one[key], other[key], f"{path}[{key!r}]")
        elif isinstance(one, (tuple, list)):
            assert len(one) == len(other), path
            for i, pair in enumerate(zip(one, other, strict=True)):
                check(*pair, f"{path}[{i}]")
        elif isinstance(one, np.ndarray):
            assert (one.dtype, one.shape) == (other.dtype, other.shape), path
            if one.dtype == object:
                check(one.tolist(), other.tolist(), path)
            elif one.tobytes() != other.tobytes():  # much faster, but not for -0.0
                assert np.array_equal(one, other), f"{path}: {one} != {other}"
        else:
            assert one == other, path

    return check


@pytest.fixture(scope="session")
def play_both(assert_same):
    """A function that plays random actions, and resets of some rows, in two environments that must give the same.

    It returns the history of the first one. Rows that ended are reset where nothing else does.
    """

    def play(env, other, num_steps, *, options=None, scale=1.0, dtype=None, seed=3, share=0.03):
        rng, mode = np.random.default_rng(0), env.metadata["autoreset_mode"].value

        def both(name, *args, **kwargs):
            results = [getattr(each, name)(*args, **{k: v and dict(v) for k, v in kwargs.items()}) for each in pair]
            assert_same(*results, name)
            history.append(results[0])

        pair, history = (env, other), []
        # The rows of the other one are seeded by their own numbers.
        history.append(env.reset(seed=seed, options=dict(options or {})))
        given = {name: value for name, value in (options or {}).items() if name not in ("tasks", "state")}
        assert_same(history[0], other.reset(seed=seed, options=given), "reset")
        env.action_space.seed(seed)
        for _ in range(num_steps):
            actions = env.action_space.sample()
            both("step", (actions * scale).astype(dtype or actions.dtype) if scale != 1.0 or dtype else actions)
            mask = rng.random(env.num_envs) < share
            if mode == "Disabled":
                mask |= history[-1][2] | history[-1][3]
            if mask.any():
                both("reset", options={"reset_mask": mask})
        return history

    return play
