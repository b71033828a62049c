import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from gymnasium.wrappers.vector import RecordEpisodeStatistics as VectorStatistics
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecVideoRecorder,
    is_vecenv_wrapped,
)
from torch import nn

from ssm_metarl_gym.agents import DynamicsModel, RecursiveLeastSquares
from ssm_metarl_gym.tasks.classic import CartPoleTask
from ssm_metarl_gym.wrappers import (
    ActionCorrection,
    HistoryWindow,
    OnlineAdaptation,
    SB3VecEnv,
    VectorActionCorrection,
    VectorHistoryWindow,
    VectorOnlineAdaptation,
)

OUR_ENV_IDS = ["ssm_metarl/CartPole-v0", "ssm_metarl/CartPolePolarity-v0", "ssm_metarl/Pendulum-v0"]
ENV_IDS = [*OUR_ENV_IDS, "CartPole-v1"]


def make_rows(env_id, n, **kwargs):
    return [lambda: gym.make(env_id, **kwargs)] * n


def make(env_id, n=3, wrapper=lambda env: env, **kwargs):
    return SB3VecEnv(wrapper(SyncVectorEnv(make_rows(env_id, n, **kwargs), autoreset_mode="SameStep")))


def make_batched(env_id, n=3, wrapper=lambda env: env, **kwargs):
    return SB3VecEnv(wrapper(gym.make_vec(env_id, n, autoreset_mode="SameStep", **kwargs)))


def exact(value):
    """The value as plain objects that ``==`` compares, arrays with their types."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.tolist()
    if isinstance(value, dict):
        return {key: exact(entry) for key, entry in value.items()}
    return [exact(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def play(env, num_steps, seed=3):
    """All that the environment gives back for random actions."""
    env.seed(seed)
    history = [(exact(env.reset()), exact(env.reset_infos))]
    env.action_space.seed(7)
    for _ in range(num_steps):
        step = env.step(np.array([env.action_space.sample() for _ in range(env.num_envs)]))
        history.append((exact(step), exact(env.reset_infos)))
    return history


def test_corrected_rows_tell_as_much_as_corrected_single_environments():
    env_id, options = "ssm_metarl/PendulumPolarity-v0", {"max_episode_steps": 3}
    env = gym.make(env_id)
    source, reference = (DynamicsModel(env.observation_space, env.action_space, nn.Linear(4, 4)) for _ in range(2))
    adapter = RecursiveLeastSquares(source)

    def corrected(envs):
        return VectorActionCorrection(VectorOnlineAdaptation(envs, adapter), reference)

    def single():
        return ActionCorrection(OnlineAdaptation(gym.make(env_id, **options), adapter), reference)

    envs, dummy = make_batched(env_id, 2, corrected, **options), DummyVecEnv([single] * 2)
    for vec_env in (envs, dummy):
        vec_env.reset()
    for _ in range(7):
        steps = [vec_env.step(np.ones((2, 1), dtype=np.float32)) for vec_env in (envs, dummy)]
        assert steps[0][2].tolist() == steps[1][2].tolist()
        for one, two in zip([*steps[0][3], *envs.reset_infos], [*steps[1][3], *dummy.reset_infos], strict=True):
            assert one.keys() == two.keys()
            assert all(one[name].keys() == two[name].keys() for name in ("adaptation", "correction") if name in one)


class InfoEnv(gym.Env):
    """Ends after as many steps as its row's number + 2, with infos of all kinds that come and go."""

    action_space = spaces.Discrete(2)

    def __init__(self, row, observation_space=None):
        self.row, self.t, self.kept = row, 0, [row]
        self.observation_space = observation_space or spaces.Box(-9, 9, (2, 1), dtype=np.float64)
        self.observation_space.seed(row)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observation_space.sample(), {"start": True, "who": "row", "options": dict(options or {})}

    def step(self, action):
        self.t += 1
        info = {
            "constant": {"row": self.row, "half": 0.5},
            "t": self.t,
            "float": np.float32(0.1),
            "vector": np.full(2, self.t),
            "list": [self.t, self.kept],
        }
        if (self.t + self.row) % 2:
            info |= {"_odd": self.t, "nested": {"deep": {"t": self.t}, "row": self.row}, "nothing": {}}
        if self.row:
            info["nested"] = {"other": 0.5}
        terminated, truncated = self.t >= self.row + 2, self.t == self.row + 2 and self.row < 2
        return self.observation_space.sample(), 1, terminated and self.row != 1, truncated, info


