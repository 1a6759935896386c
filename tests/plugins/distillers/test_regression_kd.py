"""Golden values and laws of the distiller `regression-kd`."""

import numpy as np
import pytest

from kdq_core.api import StageError
from kdq_distillers.regression_kd import RegressionKd


@pytest.mark.parametrize("delta", [None, 0.5, 3.0])
def test_the_loss_equals_an_independent_computation_in_float64(terms, pair, delta):
    x = pair[0].astype(np.float64) - pair[1]
    far = np.abs(x)
    h = x**2 if delta is None else np.where(far <= delta, x**2 / 2, delta * (far - delta / 2))
    found = terms(RegressionKd(alpha=0.3, delta=delta), *pair)
    assert list(found.terms) == ["regression"]
    assert float(found.terms["regression"]) == pytest.approx(0.3 * h.mean(), rel=1e-5)
    assert found.hard_weight == pytest.approx(0.7)


def test_the_loss_of_an_example_worked_by_hand(terms):
    # Ratings 3 and 4 against 5 and 3.5: (4 + 0.25) / 2; with delta 1: (1 * (2 - 1/2) + 0.125) / 2.
    student, teacher = [3.0, 4.0], [5.0, 3.5]
    assert float(terms(RegressionKd(alpha=1.0), student, teacher).terms["regression"]) == 2.125
    assert float(terms(RegressionKd(alpha=1.0, delta=1.0), student, teacher).terms["regression"]) == 0.8125


def test_a_column_of_numbers_is_the_same_as_a_list(terms):
    column = terms(RegressionKd(), [[3.0], [4.0]], [5.0, 3.5]).terms["regression"]
    assert float(column) == float(terms(RegressionKd(), [3.0, 4.0], [[5.0], [3.5]]).terms["regression"])


def test_teachers_numbers_that_are_not_finite_are_named(terms):
    with pytest.raises(StageError, match="distiller 'regression-kd' needs finite teacher logits, but 1 of 2 are NaN"):
        terms(RegressionKd(), [3.0, 4.0], [float("nan"), 1.0])
