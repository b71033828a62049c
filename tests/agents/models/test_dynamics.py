import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from torch import nn

from ssm_metarl_gym.agents import SSM, AdaptationConfig, Adapter, DynamicsModel
from ssm_metarl_gym.agents.models.supervision import Transitions

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (3,))
ACTIONS = {
    "discrete": spaces.Discrete(2),
    "shifted": spaces.Discrete(3, start=-1),
    "box": spaces.Box(-1.0, 1.0, (2,)),
    "matrix": spaces.Box(-1.0, 1.0, (2, 2)),
}
each_action_space = pytest.mark.parametrize("actions", ACTIONS.values(), ids=ACTIONS)
each_adapts = pytest.mark.parametrize("adapts", ["last_layer", "all"])
each_kind = pytest.mark.parametrize("adapts", ["last_layer", "all", "action_map"])


def transitions(action_space, num_rows=6):
    action_space.seed(0)
    rng = np.random.default_rng(0)
    observations, next_observations = rng.normal(size=(2, num_rows, 3)).astype(np.float32)
    return observations, np.array([action_space.sample() for _ in range(num_rows)]), next_observations


class TestInputs:
    @pytest.mark.parametrize(
        ("space", "taken", "encoded"),
        [
            (ACTIONS["discrete"], [0, 1], [[1, 0], [0, 1]]),
            (ACTIONS["shifted"], [1, -1], [[0, 0, 1], [1, 0, 0]]),
            (ACTIONS["box"], [[0.5, -1.0], [0.25, 0.0]], [[0.5, -1.0], [0.25, 0.0]]),
            (ACTIONS["matrix"], [[[1, 0], [0.5, 0]], [[0, 1], [0, -1]]], [[1, 0, 0.5, 0], [0, 1, 0, -1]]),
        ],
    )
    def test_observation_and_encoded_action_side_by_side(self, space, taken, encoded):
        observations = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
        inputs = DynamicsModel(OBSERVATIONS, space).inputs(observations, np.array(taken))
        assert inputs.dtype == torch.float32
        assert inputs.tolist() == np.hstack([observations, encoded]).tolist()
        assert DynamicsModel.input_dim(OBSERVATIONS, space) == inputs.shape[1]

    def test_hand_computed_normalisation(self):
        observations = np.array([[1.0, 0.0, 5.0], [3.0, 4.0, 5.0]])
        changes = np.array([[1.0, 0.0, -2.0], [1.0, 6.0, 2.0]])
        model = DynamicsModel(OBSERVATIONS, ACTIONS["discrete"])
        model.set_normalisation(observations, np.array([0, 0]), observations + changes)
        # Columns: mean 2 and deviation 1, mean 2 and deviation 2; a constant column is shifted but never scaled.
        inputs = model.inputs(np.array([[3.0, 0.0, 6.0]]), np.array([1]))
        assert inputs.tolist() == [[1.0, -1.0, 1.0, -1.0, 1.0]]
        # Changes of deviation 0, 3 and 2, scaled but never shifted.
        targets = model.targets(np.zeros((1, 3)), np.array([[1.0, 6.0, -2.0]]))
        assert targets.dtype == torch.float32
        assert targets.tolist() == [[1.0, 2.0, -1.0]]

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, "single in double"])
    def test_of_many_rows_a_constant_column_stays_constant(self, dtype):
        rng, size = np.random.default_rng(0), 60_000
        # Two constants, and a clock, whose equal steps rounding makes unequal.
        observations = np.stack([np.full(size, 0.1), np.full(size, 1000.1), rng.uniform(0.0, 50.0, size)], axis=1)
        is_rounded = dtype == "single in double"
        dtype = np.float32 if is_rounded else dtype
        observations = observations.astype(dtype)
        after = observations + np.array([0.0, 0.0, 0.02], dtype)
        if is_rounded:
            observations, after = observations.astype(np.float64), after.astype(np.float64)
        model = DynamicsModel(OBSERVATIONS, ACTIONS["discrete"])
        model.set_normalisation(observations, rng.integers(2, size=size), after)
        assert model.input_scale[:2].tolist() == model.target_scale[:2].tolist() == [1.0, 1.0]
        shifted = model.inputs(observations[:1] + np.array([[0.1, 0.0, 0.0]], dtype), np.array([0]))[0, :2]
        np.testing.assert_allclose(shifted, [0.1, 0.0], atol=1e-7)
        assert model.target_scale[2] == 1.0
        np.testing.assert_allclose(model.targets(observations[:9], after[:9])[:, 2], 0.02, atol=1e-5)

    def test_what_is_far_from_zero_is_normalised_as_what_is_near(self):
        rng, size = np.random.default_rng(0), 60_000
        observations = (5e5 + 10.0 * rng.normal(size=(size, 3))).astype(np.float32)
        model = DynamicsModel(OBSERVATIONS, ACTIONS["discrete"])
        model.set_normalisation(observations, np.zeros(size, int), observations + np.float32(1.0))
        inputs = model.inputs(observations, np.zeros(size, int))[:, :3]
        np.testing.assert_allclose(inputs.mean(0), np.zeros(3), atol=5e-3)
        np.testing.assert_allclose(inputs.std(0), np.ones(3), rtol=2e-3)

    def test_changes_that_rounding_does_not_explain_are_changes(self):
        rng, size = np.random.default_rng(0), 20_000
        # Far from zero; over a wide range; with a single value that is far away.
        starts = [5e5 + 50.0 * rng.normal(size=size), rng.uniform(0.0, 1e3, size), rng.uniform(-1.0, 1.0, size)]
        starts[2][0] = 1e6
        observations = np.stack(starts, axis=1).astype(np.float32)
        after = (observations + [0.1, 4e-4, 0.1] * rng.normal(size=(size, 3))).astype(np.float32)
        model = DynamicsModel(OBSERVATIONS, ACTIONS["discrete"])
        model.set_normalisation(observations, np.zeros(size, int), after)
        np.testing.assert_allclose(model.target_scale, [0.1, 4e-4, 0.1], rtol=0.03)

    def test_small_changes_of_small_things_are_changes(self):
        rng = np.random.default_rng(0)
        observations = 1e-3 * rng.normal(size=(500, 3))
        after = observations + 5e-7 * rng.normal(size=(500, 3))
        model = DynamicsModel(OBSERVATIONS, ACTIONS["discrete"])
        model.set_normalisation(observations, np.zeros(500, int), after)
        np.testing.assert_allclose(model.targets(observations, after).std(0), np.ones(3), rtol=2e-3)

    @pytest.mark.parametrize("action", [-2, 2])
    def test_what_is_no_choice_is_refused(self, action):
        model = DynamicsModel(OBSERVATIONS, ACTIONS["shifted"])
        with pytest.raises(ValueError, match=rf"must be choices of Discrete\(3, start=-1\); got {action}\."):
            model.inputs(np.zeros((2, 3)), np.array([0, action]))

    @pytest.mark.parametrize(
        ("dtype", "starts", "changes"),
        [
            (np.float64, [5e6, -5e6, 1.0], [0.25, 0.125, 0.5]),
            (np.uint8, [5, 200, 7], [-4, 55, -7]),
            (np.int16, [-32000, 32000, 0], [64000, -64000, 1]),
        ],
    )
    def test_changes_of_any_type_of_numbers_are_what_they_are(self, dtype, starts, changes):
        observations = np.array([starts, starts], dtype=dtype)
        next_observations = np.array([np.add(starts, changes), starts]).astype(dtype)
        model = DynamicsModel(spaces.Box(-np.inf, np.inf, (3,)), ACTIONS["discrete"])
        assert model.targets(observations, next_observations).tolist() == [changes, [0.0, 0.0, 0.0]]
        model.set_normalisation(observations, np.array([0, 1]), next_observations)
        assert model.target_scale.tolist() == (np.abs(changes) / 2).tolist()

    def test_in_single_precision_changes_are_rounded_once(self):
        rng = np.random.default_rng(0)
        sizes = 10.0 ** rng.uniform(-20.0, 20.0, size=(2, 2000, 3))
        observations, next_observations = (rng.normal(size=sizes.shape) * sizes).astype(np.float32)
        model = DynamicsModel(OBSERVATIONS, ACTIONS["discrete"])
        expected = torch.from_numpy(next_observations) - torch.from_numpy(observations)
        assert torch.equal(model.targets(observations, next_observations), expected)

    @each_action_space
    def test_a_normalised_data_set_is_standard(self, actions):
        model, data = DynamicsModel(OBSERVATIONS, actions), transitions(actions, 50)
        model.set_normalisation(*data)
        inputs, targets = model.inputs(*data[:2]), model.targets(data[0], data[2])
        torch.testing.assert_close(inputs.mean(0), torch.zeros(inputs.shape[1]), atol=1e-5, rtol=0.0)
        torch.testing.assert_close(inputs.std(0, correction=0), torch.ones(inputs.shape[1]), atol=1e-4, rtol=0.0)
        torch.testing.assert_close(targets.std(0, correction=0), torch.ones(3), atol=1e-4, rtol=0.0)

    def test_the_normalisation_is_saved(self):
        model, data = DynamicsModel(OBSERVATIONS, ACTIONS["box"]), transitions(ACTIONS["box"])
        model.set_normalisation(*data)
        other = DynamicsModel(OBSERVATIONS, ACTIONS["box"])
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(other.encode(*data[:2])), model(model.encode(*data[:2])))
        assert torch.equal(other.targets(data[0], data[2]), model.targets(data[0], data[2]))


