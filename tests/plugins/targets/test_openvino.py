"""Files written for OpenVINO: what runs, what it says of itself, and that it is the simulation."""

import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from kdq_core.api import StageError
from kdq_core.quantization.capture import capture
from kdq_core.testing import TOYS, check_quantizer
from kdq_quantizers.minmax_qat import MinMaxQat
from kdq_targets.onnx_pack import pack
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu
from kdq_targets.openvino_cpu import OpenVinoCpu
from kdq_targets.openvino_forms import keep_means, part_halves, separate_sums
from kdq_targets.openvino_session import OpenVinoSession


class Residual(nn.Module):
    """A signed conv output that is added, pooling over one axis, a layer that can stay float."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(1, 24, 3, padding=1)
        self.one = nn.Sequential(nn.Conv1d(24, 48, 3, padding=1, bias=False), nn.BatchNorm1d(48))
        self.two = nn.Sequential(nn.Conv1d(48, 48, 3, padding=1, bias=False), nn.BatchNorm1d(48))
        self.head = nn.Linear(48, 5)

    def forward(self, x):
        x = F.relu(self.one(F.relu(self.stem(x))))
        x = F.relu(x + self.two(x))
        return self.head(x.mean(2))


@pytest.fixture(scope="module")
def residual(ship):
    torch.manual_seed(0)
    return ship(Residual(), (1, 16), OpenVinoCpu(reduce_range="on"), weights=4, activations=3)


def test_the_packed_low_bit_file_gives_the_answers_of_the_converted_model(residual, both):
    assert any(tensor.data_type == TensorProto.UINT8 and tensor.dims == [48 * 48 * 3 // 2]
               for tensor in onnx.load(str(residual.path)).graph.initializer)  # fmt: skip
    assert both(residual).max() == 0


def test_coverage_is_read_from_the_runtimes_own_graph(residual):
    rows = residual.target.coverage(residual.path, residual.graph)
    assert [(row.path, row.operator, row.kernel) for row in rows] == [
        ("stem", "conv", "Convolution_u8"), ("one.0", "conv", "Convolution_u8"), ("two.0", "conv", "Convolution_u8"),
        ("add", "add", "Eltwise_u8"), ("mean", "pool", "Reduce_u8"), ("head", "linear", "FullyConnected_u8"),
    ]  # fmt: skip
    assert all(row.int8 and row.reason == "" for row in rows)
    assert [row.weight_bytes for row in rows] == [72, 24 * 48 * 3 // 2, 48 * 48 * 3 // 2, 0, 0, 240]


def test_a_float_file_has_no_int8_kernel(residual, tmp_path):
    path = tmp_path / "float.onnx"
    residual.target.export(Residual(), residual.example, path)
    rows = residual.target.coverage(
        path, residual.graph, keep_float=("stem:conv", "one.0:conv", "two.0:conv", "head:linear")
    )
    assert {row.kernel for row in rows if row.operator in ("conv", "linear")} == {
        "Convolution_f32",
        "FullyConnected_f32",
    }
    assert not any(row.int8 for row in rows)
    assert {row.reason for row in rows if row.operator == "linear"} == {"left in float by a rule of the recipe"}


def test_onnx_runtime_reads_the_same_file_and_gives_the_same_answers(residual):
    x = np.random.default_rng(0).normal(size=(50, 1, 16)).astype(np.float32)
    (ours,) = residual.target.session(residual.path, threads=1).run((x,))
    (theirs,) = OnnxRuntimeCpu().session(residual.path, threads=1).run((x,))
    np.testing.assert_array_equal(ours, theirs)
    assert residual.target.signature(residual.path) == OnnxRuntimeCpu().signature(residual.path)


@pytest.mark.isa
def test_the_quantizer_kit_passes():
    toy = next(toy for toy in TOYS if toy.name == "inverted residual")
    check_quantizer(MinMaxQat(), target=OpenVinoCpu(reduce_range="on"), bits=(4, 4), toys=(toy,))


def test_recurrent_layers_stay_float():
    toy = next(toy for toy in TOYS if toy.name == "lstm")
    graph = capture(toy.model(), toy.inputs(2, torch.Generator()))
    assert {place.operator for place in OpenVinoCpu().places(graph) if place.role == "weight"} == {"linear"}
    assert {place.operator for place in OnnxRuntimeCpu().places(graph) if place.role == "weight"} == {"linear", "lstm"}


def model(nodes, shape, outputs=("y",), **constants):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [given], values, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def answers(proto, x, folder):
    path = folder / "model.onnx"
    onnx.save(proto, path)
    return OpenVinoSession(path).run((x,))


def quantized(value, name, scale, zero="z", clip=""):
    nodes = [helper.make_node("QuantizeLinear", [value, scale, zero], [f"{name}_q"])]
    if clip:
        nodes.append(helper.make_node("Clip", [f"{name}_q", "", clip], [f"{name}_c"]))
    integers = nodes[-1].output[0]
    return [*nodes, helper.make_node("DequantizeLinear", [integers, scale, zero], [name])]


@pytest.mark.parametrize("zero", [0, 128])
@pytest.mark.parametrize(("kind", "axes", "keep"), [("GlobalAveragePool", None, 1), ("ReduceMean", [2], 0),
                                                    ("ReduceSum", [1], 1), ("ReduceSum", [1], 0)])  # fmt: skip
def test_means_and_sums_are_right(tmp_path, kind, axes, keep, zero):
    """OpenVINO's own are up to 900 steps off, or memory that nothing has written; a tie of rounding is one step."""
    inputs, constants = ["d"], {} if axes is None else {"axes": np.array(axes)}
    node = helper.make_node(kind, [*inputs, *constants], ["m"], **({} if axes is None else {"keepdims": keep}))
    constants |= {"s": np.float32(0.05), "s2": np.float32(0.04), "z": np.uint8(zero)}
    proto = model([*quantized("x", "d", "s"), node, *quantized("m", "y", "s2")], (8, 16), **constants)
    proto.graph.value_info.append(helper.make_tensor_value_info("d", TensorProto.FLOAT, ["batch", 8, 16]))
    keep_means(proto.graph)
    x = np.random.default_rng(0).normal(size=(20, 8, 16)).astype(np.float32) * 0.3
    wide = (np.clip(np.rint(x / np.float32(0.05)) + zero, 0, 255) - zero) * 0.05
    mean = (wide.sum if kind == "ReduceSum" else wide.mean)(tuple(axes or [2]), keepdims=bool(keep))
    expected = (np.clip(np.rint(mean / 0.04) + zero, 0, 255) - zero) * 0.04
    assert np.abs(answers(proto, x, tmp_path)[0] - expected).max() < 0.041


