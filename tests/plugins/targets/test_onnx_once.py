"""A graph that is traced once gives the same file as one that is traced twice."""

from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdq_core.quantization.capture import capture
from kdq_core.quantization.convert import convert
from kdq_core.quantization.prepare import prepare, set_phase
from kdq_core.quantization.tracing import export_program
from kdq_quantizers.minmax_qat import MinMaxQat
from kdq_targets import onnx_export
from kdq_targets.onnx_once import needs_one_trace
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu

CONVS = {1: (nn.Conv1d, nn.BatchNorm1d), 2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}
POOLS = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


class Net(nn.Module):
    """Layers of a conv net over one to three axes."""

    def __init__(self, axes, pooled, affine=True):
        super().__init__()
        conv, norm = CONVS[axes]
        self.axes, self.pooled = axes, pooled
        self.first, self.norm = conv(2, 8, 3, padding=1, bias=False), norm(8)
        self.grouped, self.plain = conv(8, 8, 3, stride=2, padding=1, groups=4), norm(8, affine=affine)
        self.gate, self.drop = conv(8, 8, 1), nn.Dropout(0.2)
        self.hidden, self.head = nn.Linear(8 * pooled**axes, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        x = self.plain(self.grouped(x))
        x = F.relu(x + self.gate(x)) * torch.sigmoid(self.gate(x)) * 0.5 + 1
        x = self.drop(POOLS[self.axes](x, self.pooled).flatten(1))
        return self.head(F.relu(self.hidden(x), inplace=False))


def traces(model, example):
    return 1 if needs_one_trace(export_program(model.eval(), example).graph) else 2


def files(model, example, folder, **options):
    """The float file and the int8 file."""
    target = OnnxRuntimeCpu(reduce_range="on", **options)
    graph = capture(model, example)
    prepared = prepare(graph, target.places(graph), MinMaxQat()).eval()
    set_phase(prepared, observe=True, quantize=False, freeze_batch_norm=True)
    prepared(*example)
    set_phase(prepared, observe=False, quantize=True, freeze_batch_norm=True)
    for name, one in (("float", model), ("int8", convert(prepared))):
        target.export(one, example, folder / f"{name}.onnx")
    return [(folder / f"{name}.onnx").read_bytes() for name in ("float", "int8")]


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("pooled", [1, pytest.param(2, marks=pytest.mark.rare)])
@pytest.mark.parametrize("options", [{}, pytest.param({"weight_only": ("conv",)}, marks=pytest.mark.rare)])
def test_one_trace_gives_the_same_bytes_as_two(axes, pooled, options, tmp_path):
    torch.manual_seed(0)
    model, example = Net(axes, pooled).eval(), (torch.randn(2, 2, *[8] * axes),)
    assert traces(model, example) == 1
    once = files(model, example, tmp_path, **options)
    with mock.patch.object(onnx_export, "needs_one_trace", return_value=False):
        assert files(model, example, tmp_path, **options) == once


class Pooled(nn.Module):
    def forward(self, x):
        return F.max_pool2d(x, 2)


class FlatBatch(nn.Module):
    def forward(self, x):
        return x.flatten(0, 1)


@pytest.mark.parametrize(
    "model", [Pooled(), FlatBatch(), Net(2, 1, affine=False), nn.BatchNorm2d(2, track_running_stats=False)]
)
def test_a_graph_with_any_other_operator_is_traced_twice(model):
    assert traces(model, (torch.randn(2, 2, 8, 8),)) == 2