class TestTwoHalves:
    @pytest.mark.each_value
    @each_action_space
    @each_adapts
    def test_encode_computes_what_does_not_adapt(self, actions, adapts):
        model, data = DynamicsModel(OBSERVATIONS, actions, adapts=adapts), transitions(actions)
        model.set_normalisation(*data)
        inputs = model.inputs(*data[:2])
        features = model.core(inputs)
        encoded = model.encode(*data[:2])
        assert torch.equal(encoded, features if adapts == "last_layer" else inputs)
        assert not encoded.requires_grad
        assert torch.equal(model(encoded), model.head(features))
        assert model(encoded).shape == (6, 3)

    @each_adapts
    def test_exactly_what_adapts_requires_a_gradient(self, adapts):
        model = DynamicsModel(OBSERVATIONS, ACTIONS["box"], adapts=adapts).train().requires_grad_(False)
        model.prepare_to_adapt()
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == (adapts == "all" or name.startswith("head.")), name
        assert not any(part.training for part in model.modules())

    @each_adapts
    def test_an_adapter_changes_what_adapts_and_learns(self, adapts):
        model, data = DynamicsModel(OBSERVATIONS, ACTIONS["box"], adapts=adapts), transitions(ACTIONS["box"])
        model.prepare_to_adapt()
        before = copy.deepcopy(model.state_dict())
        batch = {"states": model.encode(*data[:2]), "targets": model.targets(data[0], data[2])}
        loss = nn.MSELoss()(model(batch["states"]), batch["targets"]).item()
        assert Adapter(model, AdaptationConfig(0.1, 10.0, 1.0, 0.9, 0.0, 3)).adapt(nn.MSELoss(), batch) < loss
        changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        adapting = {name for name, _ in model.named_parameters() if adapts == "all" or name.startswith("head.")}
        # From the zero state the recurrence has nothing to decay.
        assert changed == {name for name in adapting if not name.endswith(".theta")}


