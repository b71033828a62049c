import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from ssm_metarl_gym.agents import DynamicsModel, KalmanAdapter
from ssm_metarl_gym.agents.adaptation.kalman_steps import (
    kalman_predict,
    kalman_update,
    log_likelihood,
    normalised_innovation,
    whiten,
)

MSE = nn.MSELoss()


class Linear(nn.Module):
    """Targets ``H w``, whose states are the entries of H: ``Float[N D * W]``."""

    filtered_parameters = ("w",)

    def __init__(self, source, residual_variance):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(source, dtype=torch.float64))
        self.register_buffer("residual_variance", torch.tensor(residual_variance, dtype=torch.float64))

    def forward(self, states):
        return self.linearise(states, self.w.expand(len(states), -1))[0]

    def linearise(self, encoded, weights):
        jacobian = encoded.unflatten(1, (-1, weights.shape[1]))
        return (jacobian @ weights[..., None])[..., 0], jacobian


SOURCE, NOISE = [1.0, -2.0, 0.5], [0.5, 2.0]


def stream(num_rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(num_rows, 6, generator=generator, dtype=torch.float64),
        3.0 * torch.randn(num_rows, 2, generator=generator, dtype=torch.float64),
    )


def posterior(prior_covariance, jacobian, unexplained, noise):
    """The mean and covariance of a Gaussian after M targets, ``Float[M W]``, ``Float[M]``, ``Float[M]``, directly."""
    expected = jacobian @ prior_covariance @ jacobian.T + torch.diag(noise)
    gain = prior_covariance @ jacobian.T @ torch.linalg.inv(expected)
    return gain @ unexplained, prior_covariance - gain @ jacobian @ prior_covariance


