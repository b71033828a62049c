import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from torch import nn

from ssm_metarl_gym.agents import AdaptationConfig, Adapter, DynamicsModel, MetaTrainer
from ssm_metarl_gym.wrappers import ActionCorrection, OnlineAdaptation, VectorActionCorrection, VectorOnlineAdaptation

CARTPOLE, PENDULUM = "ssm_metarl/CartPolePolarity-v0", "ssm_metarl/PendulumPolarity-v0"
BOUNDS = AdaptationConfig(
    lr=0.3, grad_clip_norm=1.0, trust_region_eps=1.0, ema_decay=0.9, entropy_weight=0.0, max_steps_per_call=2
)
REPORT = {"asked", "taken", "gate_open", "adapted_error", "reference_error", "effect"}
both_envs = pytest.mark.parametrize("env_id", [CARTPOLE, PENDULUM])


def make_model(env, seed=0):
    torch.manual_seed(seed)
    core = nn.Sequential(nn.Linear(DynamicsModel.input_dim(env.observation_space, env.action_space), 16), nn.Tanh())
    model = DynamicsModel(env.observation_space, env.action_space, core)
    model.target_scale.fill_(0.1)
    return model


def wrap(env_id, reference_seed=1, num_envs=None, kwargs=None, **options):
    """Two models that know nothing yet, so that the gate opens now and then."""
    env = gym.make(env_id, **kwargs or {})
    adapter, reference = Adapter(make_model(env), BOUNDS), make_model(env, reference_seed)
    if num_envs is None:
        return ActionCorrection(OnlineAdaptation(env, adapter), reference, **options)
    mode = options.pop("autoreset_mode", AutoresetMode.NEXT_STEP)
    envs = gym.make_vec(env_id, num_envs, autoreset_mode=mode, **kwargs or {})
    return VectorActionCorrection(VectorOnlineAdaptation(envs, adapter), reference, **options)


@both_envs
def test_while_the_gate_is_closed_everything_is_as_without_the_wrapper(env_id, rollout):
    plain = rollout(gym.make(env_id, max_episode_steps=15), 40, seed=1)
    wrapped = rollout(wrap(env_id, kwargs={"max_episode_steps": 15}, gate=np.inf), 40, seed=1)
    for (observation, *rest), (own_observation, *own_rest) in zip(plain, wrapped, strict=True):
        assert own_observation == observation
        info = own_rest[-1]
        assert info.pop("adaptation")
        if len(rest) > 1:
            report = info.pop("correction")
            assert report.keys() == REPORT
            assert report["gate_open"] is False
            assert np.array_equal(report["asked"], report["taken"])
        assert own_rest == rest


@both_envs
def test_an_open_gate_changes_actions_within_the_space(env_id):
    env = wrap(env_id, gate=0.0, effect_gate=np.inf)
    env.reset(seed=0)
    env.action_space.seed(0)
    reports = [env.step(env.action_space.sample())[-1]["correction"] for _ in range(30)]
    assert reports[0]["gate_open"] is False  # there is no evidence yet
    assert all(report["gate_open"] for report in reports[1:])
    assert any(not np.array_equal(report["asked"], report["taken"]) for report in reports)
    assert all(env.action_space.contains(report["taken"]) for report in reports)


def test_a_correction_asks_the_adapted_model_also_where_the_source_is_better():
    env = gym.make(PENDULUM)
    online = OnlineAdaptation(env, Adapter(make_model(env), BOUNDS), outlier_error=np.inf, change_ratio=np.inf)
    env = ActionCorrection(online, make_model(env, seed=1), gate=0.0, effect_gate=np.inf)
    env.reset(seed=0)
    env.action_space.seed(0)
    mean, num_used = None, 0
    for _ in range(30):
        info = env.step(env.action_space.sample())[-1]
        error = info["adaptation"]["error"]  # of the adapted model
        mean = error if mean is None else 0.9 * mean + 0.1 * error
        assert info["correction"]["adapted_error"] == pytest.approx(mean, rel=1e-4)
        num_used = info["adaptation"]["num_source_used"]
    assert num_used > 0


