"""Golden values and laws of the distiller `multi-label-kd`."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kdq_distillers.multi_label_kd import MultiLabelKd


def independent_multi_label(student, teacher, temperature):
    """T^2 * batch mean of the sum over classes of KL between coins, in float64 from probabilities."""
    q, p = (1 / (1 + np.exp(-z.astype(np.float64) / temperature)) for z in (student, teacher))
    return temperature**2 * np.mean(np.sum(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)), axis=1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_the_loss_equals_an_independent_computation_in_float64(terms, pair, temperature):
    found = terms(MultiLabelKd(alpha=1.0, temperature=temperature), *pair).terms["multi_label"]
    assert float(found) == pytest.approx(independent_multi_label(*pair, temperature), rel=1e-4)


def test_the_loss_of_an_example_worked_by_hand(terms):
    # Two labels, each 3/4 by the teacher and 1/2 by the student: twice 3/4 ln 3 - ln 2.
    found = terms(MultiLabelKd(alpha=1.0), [[0.0, 0.0]], [[math.log(3.0), math.log(3.0)]]).terms["multi_label"]
    assert float(found) == pytest.approx(2 * (0.75 * math.log(3) - math.log(2)), abs=1e-6)


def test_a_class_does_not_feel_the_others(terms):
    student = torch.zeros(1, 3, requires_grad=True)
    terms(MultiLabelKd(alpha=1.0), student, [[0.0, math.log(3.0), 0.0]]).terms["multi_label"].backward()
    torch.testing.assert_close(student.grad, torch.tensor([[0.0, 0.5 - 0.75, 0.0]]))  # sigmoids of student less teacher


def test_for_large_temperature_the_gradient_is_a_quarter_of_the_difference(terms, pair):
    student = torch.tensor(pair[0], requires_grad=True)
    terms(MultiLabelKd(alpha=1.0, temperature=100.0), student, pair[1]).terms["multi_label"].backward()
    limit = (student.detach() - torch.tensor(pair[1])) / 4 / 64  # the slope of a sigmoid at 0; mean over 64 samples
    torch.testing.assert_close(student.grad, limit, rtol=0.01, atol=1e-5)


def test_an_unlabelled_batch_is_fine_and_alpha_leaves_the_rest_to_the_labels(terms, pair):
    whole = float(terms(MultiLabelKd(alpha=1.0), *pair).terms["multi_label"])
    part = terms(MultiLabelKd(alpha=0.25), *pair)
    assert float(part.terms["multi_label"]) == pytest.approx(0.25 * whole)
    assert part.hard_weight == 0.75


@pytest.mark.parametrize("options", [{"alpha": 1.1}, {"temperature": 0}, {"on": "logits"}])
def test_options_out_of_range_or_unknown_are_refused(options):
    with pytest.raises(ValidationError):
        MultiLabelKd(**options)
