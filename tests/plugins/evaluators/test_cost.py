"""The evaluator `cost`: counts by hand, and a file in a fresh process."""

import gzip
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from kdq_core.api import OperatorCoverage, StageError, Subject
from kdq_core.testing import toy_subjects
from kdq_evaluators import cost
from kdq_evaluators.cost import Cost, compressed, counted, energy, median, operations, parameters
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu


def named(metrics):
    return {metric.name: metric for metric in metrics}


@pytest.fixture
def stored(tmp_path):
    """A file with 12 float32, 6 float16 and 20 int8 parameters."""
    tensors = [np.ones((3, 4), np.float32), np.ones(6, np.float16), np.ones((4, 5), np.int8)]
    initializers = [numpy_helper.from_array(x, f"w{n}") for n, x in enumerate(tensors)]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [value],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        initializers,
    )
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_parameters_are_counted_by_bits(stored):
    assert {name: m.value for name, m in named(parameters(stored)).items()} == {
        "bits_per_parameter": (12 * 32 + 6 * 16 + 20 * 8) / 38, "parameters_32bit": 12, "parameters_16bit": 6,
        "parameters_8bit": 20, "parameters_under_8bit": 0,
    }  # fmt: skip


def test_the_compressed_file_is_that_of_gzip(stored, monkeypatch):
    assert compressed(stored, "gzip") == len(gzip.compress(stored.read_bytes(), 9))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(StageError) as caught:
        compressed(stored, "zstd")
    assert str(caught.value) == (
        "evaluator 'cost' was asked for zstd, which is not installed: `pip install zstandard`, or leave 'compression' "
        "out"
    )


def test_operations_are_those_of_the_layers():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 6 * 6, 10)).eval()
    assert counted(model, (np.zeros((1, 3, 8, 8), np.float32),)) == 36 * 8 * 27 + 288 * 10
    assert counted(nn.LSTM(5, 7, batch_first=True).eval(), (np.zeros((1, 4, 5), np.float32),)) == 4 * 28 * (5 + 7)


def test_operations_of_an_int8_file_are_those_of_the_runtimes_graph(subject):
    rows = [
        OperatorCoverage(path="p", operator="conv", kernel="k", int8=int8, macs=n)
        for int8, n in ((True, 7), (False, 2))
    ]
    found = named(operations(subject("int8", operators=tuple(rows)), ()))
    assert {name: m.value for name, m in found.items()} == {"macs_int8": 7, "macs_float": 2}
    assert operations(subject("teacher"), ()) == ()


def test_the_median_has_an_interval_from_six_processes_on():
    assert (median("load_ms", [3, 1, 2, 5, 4], "ms").value, median("load_ms", [3, 1], "ms").low) == (3, None)
    found = median("load_ms", [3, 1, 2, 5, 4, 6], "ms")
    assert (found.value, found.low, found.high) == (3.5, 1, 6)
    assert 1 - 2 * 0.5**6 > 0.95


def test_energy_is_the_counters_difference_over_the_calls(subject, tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "RAPL", tmp_path)
    student = subject("student", lambda x: x)
    assert energy(student, (np.zeros(1),), 0.01) == ()
    counter = tmp_path / "intel-rapl:0" / "energy_uj"
    counter.parent.mkdir()
    counter.write_text("1000")
    calls = []

    def call(x):
        calls.append(1)
        counter.write_text(str(1000 + 5000 * len(calls)))
        return x

    (found,) = energy(subject("student", call), (np.zeros(1),), 0.01)
    assert found.value == pytest.approx(5.0)  # mJ
    assert found.samples == len(calls) - 1

    levels = iter(("9000", *["7"] * 10**6))

    def begins_anew(x):
        counter.write_text(next(levels))
        return x

    assert energy(subject("student", begins_anew), (np.zeros(1),), 0.01) == ()


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    return toy_subjects(OnnxRuntimeCpu(), tmp_path_factory.mktemp("toys"))


def test_a_fresh_process_loads_and_calls_the_file(toys):
    int8, student, batches = toys
    found = named(Cost(processes=1).evaluate(int8, student, batches))
    assert set(found) >= {"bytes_compressed", "macs_int8", "load_ms", "memory_added_bytes", "memory_peak_bytes"}
    assert 0 < found["load_ms"].value < 60_000
    assert 0 <= found["memory_added_bytes"].value < found["memory_peak_bytes"].value < 2**31
    total = found["macs_int8"].value + found["macs_float"].value
    assert total == counted(student_model(student), (np.zeros((1, *batches()[0].inputs[0].shape[1:]), np.float32),))


def student_model(student: Subject) -> nn.Module:
    from kdq_core.testing.toys import CONV_NET

    with torch.random.fork_rng(devices=[]):
        return CONV_NET.model().eval()


def test_a_process_that_fails_is_told_with_its_last_line(toys, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    one = replace(toys[0], path=broken)
    with pytest.raises(StageError, match=r"^evaluator 'cost' loads 'broken.onnx' in a fresh process, which ended with"):
        Cost(processes=1)._fresh(one, ())
