"""Weights of few levels: packed in the file, decoded by the runtime, the same integers in the same kernels."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from kdq_core.api import Subject
from kdq_evaluators.size import Size
from kdq_targets.onnx_pack import pack, plan, turned_channels
from kdq_targets.onnx_unpack import digits, pack_digits, shipped
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu


def decoded(*weights, most_levels=128):
    """The file with the weights packed, and what the runtime decodes them to."""
    names = [f"w{index}" for index in range(len(weights))]
    nodes = [helper.make_node("Identity", [name], [f"y{name}"]) for name in names]
    pairs = list(zip(weights, names, strict=True))
    outputs = [helper.make_tensor_value_info(f"y{name}", TensorProto.INT8, weight.shape) for weight, name in pairs]
    constants = [numpy_helper.from_array(weight, name) for weight, name in pairs]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [], outputs, constants), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )
    pack(model.graph, most_levels)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return model, session.run(None, {})


def random(levels, shape, seed=0):
    return np.random.default_rng(seed).choice(np.array(levels, dtype=np.int8), shape)


def test_digits_by_hand():
    np.testing.assert_array_equal(digits(4)[0b11_10_01_00], [0, 1, 2, 3])
    np.testing.assert_array_equal(digits(3)[2 + 3 * 1 + 81 * 2], [2, 1, 0, 0, 2])
    np.testing.assert_array_equal(pack_digits(np.array([1, 2, 3, 0, 2]), 4), [1 + 8 + 48, 2])
    np.testing.assert_array_equal(pack_digits(np.array([15, 1, 7]), 16), [31, 7])


@pytest.mark.parametrize(
    ("levels", "bits"),
    [
        ([-1, 1], 1),
        ([-1, 0, 1], 8 / 5),
        ([-2, -1, 0, 1], 2),
        ([-90, -11, 3, 64], 2),
        (range(-3, 3), 8 / 3),
        (range(-4, 4), 3),
        ([-64, -32, -16, 0, 1, 2, 4], 3),
        (range(-8, 8), 4),
        (range(-127, 127, 17), 4),
        (range(-16, 16), 5),
        (range(-127, 127, 8), 5),
        (range(-31, 32), 6),
        (range(-64, 64), 7),
    ],
)
@pytest.mark.parametrize("shape", [(128, 32, 3, 3), (123, 331)])
def test_the_runtime_gives_the_integers_back_from_so_many_bits(levels, bits, shape):
    weight = random(levels, shape)
    model, (given,) = decoded(weight)
    np.testing.assert_array_equal(given, weight)
    assert given.dtype == np.int8
    size = shipped(model.graph)["w0"]
    assert 0 <= size - weight.size * bits / 8 < 4


def test_channels_that_batch_norm_turned_cost_a_byte_each():
    weight = random(range(-8, 8), (40, 16, 3, 3))
    weight[::3] = -weight[::3]
    assert len(np.unique(weight)) == 17
    turned = turned_channels(weight)
    np.testing.assert_array_equal(turned == turned[0], np.arange(40) % 3 == 0)
    model, (given,) = decoded(weight)
    np.testing.assert_array_equal(given, weight)
    assert shipped(model.graph)["w0"] == weight.size // 2 + 40
    odd = random(range(-8, 8), (201, 81))  # a channel fills no whole number of bytes
    odd[::2] = -odd[::2]
    model, (given,) = decoded(odd)
    np.testing.assert_array_equal(given, odd)
    assert shipped(model.graph)["w0"] == -(-odd.size // 2) + -(-odd.size // 8)


def test_weights_share_their_tables():
    one, two = random(range(-8, 8), (64, 64)), random(range(-8, 8), (64, 96), seed=1)
    three = random(range(-120, 121, 16), (64, 96))
    model, given = decoded(one, two, three)
    for weight, back in zip((one, two, three), given, strict=True):
        np.testing.assert_array_equal(back, weight)
    assert sum(tensor.dims == [256, 2] for tensor in model.graph.initializer) == 1
    assert sum(tensor.dims == [16] for tensor in model.graph.initializer) == 2


def test_what_would_not_become_smaller_stays():
    for weight in (random([-1, 0, 1], (20, 20)), random(range(-127, 128), (64, 64)), random([-1, 1], 9000)):
        model, (given,) = decoded(weight)
        assert [tensor.name for tensor in model.graph.initializer] == ["w0"]
        np.testing.assert_array_equal(given, weight)
    seven = numpy_helper.from_array(random(range(-63, 64), (64, 64)), "w")
    assert plan(seven, 64) is None
    assert plan(seven, 128).bases == (16, 4, 2)


class Convs(nn.Module):
    """Enough weights to be worth packing; batch norms with factors of both signs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 24, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)) for _ in range(4)
        )
        for conv in self.body:
            nn.init.normal_(conv[1].weight)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for conv in self.body:
            x = F.relu(conv(x))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def convs(ship):
    torch.manual_seed(0)
    return ship(Convs(), (1, 8, 8), OnnxRuntimeCpu(reduce_range="on"), weights=2)


