"""The parts of a report that metrics and records give: key figures, stages, curves, charts of models, layers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from kdq_core.plan.view import RunView
from kdq_core.store.records import Artifact, Checkpoint, EpochRecord, Metric
from kdq_flows.facts.coverage import facts_of
from kdq_flows.facts.front import on_front
from kdq_flows.facts.result import RunResult
from kdq_flows.facts.verdict import between, main_metric, words_of
from kdq_flows.report.charts import Drawn, Interval, Series, intervals, lines, scatter
from kdq_flows.report.numbers import number, short

STYLES = {"teacher": "m0", "student": "m1", "int8": "m2"}
MODEL_OF = {"teacher": "teacher", "student": "student", "quantized": "int8"}
"""The model that the training of a slot makes."""
QUANTILE = re.compile(r"latency_p(\d+)_ms")
GUTTER, LINE = 74, 46
"""Width of the drawing beside the list of stages, and height of one stage in it."""


@dataclass(frozen=True)
class StageRow:
    """One stage in the list: how it ended, how long it took, and its share of the longest."""

    name: str
    state: str
    seconds: float
    share: float
    parents: tuple[str, ...]
    gives: str


def titles_of(view: RunView) -> dict[str, str]:
    """How the report calls each model that the run measures, by slot."""
    return {model.slot: model.title for model in view.plan.models}


def style_of(slot: str, number: int = 0) -> str:
    """The class that gives a model its colour and mark."""
    return STYLES.get(slot, f"m{3 + number % 4}")


def tiles(view: RunView, result: RunResult) -> list[tuple[str, str, str]]:
    """Key figures: the figure, what it is, and `good`, `bad` or nothing."""
    ours, theirs = ({m.name: m for m in view.metrics.get(slot, ())} for slot in ("int8", "student"))
    found: list[tuple[str, str, str]] = []
    if result.anomalies:
        return []  # a comparison in large figures would be believed
    name = main_metric(tuple(ours.values()), tuple(theirs.values()))
    if name is not None:
        difference = ours.get(f"{name}_difference")
        said = f"{words_of(name)} of the int8 file; float has {number(theirs[name].value, theirs[name].unit)}"
        worse = difference is not None and difference.high is not None and difference.high < 0
        found.append((number(ours[name].value, ours[name].unit), said, "bad" if worse else "good"))
    if "bytes" in ours and "bytes" in theirs and ours["bytes"].value:
        ratio = theirs["bytes"].value / ours["bytes"].value
        sizes = f"smaller: {number(ours['bytes'].value, 'bytes')} for {number(theirs['bytes'].value, 'bytes')}"
        found.append((f"{ratio:.1f}x", sizes, "good" if ratio > 1 else "bad"))
    if "speedup" in ours:
        speed = ours["speedup"]
        sure = None if speed.low is None or speed.high is None else speed.low > 1 or -(speed.high < 1)
        interval = f"of the speed of the float file{between(speed.low, speed.high)}"
        found.append((f"{speed.value:.3g}x", interval, {True: "good", -1: "bad"}.get(sure or 0, "")))
    if result.gates:
        met = sum(gate.met for gate in result.gates)
        every = met == len(result.gates)
        found.append((f"{met} of {len(result.gates)}", "gates met", "good" if every else "bad"))
    return found


def stage_rows(view: RunView, result: RunResult) -> tuple[list[StageRow], list[str]]:
    """The stages in the order of the plan, and the paths that connect them, as SVG beside the list."""
    ended = {stage.name: stage for stage in result.stages}
    longest = max((stage.seconds for stage in result.stages), default=0.0) or 1.0
    rows = []
    for node in view.plan.nodes:
        stage = ended.get(node.name)
        state, seconds = ("not reached", 0.0) if stage is None else (stage.state, stage.seconds)
        parents = tuple(dict.fromkeys(node.parents.values()))
        rows.append(StageRow(node.name, state, seconds, seconds / longest, parents, node.gives))
    at = {row.name: LINE * (index + 0.5) for index, row in enumerate(rows)}
    order = list(at)
    paths = []
    for row in rows:
        for parent in row.parents:
            span = order.index(row.name) - order.index(parent)
            first, last, x = at[parent], at[row.name], GUTTER - 14
            bend = 0 if span == 1 else min(GUTTER - 20, 8 + 11 * (span - 1)) * 4 / 3
            paths.append(f"M{x} {first:g}C{x - bend:g} {first:g} {x - bend:g} {last:g} {x} {last:g}")
    return rows, paths


def curves(view: RunView) -> list[Drawn]:
    """One chart for each curve of the fits, with a line for each stage that has it; quality comes first."""
    histories = {name: record for name, record in view.records(Checkpoint).items() if record.history}
    return charts_of({n: r.history for n, r in histories.items()}, {n: r.slot for n, r in histories.items()}, view)


def charts_of(histories: Mapping[str, Sequence[EpochRecord]], slots: Mapping[str, str], view: RunView) -> list[Drawn]:
    """The charts of curves, from the points of each stage so far."""
    titles = titles_of(view) or {"teacher": "teacher", "student": "float student", "int8": "int8 student"}
    found: dict[str, list[Series]] = {}
    for stage, history in histories.items():
        slot = slots[stage]
        model = MODEL_OF.get(slot, slot)
        alone = sum(other == slot for other in slots.values()) == 1
        label = titles.get(model, slot) if alone else stage
        for name in dict.fromkeys(name for point in history for name in point.values):
            control = name.startswith("2/")
            points = [(float(p.epoch), p.values[name]) for p in history if name in p.values]
            said = f"{label} without teacher" if control else label
            style = f"{style_of(model)}{' dashed' if control else ''}"
            found.setdefault(name.removeprefix("2/"), []).append(Series(said, style, points))
    order = sorted(found, key=lambda name: (name.startswith("train/"), name.endswith("loss"), name))
    shown = [name for name in order if name.startswith("validation/") or name == "train/loss"]
    made = []
    for name in shown:
        percent = all(0 <= v <= 1 for s in found[name] for _, v in s.points) and not name.endswith("loss")
        unit = "fraction" if percent else ""
        made.append(lines(name, found[name], "epoch", partial(short, unit=unit), log=not percent))
    return [one for one in made if one is not None]


def model_charts(view: RunView) -> list[Drawn]:
    """Quality against size and against time of a call, with the Pareto front; then intervals of the main figures."""
    metrics, titles = view.metrics, titles_of(view)
    name = main_metric(metrics.get("int8", ()), metrics.get("student", ()))
    if name is None:
        return []
    named = {slot: {m.name: m for m in found} for slot, found in metrics.items()}
    quality = {slot: found[name] for slot, found in named.items() if name in found}
    calls = [m.name for m in metrics["int8"] if m.unit == "ms" and m.name in named.get("student", {})]
    made: list[Drawn | None] = []
    for cost, words in (("bytes", "size of the file"), *((call, "time of a call, ms") for call in calls[:1])):
        made.append(_trade(named, quality, cost, words, titles))
    made.append(_rows(named, name, titles, None))
    made += [_rows(named, f"{name}_difference", titles, 0.0), *(_rows(named, call, titles, None) for call in calls)]
    made.append(_latencies(named, titles))
    speeds = [m.name for m in metrics["int8"] if m.name.startswith("speedup")]
    made += [_rows(named, speed, titles, 1.0) for speed in speeds]
    return [one for one in made if one is not None]


def _trade(
    named: Mapping[str, Mapping[str, Metric]], quality: Mapping[str, Metric], cost: str, words: str,
    titles: Mapping[str, str],
) -> Drawn | None:  # fmt: skip
    slots = [slot for slot in quality if cost in named[slot]]
    if len(slots) < 2:
        return None
    points = [(named[slot][cost].value, quality[slot].value) for slot in slots]
    first = quality[slots[0]]
    sign = 1 if first.direction == "lower" else -1
    marked = on_front([(paid, sign * value) for paid, value in points])
    series = [Series(titles[slot], style_of(slot, n), [p]) for n, (slot, p) in enumerate(zip(slots, points))]
    front = [titles[slot] for slot, mark in zip(slots, marked) if mark]
    costs = named[slots[0]][cost].unit
    forms = (partial(short, unit=costs), partial(short, unit=first.unit))
    return scatter(f"{words_of(first.name)} against {words}", series, words, forms, front=front)


def _latencies(named: Mapping[str, Mapping[str, Metric]], titles: Mapping[str, str]) -> Drawn | None:
    """How the times of single calls are distributed: their measured quantiles, for each model."""
    series = []
    for n, (slot, metrics) in enumerate(named.items()):
        found = {int(m[1]): one.value for name, one in metrics.items() if (m := QUANTILE.fullmatch(name))}
        if len(found) > 1:
            series.append(Series(titles[slot], style_of(slot, n), sorted(found.items())))
    return lines("distribution of the time of a call, ms", series, "share of the calls, %", partial(short, unit="ms"))


def _rows(
    named: Mapping[str, Mapping[str, Metric]], name: str, titles: Mapping[str, str], at: float | None
) -> Drawn | None:
    found = {slot: metrics[name] for slot, metrics in named.items() if name in metrics}
    rows = [Interval(titles[s], style_of(s, n), m.value, m.low, m.high) for n, (s, m) in enumerate(found.items())]
    unit = next((m.unit for m in found.values()), "")
    return intervals(words_of(name), rows, "", partial(short, unit=unit), at=at)


def robustness(view: RunView) -> list[Drawn]:
    """How much worse the models answer to corrupted inputs, by corruption, and whether int8 loses more than float."""
    titles, found = titles_of(view), []
    named = {slot: {m.name: m for m in metrics} for slot, metrics in view.metrics.items()}
    for name, at in (("robust_drop", None), ("robust_drop_difference", 0.0)):
        kinds = [metric for metric in named.get("int8", {}) if metric == name or metric.startswith(f"{name}/")]
        rows, unit = [], ""
        for kind in kinds:
            for slot in ("student", "int8") if at is None else ("int8",):
                one = named.get(slot, {}).get(kind)
                if one is not None:
                    unit = one.unit
                    words = f"{kind.partition('/')[2] or 'mean'}, {titles[slot].removesuffix(' student')}"
                    rows.append(Interval(words, style_of(slot), one.value, one.low, one.high))
        drawn = intervals(words_of(name), rows, "", partial(short, unit=unit), at=at)
        found += [drawn] if drawn is not None else []
    return found


def measurements(view: RunView) -> list[tuple[str, list[Metric | None]]]:
    """Every metric with its value for each model, in the order of the report."""
    names = dict.fromkeys(metric.name for found in view.metrics.values() for metric in found)
    named = [{metric.name: metric for metric in found} for found in view.metrics.values()]
    return [(name, [found.get(name) for found in named]) for name in names]


def layers(view: RunView) -> list[dict[str, object]]:
    """Each operator of the int8 file: bits, kernel, shares of work and weights, and why it is float."""
    artifact = view.record("artifact", Artifact)
    operators = () if artifact is None else artifact.operators
    return [
        {
            "path": o.path or "(the model's own forward)",
            "operator": o.operator,
            "bits": "float"
            if not o.int8
            else " / ".join(f"{n}{b}" for n, b in _bits(o.weight_bits, o.activation_bits)),
            "kernel": o.kernel,
            "int8": o.int8,
            "by_choice": o.by_choice,
            "macs": facts.macs_share,
            "weights": facts.weight_share,
            "reason": o.reason,
        }
        for o, facts in zip(operators, facts_of(operators))
    ]


def _bits(weight: int | None, activation: int | None) -> list[tuple[str, int]]:
    return [(name, bits) for name, bits in (("W", weight), ("A", activation)) if bits is not None]