class TestClosedForm:
    def test_without_process_noise_it_is_bayesian_linear_regression(self):
        model = Linear(SOURCE, NOISE)
        adapter = KalmanAdapter(
            model, prior_variance=0.7, process_noise=0.0, noise_scale=1.5, surprise=math.inf, trust_region_eps=math.inf
        )
        states, targets = stream(25)
        adapter.adapt(MSE, {"states": states, "targets": targets})
        h, y, source = states.view(-1, 3), targets.flatten(), torch.tensor(SOURCE, dtype=torch.float64)
        precision = 1.0 / (1.5 * torch.tensor(NOISE, dtype=torch.float64).repeat(25))
        covariance = torch.linalg.inv(torch.eye(3) / 0.7 + h.T @ (precision[:, None] * h))
        mean = source + covariance @ (h.T @ (precision * (y - h @ source)))
        torch.testing.assert_close(model.w.detach(), mean)
        torch.testing.assert_close(adapter.variance["w"], covariance.diagonal())
        torch.testing.assert_close(adapter.covariance, covariance)

    def test_with_process_noise_it_is_the_posterior_of_the_moving_weights(self):
        model = Linear(SOURCE, NOISE)
        prior, process = 0.7, 0.1
        adapter = KalmanAdapter(
            model, prior_variance=prior, process_noise=process, surprise=math.inf, trust_region_eps=math.inf
        )
        num_rows = 8
        states, targets = stream(num_rows)
        adapter.adapt(MSE, {"states": states, "targets": targets})
        # The weights at all times at once: the covariance of two times falls with what lies between.
        decay = (1.0 - process / prior) ** 0.5
        times = torch.arange(num_rows, dtype=torch.float64)
        joint = torch.kron(prior * decay ** (times[:, None] - times).abs(), torch.eye(3, dtype=torch.float64))
        h = torch.block_diag(*states.view(num_rows, 2, 3))
        source = torch.tensor(SOURCE, dtype=torch.float64)
        unexplained = targets.flatten() - h @ source.repeat(num_rows)
        offset, covariance = posterior(joint, h, unexplained, torch.tensor(NOISE, dtype=torch.float64).repeat(num_rows))
        torch.testing.assert_close(model.w.detach(), source + offset[-3:])
        torch.testing.assert_close(adapter.covariance, covariance[-3:, -3:])

    def test_the_functions_on_many_rows(self):
        generator = torch.Generator().manual_seed(0)
        root, h = torch.randn(4, 3, 3, generator=generator).double(), torch.randn(4, 2, 3, generator=generator).double()
        mean, v = torch.randn(4, 3, generator=generator).double(), torch.randn(4, 2, generator=generator).double()
        noise = torch.tensor([0.5, 2.0]).double()
        covariance = root @ root.mT
        whitened, log_volume = whiten(covariance, v, h, noise)
        new_mean, new_covariance = kalman_update(mean, covariance, whitened)
        for row in range(4):
            offset, expected = posterior(covariance[row], h[row], v[row], noise)
            torch.testing.assert_close(new_mean[row], mean[row] + offset)
            torch.testing.assert_close(new_covariance[row], expected)
            s = h[row] @ covariance[row] @ h[row].T + torch.diag(noise)
            assert normalised_innovation(whitened)[row].item() == pytest.approx(
                (v[row] @ torch.linalg.inv(s) @ v[row]).item() / 2.0
            )
            assert log_volume[row].item() == pytest.approx(torch.logdet(s).item())
        assert torch.equal(new_covariance, new_covariance.mT)

    def test_the_prior_stays_the_prior_where_nothing_is_seen(self):
        source = torch.tensor([1.0, 2.0]).double()
        mean, covariance = torch.tensor([[3.0, -1.0]]).double(), torch.tensor([[[0.1, 0.05], [0.05, 0.2]]]).double()
        prior = torch.tensor([2.0, 2.0]).double()
        once = kalman_predict(mean, covariance, source, prior, 0.5)
        torch.testing.assert_close(once[0], source + 0.75**0.5 * torch.tensor([[2.0, -3.0]]).double())
        torch.testing.assert_close(once[1], torch.tensor([[[0.575, 0.0375], [0.0375, 0.65]]]).double())
        for _ in range(200):
            mean, covariance = kalman_predict(mean, covariance, source, prior, 0.5)
        torch.testing.assert_close(mean, source[None])
        torch.testing.assert_close(covariance, torch.diag(prior)[None])

    def test_each_weight_has_a_prior_of_its_own(self):
        mean, covariance = torch.tensor([3.0, 2.0, 0.0]).double(), torch.zeros(3, 3).double()
        covariance[1, 1] = 0.1
        # None, less than the noise, and more.
        prior = torch.tensor([0.0, 0.25, 2.0]).double()
        mean, covariance = kalman_predict(mean, covariance, torch.ones(3).double(), prior, 0.5)
        assert mean.tolist() == pytest.approx([3.0, 1.0, 1.0 - 0.75**0.5])
        torch.testing.assert_close(covariance, torch.diag(torch.tensor([0.0, 0.25, 0.5]).double()))

    def test_variance_that_is_not_seen_never_exceeds_the_prior(self):
        adapter = KalmanAdapter(Linear(SOURCE, NOISE), process_noise=0.2, trust_region_eps=math.inf)
        states = torch.tensor([[1.0, 0.0, 0.0, 1.0, 0.0, 0.0]]).double()
        state = adapter.initial_state()
        for _ in range(300):
            state = adapter.update(state, states, torch.tensor([[2.0, 2.0]]).double())
        variance = state.covariance[0].diagonal()
        assert variance[0] < 0.3
        torch.testing.assert_close(variance[1:], torch.ones(2).double())
        assert torch.linalg.eigvalsh(state.covariance[0]).min() > 0.0


def scalar(**options):
    """Of one weight, zero at first, and one target with noise 1."""
    return KalmanAdapter(Linear([0.0], [1.0]), process_noise=0.0, trust_region_eps=math.inf, **options)


def see(adapter, *targets):
    """Take in targets that are the weight itself."""
    states = torch.ones(len(targets), 1).double()
    adapter.adapt(MSE, {"states": states, "targets": torch.tensor(targets).double()[:, None]})
    return adapter.model.w.item(), adapter.variance["w"].item()