class TestCore:
    def test_the_default_is_an_ssm(self):
        model = DynamicsModel(OBSERVATIONS, ACTIONS["discrete"])
        assert isinstance(model.core, SSM)
        assert (model.core.state_dim, model.core.hidden_dim, model.core.output_dim) == (5, 64, 32)

    @each_adapts
    def test_a_core_of_one_s_own(self, adapts):
        core = nn.Sequential(nn.Linear(5, 7), nn.Tanh())
        model, data = (
            DynamicsModel(OBSERVATIONS, ACTIONS["discrete"], core, adapts=adapts),
            transitions(spaces.Discrete(2)),
        )
        assert model.core is core
        assert model.head.in_features == 7
        encoded = model.encode(*data[:2])
        assert encoded.shape[1] == (7 if adapts == "last_layer" else 5)
        assert torch.equal(model(encoded), model.head(core(model.inputs(*data[:2]))))

    @pytest.mark.parametrize(
        ("core", "message"),
        [
            (nn.Linear(4, 7), r"must take an input of shape \(batch, 5\)"),
            (SSM(4), r"must take an input of shape \(batch, 5\)"),
            (nn.Flatten(0), r"must give a tensor of shape \(batch, features\); got \(5,\)"),
            (nn.LSTM(5, 7), r"must give a tensor of shape \(batch, features\); got tuple"),
        ],
    )
    def test_a_core_of_another_shape_is_refused(self, core, message):
        with pytest.raises(ValueError, match=f"the core {message}"):
            DynamicsModel(OBSERVATIONS, ACTIONS["discrete"], core)


