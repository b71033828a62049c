import copy
import functools
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import nn

from ssm_metarl_gym.agents import AdaptationConfig, Adapter, DynamicsModel, KalmanAdapter
from ssm_metarl_gym.wrappers import ActionCorrection, OnlineAdaptation, VectorActionCorrection, VectorOnlineAdaptation
from ssm_metarl_gym.wrappers.action_maps import MapEstimates, undo_maps

REVERSED = [[0.0, -0.8], [1.2, 0.0]]  # swapped, one of them the other way round
MOVING = torch.tensor([True])
GRADIENTS = AdaptationConfig(
    lr=0.5, grad_clip_norm=np.inf, trust_region_eps=4.0, ema_decay=0.9, entropy_weight=0.0, max_steps_per_call=3
)


class Plane(gym.Env):
    """A point that moves by a hidden matrix times the action of some steps ago, and a little by itself, in doubles."""

    def __init__(self, matrix=((1.0, 0.0), (0.0, 1.0)), noise=0.01, delay=0):
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), dtype=np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (2,))
        self.matrix, self._noise, self.fails, self.bounded = np.array(matrix), noise, False, False
        self.offset, self._delay = np.zeros(2), delay

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._sent = [np.zeros(2)] * self._delay
        self._position = self.np_random.normal(size=2)
        return self._position.copy(), {}

    def step(self, action):
        noise = self._noise * self.np_random.normal(size=2)
        self._sent.append(np.clip(action, -1.0, 1.0) if self.bounded else action)
        self._position = self._position + self.matrix @ self._sent.pop(0) + self.offset + noise
        shown = np.where(self.fails, np.nan, self._position)
        return shown, 0.0, False, False, {}


def make_model(variance=1e-4):
    """``f(o, A u) = A u``, which is just what the plane does."""
    model = DynamicsModel(Plane().observation_space, Plane().action_space, nn.Identity(), adapts="action_map")
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]))
        model.head.bias.zero_()
    model.residual_variance.fill_(variance)
    return model


def make_plane(matrix, noise=0.01, length=100, delay=0):
    return gym.wrappers.TimeLimit(Plane(matrix, noise, delay), length)


def wrap(matrix, *, adapter=None, noise=0.01, length=100, delay=0, **options):
    adapter = KalmanAdapter(make_model()) if adapter is None else adapter
    return ActionCorrection(OnlineAdaptation(make_plane(matrix, noise, length, delay), adapter), **options)


def wrap_rows(matrices, mode=AutoresetMode.NEXT_STEP, length=100, delay=0, adapter=None, **options):
    makers = [functools.partial(make_plane, matrix, length=length, delay=delay) for matrix in matrices]
    envs = gym.vector.SyncVectorEnv(makers, autoreset_mode=mode)
    adapter = KalmanAdapter(make_model()) if adapter is None else adapter
    return VectorActionCorrection(VectorOnlineAdaptation(envs, adapter), **options)


def asked_actions(num_steps, seed=0):
    return np.random.default_rng(seed).uniform(-0.7, 0.7, (num_steps, 2)).astype(np.float32)


def reports_of(env, num_steps=30, seed=0):
    env.reset(seed=seed)
    return [env.step(action)[-1]["correction"] for action in asked_actions(num_steps)]


