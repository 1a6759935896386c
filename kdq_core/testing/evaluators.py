"""Conformance kit for evaluators."""

from __future__ import annotations

import hashlib
import math
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdq_core.store.records import Metric
from kdq_core.testing.declared import Tell, described, silent

if TYPE_CHECKING:
    from collections.abc import Collection

    from kdq_core.plugins.kinds import Evaluator, Subject
    from kdq_core.tensors import Batches


def check_evaluator(
    evaluator: Evaluator,
    candidate: Subject,
    baseline: Subject,
    batches: Batches,
    *,
    timed: Collection[str] = (),
    tell: Tell = silent,
) -> None:
    """Check the promises of an evaluator on one candidate.

    - Each option has a description.
    - It gives a tuple of metrics. If the class names its `metrics`, it gives no other.
    - Metric names are unique and snake_case; after a slash comes what the metric is about, such as a task.
    - Each metric has a unit, and a finite value inside its interval.
    - A second evaluation gives the same values, except for metrics named in `timed`.
    - The files do not change.

    Args:
        evaluator: the plug-in, with the options to check.
        candidate: the file to measure. If it has no folder for files, it gets one during the check.
        baseline: the float student's file.
        batches: gives the test split anew at each call.
        timed: names of metrics that measure time and so differ from call to call.
        tell: hears of each promise that is kept.

    Raises:
        AssertionError: a promise is broken; the text says which.
    """
    described(evaluator)
    tell("each option has a description")
    before = [digest(subject) for subject in (candidate, baseline)]
    with tempfile.TemporaryDirectory() as folder:
        measured = candidate if candidate.folder else replace(candidate, folder=Path(folder) / "files")
        first = evaluator.evaluate(measured, baseline, batches)
        check_metrics(evaluator, first)
        tell("it gives a tuple of metrics, with units and finite values")
        again = evaluator.evaluate(measured, baseline, batches)
    assert [digest(s) for s in (candidate, baseline)] == before, "an evaluator should not change a file, but it did"
    tell("no file changes")
    names = [metric.name for metric in first]
    assert names == [metric.name for metric in again], "a second evaluation should give the same metrics"
    for one, other in zip(first, again, strict=True):
        same = one.name in timed or one == other
        assert same, (
            f"a second evaluation should give the same {one.name!r}, but {one.value} became {other.value}; if it "
            "measures time, name it as `timed`"
        )
    tell("a second evaluation gives the same")


def check_metrics(evaluator: Evaluator, given: object) -> None:
    """Check that an evaluator gave a tuple of sound metrics, and only those that its class names."""
    name = type(evaluator).__name__
    assert isinstance(given, tuple), (
        f"{name}.evaluate should return a tuple of metrics, or () if it does not apply, but it returned a value of "
        f"type {type(given).__name__}"
    )
    for one in given:
        assert isinstance(one, Metric), (
            f"{name}.evaluate should return a tuple of metrics, but one of them is of type {type(one).__name__}"
        )
        check_metric(one)
    names = [metric.name for metric in given]
    assert len(set(names)) == len(names), f"metric names should be unique, but they are {names}"
    declared = type(evaluator).metrics
    other = [one for one in names if declared and one.partition("/")[0] not in declared]
    assert not other, (
        f"{name} should give only the metrics that its class names, but it gives {other[0]!r}; add it to `metrics`"
    )


def check_metric(metric: Metric) -> None:
    """Check the name, unit, value and interval of one metric."""
    name = metric.name
    assert re.fullmatch(r"[a-z][a-z0-9_]*(/.+)?", name), f"a metric's name should be snake_case, but it is {name!r}"
    assert metric.unit, f"metric {name!r} should have a unit, but has none"
    assert math.isfinite(metric.value), f"metric {name!r} should be finite, but it is {metric.value}"
    low = -math.inf if metric.low is None else metric.low
    high = math.inf if metric.high is None else metric.high
    assert low <= metric.value <= high, f"metric {name!r} should lie in its interval, but {metric.value} does not"


def digest(subject: Subject) -> str:
    """Give the sha256 of a subject's file."""
    return hashlib.sha256(subject.path.read_bytes()).hexdigest()
