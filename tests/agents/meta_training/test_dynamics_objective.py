import copy
import itertools
import math
import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from ssm_metarl_gym.agents import Adapter, DynamicsModel, MetaMAML, MetaTrainer
from ssm_metarl_gym.agents.meta_training import dynamics_objective
from ssm_metarl_gym.agents.meta_training.dynamics_objective import DynamicsObjective, DynamicsOptions, weighted_mse

ENV_ID = "ssm_metarl/CartPolePolarity-v0"
TINY = {"window": 4, "meta_batch_size": 8, "num_streams": 30, "stream_length": 16}


def make_model(adapts="last_layer", width=8):
    env = gym.make(ENV_ID)
    core = nn.Sequential(nn.Linear(DynamicsModel.input_dim(env.observation_space, env.action_space), width), nn.Tanh())
    return DynamicsModel(env.observation_space, env.action_space, core, adapts=adapts)


def make_trainer(model=None, **changes):
    return MetaTrainer(ENV_ID, model, **TINY | changes)


@pytest.fixture
def collected(monkeypatch):
    """The streams that were collected, in order."""
    streams, original = [], dynamics_objective.collect_streams

    def spy(*args, **kwargs):
        streams.append(original(*args, **kwargs))
        return streams[-1]

    monkeypatch.setattr(dynamics_objective, "collect_streams", spy)
    return streams


class TestUpdate:
    def test_tasks_are_pieces_of_streams_with_the_oldest_transitions_masked(self, monkeypatch, collected):
        batches = []
        monkeypatch.setattr(MetaMAML, "meta_update", lambda _, tasks, loss_fn: batches.append(tasks) or 0.0)
        trainer = make_trainer(make_model()).learn(20)
        (streams,) = collected
        num_windows, window = 0, TINY["window"]
        inputs, weights, masked, offsets = {}, ~streams.restarted, set(), set()
        for stream in range(TINY["num_streams"]):
            rows = trainer.model.inputs(streams.observations[stream], streams.actions[stream])
            inputs |= {row.numpy().tobytes(): (stream, t) for t, row in enumerate(rows)}
        for support_x, support_y, query_x, query_y in (task for tasks in batches for task in tasks):
            assert support_x.shape[0] == query_x.shape[0] == window
            places = [inputs[row.numpy().tobytes()] for row in torch.cat([support_x, query_x])]
            stream, first = places[0]
            assert places == [(stream, first + t) for t in range(2 * window)]
            now = slice(first, first + 2 * window)
            targets = trainer.model.targets(streams.observations[stream, now], streams.next_observations[stream, now])
            assert torch.equal(torch.cat([support_y, query_y])[:, :-1], targets)
            # A restart cannot be predicted, and only the last few transitions of a support count.
            counted, expected = torch.cat([support_y, query_y])[:, -1].numpy(), weights[stream, now]
            assert (counted[window:] == expected[window:]).all()
            ignored = next((k for k in range(window + 1) if (counted[k:window] == expected[k:window]).all()), None)
            assert not counted[:ignored].any()
            if expected[:window].all():
                masked.add(ignored)
            offsets.add(first)
            num_windows += 1
        assert num_windows == 20 * TINY["meta_batch_size"]
        assert masked == set(range(window + 1))
        assert offsets == set(range(TINY["stream_length"] - 2 * window + 1))

    def test_the_normalisation_is_that_of_the_training_transitions(self, collected):
        trainer = make_trainer()
        trainer.learn(1)
        (streams,) = collected
        counted = ~streams.restarted
        assert not counted.all()
        twin = make_model()
        twin.set_normalisation(
            streams.observations[counted], streams.actions[counted], streams.next_observations[counted]
        )
        for name in ("input_shift", "input_scale", "target_scale"):
            assert torch.equal(getattr(trainer.model, name), getattr(twin, name))


def test_a_first_update_that_fails_leaves_nothing_behind_not_even_the_units(look):
    trainer, twin = make_trainer(make_model()), make_trainer(make_model())
    twin.model.load_state_dict(trainer.model.state_dict())
    weights = trainer.model.head.weight.detach().clone()
    with torch.no_grad():
        trainer.model.head.weight.mul_(1e30)
    before = look(trainer.model)
    with pytest.raises(FloatingPointError, match="in none of 8 tasks"):
        trainer.learn(1)
    assert look(trainer.model) == before
    with torch.no_grad():
        trainer.model.head.weight.copy_(weights)
    assert look(trainer.learn(2).model) == look(twin.learn(2).model)


