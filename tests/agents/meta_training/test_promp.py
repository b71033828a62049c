import numpy as np
import pytest
import torch
from torch.func import functional_call

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.agents.meta_learning.inner_loop import InnerLoop
from ssm_metarl_gym.agents.meta_training.promp import ProMP
from ssm_metarl_gym.agents.meta_training.surrogates import Sample, adaptation_loss, divergence, make_sample
from ssm_metarl_gym.agents.meta_training.trajectories import BatchedEnvs, collect_trajectories
from ssm_metarl_gym.agents.models.meta_policy import MetaPolicy

TRIALS, POINT = "ssm_metarl/CartPolePolarity-v0", "ssm_metarl/PointNavigation-v0"
K, M, T = 4, 3, 8


class Setting:
    """A policy that does look at the observation, its inner loop, and what comes of both in K tasks."""

    def __init__(self, env_id=POINT, num_steps=1, network="mlp", clip_range=0.2, kl_penalty=0.0, **options):
        self.num_steps = num_steps
        self.options = {"clip_range": clip_range, "kl_penalty": kl_penalty}
        self.options["surrogate"] = options.pop("surrogate", "lvc")
        self.inner_options = {"inner_lr": 0.5, "num_steps": num_steps, **options}
        self.envs = BatchedEnvs(env_id, {"max_episode_steps": T})
        self.policy = MetaPolicy(self.envs.observation_space, self.envs.action_space, network=network, width=8)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        self.make()

    def make(self):
        self.inner = InnerLoop(self.policy, **self.inner_options)
        self.promp = ProMP(self.policy, self.inner, **self.options)

    def play(self):
        """A sample before each inner step, and one after the last."""
        tasks = self.envs.draw_tasks("train", K, np.random.SeedSequence(0))
        weights, samples = self.promp.initial_weights(K), []
        for index in range(self.num_steps + 1):
            if index:
                weights = self.promp.adapt(weights, samples[-1], index - 1)
            seed = np.random.SeedSequence(1 + index)
            trajectories = collect_trajectories(self.envs, self.policy, weights, tasks, M, seed=seed)
            inputs = self.policy.normalise(trajectories.observations)
            samples.append(make_sample(trajectories, inputs, torch.tensor(2.0), gamma=0.98, gae_lambda=0.95))
        return samples

    def losses(self, samples):
        return self.promp.losses(self.inner.weights(), samples)

    def to_double(self, samples):
        """Go on in double precision; gives the samples in it."""
        self.policy.double()
        self.make()
        return [Sample(*(part.double() if part.is_floating_point() else part for part in s)) for s in samples]

    @property
    def parameters(self):
        return [*self.inner.weights().values(), *self.inner.rates.values()]


def task_of(sample, task):
    return Sample(*(part[task] for part in sample))


@pytest.mark.each_value
@pytest.mark.parametrize(("network", "num_steps"), [("mlp", 0), ("mlp", 2), ("ssm", 2)])
@pytest.mark.parametrize("env_id", [TRIALS, POINT])
def test_at_first_the_policies_are_those_that_acted_and_all_ratios_are_one(env_id, num_steps, network):
    setting = Setting(env_id, num_steps, network, learned_rates="step")
    samples = setting.play()
    distribution, moves = setting.policy.distribution, []
    for k in range(K):
        weights = setting.inner.weights()
        for index, task in enumerate(task_of(sample, k) for sample in samples):
            parameters, _ = functional_call(setting.policy, weights, (task.observations,))
            torch.testing.assert_close(parameters, task.parameters, rtol=1e-3, atol=1e-4)
            if index < num_steps:

                def loss(weights, task=task):
                    parameters, _ = functional_call(setting.policy, weights, (task.observations,))
                    return adaptation_loss(distribution, parameters, task)

                adapted = setting.inner.step(loss, weights, index)
                moves.append(max((adapted[name] - weights[name]).abs().max().item() for name in weights))
                weights = adapted
    assert max(moves, default=1.0) > 1e-3  # not in every task: some see no fall
    # So the loss is minus the mean advantage, clipped or not.
    expected = -(samples[-1].weights * samples[-1].advantages).sum((1, 2))
    torch.testing.assert_close(setting.losses(samples).detach(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"network": "ssm"}, {"surrogate": "dice"}, {"learned_rates": "tensor"}])
