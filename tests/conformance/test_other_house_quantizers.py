"""Quantizers with fixed steps, uneven levels, and with activations that are dynamic or float, pass the kit."""

import pytest

from kdq_core.testing import TOYS, check_quantizer
from kdq_quantizers.apot import Apot
from kdq_quantizers.codebook import Codebook
from kdq_quantizers.dynamic import Dynamic
from kdq_quantizers.fixed_step import FixedStep
from kdq_quantizers.power_of_two import PowerOfTwo
from kdq_quantizers.weight_only import WeightOnly
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu

TOY = {toy.name: toy for toy in TOYS}
CONV_NET, CONV_1D, TRANSFORMER, TABLE = (
    TOY[name] for name in ("conv net", "conv 1d", "transformer", "table with embeddings")
)


@pytest.mark.parametrize(
    ("quantizer", "bits", "toy"),
    [
        (FixedStep(), (8, 8), CONV_1D), (FixedStep(step=0.05), (4, 4), CONV_NET),
        (PowerOfTwo(rounding="nearest"), (3, 4), CONV_NET), (PowerOfTwo(), (2, 2), CONV_NET),
        (Apot(), (4, 8), TRANSFORMER), (Codebook(scope="tensor"), (2, 4), CONV_NET), (Dynamic(), (8, 8), TRANSFORMER),
        (Dynamic(), (4, 8), CONV_NET), (WeightOnly(), (8, 8), TABLE), (WeightOnly(group=4), (4, 8), CONV_NET),
    ],
    ids=lambda value: getattr(value, "name", None) or repr(value),
)  # fmt: skip
def test_the_promises_of_a_quantizer_are_kept(quantizer, bits, toy):
    check_quantizer(quantizer, target=OnnxRuntimeCpu(reduce_range="on"), bits=bits, toys=(toy,))
