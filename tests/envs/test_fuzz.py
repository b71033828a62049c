"""Whatever is given to environments, tasks and distributions is taken, or refused with an error that is documented."""

import inspect
import json
import math
import random
import re

import gymnasium as gym
import numpy as np
import pytest

from ssm_metarl_gym import (
    CartPoleTask,
    Choice,
    LogUniform,
    PendulumTask,
    TaskBatch,
    TaskDistribution,
    TaskFamily,
    TaskSet,
    Uniform,
    envs,
)
from ssm_metarl_gym.tasks import FAMILIES, distribution_from_dict

# A TypeError is documented of a mask, and is Python's own of an argument that there is not.
TYPE_ERROR = re.compile("must be a NumPy array of booleans|unexpected keyword argument")


def nested(depth):
    deep = []
    for _ in range(depth):
        deep = [deep]
    return deep


ODD = [
    *(0, 1, -1, 2, 3, 2**31, 2**63, 10**400, -(10**400), 10**5000, True, False),
    *(0.0, -0.0, 0.5, 1.5, 1e-200, 1e200, 1e308, 5e-324, math.nan, math.inf, -math.inf, 1j),
    *("", "train", "hidden", "CartPole", "x" * 100_000, "\ud800", b"train"),
    *(None, (), [], {}, [[]], [1, [2]], set(), object(), int, len, Ellipsis, slice(1)),
    *(nested(10), nested(100_000), {"a": nested(100_000)}),
    *(
        np.float32(0.5),
        np.int64(2),
        np.array(1.0),
        np.array([1.0, np.nan]),
        np.zeros((3, 4)),
        np.array(["a"]),
        np.array([None]),
    ),
    *(
        CartPoleTask(),
        PendulumTask(),
        FAMILIES["CartPole"],
        FAMILIES["Pendulum"].train,
        Uniform((1, 2)),
        TaskBatch(CartPoleTask, {}, 3),
    ),
]
GOOD = {
    "split": ["train", "interpolation", "extrapolation"],
    "context": ["hidden", "visible"],
    "task": [None, {}, {"polarity": -1}, {"length": 0.3}, {"m": 2}, {"goal_x": 1}],
    "switch": [None, {"step": 3}, {"probability": 0.1}],
    "on_failure": ["terminate", "restart"],
    "family": ["CartPole", "Pendulum", FAMILIES["CartPole"].to_dict()],
    "delay": [0, 1],
    "num_symbols": [2],
    "num_steps": [1],
    "dtype": ["float64"],
    "autoreset_mode": ["NextStep", "SameStep", "Disabled"],
    "max_episode_steps": [None, 5],
    "render_mode": [None],
    "dimension": [1, 2, 3],
    "contexts": ["ranges", "aib"],
    "observation_noise": [0, 0.1],
    "warm_up_steps": [0, 2],
}
OPTIONS = ["task", "tasks", "state", "low", "high", "x_init", "y_init", "reset_mask", "sate"]
PARAMETERS = [
    "polarity",
    "gravity",
    "length",
    "masspole",
    "l",
    "m",
    "g",
    "gain",
    "goal_x",
    "step",
    "probability",
    "velocity",
]
# The classes themselves: Gymnasium's own functions raise others where a render mode is no text.
ENV_TYPES = [
    envs.TaskCartPoleEnv,
    envs.TaskPendulumEnv,
    envs.TaskPointNavigationEnv,
    envs.TaskPointActuatorsEnv,
    envs.TaskDoubleIntegratorEnv,
    envs.TaskComplexODEEnv,
    envs.RepeatObservationEnv,
    envs.TaskCartPoleVectorEnv,
    envs.TaskPendulumVectorEnv,
    envs.TaskPointNavigationVectorEnv,
    envs.TaskPointActuatorsVectorEnv,
    envs.TaskDoubleIntegratorVectorEnv,
    envs.TaskComplexODEVectorEnv,
    envs.RepeatObservationVectorEnv,
]
ARGUMENTS = {env_type: [*inspect.signature(env_type).parameters] for env_type in ENV_TYPES}


class Fuzz:
    """Draws odd values, and good ones among them, since what is refused at once reaches nothing."""

    def __init__(self, seed):
        self._random = random.Random(seed)  # noqa: S311

    def value(self, good=()):
        draw = self._random
        if good and draw.random() < 0.7:
            return draw.choice(good)
        if draw.random() < 0.3:
            return {draw.choice(PARAMETERS): draw.choice(ODD) for _ in range(draw.randint(0, 2))}
        if draw.random() < 0.2:
            return [draw.choice(ODD) for _ in range(draw.randint(0, 4))]
        return draw.choice(ODD)

    def parameters(self):
        names = self._random.sample(PARAMETERS[:4], self._random.randint(0, 3))
        return {name: self._random.choice(ODD) for name in names}

    def intervals(self):
        ends = [0, 1, 2.5, 7, *ODD]
        return [(self._random.choice(ends), self._random.choice(ends)) for _ in range(self._random.randint(0, 3))]

    def small(self):
        """An odd value, but no number of tasks that would fill the memory."""
        value = self.value([1, 3])
        return value if isinstance(value, bool) or not isinstance(value, int) or value < 1000 else 1000

    def data(self, good):
        """A good dictionary of dictionaries in which something, somewhere, is odd."""
        copy = json.loads(json.dumps(good))
        inner, key = copy, self._random.choice(list(copy))
        while isinstance(inner[key], dict | list) and inner[key] and self._random.random() < 0.7:
            inner = inner[key]
            key = self._random.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        inner[key] = self.value()
        return copy

    def some(self, names):
        return {name: self.value(GOOD.get(name, ())) for name in self._random.sample(names, self._random.randint(0, 3))}


