import gc
import math
import os
import pickle
import subprocess
import sys
from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from ssm_metarl_gym.tasks.distributions import TaskDistribution
from ssm_metarl_gym.tasks.families import FAMILIES
from ssm_metarl_gym.tasks.marginals import Choice
from ssm_metarl_gym.tasks.mujoco import AntDirTask, HopperTask, Walker2dTask

mujoco = pytest.importorskip("mujoco", reason="the MuJoCo families need the extra mujoco")

# The family, the environment of Gymnasium that it is made from, and a task that is not the default.
BASES = {
    "HalfCheetahVel": ("HalfCheetah-v5", {"velocity": 0.5}),
    "HalfCheetahDir": ("HalfCheetah-v5", {"direction": -1}),
    "AntDir": ("Ant-v5", {"direction": 2.0}),
    "HopperParams": ("Hopper-v5", {"torso_mass": 3.0, "foot_friction": 0.3, "leg_damping": 2.0, "thigh_inertia": 2.0}),
    "Walker2dParams": ("Walker2d-v5", {"torso_mass": 0.3, "foot_left_friction": 0.3, "leg_inertia": 3.0}),
}
PARAMETERS = {"HopperParams": HopperTask, "Walker2dParams": Walker2dTask}
each_family = pytest.mark.parametrize("family", BASES)
each_parameters = pytest.mark.parametrize("family", PARAMETERS)


def make(family, /, **kwargs):
    return gym.make(f"ssm_metarl/{family}-v0", **kwargs)


def constants(model):
    """Every number and array of a MuJoCo model, by name."""
    values = {name: getattr(model, name, None) for name in dir(model) if not name.startswith("_")}
    return {name: np.array(value) for name, value in values.items() if isinstance(value, int | float | np.ndarray)}


def differing(model, other):
    ours, theirs = constants(model), constants(other)
    assert {"body_invweight0", "dof_M0", "body_mass"} <= set(ours) == set(theirs)
    return {name for name in ours if not np.array_equal(ours[name], theirs[name], equal_nan=True)}


class TestPhysics:
    @each_family
    def test_the_default_task_moves_like_gymnasiums_environment_bit_for_bit(self, family):
        base, other = BASES[family]
        env, reference = make(family), gym.make(base, max_episode_steps=200)
        env.reset(seed=9, options={"task": other})  # whatever was before leaves nothing behind
        env.step(env.action_space.sample())
        for seed in (3, 4):
            env.reset(seed=seed, options={"task": {}})
            reference.reset(seed=seed)
            reference.action_space.seed(seed)
            for _ in range(250):
                action = 1.2 * reference.action_space.sample()
                observation, reward, terminated, truncated, _ = env.step(action)
                expected, expected_reward, *ended, _ = reference.step(action)
                assert observation.dtype == np.float64
                assert observation.tolist() == expected.tolist()
                assert [terminated, truncated] == ended
                if "HalfCheetah" not in family:
                    assert reward == expected_reward
                if any(ended):
                    break

    @each_parameters
    def test_another_task_moves_otherwise(self, family, rollout):
        assert rollout(make(family, task={}), 20, seed=0) != rollout(make(family, task=BASES[family][1]), 20, seed=0)

    @each_parameters
    def test_every_parameter_multiplies_one_quantity_of_one_part_of_the_model(self, family):
        env = make(family).unwrapped
        nominal = deepcopy(env.model)
        fields = ("body_mass", "body_inertia", "dof_damping", "geom_friction")
        places = set()
        for name in PARAMETERS[family].parameter_names():
            env.task = env.task_type(**{name: 2.0})
            changed = [
                (field, place)
                for field in fields
                for place in range(len(getattr(nominal, field)))
                if not np.array_equal(getattr(env.model, field)[place], getattr(nominal, field)[place])
            ]
            assert len(changed) == 1
            field, place = changed[0]
            assert np.array_equal(getattr(env.model, field)[place], 2.0 * getattr(nominal, field)[place])
            kind = {"body": nominal.body, "geom": nominal.geom}.get(field.partition("_")[0])
            found = kind(place).name if kind else nominal.joint(nominal.dof_jntid[place]).name
            assert found.removesuffix("_geom").removesuffix("_joint") == name.rpartition("_")[0]
            places.update(changed)
        assert len(places) == len(PARAMETERS[family].parameter_names())
        # Whatever has no parameter is zero: the mass of the world, the damping of the root.
        rest = [getattr(nominal, f)[i] for f in fields for i in range(len(getattr(nominal, f))) if (f, i) not in places]
        assert not np.any(np.concatenate([np.atleast_1d(value) for value in rest]))

    @each_parameters
    def test_changes_start_from_the_nominal_model_and_keep_its_derived_constants_up_to_date(self, family):
        env, nominal = make(family).unwrapped, make(family).unwrapped.model
        other = env.task_type(**BASES[family][1])
        for _ in range(3):
            env.task = other
            derived = differing(env.model, nominal)
            assert derived >= {"body_mass", "body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0"}
        fresh = deepcopy(nominal)
        for field in ("body_mass", "body_inertia", "dof_damping", "geom_friction"):
            getattr(fresh, field)[:] = getattr(env.model, field)
        mujoco.mj_setConst(fresh, mujoco.MjData(fresh))
        assert not differing(env.model, fresh)
        env.task = env.task_type()
        assert not differing(env.model, nominal)

    @each_parameters
    def test_a_change_during_an_episode_leaves_the_state_alone(self, family):
        env = make(family).unwrapped
        env.reset(seed=0, options={"task": {}})
        for _ in range(5):
            env.step(env.action_space.sample())
        names = ("time", "qpos", "qvel", "qacc", "qacc_warmstart", "xpos", "ctrl", "cfrc_ext")
        before = {name: np.copy(getattr(env.data, name)) for name in names}
        env.task = env.task_type(**BASES[family][1])
        assert all(np.array_equal(getattr(env.data, name), value) for name, value in before.items())
        twin = deepcopy(env)
        twin.task = twin.task_type()
        action = env.action_space.sample()
        assert env.step(action)[0].tolist() != twin.step(action)[0].tolist()


