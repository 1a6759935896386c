"""A relu is merged into the fake-quantizer behind it, changes nothing, and comes back at conversion."""

import torch
from torch import nn

from kdq_core.api import MinMaxFakeQuantize, Quantizer
from kdq_core.quantization.capture import capture
from kdq_core.quantization.convert import convert
from kdq_core.quantization.prepare import RELU, prepare, set_phase
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu


class Apart(MinMaxFakeQuantize):
    def forward(self, x):
        return super().forward(x)


class MergingQat(Quantizer):
    def fake_quantizer(self, place):
        return MinMaxFakeQuantize(place)


class ApartQat(Quantizer):
    def fake_quantizer(self, place):
        return Apart(place)


def prepared(quantizer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    graph = capture(model, (torch.randn(2, 1, 8, 8),))
    return prepare(graph, OnnxRuntimeCpu(reduce_range="on").places(graph), quantizer)


def relus(model):
    return [node.name for node in model.graph.nodes if node.target == RELU]


def test_a_merged_relu_changes_no_output_and_no_gradient():
    models = prepared(MergingQat()), prepared(ApartQat())
    assert [relus(model) for model in models] == [[], ["relu"]]  # one's own forward knows of no merged relu
    x, results = torch.randn(16, 1, 8, 8), []
    for model in models:
        y = model(x)
        y.square().mean().backward()
        results.append((y, model.state_dict(), [p.grad for p in model.parameters()]))
    (y, state, grads), (y2, state2, grads2) = results
    assert torch.equal(y, y2)
    assert all(torch.equal(value, state2[name]) for name, value in state.items())
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-8) for a, b in zip(grads, grads2, strict=True))


def test_the_relu_is_back_in_the_converted_model_under_its_name():
    model = prepared(MergingQat())
    x = torch.randn(16, 1, 8, 8)
    model(x)
    set_phase(model, observe=False, quantize=True, freeze_batch_norm=True)
    converted = convert(model)
    assert relus(converted) == ["relu"]
    assert relus(model) == []
    with torch.no_grad():
        assert torch.allclose(converted(x), model.eval()(x), atol=1e-2)


def test_a_relu_still_cuts_while_nothing_is_rounded():
    model = prepared(MergingQat()).eval()
    set_phase(model, observe=False, quantize=False, freeze_batch_norm=True)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(model(x), plain(x), atol=1e-6)
