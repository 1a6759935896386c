"""Batch norm behind a linear layer on `[B, L, C]` is over L: it is not the layer's own, and stays an operator."""

import numpy as np
import pytest
import torch
from torch import nn

from kdq_core.api import Plugin
from kdq_core.quantization.capture import capture
from kdq_core.quantization.convert import convert, output_scales
from kdq_core.quantization.layers import own_norm
from kdq_core.quantization.placing import placed
from kdq_core.quantization.prepare import prepare, set_phase
from kdq_core.recipe.spec import QuantizeSpec
from kdq_quantizers.dynamic import Dynamic
from kdq_quantizers.minmax_qat import MinMaxQat
from kdq_quantizers.weight_only import WeightOnly
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu
from kdq_targets.openvino_cpu import OpenVinoCpu


class Steps(nn.Module):
    """`[B, L, 8]`: batch norm over the steps, whose statistics and gains are far apart."""

    def __init__(self, steps, channels):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(8, channels), nn.BatchNorm1d(steps), nn.Linear(steps * channels, 5)
        with torch.no_grad():
            self.norm.weight.copy_(torch.linspace(-0.5, 3, steps))
            self.norm.bias.copy_(torch.linspace(-2, 2, steps))
            self.norm.running_mean.copy_(torch.linspace(1, -1, steps))

    def forward(self, x):
        return self.head(self.norm(self.first(x)).relu().flatten(1))


def shipped(steps, channels, quantizer, target, bits=8):
    torch.manual_seed(0)
    model, x = Steps(steps, channels), torch.randn(256, steps, 8)
    graph = capture(model, (x[:2],))
    spec = QuantizeSpec(weights=bits, activations=bits, edges=2)
    prepared = prepare(graph, placed(graph, target, quantizer, spec).places, quantizer, round_bias=bits < 8).eval()
    with torch.no_grad():
        prepared(x)
        set_phase(prepared, observe=False, quantize=True, freeze_batch_norm=True)
        simulated, converted = prepared(x).numpy(), convert(prepared)
        return graph, x, converted, simulated, converted(x).numpy()


ONNXRUNTIME, OPENVINO = OnnxRuntimeCpu(reduce_range="on"), OpenVinoCpu(reduce_range="on")


@pytest.mark.parametrize(
    ("quantizer", "bits", "channels", "target"),
    [
        (MinMaxQat(), 8, 6, ONNXRUNTIME), (MinMaxQat(), 8, 7, ONNXRUNTIME), (MinMaxQat(), 8, 6, OPENVINO),
        (MinMaxQat(), 4, 6, ONNXRUNTIME), (Dynamic(), 8, 6, ONNXRUNTIME), (WeightOnly(), 8, 6, ONNXRUNTIME),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Plugin) else str(value),
)  # fmt: skip
def test_a_norm_over_the_steps_is_not_folded_and_the_file_is_right(quantizer, bits, channels, target, tmp_path):
    graph, x, converted, simulated, integers = shipped(6, channels, quantizer, target, bits)
    lsb = output_scales(converted)[0] or np.abs(integers).max() / 255
    assert np.abs(integers - simulated).max() <= 1.01 * lsb
    assert "norm" in {str(node.target) for node in converted.graph.nodes if node.op == "call_module"}
    path = tmp_path / "model.onnx"
    target.export(converted, (x[:2],), path)
    (answers,) = target.session(path, threads=1).run((x.numpy(),))
    assert np.abs(answers - integers).max() <= 1.01 * lsb
    (row,) = (row for row in target.coverage(path, graph) if row.operator == "batch_norm")
    assert (row.path, row.reason) == ("norm", "no conv or linear directly in front of it can take it in")


@pytest.mark.parametrize(
    ("layer", "norm", "shape", "own"),
    [
        (nn.Linear(6, 5), nn.BatchNorm1d(5), (6,), True),
        (nn.Linear(6, 5), nn.BatchNorm1d(5), (5, 6), False),
        (nn.Conv1d(6, 5, 1), nn.BatchNorm1d(5), (6, 4), True),
        (nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5), (6, 4, 4), True),
        (nn.ReLU(), nn.BatchNorm1d(5), (5,), False),
    ],
)
def test_a_layers_own_norm_is_over_its_output_channels(layer, norm, shape, own):
    graph = capture(nn.Sequential(layer, norm), (torch.randn(2, *shape),))
    node = next(node for node in graph.graph.nodes if node.op == "call_function")
    found = own_norm(graph, node)
    assert (found is not None and found.target == "1") == own