class TestRewards:
    @pytest.mark.parametrize("velocity", [0.0, 2.5, -1.0])
    def test_half_cheetah_velocity(self, velocity):
        env = make("HalfCheetahVel", task={"velocity": velocity})
        env.reset(seed=0)
        for _ in range(5):
            action = env.action_space.sample()
            _, reward, terminated, _, info = env.step(action)
            cost = 0.05 * np.sum(np.square(action))
            assert reward == pytest.approx(-abs(info["x_velocity"] - velocity) - cost, rel=1e-12)
            assert info["reward_forward"] == -abs(info["x_velocity"] - velocity)
            assert info["reward_ctrl"] == pytest.approx(-cost)
            assert type(reward) is float
            assert not terminated

    @pytest.mark.parametrize("direction", [1, -1])
    def test_half_cheetah_direction(self, direction):
        env, reference = make("HalfCheetahDir"), gym.make("HalfCheetah-v5", ctrl_cost_weight=0.05)
        env.reset(seed=0, options={"task": {"direction": direction}})
        reference.reset(seed=0)
        for _ in range(5):
            action = env.action_space.sample()
            *_, details = reference.step(action)
            assert env.step(action)[1] == direction * details["reward_forward"] + details["reward_ctrl"]

    @pytest.mark.parametrize("angle", [0.0, 0.5, math.pi / 2, 4.0])
    def test_ant_direction(self, angle):
        env = make("AntDir", task={"direction": angle}, terminate_when_unhealthy=False)
        env.reset(seed=0)
        for _ in range(5):
            action = env.action_space.sample()
            _, reward, _, _, info = env.step(action)
            velocity = info["x_velocity"] * math.cos(angle) + info["y_velocity"] * math.sin(angle)
            contact = 0.5e-3 * np.sum(np.square(np.clip(env.unwrapped.data.cfrc_ext, -1, 1)))
            assert reward == pytest.approx(velocity - 0.5 * np.sum(np.square(action)) - contact + 1.0, rel=1e-9)
            assert info["reward_forward"] == velocity

    def test_the_direction_of_a_half_cheetah_can_switch(self):
        env = make("HalfCheetahDir", switch={"step": 2}, context="visible", task={})
        observation, info = env.reset(seed=0)
        shown = [observation[-1]]
        for _ in range(3):
            observation, _, _, _, info = env.step(env.action_space.sample())
            assert info["task_params"] == {"direction": observation[-1]}
            shown.append(observation[-1])
        assert shown == [1, 1, -1, -1]


