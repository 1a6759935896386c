"""Golden values and laws of the distiller `dist`."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kdq_distillers.dist import Dist


def softmax(z, temperature):
    e = np.exp(z.astype(np.float64) / temperature)
    return e / e.sum(1, keepdims=True)


def mean_unlikeness(ours, theirs):
    """Mean over rows of 1 - Pearson's r, from NumPy's correlation matrix."""
    return np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(ours, theirs)])


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_both_terms_equal_an_independent_computation_in_float64(terms, pair, temperature):
    q, p = (softmax(z, temperature) for z in pair)
    found = terms(Dist(beta=2.0, gamma=3.0, temperature=temperature), *pair).terms
    assert list(found) == ["inter", "intra"]
    assert float(found["inter"]) == pytest.approx(2 * temperature**2 * mean_unlikeness(q, p), rel=1e-4)
    assert float(found["intra"]) == pytest.approx(3 * temperature**2 * mean_unlikeness(q.T, p.T), rel=1e-4)


def test_the_loss_of_an_example_worked_by_hand(terms):
    # Student 3/6, 2/6, 1/6; teacher 1/6, 2/6, 3/6: r = -1. With teacher 3/6, 1/6, 2/6: r = (1 + 0 + 0) / 2 = 1/2.
    student, found = np.log([[3.0, 2.0, 1.0]]), []
    for teacher in ([[1.0, 2.0, 3.0]], [[3.0, 1.0, 2.0]]):
        found.append(terms(Dist(beta=1.0, gamma=0.0, temperature=1.0), student, np.log(teacher)).terms["inter"])
    assert [float(term) for term in found] == pytest.approx([2.0, 0.5], abs=1e-6)


def test_intra_is_inter_of_the_other_direction(terms):
    # One class rises from sample to sample in the student and falls in the teacher: r = -1 in both columns.
    student, teacher = np.log([[0.2, 0.8], [0.5, 0.5], [0.8, 0.2]]), np.log([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]])
    found = terms(Dist(beta=0.0, gamma=1.0, temperature=1.0), student, teacher).terms
    assert float(found["intra"]) == pytest.approx(2.0, abs=1e-6)


def test_a_student_that_shrinks_the_teachers_differences_is_not_punished(terms):
    # Probabilities 1/3 + half the teacher's distance from 1/3 are another distribution with the same relations.
    teacher = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
    found = terms(Dist(temperature=1.0), np.log(1 / 3 + (teacher - 1 / 3) / 2), np.log(teacher)).terms
    assert [float(term) for term in found.values()] == pytest.approx([0, 0], abs=1e-6)


def test_vectors_without_spread_count_as_zero(terms):
    flat = torch.zeros(1, 3)
    both = terms(Dist(temperature=1.0), flat, flat).terms
    assert [float(term) for term in both.values()] == [0, 0]
    one = terms(Dist(beta=1.0, gamma=1.0, temperature=1.0), flat, [[0.0, 1.0, 2.0]]).terms
    assert float(one["inter"]) == pytest.approx(0.5)
    assert float(one["intra"]) == 0


def test_equal_models_give_exactly_zero_at_a_high_temperature(terms, pair):
    found = terms(Dist(temperature=100.0), pair[0], pair[0]).terms
    assert [float(term) for term in found.values()] == [0, 0]


def test_a_step_against_the_gradient_lowers_the_loss(terms, pair):
    student = torch.tensor(pair[0], requires_grad=True)
    before = sum(terms(Dist(), student, pair[1]).terms.values())
    before.backward()
    after = sum(terms(Dist(), student.detach() - student.grad, pair[1]).terms.values())
    assert float(after) < float(before.detach())


def test_the_hard_loss_has_its_own_weight(terms, pair):
    assert terms(Dist(), *pair).hard_weight == 1.0
    assert terms(Dist(hard_weight=0.3), *pair).hard_weight == 0.3


@pytest.mark.parametrize("options", [{"beta": -1}, {"gamma": 1001}, {"temperature": 0}, {"alpha": 1}])
def test_options_out_of_range_or_unknown_are_refused(options):
    with pytest.raises(ValidationError):
        Dist(**options)