class Diverging(gym.Env):
    """A simulation whose observations are not finite any more in every third episode."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gym.spaces.Discrete(2)
    num_episodes = 0

    def __init__(self, split):
        pass

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.num_episodes += 1
        self.state = self.np_random.normal(size=2).astype(np.float32)
        return self.state, {}

    def step(self, action):
        self.state = 0.9 * self.state + np.float32(action)
        if self.num_episodes % 3 == 0:
            self.state = np.full(2, np.inf, dtype=np.float32)
        return self.state, 0.0, False, False, {}


def test_a_task_whose_simulation_diverges_does_not_count_and_does_not_spoil_the_others():
    gym.register("Diverging-v0", Diverging)
    try:
        model = DynamicsModel(Diverging.observation_space, Diverging.action_space, nn.Sequential(nn.Linear(4, 4)))
        trainer, losses = MetaTrainer("Diverging-v0", model, **TINY | {"meta_batch_size": 20}), []
        trainer.learn(3, lambda _, loss: losses.append(loss))
    finally:
        del gym.registry["Diverging-v0"]
    assert np.isfinite(losses).all()
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert model.target_scale.max() < 10.0


class TestEvaluate:
    def test_every_split_and_every_seed_has_tasks_of_its_own(self, collected):
        trainer, num_tasks = make_trainer(make_model()).learn(1), TINY["num_streams"]
        splits = ("train", 0), ("interpolation", 0), ("extrapolation", 0), ("interpolation", 1)
        errors = [trainer.evaluate(split, num_tasks=num_tasks, seed=seed) for split, seed in splits]
        again = trainer.evaluate(num_tasks=num_tasks, seed=0)
        assert all(np.array_equal(again[steps], errors[1][steps]) for steps in again)
        # Not even the training split is evaluated on what was trained on.
        starts = [tuple(streams.observations[0, 0]) for streams in collected[:-1]]
        assert len(set(starts)) == len(starts) == 5
        every = np.concatenate([values for split in errors for values in split.values()])
        assert len(set(every)) == len(every) == 4 * 5 * num_tasks

    @pytest.mark.parametrize("adapts", ["last_layer", "all"])
    def test_it_is_what_an_adapter_achieves(self, collected, adapts):
        trainer = make_trainer(make_model(adapts), inner_steps=2).learn(2)
        errors = trainer.evaluate(num_steps=(0, 1, 2), num_tasks=4)
        streams, window, model = collected[-1], TINY["window"], trainer.model
        config = trainer.adaptation_config()
        unbounded = {"grad_clip_norm": math.inf, "trust_region_eps": math.inf}
        for num_steps, expected in errors.items():
            changes = {"lr": 0.0} if num_steps == 0 else {"max_steps_per_call": num_steps}
            adapter = Adapter(model, type(config)(**{**vars(config), **unbounded, **changes}))
            losses = []
            for stream in range(4):
                encoded = model.encode(streams.observations[stream], streams.actions[stream])
                targets = model.targets(streams.observations[stream], streams.next_observations[stream])
                weights = torch.from_numpy(~streams.restarted[stream, :, None])
                targets = torch.cat([targets, weights], dim=1)
                adapter.reset()
                adapter.adapt(weighted_mse, {"states": encoded[:window], "targets": targets[:window]})
                query = slice(window, 2 * window)
                losses.append(weighted_mse(model(encoded[query]), targets[query]).item())
            adapter.reset()
            np.testing.assert_allclose(losses, expected, rtol=1e-4)


class TestWeightedMSE:
    def test_hand_computed(self):
        prediction = torch.tensor([[1.0, 2.0], [3.0, 5.0], [9.0, 9.0]])
        target = torch.tensor([[0.0, 0.0, 1.0], [3.0, 3.0, 1.0], [0.0, 0.0, 0.0]])
        assert weighted_mse(prediction, target).item() == (1.0 + 4.0 + 0.0 + 4.0) / 4.0
        assert weighted_mse(prediction[:1], target[:1]).item() == (1.0 + 4.0) / 2.0
        assert weighted_mse(prediction, target * torch.tensor([1.0, 1.0, 0.0])).item() == 0.0

    def test_with_equal_weights_it_is_the_mean_squared_error(self):
        prediction, target = torch.randn(2, 5, 3)
        weighted = weighted_mse(prediction, torch.cat([target, torch.ones(5, 1)], dim=1))
        torch.testing.assert_close(weighted, nn.MSELoss()(prediction, target))


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in ("window", "meta_batch_size", "num_streams") for value in (0, 2.0)]
    + [
        ("inner_steps", -1),
        ("inner_lr", 0.0),
        ("outer_lr", math.nan),
        ("outer_lr", 3e38),
        ("stream_length", 7),
        ("stream_length", 64.0),
    ],
)
def test_options_are_checked(name, value):
    with pytest.raises(ValueError, match=rf"{name}.* must be .*; got {re.escape(str(value))}"):
        make_trainer(**{name: value})


class TestProcesses:
    def test_each_takes_its_share_of_the_tasks(self, monkeypatch):
        """Together, the shares are what one process takes; the mean over them is the mean over all."""
        monkeypatch.setattr(dynamics_objective, "copy_from_first_process", lambda tensors: None)
        batches = []
        monkeypatch.setattr(MetaMAML, "meta_update", lambda _, tasks, loss_fn: batches.append(tasks) or 0.0)
        for share in (None, range(3), range(3, 8)):
            monkeypatch.setattr(dynamics_objective, "own_share", lambda num, share=share: share)
            options = DynamicsOptions(**TINY)
            objective = DynamicsObjective(
                ENV_ID, make_model(), env_kwargs={}, seed=0, options=options, distributed=share is not None
            )
            objective.update(0)
        whole, *parts = batches
        assert [len(part) for part in parts] == [3, 5]
        for one, other in zip(whole, itertools.chain(*parts), strict=True):
            assert all(map(torch.equal, one, other))


class TestOptions:
    def test_reach_the_inner_and_the_outer_loop(self, look):
        """Each of them changes what is learned."""
        plain = {"inner_steps": 2, "outer_lr": 0.01}
        changes = (
            {},
            {"first_order": True},
            {"learned_rates": "tensor"},
            {"multi_step_updates": 10},
            {"inner_grad_clip_norm": 1e-3},
            {"inner_steps": 0},
            {"inner_lr": 0.1},
            {"outer_lr": 0.02},
        )
        learned = [look(make_trainer(make_model("all"), **plain | change).learn(3).model) for change in changes]
        assert all(one != other for i, one in enumerate(learned) for other in learned[:i])

    def test_a_chunk_changes_only_the_memory(self):
        one, other = (make_trainer(task_chunk_size=size).learn(3).model for size in (None, 3))
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0.0, atol=1e-5)

    def test_without_inner_steps_one_model_is_trained_for_all_tasks(self, monkeypatch):
        """The loss of an update is the error of the model itself on the query sets."""
        seen = []
        original = MetaMAML.meta_update
        monkeypatch.setattr(
            MetaMAML, "meta_update", lambda maml, tasks, loss_fn: seen.append(tasks) or original(maml, tasks, loss_fn)
        )
        trainer = make_trainer(inner_steps=0)
        untrained = nn.Sequential(*(copy.deepcopy(part) for part in (trainer.model.core, trainer.model.head)))
        losses = []
        trainer.learn(1, lambda _, loss: losses.append(loss))
        errors = [weighted_mse(untrained(query_x), query_y).item() for _, _, query_x, query_y in seen[0]]
        assert losses == [pytest.approx(np.mean(errors), rel=1e-5)]


def test_an_action_map_is_not_meta_trained():
    env = gym.make("ssm_metarl/Pendulum-v0")
    model = DynamicsModel(env.observation_space, env.action_space, adapts="action_map")
    with pytest.raises(ValueError, match=r"got a model with adapts='action_map'\. Fit it to one simulator"):
        MetaTrainer("ssm_metarl/Pendulum-v0", model)