class TestFamilies:
    @each_family
    def test_every_episode_has_a_new_task_of_its_split(self, family):
        for split in FAMILIES[family].splits:
            env = make(family, split=split)
            drawn = [env.reset(seed=0 if i == 0 else None) and env.unwrapped.task for i in range(10)]
            assert all(map(FAMILIES[family].distribution(split).contains, drawn))
            assert len(set(drawn)) == (2 if family == "HalfCheetahDir" else 10)

    @each_parameters
    def test_the_ranges_are_those_of_rand_param_envs(self, family):
        train, extreme = (FAMILIES[family].distribution(split).parameters for split in ("train", "extrapolation"))
        assert list(train) == list(extreme) == PARAMETERS[family].parameter_names()
        for name in train:
            base = 1.3 if name.endswith("damping") else 1.5
            assert train[name].bounds == pytest.approx((base**-3, base**3))
            assert extreme[name].bounds == pytest.approx((base**-4, base**4))
            draws = extreme[name].sample(np.random.default_rng(0), 100)
            assert not any(base**-2.99 < draw < base**2.99 for draw in draws)

    def test_the_target_velocities_of_the_splits(self):
        assert FAMILIES["HalfCheetahVel"].train.parameters["velocity"].bounds == (0, 3)
        assert FAMILIES["HalfCheetahVel"].distribution("extrapolation").parameters["velocity"].bounds == (3, 4)

    def test_the_forwards_and_backwards_ant_of_the_docstring(self):
        env = make("AntDir", family=TaskDistribution(AntDirTask, {"direction": Choice(0, math.pi)}).to_dict())
        drawn = {env.reset(seed=seed)[1]["task_params"]["direction"] for seed in range(10)}
        assert drawn == {0.0, math.pi}

    def test_mamls_half_cheetah_of_the_docstring(self):
        family = {"task_type": "HalfCheetahVelTask", "parameters": {"velocity": {"uniform": [[0, 2]]}}}
        env = make("HalfCheetahVel", family=family)
        assert all(0 <= env.reset(seed=seed)[1]["task_params"]["velocity"] <= 2 for seed in range(10))


class TestEnvironments:
    @pytest.mark.each_value
    @each_family
    @pytest.mark.parametrize("kwargs", [{}, {"context": "visible", "split": "interpolation"}])
    def test_checkers_find_no_fault(self, family, kwargs):
        from gymnasium.utils.env_checker import check_env
        from stable_baselines3.common import env_checker

        check_env(make(family, **kwargs).unwrapped, skip_render_check=True)
        env_checker.check_env(make(family, **kwargs))

    @each_family
    def test_a_spec_in_json_makes_the_same_environment(self, family, rollout):
        env = make(family, context="visible", reset_noise_scale=0.01)
        copy = gym.make(EnvSpec.from_json(env.spec.to_json()))
        assert copy.spec == env.spec
        assert env.spec.max_episode_steps == 200
        first = rollout(env, 30, seed=1)
        assert rollout(copy, 30, seed=1) == first
        assert rollout(env, 30, seed=1) == first
        assert rollout(env, 30, seed=2) != first

    @pytest.mark.each_value
    @each_family
    @pytest.mark.parametrize(
        "copy",
        [deepcopy, lambda env: pickle.loads(pickle.dumps(env))],  # noqa: S301
        ids=["deepcopy", "pickle"],
    )
    def test_copies_continue_identically(self, family, copy, rollout):
        env = make(family, task=BASES[family][1], reset_noise_scale=0.01)
        rollout(env, 3, seed=0)
        twin = copy(env)
        assert twin.unwrapped.task == env.unwrapped.task
        assert twin.spec == env.spec
        assert rollout(twin, 30) == rollout(env, 30)
        twin.unwrapped.task = twin.unwrapped.task_type()  # nothing is shared
        assert rollout(twin, 3) != rollout(env, 3)

    @each_family
    def test_rows_of_a_vector_environment_have_tasks_of_their_own(self, family):
        envs = gym.make_vec(f"ssm_metarl/{family}-v0", num_envs=3, vectorization_mode="sync")
        _, infos = envs.reset(seed=0)
        single = make(family)
        assert [single.reset(seed=seed)[1]["task_id"] for seed in range(3)] == infos["task_id"].tolist()
        envs.step(envs.action_space.sample())
        envs.close()

    @each_family
    def test_visible_parameters_are_scaled_by_the_training_range(self, family):
        env = make(family, context="visible")
        observation = env.reset(seed=0)[0]
        expected = FAMILIES[family].train.normalise(env.unwrapped.task)
        assert observation[-len(expected) :].tolist() == expected.tolist()
        assert np.abs(expected).max() <= 1
        assert observation.dtype == np.float64
        assert len(observation) == gym.make(BASES[family][0]).observation_space.shape[0] + len(expected)


