"""Activations of fewer than 8 bits keep their clip, and the kernels stay int8."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdq_core.api import StageError, dequantize, quantize
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu


class Residual(nn.Module):
    """A signed conv output that is added, max pooling and flatten between quantized layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.one = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.hidden, self.head = nn.Linear(128, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.max_pool2d(x + self.one(x), 2)
        return self.head(F.relu(self.hidden(x.flatten(1))))


@pytest.fixture(scope="module", params=[2, 4])
def residual(request, ship):
    torch.manual_seed(0)
    target = OnnxRuntimeCpu(reduce_range="on")
    return ship(Residual(), (1, 8, 8), target, weights=request.param, activations=request.param)


def test_the_file_clips_as_the_converted_model_does(residual, both):
    assert both(residual).max() == 0


def test_the_kernels_stay_int8(residual):
    rows = residual.target.coverage(residual.path, residual.graph)
    assert [row.kernel for row in rows] == ["QLinearConv", "QLinearConv", "QLinearAdd", "QGemm", "QGemm"]
    assert all(row.int8 for row in rows)


def test_each_low_bit_quantizer_has_one_clip_and_moved_values_none(residual):
    nodes = onnx.load(str(residual.path)).graph.node
    low = [place for place in residual.places if place.role == "activation" and place.bits < 8]
    assert sum(place.shared_with is not None for place in low) == 2
    assert sum(node.op_type == "Clip" for node in nodes) == sum(place.shared_with is None for place in low)
    assert sum(node.op_type == "QuantizeLinear" for node in nodes) == sum(
        p.role == "activation" for p in residual.places
    )


CASES = (((0, 15), (0, 15)), ((0, 15), (0, 7)), ((0, 255), (0, 15)), ((3, 12), (3, 12)), ((0, 15), (0, 255)))
"""Limits of two quantizers of one scale, the second behind a flatten."""


class Grids(nn.Module):
    def __init__(self, cases):
        super().__init__()
        self.cases = cases
        self.scale, self.zero = nn.Buffer(torch.tensor(0.5)), nn.Buffer(torch.tensor(8, dtype=torch.uint8))

    def forward(self, x):
        return tuple(self.twice(x, *case) for case in self.cases)

    def twice(self, x, *limits):
        for low, high in limits:
            q = quantize(x, self.scale, self.zero, low, high, "")
            x = dequantize(q, self.scale, self.zero, 0, "").flatten(1)
        return x


def test_a_clip_is_left_out_only_where_the_same_one_came_before(tmp_path):
    path = tmp_path / "grids.onnx"
    OnnxRuntimeCpu().export(Grids(CASES), (torch.randn(2, 6),), path)
    clips = [node for node in onnx.load(str(path)).graph.node if node.op_type == "Clip"]
    assert len(clips) == 1 + 1 + 1 + 1 + 0  # the first one is the same in three cases
    x = np.linspace(-20, 160, 600, dtype=np.float32).reshape(100, 6)
    for case, given in zip(CASES, OnnxRuntimeCpu().session(path, threads=1).run((x,)), strict=True):
        expected = x
        for low, high in case:
            expected = (np.clip(np.rint(expected / 0.5) + 8, low, high) - 8) * 0.5
        np.testing.assert_array_equal(given, expected)


def test_limits_beyond_the_integer_type_are_refused(tmp_path):
    with pytest.raises(StageError, match=r"ONNX: the range -1..15 of '.*' is not within its integers 0..255"):
        OnnxRuntimeCpu().export(Grids((((-1, 15), (0, 15)),)), (torch.randn(2, 6),), tmp_path / "bad.onnx")
