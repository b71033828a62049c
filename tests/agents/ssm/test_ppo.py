import copy
import csv
import warnings
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecFrameStack, VecMonitor, VecNormalize

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.agents import SSMPPO
from ssm_metarl_gym.wrappers import SB3VecEnv, make_sb3_env

T = 8
VECTOR = spaces.Box(-1.0, 1.0, (3,))
IMAGE = spaces.Box(0, 255, (36, 40, 1), np.uint8)  # channels last, as environments have them
OBSERVATIONS = {
    "Box": VECTOR,
    "Discrete": spaces.Discrete(4),
    "Dict": spaces.Dict({"vector": VECTOR, "symbol": spaces.Discrete(4)}),
    "image": IMAGE,
    "Dict with image": spaces.Dict({"image": IMAGE, "vector": VECTOR}),
}
ACTIONS = {
    "Discrete": spaces.Discrete(3),
    "Box": spaces.Box(-1.0, 1.0, (2,)),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(3),
}
POLICIES = {"Dict": "MultiInputSSMPolicy", "image": "CnnSSMPolicy", "Dict with image": "MultiInputSSMPolicy"}


def slow_but(fast, kinds):
    """All kinds, of which a few run by default."""
    return [kind if kind in fast else pytest.param(kind, marks=pytest.mark.slow) for kind in kinds]


class NoiseEnv(gym.Env):
    """Random observations and a reward of 1 in episodes of the given lengths, over and over."""

    def __init__(self, observations="Box", actions="Discrete", lengths=(3, 5, 4)):
        self.observation_space, self.action_space = copy.deepcopy((OBSERVATIONS[observations], ACTIONS[actions]))
        self.lengths, self.episode = lengths, -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(1000)))
        self.episode, self.steps_left = self.episode + 1, self.lengths[(self.episode + 1) % len(self.lengths)]
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.steps_left -= 1
        return self.observation_space.sample(), 1.0, self.steps_left == 0, False, {}


def noise(num_envs=3, observations="Box", actions="Discrete"):
    """Environments whose episodes end at different steps."""
    lengths = [(3, 5, 4), (20, 1, 2), (7,)]
    return DummyVecEnv([partial(NoiseEnv, observations, actions, lengths[i % 3]) for i in range(num_envs)])


def make(env="CartPole-v1", policy="SSMPolicy", *, policy_kwargs=None, **kwargs):
    small = {"ssm_kwargs": {"hidden_dim": 8, "output_dim": 6}} | (policy_kwargs or {})
    options = {"n_steps": T, "batch_size": T, "n_epochs": 1, "seed": 0, "device": "cpu"} | kwargs
    return SSMPPO(policy, env, policy_kwargs=small, **options)


def make_lively(*args, **kwargs):
    """With actions and a memory that matter: SB3 starts policies so that all actions look alike."""
    model = make(*args, **kwargs)
    with torch.no_grad():
        model.policy.action_net.weight.normal_()
    return model


def collect(model, num_rollouts=1, callback=None):
    """Rollouts without learning."""
    model.train = lambda: None
    model.learn(num_rollouts * model.n_steps * model.n_envs, callback)


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.policy.named_parameters()}


def same(one, other):
    return all(torch.equal(parameter, other[name]) for name, parameter in one.items())


class Recorder(BaseCallback):
    """What the algorithm shows callbacks at each step."""

    def __init__(self, *names):
        super().__init__()
        self.names, self.history = names, []

    def _on_step(self):
        self.history.append({name: copy.deepcopy(self.locals[name]) for name in self.names})
        return True


