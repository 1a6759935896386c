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

CONV_NET, TRANSFORMER = (next(toy for toy in TOYS if toy.name == name) for name in ("conv net", "transformer"))


@pytest.mark.parametrize(
    ("quantizer", "bits", "toy"),
    [
        (FixedStep(), (8, 8), CONV_NET), (FixedStep(step=0.05), (4, 4), CONV_NET),
        (PowerOfTwo(rounding="nearest"), (3, 4), CONV_NET), (Apot(), (4, 8), TRANSFORMER),
        (Codebook(scope="tensor"), (2, 4), CONV_NET), (Dynamic(), (8, 8), TRANSFORMER),
        (Dynamic(), (4, 8), CONV_NET), (WeightOnly(), (8, 8), TRANSFORMER), (WeightOnly(group=4), (4, 8), CONV_NET),
    ],
    ids=lambda value: getattr(value, "name", None) or repr(value),
)  # fmt: skip
def test_the_promises_of_a_quantizer_are_kept(quantizer, bits, toy):
    check_quantizer(quantizer, target=OnnxRuntimeCpu(reduce_range="on"), bits=bits, toys=(toy,))