def action_map_model(actions=ACTIONS["box"]):
    model = DynamicsModel(OBSERVATIONS, actions, adapts="action_map")
    model.set_normalisation(*transitions(actions, 50))
    return model


class TestActionMap:
    @pytest.mark.parametrize("actions", [ACTIONS["box"], ACTIONS["matrix"]], ids=["box", "matrix"])
    def test_at_first_it_is_the_model_without_a_map(self, actions):
        model, data = action_map_model(actions), transitions(actions)
        num_actions = spaces.flatdim(actions)
        encoded = model.encode(*data[:2])
        assert encoded.shape == (6, 3 + num_actions)
        assert encoded[:, 3:].tolist() == data[1].reshape(6, -1).tolist()
        assert torch.equal(model.action_map, torch.eye(num_actions))
        torch.testing.assert_close(model(encoded), model.head(model.core(model.inputs(*data[:2]))))

    def test_it_maps_the_actions_as_they_are(self):
        model, (observations, actions, _) = action_map_model(), transitions(ACTIONS["box"])
        hidden = np.array([[0.5, -1.0], [2.0, 0.25]], dtype=np.float32)
        expected = model(model.encode(observations, actions @ hidden.T))
        with torch.no_grad():
            model.action_map.copy_(torch.as_tensor(hidden))
        torch.testing.assert_close(model(model.encode(observations, actions)), expected)

    def test_it_acts_in_half_ranges_around_the_middle(self):
        # One range is (0, 4), one has no length, and one no bounds.
        box = spaces.Box(np.array([0.0, 0.5, -np.inf]), np.array([4.0, 0.5, np.inf]), dtype=np.float64)
        model = DynamicsModel(OBSERVATIONS, box, adapts="action_map")
        observation, action = np.zeros((1, 3), dtype=np.float32), np.array([[3.0, 0.5, 7.0]])
        assert model.commands(action).tolist() == [[0.5, 0.0, 7.0]]
        model.set_normalisation(np.tile(observation, (2, 1)), np.array([[1.0, 0.5, 0.0], [2.0, 0.5, 4.0]]), observation)
        # The standard deviations of the actions, .5 and 2, and 1 of what is constant, in these units: .25, 1 and 2.
        assert model.hypotheses[2, -3:].tolist() == [(0.5 * std) ** 2 for std in (0.25, 1.0, 2.0)]
        reversed_motor = model(model.encode(observation, np.array([[1.0, 0.5, 7.0]])))
        with torch.no_grad():
            model.action_map[0, 0] = -1.0
        torch.testing.assert_close(model(model.encode(observation, action)), reversed_motor)

    def test_bounds_as_large_as_a_number_can_be_are_none(self):
        largest = float(np.finfo(np.float32).max)
        model = DynamicsModel(OBSERVATIONS, spaces.Box(-largest, largest, (2,)), adapts="action_map")
        assert model.commands(np.array([[3.0, -1e6]])).tolist() == [[3.0, -1e6]]

    def test_it_alone_adapts(self):
        model = action_map_model().train().requires_grad_(False)
        model.prepare_to_adapt()
        assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == [
            "action_map",
            "action_offset",
        ]
        assert model.filtered_parameters == ("action_map", "action_offset")
        assert not any(part.training for part in model.modules())
        assert "action_map" not in DynamicsModel(OBSERVATIONS, ACTIONS["box"]).state_dict()

    def test_it_is_linearised_in_each_row_at_a_map_of_its_own(self):
        model, (observations, actions, _) = action_map_model(), transitions(ACTIONS["box"])
        maps, offsets = 0.3 * torch.randn(6, 2, 2), 0.1 * torch.randn(6, 2)
        encoded = model.encode(observations, actions)
        with torch.no_grad():
            predictions, jacobians = model.linearise(encoded, torch.cat([maps.flatten(1), offsets], dim=1))
        for row in range(6):
            with torch.no_grad():
                model.action_map.copy_(maps[row])
                model.action_offset.copy_(offsets[row])
            prediction = model(encoded[row : row + 1])
            torch.testing.assert_close(predictions[row], prediction[0].detach())
            for component in range(3):
                slopes = torch.autograd.grad(
                    prediction[0, component], [model.action_map, model.action_offset], retain_graph=True
                )
                found = jacobians[row, component].split([4, 2])
                for one, other in zip(found, slopes, strict=True):
                    torch.testing.assert_close(one, other.flatten(), atol=2e-3, rtol=2e-2)

    def test_what_may_be_the_matter_with_it(self):
        model = action_map_model()
        with torch.no_grad():
            model.input_scale[3:] = torch.tensor([2.0, 0.6])
        nothing, own, biased, mixed = model.hypotheses.tolist()
        assert nothing == [0.0] * 6
        assert own == [4.0, 0.0, 0.0, 4.0, 0.0, 0.0]
        assert biased == pytest.approx([4.0, 0.0, 0.0, 4.0, 1.0, 0.09])
        assert mixed == pytest.approx([1.0, 0.5, 0.5, 1.0, 1.0, 0.09])
        nothing, mixed = model.mixed_hypotheses.tolist()
        assert nothing == [0.0] * 6
        assert mixed == pytest.approx([1.0, 1.0, 1.0, 1.0, 1.0, 0.09])
        # A mix is as likely as its opposite, an offset expected where it was.
        assert model.mixed_means.tolist() == [[1.0] * 6, [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]]

    def test_it_computes_in_the_type_of_its_core(self):
        core = nn.Sequential(nn.Linear(5, 8), nn.Tanh()).to(torch.bfloat16)
        model = DynamicsModel(OBSERVATIONS, ACTIONS["box"], core, adapts="action_map")
        encoded = model.encode(*transitions(ACTIONS["box"])[:2])
        assert {encoded.dtype, model(encoded).dtype, model.action_map.dtype} == {torch.bfloat16}
        predictions, slopes = model.linearise(encoded, torch.cat([torch.eye(2).flatten(), torch.zeros(2)]).repeat(6, 1))
        assert predictions.dtype == torch.bfloat16
        assert slopes.isfinite().all()

    @pytest.mark.parametrize("actions", [ACTIONS["discrete"], ACTIONS["shifted"]], ids=str)
    def test_discrete_actions_have_no_map(self, actions):
        with pytest.raises(ValueError, match=r"a map on the actions needs an action space that is a Box; got Discrete"):
            DynamicsModel(OBSERVATIONS, actions, adapts="action_map")

    def test_the_default_core_is_smooth(self):
        core = action_map_model().core
        assert [type(layer) for layer in core] == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh]
        assert core[2].weight.shape == (256, 256)