class TestSurprises:
    def test_what_is_expected_counts_as_one(self):
        # S = 2, K = 1/2.
        adapter = scalar()
        assert see(adapter, 4.0) == pytest.approx((2.0, 0.5))
        assert (adapter.stats.clipped_steps, adapter.stats.covariance_resets) == (0, 0)

    def test_hand_computed_outlier_and_change(self):
        adapter = scalar()
        # S = 2, m = 36 / 2 = 18: half the weight, so R = 2 and K = 1/3.
        assert see(adapter, 6.0) == pytest.approx((2.0, 2.0 / 3.0))
        assert (adapter.stats.clipped_steps, adapter.stats.covariance_resets) == (1, 0)
        # S = 5/3, m = 144 / S > 9 again: P = 1, S = 2, m = 72, so R = 8 and K = 1/9.
        assert see(adapter, -10.0) == pytest.approx((2.0 - 12.0 / 9.0, 8.0 / 9.0))
        assert (adapter.stats.clipped_steps, adapter.stats.covariance_resets) == (2, 1)
        # A third one is the first of a new row of surprises: S = 17/9, m = 128.65, R = 14.29.
        mean, variance = 2.0 / 3.0, 8.0 / 9.0
        innovation = -15.0 - mean
        noise = innovation**2 / (variance + 1.0) / 9.0
        gain = variance / (variance + noise)
        assert see(adapter, -15.0) == pytest.approx((mean + gain * innovation, (1.0 - gain) * variance))
        assert (adapter.stats.clipped_steps, adapter.stats.covariance_resets) == (3, 1)

    def test_two_surprises_that_are_not_in_a_row_are_outliers(self):
        adapter = scalar()
        see(adapter, *[0.0] * 50)
        see(adapter, 100.0, 0.0, -100.0, 0.0)
        assert (adapter.stats.clipped_steps, adapter.stats.covariance_resets) == (2, 0)
        assert abs(adapter.model.w.item()) < 0.05

    def test_after_a_change_it_is_there_within_three_transitions(self):
        adapter, plain = scalar(), scalar(surprise=math.inf)
        for one in (adapter, plain):
            see(one, *[0.0] * 50)
        for one in (adapter, plain):
            see(one, 4.0, 4.0, 4.0)
        assert plain.model.w.item() < 0.3
        assert adapter.model.w.item() > 2.6
        assert adapter.stats.covariance_resets == 1

    def test_what_other_parameters_would_explain_is_a_change_at_once(self):
        # Two targets of one weight: 4 in both is another weight, 4 and -4 are of none.
        for second, is_change in ((4.0, True), (-4.0, False)):
            adapter = KalmanAdapter(Linear([0.0], [0.01, 0.01]), trust_region_eps=math.inf)
            states = torch.ones(21, 2).double()
            targets = torch.tensor([[0.0, 0.0]] * 20 + [[4.0, second]]).double()
            adapter.adapt(MSE, {"states": states, "targets": targets})
            assert adapter.stats.covariance_resets == is_change
            assert adapter.model.w.item() == pytest.approx(4.0 if is_change else 0.0, abs=0.1)

    def test_a_million_times_an_outlier_moves_nothing(self):
        adapter = scalar()
        see(adapter, *[1.0] * 50)
        before = adapter.model.w.item()
        see(adapter, 1e30)
        assert adapter.model.w.item() == pytest.approx(before, abs=1e-6)

    def test_a_reset_of_the_covariance_by_hand(self):
        adapter = scalar()
        mean, _ = see(adapter, *[1.0] * 20)
        adapter.reset_covariance()
        assert adapter.variance["w"].item() == 1.0
        assert adapter.model.w.item() == mean
        assert see(adapter, 2.0) == pytest.approx((mean + 0.5 * (2.0 - mean), 0.5))
        assert adapter.stats.covariance_resets == 1


