"""Exports in one process share the exporter's table, and leave it as it was."""

import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry

from kdq_targets.onnx_registry import read_table, registry_read_once
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu


def test_the_table_is_built_once_and_what_is_added_stays_with_its_export(monkeypatch):
    built = []

    def build(**asked):
        built.append(asked)
        return ONNXRegistry()

    monkeypatch.setattr(ONNXRegistry, "from_torchlib", build)
    monkeypatch.setattr("kdq_targets.onnx_registry._TABLES", {})
    with registry_read_once():
        one = ONNXRegistry().from_torchlib(opset_version=18)
        one.register_op(torch.ops.aten.relu.default, lambda x: x)
        other = ONNXRegistry().from_torchlib(opset_version=18)
        assert one.is_registered(torch.ops.aten.relu.default)
        assert not other.is_registered(torch.ops.aten.relu.default)
        ONNXRegistry().from_torchlib(opset_version=20)
    assert built == [{"opset_version": 18}, {"opset_version": 20}]
    assert ONNXRegistry.from_torchlib is build


def test_the_operators_to_decompose_are_listed_once_an_export(monkeypatch):
    from torch._export import utils

    listed = []
    monkeypatch.setattr(utils, "_materialize_cpp_cia_ops", lambda: listed.append(1))
    for _ in range(2):
        with registry_read_once():
            utils._materialize_cpp_cia_ops()
            utils._materialize_cpp_cia_ops()
    assert listed == [1, 1]


def test_an_export_finds_the_table_that_was_read_ahead(monkeypatch, tmp_path):
    built, build = [], ONNXRegistry.from_torchlib

    def counted(**asked):
        built.append(asked)
        return build(**asked)

    monkeypatch.setattr(ONNXRegistry, "from_torchlib", counted)
    monkeypatch.setattr("kdq_targets.onnx_registry._TABLES", {})
    read_table()
    assert len(built) == 1
    OnnxRuntimeCpu().export(torch.nn.Linear(2, 2), (torch.zeros(2, 2),), tmp_path / "a.onnx")
    assert len(built) == 1
    assert "kdq_targets.onnx_table" in OnnxRuntimeCpu.late_imports