class Noisy(gym.Env):
    """Position and speed of a cart with two motors and noise on the speed; the third number never changes."""

    observation_space = OBSERVATIONS
    action_space = ACTIONS["box"]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps_left = 20
        self.seen = np.float32([*self.np_random.normal(size=2), 7.0])
        return self.seen, {}

    def step(self, action):
        self.steps_left -= 1
        change = [0.1 * self.seen[1], 0.5 * action[0] - 0.25 * action[1] + 0.05 * self.np_random.normal(), 0.0]
        self.seen = self.seen + np.float32(change)
        return self.seen, 0.0, False, self.steps_left == 0, {}


FIT = {"num_transitions": 2000, "num_updates": 400, "learning_rate": 0.03}


class TestFit:
    @pytest.mark.parametrize(
        "adapts", ["action_map", *(pytest.param(each, marks=pytest.mark.slow) for each in ("last_layer", "all"))]
    )
    def test_it_learns_the_dynamics_and_measures_what_it_cannot_explain(self, adapts):
        model = DynamicsModel(OBSERVATIONS, ACTIONS["box"], nn.Identity(), adapts=adapts)
        assert model.fit(Noisy(), **FIT) is model
        slopes = model.head.weight.detach() * model.target_scale[:, None] / model.input_scale
        expected = torch.tensor([[0.0, 0.1, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.5, -0.25], [0.0] * 5])
        # The constant has no slope that could be known.
        torch.testing.assert_close(slopes[:, [0, 1, 3, 4]], expected[:, [0, 1, 3, 4]], atol=0.01, rtol=0.0)
        noise = 0.05 / model.target_scale[1].item()
        assert model.residual_variance[1].item() == pytest.approx(noise**2, rel=0.25)
        assert model.residual_variance[[0, 2]].tolist() == pytest.approx([1e-6, 1e-6], rel=50.0)
        assert (model.residual_variance >= 1e-6).all()

    @each_kind
    def test_afterwards_it_is_ready_to_adapt(self, adapts):
        model, fresh = (DynamicsModel(OBSERVATIONS, ACTIONS["box"], adapts=adapts) for _ in range(2))
        if adapts == "action_map":
            with torch.no_grad():
                model.action_map.fill_(3.0)
                model.action_offset.fill_(0.5)
        model.fit(Noisy(), **FIT | {"num_transitions": 100, "num_updates": 2})
        assert {name for name, p in model.named_parameters() if p.requires_grad} == {
            name for name, p in fresh.named_parameters() if p.requires_grad
        }
        assert not any(part.training for part in model.modules())
        if adapts == "action_map":
            assert torch.equal(model.action_map, torch.eye(2))
            assert not model.action_offset.any()

    def test_one_seed_gives_one_result_and_no_other_randomness(self, untouched_rng):
        models = [DynamicsModel(OBSERVATIONS, ACTIONS["box"], adapts="action_map") for _ in range(3)]
        initial = copy.deepcopy(models[0].state_dict())
        with untouched_rng():
            for model, seed in zip(models, (0, 0, 1), strict=True):
                model.load_state_dict(initial)
                model.fit(Noisy(), num_transitions=200, num_updates=10, seed=seed)
        first, second, third = (model.state_dict() for model in models)
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert not torch.equal(first["head.weight"], third["head.weight"])
        assert not torch.equal(first["input_shift"], third["input_shift"])

    def test_noise_of_sensors_counts_in_what_is_unexplained_and_in_nothing_else(self):
        models = [DynamicsModel(OBSERVATIONS, ACTIONS["box"], nn.Identity(), adapts="action_map") for _ in range(3)]
        initial = copy.deepcopy(models[0].state_dict())
        for model, noise in zip(models, (0.0, 0.2, [0.0, 0.2, 0.0]), strict=True):
            model.load_state_dict(initial)
            model.fit(Noisy(), **FIT, observation_noise=noise)
        plain, all_noisy, second_noisy = (model.state_dict() for model in models)
        for state in (all_noisy, second_noisy):
            assert all(torch.equal(plain[name], state[name]) for name in plain if name != "residual_variance")
        # What is shown of the second component, which does not follow from itself, ends and begins with 0.2 too much.
        scale = models[0].target_scale[1].item()
        for state in (all_noisy, second_noisy):
            more = (state["residual_variance"] - plain["residual_variance"])[1].item()
            assert more == pytest.approx(2 * (0.2 / scale) ** 2, rel=0.3)
        assert all_noisy["residual_variance"][2] > 1e3 * plain["residual_variance"][2]
        assert second_noisy["residual_variance"][2] == plain["residual_variance"][2]

    def test_discrete_actions(self):
        env = gym.make("CartPole-v1")
        model = DynamicsModel(env.observation_space, env.action_space, nn.Sequential(nn.Linear(6, 8), nn.Tanh()))
        model.fit(env, num_transitions=500, num_updates=200, learning_rate=0.01)
        assert (model.residual_variance < 0.5).all()

    @pytest.mark.parametrize(("num_rows", "least"), [(1, 8), (2, 4), (8, 1)])
    def test_of_few_rows_stretches_of_all_their_time_are_held_out(self, num_rows, least, monkeypatch):
        times = []

        def split(transitions, share, num_stretches):
            times.append(num_stretches)
            return whole_split(transitions, share, num_stretches)

        whole_split = Transitions.split
        monkeypatch.setattr(Transitions, "split", split)
        model = DynamicsModel(OBSERVATIONS, ACTIONS["box"], nn.Identity(), adapts="action_map")
        model.fit(Noisy() if num_rows == 1 else SyncVectorEnv([Noisy] * num_rows), num_transitions=200, num_updates=1)
        assert times == [least]

    def test_another_environment_is_refused(self):
        model = DynamicsModel(OBSERVATIONS, ACTIONS["box"], nn.Identity())
        with pytest.raises(ValueError, match=r"must have the spaces of the model, 3 observations and Box.*; got Box"):
            model.fit(gym.make("CartPole-v1"))
        for name in ("CartPole-v1", Noisy):
            with pytest.raises(ValueError, match=r"must be an environment, as gym\.make_vec.*; got .*(CartPole|Noisy)"):
                model.fit(name)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_transitions": 99}, "num_transitions must be an int >= 100; got 99"),
            ({"num_updates": 0}, "num_updates must be an int >= 1; got 0"),
            ({"batch_size": 1.5}, r"batch_size must be an int >= 1; got 1\.5"),
            ({"observation_noise": -0.1}, r"observation_noise must be a finite number >= 0, or 3 of them.*; got -0\.1"),
            ({"observation_noise": [0.1, 0.1]}, r"or 3 of them, one for each component; got \[0\.1, 0\.1\]"),
            ({"observation_noise": "much"}, r"must be a finite number >= 0, or 3 of them.*; got 'much'"),
            ({"learning_rate": 0.0}, r"learning_rate must be a finite number > 0; got 0\.0"),
        ],
    )
    def test_options_outside_their_range(self, options, message):
        with pytest.raises(ValueError, match=message):
            DynamicsModel(OBSERVATIONS, ACTIONS["box"], nn.Identity()).fit(Noisy(), **options)