def random_model(num_actions=2, observation_dim=3):
    """An action map over a core that is smooth but far from linear."""
    torch.manual_seed(0)
    model = DynamicsModel(
        spaces.Box(-np.inf, np.inf, (observation_dim,)), spaces.Box(-1.0, 1.0, (num_actions,)), adapts="action_map"
    )
    with torch.no_grad():
        model.head.weight.mul_(10.0)
        model.input_scale.mul_(0.6)
        model.residual_variance.fill_(1e-3)
    return model


class Choices(Linear):
    """Three weights, of which none, the first, or all may have changed."""

    def __init__(self):
        super().__init__([0.0, 0.0, 0.0], [0.1, 0.1])
        self.hypotheses = torch.tensor([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0], [1.0, 1.0, 1.0]])


def choose(**options):
    return KalmanAdapter(Choices(), trust_region_eps=math.inf, **options)


class TestHypotheses:
    def test_a_reset_of_the_covariance_keeps_weights_and_beliefs(self):
        adapter = choose()
        states, targets = stream(6)
        adapter.adapt(MSE, {"states": states, "targets": targets})
        beliefs, weights = adapter.beliefs, adapter.model.w.detach().clone()
        adapter.reset_covariance()
        torch.testing.assert_close(adapter.beliefs, beliefs, rtol=0.0, atol=0.0)
        torch.testing.assert_close(adapter.state.mean[0], weights)

    def test_without_forgetting_they_are_compared_by_their_evidence(self):
        adapter = choose(process_noise=0.0, surprise=math.inf)
        states, targets = stream(6)
        targets = targets / 3.0
        adapter.adapt(MSE, {"states": states, "targets": targets})
        one = torch.full((2,), 0.1).double()
        log_odds, means, covariances = [], [], []
        for variances, num_free, noise in (
            ([0.0, 0.0, 0.0], 0, one),
            ([4.0, 0.0, 0.0], 1, one),
            ([1.0, 1.0, 1.0], 3, one),
            ([0.0, 0.0, 0.0], 3, 10.0 * one),  # something else, as likely beforehand as the most parameters
        ):
            mean, covariance = torch.zeros(3).double(), torch.diag(torch.tensor(variances).double())
            evidence = -math.log(1.0 + num_free)
            for h, y in zip(states.view(-1, 2, 3), targets, strict=True):
                # Student's t of two numbers with 4 degrees of freedom and the scale S, up to a constant.
                scale, v = h @ covariance @ h.T + torch.diag(noise), y - h @ mean
                distance = (v @ torch.linalg.inv(scale) @ v).item()
                evidence += -3.0 * math.log(1.0 + distance / 4.0) - 0.5 * torch.logdet(scale).item()
                offset, covariance = posterior(covariance, h, v, noise)
                mean = mean + offset
            log_odds.append(evidence)
            means.append(mean)
            covariances.append(covariance)
        beliefs = torch.tensor(log_odds).double().softmax(0)
        torch.testing.assert_close(adapter.beliefs, beliefs, rtol=1e-5, atol=1e-12)
        mean = beliefs @ torch.stack(means)
        torch.testing.assert_close(adapter.model.w.detach(), mean)
        second_moments = [c + torch.outer(m, m) for c, m in zip(covariances, means, strict=True)]
        spread = (beliefs[:, None, None] * torch.stack(second_moments)).sum(0) - torch.outer(mean, mean)
        torch.testing.assert_close(adapter.covariance, spread)

    def test_of_mixed_actions_the_model_says_other_ones(self):
        adapter = KalmanAdapter(random_model(), mixed=True)
        assert adapter.beliefs.shape == (3,)  # nothing, a mix, something else
        nothing, mix, other = adapter.prior_variances()
        assert not nothing.any()
        assert not other.any()
        torch.testing.assert_close(mix[:4], torch.ones(4).double())
        assert KalmanAdapter(random_model()).beliefs.shape == (5,)

    @pytest.mark.parametrize("largest_delay", [0, 2])
    def test_of_mixed_actions_nothing_is_expected_before_a_transition(self, largest_delay):
        model = random_model()
        with torch.no_grad():
            model.action_offset.copy_(torch.tensor([0.3, -0.2]))
        adapter = KalmanAdapter(model, mixed=True, largest_delay=largest_delay)
        source = [1.0, 0.0, 0.0, 1.0, 0.3, -0.2]
        expected = [source, [0.0] * 4 + source[4:]] * (largest_delay + 1) + [source]
        torch.testing.assert_close(adapter.state.means[0], torch.tensor(expected).double())

    def test_of_an_action_that_was_not_taken_nothing_is_expected(self):
        model = random_model()
        adapter = KalmanAdapter(model, mixed=True)
        states = torch.cat([torch.zeros(1, 3), torch.tensor([[0.9, 0.0]])], dim=1)
        adapter.adapt(MSE, {"states": states, "targets": model(states).detach()})
        assert adapter.state.means[0, 1, 0].item() > 0.5
        torch.testing.assert_close(adapter.state.means[0, 1, [1, 3]], torch.zeros(2).double(), atol=1e-6, rtol=0.0)

    def test_what_they_cannot_explain_is_something_else(self):
        adapter = choose()
        states, noise = stream(40)
        adapter.adapt(MSE, {"states": states, "targets": noise})  # a variance of 9 in place of 0.1
        assert adapter.beliefs.argmax().item() == 3
        assert adapter.belief_in_source(adapter.state).item() > 0.9
        torch.testing.assert_close(adapter.model.w.detach(), torch.zeros(3).double(), atol=0.05, rtol=0.0)

    @pytest.mark.parametrize(("true", "which"), [([0, 0, 0], 0), ([-2, 0, 0], 1), ([0.5, -1, 1], 2)])
    def test_the_least_that_explains_is_believed(self, true, which):
        adapter = choose()
        states, noise = stream(10)
        targets = states.view(-1, 2, 3) @ torch.tensor(true).double() + 0.1 * noise
        adapter.adapt(MSE, {"states": states, "targets": targets})
        assert adapter.beliefs.argmax().item() == which
        of_source = adapter.beliefs[0] + adapter.beliefs[3]
        assert adapter.belief_in_source(adapter.state).item() == pytest.approx(of_source.item())
        torch.testing.assert_close(adapter.model.w.detach(), torch.tensor(true).double(), atol=0.3, rtol=0.0)

    def test_what_was_believed_long_is_given_up_soon(self):
        adapter = choose()
        states, noise = stream(400)
        changed = torch.where(torch.arange(400)[:, None] < 395, 0.0, -2.0 * states.view(-1, 2, 3)[..., 0])
        for t in range(400):
            adapter.adapt(MSE, {"states": states[t : t + 1], "targets": (changed + 0.1 * noise)[t : t + 1]})
            if t == 394:
                assert adapter.beliefs[0] > 0.9
        assert adapter.beliefs[1] > 0.9
        assert adapter.model.w[0].item() == pytest.approx(-2.0, abs=0.2)

    def test_the_likelihood_is_that_of_students_t(self):
        sizes = torch.tensor([0.0, 2.0, 1e6]).double()
        # (1 + v^2 / 4)^(-5/2) of one number.
        t = torch.distributions.StudentT(4.0)
        expected = t.log_prob(sizes.sqrt()) - t.log_prob(torch.zeros(3).double())
        torch.testing.assert_close(log_likelihood(sizes, torch.zeros(3), 1), expected)
        # A scale of e^2 in all three of three numbers: log |S| = 6.
        assert log_likelihood(torch.zeros(1), torch.tensor([6.0]), 3).item() == -3.0

    def test_a_model_that_computes_them_is_asked_once_for_a_transition(self):
        asked = []

        class Computing(Linear):
            @property
            def hypotheses(self):
                asked.append(self)
                return torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])

        adapter = KalmanAdapter(Computing(SOURCE, NOISE), surprise=1e-9)  # so that the priors are needed, too
        state = adapter.initial_state(2)
        asked.clear()
        states, targets = stream(2)
        adapter.update(state, states, targets)
        assert len(asked) == 1

    def test_rows_are_those_of_single_adapters(self):
        adapter = choose()
        states, targets = stream(12)
        many = adapter.initial_state(3)
        for t in range(4):
            many = adapter.update(many, states[3 * t : 3 * t + 3], targets[3 * t : 3 * t + 3])
        for row in range(3):
            one = adapter.initial_state()
            for t in range(4):
                one = adapter.update(one, states[3 * t + row][None], targets[3 * t + row][None])
            for name, tensor in vars(one).items():
                torch.testing.assert_close(getattr(many, name)[row], tensor[0])


