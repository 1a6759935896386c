"""The searches for ranges against plain NumPy, and what calibration may meet."""

import numpy as np
import pytest
import torch

from kdq_core.api import Place, StageError
from kdq_quantizers.dorefa import DoReFa
from kdq_quantizers.lsq import Lsq
from kdq_quantizers.pact import Pact
from kdq_quantizers.ranges import BINS, Histogram, mse_range, mse_scale, percentile_range, two_ended_range
from kdq_quantizers.static import Static

OBSERVERS = ("minmax", "percentile", "entropy", "mse", "histogram")
ALL = [Lsq(), Lsq(offset=True), Pact(), DoReFa(), *(Static(observer=name) for name in OBSERVERS)]


def activation(bits=8):
    return Place("a", "activation", "a", "uint8", 0, 2**bits - 1, symmetric=False, bits=bits)


def weight(bits=8, channels=3):
    limit = 2 ** (bits - 1)
    low = -127 if bits == 8 else -limit
    return Place(
        "w", "weight", "w", "int8", low, limit - 1, True, axis=0, channels=channels, bits=bits, limits=(-127, 127)
    )


def histogram(*batches):
    seen = Histogram()
    for x in batches:
        seen.add(x, activation())
    return seen


def rounded(x, low, high, levels):
    scale = (high - low) / (levels - 1)
    zero = np.clip(np.rint(-low / scale), 0, levels - 1)
    return (np.clip(np.rint(x / scale) + zero, 0, levels - 1) - zero) * scale


def error(x, low, high, levels):
    return np.square(rounded(x, low, high, levels) - x).mean()


def test_a_histogram_that_grows_counts_as_numpy_does_over_its_last_edges():
    torch.manual_seed(0)
    batches = [torch.rand(500), torch.randn(500), 30 * torch.randn(500), torch.full((3,), -2000.0)]
    seen = histogram(*batches)
    edges = float(seen.origin) + float(seen.width) * np.arange(BINS + 1)
    wanted, _ = np.histogram(torch.cat(batches).double().numpy(), bins=edges)
    assert seen.counts.sum() == 1503
    assert np.abs(np.cumsum(seen.counts.numpy() - wanted)).max() <= 2  # float32 values on an edge
    assert float(seen.least) == -2000
    assert float(seen.largest) == float(torch.cat(batches).max())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_mse_finds_the_best_share_of_a_brute_force_search(bits):
    torch.manual_seed(1)
    x = torch.cat((torch.randn(20_000), torch.tensor([9.0, -7.0])))
    low, high = mse_range(histogram(x), activation(bits))
    values = x.double().numpy()
    errors = [error(values, -7 * k / 100, 9 * k / 100, 2**bits) for k in range(1, 101)]
    assert error(values, low, high, 2**bits) == pytest.approx(min(errors), rel=0.02)
    assert min(errors) < (0.97 if bits == 8 else 0.5) * errors[-1]  # there is something to find


def test_two_ends_beat_one_share_on_lopsided_data():
    torch.manual_seed(2)
    x = torch.cat((torch.randn(20_000).exp(), -torch.rand(20_000), torch.tensor([-20.0])))
    seen, values = histogram(x), x.double().numpy()
    both, one = two_ended_range(seen, activation(4)), mse_range(seen, activation(4))
    assert error(values, *both, 16) < 0.9 * error(values, *one, 16)


def test_a_percentile_is_numpys_within_a_bin():
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(3))
    seen = histogram(x)
    low, high = percentile_range(seen, activation(), percentile=99.0)
    assert [low, high] == pytest.approx(np.percentile(x.numpy(), [1, 99]), abs=2 * float(seen.width))
    assert percentile_range(histogram(x.relu()), activation(), percentile=99.0)[0] == 0


