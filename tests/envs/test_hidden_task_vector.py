import copy
import pickle
import random
import tracemalloc
from itertools import chain

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector as wrappers

from ssm_metarl_gym import CartPoleTask, PendulumTask, TaskBatch, TaskDistribution, TaskSet, Uniform
from ssm_metarl_gym.tasks.classic import PointNavigationTask
from ssm_metarl_gym.tasks.families import FAMILIES, SPLITS
from ssm_metarl_gym.wrappers import (
    HistoryWindow,
    TransitionObservation,
    VectorHistoryWindow,
    VectorTransitionObservation,
)

SIGNED = [name for name, family in FAMILIES.items() if family.task_type in (CartPoleTask, PendulumTask)]
# One family of each class, in which signs differ; of the defaults of each id tells test_registration.
CLASSES = ["CartPolePolarity", "PendulumPolarity", "PointNavigation"]
MODES = [mode.value for mode in AutoresetMode]
NUM_ENVS = 3
EVERY_STEP = {"switch": {"probability": 1.0}}

each_class = pytest.mark.parametrize("family", CLASSES)
each_signed_class = pytest.mark.parametrize("family", CLASSES[:2])
each_physics = pytest.mark.parametrize("family", ["CartPole", "Pendulum", "PointNavigation"])
each_signed_physics = pytest.mark.parametrize("family", ["CartPole", "Pendulum"])
each_mode = pytest.mark.parametrize("mode", MODES)
each_copy = pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))],  # noqa: S301
    ids=["deepcopy", "pickle"],
)


def possible(family, kwargs):
    """The arguments, without a switch where tasks have no sign to flip."""
    return kwargs if family in SIGNED else kwargs | {"switch": None}


def another_task(family):
    """Parameters that no default task has."""
    return {"polarity": -1} if family in SIGNED else {"goal_x": -0.3}


def make(family, num_envs=NUM_ENVS, /, **kwargs):
    return gym.make_vec(f"ssm_metarl/{family}-v0", num_envs, **kwargs)


def own(env):
    """The tasks and the states that govern the next step, as plain numbers."""
    return list(env.unwrapped.tasks), env.unwrapped.state.tolist()


def sample(env, num_steps, seed=0):
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(num_steps)]


def play(env, num_steps, seed=None, action_seed=0):
    """All that random actions give back, after a reset where there is a seed; what ended is reset by whoever must."""
    history = [] if seed is None else [env.reset(seed=seed)]
    for actions in sample(env, num_steps, action_seed):
        history.append(env.step(actions))
        ended = history[-1][2] | history[-1][3]
        if env.unwrapped.autoreset_mode is AutoresetMode.DISABLED and ended.any():
            history.append(env.reset(options={"reset_mask": ended}))
    return copy.deepcopy(history)


def starts(env, num_episodes, **kwargs):
    """The tasks and the states at the start of a few episodes, of which only the first one is given the arguments."""
    history = []
    for episode in range(num_episodes):
        env.reset(**kwargs if episode == 0 else {})
        history.append(own(env))
    return [list(column) for column in zip(*history, strict=True)]


def arrays(infos):
    """All arrays in infos, however deep."""
    return [array for value in infos.values() for array in (arrays(value) if isinstance(value, dict) else [value])]


def ends(history):
    return np.array([step[2] | step[3] for step in history if len(step) == 5])


class TestEqualToSingleEnvironments:
    @pytest.mark.each_value
    @each_class
    @each_mode
    @pytest.mark.parametrize(
        "kwargs",
        [
            {"switch": None, "on_failure": "terminate"},
            {"switch": None, "context": "visible", "split": "extrapolation"},
            {"switch": {"step": [1, 4, 9]}, "context": "visible", "on_failure": "restart"},
            pytest.param({"switch": {"step": 7}, "on_failure": "terminate"}, marks=pytest.mark.slow),
            pytest.param({"switch": {"probability": 1.0}, "context": "visible"}, marks=pytest.mark.slow),
        ],
    )
    def test_in_every_result(self, family, mode, kwargs, leader_and_rows, play_both, assert_same):
        kwargs = possible(family, kwargs)
        env, rows = leader_and_rows(
            f"ssm_metarl/{family}-v0", NUM_ENVS, autoreset_mode=mode, max_episode_steps=12, **kwargs
        )
        assert env.observation_space == rows.observation_space
        assert env.single_observation_space == rows.single_observation_space
        assert env.action_space == rows.action_space
        # Two poles fall in the first step.
        falling = {"state": [[0.0, 0.0, 0.2, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, -0.2, -1.0]]}
        history = play_both(env, rows, 36, options=falling if "CartPole" in family else {})
        states = np.array([row.unwrapped.state for row in rows.envs])
        assert_same(env.unwrapped.state, states)
        # All that can happen did.
        assert ends(history).any(axis=0).all()
        assert all(env.observation_space.contains(observations) for observations, *_ in history)
        assert any("final_obs" in step[-1] for step in history) == (mode == "SameStep")
        trial = kwargs.get("on_failure", "restart" if family in ("CartPolePolarity", "CartPoleSwitch") else "no")
        falls = sum(np.count_nonzero(step[-1].get("restarted", False)) for step in history)
        assert (falls > 0) == (trial == "restart" and "CartPole" in family)
        if family not in SIGNED:
            return
        signs = [step[-1]["task_params"]["polarity"] for step in history if len(step) == 5]
        assert np.any(np.diff(signs, axis=0)) == (
            kwargs["switch"] is not None or "Polarity" in family or "Switch" in family
        )

    @each_mode
    def test_where_a_trial_is_cut_off_by_the_step_that_falls(self, mode, leader_and_rows, assert_same):
        env, rows = leader_and_rows("ssm_metarl/CartPolePolarity-v0", 2, autoreset_mode=mode, max_episode_steps=1)
        falling = np.array([[0.0, 0.0, 0.25, 0.0], [0.0, 0.0, 0.0, 0.0]])
        for each in (env, rows):
            each.reset(seed=0, options={"state": falling} if each is env else {})
        result = env.step(np.array([0, 0]))
        assert_same(result, rows.step(np.array([0, 0])))
        _, rewards, terminations, truncations, infos = result
        assert rewards.tolist() == [-9.0, 1.0]
        assert (terminations.tolist(), truncations.tolist()) == ([False, False], [True, True])
        if mode == "SameStep":
            assert infos["final_info"]["restarted"].tolist() == [True, False]
            assert infos["restarted"].tolist() == [False, False]
        else:
            assert infos["restarted"].tolist() == [True, False]

    @each_signed_class
    def test_where_the_sign_flips_at_random_steps(self, family, assert_same):
        env = make(family, switch={"probability": 0.3}, max_episode_steps=None, on_failure="terminate")
        rows = [gym.make(f"ssm_metarl/{family}-v0", switch=None, on_failure="terminate") for _ in range(NUM_ENVS)]
        env.reset(seed=0)
        for row, task, state in zip(rows, *own(env), strict=True):
            row.reset(options={"task": task, "state": state})
        num_flips = 0
        for actions in sample(env, 8):
            before = env.unwrapped.tasks
            results = [row.step(action)[:4] for row, action in zip(rows, actions, strict=True)]
            expected = [np.array(column) for column in zip(*results, strict=True)]
            *result, infos = env.step(actions)
            assert_same(result, expected)
            sign = before.column("polarity") * env.unwrapped.tasks.column("polarity")
            assert env.unwrapped.tasks == TaskBatch(
                before.task_type, before.to_dict() | {"polarity": sign * before.column("polarity")}
            )
            assert_same(infos["task_id"], env.unwrapped.tasks.task_ids)
            num_flips += np.count_nonzero(sign < 0)
            for row, task in zip(rows, env.unwrapped.tasks, strict=True):
                row.unwrapped.task = task
        assert 2 <= num_flips <= 14  # 7.2 expected, standard deviation 2.2

    @pytest.mark.each_value
    @each_class
    @each_mode
    @pytest.mark.parametrize(
        "kwargs",
        [
            {"context": "visible", "split": "extrapolation", "switch": {"probability": 0.3}},
            pytest.param({}, marks=pytest.mark.slow),
            pytest.param(
                {"split": "interpolation", "switch": {"step": 5}, "on_failure": "restart"}, marks=pytest.mark.slow
            ),
        ],
    )
    def test_under_one_seed_where_there_is_one_row(self, family, mode, kwargs, play_both):
        kwargs = possible(family, {"max_episode_steps": 14, **kwargs})
        env = make(family, 1, autoreset_mode=mode, **kwargs)
        single = SyncVectorEnv([lambda: gym.make(f"ssm_metarl/{family}-v0", **kwargs)], autoreset_mode=mode)
        for seed in (5, None):  # None continues the streams
            play_both(env, single, 30, seed=seed)
            row = single.envs[0].unwrapped
            assert own(env) == ([row.task], [row.state.tolist()])

    @each_physics
    def test_under_the_users_own_generator_where_there_is_one_row(self, family, play_both):
        env, single = make(family, 1), make(family, 1, vectorization_mode="sync")
        single.envs[0].unwrapped.np_random = np.random.default_rng(8)
        env.np_random = np.random.default_rng(8)
        play_both(env, single, 30, seed=None)

    @each_class
    def test_in_one_step_from_any_state(self, family):
        rng, size = np.random.default_rng(0), 300
        env = make(family, size, split="extrapolation", on_failure="terminate", switch=None)
        single = gym.make(f"ssm_metarl/{family}-v0", on_failure="terminate", switch=None).unwrapped
        single.reset()
        widths = {CartPoleTask: [2.4, 3.0, 0.25, 3.0], PendulumTask: [20.0, 8.0], PointNavigationTask: [0.8, 0.8]}
        widths = widths[single.task_type]
        states = rng.uniform(-1, 1, (size, len(widths))) * widths
        env.reset(seed=1, options={"state": states})
        tasks = env.unwrapped.tasks
        (actions,) = sample(env, 1)
        *outcome, _ = env.step(actions)
        for row, (task, state, action) in enumerate(zip(tasks, states, actions, strict=True)):
            single.task, single.state = task, state
            single.steps_beyond_terminated = None
            observation, *expected, _ = single.step(action)
            assert outcome[0][row].tolist() == observation.tolist()
            assert [column[row] for column in outcome[1:]] == expected
            assert env.unwrapped.state[row].tolist() == np.asarray(single.state).tolist()
        # However many rows there are: vector instructions take four or eight at a time, and the rest one by one.
        for fewer in (1, 2, 3, 5, 8, 17):
            few = make(family, fewer, on_failure="terminate", switch=None)
            few.reset(options={"state": states[:fewer], "tasks": tasks[:fewer]})
            few.step(actions[:fewer])
            assert few.unwrapped.state.tolist() == env.unwrapped.state[:fewer].tolist()


