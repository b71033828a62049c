import copy
import io
import math
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from ssm_metarl_gym.agents import Adapter, DynamicsModel, MetaMAML, MetaTrainer, meta_trainer
from ssm_metarl_gym.agents.meta_trainer import weighted_mse

ENV_ID = "ssm_metarl/CartPolePolarity-v0"
TINY = {"window": 4, "meta_batch_size": 8, "num_streams": 30, "stream_length": 16}


def make_model(adapts="last_layer", width=8):
    env = gym.make(ENV_ID)
    core = nn.Sequential(nn.Linear(DynamicsModel.input_dim(env.observation_space, env.action_space), width), nn.Tanh())
    return DynamicsModel(env.observation_space, env.action_space, core, adapts=adapts)


def make_trainer(model=None, **changes):
    return MetaTrainer(ENV_ID, model, **TINY | changes)


def learn(trainer, num_updates):
    """The losses of the updates."""
    losses = []
    trainer.learn(num_updates, callback=lambda _, loss: losses.append(loss))
    return losses


@pytest.fixture
def collected(monkeypatch):
    """The streams that were collected, in order."""
    streams, original = [], meta_trainer.collect_streams

    def spy(*args, **kwargs):
        streams.append(original(*args, **kwargs))
        return streams[-1]

    monkeypatch.setattr(meta_trainer, "collect_streams", spy)
    return streams


class TestLearn:
    def test_one_seed_gives_one_result(self, look, untouched_rng):
        runs = []
        with untouched_rng():
            for seed in (0, 0, 1):
                trainer = make_trainer(seed=seed)
                before = look(trainer.model)
                runs.append((before, learn(trainer, 4), look(trainer.model), trainer.evaluate(num_tasks=5, seed=3)))
                assert trainer.num_updates == 4
        assert runs[0] == runs[1]
        assert all(one != other for one, other in zip(runs[0], runs[2], strict=True))

    def test_parts_are_the_whole(self, look):
        whole, parts = make_trainer(), make_trainer()
        losses = learn(parts, 0) + learn(parts, 3) + learn(parts, 2)
        assert losses == learn(whole, 5)
        assert look(parts.model) == look(whole.model)

    def test_it_learns_to_adapt(self):
        trainer = make_trainer(make_model(width=32), num_streams=60, meta_batch_size=16, inner_lr=0.3, inner_steps=2)
        untrained = trainer.evaluate()
        errors = trainer.learn(120).evaluate()
        assert len(errors) == 3
        assert errors[0] > errors[1] > errors[2]
        assert errors[2] < 0.5 * errors[0]
        assert errors[2] < untrained[2]

    @pytest.mark.parametrize("adapts", ["last_layer", "all"])
    def test_the_outer_step_trains_all_and_leaves_what_adapts_trainable(self, adapts):
        trainer = make_trainer(make_model(adapts).train().requires_grad_(False))
        before = copy.deepcopy(trainer.model.state_dict())
        assert trainer.learn(2) is trainer
        assert all(not torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())
        trainable = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
        assert trainable == {
            name for name, _ in trainer.model.named_parameters() if adapts == "all" or name.startswith("head.")
        }
        assert not trainer.model.training

    def test_a_callback_sees_every_update_and_may_stop(self):
        trainer, seen = make_trainer(), []

        def callback(learner, loss):
            assert learner is trainer
            assert isinstance(loss, float)
            seen.append(learner.num_updates)
            return len(seen) != 3  # True and None go on

        trainer.learn(9, callback)
        assert seen == [1, 2, 3]
        assert len(learn(trainer, 2)) == 2
        assert trainer.num_updates == 5

    def test_an_error_in_a_callback_leaves_the_model_ready_to_adapt(self):
        trainer = make_trainer()
        with pytest.raises(ZeroDivisionError):
            trainer.learn(2, lambda *_: 1 / 0)
        assert not any(parameter.requires_grad for parameter in trainer.model.core.parameters())
        assert trainer.num_updates == 1

    @pytest.mark.parametrize("shown", [True, False])
    def test_the_progress_bar(self, capsys, shown):
        make_trainer().learn(2, progress_bar=shown)
        out, err = capsys.readouterr()
        assert not out
        assert ("meta-training" in err and "2/2" in err and "loss=" in err) == shown

    def test_tasks_are_pieces_of_streams_with_the_oldest_transitions_masked(self, monkeypatch, collected):
        batches = []
        monkeypatch.setattr(MetaMAML, "meta_update", lambda _, tasks, loss_fn: batches.append(tasks) or 0.0)
        trainer = make_trainer().learn(60)
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
        assert num_windows == 60 * TINY["meta_batch_size"]
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


