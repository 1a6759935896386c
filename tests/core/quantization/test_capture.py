"""A captured model trains, scores and is saved like the model it came from."""

import inspect

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdq_core.errors import StageError
from kdq_core.quantization.capture import capture


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        return self.head(self.drop(x.mean((2, 3))))


X = torch.randn(6, 1, 5, 5, generator=torch.Generator().manual_seed(3))


@pytest.mark.isa
def test_outputs_gradients_and_statistics_are_the_models_own_in_both_modes():
    torch.manual_seed(0)
    model = Net()
    graph = capture(model, (X,))
    for training in (True, False, True):
        model.train(training)
        graph.train(training)
        outputs = []
        for each in (model, graph):
            torch.manual_seed(1)
            each.zero_grad()
            outputs.append(each(X))
            outputs[-1].square().sum().backward()
        assert torch.equal(*outputs)
        for name, parameter in model.named_parameters():
            assert torch.equal(graph.get_parameter(name).grad, parameter.grad)
    state = graph.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert state["norm.num_batches_tracked"] == 2


def test_capturing_leaves_the_model_alone():
    model = Net().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = capture(model, (X,))
    graph(X).sum().backward()
    assert not model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_batch_size_is_free_and_several_outputs_stay_several():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x):
            return self.head(x), x

    graph = capture(Two(), (torch.randn(4, 3),))
    assert [tuple(y.shape) for y in graph(torch.randn(9, 3))] == [(9, 2), (9, 3)]


def test_dropout_inside_attention_is_off_in_eval_mode():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
    graph = capture(model, (torch.randn(2, 3, 8),)).eval()
    x = torch.randn(2, 3, 8)
    assert torch.allclose(graph(x), model.eval()(x), atol=1e-6)


def test_an_addition_in_place_changes_what_is_read_afterwards():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            y = self.a(x)
            z = self.b(y)
            y += z
            return y * z

    model = InPlace()
    x = torch.randn(4, 3)
    assert torch.equal(capture(model, (x,))(x), model(x))


def refuse(model, x=None):
    with pytest.raises(StageError) as caught:
        capture(model, (torch.randn(4, 3) if x is None else x,))
    return str(caught.value)


def test_a_branch_on_values_is_refused_with_its_line():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    file, line = inspect.getsourcefile(Branch), inspect.getsourcelines(Branch)[1] + 2
    assert refuse(nn.Sequential(nn.Linear(3, 3), nn.Sequential(Branch()))) == (
        "model 'Sequential' cannot be captured as a graph: module '1.0' needs the value of a tensor, which a graph "
        f"does not know ({file}:{line}: return x if x.sum() > 0 else -x); compute both ways and choose with "
        "torch.where, keep numbers as tensors in place of .item(), or move the decision out of the model"
    )


def test_what_a_function_called_from_forward_cannot_do_is_refused_with_its_line():
    def double(x):
        return torch.from_numpy(x.numpy() * 2)

    class Foreign(nn.Module):
        def forward(self, x):
            return double(x)

    text = refuse(Foreign())
    assert text.startswith("model 'Foreign' cannot be captured as a graph: its forward gives RuntimeError: ")
    assert f"({__file__}:{inspect.getsourcelines(double)[1] + 1}: return torch.from_numpy(x.numpy() * 2)); make" in text


def test_a_dict_of_outputs_keeps_its_names_and_their_order():
    class Named(nn.Module):
        def forward(self, x):
            return {"tone": x + 1, "kind": x * 2}

    x = torch.arange(6.0).reshape(2, 3)
    given = capture(Named(), (x,))(x)
    assert list(given) == ["tone", "kind"]
    assert torch.equal(given["tone"], x + 1)
    assert torch.equal(given["kind"], x * 2)


def test_a_dict_within_a_dict_of_outputs_is_refused():
    class Nested(nn.Module):
        def forward(self, x):
            return {"both": {"tone": x + 1, "kind": x * 2}}

    assert refuse(Nested()) == (
        "model 'Nested' gives nested outputs; let it give a tensor, a flat tuple of tensors, or a dict of tensors by "
        "task"
    )


def test_batch_norm_without_statistics_is_refused():
    assert refuse(nn.BatchNorm1d(3, track_running_stats=False)) == (
        "batch norm 'batch_norm' keeps no running statistics of its own, or no fixed momentum; "
        "use nn.BatchNorm with track_running_stats=True and a number as momentum"
    )


def test_a_view_changed_in_place_is_refused():
    class View(nn.Module):
        def forward(self, x):
            y = x + 1
            F.relu_(y.view(-1))
            return y * 2

    assert refuse(View()) == (
        "'relu_' changes a view in place while its base 'add' is used later; use the operator that gives a new tensor"
    )


def test_a_batch_norm_that_is_called_twice_counts_in_its_module_alone():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(self.norm(x))

    graph = capture(Twice(), (torch.randn(4, 3),))
    graph(torch.randn(4, 3))
    assert int(graph.norm.num_batches_tracked) == 2
    graph.eval()(torch.randn(4, 3))
    assert int(graph.norm.num_batches_tracked) == 2
