"""The evaluator `size` on small ONNX files."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdq_core.api import StageError
from kdq_evaluators.size import Size

WEIGHT = np.arange(600, dtype=np.float32).reshape(20, 30)


def save(path, nodes, constants):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 20])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 30])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph), path)


def float_model(path):
    save(path, [helper.make_node("Gemm", ["x", "w", "b"], ["y"])], {"w": WEIGHT, "b": np.zeros(30, np.float32)})


def int8_model(path, **beside):
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=1),
        helper.make_node("Gemm", ["x", "w", "b"], ["y"]),
    ]
    constants = {
        "q": WEIGHT.astype(np.int8),
        "s": np.ones(30, np.float32),
        "z": np.zeros(30, np.int8),
        "b": np.zeros(30, np.float32),
    }
    save(path, nodes, constants | beside)


def measured(candidate, baseline):
    return {m.name: m.value for m in Size().evaluate(candidate, baseline, lambda: ())}


@pytest.fixture
def models(subject):
    student, int8 = subject("student"), subject("int8")
    float_model(student.path)
    int8_model(int8.path)
    return int8, student


def test_a_float_model_is_its_own_measure(models):
    student = models[1]
    bytes_ = student.path.stat().st_size
    assert measured(student, student) == {
        "bytes": bytes_,
        "weight_bytes_int8": 0,
        "weight_bytes_float": 2400,
        "parameters": 630,
        "compression": 1.0,
    }


def test_scales_and_zero_points_are_neither_weights_nor_parameters(models):
    int8, student = models
    found = measured(int8, student)
    assert found["weight_bytes_int8"] == 600
    assert found["weight_bytes_float"] == 0
    assert found["parameters"] == 630
    assert found["compression"] == student.path.stat().st_size / int8.path.stat().st_size


def test_float_weights_left_beside_the_int8_ones_are_seen(models):
    int8, student = models
    int8_model(int8.path, forgotten=WEIGHT)
    found = measured(int8, student)
    assert found["weight_bytes_float"] == 2400
    assert found["weight_bytes_int8"] == 600


def test_weights_in_constant_nodes_and_subgraphs_are_seen(models):
    int8, student = models
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(WEIGHT, "c"))],
        "inner",
        [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [20, 30])],
    )
    condition = {"yes": np.array(True)}
    save(int8.path, [helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)], condition)
    assert measured(int8, student)["weight_bytes_float"] == 4800


def test_external_data_counts_as_shipped(models):
    student = models[1]
    model = onnx.load(student.path)
    onnx.save(model, student.path, save_as_external_data=True, location="weights.bin", size_threshold=100)
    outside = (student.path.parent / "weights.bin").stat().st_size
    assert outside >= 2400
    assert measured(student, student)["bytes"] == student.path.stat().st_size + outside


def test_a_file_that_is_no_onnx_is_refused(models):
    int8, student = models
    broken = replace(int8, path=int8.path.with_name("broken.onnx"))
    broken.path.write_bytes(b"\xff\xff no onnx")
    with pytest.raises(StageError) as caught:
        measured(broken, student)
    assert str(caught.value) == "evaluator 'size' reads ONNX files, but 'broken.onnx' is none; leave it out"
