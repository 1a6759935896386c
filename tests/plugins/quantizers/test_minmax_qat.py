"""The options and the card of minmax-qat."""

import pytest
from pydantic import ValidationError

import kdq_quantizers.minmax_qat as card
from kdq_core.api import Place
from kdq_quantizers.minmax_qat import MinMaxQat

PLACE = Place("a", "activation", "a", "uint8", 0, 255, symmetric=False)


def test_the_averaging_constant_reaches_the_fake_quantizer():
    assert MinMaxQat(averaging=0.5).fake_quantizer(PLACE).averaging == 0.5


@pytest.mark.parametrize("options", [{"averaging": 0}, {"averaging": 1.1}, {"bits": 8}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        MinMaxQat(**options)


def test_the_method_card_has_its_headings():
    lines = card.__doc__.splitlines()
    assert all(heading in lines for heading in ("What", "Formula", "Source", "Defaults", "Costs", "Limits"))
