"""Fixed steps and powers of two, by hand and against NumPy."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kdq_core.api import Place, StageError
from kdq_core.quantization.placing import narrow
from kdq_quantizers.fixed_step import FixedStep
from kdq_quantizers.power_of_two import PowerOfTwo
from kdq_quantizers.steps import power_of_two

ONE = Place("w", "weight", "w", "int8", -127, 127, symmetric=True, axis=0, channels=1)
ACTIVATION = Place("a", "activation", "a", "uint8", 0, 255, symmetric=False)


def test_the_worked_example_of_a_fixed_step():
    module = FixedStep(step=0.1).fake_quantizer(ONE)
    w = torch.tensor([[1.2, 2.5, 3.7]])
    assert module.integers(w).tolist() == [[12.0, 25.0, 37.0]]
    assert module(w).tolist() == [pytest.approx([1.2, 2.5, 3.7])]


def test_what_does_not_fit_the_bits_is_cut_off_and_gets_no_gradient():
    module = FixedStep(step=0.1).fake_quantizer(narrow(ONE, 4))
    w = torch.tensor([[0.26, 2.5, -3.7]], requires_grad=True)
    y = module(w)
    y.sum().backward()
    assert y.tolist() == [pytest.approx([0.3, 0.7, -0.8])]
    assert w.grad.tolist() == [[1.0, 0.0, 0.0]]


def test_a_step_from_data_fits_the_largest_weight_of_the_tensor_and_stays():
    place = Place("w", "weight", "w", "int8", -127, 127, symmetric=True, axis=0, channels=2)
    module = FixedStep().fake_quantizer(place)
    with pytest.raises(StageError, match="place 'w' has seen no data"):
        module.grid()
    with pytest.raises(StageError, match="place 'w' saw a value that is not finite"):
        module(torch.tensor([[float("nan")], [0.0]]))
    rng = np.random.default_rng(0)
    w = rng.standard_normal((2, 30)).astype(np.float32)
    module(torch.tensor(w))
    step = np.abs(w).max() / np.float32(127)
    assert module.grid().scale.tolist() == [step, step]
    assert np.array_equal(module.integers(torch.tensor(w)).numpy(), np.rint(w / step))
    module(torch.tensor(9 * w))
    assert float(module.step) == step


def test_powers_of_two_up_and_nearest():
    x = torch.tensor([1.0, 0.25, 0.3, 3.0, 5.0, 2.0**-23])
    assert power_of_two(x, up=True).tolist() == [1.0, 0.25, 0.5, 4.0, 8.0, 2.0**-23]
    assert power_of_two(x, up=False).tolist() == [1.0, 0.25, 0.25, 4.0, 4.0, 2.0**-23]
    edge = torch.tensor([2**0.5 * 0.999, 2**0.5 * 1.001])
    assert power_of_two(edge, up=False).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("rounding", ["up", "nearest"])
def test_scales_of_weights_are_powers_of_two_as_numpy_finds_them(rounding):
    rng = np.random.default_rng(0)
    w = (rng.standard_normal((8, 40)) * rng.random((8, 1)) * 10).astype(np.float32)
    place = Place("w", "weight", "w", "int8", -127, 127, symmetric=True, axis=0, channels=8)
    for bits, qmax in ((8, 127), (4, 7)):
        module = PowerOfTwo(rounding=rounding).fake_quantizer(narrow(place, bits))
        y = module(torch.tensor(w)).numpy()
        exponent = np.log2(np.abs(w).max(1) / qmax)
        scale = 2.0 ** (np.ceil(exponent) if rounding == "up" else np.rint(exponent))
        assert np.array_equal(module.grid().scale.numpy(), scale)
        q = np.clip(np.rint(w / scale[:, None]), -qmax if bits == 8 else -8, qmax)
        assert np.array_equal(y, q * scale[:, None])


@pytest.mark.parametrize(
    ("values", "scale", "zero"),
    [
        ([0.0, 5.0], 2.0**-5, 0),  # 5 / 255 = 0.0196
        ([0.5, 255.0], 1.0, 0),
        ([-1.0, 1.0], 2.0**-6, 128),  # 1 / 127 = 0.0079, 1 / 128 fits the negative side only
        ([-1.0, 0.5], 2.0**-7, 128),
        ([0.0, 0.0], 2.0**-23, 0),
    ],
)
def test_activations_have_a_sign_or_none(values, scale, zero):
    module = PowerOfTwo().fake_quantizer(ACTIVATION)
    module(torch.tensor(values))
    grid = module.grid()
    assert (float(grid.scale), int(grid.zero_point)) == (scale, zero)


@pytest.mark.parametrize("options", [{"step": 0.0}, {"step": -1.0}, {"averaging": 0}, {"rounding": "down"}])
def test_options_out_of_range_are_refused(options):
    for quantizer in (FixedStep, PowerOfTwo):
        with pytest.raises(ValidationError):
            quantizer(**options)