def attempt(call, *args, **kwargs):
    """What a call returns, or None where it was refused as documented."""
    try:
        return call(*args, **kwargs)
    except (ValueError, gym.error.Error):
        return None
    except TypeError as error:
        if not TYPE_ERROR.search(str(error)):
            raise
        return None


def play(env, fuzz, is_vector):
    for _ in range(2):
        result = attempt(env.reset, seed=fuzz.value([None, 0]), options=fuzz.value([None, {}, fuzz.some(OPTIONS)]))
        if result is not None:
            assert env.observation_space.contains(result[0])
        good = [env.action_space.sample() for _ in range(3)]
        for _ in range(3):
            result = attempt(env.step, fuzz.value(good))
            if result is not None:
                observation, reward, terminated, *_ = result
                assert env.observation_space.contains(observation)
                assert np.isfinite(observation).all()
                assert np.isfinite(reward).all()
                if not is_vector and terminated:  # of a further step Gymnasium warns
                    break
        if is_vector:
            attempt(setattr, env, "tasks", fuzz.value([{"polarity": 1}]))
            attempt(setattr, env, "state", fuzz.value())
        else:  # whose state is Gymnasium's own attribute, which nobody checks
            attempt(setattr, env, "task", fuzz.value([{"polarity": 1}]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_environments(seed):
    fuzz = Fuzz(seed)
    for i in range(840):
        env_type = ENV_TYPES[i % len(ENV_TYPES)]
        is_vector = issubclass(env_type, gym.vector.VectorEnv)
        env = attempt(env_type, **fuzz.some([*GOOD]))
        if env is not None:
            play(env, fuzz, is_vector)


DISTRIBUTION = TaskDistribution(PendulumTask, {"m": Uniform((1, 2)), "polarity": Choice(-1, 1)})
CALLS = {
    "CartPoleTask": lambda fuzz: CartPoleTask(**fuzz.parameters()),
    "Task.from_dict": lambda fuzz: PendulumTask.from_dict(fuzz.value()),
    "TaskBatch": lambda fuzz: TaskBatch(CartPoleTask, fuzz.value(), fuzz.small()).task_ids,
    "TaskBatch.from_tasks": lambda fuzz: TaskBatch.from_tasks(fuzz.value()),
    "Uniform": lambda fuzz: Uniform(*fuzz.intervals()).sample(np.random.default_rng(0), 3),
    "LogUniform": lambda fuzz: LogUniform(*fuzz.intervals()).sample(np.random.default_rng(0), 3),
    "Choice": lambda fuzz: Choice(fuzz.value(), fuzz.value()).sample(np.random.default_rng(0), 3),
    "TaskDistribution": lambda fuzz: TaskDistribution(PendulumTask, fuzz.value()),
    "TaskSet": lambda fuzz: TaskSet(fuzz.value()),
    "TaskFamily": lambda fuzz: TaskFamily(fuzz.value([DISTRIBUTION]), fuzz.value([None])),
    "distribution_from_dict": lambda fuzz: distribution_from_dict(fuzz.data(DISTRIBUTION.to_dict())),
    "TaskFamily.from_dict": lambda fuzz: TaskFamily.from_dict(fuzz.data(FAMILIES["CartPole"].to_dict())),
    "from_json": lambda fuzz: TaskDistribution.from_json(fuzz.value(['{"task_type": ', "[" * 100_000, "1" * 5000])),
    "sample": lambda fuzz: DISTRIBUTION.sample(fuzz.value()),
    "sample_batch": lambda fuzz: DISTRIBUTION.sample_batch(np.random.default_rng(0), fuzz.small()),
    "split": lambda fuzz: DISTRIBUTION.split(fuzz.small(), seed=fuzz.value([0])),
    "normalise": lambda fuzz: DISTRIBUTION.normalise(fuzz.value([PendulumTask()])),
    "contains": lambda fuzz: DISTRIBUTION.contains(fuzz.value([PendulumTask()])),
    "splits of a family": lambda fuzz: FAMILIES["CartPole"].distribution(fuzz.value(["train"])),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_tasks_and_distributions(name):
    fuzz = Fuzz(0)
    for _ in range(500):
        attempt(CALLS[name], fuzz)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "state_limits"),
    [
        ("CartPole", [1e6] * 4),
        ("Pendulum", [1e6, 8.0]),
        ("PointNavigation", [1e6, 1e6]),
        ("PointActuators", [3.0, 3.0, 1e6, 1e6]),
        ("DoubleIntegrator", [1.0] * 4),
        ("ComplexODE", [20.0]),
    ],
)
def test_no_step_overflows_whatever_the_task_and_the_state(name, state_limits):
    rng, size = np.random.default_rng(0), 4000
    env = gym.make_vec(f"ssm_metarl/{name}-v0", size, autoreset_mode="SameStep", on_failure="restart")
    task_type = FAMILIES[name].task_type
    tasks = {
        parameter: rng.choice([low if parameter in task_type.whole else max(low, 1e-6), 1.0, high], size)
        for parameter, (low, high) in task_type.limits.items()
    }
    states = rng.choice([-1.0, -1e-6, 0.0, 1e-6, 1.0], (size, len(state_limits))) * state_limits
    env.reset(seed=0, options={"tasks": tasks, "state": states})
    env.action_space.seed(0)
    for _ in range(40):
        observations, rewards, *_ = env.step(env.action_space.sample())
        assert np.isfinite(observations).all()
        assert np.isfinite(rewards).all()
