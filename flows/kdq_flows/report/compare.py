"""Runs side by side: a table of all their models, the Pareto front, and paired tests on the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kdq_core.errors import RecipeError
from kdq_core.intervals import mcnemar, paired
from kdq_core.plan.view import RunView
from kdq_core.store.predictions import outcomes_of
from kdq_core.store.records import Artifact, EvaluationReport, Metric
from kdq_flows.facts.front import on_front
from kdq_flows.facts.result import anomalies_of
from kdq_flows.facts.verdict import in_words, main_metric
from kdq_flows.report.answers import answers_of

if TYPE_CHECKING:
    import pandas as pd

PAIRED = ("paired_difference", "paired_low", "paired_high", "paired_p")
"""Columns of the paired test: the difference from the first run's int8 file, its interval, and for shares McNemar's
p."""


@dataclass(frozen=True)
class Compared:
    """Runs side by side.

    Attributes:
        frame: one row for each file; each metric has a column, and columns `<metric>_low` and `<metric>_high`.
        metric: the metric that quality is judged by.
        units: unit of each metric.
        notes: why a pair was not tested, and files left out.
    """

    frame: pd.DataFrame
    metric: str
    units: dict[str, str]
    notes: tuple[str, ...]


def compare(runs: Sequence[tuple[str, RunView]]) -> Compared:
    """Put runs side by side. A file that several runs share counts once, with its figures in the first of them.

    Args:
        runs: name and view of each run; paired tests compare with the first.

    Raises:
        RecipeError: a run measured no int8 file beside a float student, or the runs share no metric to judge by.
    """
    import pandas as pd

    metric, higher = _judged_by(runs)
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    units: dict[str, str] = {}
    seen: dict[str, str] = {}
    for name, view in runs:
        notes += [f"the models of {name} cannot be compared: {in_words(odd)}; {odd.note}" for odd in anomalies_of(view)]
        for model in view.plan.models:
            sha256 = _sha256(view, model.slot)
            if sha256 is not None and sha256 in seen:
                notes.append(f"the {model.title} of {name} is the {seen[sha256]}: the same file")
                continue
            seen |= {} if sha256 is None else {sha256: f"{model.title} of {name}"}
            found = view.metrics.get(model.slot, ())
            units |= {one.name: one.unit for one in found}
            row = {"run": name, "model": model.title, "front": False} | _cells(found)
            if model.slot == "int8" and view is not runs[0][1]:
                tested, note = _tested(runs[0][1], view, metric)
                row |= tested
                notes += [f"{name} against {runs[0][0]}: {note}"] if note else []
            rows.append(row)
    sign = -1 if higher else 1
    points = [(row.get("bytes", np.nan), sign * row.get(metric, np.nan)) for row in rows]
    for row, front in zip(rows, on_front(points)):
        row["front"] = front
    return Compared(pd.DataFrame(rows), metric, units, tuple(notes))


def _judged_by(runs: Sequence[tuple[str, RunView]]) -> tuple[str, bool]:
    """The metric that all runs are judged by, and whether more of it is better."""
    names = {}
    for run, view in runs:
        found = main_metric(view.metrics.get("int8", ()), view.metrics.get("student", ()))
        measuring = view.plan.giving("report")
        if found is None and measuring is not None and measuring.name not in view.entries:
            raise RecipeError(
                f"run {run!r} has no results of {measuring.name!r}: it did not get so far, or the store lost them or "
                "found them damaged; run its recipe again"
            )
        if found is None:
            raise RecipeError(
                f"run {run!r} measured no int8 file beside a float student, so there is nothing to compare; name a run "
                "whose recipe lists the stages 'export' and 'evaluate'"
            )
        names[run] = found
    if len(set(names.values())) > 1:
        told = ", ".join(f"{run} by {metric!r}" for run, metric in names.items())
        raise RecipeError(f"the runs are judged by different metrics ({told}); compare runs of one task")
    metric = next(iter(names.values()))
    directions = {one.name: one.direction for one in runs[0][1].metrics["int8"]}
    return metric, directions[metric] != "lower"


def _cells(metrics: Sequence[Metric]) -> dict[str, float]:
    cells: dict[str, float] = {}
    for one in metrics:
        ends = {"": one.value, "_low": one.low, "_high": one.high}
        cells |= {f"{one.name}{end}": value for end, value in ends.items() if value is not None}
    return cells


def _sha256(view: RunView, slot: str) -> str | None:
    entry, artifact = view.entry("artifact"), view.record("artifact", Artifact)
    name = None if artifact is None else artifact.file_of(slot)
    return None if entry is None or name is None else entry.sha256(name)


def _tested(first: RunView, other: RunView, metric: str) -> tuple[dict[str, float], str]:
    """The paired test of both int8 files, or the reason that there is none.

    McNemar's exact test (McNemar 1947): under no difference, a sample that only one of the files answers right is as
    often the first's as the other's. The interval is that of Bonett and Price 2012. Without classes, the interval of
    `metric` is that of the paired bootstrap over what `evaluate` kept of each sample.
    """
    if anomalies_of(first) or anomalies_of(other):
        return {}, "no paired test, because the models of one of the runs cannot be compared"
    ours, theirs = answers_of(other), answers_of(first)
    if ours is None or theirs is None:
        return _bootstrapped(first, other, metric)
    if _data(first) != _data(other) or not np.array_equal(ours.truth, theirs.truth):
        return {}, "no paired test, because the runs have other test samples"
    right = [found.sure("int8")[0] == found.truth for found in (ours, theirs)]
    gained, lost = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    low, high = paired(gained, lost, len(ours.truth))
    return dict(zip(PAIRED, ((gained - lost) / len(ours.truth), low, high, mcnemar(gained, lost)))), ""


def _bootstrapped(first: RunView, other: RunView, metric: str) -> tuple[dict[str, float], str]:
    from kdq_registry.comparing import compare as by_sample

    entries, report = [view.entry("report") for view in (other, first)], other.record("report", EvaluationReport)
    kept = [{} if entry is None else outcomes_of(entry) for entry in entries]
    if report is None or not all(metric in outcomes for outcomes in kept):
        return {}, f"no paired test, because no evaluator kept {metric!r} of each test sample"
    ours, theirs = ({metric: outcomes[metric]} for outcomes in kept)
    if _data(first) != _data(other) or ours[metric].shape != theirs[metric].shape:
        return {}, "no paired test, because the runs have other test samples"
    found = next(by_sample(ours, theirs, report))
    p = {} if found.p is None else {PAIRED[-1]: found.p}
    return {**dict(zip(PAIRED, (found.difference, found.low, found.high))), **p}, ""


def _data(view: RunView) -> object:
    entry = view.entry("report")
    return None if entry is None else entry.manifest.parts.get("data")
