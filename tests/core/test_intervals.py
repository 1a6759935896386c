"""Intervals against published values."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from scipy import stats

from kdq_core.intervals import Z95, mean_of, paired, student_975, wilson


# Student 1908 as tabulated in Fisher and Yates 1963, "Statistical Tables", table III.
@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (2, 4.303), (4, 2.776), (20, 2.086), (120, 1.980)])
def test_the_quantile_of_students_t_is_that_of_the_tables(freedom: int, quantile: float) -> None:
    assert student_975(freedom) == pytest.approx(quantile, abs=5e-4)


def test_with_many_values_it_is_that_of_the_normal_distribution() -> None:
    assert stats.norm.ppf(0.975) == pytest.approx(Z95, rel=1e-15)
    assert student_975(10**9) == pytest.approx(Z95)


def test_the_wilson_interval_has_its_textbook_values() -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_the_paired_interval_follows_its_formula_and_never_vanishes() -> None:
    # b = 20, c = 10, n = 100: p12 = 21/102, p21 = 11/102, middle 10/102, half 1.96 sqrt((32/102 - (10/102)^2) / 102).
    assert paired(20, 10, 100) == pytest.approx((-0.00898, 0.20506), abs=1e-4)
    low, high = paired(0, 0, 300)
    assert -0.01 < low < 0 < high < 0.01


@pytest.mark.parametrize("values", [[1.0, 2.0], [0.91, 0.93, 0.92, 0.97], [-3.0, 5.0, 0.25, 8.0, 1e-3]])
def test_the_interval_of_a_mean_is_that_of_scipy(values: list[float]) -> None:
    exact = stats.ttest_1samp(values, 0.0)
    ends = exact.confidence_interval(0.95)
    assert mean_of(values) == pytest.approx((sum(values) / len(values), ends.low, ends.high))


def test_equal_values_have_an_interval_of_no_width_and_one_value_an_endless_one() -> None:
    assert mean_of([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)
    assert mean_of([2.0]) == (2.0, -math.inf, math.inf)


def test_importing_the_intervals_imports_no_scipy() -> None:
    code = "import sys, kdq_core.intervals; print('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
