"""Golden values and laws of the distiller `logistic`."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kdq_distillers.logistic import Logistic
from kdq_distillers.logit_kd import LogitKd


def margins(z):
    """log(p / (1 - p)) of each class as the difference of its logit and the log-sum-exp of the others, in float64."""
    z = z.astype(np.float64)
    rest = [np.log(np.exp(np.delete(z, c, axis=1)).sum(1)) for c in range(z.shape[1])]
    return z - np.stack(rest, axis=1)


def independent_logistic(student, teacher):
    """Mean logistic loss under the teacher's probability of +1, less its least value."""
    ours, theirs = margins(student), margins(teacher)
    yes = 1 / (1 + np.exp(-theirs))

    def mean_loss(m):
        return yes * np.log1p(np.exp(-m)) + (1 - yes) * np.log1p(np.exp(m))

    return np.mean(np.sum(mean_loss(ours) - mean_loss(theirs), axis=1))


def test_the_loss_equals_an_independent_computation_in_float64(terms, pair):
    found = terms(Logistic(alpha=1.0), *pair).terms["logistic"]
    assert float(found) == pytest.approx(independent_logistic(*pair), rel=1e-5)


def test_the_loss_of_an_example_worked_by_hand(terms):
    # Teacher 3/4, 1/4; student 1/2, 1/2: each of the two coins differs by 3/4 ln 3 - ln 2.
    found = terms(Logistic(alpha=1.0), [[0.0, 0.0]], [[math.log(3.0), 0.0]]).terms["logistic"]
    assert float(found) == pytest.approx(2 * (0.75 * math.log(3) - math.log(2)), abs=1e-6)


@pytest.mark.parametrize("margin", [-3.0, 0.0, 2.0, 40.0])
def test_a_teacher_that_is_sure_gives_the_logistic_loss_of_the_margin(terms, margin):
    # Two classes, so the margins of the student are m and -m, the teacher's labels +1 and -1: log(1 + exp(-y * m)).
    expected = sum(math.log1p(math.exp(-label * m)) for label, m in ((1, margin), (-1, -margin)))
    found = terms(Logistic(alpha=1.0), [[margin, 0.0]], [[200.0, 0.0]]).terms["logistic"]
    assert float(found) == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_two_classes_give_twice_the_divergence_of_the_class_distributions(terms, pair):
    student, teacher = (z[:, :2] for z in pair)
    kd = float(terms(LogitKd(alpha=1.0, temperature=1.0), student, teacher).terms["kd"])
    assert float(terms(Logistic(alpha=1.0), student, teacher).terms["logistic"]) == pytest.approx(2 * kd, rel=1e-5)


def test_a_sure_student_that_is_wrong_is_measured_without_rounding_to_infinity(terms):
    # The student's 1 - p of its class is exp(-60), far below what float32 can tell from 1. Teacher 1/2, 1/2.
    found = terms(Logistic(alpha=1.0), [[60.0, 0.0]], [[0.0, 0.0]]).terms["logistic"]
    assert float(found) == pytest.approx(2 * (30 - math.log(2)), rel=1e-6)


def test_the_gradient_equals_finite_differences_of_the_independent_loss(terms, pair):
    student, teacher = (z[:3, :4] for z in pair)
    found = torch.tensor(student, requires_grad=True)
    terms(Logistic(alpha=1.0), found, teacher).terms["logistic"].backward()
    step, expected = 1e-5, np.zeros((3, 4))
    for place in np.ndindex(3, 4):
        move = np.zeros((3, 4))
        move[place] = step
        high, low = (independent_logistic(student + side * move, teacher) for side in (1, -1))
        expected[place] = (high - low) / (2 * step)
    np.testing.assert_allclose(found.grad.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_alpha_weighs_the_soft_term_and_leaves_the_rest_to_the_labels(terms, pair):
    whole = float(terms(Logistic(alpha=1.0), *pair).terms["logistic"])
    part = terms(Logistic(alpha=0.25), *pair)
    assert float(part.terms["logistic"]) == pytest.approx(0.25 * whole)
    assert part.hard_weight == 0.75


@pytest.mark.parametrize("options", [{"alpha": -0.1}, {"temperature": 2}])
def test_options_out_of_range_or_unknown_are_refused(options):
    with pytest.raises(ValidationError):
        Logistic(**options)
