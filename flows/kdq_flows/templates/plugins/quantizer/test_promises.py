"""The quantizer keeps the promises of its kind."""

from kdq_my_plugin.my_plugin import MyPlugin

from kdq_core.testing import check_quantizer
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu


def test_my_plugin_keeps_its_promises():
    check_quantizer(MyPlugin(), target=OnnxRuntimeCpu())
