"""Golden values and laws of the distiller `rkd`."""

from itertools import permutations

import numpy as np
import pytest
import torch

from kdq_distillers.rkd import Rkd, angles, distances


def huber(x):
    return np.where(np.abs(x) <= 1, x**2 / 2, np.abs(x) - 0.5)


def relations(vectors):
    """Distances over their mean, and cosines, by loops over pairs and triples."""
    x = vectors.astype(np.float64)
    far = np.array([np.linalg.norm(x[i] - x[j]) for i, j in permutations(range(len(x)), 2)])
    cosines = []
    for i, j, k in permutations(range(len(x)), 3):
        a, b = x[i] - x[j], x[k] - x[j]
        cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    return far / far.mean(), np.array(cosines)


def test_both_terms_equal_an_independent_computation_in_float64(feature_terms, maps):
    student, teacher = (m.mean((2, 3)) for m in maps)
    student[0] *= 20  # far enough for Huber's straight part
    (d_s, a_s), (d_t, a_t) = relations(student), relations(teacher)
    assert np.abs(d_s - d_t).max() > 1
    found = feature_terms(Rkd(), {"x": student}, {"x": teacher})
    assert list(found.terms) == ["distance", "angle"]
    assert float(found.terms["distance"]) == pytest.approx(25 * huber(d_s - d_t).mean(), rel=1e-5)
    assert float(found.terms["angle"]) == pytest.approx(50 * huber(a_s - a_t).mean(), rel=1e-5)
    assert found.hard_weight == 1.0


def test_the_loss_of_an_example_worked_by_hand(feature_terms):
    # Student: a line 0, 1, 2. Distances 1, 2, 1, mean 4/3: 3/4, 3/2, 3/4. Cosines: at both ends 1, in the middle -1.
    # Teacher: an equilateral triangle. Distances all 1; cosines all 1/2.
    student = [[0.0], [1.0], [2.0]]
    teacher = [[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]]
    found = feature_terms(Rkd(distance=1.0, angle=1.0), {"x": student}, {"x": teacher})
    assert float(found.terms["distance"]) == pytest.approx((1 / 32 + 1 / 8 + 1 / 32) / 3, rel=1e-5)
    assert float(found.terms["angle"]) == pytest.approx((1 / 8 + 1 / 8 + 1) / 3, rel=1e-5)


def test_moving_turning_and_scaling_all_samples_changes_nothing(feature_terms):
    x = np.random.default_rng(2).normal(size=(6, 4))
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(4, 4)))
    found = feature_terms(Rkd(), {"x": 5 * x @ turn + 3}, {"x": x}).terms
    assert [float(term) for term in found.values()] == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize(("samples", "pairs", "triples"), [(1, 0, 0), (2, 2, 0), (3, 6, 6), (5, 20, 60)])
def test_every_pair_and_triple_of_distinct_samples_counts(samples, pairs, triples):
    x = torch.randn(samples, 3, generator=torch.Generator().manual_seed(0))
    assert distances(x).shape == (pairs,)
    assert angles(x).shape == (triples,)


def test_samples_that_fall_together_have_a_finite_gradient(feature_terms):
    student = torch.ones(4, 3, requires_grad=True)
    teacher = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    terms = feature_terms(Rkd(), {"x": student}, {"x": teacher}).terms
    sum(terms.values()).backward()
    assert student.grad.isfinite().all()
    assert all(float(term.detach()) > 0 for term in terms.values())


def test_maps_are_averaged_over_their_positions(feature_terms, maps):
    whole = feature_terms(Rkd(), {"x": maps[0]}, {"x": maps[1]}).terms
    means = feature_terms(Rkd(), {"x": maps[0].mean((2, 3))}, {"x": maps[1].mean((2, 3))}).terms
    assert [float(term) for term in whole.values()] == pytest.approx([float(t) for t in means.values()], rel=1e-4)
