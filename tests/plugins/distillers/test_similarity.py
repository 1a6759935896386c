"""Golden values and laws of the distiller `similarity`."""

import numpy as np
import pytest
import torch

from kdq_distillers.similarity import Similarity


def similarities(features):
    q = features.reshape(len(features), -1).astype(np.float64)
    g = q @ q.T
    return g / np.linalg.norm(g, axis=1, keepdims=True)


def test_the_loss_equals_an_independent_computation_in_float64(feature_terms, maps):
    student, teacher = maps
    found = feature_terms(Similarity(), {"a": student, "b": student}, {"a": teacher, "b": student})
    expected = 3000 * ((similarities(student) - similarities(teacher)) ** 2).sum() / 8**2
    assert list(found.terms) == ["similarity"]
    assert float(found.terms["similarity"]) == pytest.approx(expected, rel=1e-5)
    assert found.hard_weight == 1.0


def test_the_loss_of_an_example_worked_by_hand(feature_terms):
    # Student (1, 0), (0, 1): G = identity. Teacher (1, 0), (3, 0): G rows (1, 3), (3, 9), both (1, 3) / sqrt 10.
    # Squared differences: (1 - 1/r)^2 + (3/r)^2 + (1/r)^2 + (1 - 3/r)^2 = 4 - 8/r with r = sqrt 10; over B^2 = 4.
    found = feature_terms(Similarity(gamma=1.0), {"x": [[1.0, 0.0], [0.0, 1.0]]}, {"x": [[1.0, 0.0], [3.0, 0.0]]})
    assert float(found.terms["similarity"]) == pytest.approx((4 - 8 / 10**0.5) / 4, rel=1e-5)


def test_neither_channels_nor_positions_need_agree(feature_terms, maps):
    found = feature_terms(Similarity(), {"x": maps[0][:, :, :2]}, {"x": maps[1]}).terms["similarity"]
    assert 0 < float(found) < float("inf")


def test_turning_the_features_of_all_samples_changes_nothing(feature_terms):
    x = np.random.default_rng(2).normal(size=(6, 4))
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(4, 4)))
    assert float(feature_terms(Similarity(), {"x": x @ turn}, {"x": x}).terms["similarity"]) == pytest.approx(
        0, abs=1e-5
    )


def test_a_layer_that_is_silent_has_a_gradient_of_zero(feature_terms, maps):
    student = torch.zeros(8, 3, requires_grad=True)
    feature_terms(Similarity(), {"x": student}, {"x": maps[1]}).terms["similarity"].backward()
    assert not student.grad.any()
