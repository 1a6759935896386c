"""Selects the branch to ship: goals are constraints, and of what meets them the first of the Pareto front wins.

Branches that differ in their seed alone are one candidate. KDQ compares the means over seeds, and says "not shown"
where the interval of a difference holds zero.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from kdq_core.intervals import mean_of
from kdq_core.plan.gates import GateVerdict, judge
from kdq_core.recipe.study import Axes, SelectSpec
from kdq_core.store.records import EvaluationReport
from kdq_flows.facts.front import on_front
from kdq_flows.facts.study import SelectedFacts

SEED = "seed"


@dataclass(frozen=True)
class Measured:
    """A branch whose files were measured."""

    name: str
    axes: Axes
    report: EvaluationReport


@dataclass(frozen=True)
class Candidate:
    """Branches that differ in their seed alone.

    Attributes:
        branches: in the order of the study.
        values: of each objective, one for each branch; a metric to maximise has a minus.
        short: how far each goal is missed, as a share of its bound; empty if all goals are met.
    """

    branches: tuple[Measured, ...]
    values: tuple[tuple[float, ...], ...]
    short: Mapping[str, float]

    @property
    def name(self) -> str:
        """The name of its first branch, which stands for it."""
        return self.branches[0].name

    @property
    def point(self) -> tuple[float, ...]:
        """The mean of each objective."""
        return tuple(map(fmean, self.values))


def select(spec: SelectSpec, branches: Sequence[Measured]) -> SelectedFacts:
    """Select a branch.

    Args:
        spec: goals and objectives.
        branches: those that were measured.
    """
    found = [_candidate(spec, group) for group in _groups(branches)]
    good = [one for one in found if not one.short and all(map(math.isfinite, one.point))]
    if not good:
        return SelectedFacts(branch=None, pareto=(), verdict=_nearest(spec, found))
    front = [one for one, mark in zip(good, on_front([one.point for one in good]), strict=True) if mark]
    front.sort(key=lambda one: one.point)
    best = front[0]
    said = f"{best.name}: {_figures(spec, best)}; {len(good)} of {_counted(found)} meet the goals"
    said = said if spec.goals else f"{best.name}: {_figures(spec, best)}; of {_counted(found)}"
    second = sorted((one for one in good if one is not best), key=lambda one: one.point)
    more = [_against(spec, best, second[0])] if second and len(best.branches) > 1 else []
    return SelectedFacts(
        branch=best.name, pareto=tuple(one.name for one in front), verdict="; ".join([said, *filter(None, more)])
    )


def judged(spec: SelectSpec, branch: Measured) -> tuple[tuple[float, ...], Mapping[str, float]]:
    """The objectives of one branch, less is better; and by what share of its bound it misses each goal, 0 if not."""
    found = _candidate(spec, (branch,))
    return found.point, {goal.rule: found.short.get(goal.rule, 0.0) for goal in judge(spec.goals, branch.report)}


def _groups(branches: Sequence[Measured]) -> list[tuple[Measured, ...]]:
    found: dict[str, list[Measured]] = {}
    for one in branches:
        rest = {axis: value for axis, value in one.axes.items() if axis != SEED}
        found.setdefault(json.dumps(rest, sort_keys=True), []).append(one)
    return [tuple(group) for group in found.values()]


def _candidate(spec: SelectSpec, group: tuple[Measured, ...]) -> Candidate:
    verdicts = [judge(spec.goals, one.report) for one in group]
    short = {rule: by for each in zip(*verdicts) for rule, by in [_missed(each)] if by > 0} if _alike(verdicts) else {}
    if not _alike(verdicts):  # an anomaly adds a verdict of its own
        short = {verdict.rule: math.inf for each in verdicts for verdict in each if not verdict.met}
    values = [[_value(spec, metric, one.report) for one in group] for metric in spec.metrics]
    return Candidate(group, tuple(map(tuple, values)), short)


def _alike(verdicts: Sequence[Sequence[GateVerdict]]) -> bool:
    return len({tuple(verdict.rule for verdict in each) for each in verdicts}) == 1


def _missed(verdicts: Sequence[GateVerdict]) -> tuple[str, float]:
    """A goal, and by what share of its bound the mean over the branches misses it; 0 if it is met."""
    rule = verdicts[0].rule
    known = [(one.value, one.bound) for one in verdicts if one.value is not None and one.bound is not None]
    if len(known) < len(verdicts) or not all(math.isfinite(value) and math.isfinite(bound) for value, bound in known):
        return rule, math.inf
    value, bound = (fmean(each) for each in zip(*known))
    by = bound - value if "≥" in rule else value - bound
    return rule, max(by, 0.0) / (abs(bound) or 1.0)


def _value(spec: SelectSpec, metric: str, report: EvaluationReport) -> float:
    found = report.value(spec.of, metric)
    value = math.nan if found is None else found
    return -value if metric in spec.maximise else value


def _figures(spec: SelectSpec, one: Candidate) -> str:
    return ", ".join(f"{metric} {abs_of(spec, metric, value):.6g}" for metric, value in zip(spec.metrics, one.point))


def abs_of(spec: SelectSpec, metric: str, value: float) -> float:
    """The value of an objective as it was measured."""
    return -value if metric in spec.maximise else value


def _counted(found: Sequence[Candidate]) -> str:
    seeds = max(len(one.branches) for one in found)
    number = f"{len(found)} {'branch' if len(found) == 1 else 'branches'}"
    return f"{len(found)} candidates of {seeds} seeds" if seeds > 1 else number


def _against(spec: SelectSpec, best: Candidate, other: Candidate) -> str:
    """Whether the best is shown to be better than the next, by the most important objective that differs."""
    for metric, mine, theirs in zip(spec.metrics, best.values, other.values, strict=True):
        if mine != theirs:
            difference, low, high = mean_of([t - m for t, m in zip(theirs, mine)])
            shown = "shown" if low > 0 else "not shown"
            return (
                f"better in {metric} than {other.name}: {shown} (mean difference {difference:.4g}, {low:.4g} to "
                f"{high:.4g})"
            )
    return ""


def _nearest(spec: SelectSpec, found: Sequence[Candidate]) -> str:
    if not found:
        return "no branch was measured, so none is selected"
    unknown = [one for one in found if not one.short]
    if unknown:
        lacking = next(_lacking(spec, unknown[0]), spec.metrics[0])
        return f"no branch can be selected: {lacking!r} was not measured for {spec.of}"
    near = min(found, key=lambda one: max(one.short.values()))
    verdicts = {verdict.rule: verdict for verdict in judge(spec.goals, near.branches[0].report)}
    rule = max(near.short, key=lambda rule: near.short[rule])
    verdict = verdicts.get(rule)
    value = "not measured" if verdict is None or verdict.value is None else f"{verdict.value:.6g}"
    bound = "" if verdict is None or verdict.bound is None else f", bound {verdict.bound:.6g}"
    return f"none of {_counted(found)} meets the goals; the nearest is {near.name}: {rule}: it is {value}{bound}"


def _lacking(spec: SelectSpec, one: Candidate) -> Iterator[str]:
    return (metric for metric, value in zip(spec.metrics, one.point, strict=True) if not math.isfinite(value))
