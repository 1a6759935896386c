"""Quantiles against SciPy's."""

from __future__ import annotations

import pytest
from scipy import stats

from kdq_core.intervals import Z95, student_975


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 20, 1000])
def test_the_quantile_of_students_t(freedom: int) -> None:
    assert student_975(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3)


def test_with_many_values_it_is_that_of_the_normal_distribution() -> None:
    assert pytest.approx(stats.norm.ppf(0.975), abs=1e-6) == Z95
    assert student_975(10**9) == pytest.approx(Z95)