class TestActionMap:
    @pytest.mark.parametrize("offset", [[0.0, 0.0], [0.2, -0.3]])
    @pytest.mark.parametrize("hidden", [[[-1.0, 0.0], [0.0, 0.6]], [[0.0, 1.0], [-0.8, 0.0]]])
    def test_it_finds_a_hidden_map_and_offset(self, hidden, offset):
        model, rng = random_model(), np.random.default_rng(0)
        adapter = KalmanAdapter(model)
        hidden = torch.tensor(hidden)
        observations = rng.normal(size=(60, 3)).astype(np.float32)
        actions = rng.uniform(-1.0, 1.0, (60, 2)).astype(np.float32)
        encoded = model.encode(observations, actions)
        with torch.no_grad():
            targets = model.linearise(encoded, torch.cat([hidden.flatten(), torch.tensor(offset)]).expand(60, -1))[0]
            targets = targets + 1e-3**0.5 * torch.as_tensor(rng.normal(size=targets.shape), dtype=torch.float32)
        for t in range(60):
            adapter.adapt(MSE, {"states": encoded[t : t + 1], "targets": targets[t : t + 1]})
        torch.testing.assert_close(model.action_map.detach(), hidden, atol=0.1, rtol=0.0)
        torch.testing.assert_close(model.action_offset.detach(), torch.tensor(offset), atol=0.05, rtol=0.0)
        assert adapter.variance["action_map"].shape == (2, 2)
        assert adapter.variance["action_map"].max() < 0.01

    def test_actions_of_zero_tell_nothing_of_the_map(self):
        model = random_model()
        adapter = KalmanAdapter(model)
        # Nothing, 2, 4 and 6 weights that are free, and something else: as probable as 1, 1/3, 1/5, 1/7, 1/7.
        expected = torch.tensor([105.0, 35.0, 21.0, 15.0, 15.0]).double() / 191.0
        torch.testing.assert_close(adapter.beliefs, expected)
        own, mixed = (expected[1] + expected[2]) * 4.0, expected[3]
        variance = torch.stack([own + mixed, mixed / 2, mixed / 2, own + mixed]).view(2, 2)
        torch.testing.assert_close(adapter.variance["action_map"], variance)
        encoded = model.encode(np.ones((5, 3)), np.zeros((5, 2)))
        adapter.adapt(MSE, {"states": encoded, "targets": model(encoded).detach()})
        assert torch.equal(model.action_map.detach(), torch.eye(2))
        # But that there is no offset.
        assert adapter.beliefs[2] < 0.1 * expected[2]
        assert adapter.beliefs[0] / adapter.beliefs[1] == pytest.approx(3.0)


