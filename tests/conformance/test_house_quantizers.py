"""Quantizers that learn their grid, or find it once, pass the kit at 8 bits and below."""

import pytest

from kdq_core.testing import TOYS, check_quantizer
from kdq_quantizers.dorefa import DoReFa
from kdq_quantizers.lsq import Lsq
from kdq_quantizers.pact import Pact
from kdq_quantizers.static import Static
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu


@pytest.mark.parametrize(
    ("quantizer", "bits"),
    [
        (Lsq(), 4), (Lsq(), 2), (Lsq(offset=True), 2), (Pact(), 4), (Pact(), 2), (DoReFa(), 4),
        (DoReFa(), 2), (Static(), 8), (Static(observer="mse"), 4), (Static(observer="minmax", weights="minmax"), 2),
        (Static(observer="entropy"), 8), (Static(observer="percentile"), 8),
    ],
    ids=repr,
)  # fmt: skip
def test_the_promises_of_a_quantizer_are_kept(quantizer, bits):
    check_quantizer(quantizer, target=OnnxRuntimeCpu(reduce_range="on"), bits=(bits, bits))


def test_biases_are_rounded_behind_reshapes_of_a_free_batch():
    transformer = next(toy for toy in TOYS if toy.name == "transformer")
    check_quantizer(Lsq(), target=OnnxRuntimeCpu(reduce_range="on"), bits=(4, 4), toys=(transformer,))
