"""Golden values of the distiller `hard-label`."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kdq_distillers.hard_label import HardLabel


def test_the_loss_equals_an_independent_computation_in_float64(terms, pair):
    student, teacher = (z.astype(np.float64) for z in pair)
    chosen = teacher.argmax(1)
    odds = np.exp(student)
    expected = -np.mean(np.log(odds[np.arange(64), chosen] / odds.sum(1)))
    assert float(terms(HardLabel(alpha=1.0), *pair).terms["hard_label"]) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_an_example_worked_by_hand(terms):
    # The teacher says class 0, to which the student gives 1/4.
    found = terms(HardLabel(), [[0.0, math.log(3.0)]], [[0.1, 0.0]]).terms["hard_label"]
    assert float(found) == pytest.approx(0.5 * math.log(4), abs=1e-6)


def test_how_sure_the_teacher_is_does_not_matter(terms, pair):
    student, teacher = pair
    sure, unsure = (terms(HardLabel(), student, scale * teacher).terms["hard_label"] for scale in (10, 0.01))
    assert float(sure) == float(unsure)


def test_equal_models_give_the_cost_of_their_own_doubt_and_the_class_says_so(terms):
    found = terms(HardLabel(alpha=1.0), [[math.log(3.0), 0.0]], [[math.log(3.0), 0.0]]).terms["hard_label"]
    assert float(found) == pytest.approx(math.log(4 / 3), abs=1e-6)
    assert HardLabel.zero_for_equal_models is False
    assert "zero_for_equal_models" not in HardLabel.model_json_schema()["properties"]


def test_the_gradient_is_probability_less_label(terms):
    student = torch.tensor([[0.0, math.log(3.0)]], requires_grad=True)
    terms(HardLabel(alpha=1.0), student, [[2.0, 0.0]]).terms["hard_label"].backward()
    torch.testing.assert_close(student.grad, torch.tensor([[0.25 - 1, 0.75]]))


def test_alpha_leaves_the_rest_to_the_labels_and_half_is_the_default(terms, pair):
    assert terms(HardLabel(), *pair).hard_weight == 0.5
    assert terms(HardLabel(alpha=0.2), *pair).hard_weight == 0.8


@pytest.mark.parametrize("options", [{"alpha": 1.1}, {"temperature": 2}])
def test_options_out_of_range_or_unknown_are_refused(options):
    with pytest.raises(ValidationError):
        HardLabel(**options)
