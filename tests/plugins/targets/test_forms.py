"""Layers that compute in float by choice, and the other forms of a graph: the files give the same answers."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdq_core.quantization.capture import capture
from kdq_core.quantization.convert import convert
from kdq_core.quantization.prepare import prepare, set_phase
from kdq_core.testing import TOYS
from kdq_core.work.forms import Ranges
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu
from kdq_targets.openvino_cpu import OpenVinoCpu

TARGETS = [OnnxRuntimeCpu, OpenVinoCpu]


class Separable(nn.Module):
    """A stem, a depthwise and a pointwise conv, and a wide head."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16)
        self.pointwise = nn.Conv2d(16, 128, 1)
        self.head = nn.Linear(128, 128)

    def forward(self, x: Any) -> Any:
        x = F.relu(self.depthwise(F.relu(self.norm(self.stem(x)))))
        return self.head(F.relu(self.pointwise(x)).mean((2, 3)))


class Looked(nn.Module):
    """Two tables beside numbers, as in `ToyTable`, wide enough that no table may be packed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(50, 16), nn.Embedding(50, 16)
        self.hidden, self.head = nn.Linear(36, 32), nn.Linear(32, 5)

    def forward(self, tokens: Any, x: Any) -> Any:
        x = torch.cat([self.first(tokens[:, 0]), self.second(tokens[:, 1]), x], 1)
        return self.head(F.relu(self.hidden(x)))


def spectra(count: int, channels: int = 1) -> tuple[torch.Tensor, ...]:
    return (torch.randn(count, channels, 12, 12),)


def rows(count: int) -> tuple[torch.Tensor, ...]:
    return torch.randint(50, (count, 2)), torch.randn(count, 4)


@torch.no_grad()
def quantized(module: Any, x: Any, target: Any) -> tuple[Any, Any]:
    """The graph of a module in eval mode, and the module in integers, with ranges from `x`."""
    graph = capture(module, tuple(part[:2] for part in x))
    prepared = prepare(graph, target.places(graph), Ranges()).eval()
    set_phase(prepared, observe=True, quantize=False, freeze_batch_norm=True)
    prepared(*x)
    set_phase(prepared, observe=False, quantize=True, freeze_batch_norm=True)
    return graph, convert(prepared)


@pytest.fixture
def made(tmp_path: Any) -> Any:
    """Gives a function: model, inputs, target -> the written file, its coverage, its and the simulation's answers."""

    def made(model: Any, inputs: Any, target: Any, name: str = "int8.onnx") -> Any:
        torch.manual_seed(0)
        module, x = model().eval(), inputs(32)
        graph, converted = quantized(module, x, target)
        with torch.no_grad():
            target.export(converted, tuple(part[:2] for part in x), tmp_path / name)
            wanted = converted(*x).numpy()
        given = target.session(tmp_path / name, threads=1).run(tuple(part.numpy() for part in x))[0]
        covered = {f"{row.path}:{row.operator}": row for row in target.coverage(tmp_path / name, graph)}
        return tmp_path / name, covered, given, wanted

    return made


def forms(model: Any, inputs: Any, target: Any) -> dict[str, Any]:
    return {form.name: form for form in target.forms(capture(model().eval(), inputs(2)))}


def test_the_families_in_doubt_are_named_and_at_last_every_layer() -> None:
    found = forms(Separable, spectra, OnnxRuntimeCpu())
    assert {name: form.floats for name, form in found.items()} == {
        "grouped convs in float": ("depthwise:conv",),
        "convs of few channels in float": ("stem:conv",),
        "all layers in float": ("stem:conv", "depthwise:conv", "pointwise:conv", "head:linear"),
    }
    toys = {toy.name: toy for toy in TOYS}
    for name, first in (("lstm", "lstm in float"), ("gru", "gru by steps"), ("transformer", "narrow linears in float")):
        toy = toys[name]
        named = OnnxRuntimeCpu().forms(capture(toy.model().eval(), toy.inputs(2, torch.Generator())))
        assert named[0].name == first or name == "transformer"
        assert named[-1].name == "all layers in float"


def test_a_wide_conv_net_has_nothing_in_doubt() -> None:
    net = lambda: nn.Sequential(nn.Conv2d(16, 128, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 128))  # noqa: E731
    assert list(forms(net, lambda n: (torch.randn(n, 16, 3, 3),), OnnxRuntimeCpu())) == ["all layers in float"]


@pytest.mark.parametrize("of", TARGETS)
def test_a_layer_in_float_by_choice_keeps_integer_weights_in_the_file(of: Any, made: Any) -> None:
    plain, float_one = of(), of(weight_only=("depthwise:conv",))
    path, covered, given, wanted = made(Separable, spectra, float_one)
    assert not covered["depthwise:conv"].int8
    assert covered["depthwise:conv"].reason == (
        "weight-only, as the option 'weight_only' of the target says: int8 weights, float arithmetic"
    )
    assert covered["stem:conv"].int8
    assert covered["pointwise:conv"].int8
    assert np.abs(given - wanted).max() <= 0.02 * np.abs(wanted).max()
    other = made(Separable, spectra, plain, "plain.onnx")[0]
    assert abs(path.stat().st_size - other.stat().st_size) < 600
    weights = [tensor for tensor in onnx.load(str(path)).graph.initializer if np.prod(tensor.dims) >= 144]
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.INT8}