class TestBadInput:
    @pytest.mark.parametrize(
        ("family", "kwargs", "message"),
        [
            ("HalfCheetahDir", {"split": "extrapolation"}, r"split must be one of \['train', 'interpolation'\]"),
            ("HopperParams", {"switch": {"step": 3}}, "a HopperTask has no sign to flip"),
            ("HopperParams", {"task": {"torso_mas": 2}}, "Did you mean 'torso_mass'"),
            ("HopperParams", {"task": {"torso_mass": 0}}, r"torso_mass must be a number in \[1e-06, 1e\+06\]; got 0"),
            ("Walker2dParams", {"family": "HopperParams"}, r"family must be one of \['Walker2dParams'\]"),
            ("HalfCheetahDir", {"task": {"direction": 2}}, r"direction must be \+1 or -1; got 2"),
        ],
    )
    def test_arguments(self, family, kwargs, message):
        with pytest.raises(ValueError, match=message):
            make(family, **kwargs)

    @each_family
    def test_actions_and_options_and_the_order_of_calls(self, family):
        env = make(family).unwrapped
        action = env.action_space.sample()
        with pytest.raises(gym.error.ResetNeeded, match="reset"):
            env.step(action)
        env.reset(seed=0)
        state = env.state_vector().tolist()
        for bad in (np.full_like(action, np.nan), action[1:]):
            with pytest.raises(ValueError, match="an action must be finite numbers in an array of shape"):
                env.step(bad)
        with pytest.raises(ValueError, match="Did you mean 'task'"):
            env.reset(options={"tsk": {}})
        assert env.state_vector().tolist() == state


@pytest.mark.parametrize("missing", ["mujoco", pytest.param("imageio", marks=pytest.mark.slow)])
def test_without_mujoco_everything_else_works_and_the_error_says_how_to_install_it(missing):
    script = f"""if True:
        import sys
        sys.modules[{missing!r}] = None
        import gymnasium as gym, ssm_metarl_gym
        assert all(f"ssm_metarl/{{family}}-v0" in gym.registry for family in {list(BASES)})
        gym.make("ssm_metarl/CartPole-v0").reset()
        for family in ("HopperParams", "ReacherActuators"):
            try:
                gym.make(f"ssm_metarl/{{family}}-v0")
            except gym.error.DependencyNotInstalled as error:
                assert 'pip install "ssm-metarl-gym[mujoco]"' in str(error), error
            else:
                raise AssertionError
    """
    subprocess.run([sys.executable, "-c", script], check=True)  # noqa: S603


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a viewer that fails leaves one behind
def test_frames_show_the_robot(monkeypatch):
    if not os.environ.get("DISPLAY"):
        monkeypatch.setenv("MUJOCO_GL", os.environ.get("MUJOCO_GL", "egl"))
    env = make("HopperParams", render_mode="rgb_array", width=64, height=48)
    env.reset(seed=0)
    failure = None
    try:
        frame = env.render()
    except Exception as error:  # whatever the lack of a driver raises
        failure = repr(error)
    if failure is not None:
        gc.collect()  # while the filter of warnings is in force
        pytest.skip(f"no OpenGL backend renders here: {failure}")
    assert frame.dtype == np.uint8
    assert frame.shape == (48, 64, 3)
    assert frame.std() > 0
    twin = deepcopy(env)
    assert np.array_equal(twin.render(), frame)
    env.close()
    twin.close()
