import contextlib
import copy
import pickle

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor

from ssm_metarl_gym.agents import CnnSSMPolicy, MultiInputSSMPolicy, SSMPolicy
from ssm_metarl_gym.agents.ssm.sequences import Sequences

VECTOR = spaces.Box(-1.0, 1.0, (3,))
OBSERVATIONS = {
    "Box": VECTOR,
    "Box of two axes": spaces.Box(-1.0, 1.0, (2, 3)),
    "Discrete": spaces.Discrete(4),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(3),
    "Dict": spaces.Dict({"vector": VECTOR, "symbol": spaces.Discrete(4)}),
    "image": spaces.Box(0, 255, (1, 36, 36), np.uint8),
    "Dict with image": spaces.Dict({"image": spaces.Box(0, 255, (1, 36, 36), np.uint8), "vector": VECTOR}),
}
WIDE = spaces.Box(-1e3, 1e3, (2,))
ACTIONS = {
    "Discrete": spaces.Discrete(3),
    "Box": spaces.Box(-1.0, 1.0, (2,)),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(3),
}
T, N = 7, 4
STARTS = (
    torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]) > 0
)


def policy_for(observation_space, action_space, **kwargs):
    kind = SSMPolicy
    if isinstance(observation_space, spaces.Dict):
        kind = MultiInputSSMPolicy
    elif len(observation_space.shape) == 3:
        kind = CnnSSMPolicy
    kwargs["ssm_kwargs"] = {"hidden_dim": 8, "output_dim": 6} | kwargs.get("ssm_kwargs", {})
    policy = kind(observation_space, action_space, lambda _: 1e-3, **kwargs)
    with torch.no_grad():
        policy.action_net.weight.normal_()  # SB3 starts it so small that all actions look alike
    return policy


def draw(space, num_rows, seed=0):
    """So many observations."""
    space.seed(seed)
    rows = [space.sample() for _ in range(num_rows)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([row[key] for row in rows]) for key in space.spaces}
    return np.stack(rows)


def take(observations, rows):
    return (
        {key: part[rows] for key, part in observations.items()}
        if isinstance(observations, dict)
        else observations[rows]
    )


def play(policy, steps, state, starts):
    """The policy's own actions, values and log-probabilities along T steps of n environments, and the last state."""
    columns = []
    with torch.no_grad():
        for observation, start in zip(steps, starts, strict=True):
            *column, state = policy(policy.obs_to_tensor(observation)[0], state, start)
            columns.append(column)
    return *(torch.stack(column) for column in zip(*columns, strict=True)), state  # T n ...


def random_state(policy, num_rows=N):
    return torch.randn_like(policy.initial_state(num_rows))


