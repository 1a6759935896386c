"""The workloads that come with KDQ."""

from collections.abc import Iterator

from kdq_core.api import PluginSpec, hookimpl


@hookimpl
def kdq_workloads() -> Iterator[PluginSpec]:
    """Yield one entry per workload. KDQ loads its class when a recipe needs it."""
    yield PluginSpec(
        name="digits",
        target="kdq_workloads.digits:Digits",
        summary="scikit-learn's 8x8 handwritten digits, 10 classes, two residual nets",
    )
    yield PluginSpec(
        name="python",
        target="kdq_workloads.python:Python",
        summary="your model, and data from a function of yours",
    )
    yield PluginSpec(
        name="arrays",
        target="kdq_workloads.arrays:Arrays",
        summary="your model on the arrays of an npz or safetensors file",
    )
    yield PluginSpec(
        name="table",
        target="kdq_workloads.table:Table",
        summary="your model on the columns of a CSV or Parquet file",
    )
    yield PluginSpec(
        name="image-folder",
        target="kdq_workloads.image_folder:ImageFolder",
        summary="your model on a folder of images, one subfolder for each class",
    )
    yield PluginSpec(
        name="in-hand",
        target="kdq_workloads.in_hand:InHand",
        summary="models and data that Python code passes to `kdq.quantize` or `kdq.compress`",
    )
