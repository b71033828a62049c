import itertools

import pytest
import torch

from ssm_metarl_gym.agents.meta_training.surrogates import (
    Sample,
    adaptation_loss,
    clipped_loss,
    discounted_sums,
    divergence,
    generalised_advantages,
    linear_baseline,
    make_sample,
)
from ssm_metarl_gym.agents.meta_training.trajectories import Trajectories
from ssm_metarl_gym.agents.models.action_distributions import Categorical

CHOICE = Categorical(2)
INNER_LR = 0.7


def sample_of(actions, parameters, advantages, weights):
    return Sample(torch.zeros(*actions.shape, 1), actions, parameters.detach(), advantages, weights.detach())


def log_prob_loss(distribution, parameters, sample):
    """The surrogate of a first course in policy gradients: right in its first derivative only."""
    return -(sample.weights * sample.advantages * distribution.log_prob(parameters, sample.actions)).sum()


def lvc(distribution, parameters, sample):
    return adaptation_loss(distribution, parameters, sample, "lvc")


def dice(distribution, parameters, sample):
    return adaptation_loss(distribution, parameters, sample, "dice")


# A bandit with three arms. Each arm is one trajectory, weighted with its probability: expectations are exact.

ARMS = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)


def bandit_value(theta):
    return theta.softmax(0) @ ARMS


def bandit_loss(surrogate, theta):
    probabilities = theta.softmax(0)
    parameters = theta.log_softmax(0).expand(3, 1, 3)
    # What an advantage is measured against changes nothing: its mean over the arms is zero at every order.
    advantages = (ARMS - bandit_value(theta).detach())[:, None]
    sample = sample_of(torch.arange(3)[:, None], parameters, advantages, probabilities[:, None])
    return surrogate(Categorical(3), parameters, sample)


def meta_gradient(inner_loss, outer_value, theta):
    """The derivative of the value after one inner step with respect to where the step began."""
    theta = theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(inner_loss(theta), theta, create_graph=True)
    return torch.autograd.grad(outer_value(theta - INNER_LR * gradient), theta)[0]


THETA = torch.tensor([0.3, -0.4, 0.1], dtype=torch.float64)


@pytest.mark.parametrize("surrogate", [lvc, dice, log_prob_loss])
def test_all_surrogates_of_a_bandit_have_the_policy_gradient(surrogate):
    theta = THETA.clone().requires_grad_()
    expected = torch.autograd.grad(-bandit_value(theta), theta)[0]
    torch.testing.assert_close(torch.autograd.grad(bandit_loss(surrogate, theta), theta)[0], expected)


def test_the_meta_gradient_of_a_bandit_is_exact_and_a_naive_one_is_not():
    exact = meta_gradient(lambda theta: -bandit_value(theta), bandit_value, THETA)
    for surrogate in (lvc, dice):
        torch.testing.assert_close(
            meta_gradient(lambda theta, s=surrogate: bandit_loss(s, theta), bandit_value, THETA), exact
        )
    naive = meta_gradient(lambda theta: bandit_loss(log_prob_loss, theta), bandit_value, THETA)
    assert (naive - exact).norm() > 0.1 * exact.norm()


# Two decisions, the second in a state that the first one chose: theta[0] decides first, theta[1] or theta[2] then.

REWARDS_0 = torch.tensor([0.2, -0.1], dtype=torch.float64)
REWARDS_1 = torch.tensor([[1.0, -1.0], [0.5, 2.0]], dtype=torch.float64)
THETA_2 = torch.tensor([[0.2, -0.3], [0.5, 0.1], [-0.2, 0.4]], dtype=torch.float64)
PATHS = list(itertools.product((0, 1), (0, 1)))


def two_step_value(theta):
    first, then = theta[0].softmax(0), theta[1:].softmax(1)
    return sum(first[a] * (REWARDS_0[a] + then[a] @ REWARDS_1[a]) for a in (0, 1))