class TestClosedForm:
    @pytest.mark.parametrize("regularisation", [0.02, 0.5])
    def test_it_is_ridge_regression(self, regularisation):
        rng = np.random.default_rng(0)
        maps, wanted = rng.normal(size=(5, 3, 3)), 0.2 * rng.normal(size=(5, 3))
        found = undo_maps(torch.as_tensor(maps), torch.as_tensor(wanted), MOVING.repeat(3), regularisation).numpy()
        for matrix, goal, action in zip(maps, wanted, found, strict=True):
            # |A v - w|^2 + regularisation |v|^2
            rows = np.concatenate([matrix, regularisation**0.5 * np.eye(3)])
            v = np.linalg.lstsq(rows, np.concatenate([goal, np.zeros(3)]), rcond=None)[0]
            np.testing.assert_allclose(action, np.clip(v, -1.0, 1.0))

    def test_hand_computed(self):
        maps = torch.tensor([REVERSED, [[0.5, 0.0], [0.0, 0.0]]]).double()
        wanted = torch.tensor([[0.4, -0.6], [0.8, 0.8]]).double()
        # 0.8 wanted of a motor of half the strength is out of reach, and of one that is dead nothing is asked.
        expected = torch.tensor([[-0.5, -0.5], [1.0, 0.0]]).double()
        torch.testing.assert_close(undo_maps(maps, wanted, MOVING.repeat(2), 0.0), expected)

    @pytest.mark.parametrize("unknown", [np.nan, np.inf])
    def test_of_a_map_that_is_no_number_there_is_no_solution_and_of_the_others_there_is(self, unknown):
        maps = torch.tensor([[[unknown, 0.0], [0.0, 1.0]], REVERSED]).double()
        found = undo_maps(maps, torch.tensor([[0.4, -0.6]]).double(), MOVING.repeat(2), 0.0)
        assert found[0].isnan().all()
        torch.testing.assert_close(found[1], torch.tensor([-0.5, -0.5]).double())

    @pytest.mark.parametrize("regularisation", [0.0, 1e-9])
    def test_a_range_of_no_length_stays_where_it_is(self, regularisation):
        maps, wanted = torch.tensor([[[-2.0, 0.4], [0.0, 1.0]]]).double(), torch.tensor([[0.6, 0.5]]).double()
        found = undo_maps(maps, wanted, torch.tensor([True, False]), regularisation)
        torch.testing.assert_close(found, torch.tensor([[-0.3, 0.0]]).double())


class Scaled(gym.Wrapper):
    """The plane with actions in other units."""

    def __init__(self, env, low, high):
        super().__init__(env)
        self.action_space = spaces.Box(np.array(low), np.array(high), dtype=np.float64)
        self._middle, self._half = np.add(low, high) / 2, np.subtract(high, low) / 2

    def to_units(self, action):
        return self._middle + self._half * action

    def step(self, action):
        return self.env.step((action - self._middle) / self._half)


@pytest.mark.parametrize(("low", "high"), [((0.0, 0.0), (256.0, 256.0)), ((-1.0, -20.0), (1.0, 20.0))])
@pytest.mark.parametrize("matrix", [REVERSED, np.diag([-1.0, 1.0])], ids=["swapped", "reversed"])
def test_the_correction_is_the_same_in_any_units(low, high, matrix):
    env = Scaled(make_plane(matrix), low, high)
    model = DynamicsModel(env.observation_space, env.action_space, nn.Identity(), adapts="action_map")
    model.load_state_dict(make_model().state_dict())
    with torch.no_grad():  # the plane's model, for actions in these units
        model.input_shift[2:] = torch.tensor(env.to_units(np.zeros(2)))
        model.input_scale[2:] = torch.tensor(env.to_units(np.ones(2)) - env.to_units(np.zeros(2)))
    env = ActionCorrection(OnlineAdaptation(env, KalmanAdapter(model)))
    env.reset(seed=0)
    # A policy that asks for more than there is gets what there is.
    actions = 2.0 * asked_actions(30)
    reports = [env.step(env.env.env.to_units(action))[-1]["correction"] for action in actions]
    plain = wrap(matrix)
    plain.reset(seed=0)
    expected = [plain.step(action)[-1]["correction"] for action in np.clip(actions, -1.0, 1.0)]
    assert expected[-1]["gate_open"]
    for found, report in zip(reports, expected, strict=True):
        assert found["gate_open"] == report["gate_open"]
        if report["gate_open"]:
            np.testing.assert_allclose(found["taken"], env.env.env.to_units(report["taken"]), atol=2e-3 * np.max(high))


def test_whole_numbers_are_corrected_too():
    env = Scaled(make_plane(-np.eye(2)), (-100, -100), (100, 100))
    env.action_space = spaces.Box(-100, 100, (2,), dtype=np.int8)
    model = DynamicsModel(env.observation_space, env.action_space, nn.Identity(), adapts="action_map")
    model.load_state_dict(make_model().state_dict())
    model.input_scale[2:] = 100.0
    env = ActionCorrection(OnlineAdaptation(env, KalmanAdapter(model)))
    env.reset(seed=0)
    for action in 100.0 * asked_actions(15):
        report = env.step(action.astype(np.int8))[-1]["correction"]
    assert report["gate_open"]
    np.testing.assert_allclose(report["taken"], -report["asked"].astype(float), atol=4.0)


