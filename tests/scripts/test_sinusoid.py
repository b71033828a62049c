import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def sinusoid(load_script):
    """The script as a module."""
    return load_script("sinusoid")


@pytest.fixture
def small(sinusoid, monkeypatch):
    """Few waves to evaluate on."""
    monkeypatch.setattr(sinusoid, "NUM_HELD_OUT", 20)
    monkeypatch.setattr(sinusoid, "NUM_TUNING", 10)


class TestTasks:
    def test_they_are_waves_of_the_ranges_of_the_paper(self, sinusoid):
        tasks = sinusoid.draw_tasks(400, 30, sinusoid.make_generator(0))
        assert {tuple(part.shape for part in task) for task in tasks} == {((10, 1), (10, 1), (30, 1), (30, 1))}
        x, y = (torch.stack([torch.cat(task[i::2]) for task in tasks]).double() for i in (0, 1))
        assert (x.abs() <= 5.0).all()
        # a sin(x - p) = a cos(p) sin(x) - a sin(p) cos(x): linear in two numbers that the points determine.
        features = torch.cat([x.sin(), -x.cos()], dim=2)
        solution = torch.linalg.lstsq(features, y).solution
        torch.testing.assert_close(features @ solution, y, atol=1e-5, rtol=0)
        amplitudes, phases = solution.norm(dim=1), torch.atan2(solution[:, 1], solution[:, 0])
        for values, low, high in ((amplitudes, 0.1, 5.0), (phases, 0.0, math.pi)):
            # The extremes of 400 uniform numbers are within 5 % of the ends, but for a probability of 3e-9.
            assert low - 1e-4 < values.min() < low + 0.05 * (high - low)
            assert high - 0.05 * (high - low) < values.max() < high + 1e-4

    def test_a_key_gives_one_stream(self, sinusoid):
        streams = [torch.rand(4, generator=sinusoid.make_generator(*key)) for key in ((0, 1), (0, 1), (1, 0), (0, 2))]
        assert torch.equal(streams[0], streams[1])
        assert not any(torch.equal(streams[0], stream) for stream in streams[2:])


class TestTraining:
    @pytest.mark.parametrize(
        "algorithm", ["maml", "first-order", "meta-sgd", "maml++", "anil", "reptile", "multi-task"]
    )
    @pytest.mark.usefixtures("small")
    def test_every_algorithm_is_evaluated_after_each_number_of_steps(self, sinusoid, algorithm):
        result, _ = sinusoid.run(algorithm, 0, sinusoid.Options(updates=2))
        assert set(result.errors) == set(result.step_sizes) == {0, 1, 5, 10}
        assert all(len(errors) == 20 and np.isfinite(errors).all() for errors in result.errors.values())

    @pytest.mark.usefixtures("small")
    def test_one_seed_gives_one_result(self, sinusoid):
        one, same, other = (sinusoid.run("maml", seed, sinusoid.Options(updates=2))[0] for seed in (0, 0, 1))
        assert one.errors == same.errors != other.errors

    def test_options_reach_the_algorithm(self, sinusoid):
        options = sinusoid.Options(updates=2, inner_steps=2, inner_lr=0.5)
        trained = {name: sinusoid.train(name, 0, options) for name in ("maml", "maml++", "reptile", "multi-task")}
        assert [maml.inner_steps for maml in trained.values()] == [2, 2, 2, 0]
        assert all(maml.num_updates == 2 for maml in trained.values())
        assert trained["maml++"].multi_step_updates == 1

    def test_anil_adapts_the_last_layer_alone(self, sinusoid):
        maml = sinusoid.train("anil", 0, sinusoid.Options(updates=1))
        x, y, *_ = sinusoid.draw_tasks(1, 1, sinusoid.make_generator(0))[0]
        adapted = dict(maml.adapt(x, y, sinusoid.MSE, 1).named_parameters())
        changed = {name for name, weight in maml.model.named_parameters() if not torch.equal(weight, adapted[name])}
        assert changed == {"4.weight", "4.bias"}

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(3))
    def test_maml_learns_to_learn_and_multi_task_training_does_not(self, sinusoid, seed):
        options = sinusoid.Options(updates=300)
        after = {name: sinusoid.run(name, seed, options)[0].errors for name in ("maml", "multi-task")}
        means = {name: {steps: np.mean(values) for steps, values in errors.items()} for name, errors in after.items()}
        assert means["maml"][10] < means["maml"][1] < means["maml"][0]
        assert means["maml"][1] < means["multi-task"][1]
        assert means["maml"][10] < means["multi-task"][10]


class TestTuning:
    def test_the_best_step_size_is_chosen_for_each_number_of_steps(self, sinusoid, monkeypatch):
        errors = {0.01: [9.0, 3.0, 2.0, 2.0], 0.1: [9.0, 1.0, 4.0, math.nan], 0.5: [9.0, 2.0, math.inf, math.nan]}

        def make(model, inner_lr, outer_lr):
            losses = torch.tensor(errors[inner_lr])[:, None].expand(4, 7)
            return SimpleNamespace(query_losses=lambda tasks, loss_fn, num_steps: losses)

        monkeypatch.setattr(sinusoid, "STEP_SIZES", tuple(errors))
        monkeypatch.setattr(sinusoid, "MetaMAML", make)
        assert sinusoid.tune(None, 0) == {0: 0.01, 1: 0.1, 5: 0.01, 10: 0.01}

    @pytest.mark.usefixtures("small")
    def test_the_tuned_sizes_are_those_of_the_steps_at_test_time(self, sinusoid, monkeypatch):
        sizes = {0: 0.001, 1: 0.02, 5: 0.003, 10: 0.001}
        monkeypatch.setattr(sinusoid, "tune", lambda model, seed: sizes)
        result, adapters = sinusoid.run("multi-task", 0, sinusoid.Options(updates=1))
        assert result.step_sizes == sizes
        x, y, *_ = sinusoid.draw_tasks(1, 1, sinusoid.make_generator(0))[0]
        before = adapters[1].model[4].bias
        slope = torch.autograd.grad(sinusoid.MSE(adapters[1].model(x), y), before)[0]
        after = adapters[1].adapt(x, y, sinusoid.MSE, 1)[4].bias
        torch.testing.assert_close(before - after, 0.02 * slope)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_picture(sinusoid, tmp_path):
    picture = tmp_path / "picture.png"
    sinusoid.main(["--algorithm", "maml", "multi-task", "--updates", "1", "--plot", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("small")
def test_results_and_table(sinusoid, tmp_path, capsys):
    results = tmp_path / "results.json"
    runs = ["--algorithm", "maml", "multi-task", "--seed", "3", "--seeds", "2", "--updates", "1"]
    sinusoid.main([*runs, "--output", str(results)])
    rows = json.loads(results.read_text())
    expected = [(name, seed) for name in ("maml", "multi-task") for seed in (3, 4)]
    assert [(row["algorithm"], row["seed"]) for row in rows] == expected
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert lines[0] == "| algorithm | 0 | 1 | 5 | 10 | CPU seconds |"
    assert lines[2].startswith(f"| maml | {np.mean([row['errors']['0'] for row in rows[:2]]):.3f} [")
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {7}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algorithm", "mamI"], "--algorithm must be one of"),
        (["--plot", "."], "--plot must be a file, or nothing yet; . is neither."),
        (["--inner-lr", "inf"], "--inner-lr must be finite and > 0; got inf"),
    ],
)
def test_bad_options_are_refused(sinusoid, arguments, message, capsys):
    with pytest.raises(SystemExit):
        sinusoid.main(arguments)
    assert message in capsys.readouterr().err