class TestEvaluate:
    def test_it_changes_nothing(self, look):
        model = make_model()
        control = make_trainer(copy.deepcopy(model))
        trainer = make_trainer(model)
        for num_updates in (0, 2, 3):
            assert learn(trainer, num_updates) == learn(control, num_updates)
            before = look(model)
            trainer.evaluate("train", num_tasks=3, seed=7)
            assert look(model) == before

    def test_every_split_and_every_seed_has_tasks_of_its_own(self, collected):
        trainer, num_tasks = make_trainer().learn(5), TINY["num_streams"]
        errors = [trainer.evaluate(split, num_tasks=num_tasks) for split in ("train", "interpolation", "extrapolation")]
        errors.append(trainer.evaluate("interpolation", num_tasks=num_tasks, seed=1))
        assert errors[1] == trainer.evaluate(num_tasks=num_tasks, seed=0)
        # Not even the training split is evaluated on what was trained on.
        starts = [tuple(streams.observations[0, 0]) for streams in collected[:-1]]
        assert len(set(starts)) == len(starts) == 5
        assert len({error for split in errors for error in split}) == sum(map(len, errors))

    @pytest.mark.parametrize("adapts", ["last_layer", "all"])
    def test_it_is_what_an_adapter_achieves(self, collected, adapts):
        trainer = make_trainer(make_model(adapts), inner_steps=2).learn(5)
        errors = trainer.evaluate(num_tasks=4)
        streams, window, model = collected[-1], TINY["window"], trainer.model
        config = trainer.adaptation_config()
        unbounded = {"grad_clip_norm": math.inf, "trust_region_eps": math.inf}
        for num_steps, expected in enumerate(errors):
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
            assert np.mean(losses) == pytest.approx(expected, rel=1e-4)

    def test_the_configuration_of_the_adapter_is_that_of_the_inner_loop(self):
        config = make_trainer(inner_lr=0.07, inner_steps=2).adaptation_config()
        assert (config.lr, config.max_steps_per_call) == (0.07, 2)


class TestFiles:
    @pytest.mark.parametrize("num_updates", [0, 3])
    @pytest.mark.parametrize("adapts", [None, "last_layer", "all"])
    def test_a_loaded_trainer_goes_on_as_if_nothing_had_happened(
        self, look, tmp_path, untouched_rng, num_updates, adapts
    ):
        model = None if adapts is None else make_model(adapts)
        trainer = make_trainer(model, seed=5, env_kwargs={"context": "hidden"}, inner_lr=0.05)
        trainer.learn(num_updates).save(tmp_path / "trainer.pt")
        shell = None if adapts is None else make_model(adapts)
        with untouched_rng():
            loaded = MetaTrainer.load(str(tmp_path / "trainer.pt"), shell)
        assert shell in (None, loaded.model)
        assert look(loaded.model) == look(trainer.model)
        assert (loaded.env_id, loaded.options, loaded.num_updates) == (ENV_ID, trainer.options, num_updates)
        assert loaded.evaluate(num_tasks=3) == trainer.evaluate(num_tasks=3)
        assert learn(loaded, 3) == learn(trainer, 3)
        assert look(loaded.model) == look(trainer.model)
        assert loaded.num_updates == num_updates + 3

    def test_a_default_model_that_adapts_as_a_whole_needs_no_shell(self, look, tmp_path):
        env = gym.make(ENV_ID)
        trainer = make_trainer(DynamicsModel(env.observation_space, env.action_space, adapts="all"))
        trainer.save(tmp_path / "trainer.pt")
        assert look(MetaTrainer.load(tmp_path / "trainer.pt").model) == look(trainer.model)

    @staticmethod
    def foreign(kind):
        file = io.BytesIO()
        if kind == "zip":
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("data", "text")
        elif kind == "module":
            torch.save(nn.Linear(1, 1), file)
        elif kind == "dictionary":
            torch.save({"model": {}}, file)
        elif kind == "format":
            torch.save({"format": 999}, file)
        elif kind == "tensor":
            torch.save(torch.zeros(2), file)
        return {"empty": b"", "text": b"hello"}.get(kind, file.getvalue())

    @pytest.mark.parametrize("kind", ["empty", "text", "zip", "module", "dictionary", "format", "tensor"])
    def test_a_foreign_file_is_refused(self, tmp_path, kind):
        path = tmp_path / "foreign.pt"
        path.write_bytes(self.foreign(kind))
        with pytest.raises(ValueError, match=r"foreign\.pt must be a file written by MetaTrainer\.save"):
            MetaTrainer.load(path)

    def test_a_truncated_file_is_refused(self, tmp_path):
        path = tmp_path / "trainer.pt"
        make_trainer().save(path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ValueError, match="must be a file written by"):
            MetaTrainer.load(path)

    def test_a_missing_file_is_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            MetaTrainer.load(tmp_path / "nothing.pt")

    @pytest.mark.parametrize(
        ("saved", "model"),
        [
            (make_model, lambda: None),
            (lambda: None, make_model),
            (make_model, lambda: make_model(width=9)),
            (make_model, lambda: make_model("all")),
        ],
        ids=["own as default", "default as own", "other width", "other part"],
    )
    def test_a_file_of_another_model_is_refused(self, tmp_path, saved, model):
        make_trainer(saved()).save(tmp_path / "trainer.pt")
        with pytest.raises(ValueError, match=r"the model must .* like the one in .*trainer\.pt"):
            MetaTrainer.load(tmp_path / "trainer.pt", model())

    def test_a_file_is_never_half_written(self, tmp_path, monkeypatch):
        trainer, path = make_trainer(), tmp_path / "trainer.pt"
        trainer.save(path)
        before = path.read_bytes()

        def failing(state, target):
            target.write_bytes(b"half")
            raise OSError("disk full")

        monkeypatch.setattr(torch, "save", failing)
        for name in ("trainer.pt", "new.pt"):
            with pytest.raises(OSError, match="disk full"):
                trainer.save(tmp_path / name)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]


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
    + [("inner_steps", 0), ("inner_lr", 0.0), ("outer_lr", math.nan), ("stream_length", 7), ("stream_length", 64.0)],
)
def test_options_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name}.* must be .*; got {value}"):
        make_trainer(**{name: value})