class TestSeeds:
    @pytest.mark.each_value
    @each_class
    @each_mode
    def test_one_seed_gives_one_result(self, family, mode, assert_same):
        kwargs = {"autoreset_mode": mode, "max_episode_steps": 9, "switch": {"probability": 0.2}}
        kwargs = possible(family, kwargs)
        env = make(family, **kwargs)
        first = play(env, 20, seed=1)
        assert_same(play(env, 20, seed=1), first)
        assert_same(play(make(family, **kwargs), 20, seed=np.int64(1)), first)
        observations, infos = env.reset(seed=2)
        assert env.np_random_seed == 2
        assert infos["task_id"].tolist() != first[0][1]["task_id"].tolist()
        # All points start at the origin.
        assert (observations.tolist() != first[0][0].tolist()) == (family in SIGNED)

    @each_class
    def test_different_seeds_and_no_seed_give_different_tasks_and_states(self, family):
        env = make(family, split="extrapolation")
        tasks, states = zip(*[(env.reset(seed=seed), own(env))[1] for seed in (0, 1, None)], strict=True)
        fresh = [starts(make(family), 1) for _ in range(2)]
        for drawn in ([*chain(*tasks)], [*chain(*states)])[: 1 + (family in SIGNED)]:
            assert len(set(map(str, drawn))) == len(drawn) == 3 * NUM_ENVS
        assert fresh[0] != fresh[1]

    @pytest.mark.each_value
    @each_class
    @pytest.mark.parametrize("split", SPLITS)
    def test_every_episode_has_a_new_task_of_its_split(self, family, split):
        tasks, states = starts(make(family, 5, split=split), 20, seed=0)
        drawn = list(chain(*tasks))
        assert all(map(FAMILIES[family].distribution(split).contains, drawn))
        assert len(set(drawn)) == len(drawn)
        assert len({tuple(state) for state in chain(*states)}) == (len(drawn) if family in SIGNED else 1)

    @each_class
    def test_one_seed_gives_different_tasks_in_each_split(self, family):
        assert len({starts(make(family, split=split), 1, seed=1)[0][0][0] for split in SPLITS}) == len(SPLITS)

    @each_class
    def test_global_generators_are_not_touched(self, family):
        before = np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
        play(make(family, max_episode_steps=5, **possible(family, EVERY_STEP)), 12, seed=0)
        assert (np.random.get_state()[1].tolist(), random.getstate()) == before  # noqa: NPY002

    @each_class
    def test_given_tasks_leave_both_streams_as_they_are(self, family):
        drawn_tasks, drawn_states = starts(make(family), 4, seed=5)
        chosen_tasks, chosen_states = starts(make(family), 4, seed=5, options={"tasks": another_task(family)})
        fixed_tasks, fixed_states = starts(make(family, task={}), 4, seed=5)
        assert drawn_states == chosen_states == fixed_states
        assert drawn_tasks[1:] == chosen_tasks[1:]
        assert chosen_tasks[0] == [chosen_tasks[0][0].from_dict(another_task(family))] * NUM_ENVS
        assert fixed_tasks == [[type(fixed_tasks[0][0])()] * NUM_ENVS] * 4

    @each_class
    def test_given_states_leave_both_streams_as_they_are(self, family):
        state = np.full((NUM_ENVS, 4 if "CartPole" in family else 2), 0.25)
        drawn, given = starts(make(family), 4, seed=5), starts(make(family), 4, seed=5, options={"state": state})
        assert given[0] == drawn[0]
        assert given[1] == [state.tolist(), *drawn[1][1:]]

    @each_signed_class
    def test_switches_leave_tasks_and_states_of_later_episodes(self, family):
        later = []
        for switch in (None, {"step": 1}, {"step": [1, 2, 3]}, {"probability": 0.5}):
            env = make(family, switch=switch, on_failure="terminate")
            first = starts(env, 1, seed=5)
            for actions in sample(env, 4):
                env.step(actions)
            later.append([first, *starts(env, 3)])
        assert later[0] == later[1] == later[2] == later[3]

    @pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
    def test_the_tasks_of_trials_do_not_depend_on_the_actions(self, mode):
        tasks, states = [], []
        for action_seed in (0, 1):
            env = make("CartPoleSwitch", autoreset_mode=mode, max_episode_steps=30, switch=None)
            history = play(env, 100, seed=0, action_seed=action_seed)
            tasks.append([infos["task_id"].tolist() for *_, infos in history])
            states.append([observations.tolist() for observations, *_ in history])
        assert tasks[0] == tasks[1]
        assert len({tuple(row) for row in tasks[0]}) == 4
        assert states[0] != states[1]

    @each_class
    def test_rows_draw_in_their_order_whether_they_begin_together_or_not(self, family):
        together, alone = make(family), make(family)
        for env in (together, alone):
            env.reset(seed=3)
        expected = starts(together, 2)
        for tasks, states in zip(*expected, strict=True):
            for row in range(NUM_ENVS):
                alone.reset(options={"reset_mask": np.arange(NUM_ENVS) == row})
            assert own(alone) == (tasks, states)

    @each_class
    def test_a_seed_forgets_the_tasks_that_were_drawn_ahead(self, family):
        env = make(family)
        expected = starts(env, 3, seed=3)
        env.reset(options={"reset_mask": np.array([True, False, False])})
        assert starts(env, 3, seed=3) == expected