class Motor(Linear):
    """One motor, which moves one number by ``w`` times its command, and may have any ``w``."""

    hypotheses = torch.tensor([[0.0], [4.0]])

    def linearise(self, encoded, weights):
        # The first number belongs to the observation, and those behind the second are older commands.
        return super().linearise(encoded[:, 1:2], weights)

    def with_delays(self, encoded, delays):
        return torch.stack([encoded[:, [0, 1 + int(delay)]] for delay in delays], dim=1)


def late_motor(**options):
    options = {"process_noise": 0.0, "surprise": math.inf, "trust_region_eps": math.inf} | options
    return KalmanAdapter(Motor([1.0], [0.5]), **options)


COMMANDS = torch.tensor([0.5, 1.5, -1.0, 2.0, -0.5, 1.0]).double()


def late_states(adapter, commands):
    """Transitions with the commands before them behind, of a motor that idles at -1."""
    idle = torch.full((adapter.largest_delay,), -1.0).double()
    sent = torch.cat([idle, commands]).unfold(0, adapter.largest_delay + 1, 1).flip(1)
    return torch.cat([torch.full_like(sent[:, :1], 7.0), sent], dim=1)


def drive(adapter, targets, commands=COMMANDS):
    """Take in one transition after the other."""
    states = late_states(adapter, commands)
    for t in range(len(targets)):
        adapter.adapt(MSE, {"states": states[t : t + 1], "targets": targets[t : t + 1, None]})


