import importlib
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv

import ssm_metarl_gym
from ssm_metarl_gym.envs import (
    TaskCartPoleEnv,
    TaskCartPoleVectorEnv,
    TaskComplexODEEnv,
    TaskComplexODEVectorEnv,
    TaskDoubleIntegratorEnv,
    TaskDoubleIntegratorVectorEnv,
    TaskPendulumEnv,
    TaskPendulumVectorEnv,
    TaskPointActuatorsEnv,
    TaskPointActuatorsVectorEnv,
    TaskPointNavigationEnv,
    TaskPointNavigationVectorEnv,
)
from ssm_metarl_gym.tasks import FAMILIES
from ssm_metarl_gym.wrappers import HistoryWindow, TransitionObservation

TRIALS = {"on_failure": "restart"}
SWITCHING = {"switch": {"probability": 0.005}}
# The time limit and the arguments beside the family's name.
DEFAULTS = {
    "CartPole": (500, {}),
    "CartPolePolarity": (200, TRIALS),
    "CartPoleSwitch": (200, TRIALS | SWITCHING),
    "Pendulum": (200, {}),
    "PendulumPolarity": (200, {}),
    "PendulumSwitch": (200, SWITCHING),
    "PointNavigation": (100, {}),
    "PointActuators": (100, {}),
    "DoubleIntegrator": (100, {}),
    "DoubleIntegratorFriction": (100, {}),
    "ComplexODE": (200, {}),
}
CLASSES = {
    "CartPole": (TaskCartPoleEnv, TaskCartPoleVectorEnv),
    "Pendulum": (TaskPendulumEnv, TaskPendulumVectorEnv),
    "PointNavigation": (TaskPointNavigationEnv, TaskPointNavigationVectorEnv),
    "PointActuators": (TaskPointActuatorsEnv, TaskPointActuatorsVectorEnv),
    "DoubleIntegrator": (TaskDoubleIntegratorEnv, TaskDoubleIntegratorVectorEnv),
    "ComplexODE": (TaskComplexODEEnv, TaskComplexODEVectorEnv),
}
# These need MuJoCo, and have tests of their own.
MUJOCO = {name: (200, {}) for name in ("AntDir", "HalfCheetahDir", "HalfCheetahVel", "HopperParams", "Walker2dParams")}
MUJOCO |= {f"{name}Actuators": (400, {}) for name in ("Ant", "HalfCheetah", "Hopper", "Walker2d")}
MUJOCO |= {"ReacherActuators": (50, {})}
# A probe is no family: it has no tasks, and ends by itself. It has tests of its own, too.
PROBE = "ssm_metarl/RepeatObservation-v0"
# Of one family of each class, the one that can do most: the others are the same class with other defaults.
VARIANTS = [
    pytest.param(f"ssm_metarl/{name}-v0", kwargs, id=f"{name}-{kwargs}")
    for name in ("CartPoleSwitch", "PendulumSwitch", "PointNavigation")
    for kwargs in (
        {},
        {"split": "extrapolation", "context": "visible"},
        {"task": {}},
        {"on_failure": "terminate"},
        # A goal has no sign.
        *([] if name == "PointNavigation" else [{"switch": None, "context": "visible"}, {"switch": {"step": 2}}]),
    )
] + [
    pytest.param(f"ssm_metarl/{name}-v0", kwargs, id=f"{name}-{kwargs}")
    for name, kwargs in (
        ("PointActuators", {}),
        ("PointActuators", {"dimension": 3, "context": "visible", "switch": {"step": 2}, "observation_noise": 0.1}),
        ("PointActuators", {"dimension": 1, "split": "extrapolation", "task": {"delay": 2}}),
        ("DoubleIntegrator", {"contexts": "aib", "context": "visible", "switch": {"step": 2}}),
        ("DoubleIntegratorFriction", {"contexts": "aib", "split": "interpolation", "warm_up_steps": 3}),
        ("ComplexODE", {"switch": {"probability": 0.5}, "context": "visible"}),
        ("CartPole", {"observation_noise": 0.1, "warm_up_steps": 5}),
    )
]

each_family = pytest.mark.parametrize("name", DEFAULTS)


def test_all_environments_are_registered_with_their_defaults():
    specs = {spec.id: spec for spec in gym.registry.values() if spec.namespace == "ssm_metarl"}
    registered = {env_id: (spec.max_episode_steps, spec.kwargs) for env_id, spec in specs.items()}
    thresholds = {env_id: spec.reward_threshold for env_id, spec in specs.items() if spec.reward_threshold is not None}
    families = {
        f"ssm_metarl/{name}-v0": (limit, {"family": name, **kwargs})
        for name, (limit, kwargs) in (DEFAULTS | MUJOCO).items()
    }
    assert registered == families | {PROBE: (None, {})}
    assert thresholds == {
        "ssm_metarl/CartPole-v0": gym.spec("CartPole-v1").reward_threshold,
        "ssm_metarl/CartPolePolarity-v0": 195.0,
        "ssm_metarl/CartPoleSwitch-v0": 195.0,
        PROBE: 0.9,
    }


@each_family
def test_an_id_makes_the_single_and_the_batched_environment_of_its_class(name):
    env_id, (limit, _) = f"ssm_metarl/{name}-v0", DEFAULTS[name]
    types = next(types for base, types in CLASSES.items() if name.startswith(base))
    for named in (env_id, f"ssm_metarl_gym:{env_id}"):
        single, batched = gym.make(named), gym.make_vec(named, num_envs=2)
        assert (type(single.unwrapped), type(batched)) == types
        assert single.spec.id == batched.spec.id == env_id
        assert batched.max_episode_steps == limit


