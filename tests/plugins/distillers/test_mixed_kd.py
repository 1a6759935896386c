"""Golden values and laws of the distiller `mixed-kd`."""

import numpy as np
import pytest
from pydantic import ValidationError

from kdq_core.api import StageError
from kdq_distillers.logit_kd import LogitKd
from kdq_distillers.mixed_kd import MixedKd
from kdq_distillers.multi_label_kd import MultiLabelKd


def softmax_kl(student, teacher):
    q, p = (np.exp(z.astype(np.float64)) for z in (student, teacher))
    q, p = q / q.sum(1, keepdims=True), p / p.sum(1, keepdims=True)
    return (p * np.log(p / q)).sum(1).mean()


def sigmoid_kl(student, teacher):
    q, p = (1 / (1 + np.exp(-z.astype(np.float64))) for z in (student, teacher))
    return (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(1).mean()


def test_both_terms_equal_an_independent_computation_in_float64(terms, pair):
    student, teacher = (z / 2 for z in pair)
    found = terms(MixedKd(alpha=0.4, temperature=2.0, groups=((0, 2), (5, 8))), *pair)
    classes = softmax_kl(student[:, :3], teacher[:, :3]) + softmax_kl(student[:, 5:9], teacher[:, 5:9])
    rest = [3, 4, 9]
    assert list(found.terms) == ["classes", "labels"]
    assert float(found.terms["classes"]) == pytest.approx(0.4 * 4 * classes, rel=1e-4)
    assert float(found.terms["labels"]) == pytest.approx(
        0.4 * 4 * sigmoid_kl(student[:, rest], teacher[:, rest]), rel=1e-4
    )
    assert found.hard_weight == pytest.approx(0.6)


def test_an_example_worked_by_hand(terms):
    # Classes: teacher (3/4, 1/4), student (1/2, 1/2). Label: teacher 3/4, student 1/2. The two divergences are equal.
    student, teacher = [[0.0, 0.0, 0.0]], [[np.log(3), 0.0, np.log(3)]]
    found = terms(MixedKd(alpha=1.0, groups=((0, 1),)), student, teacher).terms
    expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert [float(term) for term in found.values()] == pytest.approx([expected, expected], rel=1e-6)


def test_one_group_of_all_is_logit_kd_and_no_group_is_multi_label_kd(terms, pair):
    one = terms(MixedKd(temperature=3.0, groups=((0, 9),)), *pair).terms
    assert list(one) == ["classes"]
    expected = terms(LogitKd(alpha=0.5, temperature=3.0), *pair).terms["kd"]
    assert float(one["classes"]) == pytest.approx(float(expected), rel=1e-6)
    none = terms(MixedKd(temperature=3.0), *pair).terms
    assert list(none) == ["labels"]
    expected = terms(MultiLabelKd(temperature=3.0), *pair).terms["multi_label"]
    assert float(none["labels"]) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("groups", [((2, 1),), ((-1, 2),), ((0, 3), (3, 5))])
def test_groups_that_overlap_or_are_none_are_refused(groups):
    with pytest.raises(ValidationError):
        MixedKd(groups=groups)


def test_a_group_beyond_the_outputs_is_named(terms, pair):
    with pytest.raises(StageError) as caught:
        terms(MixedKd(groups=((0, 1), (8, 10))), *pair)
    assert str(caught.value) == (
        "distiller 'mixed-kd' has a group [8, 10], but the models give 10 outputs, 0 to 9; correct 'groups'"
    )
