"""Learned steps and clips: worked values, NumPy gradients, what moves and what stands still."""

import copy

import numpy as np
import pytest
import torch

import kdq_quantizers.dorefa
import kdq_quantizers.lsq
import kdq_quantizers.pact
import kdq_quantizers.static
from kdq_core.api import Place
from kdq_quantizers.dorefa import DoReFa
from kdq_quantizers.lsq import Lsq
from kdq_quantizers.pact import Pact
from kdq_quantizers.static import Static

WHOLE = Place("w", "weight", "w", "int8", -127, 127, symmetric=True)


def activation(bits=8):
    return Place("a", "activation", "a", "uint8", 0, 2**bits - 1, symmetric=False, bits=bits)


def weight(bits, channels=3, limits=(-127, 127)):
    limit = 2 ** (bits - 1)
    return Place("w", "weight", "w", "int8", -limit, limit - 1, True, 0, channels, bits=bits, limits=limits)


def started(module, scale, zero=0.0, values=1):
    """`module` as if it had been calibrated to this grid, with samples of `values` values."""
    if hasattr(module, "sharing"):
        module.sharing.fill_(values)
    module.seen.fill_(1)
    module.ready = True
    module.zero.fill_(zero)
    module.start(torch.full(module.shape, scale), torch.full(module.shape, zero))
    return module


@pytest.mark.parametrize("quantizer", [Lsq(), Pact(weights="minmax"), Static(), Static(weights="minmax")], ids=repr)
def test_worked_weights(quantizer):
    w = torch.tensor([1.2, 2.5, 3.7, 12.7])  # the last sets the step to 0.1
    module = quantizer.fake_quantizer(WHOLE)
    if isinstance(quantizer, Lsq):
        started(module, 0.1)
    assert module(w).div(0.1).round().tolist() == [12, 25, 37, 127]
    assert module.integers(w).tolist() == [12, 25, 37, 127]


def test_worked_activations():
    x = torch.tensor([1.2, 2.5, 3.7, 25.5])
    for quantizer in (Lsq(), Lsq(offset=True), Pact()):
        module = started(quantizer.fake_quantizer(activation()), 0.1)
        assert module(x).detach().div(0.1).round().tolist() == [12, 25, 37, 255]
    module = DoReFa().fake_quantizer(activation())
    assert module(x).div(0.1).round().tolist() == [12, 25, 37, 255]


@pytest.mark.parametrize("zero", [0.0, 7.0])
def test_lsq_moves_the_scale_by_the_papers_gradient(zero):
    """Plain gradient descent: the relative step is rate * g * dL/ds / s."""
    torch.manual_seed(0)
    x, grad = torch.randn(4, 6), 0.1 * torch.randn(4, 6)
    module = started(Lsq().fake_quantizer(activation(4)), 0.25, zero, values=6)
    module(x).backward(grad)
    units = x.double().numpy() / 0.25
    q = np.rint(units)
    inside = (q >= -zero) & (q <= 15 - zero)
    to_scale = (grad.numpy() * np.where(inside, q - units, np.clip(q, -zero, 15 - zero))).sum()
    gain = 1 / np.sqrt(6 * (15 - zero))
    assert float(module.learned.grad) == pytest.approx(gain * to_scale / 0.25, rel=1e-4)
    assert 0.01 < abs(gain * to_scale / 0.25) < 1  # not cut


def test_no_step_moves_a_scale_by_more_than_the_rate():
    module = started(Lsq().fake_quantizer(activation(4)), 0.002)
    module(torch.rand(100)).sum().backward()
    assert float(module.learned.grad) == 1.0


def test_lsq_plus_learns_the_zero_point_from_what_is_clipped():
    x, grad = torch.tensor([-2.0, 0.1, 0.4, 5.0]), torch.tensor([0.01, 0.3, 0.4, 0.02])
    module = started(Lsq(offset=True).fake_quantizer(activation(4)), 0.1, 3.0)
    y = module(x)
    assert y.detach().numpy() == pytest.approx([-0.3, 0.1, 0.4, 1.2], rel=1e-5)
    y.backward(grad)
    gain = 1 / np.sqrt(1 * (15 - 3))
    to_offset = 0.01 + 0.02  # LSQ+: 1 where clipped; offset = -zero * scale
    assert float(module.learned.grad[1]) == pytest.approx(-gain * to_offset * 0.1 / (0.1**2 * 15), rel=1e-4)
    with torch.no_grad():
        module.learned[1] += 1 / 15
    assert int(module.grid().zero_point) == 4


