import sys

import gymnasium as gym
import pytest
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
    assert type(env.unwrapped) is env_type
    assert env.num_envs == 3
    assert env.metadata["autoreset_mode"] is mode


def test_arguments_arrive_in_every_row():
    assert [task.length for task in make_rows(POLARITY, 2, task={"length": 0.3}).unwrapped.tasks] == [0.3, 0.3]
    assert [env.unwrapped.g for env in make_rows("Pendulum-v1", 2, g=7.0).envs] == [7.0, 7.0]


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