@each_family
def test_an_id_draws_from_the_splits_of_its_family(name):
    for split in FAMILIES[name].splits:
        single = gym.make(f"ssm_metarl/{name}-v0", split=split)
        batched = gym.make_vec(f"ssm_metarl/{name}-v0", num_envs=30, split=split)
        single.reset(seed=1)
        batched.reset(seed=1)
        tasks = [single.unwrapped.task, *batched.unwrapped.tasks]
        distribution = FAMILIES[name].distribution(split)
        assert all(map(distribution.contains, tasks))
        assert all(len({getattr(task, parameter) for task in tasks}) > 1 for parameter in distribution.parameters)


@pytest.mark.parametrize("name", [name for name in DEFAULTS if name.startswith("CartPole")])
def test_a_fall_restarts_the_trials_of_an_id_or_ends_its_episodes(name):
    env = gym.make_vec(f"ssm_metarl/{name}-v0", num_envs=2)
    env.reset(options={"state": np.full((2, 4), 2.5)})
    _, _, terminated, _, infos = env.step(np.zeros(2, dtype=np.int64))
    is_trial = DEFAULTS[name][1].get("on_failure") == "restart"
    assert (terminated.tolist(), infos["restarted"].tolist()) == ([not is_trial] * 2, [is_trial] * 2)


@pytest.mark.parametrize("name", [name for name in DEFAULTS if name.startswith(("CartPole", "Pendulum"))])
def test_the_sign_flips_where_the_id_says_so(name):
    env = gym.make_vec(f"ssm_metarl/{name}-v0", num_envs=200, on_failure="restart")
    env.reset(seed=0)
    signs = [env.unwrapped.tasks.column("polarity")]
    for _ in range(90):
        env.step(np.zeros(env.action_space.shape, dtype=env.action_space.dtype))
        signs.append(env.unwrapped.tasks.column("polarity"))
    num_flips = np.count_nonzero(np.diff(signs, axis=0))
    # 90 expected, standard deviation 9.5
    assert 55 < num_flips < 125 if "switch" in DEFAULTS[name][1] else num_flips == 0


@each_family
def test_make_vec_makes_single_environments_where_it_is_told_to(name):
    env_id = f"ssm_metarl/{name}-v0"
    envs = gym.make_vec(env_id, num_envs=2, vectorization_mode="sync", context="visible")
    assert type(envs) is SyncVectorEnv
    assert [env.spec.id for env in envs.envs] == [env_id] * 2
    assert envs.single_observation_space == gym.make_vec(env_id, context="visible").single_observation_space


@pytest.mark.parametrize("name", MUJOCO)
def test_what_has_no_batched_environment_has_no_entry_point_for_it(name):
    assert gym.spec(f"ssm_metarl/{name}-v0").vector_entry_point is None


@pytest.mark.usefixtures("fast_windows")
@pytest.mark.parametrize(("env_id", "kwargs"), VARIANTS)
def test_gymnasium_finds_no_fault(env_id, kwargs):
    check_env(gym.make(env_id, **kwargs).unwrapped)


@pytest.mark.parametrize(("env_id", "kwargs"), VARIANTS)
def test_stable_baselines3_finds_no_fault(env_id, kwargs):
    from stable_baselines3.common.env_checker import check_env

    check_env(gym.make(env_id, **kwargs))


@pytest.mark.parametrize(("env_id", "kwargs"), VARIANTS)
def test_a_spec_in_json_makes_the_same_environment(env_id, kwargs, rollout):
    env = gym.make(env_id, **kwargs)
    copy = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert copy.spec == env.spec
    assert rollout(copy, 30, seed=1) == rollout(env, 30, seed=1)


def test_unknown_ids_get_a_suggestion():
    with pytest.raises(gym.error.NameNotFound, match="Did you mean: `CartPole`"):
        gym.make("ssm_metarl/CartPol-v0")


def test_registering_again_changes_nothing():
    specs = {env_id: gym.spec(env_id) for env_id in [*(f"ssm_metarl/{name}-v0" for name in DEFAULTS), PROBE]}
    importlib.reload(ssm_metarl_gym)
    ssm_metarl_gym.envs.register_environments()
    assert all(gym.spec(env_id) is spec for env_id, spec in specs.items())


def test_gymnasium_imports_the_plugin_by_its_name_and_without_torch():
    script = """if True:
        import sys, gymnasium
        gymnasium.make("ssm_metarl_gym:ssm_metarl/CartPole-v0").reset()
        gymnasium.make_vec("ssm_metarl_gym:ssm_metarl/CartPole-v0", num_envs=2).reset()
        assert not {"torch", "stable_baselines3"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)  # noqa: S603


@pytest.mark.each_value
@pytest.mark.parametrize("env_id", [*(f"ssm_metarl/{name}-v0" for name in DEFAULTS), PROBE])
@pytest.mark.parametrize("wrap", [lambda env: env, TransitionObservation, lambda env: HistoryWindow(env, 2)])
def test_scaling_by_bounds_loses_nothing_or_is_refused(env_id, wrap):
    env = wrap(gym.make(env_id))
    bounds = [np.full(env.observation_space.shape, bound, np.float32) for bound in (-1.0, 1.0)]
    if env.observation_space.is_bounded():
        scaled = gym.wrappers.RescaleObservation(env, *bounds)
        env.action_space.seed(0)
        last = []
        for seed in range(30):
            scaled.reset(seed=seed)
            last.append(np.atleast_2d(scaled.step(env.action_space.sample())[0])[-1])  # some begin at rest
        num_components = env.unwrapped.observation_space.shape[0]
        assert np.ptp(last, axis=0)[:num_components].min() > 0.08
    else:
        with pytest.raises((ValueError, AssertionError)):  # Gymnasium's: an assertion in its older versions
            gym.wrappers.RescaleObservation(env, *bounds)
