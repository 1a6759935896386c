"""The evaluators that come with KDQ."""

from collections.abc import Iterator

from kdq_core.api import PluginSpec, hookimpl


@hookimpl
def kdq_evaluators() -> Iterator[PluginSpec]:
    """Yield one entry per evaluator. KDQ loads its class when a recipe needs it."""
    yield PluginSpec(
        name="coverage",
        target="kdq_evaluators.coverage:Coverage",
        summary="share of the work that runs in int8 kernels",
    )
    yield PluginSpec(
        name="latency",
        target="kdq_evaluators.latency:Latency",
        summary="times of a call, throughput, and speed-up over the float student",
    )
    yield PluginSpec(
        name="parity",
        target="kdq_evaluators.parity:Parity",
        summary="the file against its simulation in PyTorch, in LSBs and top-1 flips",
    )
    yield PluginSpec(
        name="quality",
        target="kdq_evaluators.quality:Quality",
        summary="top-1, precision, recall, F1, and the difference from the float student",
    )
    yield PluginSpec(
        name="size",
        target="kdq_evaluators.size:Size",
        summary="bytes of the file and of its weights by type",
    )
