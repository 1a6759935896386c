"""The quantizers that come with KDQ."""

from collections.abc import Iterator

from kdq_core.api import PluginSpec, hookimpl


@hookimpl
def kdq_quantizers() -> Iterator[PluginSpec]:
    """Yield one entry per quantizer. KDQ loads its class when a recipe needs it."""
    yield PluginSpec(
        name="auto",
        target="kdq_quantizers.auto:Auto",
        summary="the default: calibrates first; trains where that loses too much, or bits are few",
    )
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
    yield PluginSpec(
        name="fixed-step",
        target="kdq_quantizers.fixed_step:FixedStep",
        summary="training with one stated or measured step for each weight tensor",
    )
    yield PluginSpec(
        name="power-of-two",
        target="kdq_quantizers.power_of_two:PowerOfTwo",
        summary="training in fixed point: all scales are powers of two",
    )
    yield PluginSpec(
        name="apot",
        target="kdq_quantizers.apot:Apot",
        summary="training with weights that are sums of powers of two, and learned thresholds",
    )
    yield PluginSpec(
        name="codebook",
        target="kdq_quantizers.codebook:Codebook",
        summary="training with shared weights: centroids from k-means, on the int8 grid",
    )
    yield PluginSpec(
        name="weight-only",
        target="kdq_quantizers.weight_only:WeightOnly",
        summary="post-training: integers in the file, per channel or group; float kernels",
    )
    yield PluginSpec(
        name="dynamic",
        target="kdq_quantizers.dynamic:Dynamic",
        summary="post-training: int8 linear layers whose ranges the runtime measures for each batch",
    )