@pytest.mark.each_value
@both_envs
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_every_row_is_that_of_a_single_wrapper(env_id, mode):
    options = {"gate": 0.5, "effect_gate": np.inf, "kwargs": {"max_episode_steps": 9}}
    envs = wrap(env_id, num_envs=3, autoreset_mode=mode, **options)
    observations, _ = envs.reset(seed=4)
    tasks = list(envs.unwrapped.tasks)
    states = envs.unwrapped.state.copy()
    singles = [wrap(env_id, **options) for _ in tasks]
    for single, task, state, observation in zip(singles, tasks, states, observations, strict=True):
        own, _ = single.reset(seed=0, options={"task": task.to_dict(), "state": state})
        np.testing.assert_array_equal(own, observation)
    envs.action_space.seed(1)
    num_open = 0
    for _ in range(9):  # until the first episode ends
        actions = envs.action_space.sample()
        observations, rewards, *_, infos = envs.step(actions)
        shown = infos.get("final_obs", observations)
        for i, single in enumerate(singles):
            own, reward, *_, info = single.step(actions[i])
            np.testing.assert_allclose(own, shown[i], rtol=1e-3, atol=1e-4)
            assert reward == pytest.approx(rewards[i], rel=1e-3, abs=1e-4)
            for name, value in info["correction"].items():
                expected = np.nan if value is None else value
                np.testing.assert_allclose(infos["correction"][name][i], expected, rtol=1e-2, atol=1e-3)
            num_open += info["correction"]["gate_open"]
    assert num_open > 5


@pytest.mark.each_value
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("num_envs", [None, 2])
def test_where_a_sensor_fails_the_asked_action_is_taken(bad, num_envs):
    env = wrap(PENDULUM, num_envs=num_envs, gate=0.0, effect_gate=np.inf)
    env.reset(seed=0)
    action = np.ones(env.action_space.shape, dtype=np.float32)
    env.step(action)
    inner = env.env.unwrapped
    step, fails = inner.step, iter([True])

    def failing_step(actions):
        observation, *rest = step(actions)
        if next(fails, False):
            observation = observation.copy()
            observation[..., 0 if num_envs is None else 1] = bad
            if num_envs is not None:
                observation[1] = [1.0, 0.0, 0.5]
        return observation, *rest

    inner.step = failing_step
    reports = [env.step(action)[-1]["correction"] for _ in range(4)]
    is_open = np.array([np.atleast_1d(report["gate_open"])[0] for report in reports])
    assert is_open.tolist() == [True, False, True, True]
    assert np.array_equal(np.atleast_1d(reports[1]["taken"])[0], np.atleast_1d(action)[0])
    assert all(np.isfinite(report["taken"]).all() for report in reports)
    if num_envs is not None:
        assert reports[1]["gate_open"].tolist() == [False, True]


@pytest.mark.each_value
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("effect_gate", [0.9, np.inf])
def test_what_is_no_number_passes_as_it_was_asked_and_does_not_stop_the_others(bad, effect_gate):
    envs, twins = (wrap(PENDULUM, num_envs=2, gate=0.0, effect_gate=effect_gate) for _ in range(2))
    for each in (envs, twins):
        each.reset(seed=0)
        step = each.unwrapped.step
        each.unwrapped.step = lambda actions, step=step: step(np.nan_to_num(actions, posinf=0.0))
    good = np.ones((2, 1), dtype=np.float32)
    for actions in (good, good, np.array([[bad], [1.0]], dtype=np.float32), good):
        report, expected = (each.step(given)[-1]["correction"] for each, given in ((envs, actions), (twins, good)))
        for name in REPORT:
            np.testing.assert_allclose(report[name][1], expected[name][1], rtol=1e-4)
        if not np.isfinite(actions).all():
            assert not report["gate_open"][0]
            np.testing.assert_array_equal(report["taken"][0], [bad])


def test_a_step_before_a_reset_is_refused():
    with pytest.raises(gym.error.ResetNeeded):
        wrap(PENDULUM).step(np.zeros(1, dtype=np.float32))


