import copy
import dataclasses
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.agents import AdaptationConfig, Adapter, DynamicsModel, KalmanAdapter, RecursiveLeastSquares
from ssm_metarl_gym.agents.adaptation.recursive_rows import RecursiveRows, make_adapter_rows
from ssm_metarl_gym.agents.adaptation.rows import AdapterRows
from ssm_metarl_gym.wrappers import OnlineAdaptation, VectorOnlineAdaptation

N, K = 4, 5
MSE = nn.MSELoss()


def make_kalman(**options):
    core = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
    model = DynamicsModel(spaces.Box(-9.0, 9.0, (3,)), spaces.Box(-1.0, 1.0, (2,)), core, adapts="action_map")
    model.residual_variance.fill_(0.05)
    return KalmanAdapter(model, **options)


ADAPTERS = {"least squares": lambda: RecursiveLeastSquares(nn.Linear(5, 3)), "kalman": make_kalman}
each = pytest.mark.parametrize("make", ADAPTERS.values(), ids=ADAPTERS)


class Windows:
    """Windows of N rows as the wrappers keep them: the newest transition takes the place of the oldest."""

    def __init__(self):
        self.batch = {"states": torch.zeros(N, K, 5), "targets": torch.zeros(N, K, 3)}
        self.arrivals = torch.zeros(N, K, dtype=torch.int64)
        self.mask = torch.zeros(N, K, dtype=torch.bool)
        self.places = [0] * N
        self.ordered = [[] for _ in range(N)]

    def add(self, row, transition=None):
        transition = transition or (torch.randn(5), torch.randn(3))
        place = self.places[row] % K
        self.batch["states"][row, place], self.batch["targets"][row, place] = transition
        self.arrivals[row, place] = self.places[row]
        self.mask[row, place] = True
        self.places[row] += 1
        self.ordered[row] = [*self.ordered[row], transition][-K:]

    def clear(self, row):
        self.mask[row] = False
        self.ordered[row] = []

    def of(self, row):
        states, targets = zip(*self.ordered[row], strict=True)
        return {"states": torch.stack(states), "targets": torch.stack(targets)}

    def with_arrivals(self):
        return self.batch | {"arrivals": self.arrivals}

    def of_with_arrivals(self, row):
        newest = self.places[row]
        return self.of(row) | {"arrivals": torch.arange(newest - len(self.ordered[row]), newest)}


def assert_same(rows, single, index):
    own = {name: value[index].item() for name, value in vars(rows.stats).items()}
    assert own == pytest.approx(dataclasses.asdict(single.stats), rel=1e-4, abs=1e-5, nan_ok=True)
    states = torch.randn(N, 2, 5)
    with torch.no_grad():
        torch.testing.assert_close(rows.predict(states)[index], single.model(states[index]), rtol=1e-4, atol=1e-5)


@pytest.mark.each_value
@each
@pytest.mark.parametrize("loss_fn", [MSE, lambda prediction, target: (prediction - target).abs().amax()])
def test_every_row_does_what_an_adapter_does(make, loss_fn):
    adapter, windows = make(), Windows()
    rows, singles = RecursiveRows(adapter, N), [copy.deepcopy(adapter) for _ in range(N)]
    for step in range(14):
        # Row 1 stands still now and then, row 2 starts anew, row 3 is asked every third step only.
        for row in range(N):
            if row != 1 or step % 3:
                windows.add(row)
        if step == 8:
            windows.clear(2)
            windows.add(2)
            rows.reset(torch.arange(N) == 2)
            singles[2].reset()
        asked = torch.tensor([True, True, True, step % 3 == 2]) & windows.mask.any(1)
        losses = rows.adapt(loss_fn, windows.batch, mask=windows.mask, rows=asked)
        for row in range(N):
            if asked[row]:
                assert losses[row].item() == pytest.approx(singles[row].adapt(loss_fn, windows.of(row)), rel=1e-4)
            else:
                assert math.isnan(losses[row])
    for row, single in enumerate(singles):
        assert_same(rows, single, row)


@each
def test_a_row_that_went_back_takes_its_window_in_once_more_in_its_order(make):
    adapter, windows = make(), Windows()
    rows = RecursiveRows(adapter, N)
    for _ in range(K + 2):
        for row in range(N):
            windows.add(row)
        rows.reset()
        rows.adapt(MSE, windows.batch, mask=windows.mask)
    for row in range(N):
        single = copy.deepcopy(adapter)
        single.adapt(MSE, windows.of(row))
        states = torch.randn(N, 1, 5)
        with torch.no_grad():
            torch.testing.assert_close(rows.predict(states)[row], single.model(states[row]), rtol=1e-4, atol=1e-5)


def test_rows_that_have_seen_nothing_stay_at_the_source_while_others_adapt():
    adapter, windows = make_kalman(mixed=True), Windows()  # of a mix it expects something else than the source
    rows, singles = RecursiveRows(adapter, N), [copy.deepcopy(adapter) for _ in range(N)]
    for row in (0, 2):
        windows.add(row)
    rows.adapt(MSE, windows.batch, mask=windows.mask, rows=torch.tensor([True, True, False, False]))
    singles[0].adapt(MSE, windows.of(0))
    singles[1].adapt(MSE, {"states": torch.empty(0, 5), "targets": torch.empty(0, 3)})
    assert rows.stats.distance.gt(0.0).tolist() == [True, False, False, False]
    for row, single in enumerate(singles):
        assert_same(rows, single, row)