def test_actions_beyond_the_bounds_are_learned_from_as_the_bounds():
    actions = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    known = []
    for asked in (actions, np.clip(actions, -1.0, 1.0)):
        env = wrap(np.eye(2), map_gate=np.inf)
        env.env.env.env.bounded = True
        env.reset(seed=0)
        for action in asked:
            env.step(action)
        envs = wrap_rows([np.eye(2)] * 2, map_gate=np.inf)
        for one in envs.unwrapped.envs:
            one.unwrapped.bounded = True
        envs.reset(seed=0)
        for action in asked:
            *_, infos = envs.step(np.tile(action, (2, 1)))
        known += [env.env.adapter.state.mean[0], envs.env.adapter.state.mean[0]]
        assert infos["correction"]["reference_error"] == pytest.approx(1e-4, rel=1.0)
    torch.testing.assert_close(known[0], known[2], rtol=0.0, atol=0.0)
    torch.testing.assert_close(known[1], known[3], rtol=0.0, atol=0.0)


class TestGate:
    def test_where_nothing_is_hidden_the_asked_actions_pass_bit_for_bit(self):
        reports = reports_of(wrap(np.eye(2)), 60)
        assert not any(report["gate_open"] for report in reports)
        assert all(np.array_equal(report["asked"], report["taken"]) for report in reports)

    @pytest.mark.parametrize("mode", list(AutoresetMode))
    def test_observations_in_double_precision_stay_bit_for_bit(self, mode):
        def make(wrapped):
            make_one = functools.partial(gym.wrappers.TimeLimit, Plane(), 4)
            envs = gym.vector.SyncVectorEnv([make_one], autoreset_mode=mode)
            return (
                VectorActionCorrection(VectorOnlineAdaptation(envs, KalmanAdapter(make_model()))) if wrapped else envs
            )

        plain, wrapped = make(False), make(True)
        np.testing.assert_array_equal(plain.reset(seed=0)[0], wrapped.reset(seed=0)[0], strict=True)
        for action in asked_actions(3 if mode is AutoresetMode.DISABLED else 12):
            expected, *_, expected_infos = plain.step(action[None])
            observations, *_, infos = wrapped.step(action[None])
            np.testing.assert_array_equal(observations, expected, strict=True)
            if "final_obs" in expected_infos:
                np.testing.assert_array_equal(infos["final_obs"][0], expected_infos["final_obs"][0], strict=True)

    @pytest.mark.parametrize("matrix", [REVERSED, [[1.0, 0.0], [0.0, 0.6]]])
    def test_a_hidden_map_is_undone_after_a_few_steps(self, matrix):
        reports = reports_of(wrap(matrix, regularisation=0.0))
        assert not reports[0]["gate_open"]
        for report in reports[5:]:
            assert report["gate_open"]
            np.testing.assert_allclose(
                np.clip(np.linalg.solve(matrix, report["asked"]), -1, 1), report["taken"], atol=0.1
            )

    @pytest.mark.parametrize("name", ["gate", "map_gate"])
    def test_it_corrects_nothing_where_it_is_infinite(self, name):
        assert not any(report["gate_open"] for report in reports_of(wrap(REVERSED, **{name: np.inf})))


def test_a_change_is_told_by_the_filter_alone_which_keeps_its_map():
    env = wrap(np.eye(2))
    reports_of(env)
    env.unwrapped.matrix = np.array(REVERSED)
    *_, info = [env.step(action)[-1] for action in asked_actions(8, seed=1)]
    assert env.env.adapter.stats.covariance_resets == 1
    assert info["adaptation"]["num_changes"] == 0
    assert info["adaptation"]["num_transitions"] == 16  # of the window, which was not cleared
    np.testing.assert_allclose(env.env.model.action_map.detach(), REVERSED, atol=0.1)


