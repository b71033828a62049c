import copy
import importlib
from dataclasses import dataclass, make_dataclass

import gymnasium as gym
import numpy as np
import pytest

from ssm_metarl_gym.tasks import LogUniform, ModelTask, TaskDistribution

mujoco = pytest.importorskip("mujoco", reason="hidden parameters of a MuJoCo model need the extra mujoco")

from ssm_metarl_gym.envs.mujoco_models import MujocoHiddenModel, check_hidden_model, model_parameters  # noqa: E402

ENVIRONMENTS = {
    "Reacher": "reacher",
    "Pusher": "pusher",
    "InvertedPendulum": "inverted_pendulum",
    "InvertedDoublePendulum": "inverted_double_pendulum",
    "HalfCheetah": "half_cheetah",
    "Hopper": "hopper",
    "Swimmer": "swimmer",
    "Walker2d": "walker2d",
    "Ant": "ant",
    "Humanoid": "humanoid",
    "HumanoidStandup": "humanoidstandup",
}


@dataclass(frozen=True)
class CheetahTask(ModelTask):
    torso_mass: float = 1.0
    bthigh_inertia: float = 1.0
    ffoot_damping: float = 1.0
    floor_friction: float = 1.0
    bshin_gear: float = 1.0
    gravity: float = 1.0
    damping: float = 1.0


def class_of(name):
    """Gymnasium's class of an environment."""
    return getattr(importlib.import_module(f"gymnasium.envs.mujoco.{ENVIRONMENTS[name]}_v5"), f"{name}Env")


def make(name="HalfCheetah", task_type=CheetahTask, **kwargs):
    ranges = dict.fromkeys(task_type.parameter_names(), LogUniform((0.5, 2.0)))
    env_type = type("Env", (MujocoHiddenModel, class_of(name)), {"task_type": task_type})
    return env_type(TaskDistribution(task_type, ranges), **kwargs)


def task_type_of(*names):
    return make_dataclass("SomeTask", [(name, float, 1.0) for name in names], bases=(ModelTask,), frozen=True)


class TestNames:
    def test_parts_are_found_by_the_names_in_the_model(self):
        model = class_of("HalfCheetah")().model
        places = model_parameters(model)
        expected = {
            "torso_mass": model.body("torso").mass,
            "bthigh_inertia": model.body("bthigh").inertia,
            "ffoot_damping": model.joint("ffoot").damping,
            "floor_friction": model.geom("floor").friction,
            "bshin_gear": model.actuator("bshin").gear,
            "gravity": model.opt.gravity,
        }
        for name, values in expected.items():
            field, place = places[name]
            array = model.opt.gravity if field == "gravity" else getattr(model, field)
            np.testing.assert_array_equal(np.ravel(array[place]), values)
            assert np.shares_memory(array, values)

    def test_suffixes_are_left_out_and_motors_without_a_name_have_that_of_their_joint(self):
        model = class_of("Hopper")().model
        places = model_parameters(model)
        assert places["foot_gear"] == ("actuator_gear", [2])
        assert places["foot_friction"] == ("geom_friction", [model.geom("foot_geom").id])
        assert model.dof_damping[places["foot_damping"][1]] == model.joint("foot_joint").damping

    def test_what_is_zero_is_no_parameter(self):
        places = model_parameters(class_of("HalfCheetah")().model)
        assert not {"world_mass", "rootx_damping"} & set(places)
        assert not any(name.startswith("_") for name in places)

    def test_all_degrees_of_freedom_of_a_joint_are_damped_together(self):
        field, place = model_parameters(class_of("Humanoid")().model)["abdomen_z_damping"]
        assert (field, len(place)) == ("dof_damping", 1)

    def test_parts_of_one_name_are_multiplied_together(self):
        model = mujoco.MjModel.from_xml_string("""
            <mujoco><worldbody><body name="arm">
                <joint name="hinge" type="hinge" axis="0 1 0"/>
                <geom name="foot" size="0.1"/><geom name="foot_geom" size="0.1"/>
            </body></worldbody><actuator>
                <position joint="hinge" kp="50"/><velocity joint="hinge" kv="5"/><motor name="own" joint="hinge"/>
            </actuator></mujoco>""")
        places = model_parameters(model)
        assert places["hinge_gear"] == ("actuator_gear", [0, 1])
        assert places["own_gear"] == ("actuator_gear", [2])
        assert places["foot_friction"] == ("geom_friction", [0, 1])

    def test_all_of_them_are_changed(self):
        env = make("Swimmer", task_type_of("motor1_rot_gear", "gear"))
        env._places[0] = ("actuator_gear", [0, 1])
        env.reset(seed=0, options={"task": {"motor1_rot_gear": 0.5, "gear": 1.0}})
        assert env.model.actuator_gear[:, 0].tolist() == [75.0, 75.0]

    def test_the_nearest_name_is_told(self):
        with pytest.raises(ValueError, match=r"a parameter of the model must be one of .*Did you mean 'torso_mass'"):
            make(task_type=task_type_of("torso_masss"))


