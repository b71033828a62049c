import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import nn

import ssm_metarl_gym
from ssm_metarl_gym.agents import MetaMAML
from ssm_metarl_gym.agents.meta_learning import distributed as module
from ssm_metarl_gym.agents.meta_learning.distributed import own_share, rank, sum_over_processes, world_size

MSE = nn.MSELoss()


def make_model(kind):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3) if kind == "batch norm" else nn.Identity()
    return nn.Sequential(nn.Linear(2, 3), norm, nn.Tanh(), nn.Linear(3, 1))


def make_tasks(kind):
    """Four tasks, or fewer than there are processes; of a ``"bad"`` kind those of the second process are not finite."""
    generator = torch.Generator().manual_seed(1)
    num_tasks = 1 if kind == "one task" else 4
    tasks = [tuple(torch.randn(5, width, generator=generator) for width in (2, 1, 2, 1)) for _ in range(num_tasks)]
    if kind in ("one bad", "batch norm"):
        tasks[3][3][0] = math.inf
    elif kind == "half bad":
        tasks[2][0][0] = tasks[3][3][0] = math.nan
    elif kind == "all bad":
        for task in tasks:
            task[3][0] = math.nan
    return tasks


KINDS = ("plain", "chunked", "one task", "one bad", "half bad", "all bad", "batch norm", "reptile")


def train(kind, distributed):
    """Three updates; what there is afterwards."""
    model, tasks = make_model(kind), make_tasks(kind)
    options = {"algorithm": "reptile"} if kind == "reptile" else {"learned_rates": "tensor"}
    chunk = 1 if kind == "chunked" else None
    maml = MetaMAML(
        model, 0.1, 0.01, inner_steps=2, grad_clip_norm=0.5, task_chunk_size=chunk, distributed=distributed, **options
    )
    own = [tasks[index] for index in own_share(len(tasks))] if distributed else tasks
    try:
        losses = [maml.meta_update(own, MSE) for _ in range(3)]
    except FloatingPointError:
        losses = []
    tensors = {**model.state_dict(), **{f"rate of {name}": rate for name, rate in maml.state_dict()["rates"].items()}}
    tensors["losses"] = torch.tensor(losses)
    tensors["num_dropped"] = torch.tensor(maml.num_dropped)
    return copy.deepcopy(tensors)


def main(number, num_processes, folder):
    """One of several processes: writes what it has after training on its share of the tasks."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=int(number), world_size=int(num_processes)
    )
    results = {kind: train(kind, distributed=True) for kind in KINDS}
    results["process"] = {
        "rank and world size": torch.tensor([rank(), world_size()]),
        "share of five": torch.tensor(list(own_share(5))),
    }
    torch.save(results, Path(folder) / f"{number}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(ssm_metarl_gym.__file__).parents[1])}
    commands = [[sys.executable, __file__, str(number), "2", str(tmp_path)] for number in range(2)]
    processes = [subprocess.Popen(command, env=environment) for command in commands]  # noqa: S603
    try:
        assert [process.wait(timeout=600) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    first, second = (torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in range(2))
    assert first["process"]["rank and world size"].tolist() == [0, 2]
    assert second["process"]["rank and world size"].tolist() == [1, 2]
    assert first["process"]["share of five"].tolist() + second["process"]["share of five"].tolist() == [0, 1, 2, 3, 4]
    for kind in KINDS:
        alone = train(kind, distributed=False)
        for name, tensor in alone.items():
            assert torch.equal(first[kind][name], second[kind][name]), (kind, name)
            torch.testing.assert_close(first[kind][name], tensor, rtol=1e-6, atol=1e-6, msg=f"{kind}: {name}")
        assert alone["num_dropped"] == {"one bad": 3, "batch norm": 3, "half bad": 6, "all bad": 4}.get(kind, 0)
    assert first["plain"]["losses"][2] < first["plain"]["losses"][0]


class TestOneProcess:
    def test_it_is_the_first_of_one(self):
        assert (rank(), world_size()) == (0, 1)
        assert own_share(5) == range(5)

    def test_a_sum_over_it_changes_nothing(self):
        tensor = torch.arange(3.0)
        sum_over_processes([tensor])
        assert tensor.tolist() == [0.0, 1.0, 2.0]

    def test_distributed_training_is_plain_training(self):
        one, other = (train("batch norm", distributed=value) for value in (False, True))
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name])


class TestManyProcesses:
    @pytest.mark.each_value
    @pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
    @pytest.mark.parametrize("num", [0, 1, 7, 8, 33])
    def test_shares_are_a_partition(self, monkeypatch, num, num_processes):
        monkeypatch.setattr(module, "world_size", lambda: num_processes)
        shares = []
        for index in range(num_processes):
            monkeypatch.setattr(module, "rank", lambda index=index: index)
            shares.append(own_share(num))
        assert [index for share in shares for index in share] == list(range(num))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1

    def test_one_exchange_for_each_type_of_number(self, monkeypatch):
        exchanged = []
        monkeypatch.setattr(module, "world_size", lambda: 2)
        monkeypatch.setattr(dist, "all_reduce", lambda flat: exchanged.append(flat.dtype) or flat.mul_(2))
        matrix, scalar, counts = torch.ones(2, 3), torch.tensor(4.0), torch.tensor([1, 2])
        sum_over_processes([matrix, counts, scalar, matrix.new_ones(0)])
        assert exchanged == [torch.float32, torch.int64]
        assert matrix.tolist() == [[2.0] * 3] * 2
        assert scalar.item() == 8.0
        assert counts.tolist() == [2, 4]


if __name__ == "__main__":
    main(*sys.argv[1:])