class TestSwitching:
    @each_signed_class
    def test_at_a_step_of_each_row(self, family):
        env = make(family, switch={"step": [1, 3, 5]}, on_failure="terminate", autoreset_mode="Disabled")
        for _ in range(2):
            first = env.reset(seed=0)[1]["task_params"]["polarity"]
            for step in range(1, 8):
                env.unwrapped.state = np.zeros_like(env.unwrapped.state)  # nobody falls
                infos = env.step(sample(env, 1)[0])[-1]
                expected = np.where(step >= np.array([1, 3, 5]), -first, first)
                assert infos["task_params"]["polarity"].tolist() == expected.tolist()
                assert env.unwrapped.tasks.column("polarity").tolist() == expected.tolist()
                assert infos["task_id"].tolist() == [task.task_id for task in env.unwrapped.tasks]

    @pytest.mark.each_value
    @each_signed_class
    @pytest.mark.parametrize("switch", [{"probability": 0.0}, None])
    def test_never(self, family, switch):
        history = play(make(family, switch=switch, max_episode_steps=None, on_failure="restart"), 100, seed=0)
        assert len({tuple(infos["task_id"].tolist()) for *_, infos in history}) == 1

    def test_as_often_as_it_should(self):
        history = play(make("CartPoleSwitch", 50, max_episode_steps=None), 400, seed=0)
        flips = np.diff([infos["task_params"]["polarity"] for *_, infos in history], axis=0) != 0
        assert 70 < flips.sum() < 130  # 100 expected, standard deviation 10
        assert len(set(np.argmax(flips, axis=0).tolist())) > 30  # not all at once

    @each_signed_class
    def test_whoever_is_told_the_parameters_sees_it_at_once(self, family):
        env = make(family, context="visible", switch={"step": [1, 2, 2]}, task={}, on_failure="terminate")
        shown = [env.reset(seed=0)[0][:, -1].tolist()] + [
            env.step(actions)[0][:, -1].tolist() for actions in sample(env, 2)
        ]
        assert shown == [[1, 1, 1], [-1, 1, 1], [-1, -1, -1]]

    def test_the_callers_array_may_change(self):
        steps = np.array([1, 2, 2])
        env = make("CartPole", switch={"step": steps}, task={})
        steps[:] = 99
        env.reset(seed=0)
        signs = [env.step(actions)[-1]["task_params"]["polarity"].tolist() for actions in sample(env, 2)]
        assert signs == [[-1, 1, 1], [-1, -1, -1]]