def test_an_embedding_in_float_by_choice_looks_up_floats_and_openvino_has_no_such_form(made: Any) -> None:
    _, covered, given, wanted = made(Looked, rows, OnnxRuntimeCpu(weight_only=("first:embedding",)))
    assert not covered["first:embedding"].int8
    assert covered["first:embedding"].weight_bytes == 50 * 16
    assert covered["second:embedding"].int8
    assert np.abs(given - wanted).max() <= 0.02 * np.abs(wanted).max()
    names = [list(forms(Looked, rows, of())) for of in TARGETS]
    assert names == [
        ["embeddings in float", "narrow linears in float", "all layers in float"],
        ["all layers in float"],
    ]


@pytest.mark.parametrize(("name", "kind"), [("lstm", "lstm"), ("gru", "gru")])
def test_a_recurrent_layer_in_float_by_choice(name: str, kind: str, made: Any) -> None:
    toy = next(toy for toy in TOYS if toy.name == name)
    inputs = lambda count: toy.inputs(count, torch.Generator().manual_seed(1))  # noqa: E731
    _, covered, given, wanted = made(toy.model, inputs, OnnxRuntimeCpu(weight_only=(kind,)))
    row = next(one for label, one in covered.items() if label.endswith(f":{kind}"))
    assert (row.int8, row.kernel) == (False, kind.upper())
    assert np.abs(given - wanted).max() <= 0.02 * np.abs(wanted).max()


def test_a_gru_by_steps_gives_the_same_answers(made: Any) -> None:
    toy = next(toy for toy in TOYS if toy.name == "gru")
    inputs = lambda count: toy.inputs(count, torch.Generator().manual_seed(1))  # noqa: E731
    _, _, usual, _ = made(toy.model, inputs, OnnxRuntimeCpu(), "usual.onnx")
    path, covered, given, wanted = made(toy.model, inputs, OnnxRuntimeCpu(gru="steps"))
    assert all(row.int8 for label, row in covered.items() if label.endswith(":gru"))
    assert np.abs(given - wanted).max() <= 0.02 * np.abs(wanted).max()
    assert np.abs(given - usual).max() <= 0.02 * np.abs(wanted).max()
    scans = [node for node in onnx.load(str(path)).graph.node if node.op_type == "Scan"]
    assert [len(scan.input) for scan in scans] == [2, 2]


def rewritten(target: Any, *names: str) -> Any:
    """The target without some of its rewrites."""

    class Other(type(target)):  # type: ignore[misc]
        def _rewrites(self, model: Any) -> Any:
            return [one for one in super()._rewrites(model) if getattr(one, "__name__", "") not in names]

    return Other()


def test_a_first_conv_of_three_channels_is_padded_to_four_with_the_same_bits(made: Any) -> None:
    net, images = partial(Separable, 3), partial(spectra, channels=3)
    path, covered, given, _ = made(net, images, OnnxRuntimeCpu())
    other = made(net, images, rewritten(OnnxRuntimeCpu(), "pad_channels"), "plain.onnx")
    assert np.array_equal(given, other[2])
    assert covered["stem:conv"].kernel == "QLinearConv"
    graphs = [onnx.load(str(one)).graph for one in (path, other[0])]
    assert [sum(node.op_type == "Pad" for node in graph.node) for graph in graphs] == [1, 0]


def test_tables_between_integers_are_stored_on_the_grid_behind_them_with_the_same_bits(made: Any) -> None:
    path, covered, given, _ = made(Looked, rows, OnnxRuntimeCpu())
    other = made(Looked, rows, rewritten(OnnxRuntimeCpu(), "requantize_tables"), "plain.onnx")
    assert np.array_equal(given, other[2])
    assert covered["first:embedding"].int8
    assert covered["first:embedding"].weight_bytes == 50 * 16
    graphs = [onnx.load(str(one)).graph for one in (path, other[0])]
    counts = [sum(node.op_type == "QuantizeLinear" for node in graph.node) for graph in graphs]
    assert counts[1] - counts[0] == 2


def test_the_lstm_has_a_multiple_of_four_units(made: Any) -> None:
    toy = next(toy for toy in TOYS if toy.name == "lstm")
    inputs = lambda count: toy.inputs(count, torch.Generator().manual_seed(1))  # noqa: E731
    path, _, given, wanted = made(toy.model, inputs, OnnxRuntimeCpu())
    (node,) = [one for one in onnx.load(str(path)).graph.node if one.op_type == "DynamicQuantizeLSTM"]
    assert next(item.i for item in node.attribute if item.name == "hidden_size") == 12  # 8 units and two pins
    assert np.abs(given - wanted).max() <= 0.02 * np.abs(wanted).max()