@pytest.mark.parametrize("num_envs", [None, 2])
def test_after_a_step_that_failed_half_way_no_false_transition_is_learned_from(num_envs):
    env = wrap(PENDULUM, num_envs=num_envs, gate=0.0, effect_gate=np.inf)
    env.reset(seed=0)
    action = np.ones(env.action_space.shape, dtype=np.float32)
    before = env.step(action)[-1]
    step = env.unwrapped.step

    def failing_step(action):
        step(action)
        raise RuntimeError

    env.unwrapped.step = failing_step
    with pytest.raises(RuntimeError):
        env.step(action)
    env.unwrapped.step = step
    unknown, known = (env.step(action)[-1] for _ in range(2))
    num_transitions = [info["adaptation"]["num_transitions"] for info in (before, unknown, known)]
    np.testing.assert_array_equal(num_transitions[1], num_transitions[0])
    np.testing.assert_array_equal(num_transitions[2], np.add(num_transitions[0], 1))
    before, unknown, known = (info["correction"] for info in (before, unknown, known))
    assert not np.any(unknown["gate_open"])
    np.testing.assert_array_equal(unknown["taken"], action)
    for name in ("adapted_error", "reference_error"):
        np.testing.assert_array_equal(unknown[name], before[name])
        assert np.all(unknown[name] != known[name])
    assert np.all(known["gate_open"])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (AutoresetMode.NEXT_STEP, [[True, True], [True, True], [False, False], [True, True]]),
        (AutoresetMode.SAME_STEP, [[True, True], [True, False], [False, True], [True, True]]),
    ],
)
def test_rows_that_have_just_begun_an_episode_have_no_correction_of_it(mode, expected):
    envs = wrap(PENDULUM, num_envs=2, autoreset_mode=mode, kwargs={"max_episode_steps": 3})
    envs.reset(seed=0)
    actions = np.ones((2, 1), dtype=np.float32)
    envs.step(actions)
    if mode is AutoresetMode.SAME_STEP:  # so that the rows end one after the other
        envs.reset(options={"reset_mask": np.array([True, False])})
    for present in expected:
        *_, infos = envs.step(actions)
        assert infos["_correction"].tolist() == present
        if "final_info" in infos:
            assert infos["final_info"]["_correction"].tolist() == [not row for row in present]
            taken = infos["final_info"]["correction"]["taken"]
            np.testing.assert_array_equal(taken, infos["correction"]["taken"])


def test_a_new_episode_closes_the_gates_of_its_row_alone():
    envs = wrap(PENDULUM, num_envs=2, autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    for _ in range(3):
        *_, infos = envs.step(np.ones((2, 1), dtype=np.float32))
    assert np.isfinite(infos["correction"]["adapted_error"]).all()
    envs.reset(options={"reset_mask": np.array([True, False])})
    *_, infos = envs.step(np.ones((2, 1), dtype=np.float32))
    report = infos["correction"]
    assert report["gate_open"][0] == np.False_
    assert infos["adaptation"]["num_transitions"].tolist() == [1, 4]


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
@both_envs
def test_gymnasium_takes_it_for_an_environment(env_id):
    env = wrap(env_id, gate=0.5, effect_gate=np.inf)
    check_env(env, skip_render_check=True)
    assert env.observation_space == gym.make(env_id).observation_space
    assert env.action_space == gym.make(env_id).action_space


@pytest.mark.each_value
@both_envs
@pytest.mark.parametrize("num_envs", [None, 3])
def test_copies_go_on_alike(env_id, num_envs):
    env = wrap(env_id, num_envs=num_envs, gate=0.5)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(3):
        env.step(env.action_space.sample())
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):  # noqa: S301
        original = copy.deepcopy(env)
        for _ in range(3):
            action = env.action_space.sample()
            np.testing.assert_array_equal(original.step(action)[0], twin.step(action)[0])


@pytest.mark.parametrize("doubled", ["reference", "model"])
def test_a_reference_in_another_precision_is_as_good(doubled):
    taken = []
    for exact in (False, True):
        env = gym.make(PENDULUM)
        models = {"model": make_model(env), "reference": make_model(env, seed=1)}
        if exact:
            models[doubled].double()
        online = OnlineAdaptation(env, Adapter(models["model"], BOUNDS))
        env = ActionCorrection(online, models["reference"], gate=0.0, effect_gate=1e9)
        env.reset(seed=0)
        action = np.full(1, 0.5, dtype=np.float32)
        taken.append([env.step(action)[-1]["correction"]["taken"] for _ in range(3)])
    np.testing.assert_allclose(taken[0], taken[1], atol=0.05)
    assert not np.allclose(taken[0][-1], 0.5)


