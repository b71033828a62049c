import sys

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ssm_metarl_gym.envs import HiddenTaskVectorEnv, RepeatObservationVectorEnv, TaskCartPoleVectorEnv
from ssm_metarl_gym.envs.making import has_batched_form, make_rows

POLARITY = "ssm_metarl/CartPolePolarity-v0"


@pytest.mark.parametrize(
    ("env_id", "expected"),
    [
        (POLARITY, True),
        (f"ssm_metarl_gym:{POLARITY}", True),
        ("ssm_metarl/RepeatObservation-v0", True),
        ("ssm_metarl/AntDir-v0", False),  # which takes no MuJoCo to find out
        ("Pendulum-v1", False),
        ("CartPole-v1", False),  # Gymnasium's own batched form does not reset in the step that ends an episode
    ],
)
def test_only_ids_of_this_package_have_a_batched_form(env_id, expected):
    assert has_batched_form(env_id) is expected


@pytest.mark.each_value
@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize(
    ("env_id", "env_type"),
    [
        (POLARITY, TaskCartPoleVectorEnv),
        (f"ssm_metarl_gym:{POLARITY}", TaskCartPoleVectorEnv),
        ("ssm_metarl/RepeatObservation-v0", RepeatObservationVectorEnv),
        ("CartPole-v1", SyncVectorEnv),
    ],
)
def test_rows_are_made_in_the_best_form_and_reset_as_they_are_told_to(env_id, env_type, mode):
    env = make_rows(env_id, 3, autoreset_mode=mode)
    assert isinstance(env.unwrapped, env_type)
    assert env.num_envs == 3
    assert env.metadata["autoreset_mode"] is mode


def test_arguments_arrive_in_every_row():
    assert [task.length for task in make_rows(POLARITY, 2, task={"length": 0.3}).unwrapped.tasks] == [0.3, 0.3]
    assert [env.unwrapped.g for env in make_rows("Pendulum-v1", 2, g=7.0).envs] == [7.0, 7.0]


def test_single_environments_know_what_they_are():
    envs = gym.make_vec(make_rows("Pendulum-v1", 2, autoreset_mode=AutoresetMode.SAME_STEP, g=7.0).spec)
    assert [env.unwrapped.g for env in envs.unwrapped.envs] == [7.0, 7.0]
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert gym.spec("Pendulum-v1").kwargs == {}


class Telling(gym.Env):
    """Tells infos of every kind, each in some steps alone."""

    observation_space = gym.spaces.Dict({"number": gym.spaces.Box(0.0, 1.0, (1,))})
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self.observation(), {"start": 1.5, "_odd": 2, "odd": 3, "nested": {0: 3, "deeper": {"truth": True}}}

    def observation(self):
        return {"number": self.np_random.random(1).astype("float32")}

    def step(self, action):
        self.count += 1
        info = {"vector": self.observation()["number"], "word": "a"} if action else {"nested": {0: 7, "other": 0.5}}
        return self.observation(), 0.0, bool(action and self.count > 2), self.count == 5, info


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_infos_are_those_of_gymnasium(monkeypatch, mode):
    monkeypatch.setitem(gym.registry, "Telling-v0", gym.envs.registration.EnvSpec("Telling-v0", entry_point=Telling))
    ours = make_rows("Telling-v0", 4, autoreset_mode=mode)
    theirs = SyncVectorEnv([lambda: gym.make("Telling-v0")] * 4, autoreset_mode=mode)
    theirs.action_space.seed(0)
    assert data_equivalence(ours.reset(seed=0), theirs.reset(seed=0), exact=True)
    for _ in range(40):
        actions = theirs.action_space.sample()
        assert data_equivalence(ours.step(actions), theirs.step(actions), exact=True)


def test_what_is_said_of_an_id_is_what_is_made():
    for spec in [spec for spec in gym.registry.values() if spec.namespace == "ssm_metarl"]:
        if has_batched_form(spec.id):
            env = make_rows(spec.id, 1).unwrapped
            assert isinstance(env, HiddenTaskVectorEnv | RepeatObservationVectorEnv)


@pytest.mark.parametrize("function", [has_batched_form, lambda env_id: make_rows(env_id, 2)])
def test_a_module_that_registers_an_id_is_imported_first(tmp_path, monkeypatch, function):
    (tmp_path / "registering_module.py").write_text(
        "import gymnasium\ngymnasium.register('Registered-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "registering_module", raising=False)
    function("registering_module:Registered-v0")
    del gym.registry["Registered-v0"]


@pytest.mark.parametrize("function", [has_batched_form, lambda env_id: make_rows(env_id, 2)])
def test_unknown_ids_and_modules_are_refused(function):
    with pytest.raises(gym.error.NameNotFound, match="Did you mean: `CartPolePolarity`"):
        function("ssm_metarl/CartPolePolarit-v0")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        function(f"no_such_module:{POLARITY}")
