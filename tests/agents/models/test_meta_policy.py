import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal, kl_divergence
from torch.func import functional_call

from ssm_metarl_gym.agents import SSMPPO, SSMPolicy
from ssm_metarl_gym.agents.models.action_distributions import Categorical, DiagonalGaussian
from ssm_metarl_gym.agents.models.meta_policy import MetaPolicy

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (3,))
ACTIONS = {
    "Discrete": spaces.Discrete(3),
    "Box": spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32)),
}
NETWORKS = ("mlp", "ssm")


def make(network="mlp", actions="Discrete", width=8):
    policy = MetaPolicy(OBSERVATIONS, ACTIONS[actions], network=network, width=width)
    with torch.no_grad():
        policy.head.weight.normal_()
        policy.head.bias.normal_()
        if actions == "Box":
            policy.log_std.copy_(torch.tensor([-0.5, 0.3]))
    policy.set_normalisation(torch.randn(500, 3) * torch.tensor([1.0, 5.0, 0.1]) + torch.tensor([0.0, 3.0, -1.0]))
    return policy


def gaussian(parameters):
    mean, log_std = parameters.chunk(2, dim=-1)
    return Independent(Normal(mean, log_std.exp()), 1)


@pytest.mark.parametrize(
    ("distribution", "parameters", "reference", "actions"),
    [
        (
            Categorical(3),
            lambda: torch.randn(4, 5, 3).log_softmax(-1),
            lambda p: TorchCategorical(logits=p),
            lambda: torch.randint(3, (4, 5)),
        ),
        (DiagonalGaussian(ACTIONS["Box"]), lambda: torch.randn(4, 5, 4), gaussian, lambda: torch.randn(4, 5, 2)),
    ],
)
def test_distributions_against_those_of_torch(distribution, parameters, reference, actions):
    old, new, drawn = parameters(), parameters(), actions()
    torch.testing.assert_close(distribution.log_prob(old, drawn), reference(old).log_prob(drawn))
    torch.testing.assert_close(distribution.divergence(old, new), kl_divergence(reference(old), reference(new)))
    torch.testing.assert_close(distribution.mode(old), reference(old).mode)


def test_discrete_actions_are_drawn_with_their_probabilities():
    distribution, probabilities = Categorical(3), torch.tensor([0.6, 0.3, 0.1])
    noise = distribution.noise(np.random.default_rng(0), 20_000)
    drawn = distribution.draw(probabilities.log().expand(20_000, 3), noise)
    frequencies = torch.bincount(drawn, minlength=3) / 20_000
    torch.testing.assert_close(frequencies, probabilities, rtol=0.0, atol=0.015)  # four standard errors


def test_continuous_actions_are_mean_plus_deviation_times_noise():
    distribution = DiagonalGaussian(ACTIONS["Box"])
    noise = distribution.noise(np.random.default_rng(0), 2, 4)
    assert noise.shape == (2, 4, 2)
    parameters = torch.tensor([0.5, -0.5, 0.0, torch.tensor(3.0).log()]).expand(2, 4, 4)
    torch.testing.assert_close(
        distribution.draw(parameters, noise), torch.tensor([0.5, -0.5]) + torch.tensor([1.0, 3.0]) * noise
    )


def test_the_unit_of_an_action_is_half_the_box_and_the_environment_gets_the_nearest_in_it():
    distribution = DiagonalGaussian(ACTIONS["Box"])
    actions = distribution.to_environment(torch.tensor([[0.0, 0.0], [0.5, -0.5], [9.0, -9.0]]))
    assert actions.tolist() == [[0.0, 0.5], [1.0, 0.25], [2.0, 0.0]]
    assert actions.dtype == np.float32
    unbounded = DiagonalGaussian(spaces.Box(np.array([-np.inf, 0.0], np.float32), np.float32(np.inf)))
    assert unbounded.to_environment(torch.tensor([[-7.0, 7.0], [7.0, -7.0]])).tolist() == [[-7.0, 7.0], [7.0, 0.0]]


