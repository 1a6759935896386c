"""Weights worked by hand for every law that rounds them, and the ranges of `static` by brute force in NumPy."""

import numpy as np
import pytest
import torch

from kdq_core.api import Place
from kdq_core.quantization.dynamic import RoundDynamically
from kdq_core.quantization.placing import narrow
from kdq_quantizers.dorefa import DoReFa
from kdq_quantizers.dynamic import Dynamic
from kdq_quantizers.minmax_qat import MinMaxQat
from kdq_quantizers.pact import Pact
from kdq_quantizers.power_of_two import PowerOfTwo
from kdq_quantizers.static import Static
from kdq_quantizers.weight_only import WeightOnly

WHOLE = Place(
    "w", "weight", "w", "int8", -127, 127, symmetric=True, axis=0, channels=1, operator="linear", shape=(1, 4)
)
ACTIVATION = Place("a", "activation", "a", "uint8", 0, 255, symmetric=False)
TANH_8 = [106.0, 125.0, 127.0, -59.0]  # 127 * tanh(w) / tanh(3.7): 106.004, 125.453, 127, -58.760
TANH_4 = [13.0, 15.0, 15.0, -7.0]  # 2 * round(7.5 * (tanh(w) / tanh(3.7) + 1)) - 15: 13.760, 14.909, 15, 4.030 rounded
TANH_2 = [3.0, 3.0, 3.0, -1.0]  # 2 * round(1.5 * (tanh(w) / tanh(3.7) + 1)) - 3: 2.752, 2.982, 3, 0.806 rounded


@pytest.mark.parametrize(
    ("quantizer", "bits", "w", "integers", "scale"),
    [
        # the largest weight, 12.7, sets the step to 0.1
        (MinMaxQat(), 8, [1.2, 2.5, 3.7, 12.7], [12.0, 25.0, 37.0, 127.0], [0.1]),
        (Dynamic(), 8, [1.2, 2.5, 3.7, 12.7], [12.0, 25.0, 37.0, 127.0], [0.1]),
        (WeightOnly(), 8, [1.2, 2.5, 3.7, 12.7], [12.0, 25.0, 37.0, 127.0], [0.1]),
        # a step of 3.7 / 7: 2.27, 4.73, 7, -7
        (MinMaxQat(), 4, [1.2, 2.5, 3.7, -3.7], [2.0, 5.0, 7.0, -7.0], [3.7 / 7]),
        # two groups with a step each: 1.2 / 2.5 * 127 = 60.96
        (WeightOnly(group=2), 8, [1.2, 2.5, 3.7, 12.7], [61.0, 127.0, 37.0, 127.0], [[2.5 / 127, 0.1]]),
        # 12.7 / 127 = 0.1 fits 1/8: 9.6, 20, 29.6, 101.6
        (PowerOfTwo(), 8, [1.2, 2.5, 3.7, 12.7], [10.0, 20.0, 30.0, 102.0], [0.125]),
        # 3.7 / 7 = 0.53: the next power of two is 1, where 2.5 and -0.5 go to even; the nearest is 1/2
        (PowerOfTwo(), 4, [1.2, 2.5, 3.7, -0.5], [1.0, 2.0, 4.0, 0.0], [1.0]),
        (PowerOfTwo(rounding="nearest"), 4, [1.2, 2.5, 3.7, -0.5], [2.0, 5.0, 7.0, -1.0], [0.5]),
        # 4.5 / 7 = 0.64: nearest is 1/2, where 9 and -9 are cut off
        (PowerOfTwo(rounding="nearest"), 4, [1.2, 2.5, 4.5, -4.5], [2.0, 5.0, 7.0, -8.0], [0.5]),
        (DoReFa(), 8, [1.2, 2.5, 3.7, -0.5], TANH_8, [3.7 / 127]),
        (DoReFa(), 4, [1.2, 2.5, 3.7, -0.5], TANH_4, [3.7 / 15]),
        (DoReFa(), 2, [1.2, 2.5, 3.7, -0.5], TANH_2, [3.7 / 3]),
        (Pact(), 8, [1.2, 2.5, 3.7, -0.5], TANH_8, [3.7 / 127]),
        (Pact(), 4, [1.2, 2.5, 3.7, -0.5], TANH_4, [3.7 / 15]),
    ],
    ids=lambda value: repr(value) if not isinstance(value, list) else "",
)
def test_weights_worked_by_hand(quantizer, bits, w, integers, scale):
    module = quantizer.fake_quantizer(narrow(WHOLE, bits))
    rounded = module(torch.tensor([w]))
    grid = module.grid()
    assert module.integers(torch.tensor([w])).tolist() == [integers]
    np.testing.assert_allclose(grid.scale.numpy(), scale, rtol=1e-6)
    np.testing.assert_allclose(rounded.numpy(), np.array([integers]) * grid.spread(rounded).numpy(), rtol=1e-6)


def test_an_input_of_dynamic_worked_by_hand():
    x = torch.tensor([1.2, 2.5, 3.7, 25.5])  # 25.5 / 255 = 0.1
    assert RoundDynamically()(x).div(0.1).round().tolist() == [12, 25, 37, 255]
    x = torch.tensor([-1.0, 0.04, 24.5])  # 25.5 / 255 again, with zero at 10
    assert RoundDynamically()(x).tolist() == pytest.approx([-1.0, 0.0, 24.5])


def observed(observer, bits, *batches):
    module = Static(observer=observer).fake_quantizer(narrow(ACTIVATION, bits))
    for x in batches:
        module(torch.from_numpy(x))
    return module


def by_numpy(x, low, high, bits):
    """Rounded to the grid of a range, in float64."""
    top = 2**bits - 1
    scale = (high - low) / top
    zero = np.clip(-np.rint(low / scale), 0, top)
    return (np.clip(np.rint(x / scale) + zero, 0, top) - zero) * scale


@pytest.mark.parametrize("bits", [4, 8])
def test_minmax_of_static_is_the_range_of_all_batches(bits):
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal(500) * size + 0.3).astype(np.float32) for size in (1, 3, 2)]
    module = observed("minmax", bits, *batches)
    module.observing = False
    low, high = (float(end(np.concatenate(batches))) for end in (np.min, np.max))
    scale, zero = module.scale_and_zero()
    assert float(scale) == pytest.approx((high - low) / (2**bits - 1), rel=1e-6)
    assert float(zero) == np.rint(-low / ((high - low) / (2**bits - 1)))
    for x in batches:
        np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), by_numpy(x, low, high, bits), atol=1e-5)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_histogram_of_static_has_nearly_the_least_error_of_all_ranges(bits):
    x = np.random.default_rng(1).standard_normal(3000).astype(np.float32)
    x = np.where(x > 0, 2 * x**2, x).astype(np.float32)  # a long tail to one side
    module = observed("histogram", bits, x[:2000], x[2000:])
    module.observing = False
    found = np.square(module(torch.from_numpy(x)).numpy() - x).mean()
    wide, shares = x.astype(np.float64), np.arange(1, 41) / 40
    errors = [
        np.square(by_numpy(wide, low, high, bits) - wide).mean()
        for low in shares * wide.min()
        for high in shares * wide.max()
    ]
    assert found <= 1.02 * min(errors)
    assert min(errors) < (0.8 if bits < 8 else 1.0) * errors[-1]  # the last is the whole range