class TestResetOptions:
    TASKS = {  # noqa: RUF012
        "CartPole": [CartPoleTask(length=0.3, polarity=-1), CartPoleTask(), CartPoleTask(masspole=0.2)],
        "Pendulum": [PendulumTask(l=0.8, polarity=-1), PendulumTask(), PendulumTask(m=1.2)],
        "PointNavigation": [PointNavigationTask(0.3, -0.4), PointNavigationTask(), PointNavigationTask(goal_y=-0.2)],
    }

    @pytest.mark.each_value
    @each_physics
    @pytest.mark.parametrize(
        "given",
        [
            list,
            tuple,
            TaskBatch.from_tasks,
            lambda tasks: [task.to_dict() for task in tasks],
            lambda tasks: [tasks[0], *(task.to_dict() for task in tasks[1:])],
            lambda tasks: TaskBatch.from_tasks(tasks).to_dict(),
        ],
    )
    def test_tasks_for_one_episode(self, family, given, assert_same):
        tasks = self.TASKS[family]
        env = make(family, max_episode_steps=3)
        infos = env.reset(seed=0, options={"tasks": given(tasks)})[1]
        assert list(env.unwrapped.tasks) == tasks
        expected = [task.to_dict() for task in tasks]
        for name, columns in infos["task_params"].items():
            assert columns.tolist() == ([True] * NUM_ENVS if name[0] == "_" else [task[name] for task in expected])
        assert infos["task_id"].tolist() == [task.task_id for task in tasks]
        for actions in sample(env, 4):
            assert list(env.unwrapped.tasks) == tasks
            env.step(actions)
        assert not set(env.unwrapped.tasks) & set(tasks)

    @each_physics
    def test_one_column_for_all_rows(self, family):
        name = {"CartPole": "masspole", "Pendulum": "m", "PointNavigation": "goal_y"}[family]
        env = make(family)
        env.reset(options={"tasks": another_task(family) | {name: [0.1, 0.2, 0.3]}})
        assert env.unwrapped.tasks.column(name).tolist() == [0.1, 0.2, 0.3]
        ((other, value),) = another_task(family).items()
        assert env.unwrapped.tasks.column(other).tolist() == [value] * 3

    @pytest.mark.each_value
    @each_signed_physics
    @each_mode
    def test_a_mask_changes_its_rows_alone(self, family, mode, assert_same):
        kwargs = {"autoreset_mode": mode, "max_episode_steps": 6, "switch": {"step": 5}, "on_failure": "terminate"}
        env = make(family, **kwargs)
        env.reset(seed=0)
        for actions in sample(env, 2):
            env.step(actions)
        twin = copy.deepcopy(env)
        mask, keep = np.array([False, True, False]), np.array([True, False, True])
        size = env.unwrapped.state.shape
        given = {"reset_mask": mask, "tasks": self.TASKS[family], "state": np.full(size, 0.01)}
        options = dict(given)
        _, infos = env.reset(options=options)
        assert options.keys() == given.keys()
        assert all(options[name] is given[name] for name in given)
        assert mask.tolist() == [False, True, False]
        # What was given to the others is ignored.
        expected_tasks, expected_states = own(twin)
        expected_tasks[1], expected_states[1] = self.TASKS[family][1], [0.01] * size[1]
        assert own(env) == (expected_tasks, expected_states)
        for name in ("task_id", "task_params"):
            assert infos[f"_{name}"].tolist() == mask.tolist()
        assert infos["task_id"].tolist() == [0, expected_tasks[1].task_id, 0]
        # The others go on as if nothing had happened; this one has as many steps left as a new one.
        for actions in sample(env, 3):
            for column, expected in zip(env.step(actions)[:4], twin.step(actions)[:4], strict=True):
                assert_same(column[keep], expected[keep])
        (actions,) = sample(env, 1)
        assert env.step(actions)[3].tolist() == [True, False, True]
        assert env.unwrapped.tasks[1].polarity == 1
        if mode != "Disabled":
            assert not env.step(actions)[3].any()
            assert env.unwrapped.tasks[1].polarity == -1
            assert env.step(actions)[3].tolist() == [False, True, False]

    @pytest.mark.parametrize("columns", [None, np.array([np.nan, 0.7, -1.0]), [None, 0.7, "long"], [1.0, 0.7, [2, 3]]])
    def test_what_was_given_to_other_rows_need_not_be_valid(self, columns):
        env = make("CartPole", 3)
        env.reset(seed=0)
        before = own(env)
        tasks = [None, {"length": 0.7}, {"wings": 2}] if columns is None else {"length": columns}
        states = np.full((3, 4), np.nan)
        states[1] = 0.02
        env.reset(options={"reset_mask": np.array([False, True, False]), "tasks": tasks, "state": states})
        after = own(env)
        assert after[0][1].length == 0.7
        assert (after[0][0], after[0][2]) == (before[0][0], before[0][2])
        assert after[1] == [before[1][0], [0.02] * 4, before[1][2]]
        with pytest.raises(ValueError, match="'state' must be 4 finite numbers"):
            env.reset(options={"reset_mask": np.array([True, True, False]), "state": states})

    def test_a_state_is_set_in_an_episode_alone(self):
        env = make("CartPole", 2)
        with pytest.raises(gym.error.ResetNeeded, match=r"reset\(\) must be called before the state is set"):
            env.unwrapped.state = np.zeros((2, 4))

    def test_the_flow_without_autoreset(self):
        env = make("CartPole", 4, autoreset_mode="Disabled")
        falling = np.zeros((4, 4))
        falling[[1, 3], 2] = 0.25
        env.reset(seed=0, options={"state": falling})
        actions = np.array([0, 1, 0, 1])
        terminations = env.step(actions)[2]
        assert terminations.tolist() == [False, True, False, True]
        with pytest.raises(gym.error.ResetNeeded, match=r"whose episode ended must be reset .*; got \[1, 3\]"):
            env.step(actions)
        env.reset(options={"reset_mask": np.array([False, True, False, False])})
        with pytest.raises(gym.error.ResetNeeded, match=r"got \[3\]\. Call reset\(options="):
            env.step(actions)
        before = own(env)
        env.reset(options={"reset_mask": terminations})
        after = own(env)
        for row in range(4):
            assert (after[0][row] == before[0][row]) == (not terminations[row])
            assert (after[1][row] == before[1][row]) == (not terminations[row])
        assert not env.step(actions)[2].any()
        env.unwrapped.state = falling
        assert env.step(actions)[2].any()
        env.reset()
        env.step(actions)

    @pytest.mark.parametrize("when", ["the row that ended", "another row"])
    def test_a_mask_where_the_next_step_would_reset(self, when):
        env = make("CartPole", 2)
        env.reset(seed=0, options={"state": [[0, 0, 0.25, 0], [0, 0, 0, 0]]})
        assert env.step(np.array([0, 0]))[2].tolist() == [True, False]
        env.reset(options={"reset_mask": np.array([when == "the row that ended", when == "another row"])})
        before = own(env)
        _, rewards, *_ = env.step(np.array([0, 0]))
        assert rewards.tolist() == ([1.0, 1.0] if when == "the row that ended" else [0.0, 1.0])
        assert (own(env)[0][0] == before[0][0]) == (when == "the row that ended")

    @each_physics
    def test_a_full_mask_is_a_reset_of_all(self, family, assert_same):
        one, other = make(family), make(family)
        assert_same(one.reset(seed=3, options={"reset_mask": np.ones(NUM_ENVS, np.bool_)}), other.reset(seed=3))
        assert_same(play(one, 20), play(other, 20))


