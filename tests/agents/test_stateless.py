import copy
import re
from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from ssm_metarl_gym.agents import MetaMAML
from ssm_metarl_gym.agents.stateless import StatelessModule, attributes_kept, copy_module

MSE = nn.MSELoss()
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(weight_norm|spectral_norm).*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented:UserWarning"),
]


def make_tasks(num_tasks=3):
    return [tuple(torch.randn(5, width, dtype=torch.float64) for width in (2, 1, 2, 1)) for _ in range(num_tasks)]


def twice_in_sequence():
    layer = nn.Linear(2, 2)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(2, 1))


class TwoPaths(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 1)
        self.again, self.both = self.first, nn.ModuleList([self.last, self.first])

    def forward(self, x):
        return self.both[0](self.again(self.first(x).tanh()).tanh())


def shared_parameter():
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
    model[2].weight = model[0].weight
    return model


def one_parameter_by_two_names():
    layer = nn.Linear(2, 1)
    layer.same = layer.weight
    return nn.Sequential(layer)


def shared_normalisation():
    norm = nn.BatchNorm1d(2)
    return nn.Sequential(nn.Linear(2, 2), norm, nn.Tanh(), norm, nn.Linear(2, 1))


SHARING = [twice_in_sequence, TwoPaths, shared_parameter, one_parameter_by_two_names, shared_normalisation]


class TestStatelessModule:
    @pytest.mark.parametrize("make_model", SHARING)
    def test_what_is_shared_is_replaced_everywhere_and_put_back(self, look, make_model):
        model, other, x = make_model(), make_model(), torch.randn(5, 2)
        before = look(model)
        tensors = {**dict(other.named_parameters()), **dict(other.named_buffers())}
        actual = StatelessModule(model)({name: tensor.clone() for name, tensor in tensors.items()}, (x,))
        assert torch.equal(actual, other(x))
        assert look(model) == before
        names = {name for name, _ in model.named_parameters()}
        assert all(isinstance(model.get_parameter(name), nn.Parameter) for name in names)

    def test_tensors_that_are_not_given_are_its_own(self):
        model, x = TwoPaths(), torch.randn(5, 2)
        expected = F.linear(model.first(model.first(x).tanh()).tanh(), torch.ones(1, 2), model.last.bias)
        assert torch.equal(StatelessModule(model)({"last.weight": torch.ones(1, 2)}, (x,)), expected)

    @pytest.mark.parametrize("make_model", [shared_normalisation, lambda: nn.BatchNorm1d(2)])
    def test_buffers_are_replaced_where_the_module_replaces_them(self, make_model):
        model, x = make_model(), torch.randn(5, 2)
        tensors = {name: buffer.clone() for name, buffer in model.named_buffers()}
        StatelessModule(model)(tensors, (x,))
        counts = {tensor.item() for name, tensor in tensors.items() if "num_batches" in name}
        assert counts == {2 if make_model is shared_normalisation else 1}
        assert all(buffer.item() == 0 for name, buffer in model.named_buffers() if "num_batches" in name)

    def test_checked_says_what_the_module_was_given(self):
        module = StatelessModule(nn.Linear(2, 1))
        assert module.checked({}, (torch.zeros(3, 2),)).shape == (3, 1)
        with pytest.raises(
            ValueError, match=r"got \(3, 5\) of torch.float32 on cpu, of which Linear says: mat1 and mat2"
        ):
            module.checked({}, (torch.zeros(3, 5),))
        with pytest.raises(ValueError, match=r"got \(3, 2\) of torch.int64 on cpu.* Give it inputs of the shape, type"):
            module.checked({}, (torch.zeros(3, 2, dtype=torch.int64),))

    def test_too_little_memory_is_not_the_fault_of_the_inputs(self):
        model = nn.Identity()
        model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA")))
        with pytest.raises(torch.OutOfMemoryError):
            StatelessModule(model).checked({}, (torch.zeros(1),))