@each
@pytest.mark.parametrize("period", [1, K, 2])
def test_what_comes_again_and_again_counts_each_time_by_its_arrival(make, period):
    adapter, windows = make(), Windows()
    rows, single = RecursiveRows(adapter, N), copy.deepcopy(adapter)
    transitions = [(torch.randn(5), torch.randn(3)) for _ in range(period)]
    for step in range(2 * K + 1):
        for row in range(N):
            windows.add(row, transitions[step % period])
        for _ in range(2):  # what is given twice counts once
            rows.adapt(MSE, windows.with_arrivals(), mask=windows.mask)
            single.adapt(MSE, windows.of_with_arrivals(0))
    assert rows.stats.steps.tolist() == [2 * K + 1] * N
    assert_same(rows, single, 0)


def test_a_whole_window_of_new_transitions_is_taken_in_in_the_order_in_which_they_came():
    adapter, windows = RecursiveLeastSquares(nn.Linear(5, 3), forgetting=0.5), Windows()
    rows, single = RecursiveRows(adapter, N), copy.deepcopy(adapter)
    for _ in range(3):
        for _ in range(K + 2):
            for row in range(N):
                windows.add(row)
        rows.adapt(MSE, windows.with_arrivals(), mask=windows.mask)
        single.adapt(MSE, windows.of_with_arrivals(0))
    assert_same(rows, single, 0)


class Turning(gym.Env):
    """A wheel that turns by one of so many steps each time, whatever is done, and shows the same again and again."""

    observation_space, action_space = spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(2)

    def __init__(self, num_steps=1):
        self.num_steps = num_steps

    def reset(self, *, seed=None, options=None):
        self.place = 0
        return self.show(), {}

    def step(self, action):
        self.place = (self.place + 1) % self.num_steps
        return self.show(), 0.0, False, False, {}

    def show(self):
        angle = 2.0 * np.pi * self.place / self.num_steps
        return np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)


@pytest.mark.parametrize("period", [1, 2, 4])
@pytest.mark.parametrize("restore", ["episode", "never"])
def test_wrappers_count_what_comes_again_and_again_each_time(period, restore):
    model = DynamicsModel(Turning.observation_space, Turning.action_space, nn.Linear(4, 3))
    adapter, options = RecursiveLeastSquares(model), {"window": 4, "change_ratio": np.inf, "restore": restore}
    env = OnlineAdaptation(Turning(period), adapter, **options)
    envs = gym.vector.SyncVectorEnv([lambda: Turning(period)] * 2)
    envs = VectorOnlineAdaptation(envs, adapter, **options)
    for episode in range(2):
        env.reset(seed=0)
        envs.reset(seed=0)
        before = 9 * episode * (restore == "never")
        for step in range(9):
            report, reports = env.step(0)[-1]["adaptation"], envs.step([0, 0])[-1]["adaptation"]
            assert report["steps"] == before + step + 1
            assert reports["steps"].tolist() == [before + step + 1] * 2
            assert reports["loss"] == pytest.approx([report["loss"]] * 2, rel=1e-3, abs=1e-6)


@each
def test_the_adapter_stays_as_it_is_and_what_is_not_finite_is_left_out(look, make):
    adapter, windows = make(), Windows()
    before = look(adapter.model)
    rows = make_adapter_rows(adapter, N)
    assert isinstance(rows, RecursiveRows)
    for row in range(N):
        windows.add(row)
    windows.batch["targets"][1, 0, 2] = math.nan
    losses = rows.adapt(MSE, windows.batch, mask=windows.mask)
    assert losses.isnan().tolist() == [False, True, False, False]
    assert rows.stats.steps.tolist() == [1, 0, 1, 1]
    assert rows.stats.rejected_steps.tolist() == [0, 1, 0, 0]
    assert rows.stats.distance[1] == 0.0
    assert look(adapter.model) == before


def test_rows_of_gradient_steps_are_as_they_were():
    config = AdaptationConfig(0.1, 1.0, 1.0, 0.9, 0.0, 1)
    assert type(make_adapter_rows(Adapter(nn.Linear(2, 1), config), 3)) is AdapterRows


@pytest.mark.each_value
@each
@pytest.mark.parametrize("options", [{}, {"every": 3, "warmup": 2}, {"restore": "call"}], ids=str)
def test_the_wrapper_of_many_rows_is_that_of_each(make, options):
    env_id = "ssm_metarl/PendulumPolarity-v0"
    env = gym.make(env_id)
    if make is ADAPTERS["kalman"]:
        core = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
        model = DynamicsModel(env.observation_space, env.action_space, core, adapts="action_map")
        model.residual_variance.fill_(0.5)
        adapter = KalmanAdapter(model)
    else:
        adapter = RecursiveLeastSquares(DynamicsModel(env.observation_space, env.action_space))
    options = {"window": 4, "outlier_error": 1e3, "change_ratio": 1e3, **options}
    envs = VectorOnlineAdaptation(gym.make_vec(env_id, num_envs=3), adapter, **options)
    singles = [OnlineAdaptation(gym.make(env_id), adapter, **options) for _ in range(3)]
    observations, _ = envs.reset(seed=5)
    tasks, states = envs.unwrapped.tasks, envs.unwrapped.state
    for row, single in enumerate(singles):
        single.reset(options={"task": tasks[row], "state": states[row]})
    rng = np.random.default_rng(0)
    for _ in range(12):
        actions = rng.uniform(-1.0, 1.0, (3, 1)).astype(np.float32)
        observations, *_, infos = envs.step(actions)
        for row, single in enumerate(singles):
            own, *_, info = single.step(actions[row])
            np.testing.assert_array_equal(own, observations[row])
            for name, value in info["adaptation"].items():
                expected = math.nan if value is None else value
                assert infos["adaptation"][name][row] == pytest.approx(expected, rel=2e-3, abs=1e-4, nan_ok=True), name
