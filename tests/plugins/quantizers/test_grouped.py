"""Scales of groups, and the files of weight-only and dynamic."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdq_core.api import Place, StageError
from kdq_core.quantization.capture import capture
from kdq_core.quantization.convert import convert, output_scales
from kdq_core.quantization.placing import narrow, placed
from kdq_core.quantization.prepare import prepare, set_phase
from kdq_core.recipe.spec import QuantizeSpec
from kdq_quantizers.dynamic import Dynamic
from kdq_quantizers.grouped import groups_of
from kdq_quantizers.weight_only import WeightOnly
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu

TARGET = OnnxRuntimeCpu(reduce_range="on")
WEIGHT = Place(
    "w", "weight", "w", "int8", -127, 127, symmetric=True, axis=0, channels=3, operator="linear", shape=(3, 12)
)  # fmt: skip


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.hidden, self.head = nn.Linear(128, 32), nn.Linear(32, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return self.head(F.relu(self.hidden(x.flatten(1))))


def test_scales_of_groups_are_those_of_numpy():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((3, 12)).astype(np.float32)
    module = WeightOnly(group=4).fake_quantizer(narrow(WEIGHT, 4))
    with pytest.raises(StageError, match="place 'w' has seen no data"):
        module.grid()
    y = module(torch.tensor(w))
    parts = w.reshape(3, 3, 4)
    scale = np.abs(parts).max(2) / np.float32(7)
    q = np.clip(np.rint(parts / scale[..., None]), -8, 7)
    assert np.array_equal(module.grid().scale.numpy(), scale)
    assert np.array_equal(module.integers(torch.tensor(w)).numpy(), q.reshape(3, 12))
    assert np.array_equal(y.detach().numpy(), (q * scale[..., None]).reshape(3, 12))
    with pytest.raises(StageError, match="place 'w' saw a value that is not finite"):
        module(torch.full((3, 12), float("inf")))


@pytest.mark.parametrize(
    ("shape", "operator", "size", "groups"),
    [
        ((3, 12), "linear", 4, 3), ((3, 12), "linear", 5, 1), ((3, 12), "linear", None, 1), ((3, 12), "linear", 12, 1),
        ((3, 8, 3, 3), "conv", 4, 2), ((3, 1, 3, 3), "conv", 4, 1), ((3, 12), "lstm", 4, 1), (None, "linear", 4, 1),
    ],
)  # fmt: skip
def test_groups_come_out_even_or_are_none(shape, operator, size, groups):
    place = Place("w", "weight", "w", "int8", -7, 7, True, axis=0, channels=3, operator=operator, shape=shape)
    assert groups_of(place, size) == groups


def shipped(quantizer, folder, **spec):
    """The prepared model, the converted one, the file and its coverage."""
    torch.manual_seed(0)
    model = Net()
    nn.init.normal_(model.norm.weight)
    example = (torch.randn(2, 1, 10, 10),)
    graph = capture(model, example)
    places = placed(graph, TARGET, quantizer, QuantizeSpec(**spec)).places
    prepared = prepare(graph, places, quantizer)
    set_phase(prepared, observe=True, quantize=False, freeze_batch_norm=True)
    prepared.eval()(torch.randn(16, 1, 10, 10))
    set_phase(prepared, observe=False, quantize=True, freeze_batch_norm=True)
    converted = convert(prepared)
    TARGET.export(converted, example, folder / "m.onnx")
    rows = {row.path: row for row in TARGET.coverage(folder / "m.onnx", graph) if row.macs}
    return prepared, converted, folder / "m.onnx", rows


@torch.no_grad()
@pytest.mark.parametrize("group", [None, 16])
def test_weights_alone_in_integers_give_the_simulations_answers_in_float_kernels(group, tmp_path):
    prepared, converted, path, rows = shipped(WeightOnly(group=group), tmp_path, weights=4, edges=4)
    x = torch.randn(32, 1, 10, 10)
    given = TARGET.session(path, threads=1).run((x.numpy(),))[0]
    assert np.allclose(given, converted(x).numpy(), atol=1e-5)
    assert np.allclose(given, prepared(x).numpy(), atol=1e-5)
    assert output_scales(converted) == (None,)
    assert [row.int8 for row in rows.values()] == [False] * 3
    assert rows["hidden"].reason.startswith("weight-only: stored as integers, computed by the runtime's float ")
    assert rows["conv"].reason.startswith("weight-only: ")
    floats = [t for t in onnx.load(str(path)).graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert max(int(np.prod(t.dims)) for t in floats) == (256 if group else 32)  # 32 channels of 128 / 16 scales
    scale = converted.get_buffer("grids.linear_weight_scale")
    assert tuple(scale.shape) == (32, 8 if group else 1)
    assert len(torch.unique(converted.get_buffer("grids.linear_weight"))) <= 16
    assert path.stat().st_size < 7_000  # 4,400 weights at half a byte, scales, and how to decode them


@torch.no_grad()
def test_linear_layers_with_ranges_of_the_batch_are_int8_and_convs_say_why_not(tmp_path):
    prepared, converted, path, rows = shipped(Dynamic(), tmp_path)
    x = torch.randn(32, 1, 10, 10)
    session = TARGET.session(path, threads=1)
    given = session.run((x.numpy(),))[0]
    assert np.allclose(given, converted(x).numpy(), atol=1e-5)
    assert np.allclose(given, prepared(x).numpy(), atol=1e-4)
    assert {path: (row.int8, row.kernel) for path, row in rows.items() if path != "conv"} == {
        "hidden": (True, "DynamicQuantizeMatMul"), "head": (True, "DynamicQuantizeMatMul"),
    }  # fmt: skip
    assert not rows["conv"].int8
    assert rows["conv"].reason.startswith("dynamic: measuring ranges at each call would make it slower than")
    beside = x.clone()
    beside[1:] *= 20  # the card: an answer depends on the batch it comes in
    assert not np.allclose(session.run((beside.numpy(),))[0][0], given[0], atol=1e-4)


def test_a_model_without_linear_layers_is_told_that_dynamic_ranges_serve_none():
    graph = capture(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten()), (torch.randn(2, 1, 5, 5),))
    with pytest.raises(StageError) as caught:
        placed(graph, TARGET, Dynamic(), QuantizeSpec())
    assert str(caught.value) == (
        "ranges measured for each batch serve linear layers, and the model has none that can be quantized; "
        "use a quantizer with static ranges, such as 'minmax-qat'"
    )
