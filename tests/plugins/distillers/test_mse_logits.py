"""Golden values of the distiller `mse-logits`."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kdq_distillers.mse_logits import MseLogits


def softmax(z):
    e = np.exp(z.astype(np.float64))
    return e / e.sum(1, keepdims=True)


def test_on_logits_it_equals_an_independent_computation_in_float64(terms, pair):
    student, teacher = pair
    expected = np.mean([np.sum((s - t) ** 2) for s, t in zip(student.astype(np.float64), teacher.astype(np.float64))])
    assert float(terms(MseLogits(alpha=1.0), student, teacher).terms["mse"]) == pytest.approx(expected, rel=1e-6)


def test_on_probabilities_it_equals_an_independent_computation_in_float64(terms, pair):
    expected = np.mean(np.sum((softmax(pair[0]) - softmax(pair[1])) ** 2, axis=1))
    found = terms(MseLogits(alpha=1.0, on="probabilities"), *pair).terms["mse"]
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("other", "expected"), [([0.8, 0.2, 0.1], 0.03), ([0.6, 0.3, 0.1], 0.14)])
def test_the_worked_examples_sum_over_the_classes(terms, other, expected):
    # (.1)^2 + (.1)^2 + (.1)^2 = .03 and (.3)^2 + (.2)^2 + (.1)^2 = .14: a sum, not divided by the 3 classes.
    found = terms(MseLogits(alpha=1.0), [[0.9, 0.1, 0.0]], [other]).terms["mse"]
    assert float(found) == pytest.approx(expected, abs=1e-7)


def test_probabilities_of_an_example_worked_by_hand(terms):
    # Teacher 3/4, 1/4; student 1/2, 1/2: 1/16 + 1/16.
    found = terms(MseLogits(alpha=1.0, on="probabilities"), [[0.0, 0.0]], [[float(np.log(3)), 0.0]]).terms["mse"]
    assert float(found) == pytest.approx(0.125, abs=1e-7)


def test_a_batch_gives_the_mean_of_its_samples(terms, pair):
    student, teacher = pair
    one_by_one = [float(terms(MseLogits(), student[i : i + 1], teacher[i : i + 1]).terms["mse"]) for i in range(8)]
    assert float(terms(MseLogits(), student[:8], teacher[:8]).terms["mse"]) == pytest.approx(np.mean(one_by_one))


def test_a_constant_added_to_all_logits_counts_on_logits_alone(terms, pair):
    student = pair[0]
    assert float(terms(MseLogits(alpha=1.0), student, student + 1).terms["mse"]) == pytest.approx(10, rel=1e-5)
    on = MseLogits(alpha=1.0, on="probabilities")
    assert float(terms(on, student, student + 1).terms["mse"]) == pytest.approx(0, abs=1e-10)


def test_the_gradient_is_twice_the_difference(terms):
    student = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    terms(MseLogits(alpha=0.5), student, [[0.0, 4.0], [0.0, 1.0]]).terms["mse"].backward()
    torch.testing.assert_close(student.grad, torch.tensor([[0.5, -1.0], [0.0, -0.5]]))  # 1/2 * 2 * difference / 2


def test_alpha_weighs_the_soft_term_and_leaves_the_rest_to_the_labels(terms, pair):
    whole = float(terms(MseLogits(alpha=1.0), *pair).terms["mse"])
    part = terms(MseLogits(alpha=0.25), *pair)
    assert float(part.terms["mse"]) == pytest.approx(0.25 * whole)
    assert part.hard_weight == 0.75


@pytest.mark.parametrize("options", [{"on": "features"}, {"alpha": 1.1}, {"temperature": 1}])
def test_options_out_of_range_or_unknown_are_refused(options):
    with pytest.raises(ValidationError):
        MseLogits(**options)