class TestDelays:
    def test_a_delay_is_one_parameter_more(self):
        # Nothing and a gain, late by 0, 1 and 2 steps, and something else: 1 / (1 + the number of parameters).
        expected = torch.tensor([1.0, 1 / 2, 1 / 2, 1 / 3, 1 / 2, 1 / 3, 1 / 2]).double()
        torch.testing.assert_close(late_motor(largest_delay=2).beliefs, expected / expected.sum())

    def test_hand_computed_evidence(self):
        # The command 0.5, and the target -1: the motor idles still. Noise 1/2, or 5 where it is something else.
        adapter = late_motor(largest_delay=1)
        drive(adapter, torch.tensor([-1.0]).double())
        one = []  # innovation v, and its variance s, of each hypothesis
        one.append((-1.0 - 0.5, 0.5))  # nothing
        one.append((-1.0 - 0.5, 0.25 * 4.0 + 0.5))  # a gain of variance 4, seen through the command 0.5
        one.append((-1.0 + 1.0, 0.5))  # late
        one.append((-1.0 + 1.0, 1.0 * 4.0 + 0.5))  # late, and a gain, seen through the idle command -1
        one.append((-1.0 - 0.5, 5.0))  # something else
        priors = [1.0, 1 / 2, 1 / 2, 1 / 3, 1 / 2]
        evidence = [p * s**-0.5 * (1.0 + v * v / s / 4.0) ** -2.5 for p, (v, s) in zip(priors, one, strict=True)]
        torch.testing.assert_close(adapter.beliefs, torch.tensor(evidence).double() / sum(evidence))
        # What a gain would be: 1 + K v, with K = 4 h / s.
        means = [1.0, 1.0 + 4.0 * 0.5 / 1.5 * -1.5, 1.0, 1.0, 1.0]
        expected = sum(b * m for b, m in zip(adapter.beliefs.tolist(), means, strict=True))
        assert adapter.model.w.item() == pytest.approx(expected)

    @pytest.mark.parametrize("delay", [0, 1, 2])
    @pytest.mark.parametrize("gain", [1.0, -1.5])
    def test_the_delay_and_the_gain_are_found(self, delay, gain):
        adapter = late_motor(largest_delay=2, process_noise=1e-3, noise_scale=0.02)
        commands = torch.randn(20, generator=torch.Generator().manual_seed(0)).double()
        arrived = torch.cat([torch.full((delay,), -1.0).double(), commands])[:20]
        drive(adapter, gain * arrived, commands)
        assert adapter.beliefs.argmax().item() == 2 * delay + (gain != 1.0)
        assert adapter.model.w.item() == pytest.approx(gain, abs=0.1)
        # Of motors that are late and no more, the map is that of the source.
        assert (adapter.belief_in_source(adapter.state).item() > 0.9) == (gain == 1.0)

    def test_a_batch_is_its_transitions(self):
        one, whole = late_motor(largest_delay=2), late_motor(largest_delay=2)
        targets = COMMANDS.flip(0)
        drive(one, targets)
        whole.adapt(MSE, {"states": late_states(whole, COMMANDS), "targets": targets[:, None]})
        torch.testing.assert_close(whole.beliefs, one.beliefs)

    def test_a_transition_that_is_not_finite_is_all_that_is_missing(self):
        adapter = late_motor(largest_delay=2, noise_scale=0.02)
        commands = torch.randn(20, generator=torch.Generator().manual_seed(0)).double()
        targets = torch.cat([torch.full((2,), -1.0).double(), commands])[:20]
        targets[[4, 5, 11]] = torch.nan
        drive(adapter, targets, commands)
        assert adapter.stats.rejected_steps == 3
        assert adapter.beliefs.argmax().item() == 4  # two steps late, and nothing else
        assert adapter.beliefs.max().item() > 0.9

    def test_a_state_goes_on_alike(self):
        adapter, other = late_motor(largest_delay=2), late_motor(largest_delay=2)
        drive(adapter, COMMANDS)
        other.load_state_dict(adapter.state_dict())
        for each in (adapter, other):
            drive(each, -COMMANDS)
        assert torch.equal(adapter.beliefs, other.beliefs)
        with pytest.raises(ValueError, match="of an adapter of the same kind"):
            late_motor(largest_delay=1).load_state_dict(adapter.state_dict())


