import importlib
import subprocess
import sys

import gymnasium as gym
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv

import ssm_metarl_gym
from ssm_metarl_gym.envs import TaskCartPoleVectorEnv, TaskPendulumVectorEnv, TaskPointNavigationVectorEnv

TIME_LIMITS = {
    "ssm_metarl/CartPole-v0": 500,
    "ssm_metarl/CartPolePolarity-v0": 200,
    "ssm_metarl/CartPoleSwitch-v0": 200,
    "ssm_metarl/Pendulum-v0": 200,
    "ssm_metarl/PendulumPolarity-v0": 200,
    "ssm_metarl/PendulumSwitch-v0": 200,
    "ssm_metarl/PointNavigation-v0": 100,
}
BATCHED = {
    "CartPole": TaskCartPoleVectorEnv,
    "Pendulum": TaskPendulumVectorEnv,
    "PointNavigation": TaskPointNavigationVectorEnv,
}
# These need MuJoCo, and have tests of their own.
MUJOCO_TIME_LIMITS = {
    f"ssm_metarl/{family}-v0": 200
    for family in ("AntDir", "HalfCheetahDir", "HalfCheetahVel", "HopperParams", "Walker2dParams")
}
# A probe is no family: it has no tasks, and ends by itself. It has tests of its own, too.
PROBES = {"ssm_metarl/RepeatObservation-v0": None}
OPTIONS = [
    {},
    {"split": "interpolation"},
    {"split": "extrapolation", "context": "visible"},
    {"context": "visible"},
    {"task": {}},
    {"switch": None},
]
# A goal has no sign.
SIGNED = [{"task": {"polarity": -1}}, {"switch": {"step": 2}}, {"switch": {"probability": 1.0}}]
ON_FAILURE = [{"on_failure": "terminate"}, {"on_failure": "restart"}]
VARIANTS = [
    pytest.param(env_id, kwargs, id=f"{env_id}-{kwargs}")
    for env_id in TIME_LIMITS
    for kwargs in OPTIONS
    + ([] if "PointNavigation" in env_id else SIGNED)
    + (ON_FAILURE if "CartPole" in env_id or "PointNavigation" in env_id else [])
]


def test_all_environments_are_registered_with_their_time_limits():
    specs = {env_id: spec for env_id, spec in gym.registry.items() if spec.namespace == "ssm_metarl"}
    limits = {env_id: spec.max_episode_steps for env_id, spec in specs.items()}
    assert limits == TIME_LIMITS | MUJOCO_TIME_LIMITS | PROBES


@pytest.mark.parametrize("env_id", TIME_LIMITS)
def test_make_vec_makes_the_batched_environment(env_id):
    (env_type,) = (env_type for name, env_type in BATCHED.items() if name in env_id)
    for name in (env_id, f"ssm_metarl_gym:{env_id}"):
        env = gym.make_vec(name, num_envs=2)
        assert type(env) is env_type
        assert env.num_envs == 2
        assert env.max_episode_steps == TIME_LIMITS[env_id]
        assert env.spec.id == env_id
    kwargs = gym.spec(env_id).kwargs
    assert [kwargs.get("on_failure"), kwargs.get("switch")] == [
        "restart" if env_id.startswith(("ssm_metarl/CartPoleP", "ssm_metarl/CartPoleS")) else None,
        {"probability": 0.005} if "Switch" in env_id else None,
    ]


@pytest.mark.parametrize("env_id", TIME_LIMITS)
def test_make_vec_makes_single_environments_where_it_is_told_to(env_id):
    envs = gym.make_vec(env_id, num_envs=2, vectorization_mode="sync", context="visible")
    assert type(envs) is SyncVectorEnv
    assert [env.spec.id for env in envs.envs] == [env_id] * 2
    assert envs.single_observation_space == gym.make_vec(env_id, context="visible").single_observation_space


@pytest.mark.parametrize("env_id", MUJOCO_TIME_LIMITS)
def test_what_has_no_batched_environment_has_no_entry_point_for_it(env_id):
    assert gym.spec(env_id).vector_entry_point is None


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
    specs = {env_id: gym.spec(env_id) for env_id in TIME_LIMITS | PROBES}
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