def two_step_loss(surrogate, theta):
    log_probabilities = theta.log_softmax(1)
    parameters = torch.stack([torch.stack([log_probabilities[0], log_probabilities[1 + a]]) for a, _ in PATHS])
    actions = torch.tensor(PATHS)
    probabilities = CHOICE.log_prob(parameters, actions).sum(1).exp()  # of the paths
    rewards = torch.stack([torch.stack([REWARDS_0[a], REWARDS_1[a, b]]) for a, b in PATHS])
    advantages = discounted_sums(rewards, 1.0)
    return surrogate(
        CHOICE, parameters, sample_of(actions, parameters, advantages, probabilities[:, None].expand(4, 2))
    )


def derivatives(loss, theta):
    # Not by torch.func, whose forward mode goes through detach().
    gradient = torch.autograd.functional.jacobian(loss, theta).flatten()
    return gradient, torch.autograd.functional.hessian(loss, theta).reshape(6, 6)


def test_dice_is_exact_over_two_steps_and_the_low_variance_curvature_but_for_the_effect_on_later_advantages():
    gradient, hessian = derivatives(lambda theta: -two_step_value(theta), THETA_2)
    found = {s: derivatives(lambda theta, s=s: two_step_loss(s, theta), THETA_2) for s in (lvc, dice, log_prob_loss)}
    for found_gradient, _ in found.values():
        torch.testing.assert_close(found_gradient, gradient)
    torch.testing.assert_close(found[dice][1], hessian)
    # The blocks of the two decisions are exact; between them lies what the low-variance curvature leaves out.
    curvature = found[lvc][1]
    torch.testing.assert_close(curvature[:2, :2], hessian[:2, :2])
    torch.testing.assert_close(curvature[2:, 2:], hessian[2:, 2:])
    assert not curvature[:2, 2:].any()
    assert hessian[:2, 2:].abs().max() > 0.1
    naive = found[log_prob_loss][1]
    assert (naive[:2, :2] - hessian[:2, :2]).abs().max() > 0.01
    assert (naive[2:, 2:] - hessian[2:, 2:]).abs().max() > 0.01


def test_the_meta_gradient_over_two_steps_is_exact():
    exact = meta_gradient(lambda theta: -two_step_value(theta), two_step_value, THETA_2)
    found = {
        s: meta_gradient(lambda theta, s=s: two_step_loss(s, theta), two_step_value, THETA_2)
        for s in (lvc, dice, log_prob_loss)
    }
    torch.testing.assert_close(found[dice], exact)
    assert (found[log_prob_loss] - exact).norm() > 0.2 * exact.norm()
    assert 0.0 < (found[lvc] - exact).norm() < (found[log_prob_loss] - exact).norm()


# Numbers by hand.


def test_discounted_sums():
    x = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 8.0]])
    assert discounted_sums(x, 0.5).tolist() == [[3.0, 4.0, 4.0], [2.0, 4.0, 8.0]]
    assert discounted_sums(x, 0.0).tolist() == x.tolist()


def test_generalised_advantages_end_with_the_episode():
    rewards = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 0.0]])
    values = torch.tensor([[4.0, 2.0, 6.0], [4.0, 2.0, 100.0]])
    valid = torch.tensor([[True, True, True], [True, True, False]])
    # Differences: 1 + 1 - 4 = -2, 2 + 3 - 2 = 3, 3 - 6 = -3; and -2, 2 - 2 = 0. gamma lambda = 1/4.
    expected = [[-2.0 + 3 / 4 - 3 / 16, 3.0 - 3 / 4, -3.0], [-2.0, 0.0, 0.0]]
    assert generalised_advantages(rewards, values, valid, gamma=0.5, gae_lambda=0.5).tolist() == expected


