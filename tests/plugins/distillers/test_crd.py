"""Golden values and laws of the distiller `crd`."""

import math

import numpy as np
import pytest
import torch

from kdq_core.api import StageError
from kdq_distillers.crd import Crd


def contrast(student, teacher, tau, labels=None):
    s, t = (x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (student, teacher))
    found = []
    for i in range(len(s)):
        kept = [j for j in range(len(t)) if j == i or labels is None or labels[j] != labels[i]]
        e = np.exp([s[i] @ t[j] / tau for j in kept])
        found.append(-math.log(e[kept.index(i)] / e.sum()))
    return np.mean(found)


@pytest.mark.parametrize("labels", [None, [0, 0, 1, 2, 1, 1, 3, 0]])
def test_the_loss_equals_an_independent_computation_in_float64(feature_terms, labels):
    student, teacher = np.random.default_rng(4).normal(size=(2, 8, 6)).astype(np.float32)
    found = feature_terms(Crd(tau=0.2), {"x": student}, {"x": teacher}, labels)
    assert list(found.terms) == ["contrast"]
    assert float(found.terms["contrast"]) == pytest.approx(0.8 * contrast(student, teacher, 0.2, labels), rel=1e-5)
    assert found.hard_weight == 1.0


def test_the_loss_of_an_example_worked_by_hand(feature_terms):
    # Lengths are 1; products 0 with the own feature and 1 with the other one: -log(1 / (1 + e)) = log(1 + e).
    student, teacher = [[2.0, 0.0], [0.0, 3.0]], [[0.0, 1.0], [5.0, 0.0]]
    found = feature_terms(Crd(beta=1.0, tau=1.0), {"x": student}, {"x": teacher})
    assert float(found.terms["contrast"]) == pytest.approx(math.log(1 + math.e), rel=1e-6)


def test_samples_of_one_class_are_no_negatives(feature_terms):
    student, teacher = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(0))
    assert float(feature_terms(Crd(), {"x": student}, {"x": teacher}, [1] * 8).terms["contrast"]) == 0


def test_samples_without_a_class_in_a_mixed_batch_are_negatives_of_all(feature_terms):
    student, teacher = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    mixed = feature_terms(Crd(), {"x": student}, {"x": teacher}, [-100, -100, 0, 1]).terms["contrast"]
    apart = feature_terms(Crd(), {"x": student}, {"x": teacher}, [0, 1, 2, 3]).terms["contrast"]
    assert float(mixed) == float(apart)


def test_labels_that_are_no_classes_leave_all_others_as_negatives(feature_terms):
    student, teacher = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(0))
    plain = feature_terms(Crd(), {"x": student}, {"x": teacher}).terms["contrast"]
    several = feature_terms(Crd(), {"x": student}, {"x": teacher}, torch.ones(8, 3)).terms["contrast"]
    assert float(several) == float(plain)


def test_other_channels_without_a_projector_are_named(feature_terms):
    with pytest.raises(StageError) as caught:
        feature_terms(Crd(), {"x": torch.ones(2, 3)}, {"x": torch.ones(2, 5)})
    assert str(caught.value) == (
        "distiller 'crd' compares features of the same channels, but for the pair 'x' the student has 3 and the "
        "teacher 5; its projectors map one to the other"
    )
    assert set(Crd().projectors({"x": (3,)}, {"x": (5,)})) == {"x"}
