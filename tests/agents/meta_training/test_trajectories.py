import numpy as np
import pytest
import torch
from torch.func import functional_call

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.agents.meta_training.trajectories import BatchedEnvs, collect_trajectories
from ssm_metarl_gym.agents.models.meta_policy import MetaPolicy

K, M = 3, 4
SEED = np.random.SeedSequence(5)
FALLING, TRIALS, POINT = (f"ssm_metarl/{name}-v0" for name in ("CartPole", "CartPolePolarity", "PointNavigation"))


def make(env_id, network="mlp", **env_kwargs):
    """Rows, a policy, weights that differ from task to task, and tasks."""
    envs = BatchedEnvs(env_id, env_kwargs)
    policy = MetaPolicy(envs.observation_space, envs.action_space, network=network, width=8)
    policy.set_normalisation(torch.randn(100, envs.observation_space.shape[0]) * 0.5 + 0.1)
    weights = {name: w.detach() + 0.3 * torch.randn(K, *w.shape) for name, w in policy.named_parameters()}
    return envs, policy, weights, envs.draw_tasks("train", K, np.random.SeedSequence(0))


def collect(env_id, network="mlp", seed=SEED):
    envs, policy, weights, tasks = make(env_id, network)
    return collect_trajectories(envs, policy, weights, tasks, M, seed=np.random.SeedSequence(seed.entropy))


def same(first, second):
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in first.__dataclass_fields__)


@pytest.mark.each_value
@pytest.mark.parametrize("env_id", [TRIALS, POINT])
@pytest.mark.parametrize("network", ["mlp", "ssm"])
def test_each_task_is_acted_in_with_its_own_weights_and_memory_from_the_start_of_the_episode(env_id, network):
    envs, policy, weights, tasks = make(env_id, network, max_episode_steps=50)
    trajectories = collect_trajectories(envs, policy, weights, tasks, M, seed=SEED)
    assert_acted(policy, weights, trajectories)


@pytest.mark.each_value
@pytest.mark.parametrize("network", ["mlp", "ssm"])
@pytest.mark.parametrize("frozen", ["log_std", "core."])
def test_parameters_without_weights_are_those_of_the_policy(network, frozen):
    envs, policy, weights, tasks = make(POINT, network, max_episode_steps=10)
    with torch.no_grad():
        policy.log_std -= 1.0
    weights = {name: weight for name, weight in weights.items() if not name.startswith(frozen)}
    assert_acted(policy, weights, collect_trajectories(envs, policy, weights, tasks, M, seed=SEED))


@torch.no_grad()
def assert_acted(policy, weights, trajectories):
    for k in range(K):
        own = {name: weight[k] for name, weight in weights.items()}
        expected, _ = functional_call(policy, own, (trajectories.observations[k],))
        torch.testing.assert_close(trajectories.parameters[k], expected, rtol=1e-4, atol=1e-5)


def test_rows_are_in_their_tasks():
    envs, policy, weights, _ = make(POINT)
    tasks = [envs.task_type(goal_x=x, goal_y=0.0) for x in (-100.0, 0.0, 100.0)]
    rewards = collect_trajectories(envs, policy, weights, tasks, M, seed=SEED).rewards[:, :, 0]
    assert (rewards[[0, 2]] < -95.0).all()
    assert (rewards[1] > -1.0).all()


def test_what_was_recorded_is_what_happened():
    """A policy that is all but certain, in an environment that is stepped by hand."""
    envs, policy, weights, tasks = make(TRIALS)
    for name, weight in weights.items():
        weights[name] = torch.zeros_like(weight)
    weights["head.bias"] = torch.tensor([[50.0, -50.0], [-50.0, 50.0], [50.0, -50.0]])
    trajectories = collect_trajectories(envs, policy, weights, tasks, M, seed=SEED)
    for k, action in enumerate((0, 1, 0)):
        assert (trajectories.actions[k] == action).all()
    env = envs.get(K * M)
    repeated = [task for task in tasks for _ in range(M)]
    states = trajectories.observations[:, :, 0].flatten(0, 1).double().numpy()
    env.reset(seed=0, options={"tasks": repeated, "state": states})
    for t in range(3):  # nothing falls so soon
        observations, rewards, *_ = env.step(trajectories.actions[:, :, t].flatten().numpy())
        np.testing.assert_allclose(trajectories.observations[:, :, t + 1].flatten(0, 1), observations, atol=1e-5)
        np.testing.assert_array_equal(trajectories.rewards[:, :, t].flatten(), rewards)


def test_a_trial_goes_on_after_a_fall_to_its_time_limit():
    trajectories = collect(TRIALS)
    assert trajectories.valid.all()
    assert trajectories.valid.shape == (K, M, 200)
    assert set(trajectories.rewards.unique().tolist()) == {-9.0, 1.0}
    falls = (trajectories.rewards == -9.0).sum(-1)
    torch.testing.assert_close(trajectories.returns(), 200.0 - 10.0 * falls.double())


def test_an_episode_that_ended_is_padded_with_steps_that_do_not_count():
    trajectories = collect(FALLING)
    lengths = trajectories.valid.sum(-1)
    assert lengths.max() == trajectories.valid.shape[-1] < 500
    assert lengths.min() < lengths.max()
    for steps, valid in zip(lengths.flatten(), trajectories.valid.flatten(0, 1), strict=True):
        assert valid[:steps].all()
        assert not valid[steps:].any()
    # One for each step, the fall included.
    torch.testing.assert_close(trajectories.rewards, trajectories.valid.float())
    torch.testing.assert_close(trajectories.returns(), lengths.double())


def test_one_seed_gives_one_result_whatever_was_collected_before(untouched_rng):
    envs, policy, weights, tasks = make(TRIALS)
    with untouched_rng():
        first = collect_trajectories(envs, policy, weights, tasks, M, seed=np.random.SeedSequence(1))
        other = collect_trajectories(envs, policy, weights, tasks, M, seed=np.random.SeedSequence(2))
        again = collect_trajectories(envs, policy, weights, tasks, M, seed=np.random.SeedSequence(1))
    fresh = collect_trajectories(BatchedEnvs(TRIALS), policy, weights, list(tasks), M, seed=np.random.SeedSequence(1))
    assert same(first, again)
    assert same(first, fresh)
    assert not same(first, other)


def test_tasks_are_those_of_the_split_and_the_seed():
    envs = BatchedEnvs(POINT)
    drawn = {
        (split, seed): envs.draw_tasks(split, 50, np.random.SeedSequence(seed))
        for split in ("train", "interpolation", "extrapolation")
        for seed in (0, 1)
    }
    assert drawn["train", 0] == envs.draw_tasks("train", 50, np.random.SeedSequence(0))
    assert len({task for tasks in drawn.values() for task in tasks}) == 300
    inside = np.abs([drawn["train", 0].column(name) for name in ("goal_x", "goal_y")]) <= 0.5
    assert inside.all()


@pytest.mark.parametrize(
    ("env_id", "env_kwargs", "message"),
    [
        ("CartPole-v1", {}, "must be an environment with hidden tasks"),
        (TRIALS, {"splits": "train"}, "unexpected keyword argument 'splits'"),
    ],
)
def test_environments_without_tasks(env_id, env_kwargs, message):
    with pytest.raises(ValueError, match=message):
        BatchedEnvs(env_id, env_kwargs)


def test_an_environment_without_a_time_limit_is_refused():
    with pytest.raises(ValueError, match=r"'ssm_metarl/PendulumPolarity-v0' must have a time limit"):
        BatchedEnvs("ssm_metarl/PendulumPolarity-v0", {"max_episode_steps": -1})
