"""The quantizers that come with KDQ."""

from collections.abc import Iterator

from kdq_core.api import PluginSpec, hookimpl

KDQ_PLUGIN_API = ">=1,<2"


@hookimpl
def kdq_quantizers() -> Iterator[PluginSpec]:
    """Name them; each class is loaded when a recipe needs it."""
    yield PluginSpec(
        name="minmax-qat",
        target="kdq_quantizers.minmax_qat:MinMaxQat",
        summary="W8A8 training with min-max ranges: weights per channel, activations by moving average",
    )
    yield PluginSpec(
        name="static",
        target="kdq_quantizers.static:Static",
        summary="post-training: ranges from a histogram of calibration data, by one of five observers",
    )
    yield PluginSpec(
        name="lsq",
        target="kdq_quantizers.lsq:Lsq",
        summary="training with learned steps, and learned offsets (LSQ+) if asked; the choice below 8 bits",
    )
    yield PluginSpec(
        name="pact",
        target="kdq_quantizers.pact:Pact",
        summary="training with learned clipping of activations",
    )
    yield PluginSpec(
        name="dorefa",
        target="kdq_quantizers.dorefa:DoReFa",
        summary="training with weights drawn in by tanh and activations in a fixed range",
    )
