"""Steps of biases that follow from two other scales: written as a product, wherever the file stays one that loads."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from kdq_core.quantization.capture import capture
from kdq_core.quantization.convert import convert, output_scales
from kdq_core.quantization.prepare import prepare, set_phase
from kdq_quantizers.minmax_qat import MinMaxQat
from kdq_quantizers.static import Static
from kdq_targets.onnx_compact import derive_bias_scales
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu


class Pixels(nn.Module):
    """Two layers read the input, and `body` is used twice on one grid."""

    def __init__(self):
        super().__init__()
        self.stem, self.other, self.body = nn.Conv2d(1, 8, 3), nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8 * 9 * 2, 5)

    def forward(self, x):
        y = F.relu(self.stem(x)) + self.other(x)
        y = torch.cat([self.body(y), self.body(y.transpose(2, 3))], 1)
        return self.head(F.max_pool2d(y, 2).flatten(1))


@pytest.mark.parametrize("quantizer", [MinMaxQat(), Static(observer="minmax")], ids=repr)
def test_pixels_of_0_to_255_have_a_scale_of_1_and_are_shipped(quantizer, tmp_path):
    torch.manual_seed(0)
    target, example, path = OnnxRuntimeCpu(reduce_range="on"), (torch.rand(2, 1, 8, 8),), tmp_path / "int8.onnx"
    graph = capture(Pixels(), example)
    prepared = prepare(graph, target.places(graph), quantizer)
    x = torch.randint(256, (64, 1, 8, 8)).float()
    x[0, 0, 0, :2] = torch.tensor([0.0, 255.0])
    set_phase(prepared, observe=True, quantize=True, freeze_batch_norm=True)
    with torch.no_grad():
        prepared.eval()(x)
    set_phase(prepared, observe=False, quantize=True, freeze_batch_norm=True)
    converted = convert(prepared)
    assert float(converted.grids.x_scale) == 1
    target.export(converted, example, path)
    nodes = onnx.load(str(path)).graph.node
    assert sum(node.op_type == "Mul" for node in nodes) == 1  # of `body`, once for both of its uses
    (answers,) = target.session(path, threads=1).run((x.numpy(),))
    with torch.no_grad():
        simulated = converted(x).numpy()
    assert np.abs(answers - simulated).max() <= 1.01 * output_scales(converted)[0]
    rows = target.coverage(path, graph)
    assert [row.kernel for row in rows if row.operator in ("conv", "linear")] == ["QLinearConv"] * 4 + ["QGemm"]


def layers(*scales):
    """A model of linear layers side by side; of each the names and values of its three scales, `x`, `w`, `b`."""
    random, nodes, constants, outputs = np.random.default_rng(0), [], {}, []
    for index, each in enumerate(scales):
        constants |= {name: np.float32(value) for name, value in each.items()}
        constants[f"weight{index}"] = random.integers(-9, 9, (4, 8), dtype=np.int8)
        constants[f"bias{index}"] = random.integers(-99, 99, 8, dtype=np.int32)
        x, w, b = each
        nodes += [
            helper.make_node("QuantizeLinear", ["x", x], [f"q{index}"]),
            helper.make_node("DequantizeLinear", [f"q{index}", x], [f"x{index}"]),
            helper.make_node("DequantizeLinear", [f"weight{index}", w], [f"w{index}"], axis=1),
            helper.make_node("DequantizeLinear", [f"bias{index}", b], [f"b{index}"], axis=0),
            helper.make_node("Gemm", [f"x{index}", f"w{index}", f"b{index}"], [f"y{index}"]),
        ]
        outputs.append(helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, ["batch", 8]))
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", given, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


STEPS = 2.0 ** -np.arange(8)


@pytest.mark.parametrize(
    ("scales", "products"),
    [
        ([{"half": 0.5, "one": STEPS, "two": STEPS / 2}], ["two"]),
        ([{"unit": 1.0, "one": STEPS, "two": STEPS}], ["two"]),
        ([{"half": 0.5, "one": STEPS, "two": STEPS / 2}, {"half": 0.5, "two": STEPS / 2, "last": STEPS / 4}], ["last"]),
        ([{"half": 0.5, "one": STEPS, "two": STEPS / 2}, {"double": 2.0, "two": STEPS / 2, "one": STEPS}], []),
        ([{"half": 0.5, "one": STEPS, "two": STEPS / 2}, {"whole": 1.0, "too": STEPS / 2, "two": STEPS / 2}], ["two"]),
    ],
    ids=["plain", "equal under two names", "in a row", "in a ring", "shared"],
)  # fmt: skip
def test_a_step_is_a_product_once_and_no_factor_of_another(scales, products):
    model = layers(*scales)
    x = np.random.default_rng(1).normal(size=(16, 4)).astype(np.float32)
    before = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    derive_bias_scales(model.graph)
    assert [node.output[0] for node in model.graph.node if node.op_type == "Mul"] == products
    onnx.checker.check_model(model, full_check=True)
    after = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for one, other in zip(before.run(None, {"x": x}), after.run(None, {"x": x}), strict=True):
        np.testing.assert_array_equal(one, other)