def test_an_environment_never_gets_an_action_that_is_not_finite():
    distribution = DiagonalGaussian(ACTIONS["Box"])
    actions = torch.tensor([[np.nan, 0.0], [np.inf, -np.inf]])
    assert distribution.to_environment(actions).tolist() == [[0.0, 0.5], [0.0, 0.5]]


def test_observations_are_normalised_by_those_of_the_data():
    policy = MetaPolicy(OBSERVATIONS, ACTIONS["Discrete"])
    observations = torch.randn(1000, 3) * torch.tensor([1.0, 50.0, 0.0]) + 5.0
    assert not policy.is_normalised
    torch.testing.assert_close(policy.normalise(observations), observations)
    policy.set_normalisation(observations)
    normalised = policy.normalise(observations)
    torch.testing.assert_close(normalised.mean(0), torch.zeros(3), rtol=0.0, atol=1e-4)
    torch.testing.assert_close(normalised.std(0), torch.tensor([1.0, 1.0, 0.0]), rtol=1e-3, atol=1e-4)
    assert policy.is_normalised


def test_the_unit_of_advantages_is_their_root_mean_square_or_one():
    policy = MetaPolicy(OBSERVATIONS, ACTIONS["Discrete"])
    policy.set_advantage_scale(torch.tensor([3.0, -4.0, 0.0, 0.0]))
    assert policy.advantage_scale.item() == 2.5
    policy.set_advantage_scale(torch.zeros(4))
    assert policy.advantage_scale.item() == 1.0


@pytest.mark.each_value
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("actions", ACTIONS)
def test_a_sequence_is_step_after_step_and_only_an_ssm_remembers(network, actions):
    policy, observations = make(network, actions), torch.randn(2, 6, 3)
    whole, last = policy(observations)
    state, steps = None, []
    for t in range(6):
        parameters, state = policy(observations[:, t : t + 1], state)
        steps.append(parameters)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)
    torch.testing.assert_close(state, last)
    other_start = torch.cat([torch.randn(2, 1, 3), observations[:, 1:]], dim=1)
    remembers = not torch.allclose(policy(other_start)[0][:, 1:], whole[:, 1:])
    assert remembers == (network == "ssm")


@pytest.mark.each_value
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("actions", ACTIONS)
def test_a_stepper_takes_each_step_with_each_set_of_weights(network, actions):
    policy, observations = make(network, actions), torch.randn(4, 2, 5, 3)
    weights = {
        name: weight.detach() + 0.1 * torch.randn(4, *weight.shape) for name, weight in policy.named_parameters()
    }
    del weights["head.bias"]  # which is then the policy's own
    stepper = policy.stepper(weights)
    steps = torch.stack([stepper.step(observations[:, :, t]) for t in range(5)], dim=2)
    for k in range(4):
        own = {name: weight[k] for name, weight in weights.items()}
        torch.testing.assert_close(steps[k], functional_call(policy, own, (observations[k],))[0], rtol=1e-4, atol=1e-5)


def test_a_new_policy_hardly_looks_at_the_observation():
    policy = MetaPolicy(OBSERVATIONS, ACTIONS["Discrete"])
    probabilities = policy(torch.randn(100, 1, 3))[0].exp()
    torch.testing.assert_close(probabilities, torch.full((100, 1, 3), 1 / 3), rtol=0.0, atol=0.02)


