"""The targets that come with KDQ."""

from collections.abc import Iterator

from kdq_core.api import PluginSpec, hookimpl


@hookimpl
def kdq_targets() -> Iterator[PluginSpec]:
    """Yield one entry per target. KDQ loads its class when a recipe needs it."""
    yield PluginSpec(
        name="onnxruntime-cpu",
        target="kdq_targets.onnxruntime_cpu:OnnxRuntimeCpu",
        summary="int8 QDQ ONNX for ONNX Runtime's CPU kernels",
    )
    yield PluginSpec(
        name="openvino",
        target="kdq_targets.openvino_cpu:OpenVinoCpu",
        summary="int8 QDQ ONNX for OpenVINO's CPU kernels",
    )
