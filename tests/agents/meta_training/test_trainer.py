import copy
import csv
import io
import sys
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import StopTrainingOnMaxEpisodes
from stable_baselines3.common.logger import configure
from torch import nn

from ssm_metarl_gym import CartPoleTask, TaskDistribution, TaskFamily, TaskSet, Uniform
from ssm_metarl_gym.agents import DynamicsModel, MetaTrainer
from ssm_metarl_gym.agents.meta_training import policy_objective
from ssm_metarl_gym.agents.meta_training import trainer as meta_trainer
from ssm_metarl_gym.agents.meta_training.dynamics_objective import DynamicsOptions
from ssm_metarl_gym.experiments.logs import make_logger

ENV_ID = "ssm_metarl/CartPolePolarity-v0"
TINY = {"window": 4, "meta_batch_size": 4, "num_streams": 8, "stream_length": 16}


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


def evaluate(trainer, num_steps=(0, 1), num_tasks=3, seed=0):
    """What ``trainer.evaluate`` gives, comparable."""
    values = trainer.evaluate("interpolation", num_steps, num_tasks=num_tasks, seed=seed)
    return {steps: column.tolist() for steps, column in values.items()}


def same(first, second):
    """Whether two states of tensors and plain values are equal bit for bit."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and first.numpy().tobytes() == second.numpy().tobytes()
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[name]) for name, value in first.items())
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.fixture(params=["dynamics", "policy"])
def make_any(request):
    """A function that makes a small trainer of each objective in turn."""
    sizes = {"meta_batch_size": 2, "trajectories_per_task": 2, "width": 4, "num_epochs": 1}
    arguments = {
        "dynamics": {"env_id": ENV_ID, **TINY},
        "policy": {"env_id": "ssm_metarl/PendulumPolarity-v0", "env_kwargs": {"max_episode_steps": 3}, **sizes},
    }[request.param]
    return lambda **changes: MetaTrainer(objective=request.param, **arguments | changes)


class TestLearn:
    def test_one_seed_gives_one_result(self, make_any, look, untouched_rng):
        runs = []
        with untouched_rng():
            for seed in (0, 0, 1):
                trainer = make_any(seed=seed)
                before = look(trainer.model)
                runs.append((before, learn(trainer, 2), look(trainer.model), evaluate(trainer, seed=3)))
                assert trainer.num_updates == 2
        assert runs[0] == runs[1]
        assert all(one != other for one, other in zip(runs[0], runs[2], strict=True))

    def test_parts_are_the_whole(self, make_any, look):
        whole, parts = make_any(), make_any()
        losses = learn(parts, 0) + learn(parts, 2) + learn(parts, 1)
        assert losses == learn(whole, 3)
        assert look(parts.model) == look(whole.model)

    @pytest.mark.slow
    def test_it_learns_to_adapt(self):
        trainer = make_trainer(make_model(width=32), num_streams=60, meta_batch_size=16, inner_lr=0.3, inner_steps=2)
        # The first update also sets the normalisation, and with it the unit of the errors.
        untrained, trained = trainer.learn(1).evaluate(num_tasks=50), trainer.learn(119).evaluate(num_tasks=50)
        errors = {steps: values.mean() for steps, values in trained.items()}
        assert list(errors) == list(untrained) == [0, 1, 3, 5, 10]
        assert all(values.shape == (50,) for values in trained.values())
        assert errors[0] > errors[1] > errors[3]
        assert errors[3] < 0.5 * errors[0]
        assert errors[3] < 0.5 * untrained[3].mean()

    @pytest.mark.parametrize("adapts", ["last_layer", "all"])
    def test_the_outer_step_trains_all_and_leaves_what_adapts_trainable(self, adapts):
        trainer = make_trainer(make_model(adapts).train().requires_grad_(False))
        before = copy.deepcopy(trainer.model.state_dict())
        assert trainer.learn(2) is trainer
        changed = {name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])}
        assert changed == set(before) - {"residual_variance"}  # which DynamicsModel.fit measures
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
            return np.bool_(len(seen) != 3)  # True and None go on

        trainer.learn(9, callback)
        assert seen == [1, 2, 3]
        assert len(learn(trainer, 2)) == 2
        assert trainer.num_updates == 5

    def test_the_steps_of_a_policy_are_counted_until_its_episodes_ended(self, monkeypatch):
        collected = []
        collect = policy_objective.collect_trajectories

        def count(*args, **kwargs):
            collected.append(collect(*args, **kwargs))
            return collected[-1]

        monkeypatch.setattr(policy_objective, "collect_trajectories", count)
        sizes = {"meta_batch_size": 2, "trajectories_per_task": 2, "width": 4, "num_epochs": 1}
        trainer = MetaTrainer("ssm_metarl/CartPole-v0", objective="policy", **sizes).learn(2)
        assert not all(part.valid.all() for part in collected)  # poles fall one after the other
        # The first of all sets the normalisation.
        assert trainer.num_timesteps == sum(int(part.valid.sum()) for part in collected[1:])
        assert make_trainer().learn(1).num_timesteps == 0

    def test_a_callback_of_sb3_is_refused_before_any_update(self):
        trainer = make_trainer()
        with pytest.raises(ValueError, match=r"function of the trainer and the loss, or None; got a StopTraining"):
            trainer.learn(1, StopTrainingOnMaxEpisodes(1))
        assert trainer.num_updates == 0

    def test_an_error_in_a_callback_leaves_the_model_ready_to_adapt(self):
        trainer = make_trainer()
        with pytest.raises(ZeroDivisionError):
            trainer.learn(2, lambda *_: 1 / 0)
        assert not any(parameter.requires_grad for parameter in trainer.model.core.parameters())
        assert trainer.num_updates == 1

    @pytest.mark.each_value
    @pytest.mark.parametrize("options", [{"outer_lr": 1e30}, {"outer_lr": 1e18}])
    def test_a_run_that_diverges_ends_with_the_model_before_that_step(self, make_any, look, options):
        trainer = make_any(**options)
        seen = [look(trainer.model)]
        with pytest.raises(FloatingPointError, match=r"must be finite; .* Lower inner_lr or outer_lr"):
            trainer.learn(50, lambda *_: seen.append(look(trainer.model)))
        assert trainer.num_updates == len(seen) - 1
        assert look(trainer.model)[:2] == seen[-1][:2]

    @pytest.mark.parametrize("shown", [True, False])
    def test_the_progress_bar(self, capsys, shown):
        make_trainer().learn(2, progress_bar=shown)
        out, err = capsys.readouterr()
        assert not out
        assert ("meta-training" in err and "2/2" in err and "loss=" in err) == shown


class TestEvaluate:
    def test_it_changes_nothing(self, make_any, look):
        control, trainer = make_any(), make_any()
        for num_updates in (0, 1, 1):
            assert learn(trainer, num_updates) == learn(control, num_updates)
            before = look(trainer.model)
            trainer.evaluate("train", (0, 1), num_tasks=3, seed=7)
            assert look(trainer.model) == before

    def test_every_task_has_a_value_after_so_many_steps(self, make_any):
        trainer = make_any()
        every = trainer.evaluate(num_tasks=4)
        assert list(every) == [0, 1, 3, 5, 10]
        assert all(values.shape == (4,) for values in every.values())
        for num_steps in ([3], np.array([3]), torch.tensor([3])):
            assert evaluate(trainer, num_steps=num_steps, num_tasks=4) == {3: pytest.approx(every[3].tolist())}

    @pytest.mark.each_value
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_tasks": 0}, "num_tasks must be an int >= 1; got 0"),
            ({"num_steps": [1, -1]}, "num_steps must be an int >= 0; got -1"),
            ({"num_steps": []}, "num_steps must hold at least one"),
            ({"num_steps": 3}, "num_steps must hold at least one number of inner steps; got 3"),
            ({"split": "test"}, "split must be one of .*; got 'test'"),
            ({"seed": -1}, "seed must be an int >= 0; got -1"),
        ],
        ids=str,
    )
    def test_bad_arguments_are_refused(self, make_any, arguments, message):
        with pytest.raises(ValueError, match=message):
            make_any().evaluate(**arguments)


class TestLog:
    @staticmethod
    def rows(trainer, folder, num_updates, **kwargs):
        logger = configure(str(folder), ["csv"])
        trainer.set_logger(logger)
        losses = []
        trainer.learn(num_updates, lambda _, loss: losses.append(loss), **kwargs)
        logger.close()
        with (folder / "progress.csv").open() as file:
            return losses, list(csv.DictReader(file))

    def test_a_row_is_a_mean_over_an_interval(self, make_any, tmp_path):
        trainer = make_any()
        losses, rows = self.rows(trainer, tmp_path, 5, log_interval=2)
        assert [row["time/updates"] for row in rows] == ["2", "4"]
        for row, start in zip(rows, (0, 2), strict=True):
            assert float(row["train/loss"]) == pytest.approx(np.mean(losses[start : start + 2]))
            assert float(row["train/dropped_tasks"]) == 0
            assert float(row["time/updates_per_second"]) > 0
            assert row.get("time/total_timesteps", "0") == (
                "0" if trainer.objective == "dynamics" else str(24 * (start + 2))
            )
        assert not any(name.startswith("eval/") for name in rows[0])

    def test_evaluations_come_at_their_own_interval_and_change_nothing(self, make_any, tmp_path, look):
        trainer, control = make_any(), make_any().learn(4)
        _, rows = self.rows(trainer, tmp_path, 4, log_interval=3, eval_interval=2, num_eval_tasks=3)
        assert [row["time/updates"] for row in rows] == ["2", "3", "4"]
        assert look(trainer.model) == look(control.model)
        for steps, values in trainer.evaluate(num_tasks=3).items():
            column = [row[f"eval/interpolation_after_{steps}_steps"] for row in rows]
            assert [bool(cell) for cell in column] == [True, False, True]
            assert float(column[-1]) == pytest.approx(values.mean())

    @pytest.mark.parametrize(("killed_after", "eval_interval"), [(4, None), pytest.param(2, 3, marks=pytest.mark.slow)])
    def test_that_of_a_run_that_was_killed_and_goes_on_is_that_of_an_undisturbed_one(
        self, make_any, tmp_path, killed_after, eval_interval
    ):
        options = {"log_interval": 3, "eval_interval": eval_interval, "num_eval_tasks": 2}

        def learn(trainer, folder, num_updates):
            logger = make_logger(tmp_path / folder, "time/updates", trainer.num_updates)
            trainer.set_logger(logger)
            trainer.learn(num_updates, **options)
            logger.close()
            with (tmp_path / folder / "progress.csv").open() as file:
                return [row | {"time/updates_per_second": None} for row in csv.DictReader(file)]

        for folder in ("whole", "parts"):
            (tmp_path / folder).mkdir()
        whole = learn(make_any(), "whole", 6)
        trainer = make_any()
        learn(trainer, "parts", killed_after)
        trainer.save(tmp_path / "checkpoint.pt")
        learn(trainer, "parts", 1)  # of which the checkpoint knows nothing
        assert learn(MetaTrainer.load(tmp_path / "checkpoint.pt"), "parts", 6 - killed_after) == whole

    def test_without_a_logger_nothing_is_printed(self, capsys):
        make_trainer().learn(2, log_interval=1)
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize("name", ["log_interval", "eval_interval", "num_eval_tasks"])
    def test_intervals_are_checked(self, name):
        with pytest.raises(ValueError, match=f"{name} must be an int >= 1; got 0"):
            make_trainer().learn(1, **{name: 0})


class Rightwards:
    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.ones(len(observation), dtype=np.int64), state


@pytest.mark.parametrize(
    "model",
    [
        DynamicsModel(spaces.Box(-1.0, 1.0, (4,)), spaces.Discrete(3)),
        DynamicsModel(spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(2)),
    ],
    ids=["actions", "observations"],
)
def test_a_model_for_other_spaces_is_refused(model):
    with pytest.raises(ValueError, match="the environment must have the spaces of the model"):
        make_trainer(model)


class TestAroundAPolicy:
    def test_it_is_in_the_streams_and_in_no_file(self, tmp_path):
        trainers = [make_trainer(make_model(), policy=policy) for policy in (None, Rightwards())]
        for trainer in trainers:
            trainer.model.load_state_dict(trainers[0].model.state_dict())
        losses = [learn(trainer, 2) for trainer in trainers]
        assert losses[0] != losses[1]
        trainers[1].save(tmp_path / "trainer.pt")
        expected = learn(trainers[1], 2)
        loaded = MetaTrainer.load(tmp_path / "trainer.pt", make_model(), policy=Rightwards())
        assert learn(loaded, 2) == expected
        # Without it the model is there, but nothing is learned that would be around nothing.
        without = MetaTrainer.load(tmp_path / "trainer.pt", make_model())
        with pytest.raises(ValueError, match=r"policy must be given .* got None\. Give it to MetaTrainer\.load"):
            without.learn(1)
        without.save(tmp_path / "again.pt")
        with pytest.raises(ValueError, match="policy must be given"):
            MetaTrainer.load(tmp_path / "again.pt", make_model()).learn(1)
        # Nor with one what was learned without.
        trainers[0].save(tmp_path / "plain.pt")
        with pytest.raises(ValueError, match=r"was trained without one; got a Rightwards\. Leave it out"):
            MetaTrainer.load(tmp_path / "plain.pt", make_model(), policy=Rightwards())

    def test_the_reference_is_around_it_too(self):
        trainers = [make_trainer(make_model(), policy=policy) for policy in (None, Rightwards())]
        trainers[1].model.load_state_dict(trainers[0].model.state_dict())
        references = [trainer.reference(num_updates=2).state_dict() for trainer in trainers]
        assert not same(*references)

    def test_what_trains_a_policy_takes_none(self):
        with pytest.raises(ValueError, match="policy must be None for objective='policy'"):
            MetaTrainer(ENV_ID, objective="policy", policy=Rightwards())


class TestAdaptationConfig:
    def test_is_that_of_the_inner_loop(self):
        config = make_trainer(inner_lr=0.07, inner_steps=2).adaptation_config()
        assert (config.lr, config.max_steps_per_call) == (0.07, 2)
        assert make_trainer(inner_steps=0).adaptation_config().max_steps_per_call == 1

    def test_step_sizes_that_were_learned_are_refused(self):
        with pytest.raises(ValueError, match=r"got learned_rates='tensor'\. Train with learned_rates=None"):
            make_trainer(learned_rates="tensor").adaptation_config()

    def test_a_policy_has_none(self):
        with pytest.raises(ValueError, match=r"objective='dynamics'.*got 'policy'"):
            MetaTrainer(ENV_ID, objective="policy").adaptation_config()


class TestFiles:
    @pytest.mark.each_value
    @pytest.mark.parametrize("num_updates", [0, 2])
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
        assert (loaded.env_id, loaded.env_kwargs, loaded.seed) == (ENV_ID, {"context": "hidden"}, 5)
        assert (loaded.options, loaded.num_updates) == (trainer.options, num_updates)
        assert evaluate(loaded) == evaluate(trainer)
        assert learn(loaded, 2) == learn(trainer, 2)
        assert look(loaded.model) == look(trainer.model)
        assert loaded.num_updates == num_updates + 2

    def test_steps_are_counted_on(self, make_any, tmp_path):
        trainer = make_any().learn(1)
        trainer.save(tmp_path / "trainer.pt")
        loaded = MetaTrainer.load(tmp_path / "trainer.pt")
        # Episodes of three steps: two of each of two tasks, before the inner step and after it.
        assert loaded.num_timesteps == trainer.num_timesteps == (24 if trainer.objective == "policy" else 0)
        assert loaded.learn(1).num_timesteps == 2 * trainer.num_timesteps

    def test_a_model_in_double_precision_is_loaded_in_it(self, make_any, look, tmp_path):
        trainer = make_any()
        trainer.model.double()
        learn(trainer, 1)
        trainer.save(tmp_path / "trainer.pt")
        loaded = MetaTrainer.load(tmp_path / "trainer.pt")
        assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float64}
        assert look(loaded.model) == look(trainer.model)
        assert learn(loaded, 1) == learn(trainer, 1)

    @pytest.mark.parametrize("is_given", [False, True])
    def test_what_would_be_rounded_is_refused(self, tmp_path, is_given):
        trainer = make_trainer()
        trainer.model.head.double()  # half of it in double precision
        trainer.save(tmp_path / "trainer.pt")
        shell = make_trainer().model if is_given else None
        with pytest.raises(ValueError, match=r"whose head\.\w+ is of torch\.float64; got one of torch\.float32\. Give"):
            MetaTrainer.load(tmp_path / "trainer.pt", shell)

    def test_nothing_is_rounded_where_the_model_has_more_precision(self, look, tmp_path):
        trainer = make_trainer()
        trainer.save(tmp_path / "trainer.pt")
        loaded = MetaTrainer.load(tmp_path / "trainer.pt", make_trainer(seed=1).model.double())
        assert look(loaded.model.float()) == look(trainer.model)

    def test_options_may_be_arrays_of_one_number(self, tmp_path):
        trainer = make_trainer(inner_lr=torch.tensor(0.25), outer_lr=np.float32(0.5), window=np.array(4))
        trainer.save(tmp_path / "trainer.pt")
        assert MetaTrainer.load(tmp_path / "trainer.pt").options == make_trainer(inner_lr=0.25, outer_lr=0.5).options

    def test_any_objective_goes_on_with_all_that_it_learned(self, make_any, look, tmp_path):
        options = {"learned_rates": "tensor", "inner_steps": 2, "outer_lr": 0.1}
        trainer = make_any(**options).learn(1)
        trainer.save(tmp_path / "trainer.pt")
        with (tmp_path / "trainer.pt").open("rb") as file:
            loaded = MetaTrainer.load(file)
        assert (loaded.objective, loaded.options) == (trainer.objective, trainer.options)
        assert learn(loaded, 1) == learn(trainer, 1)
        assert look(loaded.model) == look(trainer.model)
        # The inner step sizes are no part of the model, and learned ones show in what a step does.
        assert evaluate(loaded) == evaluate(trainer)
        control = make_any(**options)
        control.model.load_state_dict(trainer.model.state_dict())
        assert evaluate(loaded) != evaluate(control)

    def test_numbers_of_numpy_are_saved_as_those_of_python(self, make_any, tmp_path):
        env_kwargs = {"task": {"length": np.float64(0.6), "polarity": np.int64(-1)}}
        changes = {"env_id": ENV_ID, "env_kwargs": env_kwargs, "seed": np.int64(3)}
        trainer = make_any(**changes, inner_lr=np.float64(0.2), inner_steps=np.int64(2))
        trainer.save(tmp_path / "trainer.pt")
        loaded = MetaTrainer.load(tmp_path / "trainer.pt")
        assert (loaded.env_kwargs, loaded.seed, loaded.options) == (env_kwargs, 3, trainer.options)

    @pytest.mark.each_value
    @pytest.mark.parametrize(
        "env_kwargs",
        [
            {"family": TaskDistribution(CartPoleTask, {"length": Uniform((0.4, 0.6))})},
            {"family": TaskFamily(TaskDistribution(CartPoleTask, {"length": Uniform((0.4, 0.6))}))},
            {"family": TaskSet([CartPoleTask(length=0.4), CartPoleTask(length=0.6)])},
            {"task": CartPoleTask(length=0.3, polarity=-1)},
        ],
        ids=str,
    )
    def test_tasks_and_distributions_among_the_arguments_are_saved(self, make_any, look, tmp_path, env_kwargs):
        trainer = make_any(env_id=ENV_ID, env_kwargs={**env_kwargs, "max_episode_steps": 5}).learn(1)
        trainer.save(tmp_path / "trainer.pt")
        loaded = MetaTrainer.load(tmp_path / "trainer.pt")
        assert learn(loaded, 1) == learn(trainer, 1)
        assert look(loaded.model) == look(trainer.model)

    def test_what_no_file_can_hold_is_refused_before_the_training(self, make_any):
        with pytest.raises(ValueError, match=r"env_kwargs must hold what the file of a trainer can hold.* got <object"):
            make_any(env_kwargs={"family": {"nested": [object()]}})

    def test_a_missing_folder_is_made(self, tmp_path):
        make_trainer(make_model()).save(tmp_path / "a" / "b" / "trainer.pt")
        assert MetaTrainer.load(tmp_path / "a" / "b" / "trainer.pt", make_model()).num_updates == 0

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
        elif kind == "incomplete":
            torch.save({"format": 2, "env_id": ENV_ID}, file)
        elif kind == "tensor":
            torch.save(torch.zeros(2), file)
        return {"empty": b"", "text": b"hello"}.get(kind, file.getvalue())

    @pytest.mark.parametrize("kind", ["empty", "text", "zip", "module", "dictionary", "format", "incomplete", "tensor"])
    def test_a_foreign_file_is_refused(self, tmp_path, kind):
        path = tmp_path / "foreign.pt"
        path.write_bytes(self.foreign(kind))
        with pytest.raises(ValueError, match=r"foreign\.pt must be a file written by MetaTrainer\.save"):
            MetaTrainer.load(path)

    def test_a_file_of_the_first_format_is_named_as_such(self, tmp_path):
        path = tmp_path / "old.pt"
        torch.save({"format": 1, "env_id": ENV_ID}, path)
        with pytest.raises(ValueError, match=r"in format 2; it is not\. .* by an earlier version: train anew"):
            MetaTrainer.load(path)

    def test_a_truncated_file_is_refused(self, tmp_path):
        path = tmp_path / "trainer.pt"
        make_trainer(make_model()).save(path)
        whole = path.read_bytes()
        for length in [*np.linspace(0, len(whole), 50, endpoint=False, dtype=int), len(whole) - 1]:
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=r"trainer\.pt must be a file written by MetaTrainer\.save"):
                MetaTrainer.load(path, make_model())

    @pytest.mark.parametrize("num_flips", [10, pytest.param(400, marks=pytest.mark.slow)])
    def test_a_flipped_bit_is_found_or_is_of_no_consequence(self, make_any, tmp_path, num_flips):
        path = tmp_path / "trainer.pt"
        make_any().learn(1).save(path)
        whole = path.read_bytes()
        expected = torch.load(path, weights_only=True)
        rng = np.random.default_rng(0)
        # Anywhere, and in the names and sizes at the end in particular.
        positions = np.where(rng.random(num_flips) < 0.7, rng.integers(len(whole), size=num_flips), 0)
        positions = np.where(positions, positions, len(whole) - 1 - rng.integers(2000, size=num_flips))
        messages = []
        for position in positions:
            damaged = bytearray(whole)
            damaged[position] ^= 1 << rng.integers(8)
            path.write_bytes(damaged)
            try:
                loaded = MetaTrainer.load(path)
            except ValueError as error:
                messages.append(str(error))
            else:
                loaded.save(tmp_path / "again.pt")
                assert same(torch.load(tmp_path / "again.pt", weights_only=True), expected)
        assert len(messages) > 0.3 * num_flips
        assert all(str(path) in message for message in messages)

    def test_no_module_is_imported_that_the_file_alone_names(self, tmp_path, monkeypatch, make_any):
        trainer = make_any(env_id=ENV_ID, env_kwargs={"max_episode_steps": 5})
        trainer.save(tmp_path / "trainer.pt")
        state = torch.load(tmp_path / "trainer.pt", weights_only=True)
        torch.save(state | {"env_id": f"module_of_the_file:{ENV_ID}"}, tmp_path / "named.pt")
        (tmp_path / "module_of_the_file.py").write_text("")
        monkeypatch.syspath_prepend(tmp_path)
        for allowed_modules in ((), "not_the_module_of_the_file"):
            with pytest.raises(ValueError, match=r"named\.pt .* give allowed_modules=\['module_of_the_file'\]"):
                MetaTrainer.load(tmp_path / "named.pt", allowed_modules=allowed_modules)
        assert "module_of_the_file" not in sys.modules
        try:
            assert MetaTrainer.load(tmp_path / "named.pt", allowed_modules=["module_of_the_file"]).num_updates == 0
            MetaTrainer.load(tmp_path / "named.pt")  # now that the module is there, none is imported
        finally:
            del sys.modules["module_of_the_file"]

    def test_an_id_that_is_not_registered_is_refused(self, tmp_path):
        make_trainer().save(tmp_path / "trainer.pt")
        state = torch.load(tmp_path / "trainer.pt", weights_only=True)
        torch.save(state | {"env_id": "ssm_metarl/CartPoleUnknown-v0"}, tmp_path / "trainer.pt")
        with pytest.raises(gym.error.NameNotFound):
            MetaTrainer.load(tmp_path / "trainer.pt")

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


class TestRefuses:
    def test_an_unknown_option(self, make_any):
        with pytest.raises(ValueError, match=r"an option of the objective .* got 'inner_rl'\. Did you mean 'inner_lr'"):
            make_any(inner_rl=0.1)

    def test_an_unknown_objective(self):
        with pytest.raises(ValueError, match=r"objective must be one of .* got 'dynamic'\. Did you mean 'dynamics'"):
            MetaTrainer(ENV_ID, objective="dynamic")

    def test_a_model_of_another_kind(self):
        with pytest.raises(
            ValueError, match=r"must be a DynamicsModel for objective='dynamics'; got a Linear\. Give None"
        ):
            make_trainer(nn.Linear(1, 1))
        with pytest.raises(ValueError, match="must be a MetaPolicy for objective='policy'; got a DynamicsModel"):
            MetaTrainer(ENV_ID, make_model(), objective="policy")

    def test_an_environment_without_hidden_tasks(self, make_any):
        with pytest.raises(ValueError, match=r"'CartPole-v1' must be an environment with hidden tasks"):
            make_any(env_id="CartPole-v1")

    def test_more_processes_than_tasks(self, make_any, monkeypatch):
        monkeypatch.setattr(meta_trainer, "world_size", lambda: 9)
        with pytest.raises(ValueError, match=r"meta_batch_size must be at least the number of processes; got \d for 9"):
            make_any()

    def test_another_split_than_that_of_training(self, make_any):
        with pytest.raises(ValueError, match="env_kwargs must not hold 'split'"):
            make_any(env_kwargs={"split": "extrapolation"})

    @pytest.mark.parametrize("seed", [-1, 0.5])
    def test_a_seed_that_is_none(self, make_any, seed):
        with pytest.raises(ValueError, match=f"seed must be an int >= 0; got {seed}"):
            make_any(seed=seed)


def test_options_are_those_of_the_dataclass():
    assert make_trainer().options == DynamicsOptions(**TINY)


class TestAdapt:
    def test_it_gives_the_policy_for_one_task(self):
        sizes = {"meta_batch_size": 2, "trajectories_per_task": 2, "width": 4}
        env_kwargs = {"max_episode_steps": 10}
        trainer = MetaTrainer("ssm_metarl/PointNavigation-v0", objective="policy", env_kwargs=env_kwargs, **sizes)
        trainer.learn(1)
        before = [parameter.clone() for parameter in trainer.model.parameters()]
        first, again, other = (trainer.adapt({"goal_x": x}, 1, seed=3) for x in (0.3, 0.3, -0.3))
        for one, same, different in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
            assert torch.equal(one, same)
            assert not torch.equal(one, different)
        assert all(map(torch.equal, before, trainer.model.parameters()))

    def test_it_gives_a_policy_for_each_of_many_tasks(self):
        sizes = {"meta_batch_size": 2, "trajectories_per_task": 2, "width": 4}
        env_kwargs = {"max_episode_steps": 10}
        trainer = MetaTrainer("ssm_metarl/PointNavigation-v0", objective="policy", env_kwargs=env_kwargs, **sizes)
        trainer.learn(1)
        tasks = [{"goal_x": 0.3}, {"goal_x": -0.3}]
        (alone,) = trainer.adapt_each(tasks[:1], 1, seed=3)
        assert all(map(torch.equal, alone.parameters(), trainer.adapt(tasks[0], 1, seed=3).parameters()))
        one, other = trainer.adapt_each(tasks, 1, seed=3)
        assert not torch.equal(one.head.weight, other.head.weight)
        with pytest.raises(ValueError, match=r"tasks must hold at least one task; got none\."):
            trainer.adapt_each([], 1)

    def test_a_model_of_the_dynamics_is_adapted_by_an_adapter(self):
        with pytest.raises(ValueError, match=r"adapt needs objective='policy'.*got 'dynamics'.*Adapter"):
            make_trainer().adapt({}, 1)