def test_the_packed_file_runs_the_same_kernels_and_gives_the_same_answers(convs, both, tmp_path):
    unpacked = tmp_path / "unpacked.onnx"
    plain = OnnxRuntimeCpu(reduce_range="on", pack=False)
    plain.export(convs.converted, convs.example, unpacked)
    x = np.random.default_rng(0).normal(size=(100, 1, 8, 8)).astype(np.float32)
    answers = [plain.session(path, threads=1).run((x,))[0] for path in (convs.path, unpacked)]
    np.testing.assert_array_equal(*answers)
    assert both(convs).max() <= 1.01
    packed_rows, rows = (plain.coverage(path, convs.graph) for path in (convs.path, unpacked))
    assert [row.kernel for row in packed_rows] == [row.kernel for row in rows]
    assert all(row.int8 for row in packed_rows)
    weight = 24 * 24 * 9
    assert [row.weight_bytes for row in rows] == [24 * 9, *[weight] * 4, 0, 24 * 5]
    assert [row.weight_bytes for row in packed_rows] == [24 * 9, *[-(-weight // 5)] * 4, 0, 24 * 5]  # -1, 0, 1


def test_the_size_of_packed_weights_is_what_is_shipped(convs, tmp_path):
    unpacked = tmp_path / "unpacked.onnx"
    OnnxRuntimeCpu(pack=False).export(convs.converted, convs.example, unpacked)
    subjects = [Subject("int8", path, convs.target, 1) for path in (convs.path, unpacked)]
    packed, plain = ({m.name: m.value for m in Size().evaluate(s, s, lambda: ())} for s in subjects)
    assert packed["parameters"] == plain["parameters"]
    assert packed["bytes"] == convs.path.stat().st_size < plain["bytes"] - 0.7 * 4 * 24 * 24 * 9
    digits_of_bytes, levels, layers = 243 * 5, 3, 4 * -(-24 * 24 * 9 // 5)
    assert packed["weight_bytes_int8"] == 24 * 9 + 24 * 5 + layers + digits_of_bytes + levels
    assert plain["weight_bytes_int8"] == 24 * 9 + 24 * 5 + 4 * 24 * 24 * 9


class Sequence(nn.Module):
    """Its second GRU is no first or last layer, so that it has the bits asked for."""

    def __init__(self):
        super().__init__()
        self.stem, self.gru = nn.Linear(8, 64), nn.GRU(64, 64, batch_first=True, bidirectional=True)
        self.head = nn.Linear(128, 5)

    def forward(self, x):
        return self.head(self.gru(F.relu(self.stem(x)))[0].mean(1))


def test_both_matrices_of_a_gru_are_packed(ship, both, tmp_path):
    torch.manual_seed(0)
    gru = ship(Sequence(), (7, 8), OnnxRuntimeCpu(reduce_range="on"), weights=2)
    unpacked = tmp_path / "unpacked.onnx"
    plain = OnnxRuntimeCpu(reduce_range="on", pack=False)
    plain.export(gru.converted, gru.example, unpacked)
    x = np.random.default_rng(0).normal(size=(50, 7, 8)).astype(np.float32)
    answers = [plain.session(path, threads=1).run((x,))[0] for path in (gru.path, unpacked)]
    np.testing.assert_array_equal(*answers)
    rows = [next(r for r in plain.coverage(path, gru.graph) if r.operator == "gru") for path in (gru.path, unpacked)]
    assert [(row.kernel, row.int8) for row in rows] == [("Scan", True)] * 2
    matrices = 2 * 2 * 3 * 64 * 64
    assert rows[1].weight_bytes == matrices
    assert rows[0].weight_bytes <= matrices / 4 + 8
    assert gru.path.stat().st_size < unpacked.stat().st_size - 0.7 * matrices
