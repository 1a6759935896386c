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
from kdq_core.plan.study import SEED, groups_of
from kdq_core.recipe.study import Axes, SelectSpec
from kdq_core.store.records import EvaluationReport
from kdq_flows.facts.front import on_front
from kdq_flows.facts.study import SelectedFacts


@dataclass(frozen=True)
class Measured:
    """A branch whose files were measured."""

    name: str
    axes: Axes
    report: EvaluationReport


@dataclass(frozen=True)
class Miss:
    """A rule that a candidate does not meet.

    Attributes:
        by: how far it is missed, as a share of the bound; endless if it cannot be judged.
        value: the mean over the branches; `None` if it was not measured in all.
        bound: likewise.
    """

    by: float
    value: float | None
    bound: float | None


@dataclass(frozen=True)
class Candidate:
    """Branches that differ in their seed alone.

    Attributes:
        branches: in the order of the study.
        values: of each objective, one for each branch; a metric to maximise has a minus.
        short: the rules that are missed; empty if all goals are met. An anomaly of a branch is one of them.
    """

    branches: tuple[Measured, ...]
    values: tuple[tuple[float, ...], ...]
    short: Mapping[str, Miss]

    @property
    def name(self) -> str:
        """The name of its first branch, which stands for it."""
        return self.branches[0].name

    @property
    def short_by(self) -> float:
        """How far the rule is missed that is missed most."""
        return max(miss.by for miss in self.short.values())

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
    found = [_candidate(spec, group) for group in groups_of(branches)]
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
    rules = dict.fromkeys([*(one.rule for one in judge(spec.goals, branch.report)), *found.short])
    return found.point, {rule: found.short[rule].by if rule in found.short else 0.0 for rule in rules}


def _candidate(spec: SelectSpec, group: tuple[Measured, ...]) -> Candidate:
    odd = {one.rule: Miss(math.inf, one.value, one.bound) for each in group for one in each.report.anomalies}
    goals = zip(*(judge(spec.goals, one.report.model_copy(update={"anomalies": ()})) for one in group))
    missed = {verdicts[0].rule: _missed(verdicts) for verdicts in goals}
    short = odd or {rule: miss for rule, miss in missed.items() if miss.by > 0}
    values = [[_value(spec, metric, one.report) for one in group] for metric in spec.metrics]
    return Candidate(group, tuple(map(tuple, values)), short)


def _missed(verdicts: Sequence[GateVerdict]) -> Miss:
    """How far the mean over the branches misses one goal; by 0 if it is met."""
    value, bound = _mean([one.value for one in verdicts]), _mean([one.bound for one in verdicts])
    if value is None or bound is None or not (math.isfinite(value) and math.isfinite(bound)):
        return Miss(math.inf, value, bound)
    by = bound - value if "≥" in verdicts[0].rule else value - bound
    return Miss(max(by, 0.0) / (abs(bound) or 1.0), value, bound)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


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
    """Whether the best is shown to be better than the next, by the most important objective that differs.

    The differences are those of the seeds that both have.
    """
    here, there = _by_seed(best), _by_seed(other)
    common = [seed for seed in here if seed in there]
    for index, metric in enumerate(spec.metrics if len(common) > 1 else ()):
        differences = [there[seed][index] - here[seed][index] for seed in common]
        if any(differences):
            difference, low, high = mean_of(differences)
            shown = "shown" if low > 0 else "not shown"
            return (
                f"better in {metric} than {other.name}: {shown} (mean difference {difference:.4g}, {low:.4g} to "
                f"{high:.4g})"
            )
    return ""


def _by_seed(one: Candidate) -> dict[str, tuple[float, ...]]:
    """The objectives of each branch, by its seed."""
    seeds = [json.dumps(branch.axes.get(SEED)) for branch in one.branches]
    return dict(zip(seeds, zip(*one.values, strict=True), strict=True))


def _nearest(spec: SelectSpec, found: Sequence[Candidate]) -> str:
    if not found:
        return "no branch was measured, so none is selected"
    unknown = [one for one in found if not one.short]
    if unknown:
        lacking = next(_lacking(spec, unknown[0]), spec.metrics[0])
        return f"no branch can be selected: {lacking!r} was not measured for {spec.of}"
    near = min(found, key=lambda one: one.short_by)
    rule, miss = max(near.short.items(), key=lambda item: item[1].by)
    value = "not measured" if miss.value is None else f"{miss.value:.6g}"
    bound = "" if miss.bound is None else f", bound {miss.bound:.6g}"
    return f"none of {_counted(found)} meets the goals; the nearest is {near.name}: {rule}: it is {value}{bound}"


def _lacking(spec: SelectSpec, one: Candidate) -> Iterator[str]:
    return (metric for metric, value in zip(spec.metrics, one.point, strict=True) if not math.isfinite(value))
