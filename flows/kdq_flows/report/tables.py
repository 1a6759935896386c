"""Pages of studies and of `kdq synergy`: a verdict, charts and tables in one HTML file that loads nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from kdq_core.store.records import EvaluationReport, Metric
from kdq_flows.facts.result import RunResult
from kdq_flows.facts.synergy import Effect, Synergy
from kdq_flows.facts.verdict import main_metric, words_of
from kdq_flows.report import numbers
from kdq_flows.report.charts import Drawn, Interval, Series, intervals, scatter
from kdq_flows.report.page import environment


@dataclass(frozen=True)
class Table:
    """A table of texts; the first cell of a row names it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


COSTS = ("bytes", "latency_p50_ms")
"""Costs that quality is drawn against, if they were measured."""


def study_page(result: RunResult, reports: Mapping[str, EvaluationReport], command: str) -> str:
    """The page of a study.

    Args:
        result: its facts.
        reports: the evaluation of each branch that has one, by its name.
        command: what to type to run it again.
    """
    measured = {name: {m.name: m for m in report.models.get("int8", ())} for name, report in reports.items()}
    first = next(iter(reports.values()), None)
    quality = None if first is None else main_metric(first.models.get("int8", ()), first.models.get("student", ()))
    shown = [name for name in (quality, *COSTS, "speedup") if name and any(name in each for each in measured.values())]
    front = result.selected.pareto if result.selected else ()
    rows, numbered = [], {one.branch: str(number) for number, one in enumerate(result.branches, 1)}
    for one in result.branches:
        mark = result.selected.mark(one.branch) if result.selected else ""
        cells = [_cell(measured.get(one.branch, {}).get(name)) for name in shown]
        version = f"{one.version.name} {one.version.version}" if one.version else ""
        name = f"{numbered[one.branch]}: {one.branch}"
        rows.append([name, mark, one.status, *cells, version])
    points = [numbered[name] for name in front]
    columns = ["branch", "selection", "status", *map(words_of, shown), "version"]
    verdict = result.selected.verdict if result.selected else "The recipe has no 'select', so no branch is selected."
    return environment().get_template("tables.html.j2").render(
        what="KDQ study", title=result.run, state=result.status, verdicts=[verdict, *filter(None, [result.verdict])],
        warnings=[f"{one.branch}: {one.error}" for one in result.branches if one.error],
        charts=_trades({numbered[name]: each for name, each in measured.items()}, quality, points),
        tables=[Table("Branches", columns, rows, "The charts show each branch by its number.")], command=command,
    )  # fmt: skip


def synergy_page(found: Synergy) -> str:
    """The page of `kdq synergy`."""
    form = partial(numbers.number, unit=found.unit)
    cells: dict[str, dict[str, str]] = {}
    for cell in found.cells:
        name = "float" if cell.path == "float" else f"{cell.path.upper()}, {cell.bits} bits"
        ends = f" ± {form(cell.high - cell.mean)}" if math.isfinite(cell.high) else ""
        cells.setdefault(cell.distiller, {})[name] = f"{form(cell.mean)}{ends}"
    paths = sorted({name for row in cells.values() for name in row}, key=lambda name: (name != "float", name))
    rows = [[name, *(row.get(path, "") for path in paths)] for name, row in cells.items()]
    effects = [[_named(one), form(one.mean), _ends(one, form), one.verdict, _more(one)] for one in found.effects]
    seeds = f"{found.seeds} paired seeds, mean ± half of the 95 % interval" if found.seeds > 1 else "One seed"
    note = f"{seeds}; {found.epochs} epochs of each student in all."
    drawn = [
        Interval(
            f"{one.name}, {one.bits} bits", "m2" if one.verdict == "not shown" else "m0", one.mean, one.low, one.high
        )
        for one in found.effects
    ]
    charts = [
        intervals(f"Effects of {name} on {found.metric}", each, "", partial(numbers.short, unit=found.unit), at=0.0)
        for name in dict.fromkeys(one.distiller for one in found.effects)
        for each in [[row for row, one in zip(drawn, found.effects, strict=True) if one.distiller == name]]
        if found.seeds > 1
    ]
    return environment().get_template("tables.html.j2").render(
        what="KDQ synergy of", title=found.recipe, state="", verdicts=found.sentences, warnings=[],
        charts=[one for one in charts if one is not None],
        tables=[
            Table(found.metric, ["distiller", *paths], rows, note),
            Table("Effects", ["effect", "mean", "95 % interval", "verdict", "more seeds to decide"], effects,
                  "Paired differences over the seeds; more is better."),
        ],
        command=command_of(found),
    )  # fmt: skip


def command_of(found: Synergy) -> str:
    """What to type to run the study again; the recipe's own distiller comes first, and needs no option."""
    bits = dict.fromkeys(str(one.bits) for one in found.effects)
    further = list(dict.fromkeys(one.distiller for one in found.effects))[1:]
    more = f" --distillers {','.join(further)}" if further else ""
    return f"kdq synergy {found.recipe}.yaml --seeds {found.seeds} --bits {','.join(bits)}{more}"


def _trades(measured: Mapping[str, Mapping[str, Metric]], quality: str | None, front: Sequence[str]) -> list[Drawn]:
    """Quality against each cost, one point a branch, by its number."""
    found = []
    for cost in COSTS if quality else ():
        assert quality is not None
        points = {name: each for name, each in measured.items() if cost in each and quality in each}
        if len(points) < 2:
            continue
        one = next(iter(points.values()))
        series = [Series(name, "m2", [(each[cost].value, each[quality].value)]) for name, each in points.items()]
        forms = (partial(numbers.short, unit=one[cost].unit), partial(numbers.short, unit=one[quality].unit))
        drawn = scatter(f"{words_of(quality)} against {words_of(cost)}", series, words_of(cost), forms, front=front)
        found += [drawn] if drawn is not None else []
    return found


def _cell(metric: Metric | None) -> str:
    if metric is None:
        return ""
    ends = numbers.interval(metric)
    return numbers.number(metric.value, metric.unit) + (f" ({ends})" if ends else "")


def _named(effect: Effect) -> str:
    return f"{effect.name}: {effect.distiller}, {effect.bits} bits"


def _ends(effect: Effect, form: partial[str]) -> str:
    return f"{form(effect.low)} to {form(effect.high)}" if math.isfinite(effect.low) else "one seed"


def _more(effect: Effect) -> str:
    if effect.verdict != "not shown":
        return ""
    return "over a thousand" if effect.more_seeds is None else str(effect.more_seeds)