def test_an_offset_is_undone():
    env = wrap(np.diag([-0.8, 1.0]), regularisation=0.0)
    env.unwrapped.offset = np.array([0.1, -0.15])
    for report in reports_of(env)[5:]:
        expected = (report["asked"] - [0.1, -0.15]) / [-0.8, 1.0]
        np.testing.assert_allclose(np.clip(expected, -1, 1), report["taken"], atol=0.1)


def test_of_a_mix_that_is_known_to_be_one_a_correction_takes_what_the_filter_expects():
    env = wrap([[0.6, -0.8], [0.8, 0.6]], adapter=KalmanAdapter(make_model(), mixed=True), regularisation=0.0)
    for report in reports_of(env)[4:]:
        expected = np.linalg.solve([[0.6, -0.8], [0.8, 0.6]], report["asked"])
        np.testing.assert_allclose(np.clip(expected, -1, 1), report["taken"], atol=0.1)
    adapter = env.env.adapter
    torch.testing.assert_close(MapEstimates.of(adapter).maps.flatten(), adapter.state.mean[0, :4])


def test_where_a_motor_dies_the_other_one_does_what_was_asked():
    env = wrap(np.eye(2), regularisation=0.001)
    reports_of(env)
    env.unwrapped.matrix = np.diag([0.0, -0.7])
    reports = [env.step(action)[-1]["correction"] for action in asked_actions(20, seed=1)]
    for report in reports[4:]:
        assert report["gate_open"]
        np.testing.assert_allclose(np.clip(report["asked"][1] / -0.7, -1, 1), report["taken"][1], atol=0.1)


def test_what_no_map_explains_is_left_alone():
    reports = reports_of(wrap(np.eye(2), noise=0.05), 60)  # 25 times the variance that the model reckons with
    assert np.mean([report["gate_open"] for report in reports]) < 0.2


class TestDelays:
    def test_motors_that_are_late_and_no_more_are_left_alone(self):
        env = wrap(np.eye(2), adapter=KalmanAdapter(make_model(), largest_delay=2), delay=2)
        for report in reports_of(env, num_steps=15):
            assert not report["gate_open"]
            np.testing.assert_array_equal(report["taken"], report["asked"])
        # Without the option they are taken for a map.
        assert any(report["gate_open"] for report in reports_of(wrap(np.eye(2), delay=2), num_steps=15))

    def test_a_map_of_late_motors_is_undone(self):
        env = wrap(REVERSED, adapter=KalmanAdapter(make_model(), largest_delay=2), delay=1, exploration=0.0)
        for report in reports_of(env, num_steps=18)[12:]:
            np.testing.assert_allclose(REVERSED @ report["taken"], report["asked"], atol=0.05)


class TestExploration:
    def test_there_is_noise_until_the_map_is_known(self):
        noisy, plain = (reports_of(wrap(REVERSED, exploration=size)) for size in (0.2, 0.0))
        taken = [np.stack([report["taken"] for report in reports]) for reports in (noisy, plain)]
        differs = np.abs(taken[0] - taken[1]).max(axis=1)
        assert differs[:3].max() > 0.02
        # Both know the map by now, each from its own transitions.
        assert differs[10:].max() < 0.02

    def test_without_variance_or_without_a_correction_there_is_none(self):
        for options in ({"map_gate": np.inf}, {"adapter": Adapter(make_model(), GRADIENTS)}):
            one, two = (reports_of(wrap(REVERSED, exploration=size, **options)) for size in (0.2, 0.0))
            for noisy, plain in zip(one, two, strict=True):
                np.testing.assert_array_equal(noisy["taken"], plain["taken"])

    def test_it_is_seeded_by_the_reset(self):
        env = wrap(REVERSED, exploration=0.2, noise=0.0)  # so that nothing else depends on the seed
        runs = [np.stack([report["taken"] for report in reports_of(env, seed=seed)]) for seed in (0, 0, 1)]
        np.testing.assert_array_equal(runs[0], runs[1])
        assert not np.array_equal(runs[0], runs[2])

    def test_the_seed_of_some_rows_leaves_the_noise_of_the_others(self):
        envs = wrap_rows([REVERSED, REVERSED], AutoresetMode.DISABLED, exploration=0.2, map_gate=0.0)
        envs.reset(seed=0)
        actions = np.tile(asked_actions(1)[0], (2, 1))
        envs.step(actions)
        twins = copy.deepcopy(envs)
        mask = np.array([True, False])
        envs.reset(seed=0, options={"reset_mask": mask})
        twins.reset(options={"reset_mask": mask})
        taken = []
        for each in (envs, twins):
            rows = [each.step(actions)[-1]["correction"]["taken"] for _ in range(2)]
            taken.append(np.stack(rows))
        np.testing.assert_array_equal(taken[0][:, 1], taken[1][:, 1])
        assert not np.array_equal(taken[0][:, 0], taken[1][:, 0])


