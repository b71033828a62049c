"""What a robot runs is what the wrappers do, and numbers cannot bring it to a halt."""

import copy
import pickle
import subprocess
import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from torch import nn
from torch.nn import functional as F

from ssm_metarl_gym.agents import SSM, SSMPPO, AdaptationConfig, Adapter, KalmanAdapter, RecursiveLeastSquares
from ssm_metarl_gym.bundle import load_bundle
from ssm_metarl_gym.bundle.bundle import Bundle
from ssm_metarl_gym.bundle.bundle_file import read_bundle

CARTPOLE, PENDULUM = "ssm_metarl/CartPolePolarity-v0", "ssm_metarl/PendulumPolarity-v0"
BOUNDS = AdaptationConfig(
    lr=0.3, grad_clip_norm=1.0, trust_region_eps=0.5, ema_decay=0.9, entropy_weight=0.0, max_steps_per_call=3
)
GENTLE = replace(BOUNDS, lr=0.01)  # so that no rounding is amplified by one step after the other
REVERSED = {"split": "extrapolation"}
SWITCHING = REVERSED | {"switch": {"step": 30}}
EFFECT = {"match": "effect", "regularisation": 1.0}
ERRORS = ("adapted_error", "reference_error")
OPEN = {"gate": 0.0, "effect_gate": 1.0, "prior_steps": 0.0}


def double(input_dim):
    return nn.Sequential(nn.Linear(input_dim, 16), nn.SiLU(), nn.Linear(16, 8, bias=False), nn.Tanh()).double()


def small_ssm(input_dim):
    return SSM(input_dim, 8, 4, num_layers=2)


def double_ssm(input_dim):
    return small_ssm(input_dim).double()


def gradients(model):
    return Adapter(model, BOUNDS)


def gentle(model):
    return Adapter(model, GENTLE)


def squares(model):
    return RecursiveLeastSquares(model, trust_region_eps=0.5)


def mixed_filter(model):
    return KalmanAdapter(model, mixed=True)


# What is compared: the environment, what adapts, which part of the model, and options.
WAYS = {
    "choices": (CARTPOLE, gradients, "last_layer", SWITCHING),
    "torques": (PENDULUM, gradients, "last_layer", SWITCHING | {"make_core": double, "correction": OPEN}),
    "filter": (
        PENDULUM,
        KalmanAdapter,
        "action_map",
        SWITCHING | {"make_core": double, "correction": {"map_gate": 0.5}},
    ),
}
MORE_WAYS = {
    "nominal torques": (PENDULUM, gradients, "last_layer", {"task": {}}),
    "all layers": (CARTPOLE, gentle, "all", SWITCHING | {"online": {"loss_fn": nn.HuberLoss(delta=0.5)}}),
    "all layers of a state-space model": (
        PENDULUM, gentle, "all", SWITCHING | {"make_core": double_ssm, "correction": OPEN | EFFECT}
    ),
    "last layer of a state-space model": (CARTPOLE, gradients, "last_layer", SWITCHING | {"make_core": small_ssm}),
    "squares of choices": (CARTPOLE, squares, "last_layer", SWITCHING),
    "squares of torques": (
        PENDULUM, squares, "last_layer",
        SWITCHING | {"make_core": double, "correction": OPEN | {"regularisation": 0.0}},
    ),
    "seldom": (CARTPOLE, gradients, "last_layer", SWITCHING | {"online": {"every": 3, "warmup": 4, "window": 5}}),
    "each call anew": (CARTPOLE, squares, "last_layer", REVERSED | {"online": {"restore": "call", "window": 3}}),
    "never restored": (CARTPOLE, squares, "last_layer", SWITCHING | {"online": {"restore": "never"}}),
    "predictions": (
        CARTPOLE, gentle, "all",
        SWITCHING | {"online": {"observe_predictions": True, "leave_out": 0.5, "loss_fn": F.smooth_l1_loss}},
    ),
    "gradients on a map": (
        PENDULUM, gentle, "action_map", SWITCHING | {"online": {"loss_fn": nn.L1Loss(reduction="sum")}}
    ),
    "a mix": (PENDULUM, mixed_filter, "action_map", REVERSED | {"make_core": double, "correction": {"map_gate": 0.0}}),
}  # fmt: skip
ways = pytest.mark.parametrize("way", [*WAYS, *(pytest.param(way, marks=pytest.mark.slow) for way in MORE_WAYS)])


