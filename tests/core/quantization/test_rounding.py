"""The fast rounding gives the bits and gradients of the plain formula."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdq_core.api import round_to_grid
from kdq_core.grids.rounding import first_above


def plain(x, scale, zero, qmin, qmax, grad):
    """float64 bookkeeping around the float32 division: value, and the three gradients by the papers' formulas."""
    q = np.rint(x / scale)
    inside = (q >= qmin - zero) & (q <= qmax - zero)
    value = np.clip(q, qmin - zero, qmax - zero).astype(np.float32) * scale
    exact = np.clip(q, qmin - zero, qmax - zero).astype(np.float64)
    to_scale = (grad * np.where(inside, exact - x.astype(np.float64) / scale, exact)).sum()
    return value, grad * inside, to_scale, (grad * ~inside).sum() * -scale


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("scale", "zero"), [(0.1, 0.0), (0.37, 5.0), (1 / 3, 15.0)])
def test_value_and_gradients_are_those_of_the_formula(layout, scale, zero):
    torch.manual_seed(0)
    x = (2 * torch.randn(4, 3, 5, 5)).to(memory_format=layout)
    x.view(-1)[:4] if layout is torch.contiguous_format else None
    x.requires_grad_()
    s, z = torch.tensor(scale, requires_grad=True), torch.tensor(zero, requires_grad=True)
    grad = torch.randn(4, 3, 5, 5)  # of another layout than a channels_last x
    y = round_to_grid(x, s, z, 0, 15)
    y.backward(grad)
    value, to_x, to_scale, to_zero = plain(x.detach().numpy(), np.float32(scale), zero, 0, 15, grad.numpy())
    assert np.array_equal(y.detach().numpy(), value)
    assert np.array_equal(x.grad.numpy(), to_x)
    assert s.grad.item() == pytest.approx(to_scale, rel=1e-4, abs=1e-4)
    assert z.grad.item() == pytest.approx(to_zero, rel=1e-4, abs=1e-4)


def test_one_scale_a_channel():
    torch.manual_seed(1)
    w, grad = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    s = torch.tensor([0.1, 0.5, 0.25], requires_grad=True)
    y = round_to_grid(w, s, torch.zeros(3), -2, 1, axis=0)
    y.backward(grad)
    for row in range(3):
        value, to_w, to_scale, _ = plain(w[row].detach().numpy(), s[row].detach().numpy(), 0, -2, 1, grad[row].numpy())
        assert np.array_equal(y[row].detach().numpy(), value)
        assert np.array_equal(w.grad[row].numpy(), to_w)
        assert s.grad[row].item() == pytest.approx(to_scale, rel=1e-4, abs=1e-5)


def test_worked_example():
    w = torch.tensor([1.2, 2.5, 3.7])
    y = round_to_grid(w, torch.tensor(0.1), torch.tensor(0.0), -127, 127)
    assert y.div(0.1).round().tolist() == [12, 25, 37]


def test_a_merged_relu_gives_the_bits_and_gradients_of_relu_and_rounding_apart():
    torch.manual_seed(2)
    x = torch.randn(500)
    x[:5] = torch.tensor([0.0, -0.0, 1e-30, 3.0, -3.0])
    grad, results = torch.randn(500), []
    for merged in (True, False):
        a, s = x.clone().requires_grad_(), torch.tensor(0.11, requires_grad=True)
        y = round_to_grid(a if merged else a.relu(), s, torch.tensor(0.0), 0, 15, relu=merged)
        y.backward(grad)
        results.append((y, a.grad, s.grad))
    (y, to_x, to_s), (y2, to_x2, to_s2) = results
    assert torch.equal(y, y2)
    assert torch.equal(to_x, to_x2)
    assert torch.allclose(to_s, to_s2, rtol=1e-5)


def test_half_precision_is_rounded_in_float32():
    x = torch.linspace(-3, 3, 101, dtype=torch.bfloat16, requires_grad=True)
    y = round_to_grid(x, torch.tensor(0.1), torch.tensor(0.0), -8, 7)
    y.sum().backward()
    wide = x.detach().float()
    assert y.dtype == x.grad.dtype == torch.bfloat16
    assert torch.equal(y, (wide.div(0.1).round().clamp(-8, 7) * 0.1).bfloat16())
    assert torch.equal(
        x.grad.float(), wide.div(0.1).round().abs().le(7.5).logical_or(wide.div(0.1).round().eq(-8)).float()
    )


@given(st.floats(2**-20, 2**10, width=32), st.integers(0, 255))
def test_the_threshold_is_the_least_float_beyond_the_bound(scale, bound):
    step, x = np.float32(scale), np.float32(first_above(scale, bound))
    assert np.rint(x / step) > bound
    assert np.rint(np.nextafter(x, np.float32(-np.inf)) / step) <= bound


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bound", [200, 100, 3])
def test_channels_that_clip_or_do_not_have_the_bits_of_the_formula(layout, bound):
    torch.manual_seed(4)
    w = torch.randn(4, 3, 2, 5).to(memory_format=layout).requires_grad_()
    scale = w.detach().abs().amax((1, 2, 3)) / 100
    grad = torch.randn(4, 3, 2, 5)
    y = round_to_grid(w, scale, torch.zeros(4), -bound, bound, axis=0)
    y.backward(grad)
    for row in range(4):
        value, to_w, _, _ = plain(w[row].detach().numpy(), scale[row].numpy(), 0, -bound, bound, grad[row].numpy())
        assert np.array_equal(y[row].detach().numpy(), value)
        assert np.array_equal(w.grad[row].numpy(), to_w)
    assert bool((w.grad == 0).any()) == (bound == 3)