class TestRefuses:
    def test_another_environment_than_one_that_adapts(self):
        with pytest.raises(ValueError, match="must be right around OnlineAdaptation"):
            ActionCorrection(gym.make(PENDULUM), make_model(gym.make(PENDULUM)))

    def test_a_reference_that_is_no_model_or_has_other_units(self):
        env = OnlineAdaptation(gym.make(PENDULUM), Adapter(make_model(gym.make(PENDULUM)), BOUNDS))
        with pytest.raises(ValueError, match=r"needs a DynamicsModel as reference; got Linear"):
            ActionCorrection(env, nn.Linear(2, 2))
        other = make_model(gym.make(PENDULUM))
        other.target_scale.fill_(2.0)
        with pytest.raises(ValueError, match="have the normalisation of the model that adapts"):
            ActionCorrection(env, other)

    def test_a_reference_whose_weights_are_not_finite(self):
        env = OnlineAdaptation(gym.make(PENDULUM), Adapter(make_model(gym.make(PENDULUM)), BOUNDS))
        reference = make_model(gym.make(PENDULUM))
        reference.core[0].weight.data[0, :2] = torch.tensor([np.nan, np.inf])
        with pytest.raises(ValueError, match=r"must be finite; core\.0\.weight has 2 that are not\. Make it anew"):
            ActionCorrection(env, reference)

    def test_a_model_on_another_device_than_the_cpu(self):
        class OnAnAccelerator(nn.Parameter):
            device = property(lambda self: torch.device("cuda:1"))

        model = make_model(gym.make(CARTPOLE))
        model.head.weight = OnAnAccelerator(model.head.weight.detach())
        env = OnlineAdaptation(gym.make(CARTPOLE), Adapter(model, BOUNDS))
        with pytest.raises(ValueError, match=r"ActionCorrection needs a model on the CPU; got one on cuda:1\. Use"):
            ActionCorrection(env, make_model(gym.make(CARTPOLE)))

    @pytest.mark.each_value
    @pytest.mark.parametrize(
        ("env_id", "wrong"),
        [(CARTPOLE, 2), (CARTPOLE, -1), (CARTPOLE, 1.0), (CARTPOLE, [1]), (PENDULUM, 0.5), (PENDULUM, [[0.5]])],
    )
    @pytest.mark.parametrize("num_envs", [None, 2])
    def test_what_is_no_action(self, env_id, wrong, num_envs):
        env = wrap(env_id, num_envs=num_envs)
        env.reset(seed=0)
        asked, what = (wrong, "an action") if num_envs is None else ([wrong] * num_envs, "2 actions")
        with pytest.raises(ValueError, match=f"must be {what} of .*; got .* Give what its predict"):
            env.step(asked)
        env.step(env.action_space.sample())  # and it goes on from where it was
        assert np.isfinite(env.step(env.action_space.sample())[-1]["correction"]["reference_error"]).all()


@pytest.mark.slow
def test_a_policy_that_knows_one_sign_of_the_torque_copes_with_the_other():
    """Pushing in the direction of the speed swings the pendulum up, unless the torque is reversed."""
    trainer = MetaTrainer(PENDULUM, seed=0, inner_steps=3, num_streams=300).learn(300)
    reference = trainer.reference(num_updates=500)

    def heights(corrected):
        envs = gym.make_vec(PENDULUM, 16, task={"polarity": -1})
        if corrected:
            envs = VectorOnlineAdaptation(envs, Adapter(trainer.model, trainer.adaptation_config()))
            envs = VectorActionCorrection(envs, reference)
        observations, _ = envs.reset(seed=0)
        shown = []
        for _ in range(150):
            observations, *_ = envs.step(2.0 * np.sign(observations[:, 2:]).astype(np.float32))
            shown.append(observations[:, 0])
        return np.mean(shown[75:])

    assert heights(corrected=True) > heights(corrected=False) + 0.3


def test_one_correction_for_each_adaptation_of_many_rows():
    envs = gym.make_vec(PENDULUM, num_envs=2)
    env = VectorOnlineAdaptation(envs, Adapter(make_model(gym.make(PENDULUM)), BOUNDS))
    VectorActionCorrection(env, make_model(gym.make(PENDULUM)))
    with pytest.raises(ValueError, match="one VectorOnlineAdaptation must have one VectorActionCorrection around it"):
        VectorActionCorrection(env, make_model(gym.make(PENDULUM)))