@pytest.mark.parametrize(
    ("observation_space", "action_space", "options", "message"),
    [
        (spaces.Discrete(3), ACTIONS["Box"], {}, "the observation space must be a one-dimensional Box"),
        (spaces.Box(0, 1, (2, 2)), ACTIONS["Box"], {}, "the observation space must be a one-dimensional Box"),
        (OBSERVATIONS, spaces.MultiBinary(3), {}, "the action space must be Discrete"),
        (OBSERVATIONS, spaces.Discrete(3, start=1), {}, "the action space must be Discrete"),
        (OBSERVATIONS, ACTIONS["Box"], {"network": "lstm"}, "network must be one of"),
        (OBSERVATIONS, ACTIONS["Box"], {"width": 0}, "width must be an int"),
        (OBSERVATIONS, ACTIONS["Box"], {"width": 5, "network": "ssm"}, "width must be even.* got 5. Use 6"),
    ],
)
def test_what_is_not_valid(observation_space, action_space, options, message):
    with pytest.raises(ValueError, match=message):
        MetaPolicy(observation_space, action_space, **options)


@pytest.mark.parametrize("actions", ACTIONS)
def test_the_sb3_policy_without_memory_has_the_same_distribution(actions, tmp_path, untouched_rng):
    policy = make("mlp", actions)
    with untouched_rng():
        sb3_policy = policy.to_sb3()
    sb3_policy.save(tmp_path / "policy.zip")
    observations = torch.randn(50, 3) * 5.0
    parameters = policy(observations[:, None])[0][:, 0]
    for exported in (sb3_policy, ActorCriticPolicy.load(tmp_path / "policy.zip")):
        assert_same(policy, parameters, exported.get_distribution(observations), actions)
        best, _ = exported.predict(observations.numpy(), deterministic=True)
        expected = parameters.argmax(-1) if actions == "Discrete" else parameters[:, :2]
        np.testing.assert_allclose(best, policy.distribution.to_environment(expected.detach()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("actions", ACTIONS)
def test_the_sb3_policy_with_memory_has_the_same_distribution(actions, tmp_path):
    policy = make("ssm", actions)
    policy.to_sb3().save(tmp_path / "policy.zip")
    exported, observations = SSMPolicy.load(tmp_path / "policy.zip"), torch.randn(10, 5, 3) * 5.0
    parameters, state = policy(observations)[0], exported.initial_state(10)
    for t in range(5):
        distribution, state = exported.get_distribution(observations[:, t], state, torch.full((10,), t == 0))
        assert_same(policy, parameters[:, t], distribution, actions)


def assert_same(policy, parameters, distribution, actions):
    """For a Box the densities differ by the unit of the actions."""
    if actions == "Discrete":
        torch.testing.assert_close(distribution.distribution.logits, parameters, rtol=1e-4, atol=1e-4)
        return
    shift, scale = (torch.as_tensor(x).float() for x in (policy.distribution.shift, policy.distribution.scale))
    mean, log_std = parameters.chunk(2, dim=-1)
    torch.testing.assert_close(distribution.distribution.mean, shift + scale * mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(distribution.distribution.stddev, scale * log_std.exp(), rtol=1e-4, atol=1e-4)


@pytest.mark.each_value
@pytest.mark.parametrize(("network", "algorithm"), [("mlp", PPO), ("ssm", SSMPPO)])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_the_sb3_policy_runs_and_goes_on_learning(network, algorithm, env_id):
    env = gym.make(env_id)
    policy = MetaPolicy(env.observation_space, env.action_space, network=network, width=8)
    exported = policy.to_sb3()
    mean, _ = evaluate_policy(exported, env, n_eval_episodes=1, warn=False)
    assert np.isfinite(mean)
    if network == "mlp":
        name, kwargs = "MlpPolicy", {"net_arch": {"pi": [8, 8], "vf": [8, 8]}, "activation_fn": torch.nn.ReLU}
    else:
        name, kwargs = "SSMPolicy", {"net_arch": [], "ssm_kwargs": {"hidden_dim": 8, "output_dim": 8}}
    model = algorithm(name, env, n_steps=16, batch_size=16, n_epochs=1, policy_kwargs=kwargs, seed=0, device="cpu")
    model.policy.load_state_dict(exported.state_dict())
    model.learn(16)
