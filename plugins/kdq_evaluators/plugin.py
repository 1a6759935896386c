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
        summary="top-1, F1, calibration or errors, and the difference from the float student",
    )
    yield PluginSpec(
        name="size",
        target="kdq_evaluators.size:Size",
        summary="bytes of the file and of its weights by type",
    )
    yield PluginSpec(
        name="cost",
        target="kdq_evaluators.cost:Cost",
        summary="compressed bytes, parameters by bits, operations by kernel, loading, memory, energy",
    )
    yield PluginSpec(
        name="detection",
        target="kdq_evaluators.detection:Detection",
        summary="mean average precision of boxes",
    )
    yield PluginSpec(
        name="ranking",
        target="kdq_evaluators.ranking:Ranking",
        summary="hit rate and discounted gain of the first k items",
    )
    yield PluginSpec(
        name="robustness",
        target="kdq_evaluators.robustness:Robustness",
        summary="quality on corrupted inputs, and whether int8 loses more than float",
    )
    yield PluginSpec(
        name="transcription",
        target="kdq_evaluators.transcription:Transcription",
        summary="word and character error rates",
    )
    yield PluginSpec(
        name="translation",
        target="kdq_evaluators.translation:Translation",
        summary="BLEU and chrF",
    )