class TestRefusals:
    MASK = np.array([True, False, True])

    # What is refused, test_arguments tells.
    @pytest.mark.each_value
    @each_signed_physics
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"task": {}}, ValueError, r"an option of reset must be one of .*got 'task'\. Did you mean 'tasks'\?"),
            ({"tasks": [{}, {}, {"polarity": 0}]}, ValueError, r"polarity must be \+1 or -1; got 0"),
            ({"state": np.zeros((3, 3))}, ValueError, r"'state' must be \d finite numbers for each of the 3 rows"),
            ({"reset_mask": [True]}, TypeError, "'reset_mask' must be a NumPy array of booleans; got list"),
        ],
    )
    def test_a_refused_option_changes_nothing(self, family, options, error, message, assert_same):
        env = make(family, max_episode_steps=9, **EVERY_STEP)
        play(env, 5, seed=0)
        twin = copy.deepcopy(env)
        good = {"tasks": {"polarity": -1}, "state": np.zeros_like(env.unwrapped.state), "reset_mask": self.MASK}
        for others in ({}, good):  # nor do the options beside it
            with pytest.raises(error, match=message):
                env.reset(seed=1, options=others | options)
        assert own(env) == own(twin)
        assert env.np_random_seed == 0
        assert_same(play(env, 8), play(twin, 8))

    @pytest.mark.each_value
    @each_physics
    @pytest.mark.parametrize(
        ("seed", "error"), [([0, 1, 2], ValueError), (1.0, ValueError), ("1", ValueError), (-1, gym.error.Error)]
    )
    def test_a_refused_seed_changes_nothing(self, family, seed, error, assert_same):
        env = make(family, max_episode_steps=9)
        play(env, 5, seed=0)
        twin = copy.deepcopy(env)
        with pytest.raises(error, match=r"(?i)seed"):
            env.reset(seed=seed, options={"tasks": {}})
        assert own(env) == own(twin)
        assert_same(play(env, 8), play(twin, 8))

    @each_physics
    def test_tasks_of_other_physics(self, family):
        other = PendulumTask() if family == "CartPole" else CartPoleTask()
        env = make(family)
        env.reset(seed=0)
        before = own(env)
        with pytest.raises(ValueError, match=f"tasks must be {family}Tasks; got {type(other).__name__}s"):
            env.reset(options={"tasks": [other] * NUM_ENVS})
        with pytest.raises(ValueError, match=f"tasks must be {family}Tasks; got {type(other).__name__}s"):
            env.unwrapped.tasks = [other] * NUM_ENVS
        assert own(env) == before

    @each_physics
    def test_the_first_reset_must_be_of_all_rows(self, family):
        env = make(family)
        with pytest.raises(gym.error.ResetNeeded, match="the first reset must be of all rows"):
            env.reset(options={"reset_mask": self.MASK})
        env.reset(options={"reset_mask": np.ones(NUM_ENVS, np.bool_)})

    @each_physics
    def test_steps_and_pictures_before_the_first_reset(self, family):
        env = make(family, render_mode="rgb_array")
        assert env.unwrapped.state is None
        with pytest.raises(gym.error.ResetNeeded, match="reset"):
            env.step(sample(env, 1)[0])
        with pytest.raises(gym.error.ResetNeeded, match="reset"):
            env.render()

    @pytest.mark.parametrize("family", ["CartPole"])
    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            *(({"num_envs": value}, "num_envs must be an int >= 1; got ") for value in (0, 2.5, "3", None, True)),
            *(({"max_episode_steps": value}, "max_episode_steps must be an int >= 1") for value in (0, -2, 2.5)),
            ({"split": "extrapolate"}, r"split must be one of .*Did you mean 'extrapolation'\?"),
            ({"context": "visble"}, r"context must be one of .*Did you mean 'visible'\?"),
            ({"on_failure": "restrat"}, r"on_failure must be one of .*Did you mean 'restart'\?"),
            ({"dtype": "float16"}, "dtype must be one of .*got 'float16'"),
            ({"dtype": None}, "dtype must be one of .*got None"),
            ({"autoreset_mode": "samestep"}, r"autoreset_mode must be one of .*Did you mean 'SameStep'\?"),
            ({"render_mode": "human"}, "render_mode must be None or 'rgb_array'; got 'human'"),
            ({"render_mode": "ansi"}, "render_mode must be None or 'rgb_array'; got 'ansi'"),
            ({"family": "Polarity"}, r"family must be one of .*Did you mean '\w+Polarity'\?"),
            ({"family": "HalfCheetahDir"}, "family must be one of "),
            ({"task": {"polarity": [1, 1, 0]}}, r"task 2: polarity must be \+1 or -1"),
            ({"switch": {"step": [1, 2]}}, "switch must be None, .* or 3 of them, one for each row; got "),
        ],
    )
    def test_arguments(self, family, kwargs, message):
        entry_point = type(make(family).unwrapped)
        with pytest.raises(ValueError, match=message):
            entry_point(**{"num_envs": NUM_ENVS, **kwargs})

    @pytest.mark.each_value
    @each_physics
    @pytest.mark.parametrize("state", [[0.0], "upright", None, np.full((3, 4), np.nan)])
    def test_other_states(self, family, state):
        env = make(family)
        env.reset(seed=0)
        before = own(env)
        with pytest.raises(ValueError, match=r"'state' must be \d finite numbers for each of the 3 rows"):
            env.unwrapped.state = state
        assert own(env) == before


class TestTimeLimit:
    @pytest.mark.parametrize(("family", "limit"), [("CartPolePolarity", 200), ("Pendulum", 200)])
    def test_of_the_spec_of_the_user_or_none(self, family, limit):
        assert make(family).unwrapped.max_episode_steps == limit
        for steps, kwargs in (
            (limit, {}),
            (7, {"max_episode_steps": 7}),
            (None, {"max_episode_steps": None}),
            (None, {"max_episode_steps": -1}),
        ):
            env = make(family, on_failure="restart", autoreset_mode="SameStep", **kwargs)
            history = play(env, limit + 10, seed=0)
            expected = [step for step in range(limit + 10) if steps and (step + 1) % steps == 0]
            assert np.flatnonzero(ends(history).all(axis=1)).tolist() == expected
            assert np.flatnonzero(ends(history).any(axis=1)).tolist() == expected

    def test_a_last_step_that_fails_too(self):
        env = make("CartPole", 2, max_episode_steps=2, autoreset_mode="Disabled")
        env.reset(seed=0)
        env.step(np.array([0, 0]))
        env.unwrapped.state = [[0.0, 0.0, 0.25, 0.0], [0.0, 0.0, 0.0, 0.0]]
        _, rewards, terminations, truncations, _ = env.step(np.array([0, 0]))
        assert rewards.tolist() == [1.0, 1.0]
        assert (terminations.tolist(), truncations.tolist()) == ([True, False], [True, True])

    def test_is_of_each_row(self):
        env = make("Pendulum", max_episode_steps=5)
        env.reset(seed=0)
        truncations = []
        for step, actions in enumerate(sample(env, 14)):
            truncations.append(np.flatnonzero(env.step(actions)[3]).tolist())
            if step < 2:
                env.reset(options={"reset_mask": np.arange(NUM_ENVS) == step})
        # In NEXT_STEP an episode of five steps lasts six, with the one that resets.
        assert truncations == [[], [], [], [], [2], [0], [1], [], [], [], [2], [0], [1], []]


class TestOwnership:
    @pytest.mark.each_value
    @each_class
    @each_mode
    def test_what_is_returned_may_be_written(self, family, mode, assert_same):
        kwargs = {"autoreset_mode": mode, "max_episode_steps": 9, "context": "visible", "switch": {"step": 4}}
        kwargs = possible(family, kwargs)

        def history(spoil):
            env, kept = make(family, **kwargs), []
            env.action_space.seed(0)
            result = env.reset(seed=0)
            for _ in range(40):
                kept.append(copy.deepcopy(result))
                ended = result[2] | result[3] if len(result) == 5 else np.zeros(NUM_ENVS, np.bool_)
                if spoil:
                    for array in (*result[:-1], env.unwrapped.state, *result[-1].get("final_obs", ())):
                        if array is not None:
                            array[:] = 1
                    for nested in (result[-1]["task_params"], result[-1].get("final_info", {}), result[-1]):
                        nested.clear()
                if mode == "Disabled" and ended.any():
                    mask = ended.copy()
                    result = env.reset(options={"reset_mask": mask})
                    mask[:] = ~mask
                else:
                    actions = env.action_space.sample()
                    result = env.step(actions)
                    actions[:] = 0
            return kept

        assert_same(history(spoil=True), history(spoil=False))

    @pytest.mark.each_value
    @each_class
    @each_mode
    @pytest.mark.parametrize("copied", [False, True])
    def test_infos_never_change_and_those_of_all_rows_cannot_be_written(self, family, mode, copied, assert_same):
        env = make(family, autoreset_mode=mode, max_episode_steps=9, **possible(family, {"switch": {"step": 4}}))
        env.reset(seed=0)
        env = copy.deepcopy(env) if copied else env
        handed_out, expected = [], []
        for step in range(30):
            *flags, infos = env.step(env.action_space.sample())
            handed_out.append(infos)
            expected.append(copy.deepcopy(infos))
            final = {name: infos[name] for name in infos if "final" in name}
            writable = [array for array in arrays(infos) if array.flags.writeable]
            assert all(any(array is other for other in arrays(final)) for array in writable)
            mask = flags[2] | flags[3] if mode == "Disabled" else np.arange(NUM_ENVS) == step % 11
            if mask.any():
                handed_out.append(env.reset(options={"reset_mask": mask})[1])
                expected.append(copy.deepcopy(handed_out[-1]))
        env.unwrapped.tasks = another_task(family)
        assert_same(handed_out, expected)

    @each_physics
    def test_the_state_is_a_copy(self, family):
        env = make(family)
        env.reset(seed=0)
        before, mine = own(env), env.unwrapped.state
        mine[:] = 5.0
        assert own(env) == before
        env.unwrapped.state = mine
        mine[:] = 7.0
        assert env.unwrapped.state.tolist() == np.full_like(mine, 5.0).tolist()
        given = np.full_like(mine, 0.1)
        env.reset(options={"state": given})
        given[:] = 7.0
        assert env.unwrapped.state.tolist() == np.full_like(mine, 0.1).tolist()

    @each_physics
    def test_a_given_state_decides_the_next_step(self, family, assert_same):
        env, other = make(family, task={}), make(family, task={})
        for each, seed in ((env, 0), (other, 1)):
            each.reset(seed=seed)
        env.unwrapped.state = other.unwrapped.state
        (actions,) = sample(env, 1)
        assert_same(env.step(actions)[:4], other.step(actions)[:4])

    @pytest.mark.each_value
    @each_physics
    @pytest.mark.parametrize("switch", [None, {"step": 3}])
    def test_given_tasks_decide_the_next_step_and_those_after_it(self, family, switch, assert_same):
        switch = switch if family in SIGNED else None
        env, other = (make(family, switch=switch, context="visible", on_failure="terminate") for _ in range(2))
        tasks = TestResetOptions.TASKS[family]
        env.reset(seed=0)
        other.reset(seed=0, options={"tasks": tasks})
        env.unwrapped.tasks = [task.to_dict() for task in tasks]
        assert list(env.unwrapped.tasks) == tasks
        for actions in sample(env, 5):
            assert_same(env.step(actions), other.step(actions))
        if family not in SIGNED:
            return
        signs = [-task.polarity if switch else task.polarity for task in tasks]
        assert env.unwrapped.tasks.column("polarity").tolist() == signs