def make(way, make_both):
    env_id, adapter, adapts, options = (WAYS | MORE_WAYS)[way]
    return make_both(env_id, adapter, adapts, **options)


def replay(env, policy, bundle, num_steps):
    """Let a bundle see what a corrected environment shows: what it and the wrappers take and tell, step by step."""
    observation, _ = env.reset(seed=0)
    bundle.reset(seed=0)
    missed, adapted, told = False, None, None
    for i in range(num_steps):
        action = bundle.act(observation[: bundle.observation_dim], missed=missed)
        asked = bundle.info["correction"]["asked"]
        np.testing.assert_allclose(asked, policy.predict(observation, deterministic=True)[0], rtol=0, atol=1e-5)
        if adapted is not None:
            assert_nearly_equal(bundle.info["adaptation"], adapted, 1e-4)
        ours = bundle.info["correction"]
        if told is not None:
            assert_nearly_equal({name: ours[name] for name in ERRORS}, {name: told[name] for name in ERRORS}, 1e-4)
        observation, _, terminated, truncated, info = env.step(asked)
        told = info["correction"]
        yield action, ours, told, info["adaptation"]
        missed, adapted = info.get("restarted", False), info["adaptation"]
        if terminated or truncated or i == num_steps // 2:
            bundle.act(observation[: bundle.observation_dim])  # what the last step led to
            observation, _ = env.reset(seed=i)
            bundle.reset(seed=i)
            missed, adapted, told = False, None, None