@pytest.mark.parametrize("steps", [7, 15, 255])
def test_the_middle_of_a_sigmoid_rounds_as_in_the_simulation(tmp_path, steps):
    scale = np.float32(1) / np.float32(steps)
    nodes = [helper.make_node("Sigmoid", ["x"], ["g"]), *quantized("g", "y", "s")]
    proto = model(nodes, (4,), s=scale, z=np.uint8(0))
    part_halves(proto.graph)
    (given,) = answers(proto, np.zeros((2, 4), dtype=np.float32), tmp_path)
    np.testing.assert_array_equal(np.rint(given / scale), np.rint(np.float32(0.5) / scale))


def test_the_clip_of_a_conv_that_is_added_is_kept(tmp_path):
    nodes = [
        *quantized("x", "d", "s"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wide"]),
        helper.make_node("Conv", ["d", "wide"], ["c"]),
        *quantized("c", "e", "s", "z7", "high"),
        helper.make_node("Add", ["e", "d"], ["a"]),
        *quantized("a", "y", "s"),
    ]
    weight = np.random.default_rng(1).integers(-63, 64, (8, 8, 1, 1)).astype(np.int8)
    grid = {"s": np.float32(0.25), "z": np.uint8(128), "z7": np.uint8(7), "high": np.uint8(15)}
    proto = model(nodes, (8, 4, 4), w=weight, ws=np.float32(0.0611), wz=np.int8(0), **grid)
    separate_sums(proto.graph, every=False)
    assert sum(node.op_type == "LeakyRelu" for node in proto.graph.node) == 1
    x = np.random.default_rng(0).integers(-20, 20, (30, 8, 4, 4)).astype(np.float32) * 0.25
    conv = np.einsum("oi,bihw->bohw", weight[:, :, 0, 0] * 0.0611, x)
    low = (np.clip(np.rint(conv / 0.25) + 7, 0, 15) - 7) * 0.25
    np.testing.assert_array_equal(answers(proto, x, tmp_path)[0], low + x)


def test_the_runtime_decodes_packed_weights_exactly(tmp_path):
    rng = np.random.default_rng(0)
    weights = [
        rng.choice(np.array(levels, dtype=np.int8), (128, 320))
        for levels in ([-1, 0, 1], range(-2, 2), range(-4, 4), range(-127, 128, 17), range(-16, 16), range(-64, 64))
    ]
    weights[1][::2] *= -1
    names = [f"w{index}" for index in range(len(weights))]
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    nodes += [helper.make_node("DequantizeLinear", [name, "one"], [f"y{name}"]) for name in names]
    constants = dict(zip(names, weights, strict=True)) | {"one": np.float32(1)}
    proto = model(nodes, (1,), ("y", *(f"y{name}" for name in names)), **constants)
    pack(proto.graph, 128)
    assert not {tensor.name for tensor in proto.graph.initializer} & set(names)
    given = answers(proto, np.zeros((1, 1), dtype=np.float32), tmp_path)
    for weight, decoded in zip(weights, given[1:], strict=True):
        np.testing.assert_array_equal(decoded, weight)


def test_a_missing_or_damaged_file_and_a_wrong_input_are_refused(residual, tmp_path):
    target, bad = OpenVinoCpu(), tmp_path / "bad.onnx"
    with pytest.raises(StageError) as caught:
        target.session(bad, threads=1)
    assert str(caught.value) == f"ONNX file {str(bad)!r} does not exist; export it again"
    bad.write_bytes(b"no model")
    with pytest.raises(StageError, match=r"OpenVINO cannot load .* export the model for this target again"):
        target.signature(bad)
    session = target.session(residual.path, threads=1)
    with pytest.raises(StageError) as caught:
        session.run(())
    assert str(caught.value) == "the file takes 1 inputs and was given 0"
    with pytest.raises(StageError) as caught:
        session.run((np.zeros((2, 1, 16)),))
    assert str(caught.value) == "input 'input' of the file is float32 and was given as float64"
    with pytest.raises(StageError, match="OpenVINO cannot run the file on this input"):
        session.run((np.zeros((2, 3, 16), dtype=np.float32),))


def test_the_version_of_openvino_is_part_of_the_keys():
    assert OpenVinoCpu(reduce_range="off").resolved() == {"reduce_range": False, "openvino": "2026.4.1"}


def test_the_runtime_writes_nothing_at_home_and_loads_no_sender_of_usage_data(tmp_path):
    code = (
        "import sys; from kdq_targets.openvino_session import openvino; openvino().Core(); "
        "print(sys.modules.get('openvino_telemetry'), 'openvino.tools.ovc' in sys.modules)"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "None True"
    assert list(tmp_path.iterdir()) == []