class TestPrecision:
    @pytest.mark.parametrize("family", ["CartPole", "PendulumPolarity", "PointNavigation"])
    def test_single_precision_is_near_double_precision(self, family):
        kwargs = {"task": {}, "switch": None, "max_episode_steps": None, "context": "visible"}
        env, reference = make(family, 16, dtype="float32", **kwargs), make(family, 16, **kwargs)
        assert env.observation_space == reference.observation_space
        observations, expected = env.reset(seed=0)[0], reference.reset(seed=0)[0]
        assert env.unwrapped.state.dtype == np.float32
        for actions in sample(reference, 50):
            assert observations == pytest.approx(expected, rel=1e-4, abs=1e-4)
            if "CartPole" in family:
                actions = (expected[:, 2] + expected[:, 3] > 0).astype(int)
            observations, rewards, *flags, _ = env.step(actions)
            expected, expected_rewards, *expected_flags, _ = reference.step(actions)
            assert rewards == pytest.approx(expected_rewards, rel=1e-4, abs=1e-4)
            assert (observations.dtype, rewards.dtype) == (np.float32, np.float64)
            assert not np.any(flags)
            assert not np.any(expected_flags)
        assert env.unwrapped.state.dtype == np.float32
        assert np.any(env.unwrapped.state != reference.unwrapped.state)

    @each_class
    def test_tasks_are_the_same_in_both(self, family):
        histories = [play(make(family, dtype=dtype, context="visible"), 3, seed=0) for dtype in ("float32", "float64")]
        for (*_, infos), (*_, expected) in zip(*histories, strict=True):
            assert infos["task_id"].tolist() == expected["task_id"].tolist()

    @each_class
    def test_spaces_are_those_of_single_environments(self, family):
        for context in ("hidden", "visible"):
            single = gym.make(f"ssm_metarl/{family}-v0", context=context)
            for dtype in ("float32", "float64"):
                env = make(family, context=context, dtype=dtype)
                assert env.single_observation_space == single.observation_space
                assert env.single_action_space == single.action_space
                assert env.observation_space.dtype == np.float32
                assert env.observation_space.shape == (NUM_ENVS, *single.observation_space.shape)
                assert isinstance(env.single_observation_space, spaces.Box)


class TestRendering:
    @pytest.mark.each_value
    @each_physics
    @each_mode
    def test_frames_are_those_of_single_environments(self, family, mode, leader_and_rows):
        kwargs = {"render_mode": "rgb_array", "max_episode_steps": 2, "autoreset_mode": mode, "split": "extrapolation"}
        switch = {"step": [1, 2]} if family in SIGNED else None
        env, rows = leader_and_rows(f"ssm_metarl/{family}-v0", 2, switch=switch, **kwargs)
        for each in (env, rows):
            each.reset(seed=0)
        for step in range(4):
            frames = env.render()
            assert type(frames) is tuple
            for frame, expected in zip(frames, rows.render(), strict=True):
                assert frame.dtype == np.uint8
                assert np.array_equal(frame, expected)
            assert not np.array_equal(*frames)
            (actions,) = sample(env, 1, seed=step)
            ended, _ = (each.step(actions)[3] for each in (env, rows))
            if ended.any() and mode == "Disabled":
                for each in (env, rows):
                    each.reset(options={"reset_mask": ended})
        for each in (env, rows):
            each.close()

    def test_the_caption_shows_what_varies_in_the_split(self):
        family = {
            "train": {"task_type": "CartPoleTask", "parameters": {"length": {"uniform": [[0.2, 0.3]]}}},
            "extrapolation": {"task_type": "CartPoleTask", "parameters": {"masspole": {"uniform": [[0.2, 0.3]]}}},
        }
        kwargs = {"family": family, "split": "extrapolation", "render_mode": "rgb_array"}
        env, single = make("CartPole", 1, **kwargs), gym.make("ssm_metarl/CartPole-v0", **kwargs)
        for each in (env, single):
            each.reset(seed=0)
        assert np.array_equal(env.render()[0], single.render())

    @pytest.mark.parametrize(
        ("num_envs", "num_rows", "shape"),
        [(5, 16, (2, 3)), (5, 1, (1, 1)), (7, 6, (2, 3))],
    )
    @pytest.mark.parametrize("family", ["Pendulum"])
    def test_a_grid_of_the_first_rows(self, family, num_envs, num_rows, shape):
        env = make(family, num_envs, render_mode="rgb_array")
        env.reset(seed=0)
        frames = env.render()
        height, width, _ = frames[0].shape
        grid = env.unwrapped.render_grid(num_rows)
        assert (grid.shape, grid.dtype) == ((shape[0] * height, shape[1] * width, 3), np.uint8)
        tiles = grid.reshape(shape[0], height, shape[1], width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)
        for i, tile in enumerate(tiles):
            assert np.array_equal(tile, frames[i]) if i < min(num_envs, num_rows) else np.all(tile == 255)
        env.close()

    def test_a_grid_has_sixteen_rows_unless_told_otherwise(self):
        env = make("CartPole", 20, render_mode="rgb_array")
        env.reset(seed=0)
        assert env.unwrapped.render_grid().shape == (4 * 400, 4 * 600, 3)

    @each_physics
    def test_no_pictures_without_a_render_mode(self, family):
        env = make(family)
        env.reset()
        assert env.render_mode is None
        with pytest.warns(UserWarning, match=r'render_mode="rgb_array"'):
            assert env.render() is None
        with pytest.raises(ValueError, match="render_grid needs render_mode='rgb_array'; got None"):
            env.unwrapped.render_grid()

    @pytest.mark.parametrize("num_rows", [0, -1, 1.5, "all"])
    def test_a_grid_of_no_rows(self, num_rows):
        env = make("CartPole", render_mode="rgb_array")
        env.reset()
        with pytest.raises(ValueError, match="num_rows must be an int >= 1; got "):
            env.unwrapped.render_grid(num_rows)

    @each_physics
    def test_pictures_change_nothing(self, family, assert_same):
        histories = []
        for render in (False, True):
            env = make(
                family, render_mode="rgb_array", max_episode_steps=3, **possible(family, {"switch": {"step": 2}})
            )
            history = [env.reset(seed=0)]
            for actions in sample(env, 6):
                if render:
                    env.render()
                history.append(env.step(actions))
            histories.append(history)
            env.close()
        assert_same(*histories)