@pytest.mark.parametrize("zero", [0.0, 5.0])
def test_pact_learns_from_what_is_clipped_alone(zero):
    x, grad = torch.tensor([-9.0, 0.14, 0.4, 7.0, 8.0]), torch.tensor([0.1, 0.2, 0.3, 0.4, -0.1])
    module = started(Pact(decay=0.25).fake_quantizer(activation(4)), 0.1, zero)
    module(x).backward(grad)
    top = 15 - zero
    to_clip = (0.4 - 0.1) + 0.1 * (-zero / top)
    assert float(module.learned.grad) == pytest.approx(to_clip / (top * 0.1) + 0.25, rel=1e-4)


@pytest.mark.parametrize("quantizer", [Lsq(), Lsq(offset=True), Pact(), DoReFa()], ids=repr)
def test_calibration_moves_the_start_and_training_does_not(quantizer):
    module = quantizer.fake_quantizer(activation(4))
    module.quantizing = False
    x = torch.rand(10, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(module(x), x)
    first = module.grid().scale.clone()
    module(3 * x)
    assert float(module.grid().scale) == pytest.approx(2 * float(first), rel=0.02)
    module.quantizing = True
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module(100 * x)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    again = quantizer.fake_quantizer(activation(4))
    again.load_state_dict(before)
    assert getattr(again, "values", 5) == 5
    assert torch.equal(again(x), copy.deepcopy(module)(x))


def test_rounding_twice_is_rounding_once():
    x = torch.randn(200, generator=torch.Generator().manual_seed(1))
    for quantizer in (Lsq(), Pact(), DoReFa(), Static()):
        module = quantizer.fake_quantizer(activation(4))
        once = module(x).detach()
        module.observing = False
        assert torch.equal(module(once).detach(), once)


def test_dorefa_weights_are_the_papers_with_a_range_a_channel():
    w = torch.randn(3, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float32)
    for bits in (2, 3, 4, 6):
        module = DoReFa().fake_quantizer(weight(bits))
        given, rows = module(w).numpy(), w.double().numpy()
        n = 2**bits - 1
        paper = np.tanh(rows)
        paper = paper / (2 * np.abs(paper).max(1, keepdims=True)) + 0.5
        q = 2 * np.rint(n * paper) - n
        assert np.array_equal(module.integers(w).numpy(), q)
        assert set(np.unique(np.abs(q))) <= set(range(1, n + 1, 2))
        assert given == pytest.approx(q * np.abs(rows).max(1, keepdims=True) / n, rel=1e-6)
        assert (module.grid().qmin, module.grid().qmax) == (-127, 127)


def test_dorefa_weights_keep_to_the_kernels_integers():
    w = torch.randn(3, 40, generator=torch.Generator().manual_seed(2))
    for place in (Place("w", "weight", "w", "int8", -127, 127, True, 0, 3), weight(7, limits=(-63, 63))):
        module = DoReFa().fake_quantizer(place)
        module(w)
        scaled = np.tanh(w.double().numpy())
        scaled = scaled / np.abs(scaled).max(1, keepdims=True) * place.qmax
        assert np.array_equal(module.integers(w).numpy(), np.rint(scaled))


def test_the_gradient_of_a_dorefa_weight_is_that_of_tanh():
    w = torch.tensor([[0.5, -1.0, 0.2]], requires_grad=True)
    DoReFa().fake_quantizer(weight(3, channels=1))(w).sum().backward()
    wanted = (1 - np.tanh([0.5, -1.0, 0.2]) ** 2) / np.tanh(1.0)
    assert w.grad.numpy()[0] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    "card", [kdq_quantizers.lsq, kdq_quantizers.pact, kdq_quantizers.dorefa, kdq_quantizers.static]
)
def test_the_method_cards_have_their_headings(card):
    lines = card.__doc__.splitlines()
    assert all(heading in lines for heading in ("What", "Formula", "Source", "Defaults", "Costs", "Limits"))