def assert_nearly_equal(ours, theirs, tolerance):
    """Counts are equal, and numbers nearly so."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if isinstance(value, float):
            np.testing.assert_allclose(ours[name], value, rtol=tolerance, atol=tolerance, err_msg=name)
        else:
            assert ours[name] == value, name


@ways
def test_actions_are_those_of_the_wrappers(way, make_both):
    env, policy, bundle = make(way, make_both)
    gates, changes = set(), 0
    for action, ours, theirs, adaptation in replay(env, policy, bundle, 70):
        np.testing.assert_allclose(action, theirs["taken"], rtol=0, atol=1e-5)
        if theirs["effect"] is not None:  # as it is after a change
            np.testing.assert_allclose(ours["effect"], theirs["effect"], atol=1e-4)
        assert ours["gate_open"] == theirs["gate_open"]
        if not ours["gate_open"]:
            assert np.array_equal(action, ours["asked"])  # the policy's own, bit for bit
        assert env.action_space.contains(action)
        gates.add(ours["gate_open"])
        changes += adaptation["num_changes"]
    if way in WAYS:
        assert gates == {False, True}


class Slider(gym.Env):
    """A point that is pushed by the first of two motors, this way or the other; the second can do one thing only."""

    observation_space = spaces.Box(-9.0, 9.0, (2,))
    action_space = spaces.Box(np.array([-1.0, 0.5], np.float32), np.array([1.0, 0.5], np.float32))

    def __init__(self, task=None, sign=1.0):
        self.sign = sign

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.normal(size=2)
        return self.state.astype(np.float32), {}

    def step(self, action):
        self.state = 0.9 * self.state + self.sign * action[0] * np.array([1.0, 0.3])
        return self.state.astype(np.float32), 0.0, False, False, {}


class SliderInDouble(Slider):
    """The same, which shows more digits."""

    observation_space = spaces.Box(-9.0, 9.0, (2,), np.float64)

    def reset(self, **kwargs):
        super().reset(**kwargs)
        return self.state, {}

    def step(self, action):
        _, *others = super().step(action)
        return self.state, *others


class SliderOfChoices(Slider):
    """The same, which chooses 1 to 3."""

    action_space = spaces.Discrete(3, start=1)

    def step(self, action):
        return super().step(np.array([float(action) - 2.0]))


class SliderInVolts(Slider):
    """The same, whose motor takes 0 to 200."""

    action_space = spaces.Box(np.array([0.0, 0.5], np.float32), np.array([200.0, 0.5], np.float32))

    def step(self, action):
        return super().step((action - 100.0) / 100.0)


gym.register("robots/Slider-v0", Slider, disable_env_checker=True)
for kind in (SliderInVolts, SliderInDouble, SliderOfChoices):
    gym.register(f"robots/{kind.__name__}-v0", kind, disable_env_checker=True)


@pytest.mark.parametrize(
    ("adapter", "adapts"),
    [pytest.param(squares, "last_layer", marks=pytest.mark.slow), (KalmanAdapter, "action_map")],
)
@pytest.mark.parametrize("name", ["Slider", "SliderInVolts"])
def test_a_motor_that_can_do_one_thing_only_does_it(name, adapter, adapts, make_both):
    correction = {"gate": 0.5, "map_gate": 0.0, "prior_steps": 0.0, "exploration": 0.0}
    options = {"make_core": double, "correction": correction, "sign": -1.0}
    env, policy, bundle = make_both(f"robots/{name}-v0", adapter, adapts, **options)
    num_open = 0
    for action, ours, theirs, _ in replay(env, policy, bundle, 12):
        np.testing.assert_allclose(action, theirs["taken"], rtol=1e-5, atol=1e-5)
        assert ours["gate_open"] == theirs["gate_open"]
        assert action[1] == theirs["taken"][1] == 0.5
        num_open += ours["gate_open"]
    assert num_open > 3


@pytest.fixture
def bundle(make_both):
    return make_both(PENDULUM, gradients, correction=OPEN | {"gate": 0.5})[2]


def play(bundle, num_steps=20, **changes):
    """Actions on observations of a random stream, of which some are changed."""
    observations = np.random.default_rng(0).normal(size=(num_steps, 3)).astype(np.float32)
    for step, observation in changes.items():
        observations[int(step[1:])] = observation
    bundle.reset(seed=0)
    return [bundle.act(observation) for observation in observations]


def overflowing(env_id):
    """A policy whose last numbers are none for observations that are hardly numbers any more."""
    policy = PPO("MlpPolicy", env_id, seed=0, device="cpu", policy_kwargs={"activation_fn": nn.ReLU})
    for parameter in policy.policy.mlp_extractor.policy_net.parameters():
        parameter.data.mul_(2.0)
    policy.policy.action_net.weight.data.mul_(100.0)
    return policy


class TestBadSensor:
    @pytest.mark.parametrize("wrong", [[np.nan, 0.0, 0.0], [0.0, np.inf, 1.0], [-np.inf] * 3, [3e38, -3e38, 3e38]])
    def test_actions_are_finite_and_within_the_bounds(self, bundle, wrong):
        for action in play(bundle, t0=wrong, t5=wrong, t6=wrong, t12=wrong):
            assert action.shape == (1,)
            assert np.isfinite(action).all()
            assert (np.abs(action) <= 2.0).all()

    def test_the_policy_is_shown_what_was_seen_last(self, bundle):
        bundle.reset()
        bundle.act([1.0, 0.0, 0.5])
        asked = bundle.info["correction"]["asked"]
        action = bundle.act([np.nan, 0.0, np.inf])
        assert np.array_equal(action, asked)
        assert not bundle.info["correction"]["gate_open"]

    def test_nothing_is_learned_from_the_transitions_around_it(self, bundle):
        bundle.reset()
        for _ in range(3):
            bundle.act([1.0, 0.0, 0.5])
        before = bundle.info["adaptation"]
        bundle.act([np.nan, 0.0, 0.5])
        bundle.act([1.0, 0.0, 0.5])
        after = bundle.info["adaptation"]
        assert after["num_transitions"] == before["num_transitions"] == 2
        assert after["num_outliers"] == before["num_outliers"] + 2

    def test_a_policy_that_gives_no_number_does_again_what_it_did(self, bundle):
        bundle.reset()
        before = bundle.act([1.0, 0.0, 0.5])
        after = bundle.act([1e38, -1e38, 1e38])
        assert np.isfinite(after).all()
        assert before.shape == after.shape

    @pytest.mark.parametrize("wrong", [[3e38, 0.0, 3e38], [-3e38, 3e38, 0.0]])
    def test_it_does_so_as_it_was_taken_and_not_corrected_once_more(self, make_both, wrong):
        policy = overflowing(PENDULUM)
        correction = {"map_gate": 0.0, "exploration": 0.0, "regularisation": 0.5}
        bundle = make_both(PENDULUM, KalmanAdapter, "action_map", correction=correction, policy=policy)[2]
        bundle.reset()
        for _ in range(6):
            taken = bundle.act([1.0, 0.0, 0.5])
        report = bundle.info["correction"]
        assert report["gate_open"]
        assert not np.array_equal(report["asked"], taken)
        for _ in range(3):
            assert np.array_equal(bundle.act(wrong), taken)
            assert not bundle.info["correction"]["gate_open"]

    def test_a_choice_by_what_is_no_number_is_none(self, make_both):
        bundle = make_both(CARTPOLE, gradients, policy=overflowing(CARTPOLE))[2]
        for observation in np.random.default_rng(0).normal(size=(20, 4)):
            bundle.reset()
            before = bundle.act(observation)
            assert bundle.act([3e38, -3e38, 3e38, 3e38]) == before

    @pytest.mark.parametrize("wrong", [[0.0, 1.0], [[0.0, 1.0, 2.0]], 3.0, "left", None, ["a", "b", "c"]])
    def test_what_is_no_observation_is_refused(self, bundle, wrong):
        with pytest.raises(ValueError, match="observation must be 3 numbers; got"):
            bundle.act(wrong)


def test_a_robot_that_stands_still_learns_from_every_step(make_both):
    bundle = make_both(CARTPOLE, squares, online={"window": 3, "outlier_error": np.inf, "change_ratio": np.inf})[2]
    for _ in range(9):
        bundle.act([0.1, 0.0, 0.0, 0.0])
    assert bundle.info["adaptation"]["steps"] == 8


class TestMissedTick:
    def test_no_transition_leads_over_it(self, bundle):
        bundle.reset()
        bundle.act([1.0, 0.0, 0.5])
        bundle.act([0.9, 0.1, 0.4])
        bundle.act([-1.0, 0.0, 3.0], missed=True)
        assert bundle.info["adaptation"]["num_transitions"] == 1
        assert bundle.info["adaptation"]["error"] is None
        bundle.act([-1.0, 0.1, 2.9])
        assert bundle.info["adaptation"]["num_transitions"] == 2

    def test_a_refused_observation_is_one(self, bundle):
        bundle.reset()
        bundle.act([1.0, 0.0, 0.5])
        with pytest.raises(ValueError, match="Give that of one robot, without a dimension for rows"):
            bundle.act([[0.9, 0.1, 0.4]])
        bundle.act([-1.0, 0.0, 3.0])
        assert bundle.info["adaptation"]["num_transitions"] == 0
        bundle.act([-1.0, 0.1, 2.9])
        assert bundle.info["adaptation"]["num_transitions"] == 1

    def test_before_the_first_step_there_is_none_to_miss(self, bundle):
        bundle.reset()
        bundle.act([1.0, 0.0, 0.5], missed=True)
        assert bundle.info["adaptation"]["num_transitions"] == 0


def test_a_reset_forgets_all_and_one_seed_gives_one_course(make_both):
    bundle = make_both(PENDULUM, KalmanAdapter, "action_map", correction={"map_gate": 0.0})[2]
    first = play(bundle)
    assert bundle.info["correction"]["gate_open"]
    assert np.array_equal(play(bundle), first)


def test_a_bundle_that_was_given_no_seed_has_that_of_zero(make_both, tmp_path):
    options = {"observe_predictions": True, "leave_out": 0.5}
    make_both(CARTPOLE, gradients, online=options)

    def courses(seed):
        bundle = load_bundle(tmp_path / "robot.safetensors")
        if seed is not None:
            bundle.reset(seed=seed)
        for _ in range(12):
            yield bundle.info["adaptation"]["left_out"]
            bundle.reset()

    assert list(courses(None)) == list(courses(None)) == list(courses(0)) != list(courses(1))


@pytest.mark.parametrize("seed", [-1, 1.5, "a"])
def test_a_seed_is_a_whole_number(bundle, seed):
    with pytest.raises(ValueError, match="seed must be an int >= 0; got"):
        bundle.reset(seed=seed)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("warmup", 10**6, "warmup must be at most window"),
        ("clip", -1.0, "clip must be a number > 0"),
        ("leave_out", 7.0, r"leave_out must be a number in \[0, 1\]"),
    ],
)
def test_options_of_a_file_are_those_that_the_wrappers_take(make_both, tmp_path, name, value, message):
    make_both(CARTPOLE, gradients)
    described, weights = read_bundle(tmp_path / "robot.safetensors")
    described["online"][name] = value
    with pytest.raises(ValueError, match=message):
        Bundle(described, weights)


def test_numbers_that_come_back_do_not_change_by_what_is_done_to_them(bundle):
    expected = play(bundle)
    bundle.reset(seed=0)
    observations = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    for observation, action in zip(observations, expected, strict=True):
        given = observation.copy()
        taken = bundle.act(given)
        assert np.array_equal(taken, action)
        given[:] = taken[:] = 7.0


def assert_goes_on_alike(bundle, clone):
    """A copy goes on as the bundle does, and neither has an influence on the other."""
    observations = np.random.default_rng(0).normal(size=(12, bundle.observation_dim))
    for observation in observations[:6]:
        bundle.act(observation)
    twin = clone(bundle)
    told = twin.info["adaptation"]
    actions = [bundle.act(observation) for observation in observations]
    assert twin.info["adaptation"] == told  # whatever the bundle has learned since
    assert np.array_equal([twin.act(observation) for observation in observations], actions)
    assert twin.info == bundle.info
    assert twin.info["adaptation"]["distance"] > 0.0


@pytest.mark.each_value
@pytest.mark.parametrize(
    "clone",
    [copy.deepcopy, lambda bundle: pickle.loads(pickle.dumps(bundle))],  # noqa: S301 - our own
    ids=["deepcopy", "pickle"],
)
@pytest.mark.parametrize("way", ["choices", "filter", "squares of choices"])
def test_a_copy_goes_on_alike(way, clone, make_both):
    env_id, adapter, adapts, _ = (WAYS | MORE_WAYS)[way]
    online, correction = {"outlier_error": np.inf, "change_ratio": np.inf}, {"gate": 0.0, "map_gate": 0.0}
    assert_goes_on_alike(make_both(env_id, adapter, adapts, online=online, correction=correction)[2], clone)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [SAC, SSMPPO])
def test_other_policies_come_along(algorithm, make_both):
    env, _, _ = make_both(PENDULUM, KalmanAdapter, "action_map", **REVERSED)
    options = {"learning_starts": 1} if algorithm is SAC else {"policy_kwargs": {"ssm_kwargs": {"hidden_dim": 8}}}
    policy = algorithm("MlpPolicy" if algorithm is SAC else "SSMPolicy", env, seed=0, device="cpu", **options)
    env, policy, bundle = make_both(PENDULUM, KalmanAdapter, "action_map", policy=policy, **REVERSED)
    observation, _ = env.reset(seed=0)
    bundle.reset(seed=0)
    state, start = None, np.ones(1, dtype=bool)
    for _ in range(30):
        asked, state = policy.predict(observation, state, start, deterministic=True)
        start = np.zeros(1, dtype=bool)
        bundle.act(observation)
        np.testing.assert_allclose(bundle.info["correction"]["asked"], asked, atol=1e-5)
        observation, *_ = env.step(asked)
    assert_goes_on_alike(bundle, copy.deepcopy)


@pytest.mark.slow
def test_another_network_takes_numbers_of_the_type_of_the_observations(make_both):
    env_id, elu = "robots/SliderInDouble-v0", {"activation_fn": nn.ELU}
    policy = PPO("MlpPolicy", gym.make(env_id), seed=0, device="cpu", policy_kwargs=elu)
    policy.policy.action_net.weight.data.mul_(100.0)
    bundle = make_both(env_id, gradients, policy=policy)[2]
    for observation in np.random.default_rng(0).normal(size=(9, 2)):
        bundle.act(observation)
        asked, _ = policy.predict(observation, deterministic=True)
        np.testing.assert_allclose(bundle.info["correction"]["asked"], asked, atol=1e-5)


@pytest.mark.parametrize("activation", [nn.Tanh, pytest.param(nn.ELU, marks=pytest.mark.slow)])
def test_choices_are_counted_from_the_first_one(activation, make_both):
    env_id = "robots/SliderOfChoices-v0"
    env = gym.make(env_id)
    policy = PPO("MlpPolicy", env, seed=0, device="cpu", policy_kwargs={"activation_fn": activation})
    policy.policy.action_net.weight.data.mul_(100.0)
    bundle = make_both(env_id, gradients, policy=policy)[2]
    asked = set()
    for observation in 3.0 * np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32):
        bundle.act(observation)
        asked.add(int(bundle.info["correction"]["asked"]))
        assert bundle.info["correction"]["asked"] == 1 + policy.predict(observation, deterministic=True)[0]
    assert len(asked) > 1


@pytest.mark.slow
def test_a_policy_that_remembers_forgets_numbers_that_are_too_large(make_both):
    policy = SSMPPO("SSMPolicy", PENDULUM, seed=0, device="cpu", policy_kwargs={"ssm_kwargs": {"hidden_dim": 8}})
    for name, parameter in policy.policy.named_parameters():
        if "encoder.weight" in name:
            parameter.data.mul_(3.0)
    bundle = make_both(PENDULUM, gradients, policy=policy, correction={"gate": np.inf})[2]
    observations = np.random.default_rng(0).normal(size=(9, 3))
    bundle.reset()
    expected = [bundle.act(observation) for observation in observations]
    bundle.reset()
    taken = [bundle.act(observation) for observation in observations[:5]]
    assert np.array_equal(bundle.act([3e38, -3e38, 3e38]), taken[-1])
    taken += [bundle.act(observation) for observation in observations[5:]]
    assert np.array_equal(taken, expected)
    assert len({float(action[0]) for action in taken}) == 9


@pytest.mark.slow
def test_actions_of_a_file_of_any_network_are_within_the_bounds(make_both):
    env = gym.make("robots/Slider-v0")
    policy = SAC("MlpPolicy", env, seed=0, device="cpu", policy_kwargs={"activation_fn": nn.ELU})
    policy.policy.actor.mu.weight.data.mul_(1e5)
    env, _, bundle = make_both("robots/Slider-v0", gradients, policy=policy, correction={"gate": np.inf})
    for observation in np.random.default_rng(0).normal(size=(60, 2)):
        assert env.action_space.contains(bundle.act(observation))


def test_a_robot_needs_numpy_alone(make_both, tmp_path):
    bundle = make_both(CARTPOLE, gradients)[2]
    observations = np.random.default_rng(0).normal(size=(8, 4)).tolist()
    script = f"""if True:
        import sys
        for name in ("torch", "stable_baselines3", "gymnasium", "safetensors", "onnxruntime"):
            sys.modules[name] = None  # importing it raises an error
        from ssm_metarl_gym.bundle import load_bundle
        bundle = load_bundle(sys.argv[1])
        print(*(bundle.act(observation) for observation in {observations}))
        import ssm_metarl_gym
        try:
            ssm_metarl_gym.Task
        except ImportError as error:
            print(error)
    """
    command = [sys.executable, "-W", "error", "-c", script, str(tmp_path / "robot.safetensors")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert run.stderr == ""
    actions, message = run.stdout.splitlines()
    assert actions.split() == [str(bundle.act(observation)) for observation in observations]
    assert message.startswith("ssm_metarl_gym.Task needs Gymnasium, which is not installed.")