@pytest.mark.each_value
@each_adapts
@pytest.mark.parametrize("whole", [False, True], ids=["the core alone", "the model"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_it_computes_in_the_type_of_its_core(dtype, whole, adapts):
    core = SSM(6, 8, 4) if whole else SSM(6, 8, 4).to(dtype)
    model, data = DynamicsModel(OBSERVATIONS, ACTIONS["shifted"], core, adapts=adapts), transitions(ACTIONS["shifted"])
    model.set_normalisation(*data)
    model = model.to(dtype) if whole else model
    single = copy.deepcopy(model).float()
    encoded, targets = model.encode(*data[:2]), model.targets(data[0], data[2])
    tensors = [encoded, targets, model(encoded), model.inputs(*data[:2])]
    expected = [single.encode(*data[:2]), single.targets(data[0], data[2])]
    expected += [single(expected[0]), single.inputs(*data[:2])]
    assert [tensor.dtype for tensor in tensors] == [dtype] * 4
    torch.testing.assert_close([tensor.float() for tensor in tensors], expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("core", [None, nn.Sequential(nn.Linear(5, 4), nn.Tanh()), nn.Tanh()])
def test_the_default_device_makes_no_difference(core):
    data = transitions(ACTIONS["discrete"])
    with torch.device("meta"):
        model = DynamicsModel(OBSERVATIONS, ACTIONS["discrete"], core)
        model.set_normalisation(*data)
        encoded = model.encode(*data[:2])
        assert {tensor.device.type for tensor in (encoded, model(encoded), model.targets(data[0], data[2]))} == {"cpu"}


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (spaces.Discrete(3), ACTIONS["box"], r"the observation space must be a one-dimensional Box; got Discrete\(3\)"),
        (spaces.Box(0, 1, (2, 2)), ACTIONS["box"], "the observation space must be a one-dimensional Box"),
        (OBSERVATIONS, spaces.MultiBinary(2), r"the action space must be Discrete or a Box; got MultiBinary\(2\)"),
    ],
)
def test_other_spaces_are_refused(observations, actions, message):
    with pytest.raises(ValueError, match=message):
        DynamicsModel(observations, actions)


def test_an_unknown_way_to_adapt_is_refused():
    with pytest.raises(ValueError, match=r"adapts must be one of \['last_layer', 'all', 'action_map'\]; got 'head'"):
        DynamicsModel(OBSERVATIONS, ACTIONS["box"], adapts="head")