class TestCopies:
    @pytest.mark.each_value
    @each_class
    @each_mode
    @each_copy
    def test_go_on_as_the_original(self, family, mode, copied, assert_same):
        kwargs = possible(family, {"switch": {"probability": 0.3}, "max_episode_steps": 8, "context": "visible"})
        env = make(family, autoreset_mode=mode, **kwargs)
        play(env, 5, seed=0)
        # Tasks are drawn ahead, and bounds hold until the episode ends.
        bounds = {CartPoleTask: {"low": -0.5}, PendulumTask: {"x_init": 0.5}}.get(FAMILIES[family].task_type, {})
        env.reset(options={"reset_mask": np.array([False, True, False]), **bounds})
        twin = copied(env)
        assert own(twin) == own(env)
        assert_same(play(twin, 20), play(env, 20))

    @pytest.mark.each_value
    @each_physics
    @each_copy
    def test_go_on_after_a_picture(self, family, copied, assert_same):
        env = make(family, render_mode="rgb_array")
        play(env, 5, seed=0)
        env.render()
        twin = copied(env)
        assert_same(twin.render(), env.render())
        assert_same(play(twin, 5), play(env, 5))
        assert_same(twin.render(), env.render())
        env.close()
        twin.close()

    @each_physics
    @each_copy
    def test_share_nothing(self, family, copied):
        env = make(family, **possible(family, EVERY_STEP))
        env.reset(seed=0)
        before = own(env)
        play(copied(env), 5)
        assert own(env) == before

    @pytest.mark.each_value
    @each_physics
    @each_copy
    def test_before_the_first_reset(self, family, copied, assert_same):
        env = make(family)
        assert_same(play(copied(env), 5, seed=0), play(env, 5, seed=0))


class TestSpec:
    KWARGS = [  # noqa: RUF012
        {"split": "extrapolation", "context": "visible"},
        {"task": {"polarity": [1, -1, -1]}, "autoreset_mode": "Disabled"},
        {"switch": {"step": [2, 3, 4]}, "autoreset_mode": "SameStep", "max_episode_steps": 6},
        {"switch": {"probability": 0.5}, "dtype": "float32", "max_episode_steps": None},
    ]

    @pytest.mark.each_value
    @each_class
    @pytest.mark.parametrize("kwargs", KWARGS)
    def test_in_json_makes_the_same_environment(self, family, kwargs, assert_same):
        if family not in SIGNED:
            kwargs = possible(family, kwargs) | ({"task": {"goal_x": [0.1, 0.2, -0.3]}} if "task" in kwargs else {})
        env = make(family, **kwargs)
        twin = gym.make_vec(EnvSpec.from_json(env.spec.to_json()))
        assert twin.spec == env.spec
        assert type(twin) is type(env)
        assert twin.num_envs == NUM_ENVS
        assert_same(play(twin, 20, seed=1), play(env, 20, seed=1))

    @each_physics
    def test_of_a_family_of_ones_own(self, family, assert_same):
        train = FAMILIES[family].extrapolation
        few, others = train.split(4, 4)
        for own_family in (train.to_dict(), {"train": few.to_dict(), "extrapolation": others.to_dict()}):
            env = make(family, family=own_family, context="visible")
            twin = gym.make_vec(EnvSpec.from_json(env.spec.to_json()))
            assert_same(play(twin, 20, seed=1), play(env, 20, seed=1))
            env.reset(seed=1)
            assert set(env.unwrapped.tasks) <= set(few.tasks) or own_family == train.to_dict()
            assert all(map(train.contains, env.unwrapped.tasks))

    def test_of_one_row(self):
        env = gym.make_vec("ssm_metarl/CartPole-v0")
        assert env.num_envs == gym.make_vec(EnvSpec.from_json(env.spec.to_json())).num_envs == 1


