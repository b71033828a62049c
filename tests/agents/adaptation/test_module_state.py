import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from ssm_metarl_gym.agents.adaptation.module_state import ModuleState, set_evaluation, set_training


class Buffered(nn.Module):
    """A linear layer with a buffer of each kind."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 1)
        self.register_buffer("empty", None)
        self.register_buffer("numbers", torch.arange(3.0))
        self.register_buffer("counts", torch.zeros(2, dtype=torch.long), persistent=False)


def contents(model):
    """All buffers of a model, comparable bit for bit."""
    return {
        (path, name): None if tensor is None else (tensor.dtype, tensor.tolist())
        for path, module in model.named_modules()
        for name, tensor in module._buffers.items()
    }


def persistent(model):
    return set(model.state_dict())


def grow(model):
    model.numbers = torch.cat([model.numbers, torch.ones(2)])


def resize(model):
    model.numbers.resize_(7).fill_(3.0)


CHANGES = {
    "written into": lambda model: model.numbers.mul_(2.0),
    "replaced": lambda model: setattr(model, "numbers", torch.ones(3)),
    "grown": grow,
    "grown in place": resize,
    "of another type": lambda model: setattr(model, "counts", torch.tensor([0.5, 0.25], dtype=torch.float64)),
    "of another type in place": lambda model: setattr(model.counts, "data", torch.ones(2, dtype=torch.int8)),
    "filled": lambda model: setattr(model, "empty", torch.ones(2)),
    "emptied": lambda model: setattr(model, "numbers", None),
    "registered": lambda model: model.register_buffer("late", torch.ones(1)),
    "registered inside": lambda model: model.inner.register_buffer("late", torch.ones(1), persistent=False),
    "removed": lambda model: delattr(model, "numbers"),
    "removed, no part of the state": lambda model: delattr(model, "counts"),
    "a result of a graph": lambda model: setattr(model, "numbers", model.inner.weight.sum() * torch.ones(3)),
    "made in inference mode": torch.inference_mode()(lambda model: setattr(model, "numbers", torch.ones(3))),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_buffers_are_put_back_bit_for_bit_from_before_and_after_a_change(change):
    model = Buffered()
    state = ModuleState(model)
    before, names, first = contents(model), persistent(model), state.snapshot()
    change(model)
    after, names_after, second = contents(model), persistent(model), state.snapshot()
    assert after != before
    for _ in range(2):
        state.restore(first)
        assert (contents(model), persistent(model)) == (before, names)
        state.restore(second)
        assert (contents(model), persistent(model)) == (after, names_after)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_snapshot_goes_through_names_and_back(change):
    model = Buffered()
    state = ModuleState(model)
    change(model)
    snapshot, after = state.snapshot(), contents(model)
    named = state.buffers_by_name(snapshot)
    if not {"numbers", "counts", "empty"} <= named.keys():
        with pytest.raises(ValueError, match=r"the buffers \['\w+'\] are missing"):
            state.parse_buffers(named)
        return
    twin = Buffered()
    other = ModuleState(twin)
    weights = other.snapshot()
    for tensor in named.values():
        if tensor is not None:
            tensor.requires_grad_(False)
    parsed = other.parse_buffers(named)
    other.restore(type(weights)(weights.weights, weights.held, parsed))
    assert contents(twin) == after


def test_tensors_that_somebody_else_holds_are_never_written_into():
    """A module may keep a view of what it was given."""
    model, batch = Buffered(), torch.ones(4, 3)
    state = ModuleState(model)
    model.numbers = batch[-1]
    snapshot = state.snapshot()
    batch.zero_()
    state.restore(snapshot)
    assert batch.eq(0.0).all()
    assert model.numbers.tolist() == [1.0] * 3


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_those_of_a_script_are_put_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 1)
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls += 1.0
            return self.linear(x)

    model = torch.jit.script(Counting())
    state = ModuleState(model)
    state.check()
    snapshot = state.snapshot()
    model(torch.ones(1, 2))
    assert model.calls.item() == 1.0
    state.restore(snapshot)
    assert model.calls.item() == 0.0


def test_modes_are_those_of_each_module():
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5), nn.LSTM(1, 1), nn.LSTM(1, 1, num_layers=2, dropout=0.5))
    model[0].eval()
    training = ModuleState(model).training_modules()
    set_evaluation(training)
    # A recurrent layer without dropout knows no other mode, and on some devices has no gradient in this one.
    assert [part.training for part in model] == [False, False, True, False]
    set_training(training)
    assert [part.training for part in model] == [False, True, True, True]


def make_model():
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    model[0].bias.requires_grad_(False)
    return model


def assign(model):
    model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)


REPLACED = {
    "weights assigned": assign,
    "a new head": lambda model: setattr(model, "2", nn.Linear(3, 1)),
    "a new activation": lambda model: setattr(model, "1", nn.ReLU()),
    "a new parameter": lambda model: setattr(model[0], "weight", nn.Parameter(torch.ones(3, 2))),
    "one more module": lambda model: model.append(nn.Identity()),
    "one module less": lambda model: model.pop(2),
    "a parametrisation": lambda model: parametrizations.weight_norm(model[0]),
    "pruned": lambda model: prune.random_unstructured(model[0], "weight", 0.5),
    "one more parameter": lambda model: model.register_parameter("scale", nn.Parameter(torch.ones(1))),
    "moved": lambda model: model.to("meta"),
    "a parameter removed": lambda model: setattr(model[0], "weight", None),
}
OF_ANOTHER_KIND = {
    "frozen": (lambda model: model[2].requires_grad_(False), "requires_grad"),
    "one of them frozen": (lambda model: model[2].bias.requires_grad_(False), "2.bias was"),
    "unfrozen": (lambda model: model[0].requires_grad_(True), "0.bias was"),
    "of another type": (lambda model: model.double(), "torch.float64"),
    "of another shape": (lambda model: setattr(model[0].weight, "data", torch.ones(4, 2)), r"\[4, 2\]"),
}


@pytest.mark.each_value
@pytest.mark.parametrize(
    ("change", "message"),
    [(change, "one was added, removed or replaced since") for change in REPLACED.values()]
    + list(OF_ANOTHER_KIND.values()),
    ids=[*REPLACED, *OF_ANOTHER_KIND],
)
@pytest.mark.parametrize("copied", [False, True], ids=["itself", "a copy"])
def test_a_model_that_is_another_one_by_now_is_noticed(change, message, copied):
    model = make_model()
    state = ModuleState(model)
    if copied:
        model, state = copy.deepcopy((model, state))
    state.check()
    change(model)
    with pytest.raises(ValueError, match=rf"{message}.*Make a new adapter\.$"):
        state.check()


@pytest.mark.parametrize("trained", [True, False])
def test_embeddings_that_change_their_weights_by_themselves_are_refused(trained):
    model = nn.Sequential(nn.Embedding(5, 4, max_norm=0.1).requires_grad_(trained), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"must have max_norm=None; got 0\.1 in Embedding '0'"):
        ModuleState(model)


@pytest.mark.parametrize("model", [nn.Linear, lambda x: x])
def test_what_is_no_module_is_refused(model):
    with pytest.raises(ValueError, match=r"the model must be a torch\.nn\.Module; got"):
        ModuleState(model)


def test_new_values_and_modes_are_no_other_model():
    model = make_model()
    state = ModuleState(model)
    model.load_state_dict(make_model().state_dict())
    model.eval().zero_grad()
    model.register_buffer("late", torch.ones(1))
    model.register_forward_hook(lambda *_: None)
    state.check()