def test_the_meta_gradient_is_that_of_finite_differences(options):
    setting = Setting(TRIALS, num_steps=2, kl_penalty=0.5, clip_range=1e6, **options)
    samples = setting.to_double(setting.play())
    parameters = setting.parameters
    generator = torch.Generator().manual_seed(2)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]

    @torch.no_grad()
    def move(distance):
        for parameter, part in zip(parameters, direction, strict=True):
            parameter += distance * part

    def loss_at(distance):
        move(distance)
        loss = setting.losses(samples).sum().item()
        move(-distance)
        return loss

    gradients = torch.autograd.grad(setting.losses(samples).sum(), parameters)
    slope = sum((g * part).sum() for g, part in zip(gradients, direction, strict=True)).item()
    step = 1e-5
    assert slope == pytest.approx((loss_at(step) - loss_at(-step)) / (2 * step), rel=1e-4)
    assert abs(slope) > 1e-4


def test_first_order_takes_another_gradient():
    results = []
    for first_order in (False, True):
        setting = Setting(first_order=first_order)
        results.append(torch.autograd.grad(setting.losses(setting.play()).sum(), setting.parameters))
    assert not all(torch.allclose(a, b, rtol=1e-2) for a, b in zip(*results, strict=True))


def test_without_inner_steps_it_is_ppo_over_all_tasks():
    setting = Setting(TRIALS, num_steps=0)
    (sample,) = setting.play()
    policy = setting.policy
    parameters, _ = policy(sample.observations.flatten(0, 1))
    log_probs = parameters.gather(-1, sample.actions.flatten(0, 1)[..., None])[..., 0]
    expected = -(log_probs * sample.advantages.flatten(0, 1)).mean()  # all steps of all tasks alike
    expected = torch.autograd.grad(expected, list(policy.parameters()))
    found = torch.autograd.grad(setting.losses([sample]).mean(), list(policy.parameters()))
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-5)


def test_the_penalty_is_the_mean_divergence_of_all_policies():
    setting = Setting(num_steps=1, kl_penalty=0.5)
    plain = ProMP(setting.policy, setting.inner, clip_range=0.2)
    samples = setting.play()
    with torch.no_grad():
        setting.policy.head.bias += 0.1  # so that the policies are not those that acted
    adapted = setting.promp.adapt(setting.promp.initial_weights(K), samples[0], 0)
    expected = []
    for k in range(K):
        tasks = [task_of(sample, k) for sample in samples]
        weights = setting.inner.weights(), {name: weight[k] for name, weight in adapted.items()}
        divergences = []
        for own, task in zip(weights, tasks, strict=True):
            parameters, _ = functional_call(setting.policy, own, (task.observations,))
            divergences.append(divergence(setting.policy.distribution, parameters, task).item())
        assert min(divergences) > 1e-4
        expected.append(0.5 * np.mean(divergences))
    difference = (setting.losses(samples) - plain.losses(setting.inner.weights(), samples)).detach()
    np.testing.assert_allclose(difference, expected, rtol=1e-3, atol=1e-6)


def test_a_part_of_the_tasks_has_the_losses_of_that_part():
    setting = Setting()
    samples = setting.play()
    parts = [[sample.select(tasks) for sample in samples] for tasks in (slice(0, 1), slice(1, 4))]
    together = torch.cat([setting.losses(part) for part in parts])
    torch.testing.assert_close(together, setting.losses(samples), rtol=1e-4, atol=1e-5)


def test_a_task_whose_step_is_not_finite_keeps_its_weights_and_has_no_finite_loss():
    setting = Setting()
    samples, before = setting.play(), setting.promp.initial_weights(K)
    samples[0].advantages[1] = torch.nan
    after = setting.promp.adapt(before, samples[0], 0)
    assert all(torch.equal(after[name][1], weight[1]) for name, weight in before.items())
    for k in (0, 2, 3):
        assert any(not torch.equal(after[name][k], weight[k]) for name, weight in before.items())
    assert torch.isfinite(setting.losses(samples)).tolist() == [True, False, True, True]


class Remarkable(torch.nn.Module):
    """A core that is called twice, and keeps what it computed."""

    features = None

    def __init__(self, core):
        super().__init__()
        self.core, self.again = core, core[2]

    def forward(self, inputs):
        self.features = self.again(self.core(inputs)).tanh()
        return self.features


def make_core(policy):
    width = policy.width
    layers = torch.nn.Linear(policy.observation_space.shape[0], width), torch.nn.Tanh(), torch.nn.Linear(width, width)
    return torch.nn.Sequential(*layers)


def test_a_policy_with_shared_parts_and_attributes_is_left_as_it_was(look):
    setting = Setting(network="ssm")  # whose policies act by the same calls
    setting.policy.core = Remarkable(make_core(setting.policy))
    setting.make()
    before = look(setting.policy)
    samples = setting.play()
    torch.autograd.grad(setting.losses(samples).sum(), setting.parameters)
    assert look(setting.policy) == before
    assert setting.policy.core.features is None
    assert setting.policy.core.again is setting.policy.core.core[2]