class TestLearningStartsFromWhatTheRolloutSaw:
    """With unchanged weights, the first ratio of new to old probability is 1, in the middle of episodes too."""

    def check(self, model):
        collect(model, 2)  # the second rollout starts with a memory
        assert not (model.rollout_buffer.states == 0).all()
        assert 0 < model.rollout_buffer.episode_starts[1:].mean() < 1
        assert (model.rollout_buffer.episode_starts[0] == 0).any()
        for samples in model.rollout_buffer.get(model.batch_size):
            actions = samples.actions
            if isinstance(model.action_space, spaces.Discrete):
                actions = actions.long().flatten()
            values, log_probs, _ = model.policy.evaluate_actions(samples.observations, actions)
            ratio = torch.exp(log_probs - samples.old_log_prob)
            torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-4)
            torch.testing.assert_close(values.flatten(), samples.old_values, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("actions", ACTIONS)
    def test_for_every_kind_of_action(self, actions):
        self.check(make_lively(noise(actions=actions), batch_size=3 * T))

    @pytest.mark.parametrize("observations", [kind for kind in OBSERVATIONS if kind != "Box"])
    def test_for_every_kind_of_observation(self, observations):
        self.check(make_lively(noise(2, observations), POLICIES.get(observations, "SSMPolicy")))

    @pytest.mark.each_value
    @pytest.mark.parametrize("sde_sample_freq", [-1, 3])
    @pytest.mark.parametrize("squash_output", [False, True])
    def test_for_state_dependent_exploration(self, squash_output, sde_sample_freq):
        kwargs = {"squash_output": squash_output, "log_std_init": -2.0}
        env = noise(actions="Box")
        self.check(make_lively(env, use_sde=True, sde_sample_freq=sde_sample_freq, policy_kwargs=kwargs))


class WholeRewards(VecEnvWrapper):
    """Rewards are integers, as those of environments in processes may be."""

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, rewards.astype(np.int64), dones, infos


class TestTimeLimits:
    """One environment terminates after 3 steps, one is cut off after 4, one every other time after 5 steps."""

    def envs(self, observations):
        makers = [partial(NoiseEnv, observations, lengths=lengths) for lengths in ((3,), (100,), (100, 5))]
        return DummyVecEnv([partial(self.limit, maker, 3 + i) for i, maker in enumerate(makers)])

    @staticmethod
    def limit(maker, max_episode_steps):
        return TimeLimit(maker(), max_episode_steps)

    def test_it_is_added_to_whole_rewards_too(self):
        models = [make_lively(env, gamma=0.5) for env in (self.envs("Box"), WholeRewards(self.envs("Box")))]
        for model in models:
            collect(model)
        rewards, others = (model.rollout_buffer.rewards for model in models)
        assert (rewards % 1.0 != 0.0).any()
        np.testing.assert_allclose(rewards, others)

    @pytest.mark.parametrize("observations", slow_but(["Box", "Dict"], OBSERVATIONS))
    def test_what_would_have_followed_is_added_to_the_reward(self, observations):
        model = make_lively(self.envs(observations), POLICIES.get(observations, "SSMPolicy"), n_steps=16, batch_size=16)
        recorder = Recorder("obs_tensor", "dones", "infos", "new_obs", "values")
        collect(model, callback=recorder)
        policy, buffer = model.policy, model.rollout_buffer
        state, start = policy.initial_state(3), torch.ones(3, dtype=torch.bool)
        num_cut = 0
        with torch.no_grad():
            for t, step in enumerate(recorder.history):
                _, state = policy.get_distribution(step["obs_tensor"], state, start)
                expected = np.ones(3)
                for i in np.flatnonzero([info["TimeLimit.truncated"] for info in step["infos"]]):
                    last, _ = policy.obs_to_tensor(step["infos"][i]["terminal_observation"])
                    value = policy.predict_values(last, state[[i]], torch.zeros(1, dtype=torch.bool))
                    expected[i] += model.gamma * value.item()
                    num_cut += 1
                np.testing.assert_allclose(buffer.rewards[t], expected, rtol=1e-5, atol=1e-5)
                start = torch.from_numpy(step["dones"])
            # 16 steps: four cut after 4, of those after 5 the first and the third.
            assert num_cut == 4 + 2
            # What follows the last step: the value of the observation after it, of which nothing is added twice.
            new_obs = policy.obs_to_tensor(recorder.history[-1]["new_obs"])[0]
            follows = policy.predict_values(new_obs, state, start).flatten().numpy()
        delta = buffer.rewards[-1] + model.gamma * follows * ~start.numpy() - buffer.values[-1]
        np.testing.assert_allclose(buffer.advantages[-1], delta, rtol=1e-5, atol=1e-5)

    def test_episodes_that_end_by_themselves_get_nothing(self):
        model = make_lively(noise())
        collect(model)
        assert (model.rollout_buffer.rewards == 1.0).all()


class TestCallbacks:
    def test_run_with_gradients_and_see_what_those_of_ppo_see(self):
        seen = []

        def callback(local, _):
            seen.append((torch.is_grad_enabled(), set(local)))
            return True

        make(noise()).learn(3 * T, callback)
        names = "actions callback clipped_actions dones env infos log_probs n_rollout_steps n_steps new_obs obs_tensor"
        names = {*names.split(), "rewards", "rollout_buffer", "self", "values"}
        assert len(seen) == T
        assert all(enabled and names <= found for enabled, found in seen)

    def test_may_stop_in_the_middle_of_a_rollout_and_learning_goes_on_from_there(self):
        env = noise(1)
        model = make(env).learn(10 * T, lambda local, _: local["self"].num_timesteps < 3)
        assert model.num_timesteps == 3  # the first episode has just ended
        recorder, shown = Recorder("obs_tensor", "starts"), env.buf_obs[None].copy()
        model.learn(T, recorder, reset_num_timesteps=False)
        assert model.num_timesteps == 3 + T
        np.testing.assert_array_equal(recorder.history[0]["obs_tensor"], shown)
        assert [step["starts"].item() for step in recorder.history] == [t in (0, 5) for t in range(T)]

    def test_may_copy_and_use_the_policy_in_the_middle_of_a_rollout(self):
        copies = []
        make(noise()).learn(3 * T, lambda local, _: copies.append(copy.deepcopy(local["self"].policy)) or True)
        observation = np.zeros(3, np.float32)
        before = copies[0].predict(observation)[1]
        with torch.no_grad():
            copies[0].ssm.encoder.bias.normal_()
        assert not np.isclose(copies[0].predict(observation)[1], before).all()

    def test_checkpoints_can_be_loaded(self, tmp_path):
        model = make(noise()).learn(3 * T, CheckpointCallback(4, str(tmp_path)))
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["rl_model_12_steps.zip", "rl_model_24_steps.zip"]
        loaded = SSMPPO.load(tmp_path / names[0], env=noise(), device="cpu")
        assert loaded.num_timesteps == 12
        loaded.learn(3 * T)
        assert weights(loaded).keys() == weights(model).keys()

    def test_evaluate_and_stop(self, tmp_path):
        stop = StopTrainingOnRewardThreshold(reward_threshold=2.0)
        evaluate = EvalCallback(
            Monitor(NoiseEnv()), stop, n_eval_episodes=2, eval_freq=5, verbose=0, best_model_save_path=str(tmp_path)
        )
        model = make(noise()).learn(30 * T, evaluate)
        assert model.num_timesteps == 5 * 3
        assert evaluate.best_mean_reward == (3 + 5) / 2
        assert SSMPPO.load(tmp_path / "best_model", device="cpu").num_timesteps == 15

    def test_count_episodes(self):
        model = make(noise(1)).learn(10 * T, StopTrainingOnMaxEpisodes(3))
        assert model.num_timesteps == 3 + 5 + 4

    def test_draw_a_progress_bar(self):
        pytest.importorskip("rich")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tqdm's support of rich is experimental
            model = make(noise()).learn(6 * T, progress_bar=True)
        assert model.num_timesteps == 6 * T


class TestLogs:
    NAMES = ("approx_kl", "clip_fraction", "entropy_loss", "explained_variance", "learning_rate", "loss", "value_loss")

    def test_are_those_of_ppo(self, tmp_path):
        model = make(VecMonitor(noise()), learning_rate=lambda remaining: 1e-3 * remaining, clip_range_vf=0.5)
        model.set_logger(configure(str(tmp_path), ["csv"]))
        model.learn(4 * 3 * T).logger.close()
        with (tmp_path / "progress.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert {f"train/{name}" for name in self.NAMES} < rows[-1].keys()
        assert all(np.isfinite(float(rows[-1][f"train/{name}"])) for name in self.NAMES)
        assert float(rows[-1]["rollout/ep_len_mean"]) > 1
        assert [row["time/total_timesteps"] for row in rows] == ["24", "48", "72", "96"]
        # Each row has what was logged before it; the fifth update would have the rate zero.
        rates = [float(row["train/learning_rate"]) for row in rows[1:]]
        np.testing.assert_allclose(rates, [7.5e-4, 5e-4, 2.5e-4])
        assert model.policy.optimizer.param_groups[0]["lr"] == 0.0

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_go_to_tensorboard(self, tmp_path):
        pytest.importorskip("tensorboard")
        make(noise(), tensorboard_log=str(tmp_path)).learn(3 * T).logger.close()
        assert [path.name for path in tmp_path.iterdir()] == ["SSMPPO_1"]
        assert list((tmp_path / "SSMPPO_1").glob("events.out.tfevents.*"))


class TestEnvironments:
    @pytest.mark.parametrize("num_envs", [1, 3])
    def test_learns_from_those_of_make_vec_env_and_is_evaluated(self, num_envs):
        model = make(make_vec_env("CartPole-v1", num_envs, seed=0)).learn(2 * num_envs * T)
        rewards, lengths = evaluate_policy(model, make_vec_env("CartPole-v1", 2), 3, return_episode_rewards=True)
        assert rewards == lengths
        assert model.num_timesteps == 2 * num_envs * T

    @pytest.mark.parametrize(("num_envs", "mode"), [(1, None), pytest.param(4, "sync", marks=pytest.mark.slow)])
    def test_learns_from_vector_environments_as_from_single_ones(self, num_envs, mode):
        def trained(env):
            return weights(make(env).learn(2 * num_envs * T))

        def rows(split):
            return DummyVecEnv([lambda: gym.make(env_id, split=split)] * num_envs)

        env_id = "ssm_metarl/CartPolePolarity-v0"
        kwargs = {"vector_kwargs": {"autoreset_mode": "SameStep"}} if mode else {"autoreset_mode": "SameStep"}
        vector = trained(SB3VecEnv(gym.make_vec(env_id, num_envs, mode, **kwargs)))
        assert same(vector, trained(rows("train")))
        assert not same(vector, trained(rows("extrapolation")))

    def test_learns_from_batched_environments(self):
        env = SB3VecEnv(gym.make_vec("ssm_metarl/CartPolePolarity-v0", 4, autoreset_mode="SameStep"))
        assert make(env, batch_size=2 * T).learn(4 * T).rollout_buffer.states.shape == (4, 2, 2, 4)

    def test_learns_from_vector_environments_of_gymnasium(self):
        kwargs = {"vectorization_mode": "sync", "vector_kwargs": {"autoreset_mode": "SameStep"}}
        env = SB3VecEnv(gym.make_vec("Pendulum-v1", 2, max_episode_steps=5, **kwargs))
        assert make(env).learn(2 * T).num_timesteps == 2 * T

    def test_learns_from_normalised_ones(self):
        model = make(VecNormalize(VecMonitor(noise()))).learn(3 * T)
        env = model.get_vec_normalize_env()
        assert env.obs_rms.count > T
        env.training = False
        assert np.isfinite(evaluate_policy(model, env, 2)[0])

    def test_learns_from_stacks(self):
        assert make(VecFrameStack(noise(), 2)).learn(3 * T).policy.ssm.state_dim == 6

    def test_takes_an_environment_by_its_name_and_by_itself(self):
        assert make("CartPole-v1").learn(T).n_envs == 1
        assert make(gym.make("CartPole-v1")).learn(T).n_envs == 1

    @pytest.mark.parametrize("observations", slow_but(["Box", "Dict with image"], OBSERVATIONS))
    def test_learns_and_predicts_for_every_kind_of_observation(self, observations):
        env = Monitor(NoiseEnv(observations, "Box"))
        model = make(env, POLICIES.get(observations, "SSMPolicy"))
        before = weights(model)
        model.learn(2 * T)
        assert all(not torch.equal(parameter, before[name]) for name, parameter in weights(model).items())
        observation, state = env.reset(seed=0)[0], None
        for _ in range(3):
            action, state = model.predict(observation, state)
            observation, *_ = env.step(action)

    def test_another_one_may_take_its_place(self):
        model = make(noise()).learn(3 * T)
        model.set_env(noise())
        recorder = Recorder("starts")
        model.learn(3 * T, recorder, reset_num_timesteps=False)
        assert recorder.history[0]["starts"].all()
        with pytest.raises(AssertionError, match="different from the number of environments"):
            model.set_env(noise(2))


class TestLearning:
    @pytest.mark.parametrize(
        ("actions", "kwargs"),
        [(kind, {}) for kind in ACTIONS] + [("Box", {"net_arch": {"pi": [5], "vf": [4]}})],
        ids=str,
    )
    def test_changes_all_parameters(self, actions, kwargs):
        model = make(noise(actions=actions), policy_kwargs=kwargs, ent_coef=0.01)
        before = weights(model)
        model.learn(3 * T)
        assert all(not torch.equal(parameter, before[name]) for name, parameter in weights(model).items())

    def test_is_the_same_for_the_same_seed_only(self):
        def trained(seed):
            return weights(make(noise(), seed=seed).learn(2 * 3 * T))

        first = trained(0)
        assert same(trained(0), first)
        assert not same(trained(1), first)

    def test_goes_on_where_it_was(self):
        """Two calls are one, but for the schedules' and the seed's sake: the memory goes from rollout to rollout."""
        once, twice = make(noise()).learn(4 * 3 * T), make(noise()).learn(2 * 3 * T)
        twice.learn(2 * 3 * T, reset_num_timesteps=False)
        assert same(weights(once), weights(twice))

    def test_starts_anew_with_new_episodes(self):
        model, recorder = make(noise()).learn(3 * T), Recorder("starts")
        model.learn(3 * T, recorder)
        assert recorder.history[0]["starts"].all()

    def test_the_memory_goes_from_rollout_to_rollout(self):
        model, recorder = make(noise()), Recorder("state")
        collect(model, 2, recorder)
        assert torch.equal(model.rollout_buffer.states, recorder.history[T - 1]["state"])
        assert not torch.equal(model.rollout_buffer.states, recorder.history[0]["state"])

    def test_stops_early_where_the_policy_moves_too_far(self):
        def num_updates(target_kl):
            model = make(noise(), learning_rate=1e-2, n_epochs=5, target_kl=target_kl).learn(3 * T)
            return model.logger.name_to_value["train/n_updates"]

        assert (num_updates(None), num_updates(1e-9)) == (5, 1)

    @pytest.mark.parametrize(("sde_sample_freq", "num_matrices"), [(-1, 1), (3, 3), (1, T)])
    def test_explores_by_another_matrix_as_often_as_it_was_asked_to(self, sde_sample_freq, num_matrices):
        matrices = set()

        def callback(local, _):
            matrices.add(local["self"].policy.action_dist.exploration_matrices.detach().numpy().tobytes())
            return True

        make(noise(actions="Box"), use_sde=True, sde_sample_freq=sde_sample_freq).learn(3 * T, callback)
        assert len(matrices) == num_matrices

    def test_a_learning_rate_of_zero_changes_nothing(self):
        model = make(noise(), learning_rate=0.0)
        before = weights(model)
        assert same(weights(model.learn(3 * T)), before)


class TestSaving:
    KINDS = pytest.mark.parametrize(
        ("observations", "kwargs"),
        [
            pytest.param("Box", {}, marks=pytest.mark.slow),
            ("Box", {"use_sde": True, "clip_range_vf": 0.2}),
            pytest.param("Dict", {}, marks=pytest.mark.slow),
            ("image", {}),
        ],
        ids=str,
    )

    @KINDS
    def test_a_loaded_model_acts_the_same(self, tmp_path, observations, kwargs):
        model = make(noise(3, observations, "Box"), POLICIES.get(observations, "SSMPolicy"), **kwargs).learn(3 * T)
        model.save(tmp_path / "model")
        loaded = SSMPPO.load(tmp_path / "model", device="cpu")
        assert loaded.env is None
        data = load_from_zip_file(tmp_path / "model")[0]
        assert not any(isinstance(value, torch.Tensor) for value in data.values())  # would ask for a GPU where one was
        assert same(weights(model), weights(loaded))
        env, states = noise(3, observations, "Box"), (None, None)
        observation = model.env.reset() if observations == "image" else env.reset()
        for _ in range(3):
            (action, one), (again, other) = (
                each.predict(observation, state, deterministic=True)
                for each, state in zip((model, loaded), states, strict=True)
            )
            states = one, other
            np.testing.assert_array_equal(again, action)
            np.testing.assert_array_equal(other, one)

    @pytest.mark.parametrize("num_envs", slow_but([5], [1, 3, 5]))
    def test_a_loaded_model_goes_on_learning_with_any_number_of_environments(self, tmp_path, num_envs):
        make(noise()).learn(2 * 3 * T).save(tmp_path / "model")
        loaded = SSMPPO.load(tmp_path / "model", env=noise(num_envs), device="cpu")
        before, recorder = weights(loaded), Recorder("starts")
        loaded.learn(num_envs * T, recorder, reset_num_timesteps=False)
        assert loaded.num_timesteps == 2 * 3 * T + num_envs * T
        assert recorder.history[0]["starts"].all()
        assert loaded.rollout_buffer.states.shape == (num_envs, 2, 2, 4)
        assert not any(torch.equal(parameter, before[name]) for name, parameter in weights(loaded).items())

    def test_a_loaded_model_learns_as_the_one_that_was_saved_would(self, tmp_path):
        model = make(noise()).learn(2 * 3 * T)
        model.save(tmp_path / "model")
        loaded = SSMPPO.load(tmp_path / "model", env=noise(), device="cpu")
        for each in (model, loaded):
            each.set_env(noise())
            each.set_random_seed(3)
            each.learn(2 * 3 * T, reset_num_timesteps=False)
        assert same(weights(model), weights(loaded))  # the optimiser's statistics came along

    def test_a_loaded_model_takes_an_environment_later(self, tmp_path):
        make(noise()).save(tmp_path / "model")
        loaded = SSMPPO.load(tmp_path / "model", device="cpu")
        loaded.set_env(noise())
        assert loaded.learn(3 * T).num_timesteps == 3 * T

    def test_parameters_may_be_set(self):
        model, other = make(noise(), seed=0).learn(3 * T), make(noise(), seed=1)
        other.set_parameters(model.get_parameters())
        assert same(weights(model), weights(other))
        moments = [each.policy.optimizer.state_dict()["state"][0]["exp_avg"] for each in (model, other)]
        assert torch.equal(*moments)

    def test_the_policy_may_be_saved_alone(self, tmp_path):
        model = make(noise()).learn(3 * T)
        model.policy.save(tmp_path / "policy")
        loaded = type(model.policy).load(tmp_path / "policy", device="cpu")
        observation = VECTOR.sample()
        for one, other in zip(
            *(each.predict(observation, deterministic=True) for each in (model, loaded)), strict=True
        ):
            np.testing.assert_array_equal(one, other)


def test_a_minibatch_is_one_environment_by_default():
    assert SSMPPO("SSMPolicy", noise(), n_steps=12, device="cpu").batch_size == 12


class TestRefuses:
    def test_sizes_that_do_not_fit_after_loading(self, tmp_path):
        make(noise()).save(tmp_path / "model")
        with pytest.raises(ValueError, match="batch_size must be a multiple of n_steps"):
            SSMPPO.load(tmp_path / "model", n_steps=T - 1)

    @pytest.mark.parametrize(("batch_size", "advice"), [(7, 8), (12, 8), (17, 16), (1, 8)])
    def test_minibatches_of_parts_of_rows(self, batch_size, advice):
        with pytest.raises(
            ValueError, match=f"multiple of n_steps.*got batch_size {batch_size}.*Use batch_size={advice}"
        ):
            make(noise(), batch_size=batch_size)

    @pytest.mark.parametrize("name", ["n_steps", "batch_size"])
    @pytest.mark.parametrize("size", [0, -8, 8.0])
    def test_sizes_that_are_none(self, name, size):
        with pytest.raises(ValueError, match=f"{name} must be an int >= 1; got"):
            make(noise(), **{name: size})

    def test_minibatches_of_one_step_whose_advantages_have_no_spread(self):
        with pytest.raises(ValueError, match=r"batch_size must be at least 2 .* got batch_size=None and n_steps=1"):
            SSMPPO("SSMPolicy", noise(), n_steps=1, device="cpu")
        SSMPPO("SSMPolicy", noise(), n_steps=1, normalize_advantage=False, device="cpu")

    def test_two_features_extractors(self):
        with pytest.raises(ValueError, match="share_features_extractor must be True"):
            make(noise(), policy_kwargs={"share_features_extractor": False})

    @pytest.mark.parametrize("name", ["MlpPolicy", "SsmPolicy"])
    def test_policies_it_does_not_know(self, name):
        with pytest.raises(ValueError, match=f"policy must be one of .*'SSMPolicy'.*got '{name}'"):
            make(noise(), name)

    def test_policies_without_memory(self):
        with pytest.raises(ValueError, match="SSMPolicy"):
            SSMPPO(ActorCriticPolicy, noise(), n_steps=T, batch_size=T)

    def test_dictionaries_for_a_policy_that_reads_vectors(self):
        with pytest.raises(ValueError, match="'MultiInputSSMPolicy'"):
            make(noise(observations="Dict"))


@pytest.mark.slow
class TestMemory:
    """Name the symbol shown four steps ago, one of four: a quarter of the answers are right by chance."""

    def score(self, kind, policy, seed=0, **kwargs):
        env = VecNormalize(make_sb3_env("ssm_metarl/RepeatObservation-v0", 16, observation="transition"), gamma=0.5)
        options = {"n_steps": 128, "batch_size": 256, "n_epochs": 4, "learning_rate": 3e-3, "gamma": 0.5}
        model = kind(policy, env, gae_lambda=0.5, **options, **kwargs, seed=seed, device="cpu").learn(16 * 128 * 10)
        env.training = env.norm_reward = False
        return evaluate_policy(model, env, 32)[0]

    def test_solves_a_task_that_needs_it(self):
        ssm_kwargs = {"radius": (0.95, 0.999), "max_angle": 3.14}
        assert self.score(SSMPPO, "SSMPolicy", policy_kwargs={"ssm_kwargs": ssm_kwargs}) > 0.9

    def test_is_what_ppo_lacks(self):
        assert self.score(PPO, "MlpPolicy") < 0.5
