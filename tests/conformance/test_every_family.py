"""Quantizers whose other tests are of the conv net alone meet another family of operators, too."""

import pytest

from kdq_core.testing import TOYS, check_quantizer
from kdq_quantizers.apot import Apot
from kdq_quantizers.codebook import Codebook
from kdq_quantizers.dorefa import DoReFa
from kdq_quantizers.lsq import Lsq
from kdq_quantizers.pact import Pact
from kdq_quantizers.power_of_two import PowerOfTwo
from kdq_quantizers.static import Static
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu

TOY = {toy.name: toy for toy in TOYS}


@pytest.mark.parametrize(
    ("quantizer", "name"),
    [
        (Lsq(), "lstm"), (Apot(), "lstm"), (Static(), "gru"), (Codebook(), "gru"), (Pact(), "table with embeddings"),
        (DoReFa(), "inverted residual"), (PowerOfTwo(), "inverted residual"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value),
)  # fmt: skip
def test_the_promises_are_kept_at_8_bits(quantizer, name):
    check_quantizer(quantizer, target=OnnxRuntimeCpu(reduce_range="on"), bits=(8, 8), toys=(TOY[name],))
