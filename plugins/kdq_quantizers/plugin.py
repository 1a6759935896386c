"""The quantizers that come with KDQ."""

from collections.abc import Iterator

from kdq_core.api import PluginSpec, hookimpl

QUANTIZERS = (
    ("auto", "auto:Auto",
     "the default: calibrates first; trains where that loses too much, or bits are few"),
    (
        "minmax-qat",
        "minmax_qat:MinMaxQat",
        "W8A8 training with min-max ranges: weights per channel, activations by moving average",
    ),
    ("static", "static:Static",
     "post-training: ranges from a histogram of calibration data, by one of five observers"),
    ("lsq", "lsq:Lsq",
     "training with learned steps, and learned offsets (LSQ+) if asked; the choice below 8 bits"),
    ("pact", "pact:Pact",
     "training with learned clipping of activations"),
    ("dorefa", "dorefa:DoReFa",
     "training with weights drawn in by tanh and activations in a fixed range"),
    ("fixed-step", "fixed_step:FixedStep",
     "training with one stated or measured step for each weight tensor"),
    ("power-of-two", "power_of_two:PowerOfTwo",
     "training in fixed point: all scales are powers of two"),
    ("apot", "apot:Apot",
     "training with weights that are sums of powers of two, and learned thresholds"),
    ("codebook", "codebook:Codebook",
     "training with shared weights: centroids from k-means, on the int8 grid"),
    (
        "weight-only",
        "weight_only:WeightOnly",
        "post-training: integers in the file, per channel or group; float kernels",
    ),
    (
        "dynamic",
        "dynamic:Dynamic",
        "post-training: int8 linear layers whose ranges the runtime measures for each batch",
    ),
)  # fmt: skip
"""Name, class within this package, and summary of each."""


@hookimpl
def kdq_quantizers() -> Iterator[PluginSpec]:
    """Yield one entry per quantizer. KDQ loads its class when a recipe needs it."""
    for name, target, summary in QUANTIZERS:
        yield PluginSpec(name=name, target=f"kdq_quantizers.{target}", summary=summary)