@pytest.mark.each_value
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize(("length", "delay"), [(2, 0), (12, 1)])
def test_every_row_is_that_of_a_single_wrapper(mode, length, delay):
    """Also in later episodes: the noise of a row is drawn for its own steps, late commands are of the same episode."""
    matrices = [REVERSED, [[-1.0, 0.0], [0.0, 1.0]], np.eye(2)]
    options = {"exploration": 0.2, "map_gate": 0.0, "length": length, "delay": delay}
    options["adapter"] = KalmanAdapter(make_model(), largest_delay=delay)
    envs = wrap_rows(matrices, mode=mode, **options)
    envs.reset(seed=3)
    rows, begins = [], False
    for action in asked_actions(30):
        *_, truncations, infos = envs.step(np.tile(action, (3, 1)))
        if begins and mode is AutoresetMode.NEXT_STEP:
            assert not infos["correction"]["gate_open"].any()
            np.testing.assert_array_equal(infos["correction"]["taken"], infos["correction"]["asked"])
        else:
            rows.append(infos["correction"])
        begins = truncations.all() and not begins
    for i, matrix in enumerate(matrices):
        single = wrap(matrix, **options)
        single.reset(seed=3 + i)
        for report in rows:
            *_, truncated, info = single.step(report["asked"][i])
            assert report["gate_open"][i] == info["correction"]["gate_open"]
            np.testing.assert_allclose(report["taken"][i], info["correction"]["taken"], atol=1e-4)
            if truncated:
                single.reset()


def test_gradient_steps_on_the_map_open_the_gate_of_the_predictions():
    reports = reports_of(wrap(REVERSED, adapter=Adapter(make_model(), GRADIENTS), regularisation=0.0), 60)
    assert not reports[0]["gate_open"]
    assert reports[-1]["gate_open"]
    np.testing.assert_allclose(REVERSED @ reports[-1]["taken"], reports[-1]["asked"], atol=0.15)


def test_the_map_of_the_source_is_what_the_policy_knows():
    model = make_model()
    with torch.no_grad():
        model.action_map.copy_(torch.tensor(REVERSED))
    reports = reports_of(wrap(REVERSED, adapter=KalmanAdapter(model)))
    assert not any(report["gate_open"] for report in reports)


def test_a_reference_with_a_map_is_met_in_closed_form_and_any_other_by_search():
    reference = make_model()
    with torch.no_grad():
        reference.action_map.copy_(-torch.eye(2))
    search = DynamicsModel(Plane().observation_space, Plane().action_space, nn.Identity())
    with torch.no_grad():
        search.head.weight.copy_(torch.tensor([[0.0, 0.0, -1.0, 0.0], [0.0, 0.0, 0.0, -1.0]]))
        search.head.bias.zero_()
    for given in (reference, search):
        reports = reports_of(wrap(REVERSED, reference=given, effect_gate=np.inf, regularisation=0.0))
        np.testing.assert_allclose(REVERSED @ reports[-1]["taken"], -reports[-1]["asked"], atol=0.1)


@pytest.mark.parametrize("env", [wrap(REVERSED), wrap_rows([REVERSED, np.eye(2)])], ids=["one", "rows"])
def test_copies_go_on_alike(env):
    env.reset(seed=0)
    env.step(env.action_space.sample())
    actions = [env.action_space.sample() for _ in range(3)]
    runs = [
        [twin.step(action)[-1]["correction"]["taken"] for action in actions]
        for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env)), env)  # noqa: S301
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0], runs[2])