class KeepsOptions(gym.vector.VectorWrapper):
    """Gives a copy of the options, as ``SyncVectorEnv`` takes out the mask, which ``RecordEpisodeStatistics`` needs."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed, options=options and dict(options))


class Timeless(gym.vector.VectorWrapper):
    """Forgets how long episodes took."""

    def step(self, actions):
        *rest, infos = super().step(actions)
        for nested in (infos, infos.get("final_info", {})):
            nested.get("episode", {}).pop("t", None)
        return *rest, infos


@pytest.mark.slow
class TestUnderWrappers:
    ANY_MODE = {  # noqa: RUF012
        "RecordEpisodeStatistics": lambda env: Timeless(wrappers.RecordEpisodeStatistics(env)),
        "NormalizeReward": wrappers.NormalizeReward,
        "ClipReward": lambda env: wrappers.ClipReward(env, -0.5, 0.5),
        "TransformReward": lambda env: wrappers.TransformReward(env, lambda rewards: 2 * rewards),
    }
    NO_SAME_STEP = {  # noqa: RUF012
        "FlattenObservation": wrappers.FlattenObservation,
        "DtypeObservation": lambda env: wrappers.DtypeObservation(env, np.float32),
        "TransformObservation": lambda env: wrappers.TransformObservation(env, lambda observations: 2 * observations),
        "VectorizeTransformObservation": lambda env: wrappers.VectorizeTransformObservation(
            env, gym.wrappers.TransformObservation, func=np.negative, observation_space=env.single_observation_space
        ),
    }

    @pytest.mark.parametrize("family", ["CartPole", "PendulumPolarity"])
    @pytest.mark.parametrize(
        ("wrapper", "mode"),
        [(name, mode) for name in ANY_MODE for mode in MODES]
        + [(name, mode) for name in NO_SAME_STEP for mode in ("NextStep", "Disabled")],
    )
    def test_results_are_those_over_single_environments(self, family, wrapper, mode, leader_and_rows, play_both):
        wrap = (self.ANY_MODE | self.NO_SAME_STEP)[wrapper]
        env, rows = leader_and_rows(f"ssm_metarl/{family}-v0", NUM_ENVS, autoreset_mode=mode, max_episode_steps=12)
        history = play_both(wrap(env), wrap(KeepsOptions(rows)), 30)
        assert ends(history).any()

    @each_physics
    def test_observations_are_normalised_alike(self, family, leader_and_rows, play_both):
        env, rows = leader_and_rows(f"ssm_metarl/{family}-v0", NUM_ENVS, max_episode_steps=12)
        play_both(wrappers.NormalizeObservation(env), wrappers.NormalizeObservation(rows), 40, share=0.0)

    def test_observations_are_rescaled_alike(self, leader_and_rows, play_both):
        # Gymnasium's overflows where bounds are as wide as those of CartPole's speeds.
        env, rows = leader_and_rows("ssm_metarl/Pendulum-v0", NUM_ENVS, max_episode_steps=12)
        rescaled = [wrappers.RescaleObservation(each, np.float32(-1), np.float32(1)) for each in (env, rows)]
        play_both(*rescaled, 40)

    @pytest.mark.parametrize("family", ["CartPolePolarity", "Pendulum"])
    @pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
    def test_infos_become_lists_alike(self, family, mode, leader_and_rows, assert_same):
        both = leader_and_rows(f"ssm_metarl/{family}-v0", NUM_ENVS, autoreset_mode=mode, max_episode_steps=12)
        env, rows = map(wrappers.DictInfoToList, both)
        assert_same(env.reset(seed=0), rows.reset(seed=0))
        for actions in sample(env, 30):
            assert_same(env.step(actions), rows.step(actions))

    @pytest.mark.parametrize("family", ["CartPolePolarity", "Pendulum"])
    @pytest.mark.parametrize("mode", ["NextStep", "Disabled"])  # final_obs, an array of objects, cannot be converted
    def test_tensors_are_the_arrays(self, family, mode, leader_and_rows):
        pytest.importorskip("array_api_compat")
        torch = pytest.importorskip("torch")
        both = leader_and_rows(f"ssm_metarl/{family}-v0", NUM_ENVS, autoreset_mode=mode, max_episode_steps=12)
        env, rows = map(wrappers.NumpyToTorch, both)
        results = [(env.reset(seed=0), rows.reset(seed=0))]
        for actions in sample(env, 11):
            results.append((env.step(torch.as_tensor(actions)), rows.step(torch.as_tensor(actions))))

        def check(one, other):
            assert type(one) is type(other)
            if isinstance(one, dict):
                assert one.keys() == other.keys()
                for key in one:
                    check(one[key], other[key])
            else:
                assert one.dtype == other.dtype
                assert torch.equal(one, other)

        for one, other in results:
            for columns in zip(one, other, strict=True):
                check(*columns)

    @pytest.mark.parametrize("family", ["CartPole", "CartPolePolarity", "Pendulum", "PointNavigation"])
    @each_mode
    @pytest.mark.parametrize(
        ("wrapper", "vector_wrapper"),
        [
            # Gymnasium has no FrameStackObservation for vector environments.
            (lambda env: HistoryWindow(env, 4), lambda env: VectorHistoryWindow(env, 4)),
            (TransitionObservation, VectorTransitionObservation),
        ],
    )
    def test_our_own_show_what_they_show_of_single_environments(
        self, family, mode, wrapper, vector_wrapper, leader_and_rows, play_both
    ):
        env, rows = leader_and_rows(
            f"ssm_metarl/{family}-v0", NUM_ENVS, autoreset_mode=mode, max_episode_steps=12, wrapper=wrapper
        )
        play_both(vector_wrapper(env), rows, 40)

    def test_gymnasium_has_no_stack_of_frames_for_vector_environments(self):
        assert not hasattr(wrappers, "FrameStackObservation")


@pytest.mark.parametrize("num_steps", [300, pytest.param(3000, marks=pytest.mark.slow)])
@each_physics
def test_memory_does_not_grow_with_the_steps(family, num_steps):
    env = make(family, 64, max_episode_steps=40, **possible(family, {"switch": {"probability": 0.01}}))
    env.reset(seed=0)
    actions = sample(env, 8)

    def used(steps):
        for step in range(steps):
            env.step(actions[step % len(actions)])
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = used(100)
        after = used(num_steps)
    finally:
        tracemalloc.stop()
    assert after - before < 32 * 1024  # one result takes about 10 kB


def test_a_seed_is_for_all_rows():
    env = make("CartPole")
    env.reset(seed=0)
    before = pickle.dumps(env.unwrapped)
    mask = np.array([True] + [False] * (env.num_envs - 1))
    with pytest.raises(ValueError, match="a seed is for all rows, which share their streams; got seed=1 with"):
        env.reset(seed=1, options={"reset_mask": mask})
    assert pickle.dumps(env.unwrapped) == before
    env.reset(seed=1, options={"reset_mask": np.ones_like(mask)})


@pytest.mark.parametrize("name", ["task", "length", "polarity"])
def test_what_single_environments_have_cannot_be_mistaken_for_the_tasks_of_all_rows(name):
    env = make("CartPole").unwrapped
    for use in (lambda: getattr(env, name), lambda: setattr(env, name, 1)):
        with pytest.raises(AttributeError, match=f"no '{name}' but one for each row: use its attribute 'tasks'"):
            use()


def test_fixed_tasks_may_be_given_in_every_form():
    tasks = [CartPoleTask(length=0.1 * i) for i in range(1, 4)]
    for given in (tasks, TaskBatch.from_tasks(tasks), TaskSet(tasks), [task.to_dict() for task in tasks]):
        env = make("CartPole", task=given)
        for _ in range(2):
            env.reset()
            assert list(env.unwrapped.tasks) == tasks
    assert list(make("CartPole", task=tasks[0]).unwrapped.tasks) == tasks[:1] * 3


def test_a_family_that_is_set_is_drawn_from_in_later_episodes_alone():
    short, long = (TaskDistribution(CartPoleTask, {"length": Uniform(ends)}) for ends in ((0.1, 0.2), (0.8, 0.9)))
    envs = make("CartPole", family=short, autoreset_mode="SameStep", max_episode_steps=2)
    envs.reset(seed=0)
    envs.unwrapped.set_family(long)
    envs.step(np.zeros(NUM_ENVS, dtype=np.int64))
    assert all(map(short.contains, envs.unwrapped.tasks))
    envs.step(np.zeros(NUM_ENVS, dtype=np.int64))  # ends all episodes
    assert all(map(long.contains, envs.unwrapped.tasks))
    with pytest.raises(ValueError, match="family must be"):
        envs.unwrapped.set_family(TaskDistribution(PendulumTask, {"l": Uniform((1.0, 2.0))}))
    assert envs.unwrapped.family.train == long


def test_one_row_whose_family_is_set_is_the_single_environment():
    long = TaskDistribution(CartPoleTask, {"length": Uniform((0.8, 0.9))})
    single, envs = gym.make("ssm_metarl/CartPole-v0"), make("CartPole", 1)
    drawn = []
    for env, tasks_of in ((single, lambda: single.unwrapped.task), (envs, lambda: envs.unwrapped.tasks[0])):
        env.reset(seed=3)
        env.unwrapped.set_family(long)
        env.reset()
        drawn.append(tasks_of())
    assert drawn[0] == drawn[1]
