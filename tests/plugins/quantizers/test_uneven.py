"""Apot and codebook: levels by hand, against NumPy, and on the kernels' integers."""

import itertools

import numpy as np
import pytest
import torch

from kdq_core.api import Place, StageError
from kdq_core.quantization.placing import narrow
from kdq_quantizers.apot import Apot
from kdq_quantizers.codebook import Codebook
from kdq_quantizers.uneven import k_means, magnitudes


def place(bits, limit=127, channels=3):
    whole = Place("w", "weight", "w", "int8", -limit, limit, symmetric=True, axis=0, channels=channels)
    return narrow(whole, bits)


def begun(quantizer, bits, weight, limit=127):
    module = quantizer.fake_quantizer(place(bits, limit, len(weight)))
    module.observe(weight)
    return module


@pytest.mark.parametrize(
    ("bits", "levels"),
    [(2, [0, 1]), (3, [0, 1, 2, 4]), (4, [0, 1, 2, 3, 4, 6, 8, 10])],
)  # fmt: skip
def test_additive_powers_of_two_worked_by_hand(bits, levels):
    assert magnitudes(bits) == levels


@pytest.mark.parametrize(
    ("bits", "terms"),
    [
        (5, [[1, 3, 5], [2, 4, 6]]),
        (6, [[1, 3, 6], [2, 4, 7], [5]]),
        (7, [[1, 4, 7], [2, 5, 8], [3, 6, 9]]),
    ],
)
def test_additive_powers_of_two_are_those_of_the_authors(bits, terms):
    """Falling powers of two of each term, as in the authors' code."""
    sums = {sum(parts) for parts in itertools.product(*([0.0, *(2.0**-power for power in term)] for term in terms))}
    found = np.array(magnitudes(bits)) / magnitudes(bits)[-1]
    assert np.allclose(found, np.sort(list(sums)) / max(sums), rtol=0, atol=1e-12)
    assert len(found) == 2 ** (bits - 1)


@pytest.mark.parametrize("limit", [63, 127])
@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_apot_is_the_nearest_level_of_numpy(bits, limit):
    torch.manual_seed(0)
    weight = torch.randn(3, 200)
    module = begun(Apot(), bits, weight, limit)
    start = np.minimum(np.abs(weight.numpy()).max(1), 3 * np.sqrt((weight.numpy() ** 2).mean(1)))
    assert np.allclose(module.threshold.detach().numpy(), start, rtol=1e-6)
    positive = np.array(magnitudes(bits), dtype=np.float64)
    if positive[-1] > limit:
        positive = np.rint(positive * limit / positive[-1])
    levels = np.unique(np.concatenate([-positive, positive]))
    unit = weight.numpy() / (start[:, None] / levels[-1])
    expected = levels[np.abs(unit[..., None] - levels).argmin(-1)]
    found = module.integers(weight)
    assert np.array_equal(found.numpy(), expected)
    assert len(torch.unique(found)) <= 2**bits
    assert np.allclose(module(weight).detach().numpy(), expected * start[:, None] / levels[-1], rtol=1e-5)


def test_the_threshold_of_apot_learns_and_is_not_set_again():
    weight = torch.tensor([[0.5, -2.0, 0.1]], requires_grad=True)
    module = begun(Apot(sigmas=100), 3, weight.detach())
    with torch.no_grad():
        module.threshold.fill_(1.0)
    module(weight).backward(torch.tensor([[1.0, 10.0, 100.0]]))
    assert weight.grad.tolist() == [[1.0, 0.0, 100.0]]  # -2 is beyond the threshold
    assert module.threshold.grad.tolist() == pytest.approx([0.0 - 10.0 - 100 * 0.1])  # 0.5 is on a level, 0.1 goes to 0
    module.observe(weight.detach() * 5)
    assert module.threshold.tolist() == [1.0]


def test_k_means_worked_by_hand():
    x = torch.tensor([0.0, 1.0, 9.0, 10.0, 11.0])
    assert k_means(x, torch.ones(5), 2, 20).tolist() == [0.5, 10.0]
    heavy = torch.tensor([1.0, 3.0, 1.0, 1.0, 2.0])
    assert k_means(x, heavy, 2, 20).tolist() == [0.75, 10.25]
    assert k_means(x, torch.ones(5), 3, 0).tolist() == [0.0, 5.5, 11.0]
    assert k_means(torch.zeros(4), torch.ones(4), 4, 5).tolist() == [0.0] * 4


def test_k_means_is_that_of_numpy():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(500)
    centroids = np.linspace(x.min(), x.max(), 8)
    for _ in range(30):
        owner = np.abs(x[:, None] - centroids).argmin(1)
        centroids = np.array([x[owner == k].mean() if (owner == k).any() else centroids[k] for k in range(8)])
    assert np.allclose(k_means(torch.tensor(x), torch.ones(500), 8, 30).numpy(), centroids, atol=1e-6)


@pytest.mark.parametrize("scope", ["channel", "tensor"])
def test_a_codebook_lies_on_the_kernels_integers_and_a_centroid_gets_the_sum_of_its_weights_gradients(scope):
    torch.manual_seed(0)
    weight = torch.randn(3, 50) * torch.tensor([[1.0], [2.0], [4.0]])
    module = begun(Codebook(scope=scope), 2, weight, 63)
    most = weight.abs().amax(1) if scope == "channel" else weight.abs().max().expand(3)
    assert torch.equal(module.unit, most)
    levels = (module.centroids.detach().sort().values * 63).round()
    q = module.integers(weight)
    assert len(torch.unique(q)) <= 4
    assert q.abs().max() > 8  # beyond what 2 bits of even steps have
    expected = levels.numpy()[np.abs((weight / most[:, None] * 63).numpy()[..., None] - levels.numpy()).argmin(-1)]
    assert np.array_equal(q.numpy(), expected)
    grad = torch.randn(3, 50)
    (module(weight) * grad).sum().backward()
    by_hand = [float((grad * most[:, None])[q == level].sum()) for level in levels]
    assert module.centroids.grad.tolist() == pytest.approx(by_hand, rel=1e-4)
    assert torch.allclose(module(weight), q * most[:, None] / 63)


def test_centroids_that_cross_are_still_levels_in_order():
    module = begun(Codebook(), 2, torch.randn(2, 30))
    with torch.no_grad():
        module.centroids.copy_(torch.tensor([0.9, -0.2, 3.0, 0.1]))
    assert module.levels().tolist() == [-25.0, 13.0, 114.0, 127.0]


@pytest.mark.parametrize("quantizer", [Apot(), Codebook()], ids=["apot", "codebook"])
def test_zeros_no_data_and_nan(quantizer):
    module = quantizer.fake_quantizer(place(3))
    with pytest.raises(StageError, match="place 'w' has seen no data; observe at least one batch"):
        module.grid()
    with pytest.raises(StageError, match="place 'w' saw a value that is not finite"):
        module.observe(torch.tensor([[1.0], [float("nan")], [2.0]]))
    module.observe(torch.zeros(3, 4))
    assert float(module(torch.zeros(3, 4)).detach().abs().max()) <= 1e-6
    assert bool(module.grid().scale.isfinite().all())
    rounded = begun(quantizer, 3, torch.randn(3, 40))
    once = rounded(torch.randn(3, 40)).detach()
    assert torch.equal(rounded(once).detach(), once)