def test_a_row_that_asks_for_nan_does_not_spoil_the_others():
    envs = wrap_rows([REVERSED, REVERSED], exploration=0.0)
    envs.reset(seed=0)
    for action in asked_actions(10):
        envs.step(np.tile(action, (2, 1)))
    # A sensor fails, and the policy makes of it what it may.
    envs.unwrapped.envs[0].unwrapped.fails = True
    envs.step(np.full((2, 2), 0.4, dtype=np.float32))
    *_, infos = envs.step(np.array([[np.nan, np.nan], [0.4, 0.4]], dtype=np.float32))
    report = infos["correction"]
    assert report["gate_open"].tolist() == [False, True]
    np.testing.assert_allclose(REVERSED @ report["taken"][1], [0.4, 0.4], atol=0.05)


def test_where_a_map_has_come_to_what_is_no_number_the_gate_counts_as_closed():
    env = wrap(REVERSED, adapter=Adapter(make_model(), GRADIENTS), gate=0.0)
    assert reports_of(env, 5)[-1]["gate_open"]
    with torch.no_grad():
        env.env.adapter.model.action_map.fill_(np.inf)
    action = np.array([0.4, -0.2], dtype=np.float32)
    report = env.step(action)[-1]["correction"]
    assert not report["gate_open"]
    np.testing.assert_array_equal(report["taken"], action)


@pytest.mark.parametrize(
    "adapter",
    [KalmanAdapter(make_model(), largest_delay=1), Adapter(make_model(), GRADIENTS)],
    ids=["kalman", "gradients"],
)
def test_a_saved_correction_goes_on_alike(tmp_path, adapter):
    env = wrap(REVERSED, adapter=adapter)
    env.save(tmp_path / "correction.pt")
    again = ActionCorrection.load(tmp_path / "correction.pt", Plane(REVERSED), core=nn.Identity())
    for one, two in zip(reports_of(env), reports_of(again), strict=True):
        np.testing.assert_array_equal(one["taken"], two["taken"])
        assert one["gate_open"] == two["gate_open"]


class TestRefuses:
    def test_a_model_without_a_map_and_without_a_reference(self):
        model = DynamicsModel(Plane().observation_space, Plane().action_space, nn.Identity())
        with pytest.raises(
            ValueError, match=r"needs a DynamicsModel as reference; got NoneType.*action map needs none"
        ):
            wrap(REVERSED, adapter=Adapter(model, GRADIENTS))

    @pytest.mark.parametrize("name", ["map_gate", "exploration", "regularisation"])
    def test_options_outside_their_range(self, name):
        with pytest.raises(ValueError, match=f"{name} must be a"):
            wrap(REVERSED, **{name: -1.0})


class TestAskedActions:
    """What policies may ask for beside numbers of the type of the space, within its bounds."""

    @pytest.mark.parametrize("make", [wrap, lambda matrix: wrap_rows([matrix])])
    def test_whole_numbers_are_corrected_as_the_same_numbers_with_a_point_are(self, make):
        taken = []
        for kind in (np.int64, np.float32):
            env = make(-0.8 * np.eye(2))
            env.reset(seed=0)
            infos = [
                env.step(np.reshape([action], env.action_space.shape).astype(kind))[-1] for action in [[1, 0]] * 20
            ]
            taken.append(np.ravel(infos[-1]["correction"]["taken"]))
        np.testing.assert_array_equal(*taken)
        assert taken[0][0] < -0.9

    def test_what_is_beyond_the_bounds_is_what_the_bound_does(self):
        env = wrap(np.diag([1.5, 1.5]), exploration=0.0, regularisation=1e-6)
        reports_of(env)
        for _ in range(3):
            report = env.step(np.float32([3.0, 0.0]))[-1]["correction"]
        assert report["asked"].tolist() == [3.0, 0.0]
        assert report["taken"] == pytest.approx([1.0 / 1.5, 0.0], abs=0.05)


def test_a_file_from_before_the_offset_is_refused_by_its_format(tmp_path):
    wrap(REVERSED).save(tmp_path / "new.pt")
    state = torch.load(tmp_path / "new.pt", weights_only=True)
    torch.save(state | {"format": "correction 1"}, tmp_path / "old.pt")
    with pytest.raises(ValueError, match="in format correction 2; it is not"):
        ActionCorrection.load(tmp_path / "old.pt", make_plane(REVERSED))