def test_the_clipped_loss():
    old = torch.tensor([0.5, 0.5]).log().expand(1, 4, 2)
    new = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]]).log()[None]  # ratios 1.8, 1.8, 0.2, 0.2
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    sample = sample_of(torch.zeros(1, 4, dtype=torch.int64), old, advantages, torch.full((1, 4), 0.25))
    # min(1.8, 1.2) + min(-1.8, -1.2) + min(0.2, 0.8) + min(-0.2, -0.8)
    expected = torch.tensor(-(1.2 - 1.8 + 0.2 - 0.8) / 4)
    torch.testing.assert_close(clipped_loss(CHOICE, new, sample, 0.2), expected)
    torch.testing.assert_close(adaptation_loss(CHOICE, new, sample), torch.tensor(-(1.8 - 1.8 + 0.2 - 0.2) / 4))


def test_the_divergence_is_a_mean_over_valid_steps():
    old, new = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    actions = torch.zeros(1, 2, dtype=torch.int64)
    sample = sample_of(actions, old.expand(1, 2, 2), torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
    expected = 0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(2 / 3).log()
    torch.testing.assert_close(divergence(CHOICE, new.expand(1, 2, 2), sample), expected)


@pytest.mark.parametrize("surrogate", ["lvc", "dice"])
def test_padding_neither_counts_nor_overflows(surrogate):
    old = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()[None]
    new = torch.stack([torch.tensor([0.6, 0.4]).log(), torch.tensor([200.0, -200.0])])[None].requires_grad_()
    sample = sample_of(torch.zeros(1, 2, dtype=torch.int64), old, torch.ones(1, 2), torch.tensor([[1.0, 0.0]]))
    for loss in (adaptation_loss(CHOICE, new, sample, surrogate), clipped_loss(CHOICE, new, sample, 0.5)):
        (gradient,) = torch.autograd.grad(loss, new)
        assert gradient[0, 0].any()
        assert not gradient[0, 1].any()


def test_the_baseline_predicts_what_is_linear_in_its_features_task_by_task():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 3, 50, 2, generator=generator)
    times = torch.arange(50) / 100.0
    x, y = inputs[..., 0], inputs[..., 1]
    targets = torch.stack([1.0 + 2.0 * x[0] - y[0] ** 2 + 3.0 * times, -(x[1] ** 2) + 10.0 * times**3 - times**2])
    valid = torch.ones(2, 3, 50, dtype=torch.bool)
    torch.testing.assert_close(linear_baseline(inputs, targets, valid), targets, rtol=0.0, atol=5e-3)
    # What is not valid has no say.
    valid[:, :, 40:] = False
    spoilt = torch.where(valid, targets, 1e3)
    torch.testing.assert_close(linear_baseline(inputs, spoilt, valid)[valid], targets[valid], rtol=0.0, atol=5e-3)


def test_a_sample_is_in_units_of_its_scale_and_each_task_weighs_the_same():
    generator = torch.Generator().manual_seed(0)
    valid = torch.ones(2, 3, 10, dtype=torch.bool)
    valid[0, 1, 4:] = False
    rewards = torch.randn(2, 3, 10, generator=generator) * valid
    observations = torch.randn(2, 3, 10, 2, generator=generator)
    parameters = torch.zeros(2, 3, 10, 2)
    trajectories = Trajectories(observations, torch.zeros(2, 3, 10).long(), parameters, rewards, valid)
    one, two = (
        make_sample(trajectories, observations, torch.tensor(scale), gamma=0.9, gae_lambda=0.8) for scale in (1.0, 2.0)
    )
    torch.testing.assert_close(one.advantages, 2.0 * two.advantages)
    torch.testing.assert_close(one.weights.sum((1, 2)), torch.ones(2))
    assert one.weights[0].unique().tolist() == pytest.approx([0.0, 1 / 24])
    assert not one.advantages[~valid].any()
    values = linear_baseline(observations, discounted_sums(rewards, 0.9), valid)
    expected = generalised_advantages(rewards, values, valid, gamma=0.9, gae_lambda=0.8)
    torch.testing.assert_close(one.advantages, expected)