class TestEvaluatingActions:
    """What a rollout remembered step by step, in mid-episode at first, is what learning remembers along sequences."""

    def check(self, policy, frozen=True):
        rows = draw(policy.observation_space, N * T)  # one environment after the other
        steps = [take(rows, np.arange(N) * T + t) for t in range(T)]
        state = random_state(policy)
        if frozen:
            with policy.memory_snapshot():
                actions, values, log_probs, _ = play(policy, steps, state, STARTS)
        else:
            actions, values, log_probs, _ = play(policy, steps, state, STARTS)
        sequences = Sequences(policy.obs_to_tensor(rows)[0], state, STARTS.T)
        flat = actions.transpose(0, 1).flatten(0, 1)  # NT ...
        again = policy.evaluate_actions(sequences, flat)
        assert values.shape == (T, N, 1)
        assert log_probs.shape == (T, N)
        torch.testing.assert_close(again[0], values.transpose(0, 1).flatten(0, 1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(again[1], log_probs.T.flatten(), rtol=1e-5, atol=1e-5)
        assert again[2] is None or again[2].shape == (N * T,)
        return flat

    @pytest.mark.each_value
    @pytest.mark.parametrize("frozen", [True, False])
    @pytest.mark.parametrize("actions", ACTIONS)
    def test_of_every_kind(self, actions, frozen):
        taken = self.check(policy_for(VECTOR, ACTIONS[actions]), frozen)
        assert len(taken.unique(dim=0)) > 1
        assert taken.shape == (N * T, *ACTIONS[actions].shape)

    @pytest.mark.parametrize("observations", OBSERVATIONS)
    def test_on_every_kind_of_observation(self, observations):
        self.check(policy_for(OBSERVATIONS[observations], ACTIONS["Discrete"]))

    @pytest.mark.parametrize("kwargs", [{}, {"squash_output": True}, {"full_std": False, "use_expln": True}], ids=str)
    def test_with_state_dependent_exploration(self, kwargs):
        policy = policy_for(VECTOR, ACTIONS["Box"], use_sde=True, log_std_init=-2.0, **kwargs)
        policy.reset_noise(N)
        assert (self.check(policy).abs() <= 1.0).all() or not policy.squash_output

    @pytest.mark.parametrize("net_arch", [[5], {"pi": [5, 4], "vf": [3]}, {"pi": [], "vf": [3]}], ids=str)
    def test_with_networks_after_the_memory(self, net_arch):
        policy = policy_for(VECTOR, ACTIONS["Box"], net_arch=net_arch, ssm_kwargs={"num_layers": 1})
        self.check(policy)
        assert policy.initial_state(2).shape == (2, 1, 2, 4)

    def test_of_a_sequence_of_one_step(self):
        policy = policy_for(VECTOR, ACTIONS["Box"])
        state, start = random_state(policy), STARTS[0]
        observations = policy.obs_to_tensor(draw(VECTOR, N))[0]
        actions, values, log_probs, _ = policy(observations, state, start)
        again = policy.evaluate_actions(Sequences(observations, state, start[:, None]), actions)
        torch.testing.assert_close(again[0], values)
        torch.testing.assert_close(again[1], log_probs)


class TestNothingCrossesTheStartOfAnEpisode:
    """Two sequences of 7 steps, whose second episodes start at step 3, are the same from there on."""

    start = torch.tensor([[True, False, False, True, False, False, False]] * 2)

    def evaluate(self, policy, observations, state):
        """Values and log-probabilities from the start on, and the gradients of these alone."""
        values, log_probs, _ = policy.evaluate_actions(
            Sequences(observations.flatten(0, 1), state, self.start), torch.ones(14, dtype=torch.long)
        )
        after = torch.stack([values.view(2, 7)[:, 3:], log_probs.view(2, 7)[:, 3:]])
        policy.zero_grad()
        after.square().sum().backward()
        return after, [parameter.grad for parameter in policy.parameters()]

    def test_neither_values_nor_gradients(self):
        policy = policy_for(VECTOR, ACTIONS["Discrete"])
        observations, other = torch.randn(2, 2, 7, 3)
        other[:, 3:] = observations[:, 3:]
        values, grads = self.evaluate(policy, observations, random_state(policy, 2))
        other_values, other_grads = self.evaluate(policy, other, 1e3 * random_state(policy, 2))
        assert torch.equal(values, other_values)
        assert all(grad.abs().max() > 0 for grad in grads)
        torch.testing.assert_close(grads, other_grads)

    def test_no_gradient_reaches_what_was_seen_before(self):
        policy = policy_for(VECTOR, ACTIONS["Discrete"])
        observations, state = torch.randn(2, 7, 3, requires_grad=True), random_state(policy, 2).requires_grad_()
        self.evaluate(policy, observations, state)
        assert (observations.grad[:, :3] == 0).all()
        assert (observations.grad[:, 3:] != 0).all()
        assert (state.grad == 0).all()

    def test_no_nan_in_the_memory(self):
        policy = policy_for(VECTOR, ACTIONS["Discrete"])
        observations, state = torch.randn(2, 7, 3), random_state(policy, 2)
        values, grads = self.evaluate(policy, observations, state)
        other_values, other_grads = self.evaluate(policy, observations, torch.full_like(state, torch.nan))
        assert torch.equal(values, other_values)
        torch.testing.assert_close(grads, other_grads)

    @pytest.mark.parametrize("frozen", [True, False])
    def test_nor_in_single_steps(self, frozen):
        policy = policy_for(VECTOR, ACTIONS["Discrete"])
        observations, start = torch.randn(N, 3), torch.tensor([True, False, True, False])
        state = random_state(policy)
        state[0] = torch.nan
        with policy.memory_snapshot() if frozen else contextlib.nullcontext():
            values = policy.predict_values(observations, state, start)
            fresh = policy.predict_values(observations, policy.initial_state(N), torch.zeros(N, dtype=torch.bool))
        assert torch.equal(values[start], fresh[start])
        assert not torch.isclose(values[~start], fresh[~start]).any()


class TestPredict:
    @pytest.mark.parametrize(
        ("observations", "actions"),
        [(kind, "Box") for kind in OBSERVATIONS] + [("Box", kind) for kind in ACTIONS if kind != "Box"],
    )
    def test_takes_one_observation_or_many(self, observations, actions):
        observation_space, action_space = OBSERVATIONS[observations], ACTIONS[actions]
        policy = policy_for(observation_space, action_space)
        rows = draw(observation_space, N)
        many, states = policy.predict(rows, deterministic=True)
        assert many.shape == (N, *action_space.shape)
        for i in range(N):
            action, state = policy.predict(take(rows, i), deterministic=True)
            assert isinstance(action, np.ndarray)  # as SB3's own policies
            assert action_space.contains(action)
            assert state.shape == (1, 2, 2, 4)
            np.testing.assert_allclose(action, many[i], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(state[0], states[i], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("frozen", [True, False])
    def test_is_the_deterministic_step_and_the_scan_of_the_whole(self, frozen):
        policy = policy_for(VECTOR, WIDE)
        observations = draw(VECTOR, N * T).reshape(N, T, 3)
        state, memory, actions, same = None, policy.initial_state(N), [], []
        with policy.memory_snapshot() if frozen else contextlib.nullcontext(), torch.no_grad():
            for t in range(T):
                start = STARTS[t] | (t == 0)
                action, state = policy.predict(observations[:, t], state, start.numpy(), deterministic=True)
                tensor, _, _, memory = policy(torch.from_numpy(observations[:, t]), memory, start, deterministic=True)
                actions.append(action)
                same.append(tensor.numpy())
                np.testing.assert_array_equal(state, memory.numpy())
        np.testing.assert_array_equal(actions, same)
        with torch.no_grad():
            features, last = policy.ssm.scan(torch.from_numpy(observations), start=STARTS.T)
            means = policy.action_net(policy.mlp_extractor.forward_actor(features))
        np.testing.assert_allclose(np.stack(actions, axis=1), means, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state, last, rtol=1e-4, atol=1e-5)

    def test_forgets_where_an_episode_starts_and_only_there(self):
        policy = policy_for(VECTOR, WIDE)
        rows, start = draw(VECTOR, N), np.array([True, False, True, False])
        _, state = policy.predict(draw(VECTOR, N, seed=1))
        fresh, _ = policy.predict(rows, deterministic=True)
        carried, _ = policy.predict(rows, state, deterministic=True)
        some, _ = policy.predict(rows, state, start, deterministic=True)
        np.testing.assert_array_equal(some, np.where(start[:, None], fresh, carried))
        assert not np.isclose(fresh, carried).any()
        nowhere, _ = policy.predict(rows, state, np.zeros(N, dtype=bool), deterministic=True)
        np.testing.assert_array_equal(nowhere, carried)

    @pytest.mark.parametrize("start", [True, np.array([True]), np.array([1.0]), [True]], ids=repr)
    def test_takes_the_start_flag_of_one_environment_in_every_form(self, start):
        policy = policy_for(VECTOR, WIDE)
        observation = draw(VECTOR, 1)[0]
        fresh, state = policy.predict(observation, deterministic=True)
        np.testing.assert_array_equal(policy.predict(observation, state, start, deterministic=True)[0], fresh)

    def test_leaves_the_given_state_as_it_is(self):
        policy = policy_for(VECTOR, WIDE)
        rows, state = draw(VECTOR, N), np.ones((N, 2, 2, 4), dtype=np.float32)
        given = state.copy()
        first, after = policy.predict(rows, state, deterministic=True)
        np.testing.assert_array_equal(state, given)
        assert not np.shares_memory(state, after)
        for other in (state.astype(np.float64), state.tolist(), torch.from_numpy(state)):
            np.testing.assert_array_equal(policy.predict(rows, other, deterministic=True)[0], first)

    def test_is_in_evaluation_mode_and_without_gradients(self):
        policy = policy_for(VECTOR, WIDE)
        policy.set_training_mode(True)
        action, state = policy.predict(draw(VECTOR, 1)[0])
        assert not policy.training
        assert isinstance(action, np.ndarray)
        assert isinstance(state, np.ndarray)

    def test_draws_actions_unless_it_is_deterministic(self):
        policy = policy_for(VECTOR, WIDE)
        observation = draw(VECTOR, 1)[0]
        drawn, certain = (
            np.stack([policy.predict(observation, deterministic=deterministic)[0] for _ in range(3)])
            for deterministic in (False, True)
        )
        assert len(np.unique(drawn, axis=0)) == 3
        assert len(np.unique(certain, axis=0)) == 1

    @pytest.mark.parametrize("deterministic", [True, False])
    @pytest.mark.parametrize("squash_output", [True, False])
    def test_keeps_actions_within_their_bounds(self, squash_output, deterministic):
        space = spaces.Box(np.array([-2.0, -1.0], np.float32), np.array([0.5, 5.0], np.float32))
        policy = policy_for(VECTOR, space, use_sde=squash_output, squash_output=squash_output)
        with torch.no_grad():
            policy.action_net.weight.mul_(3.0)
        actions, _ = policy.predict(draw(VECTOR, 50), deterministic=deterministic)
        assert all(space.contains(action) for action in actions)
        assert (np.ptp(actions, axis=0) > 0.5).any()
        at_bounds = np.isin(actions, [space.low, space.high]).any()
        assert squash_output or at_bounds  # clipped

    def test_refuses_what_reset_of_gymnasium_returns(self):
        policy = policy_for(VECTOR, WIDE)
        with pytest.raises(ValueError, match=r"obs, info = env\.reset\(\)"):
            policy.predict((VECTOR.sample(), {}))

    @pytest.mark.parametrize("shape", [(3, 2, 2, 4), (1, 2, 2, 4), (N, 1, 2, 4), (N, 2, 2, 8), (N, 16), ()], ids=str)
    def test_refuses_a_state_of_another_shape(self, shape):
        policy = policy_for(VECTOR, WIDE)
        with pytest.raises(
            ValueError, match=r"state must be the array of shape \(4, 2, 2, 4\) that the last call returned; got"
        ):
            policy.predict(draw(VECTOR, N), np.zeros(shape, dtype=np.float32))


class TestMemorySnapshot:
    def test_does_not_see_changes_of_the_weights(self):
        policy = policy_for(VECTOR, ACTIONS["Discrete"])
        arguments = torch.randn(N, 3), random_state(policy), STARTS[0]
        before = policy.predict_values(*arguments)
        with policy.memory_snapshot():
            torch.testing.assert_close(policy.predict_values(*arguments), before)
            with torch.no_grad():
                policy.ssm.encoder.weight.normal_()
            torch.testing.assert_close(policy.predict_values(*arguments), before)
        assert not torch.isclose(policy.predict_values(*arguments), before).any()

    def test_ends_with_an_error(self):
        policy = policy_for(VECTOR, ACTIONS["Discrete"])
        with contextlib.suppress(RuntimeError), policy.memory_snapshot():
            raise RuntimeError("the environment fails")
        assert policy.predict_values(torch.randn(N, 3), random_state(policy), STARTS[0]).requires_grad

    @pytest.mark.parametrize("clone", [copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))])  # noqa: S301
    def test_a_copy_made_within_it_is_of_the_weights(self, clone):
        policy = policy_for(VECTOR, ACTIONS["Discrete"])
        policy.lr_schedule = None
        arguments = torch.randn(N, 3), random_state(policy), STARTS[0]
        with policy.memory_snapshot():
            other = clone(policy)
            before = policy.predict_values(*arguments)
        torch.testing.assert_close(other.predict_values(*arguments), before)
        with torch.no_grad():
            other.ssm.encoder.weight.normal_()
        assert not torch.isclose(other.predict_values(*arguments), before).any()
        assert torch.equal(policy.predict_values(*arguments), policy.predict_values(*arguments))


@pytest.mark.parametrize("observations", OBSERVATIONS)
def test_the_one_optimizer_has_all_parameters(observations):
    policy = policy_for(OBSERVATIONS[observations], ACTIONS["Box"], net_arch={"pi": [5], "vf": [4]})
    (group,) = policy.optimizer.param_groups
    assert {id(parameter) for parameter in group["params"]} == {id(parameter) for parameter in policy.parameters()}
    assert {id(parameter) for parameter in policy.ssm.parameters()} <= {id(one) for one in group["params"]}


@pytest.mark.parametrize(
    ("observations", "kwargs"),
    [
        ("Box", {"ssm_kwargs": {"num_layers": 3, "radius": (0.9, 0.95)}, "net_arch": {"pi": [5], "vf": [4]}}),
        ("Box", {"use_sde": True, "squash_output": True}),
        ("Dict", {"ssm_kwargs": {"hidden_dim": 10}}),
        ("image", {"features_extractor_kwargs": {"features_dim": 7}}),
    ],
    ids=str,
)
def test_a_saved_policy_is_the_same(tmp_path, observations, kwargs):
    space = OBSERVATIONS[observations]
    policy = policy_for(space, ACTIONS["Box"], **kwargs)
    policy.save(tmp_path / "policy")
    loaded = type(policy).load(tmp_path / "policy", device="cpu")
    state = None
    for seed in range(3):
        action, after = policy.predict(draw(space, N, seed), state, deterministic=True)
        again, state = loaded.predict(draw(space, N, seed), state, deterministic=True)
        np.testing.assert_array_equal(again, action)
        np.testing.assert_array_equal(state, after)


def test_the_memory_is_64_wide_unless_told_otherwise():
    for ssm_kwargs, sizes in ((None, (64, 64, 2)), ({"hidden_dim": 8, "num_layers": 1}, (8, 64, 1))):
        ssm = SSMPolicy(VECTOR, WIDE, lambda _: 1e-3, ssm_kwargs=ssm_kwargs).ssm
        assert (ssm.hidden_dim, ssm.output_dim, ssm.num_layers) == sizes


class TestRefuses:
    def test_two_features_extractors(self):
        with pytest.raises(ValueError, match=r"share_features_extractor must be True.*got False"):
            policy_for(VECTOR, WIDE, share_features_extractor=False)
        policy_for(VECTOR, WIDE, share_features_extractor=True)

    @pytest.mark.parametrize("kwargs", [{}, {"features_extractor_class": FlattenExtractor}], ids=str)
    def test_dictionaries_where_nothing_reads_them(self, kwargs):
        with pytest.raises(ValueError, match="'MultiInputSSMPolicy'"):
            SSMPolicy(OBSERVATIONS["Dict"], WIDE, lambda _: 1e-3, **kwargs)

    def test_what_is_no_dictionary_where_dictionaries_are_read(self):
        with pytest.raises(ValueError, match=r"CombinedExtractor reads .* dictionaries; got Box.*Use 'SSMPolicy'"):
            MultiInputSSMPolicy(VECTOR, WIDE, lambda _: 1e-3)

    @pytest.mark.parametrize("starts", [True, [False, True], np.ones(4)])
    def test_starts_of_another_number_of_rows(self, starts):
        policy_for(VECTOR, WIDE).predict(draw(VECTOR, 3), None, torch.tensor([True, False, True]))
        with pytest.raises(ValueError, match="episode_start must have one flag for each of the 3 observations; got"):
            policy_for(VECTOR, WIDE).predict(draw(VECTOR, 3), None, np.asarray(starts))

    def test_a_width_of_the_input(self):
        with pytest.raises(ValueError, match=r"ssm_kwargs must leave state_dim to the policy.*got .*Leave it out"):
            policy_for(VECTOR, WIDE, ssm_kwargs={"state_dim": 3})

    @pytest.mark.parametrize("name", ["hidden_dim", "num_layers", "output_dim"])
    def test_sizes_that_are_none(self, name):
        with pytest.raises(ValueError, match=f"{name} must be an int >= 1; got 0"):
            policy_for(VECTOR, WIDE, ssm_kwargs={name: 0})