class BatchedEnv(VectorEnv):
    """Rows that are no objects, with what an environment of batched tasks has."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_fps": 50}  # noqa: RUF012
    single_observation_space = spaces.Box(-1.0, 1.0, (2,))
    single_action_space = spaces.Discrete(2)
    render_mode = "rgb_array"
    limit = 7.0
    name = "abc"

    def __init__(self, num_envs):
        self.num_envs = num_envs
        self.tasks = [CartPoleTask(length=0.1 * (i + 1)) for i in range(num_envs)]
        self.state = np.arange(2.0 * num_envs).reshape(num_envs, 2)
        self.kept = np.zeros((num_envs, 2), dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        self.seed, self.options = seed, options
        return self.kept, {}

    def step(self, actions):
        zeros = np.zeros(self.num_envs, dtype=bool)
        return self.kept, np.zeros(self.num_envs), zeros, zeros, {}

    def render(self):
        return tuple(np.full((4, 6, 3), i, dtype=np.uint8) for i in range(self.num_envs))

    def lengths(self, times=1):
        return [times * task.length for task in self.tasks]

    def total(self):
        return sum(self.lengths())


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_steps_are_those_of_dummy_vec_env(env_id):
    kwargs = {"max_episode_steps": 25}
    assert play(make(env_id, **kwargs), 60) == play(DummyVecEnv(make_rows(env_id, 3, **kwargs)), 60)


@pytest.mark.parametrize("env_id", OUR_ENV_IDS)
def test_steps_of_one_batched_row_are_those_of_dummy_vec_env(env_id):
    kwargs = {"max_episode_steps": 25}
    assert play(make_batched(env_id, 1, **kwargs), 60) == play(DummyVecEnv(make_rows(env_id, 1, **kwargs)), 60)
    env, dummy = make_batched(env_id, 1, context="visible"), DummyVecEnv(make_rows(env_id, 1, context="visible"))
    assert play(env, 30) == play(dummy, 30)


def test_rows_of_a_batched_environment_have_what_rows_of_their_own_have():
    env, rows = (make_any("ssm_metarl/CartPole-v0", max_episode_steps=9) for make_any in (make_batched, make))
    for each in (env, rows):
        each.seed(0)
        each.reset()
    assert env.observation_space == rows.observation_space
    assert env.action_space == rows.action_space
    for _ in range(20):
        (*_, infos), (*_, row_infos) = (each.step(np.array([0, 1, 0])) for each in (env, rows))
        for info, row_info in zip(infos, row_infos, strict=True):
            info.pop("terminal_observation", None)
            row_info.pop("terminal_observation", None)
            assert info.keys() == row_info.keys()
            assert info["task_params"].keys() == row_info["task_params"].keys()
            for name, value in (info | info["task_params"]).items():
                assert type(value) is type((row_info | row_info["task_params"])[name])


def test_the_tasks_and_states_of_a_batched_environment():
    env = make_batched("ssm_metarl/CartPole-v0", wrapper=VectorStatistics)
    env.seed(0)
    state = [[0.1, 0.0, 0.0, 0.0], [0.2, 0.0, 0.0, 0.0], [0.3, 0.0, 0.0, 0.0]]
    env.set_options([{"task": {"length": 0.3 + 0.1 * i}, "state": state[i], "low": -0.01} for i in range(3)])
    assert exact(env.reset()) == exact(np.array(state, dtype=np.float32))
    assert [info["task_params"]["length"] for info in env.reset_infos] == [0.3, 0.4, 0.5]
    assert env.get_attr("task", [2, 0]) == [CartPoleTask(length=0.5), CartPoleTask(length=0.3)]
    env.set_attr("task", CartPoleTask(length=0.7, polarity=-1), indices=[1])
    env.set_attr("state", [0.0, 0.0, 0.25, 0.0], indices=[0])  # about to fall
    assert [task.length for task in env.get_attr("task")] == [0.3, 0.7, 0.5]
    assert [row.tolist() for row in env.get_attr("state")] == [[0.0, 0.0, 0.25, 0.0], *state[1:]]
    _, _, dones, infos = env.step(np.array([0, 0, 0]))
    assert dones.tolist() == [True, False, False]
    # What ended did so in its own task, and begins with another one.
    assert [info["task_params"]["length"] for info in infos] == [0.3, 0.7, 0.5]
    assert infos[0]["terminal_observation"][2] == np.float32(0.25)
    assert infos[0]["episode"]["l"] == 1
    assert env.reset_infos[0]["task_params"]["length"] == env.get_attr("task", 0)[0].length != 0.3
    assert env.get_attr("max_episode_steps") == [500] * 3


def test_what_a_batched_environment_returned_is_the_callers_own():
    env, other = (make_batched("ssm_metarl/CartPolePolarity-v0", max_episode_steps=5) for _ in range(2))
    for each in (env, other):
        each.seed(0)
        each.reset()
    for _ in range(12):
        step, expected = env.step(np.array([0, 1, 1])), other.step(np.array([0, 1, 1]))
        assert exact(step) == exact(expected)
        for array in step[:3]:
            array[:] = 1
        for info in (*step[3], *env.reset_infos):
            info.get("task_params", {}).clear()
            info.clear()


def test_frames_of_a_batched_environment():
    env = make_batched("ssm_metarl/CartPole-v0", 4, render_mode="rgb_array")
    env.seed(0)
    env.reset()
    assert np.array_equal(env.render(), env.env.unwrapped.render_grid())
    assert np.array_equal(*(frames[0] for frames in (env.get_images(), env.env_method("render", indices=[0]))))
    env.close()


@pytest.mark.parametrize(("env_id", "algorithm"), [("ssm_metarl/CartPole-v0", PPO), ("ssm_metarl/Pendulum-v0", SAC)])
def test_algorithms_learn_on_a_batched_environment(env_id, algorithm):
    kwargs = {"n_steps": 8, "batch_size": 16, "n_epochs": 1} if algorithm is PPO else {"learning_starts": 16}
    model = algorithm("MlpPolicy", make_batched(env_id, 4, VectorStatistics, max_episode_steps=6), seed=0, **kwargs)
    model.learn(64)
    assert model.num_timesteps == 64
    assert len(model.ep_info_buffer) >= 4


def test_an_end_that_is_also_cut_off_is_no_truncation():
    rows = [lambda i=i: InfoEnv(i) for i in range(4)]
    history = play(SB3VecEnv(SyncVectorEnv(rows, autoreset_mode="SameStep")), 40)
    assert history == play(DummyVecEnv(rows), 40)
    ends = {
        (i, info["TimeLimit.truncated"]) for (step, _) in history[1:] for i, info in enumerate(step[3]) if step[2][1][i]
    }
    assert ends == {(0, False), (1, True), (2, False), (3, False)}


@pytest.mark.parametrize(
    "space",
    [spaces.Discrete(5), spaces.MultiBinary(3), spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Discrete(3))],
)
def test_other_observation_spaces(space):
    rows = [lambda: InfoEnv(0, space)]  # one row, because the rows share the space
    env, dummy = SB3VecEnv(SyncVectorEnv(rows, autoreset_mode="SameStep")), DummyVecEnv(rows)
    space.seed(0)
    history = play(env, 10)
    space.seed(0)
    assert history == play(dummy, 10)
    assert env.observation_space is space


def test_numbers_are_pythons():
    env = make("ssm_metarl/CartPole-v0")
    env.reset()
    info = env.step(np.zeros(3, dtype=int))[3][0]
    numbers = [info["task_id"], info["TimeLimit.truncated"], info["restarted"], *info["task_params"].values()]
    assert {type(number) for number in numbers} == {int, bool, float}


def test_what_is_returned_is_the_callers_own():
    def spoil(value):
        if isinstance(value, np.ndarray):
            value[...] = 1
        elif isinstance(value, dict):
            for entry in value.values():
                spoil(entry)
            value.clear()
        elif isinstance(value, list):
            for entry in value:
                spoil(entry)
            value.clear()

    rows = [lambda i=i: InfoEnv(i) for i in range(4)]
    env, other = (SB3VecEnv(SyncVectorEnv(rows, copy=False, autoreset_mode="SameStep")) for _ in range(2))
    first = env.reset()
    before = exact(first)
    other.reset()
    for _ in range(9):
        step, other_step = env.step([0] * 4), other.step([0] * 4)
        assert exact(step) == exact(other_step)
        assert exact(first) == before
        for value in (*step, *env.reset_infos):
            spoil(value)


def test_statistics_of_whole_episodes_reach_the_final_info():
    rows = [lambda: RecordEpisodeStatistics(TimeLimit(gym.make("CartPole-v1"), 20))] * 2
    of_rows, env = play(DummyVecEnv(rows), 60), play(make("CartPole-v1", 2, VectorStatistics, max_episode_steps=20), 60)
    assert len(env) == len(of_rows)
    num_episodes = 0
    for (step, reset_infos), (dummy_step, _) in zip(env[1:], of_rows[1:], strict=True):
        assert step[:3] == dummy_step[:3]
        assert reset_infos == [{}, {}]
        for info, dummy_info in zip(step[3], dummy_step[3], strict=True):
            assert info.keys() == dummy_info.keys()
            if "episode" in info:
                num_episodes += 1
                assert (info["episode"]["r"], info["episode"]["l"]) == (
                    dummy_info["episode"]["r"],
                    dummy_info["episode"]["l"],
                )
    assert num_episodes >= 4


def test_vector_wrappers_change_the_terminal_observation():
    env = make("ssm_metarl/CartPole-v0", 2, lambda env: VectorHistoryWindow(env, 3))
    rows = [lambda: HistoryWindow(gym.make("ssm_metarl/CartPole-v0"), 3)] * 2
    assert play(env, 60) == play(DummyVecEnv(rows), 60)
    assert env.get_attr("observation_space") == [env.observation_space] * 2
    assert env.env_is_wrapped(VectorHistoryWindow) == [True, True]


@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_other_autoreset_modes_are_refused(mode):
    rows = SyncVectorEnv(make_rows("CartPole-v1", 2), autoreset_mode=mode)
    with pytest.raises(ValueError, match=r"must be AutoresetMode.SAME_STEP; got AutoresetMode.*SameStep"):
        SB3VecEnv(rows)


def test_an_environment_that_does_not_say_its_mode_is_refused():
    env = BatchedEnv(2)
    env.metadata = {}
    with pytest.raises(ValueError, match="got None"):
        SB3VecEnv(env)


@pytest.mark.parametrize("parts", [spaces.Tuple, lambda parts: spaces.Dict(a=spaces.Dict(b=parts[0]))])
def test_observations_that_are_no_arrays_are_refused(parts):
    rows = [lambda: InfoEnv(0, parts([spaces.Discrete(2)]))]
    with pytest.raises(ValueError, match=r"must be an array or a Dict of arrays; got (Tuple|Dict)"):
        SB3VecEnv(SyncVectorEnv(rows, autoreset_mode="SameStep"))


def test_seeds_and_options_are_used_once():
    env, dummy = make("ssm_metarl/CartPole-v0"), DummyVecEnv(make_rows("ssm_metarl/CartPole-v0", 3))
    options = {"task": {"length": 0.7}, "low": [-0.01, -0.02, 0.0, 0.0], "state": [0.1, 0.0, 0.0, 0.0]}
    for each in (env, dummy):
        each.set_options(options)
        each.seed(5)
    for _ in range(2):
        assert exact(env.reset()) == exact(dummy.reset())
        assert env.reset_infos == dummy.reset_infos
    env.seed(np.int64(5))
    env.reset()
    assert env.get_attr("np_random_seed") == [5, 6, 7]


def test_a_batched_environment_gets_options_of_all_rows():
    batched = BatchedEnv(3)
    env = SB3VecEnv(batched)
    env.seed(4)
    env.set_options([{"task": {"length": i}, "state": [i, 0], "low": [0.0, 1.0]} for i in range(3)])
    env.reset()
    assert batched.seed == 4
    assert exact(batched.options.pop("state")) == exact(np.array([[0, 0], [1, 0], [2, 0]]))
    assert batched.options == {"tasks": [{"length": 0}, {"length": 1}, {"length": 2}], "low": [0.0, 1.0]}
    env.reset()
    assert (batched.seed, batched.options) == (None, None)
    env.set_options({"task": {"length": 1}})
    env.reset()
    assert batched.options == {"tasks": [{"length": 1}] * 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([{"low": 0}, {"low": [0, 1]}, {"low": 0}], r"'low' must be the same in all rows; got 0 and \[0, 1\]"),
        ([{"task": {}}, {}, {"task": {}}], "'task' must be given to every row; got it for 2 only"),
        ([{}], "must be one dict or 3, one a row; got 1"),
    ],
)
def test_options_that_no_batched_environment_can_take(options, message):
    env = SB3VecEnv(BatchedEnv(3))
    env.set_options(options)
    with pytest.raises(ValueError, match=message):
        env.reset()
    env.reset()  # without them


def test_attributes_and_methods_of_rows_that_are_environments():
    env = make("ssm_metarl/CartPole-v0", wrapper=VectorStatistics)
    env.reset()
    env.set_attr("task", CartPoleTask(length=0.7), indices=[0, 2])
    env.set_attr("length", 0.6, indices=1)
    assert [task.length for task in env.get_attr("task")] == env.get_attr("length") == [0.7, 0.6, 0.7]
    assert env.get_attr("polemass_length", 1) == [0.6 * task.masspole for task in env.get_attr("task", 1)]
    assert [state.shape for state in env.get_attr("state", range(2))] == [(4,), (4,)]
    assert env.get_attr("episode_count") == [0, 0, 0]  # of the vector wrapper
    assert [spec.id for spec in env.get_attr("spec")] == ["ssm_metarl/CartPole-v0"] * 3
    assert env.env_method("get_wrapper_attr", "length", indices=[2, 1]) == [0.7, 0.6]
    assert env.has_attr("task")
    assert not env.has_attr("tusk")
    with pytest.raises(AttributeError, match="tusk"):
        env.env_method("tusk")


def test_attributes_of_rows_that_are_none():
    batched = BatchedEnv(3)
    env = SB3VecEnv(VectorStatistics(batched))
    assert env.get_attr("task") == env.get_attr("tasks") == batched.tasks
    assert env.get_attr("task", 1) == [batched.tasks[1]]
    assert [state.tolist() for state in env.get_attr("state", [2, 0])] == [[4.0, 5.0], [0.0, 1.0]]
    assert env.get_attr("limit") == [7.0] * 3
    assert env.get_attr("name", [0, 1]) == ["abc", "abc"]  # text of three letters has no rows
    assert env.get_attr("render_mode") == ["rgb_array"] * 3
    assert env.get_attr("action_space", 0) == [spaces.Discrete(2)]
    assert env.get_attr("episode_count", [1]) == [0]
    assert env.has_attr("total")
    assert not env.has_attr("tusk")
    with pytest.raises(AttributeError, match="tusk"):
        env.set_attr("tusk", 1)


def test_what_a_vector_wrapper_overrides_comes_first():
    class Dark(VectorWrapper):
        shade = property(lambda self: [10 * i for i in range(self.num_envs)])

        def render(self):
            return tuple(np.zeros_like(frame) for frame in self.env.render())

    env = SB3VecEnv(VectorStatistics(Dark(BatchedEnv(3))))
    assert env.get_attr("shade", [2]) == [20]
    assert not np.any(env.env_method("render"))
    assert not env.render().any()


def test_setting_attributes_of_rows_that_are_none():
    batched = BatchedEnv(3)
    env = SB3VecEnv(VectorStatistics(batched))
    state, tasks = batched.state, batched.tasks
    env.set_attr("task", CartPoleTask(length=2.0), indices=[0, 2])
    env.set_attr("state", [8.0, 9.0], indices=-2)
    assert batched.lengths() == [2.0, 0.2, 2.0]
    assert batched.state.tolist() == [[0.0, 1.0], [8.0, 9.0], [4.0, 5.0]]
    assert (state[1].tolist(), tasks[0].length) == ([2.0, 3.0], 0.1)
    env.set_attr("limit", 8.0)
    assert batched.limit == 8.0
    with pytest.raises(ValueError, match=r"all rows share 'limit', which must be set for all; got indices=\[1\]"):
        env.set_attr("limit", 9.0, indices=1)


def test_methods_of_rows_that_are_none():
    env = SB3VecEnv(BatchedEnv(3))
    assert env.env_method("lengths", 10, indices=[2, 1]) == [10 * env.get_attr("task")[i].length for i in (2, 1)]
    assert env.env_method("total") == [env.env.total()] * 3
    assert [frame[0, 0, 0] for frame in env.env_method("render", indices=[1])] == [1]


def test_wrappers_around_rows():
    env = SB3VecEnv(SyncVectorEnv([lambda: Monitor(gym.make("CartPole-v1"))] * 2, autoreset_mode="SameStep"))
    assert env.env_is_wrapped(Monitor) == [True, True]
    assert make("CartPole-v1").env_is_wrapped(Monitor, indices=[0]) == [False]
    assert SB3VecEnv(BatchedEnv(2)).env_is_wrapped(Monitor) == [False, False]


def test_frames_are_tiled(fast_windows):
    env = SB3VecEnv(BatchedEnv(4))
    assert env.render_mode == "rgb_array"
    assert env.metadata["render_fps"] == 50
    assert env.render()[::4, ::6, 0].tolist() == [[0, 1], [2, 3]]
    env, dummy = (
        make("ssm_metarl/CartPole-v0", 2, render_mode="rgb_array"),
        DummyVecEnv(make_rows("ssm_metarl/CartPole-v0", 2, render_mode="rgb_array")),
    )
    for each in (env, dummy):
        each.seed(0)
        each.reset()
    assert np.array_equal(env.render(), dummy.render())
    human = make("ssm_metarl/CartPole-v0", 1, render_mode="human")
    human.reset()
    assert human.render() is None
    for each in (env, dummy, human):
        each.close()
    assert env.env.closed


def test_no_frames_without_a_render_mode():
    env = make("CartPole-v1", 2)
    assert env.render_mode is None
    with pytest.warns(UserWarning, match="need the render mode 'rgb_array'; got None"):
        assert env.get_images() == [None, None]


@pytest.mark.parametrize(
    "wrap",
    [VecMonitor, VecNormalize, lambda env: VecFrameStack(env, 2), lambda env: VecCheckNan(env, raise_exception=True)],
)
def test_sb3s_wrappers_see_no_difference(wrap):
    def seen(env):
        history = play(wrap(env), 60)
        for (_, _, _, infos), _ in history[1:]:
            for info in infos:
                info.get("episode", {}).pop("t", None)
        return history

    assert seen(make("ssm_metarl/CartPole-v0")) == seen(DummyVecEnv(make_rows("ssm_metarl/CartPole-v0", 3)))


def test_attributes_are_found_through_sb3s_wrappers():
    env = VecNormalize(VecMonitor(SB3VecEnv(BatchedEnv(2))))
    assert is_vecenv_wrapped(env, VecMonitor)
    assert env.get_attr("task", 0) == [CartPoleTask(length=0.1)]
    assert env.unwrapped.env.num_envs == 2


def learned(env, **kwargs):
    settings = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 1, "device": "cpu"}
    return PPO("MlpPolicy", env, **settings | kwargs).learn(64)


def test_ppo_learns_what_it_learns_from_dummy_vec_env():
    env_id = "ssm_metarl/CartPole-v0"
    models = [learned(env) for env in (make(env_id), DummyVecEnv(make_rows(env_id, 3)))]
    ours, dummys = ([p.tolist() for p in model.policy.parameters()] for model in models)
    assert ours == dummys


def test_a_model_is_saved_loaded_and_evaluated(tmp_path):
    env = VecMonitor(make("ssm_metarl/CartPolePolarity-v0", max_episode_steps=20))
    learned(env).save(tmp_path / "model")
    model = PPO.load(tmp_path / "model", env=env).learn(64)
    rewards, lengths = evaluate_policy(model, env, n_eval_episodes=4, return_episode_rewards=True)
    assert lengths == [20] * len(rewards)
    with pytest.warns(UserWarning, match="not wrapped with a ``Monitor``"):
        assert evaluate_policy(model, env.venv, n_eval_episodes=3)[0] <= 20.0


@pytest.mark.parametrize(("algorithm", "env_id"), [(DQN, "ssm_metarl/CartPole-v0"), (SAC, "ssm_metarl/Pendulum-v0")])
def test_replay_buffers_fill_from_many_rows(algorithm, env_id):
    model = algorithm("MlpPolicy", make(env_id), learning_starts=60, buffer_size=300, batch_size=8, device="cpu")
    model.learn(96)
    assert model.num_timesteps == 96
    assert model.replay_buffer.size() == 32


def test_videos_are_recorded(tmp_path):
    pytest.importorskip("moviepy")
    env = make_batched("ssm_metarl/Pendulum-v0", 2, render_mode="rgb_array")
    recorder = VecVideoRecorder(env, str(tmp_path), lambda step: step == 0, video_length=5)
    recorder.reset()
    for _ in range(6):
        recorder.step(np.zeros((2, 1), np.float32))
    recorder.close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]


def test_the_error_says_how_this_environment_gets_the_mode():
    with pytest.raises(ValueError, match=r'got AutoresetMode.NEXT_STEP. Make the environment with autoreset_mode="S'):
        SB3VecEnv(gym.make_vec("ssm_metarl/CartPole-v0", 2))
    with pytest.raises(ValueError, match=r'environment with vector_kwargs=\{"autoreset_mode": "SameStep"\}'):
        SB3VecEnv(gym.make_vec("CartPole-v1", 2, vectorization_mode="sync"))
    kwargs = {"autoreset_mode": "SameStep"}
    SB3VecEnv(gym.make_vec("CartPole-v1", 2, vectorization_mode="sync", vector_kwargs=kwargs)).close()


def test_other_things_than_vector_environments_are_refused():
    with pytest.raises(ValueError, match=r"needs a vector environment; got <.*Make one with gym.make_vec"):
        SB3VecEnv(gym.make("CartPole-v1"))