class TestErrors:
    def test_a_model_that_knows_no_commands(self):
        with pytest.raises(ValueError, match=r"largest_delay must be 0 for a model without .*, as Choices is; got 2"):
            choose(largest_delay=2)

    @pytest.mark.parametrize("adapts", ["last_layer", "all"])
    def test_a_model_that_declares_nothing(self, adapts):
        model = DynamicsModel(spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,)), adapts=adapts)
        with pytest.raises(ValueError, match=r"must be the filtered_parameters of the model.*adapts='action_map'"):
            KalmanAdapter(model)

    @pytest.mark.parametrize("mixed", ["no", 1, None])
    def test_mixed_is_a_flag(self, mixed):
        with pytest.raises(ValueError, match=f"mixed must be True or False; got {mixed!r}"):
            choose(mixed=mixed)

    def test_a_model_that_knows_nothing_of_mixes(self):
        with pytest.raises(ValueError, match=r"mixed must be False for a model without .*, as Choices is; got True"):
            choose(mixed=True)
        model = Choices()
        model.mixed_hypotheses = model.hypotheses
        with pytest.raises(ValueError, match="without mixed_hypotheses and mixed_means"):
            KalmanAdapter(model, mixed=True)

    def test_another_module(self):
        with pytest.raises(ValueError, match=r"must be the filtered_parameters.*; got \['weight', 'bias'\] and \[\]"):
            KalmanAdapter(nn.Linear(2, 1))

    def test_other_parameters_than_those_declared(self):
        model = random_model()
        model.head.requires_grad_(True)
        with pytest.raises(
            ValueError, match=r"got \['action_map', 'action_offset', 'head.weight', .*\] and \['action_map', 'a"
        ):
            KalmanAdapter(model)

    def test_a_model_that_was_not_fitted(self):
        model = random_model()
        model.residual_variance.zero_()
        with pytest.raises(ValueError, match=r"residual_variance must be > 0 for every target; got \[0.0.*model\.fit"):
            KalmanAdapter(model)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"prior_variance": 0.0}, "prior_variance must be a finite number > 0"),
            ({"process_noise": -1e-3}, "process_noise must be a finite number >= 0"),
            ({"process_noise": 2.0}, r"process_noise must be at most prior_variance \(1\.0\); got 2\.0"),
            ({"noise_scale": math.inf}, "noise_scale must be a finite number > 0"),
            ({"surprise": 0.0, "noise_scale": 0}, "noise_scale must be .* surprise must be"),
        ],
    )
    def test_options_outside_their_range(self, options, message):
        with pytest.raises(ValueError, match=message):
            KalmanAdapter(random_model(), **options)
