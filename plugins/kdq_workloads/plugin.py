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
