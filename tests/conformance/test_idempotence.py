"""The quantizer kit sees a quantizer that moves what it has rounded, unless its class says that it means to."""

import sys
from typing import ClassVar

import pytest
import torch

from kdq_core.api import MinMaxFakeQuantize, Place, Quantizer, round_to_grid
from kdq_core.testing import check_quantizer
from kdq_quantizers.dorefa import DoReFa
from kdq_quantizers.pact import Pact
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu

TARGET = OnnxRuntimeCpu(reduce_range="on")


class Shrinking(MinMaxFakeQuantize):
    """Draws in what it rounds, and the integers alike."""

    def forward(self, x):
        if self.observing:
            self.watch(x.detach())
        if not self.quantizing:
            return x
        scale, zero = self.scale_and_zero()
        return round_to_grid(0.9 * x, scale, zero, self.place.qmin, self.place.qmax, self.place.axis)

    def integers(self, x):
        return super().integers(0.9 * x)


class ShrinksWeights(Quantizer):
    def fake_quantizer(self, place):
        return Shrinking(place) if place.role == "weight" else MinMaxFakeQuantize(place)


class ShrinksActivations(Quantizer):
    def fake_quantizer(self, place):
        return MinMaxFakeQuantize(place) if place.role == "weight" else Shrinking(place)


class MeansTo(ShrinksWeights):
    idempotent: ClassVar[bool] = False


@pytest.mark.parametrize(("quantizer", "place"), [(ShrinksWeights(), "stem.weight"), (ShrinksActivations(), "x:input")])
def test_the_kit_names_the_first_place_that_moves_what_it_has_rounded(quantizer, place):
    with pytest.raises(AssertionError) as caught:
        check_quantizer(quantizer, target=TARGET)
    text = str(caught.value)
    before, _, after = text.partition(" by ")
    assert before == f"what is rounded should stay where it is when it is rounded again, but {place!r} moves it"
    assert after.endswith(
        " LSB; round to the nearest level, or, if the method means to move it, set "
        "`idempotent: ClassVar[bool] = False` and say why in the method card"
    )


def test_a_quantizer_that_means_to_says_so():
    check_quantizer(MeansTo(), target=TARGET)


@pytest.mark.parametrize("quantizer", [DoReFa(), Pact()])
def test_house_quantizers_with_tanh_weights_say_so(quantizer):
    assert not quantizer.idempotent
    assert "`idempotent = False`" in sys.modules[type(quantizer).__module__].__doc__
    assert "idempotent" not in type(quantizer).model_json_schema()["properties"]


def test_pact_with_minmax_weights_rounds_twice_as_once():
    assert torch.equal(*twice(Pact(weights="minmax")))
    assert not torch.equal(*twice(Pact()))


def twice(quantizer):
    """A weight rounded once and twice, with the range held."""
    module = quantizer.fake_quantizer(Place("w", "weight", "w", "int8", -127, 127, symmetric=True, axis=0, channels=3))
    weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    module(weight)
    module.observing = False
    once = module(weight).detach()
    return once, module(once).detach()