def divergence(counts, reach, levels):
    """Migacz's slides, bin by bin, for a histogram that begins at zero."""
    p = counts[:reach].astype(float)
    q = np.zeros(reach)
    for group in np.array_split(np.arange(reach), levels):
        filled = [i for i in group if p[i] > 0]
        for i in filled:
            q[i] = p[group].sum() / len(filled)
    p = p.copy()
    p[-1] += counts[reach:].sum()
    p, q = p / p.sum(), q / q.sum()
    return sum(a * np.log(a / max(b, 1e-9)) for a, b in zip(p, q, strict=True) if a > 0)


def test_entropy_clips_where_the_divergence_is_least():
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(4)).abs().pow(1.5)
    module = Static(observer="entropy").fake_quantizer(activation())
    module.observe(x)
    counts = module.histogram.counts.numpy().copy()
    counts[0] = counts[1]
    reaches = [r for r in range(BINS, 255, -16) if r % 256 == 0]  # where groups are equal, the two groupings agree
    best = min(reaches, key=lambda r: divergence(counts, r, 256))
    high = float(module.scale_and_zero()[0]) * 255
    found = round(high / float(module.histogram.width))
    assert divergence(counts, min(found, BINS), 256) <= 1.05 * divergence(counts, best, 256)
    assert high < 0.9 * float(x.max())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_scale_of_a_weight_has_the_least_error_of_all_candidates(bits):
    w = torch.randn(3, 50, generator=torch.Generator().manual_seed(5))
    place = weight(bits)
    scales = mse_scale(w, place).double().numpy()
    for row, scale in zip(w.double().numpy(), scales, strict=True):
        tried = [np.abs(row).max() * k / 100 / place.qmax for k in range(1, 101)]
        errors = [np.square(np.clip(np.rint(row / s), place.qmin, place.qmax) * s - row).sum() for s in tried]
        assert scale == pytest.approx(tried[int(np.argmin(errors))], rel=1e-5)


@pytest.mark.parametrize("quantizer", ALL, ids=repr)
def test_a_constant_activation_is_kept_and_nan_is_an_error(quantizer):
    for value in (5.0, -3.0, 0.0):
        module = quantizer.fake_quantizer(activation())
        x = torch.full((4, 2), value)
        assert torch.allclose(module(x), x, rtol=2e-3)
        grid = module.grid()
        assert float(grid.scale) > 0
        assert 0 <= int(grid.zero_point) <= 255
    for place in (activation(), weight()):
        with pytest.raises(StageError) as caught:
            quantizer.fake_quantizer(place)(torch.full((3, 2), float("nan")))
        assert str(caught.value) == (
            f"place {place.name!r} saw a value that is not finite; look for NaN or infinity in the data, "
            "or lower the learning rate"
        )


@pytest.mark.parametrize("quantizer", ALL, ids=repr)
def test_without_data_there_is_no_grid(quantizer):
    for place in (activation(), weight()):
        with pytest.raises(StageError) as caught:
            quantizer.fake_quantizer(place).grid()
        assert str(caught.value) == (
            f"place {place.name!r} has seen no data; observe at least one batch before rounding"
        )


@pytest.mark.parametrize("quantizer", [Lsq(), Pact(weights="minmax"), Static(), Static(weights="minmax")], ids=repr)
@pytest.mark.parametrize("bits", [2, 8])
def test_a_row_of_zeros_stays_zero(quantizer, bits):
    module = quantizer.fake_quantizer(weight(bits))
    w = torch.tensor([[0.0, 0.0], [0.5, -1.0], [2.0, 1.0]])
    assert torch.equal(module(w)[0], torch.zeros(2))
    assert torch.equal(module.integers(w)[0], torch.zeros(2))
    assert bool((module.grid().scale > 0).all())
    assert torch.equal(quantizer.fake_quantizer(weight(bits))(torch.zeros(3, 2)), torch.zeros(3, 2))


def test_a_weight_that_changed_in_place_gets_a_new_scale():
    module, w = Static().fake_quantizer(weight()), torch.ones(3, 2)
    module.observe(w)
    before = module.grid().scale.clone()
    module.observe(w)
    assert torch.equal(module.grid().scale, before)
    module.observe(w.mul_(4))
    assert torch.allclose(module.grid().scale, 4 * before)
