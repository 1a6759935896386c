"""Uneven levels, scales of groups, and ranges of the batch: the arithmetic, by hand and against NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdq_core.api import Grid, LevelsFakeQuantize, Place, Quantizer, StageError
from kdq_core.quantization.capture import capture
from kdq_core.quantization.convert import convert
from kdq_core.quantization.dynamic import RoundDynamically
from kdq_core.quantization.levels import round_to_levels
from kdq_core.quantization.ops import dequantize, dynamic_linear, measured_grid
from kdq_core.quantization.placing import narrow
from kdq_core.quantization.prepare import prepare
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu

WEIGHT = Place("w", "weight", "w", "int8", -63, 63, symmetric=True, axis=0, channels=2)


def test_a_place_of_few_bits_still_knows_what_the_kernels_take():
    assert WEIGHT.kernel_range == (-63, 63)
    low = narrow(WEIGHT, 3)
    assert (low.qmin, low.qmax, low.kernel_range) == (-4, 3, (-63, 63))
    assert narrow(low, 8).kernel_range == (-63, 63)
    assert replace(narrow(low, 5), bits=8) == replace(narrow(WEIGHT, 5), bits=8)
    activation = Place("a", "activation", "a", "uint8", 0, 255, symmetric=False)
    assert narrow(activation, 4).kernel_range == (0, 255)


def test_values_go_to_the_nearest_level_and_gradients_as_worked_out_by_hand():
    x = torch.tensor([[0.9, 2.6], [-9.0, 12.0]], requires_grad=True)
    scale = torch.tensor([1.0, 2.0], requires_grad=True)
    levels = torch.tensor([-4.0, 0.0, 1.0, 4.0], requires_grad=True)
    y = round_to_levels(x, scale, levels, 0, clip=True)
    assert y.tolist() == [[1.0, 4.0], [-8.0, 8.0]]  # 0.9 -> 1, 2.6 -> 4; -4.5 -> -4, 6 -> 4, times 2
    y.backward(torch.tensor([[1.0, 10.0], [100.0, 1000.0]]))
    assert x.grad.tolist() == [[1.0, 10.0], [0.0, 0.0]]
    assert scale.grad.tolist() == pytest.approx([(1 - 0.9) + 10 * (4 - 2.6), -400.0 + 4000.0])
    assert levels.grad.tolist() == [200.0, 0.0, 1.0, 10.0 + 2000.0]
    x.grad = None
    round_to_levels(x, scale.detach(), levels.detach(), 0, clip=False).sum().backward()
    assert x.grad.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_of_two_levels_equally_near_the_lower_one_is_taken():
    y = round_to_levels(torch.tensor([0.5, -2.0]), torch.tensor(1.0), torch.tensor([-4.0, 0.0, 1.0]), None, clip=True)
    assert y.tolist() == [0.0, -4.0]


def test_scales_of_groups_multiply_consecutive_parts_of_a_channel():
    rng = np.random.default_rng(0)
    q = rng.integers(-8, 8, (3, 8, 2, 2)).astype(np.int8)
    scale = rng.random((3, 4), dtype=np.float32)
    wide = np.stack([np.concatenate([q[c, 2 * g : 2 * g + 2] * scale[c, g] for g in range(4)]) for c in range(3)])
    given = dequantize(torch.tensor(q), torch.tensor(scale), None, 0, "")
    assert np.array_equal(given.numpy(), wide)
    grid = Grid(torch.tensor(scale), torch.zeros(3, 4, dtype=torch.int32), -8, 7, 0)
    assert np.array_equal((torch.tensor(q) * grid.spread(torch.tensor(q))).numpy(), wide)


@pytest.mark.parametrize("values", [(-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0)])
def test_the_measured_grid_is_that_of_dynamic_quantize_linear(values):
    low, high = np.float32(min(values[0], 0)), np.float32(max(values[1], 0))
    scale = (high - low) / np.float32(255) if high > low else np.float32(1)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    assert [float(value) for value in measured_grid(torch.tensor(values))] == [scale, zero]


def test_a_dynamic_linear_layer_computes_what_numpy_computes_in_integers():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((5, 3, 16)).astype(np.float32)
    w = rng.integers(-127, 128, (4, 16)).astype(np.int8)
    w_scale, bias = rng.random(4, dtype=np.float32), rng.standard_normal(4).astype(np.float32)
    scale = (x.max() - x.min()) / np.float32(255)
    zero = np.rint(-x.min() / scale)
    q = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64) - int(zero)
    expected = (q @ w.T.astype(np.int64)).astype(np.float32) * (scale * w_scale) + bias
    given = dynamic_linear(*(torch.tensor(value) for value in (x, w, w_scale, bias)), "")
    assert np.array_equal(given.numpy(), expected)
    rounded = RoundDynamically()(torch.tensor(x)).numpy()
    assert np.allclose(rounded, q * scale, rtol=0, atol=1e-6)
    simulated = F.linear(torch.tensor(rounded), torch.tensor(w * w_scale[:, None]), torch.tensor(bias))
    assert np.allclose(given.numpy(), simulated.numpy(), rtol=1e-5, atol=1e-3)


class TooMany(LevelsFakeQuantize):
    def observe(self, x):
        del x

    def levels(self):
        return torch.arange(-63.0, 64.0)

    def unit_scale(self):
        return torch.full((self.place.channels,), 0.01)


class Hands(Quantizer):
    activations = "none"

    def fake_quantizer(self, place):
        return TooMany(place)


def test_levels_may_use_the_kernels_range_but_not_be_more_than_the_bits_allow():
    torch.manual_seed(0)
    graph = capture(nn.Linear(64, 8), (torch.zeros(2, 64),))
    (place,) = (p for p in OnnxRuntimeCpu(reduce_range="on").places(graph) if p.role == "weight")
    assert convert(prepare(graph, (place,), Hands())).get_buffer("grids.linear_weight").abs().max() > 8
    with pytest.raises(StageError) as caught:
        convert(prepare(graph, (narrow(place, 4),), Hands()))
    assert str(caught.value) == ("the quantizer gives place 'weight' 25 levels; with 4 bits it can have 16 at most")
