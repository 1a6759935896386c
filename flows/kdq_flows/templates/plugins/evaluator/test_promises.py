"""The evaluator keeps the promises of its kind."""

from kdq_my_plugin.my_plugin import MyPlugin

from kdq_core.testing import check_evaluator, toy_subjects
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu


def test_my_plugin_keeps_its_promises(tmp_path):
    int8, baseline, batches = toy_subjects(OnnxRuntimeCpu(), tmp_path)
    check_evaluator(MyPlugin(), int8, baseline, batches)