class TestPhysics:
    @pytest.mark.parametrize("name", ENVIRONMENTS)
    def test_the_default_task_is_gymnasiums_environment_bit_for_bit(self, name):
        names = list(model_parameters(class_of(name)().model))
        env, plain = make(name, task_type_of(*names)), class_of(name)()
        env.reset(seed=3)  # whatever was before leaves nothing behind
        assert env.reset(seed=4, options={"task": {}})[0].tolist() == plain.reset(seed=4)[0].tolist()
        plain.action_space.seed(0)
        for _ in range(10):
            action = plain.action_space.sample()
            ours, theirs = env.step(action), plain.step(action)
            assert (ours[0].tolist(), ours[1:4]) == (theirs[0].tolist(), theirs[1:4])

    def test_parameters_multiply_what_is_in_the_model_file(self):
        env, model = make(), class_of("HalfCheetah")().model
        for factor in (3.0, 2.0):  # always of the nominal one
            env.reset(options={"task": {"gravity": factor, "torso_mass": factor, "bshin_gear": factor}})
        assert env.model.opt.gravity.tolist() == (2.0 * model.opt.gravity).tolist()
        assert env.model.body("torso").mass == 2.0 * model.body("torso").mass
        assert env.model.actuator_gear[:, 0].tolist() == (model.actuator_gear[:, 0] * [1, 2, 1, 1, 1, 1]).tolist()

    def test_one_part_and_all_parts_are_multiplied_together(self):
        env, model = make(), class_of("HalfCheetah")().model
        env.task = {"damping": 2.0, "ffoot_damping": 3.0}
        assert env.model.dof_damping[:-1].tolist() == (2.0 * model.dof_damping[:-1]).tolist()
        assert env.model.dof_damping[-1] == 6.0 * model.dof_damping[-1]

    def test_half_the_gravity_falls_half_as_fast(self):
        distances = []
        for gravity in (1.0, 0.5):
            env = make("Hopper", task_type_of("gravity"))
            env.reset(seed=0, options={"task": {"gravity": gravity}})
            env.set_state(env.init_qpos + np.eye(6)[1], np.zeros(6))  # a metre higher, at rest
            before = env.data.qpos[1]
            env.do_simulation(np.zeros(3), 50)
            distances.append(before - env.data.qpos[1])
        assert distances[1] == pytest.approx(0.5 * distances[0], rel=1e-3)


class TestChecker:
    def test_each_parameter_changes_the_motion_and_all_are_undone(self):
        env = make()
        env.reset(seed=1)
        state, task = env.state_vector().tolist(), env.task
        farthest = check_hidden_model(gym.wrappers.TimeLimit(env, 10), num_steps=50)
        assert list(farthest) == CheetahTask.parameter_names()
        assert min(farthest.values()) > 1e-4
        assert (env.state_vector().tolist(), env.task) == (state, task)
        assert check_hidden_model(env, num_steps=50) == farthest

    @pytest.mark.slow
    def test_the_registered_families(self):
        farthest = check_hidden_model(gym.make("ssm_metarl/Walker2dParams-v0"))
        assert len(farthest) == 28
        # In a contact the larger friction acts: what touches the floor with its foot alone never feels its leg's.
        with pytest.raises(ValueError, match=r"each parameter must change the motion; got \['leg_friction'\]"):
            check_hidden_model(gym.make("ssm_metarl/HopperParams-v0"))

    def test_a_parameter_that_changes_nothing_is_named(self):
        env = make("Swimmer", task_type_of("torso_mass", "gravity"))  # which swims in a plane
        with pytest.raises(ValueError, match=r"each parameter must change the motion; got \['gravity'\]"):
            check_hidden_model(env, num_steps=20)

    def test_old_derived_constants_are_found(self):
        class Forgetful(type(make())):
            def _apply_task(self):
                super()._apply_task()
                if self.task != self.task_type():
                    self.model.body_mass[1] *= 2.0  # after all has been derived

        with pytest.raises(ValueError, match="derived constants must belong to the parameters; got old ones"):
            check_hidden_model(Forgetful(TaskDistribution(CheetahTask, {})), num_steps=2)

    def test_what_stays_behind_is_found(self):
        class Sticky(type(make())):
            def _apply_task(self):
                super()._apply_task()
                self.model.opt.timestep *= 1.0 + 1e-12

        with pytest.raises(ValueError, match="a parameter that is set back must leave nothing behind"):
            check_hidden_model(Sticky(TaskDistribution(CheetahTask, {})), num_steps=2)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [({"num_steps": 0}, "num_steps must be"), ({"factor": 1.0}, "factor must be a number > 1; got 1.0")],
    )
    def test_other_arguments_are_refused(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            check_hidden_model(make(), **kwargs)
        with pytest.raises(ValueError, match="env must be a MujocoHiddenModel; got "):
            check_hidden_model(gym.make("HalfCheetah-v5"))


def test_both_checkers_find_no_fault():
    from gymnasium.utils.env_checker import check_env
    from stable_baselines3.common import env_checker

    check_env(make(context="visible"), skip_render_check=True)
    env_checker.check_env(make())


def test_a_copy_goes_on_alike_and_shares_nothing():
    env = make()
    env.reset(seed=0)
    twin = copy.deepcopy(env)
    action = env.action_space.sample()
    assert env.step(action)[0].tolist() == twin.step(action)[0].tolist()
    twin.task = {"gravity": 0.5}
    assert env.step(action)[0].tolist() != twin.step(action)[0].tolist()