class Base(nn.Module):
    """Two layers, and what subclasses keep of the numbers between them."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 1)

    def forward(self, x):
        return self.last(self.keep(self.first(x).tanh()))


class Map(Base):
    map = None

    def keep(self, y):
        self.map = y.softmax(-1)
        return y * self.map


class Penalty(Base):
    """Keeps an auxiliary loss, for the loss function to read."""

    penalty = None

    def keep(self, y):
        self.penalty = y.square().mean()
        return y


class HiddenState(Base):
    def __init__(self):
        super().__init__()
        self.hidden = torch.full((5, 3), 0.1, dtype=torch.float64)
        self.num_calls = 0

    def keep(self, y):
        self.num_calls += 1
        self.hidden = (self.hidden + y).tanh()
        return self.hidden


class HiddenStateInPlace(HiddenState):
    def keep(self, y):
        self.hidden.mul_(0.5).add_(y)
        return self.hidden.clone()


class LazyCache(Base):
    def __init__(self):
        super().__init__()
        self.cache, self.caches = None, {}

    def keep(self, y):
        if self.cache is None:
            self.cache = y * 0.1
        return y + self.caches.setdefault("first", y) + self.cache


class State(NamedTuple):
    value: torch.Tensor
    count: list[int]


@dataclass
class Record:
    last: Any = None


class Containers(Base):
    """Keeps what it computes in containers of all kinds, one in the other."""

    def __init__(self):
        super().__init__()
        self.all, self.recent, self.record = [[]], deque(maxlen=2), Record()
        self.state, self.seen = State(torch.zeros(()), [0]), set()

    def keep(self, y):
        self.all[0].append(y)
        self.recent.append(y)
        self.record.last = y
        self.state = State(self.state.value + y.mean(), self.state.count)
        self.state.count[0] += 1
        self.seen.add(len(self.all[0]))
        return y * self.state.value * self.state.count[0] + self.recent[0] * len(self.seen)


class Unregistered(Base):
    """Has a part with attributes that no module knows as a part."""

    def __init__(self):
        super().__init__()
        self.parts = [Map()]

    def keep(self, y):
        return y + self.parts[0].keep(y)


class LateBuffer(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("none", None)

    def keep(self, y):
        if self.none is None:
            self.none = y * 0.1
            self.register_buffer("late", y * 0.2)
        return y + self.none + self.late


class LateModule(Base):
    def keep(self, y):
        if not hasattr(self, "late"):
            self.late = nn.Softplus()
            self.training = False
        return self.late(y)


def layers():
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


def weight_norm():
    model = layers()
    nn.utils.weight_norm(model[0])
    return model


def spectral():
    model = layers()
    nn.utils.spectral_norm(model[0])
    return model


def pruned():
    model = layers()
    prune.l1_unstructured(model[0], "weight", 2)
    return model


STATEFUL = [Map, Penalty, HiddenState, HiddenStateInPlace, LazyCache, Containers, Unregistered, LateBuffer, LateModule]
STATEFUL += [weight_norm, spectral, pruned]


def attributes_of(model):
    """All attributes of all modules, and a copy of what they are to compare with."""
    parts = [*model.modules(), *getattr(model, "parts", [])]
    own = [dict(vars(part)) for part in parts]
    own += [dict(registered) for attributes in own for registered in (attributes["_buffers"], attributes["_modules"])]
    return own, re.sub("0x[0-9a-f]+", "", str([list(map(vars, copy_module(nn.ModuleList(parts))))]))


def assert_as_before(model, before, *, values=True):
    """That all modules have the same attributes as before, with the same values."""
    after = attributes_of(model)
    for now, then in zip(after[0], before[0], strict=True):
        assert now.keys() == then.keys()
        assert all(value is then[name] for name, value in now.items())
    assert not values or after[1] == before[1]


class TestAttributes:
    @pytest.mark.each_value
    @pytest.mark.parametrize("used", [False, True])
    @pytest.mark.parametrize("make_model", STATEFUL, ids=lambda make: make.__name__)
    def test_they_are_as_they_were(self, make_model, used):
        model, x = make_model().double(), torch.randn(5, 2, dtype=torch.float64)
        if make_model is spectral:
            model.eval()  # in training it changes its buffers, which are no attributes
        if used:
            model(x)
        before, outputs = attributes_of(model), []
        for _ in range(2):
            with attributes_kept(model):
                outputs.append(model(x))
                model(x + 1.0)
            assert_as_before(model, before)
        assert torch.equal(*outputs)
        assert torch.equal(model(x), outputs[0])

    def test_an_error_puts_them_back_too(self):
        model = Containers()
        before = attributes_of(model)
        with pytest.raises(RuntimeError, match="mat1"), attributes_kept(model):
            model(model(torch.zeros(5, 2)))
        assert_as_before(model, before)

    def test_what_was_one_thing_stays_one_thing(self):
        model = Base()
        model.one = torch.zeros(2)
        model.several, model.itself = [model.one, {"x": model.one}], []
        model.itself.append(model.itself)
        with attributes_kept(model):
            assert model.one is model.several[0] is model.several[1]["x"]
            assert model.itself[0] is model.itself
            model.one += 1.0
            assert model.several[0].tolist() == [1.0, 1.0]
        assert model.several[0].tolist() == [0.0, 0.0]


class TestCopies:
    @pytest.mark.parametrize("make_model", SHARING + STATEFUL, ids=lambda make: make.__name__)
    def test_a_used_model_can_be_copied(self, make_model):
        model, x = make_model().double().eval(), torch.randn(5, 2, dtype=torch.float64)
        model(x)
        twin = copy.deepcopy(copy_module(model))
        assert attributes_of(twin)[1] == attributes_of(model)[1]
        assert torch.equal(twin(x), model(x))
        own, others = ({id(parameter) for parameter in one.parameters()} for one in (twin, model))
        assert len(own) == len(others)
        assert not own & others

    def test_of_what_holds_a_module(self):
        model = Map()
        model(torch.zeros(5, 2))
        holder = copy_module(Record([model]))
        assert holder.last[0] is not model
        assert torch.equal(holder.last[0].map, model.map)

    def test_attributes_have_no_graph_any_more_and_stay_one_thing(self):
        model = Map()
        model.output = model(torch.zeros(5, 2))
        model.outputs = [model.output, (model.output + 1.0).detach(), model.output + 1.0]
        twin = copy_module(model)
        assert twin.output is twin.outputs[0]
        assert torch.equal(twin.outputs[1], twin.outputs[2])
        for tensor, own in zip(twin.outputs, model.outputs, strict=True):
            assert not tensor.requires_grad
            assert torch.equal(tensor, own)
        assert model.output.requires_grad


class TestMetaLearning:
    @pytest.mark.parametrize("first_order", [False, pytest.param(True, marks=pytest.mark.slow)])
    @pytest.mark.parametrize("make_model", SHARING + STATEFUL, ids=lambda make: make.__name__)
    def test_the_gradient_is_that_of_a_plain_loop(self, assert_same_gradient, make_model, first_order):
        assert_same_gradient(make_model().double(), make_tasks(), MSE, first_order)

    @pytest.mark.parametrize("first_order", [False, pytest.param(True, marks=pytest.mark.slow)])
    @pytest.mark.parametrize("make_model", SHARING + STATEFUL, ids=lambda make: make.__name__)
    def test_the_model_is_as_it_was(self, make_model, first_order):
        model, tasks = make_model().double(), make_tasks(2)
        before = attributes_of(model)
        maml = MetaMAML(model, 0.1, 1e-12, first_order)
        maml.query_losses(tasks, MSE, [1])
        adapted = maml.adapt(*tasks[0][:2], MSE, 1)
        assert_as_before(model, before)
        maml.meta_update(tasks, MSE)
        changed = any("running_mean" in name or "weight_u" in name for name, _ in model.named_buffers())
        assert_as_before(model, before, values=not changed)
        for one in (copy.deepcopy(adapted), adapted, model):
            assert one(tasks[0][0]).shape == (5, 1)
            copy_module(one)
        maml.adapt(*tasks[0][:2], MSE, 1)  # of a used model

    @pytest.mark.parametrize("first_order", [False, True])
    def test_a_loss_may_read_an_attribute(self, first_order):
        class Returned(Penalty):
            def forward(self, x):
                return super().forward(x), self.penalty

        models, tasks = [Penalty().double(), Returned().double()], make_tasks()
        models[1].load_state_dict(models[0].state_dict())
        losses = [
            lambda prediction, target: MSE(prediction, target) + models[0].penalty,
            lambda prediction, target: MSE(prediction[0], target) + prediction[1],
        ]
        for model, loss_fn in zip(models, losses, strict=True):
            MetaMAML(model, 0.1, 1.0, first_order, inner_steps=2, optimizer_class=torch.optim.SGD).meta_update(
                tasks, loss_fn
            )
        for one, other in zip(*(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(one, other)
