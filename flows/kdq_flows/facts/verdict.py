"""The verdict on a run in one line: quality, size and speed of the int8 file, and what the teacher brought."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kdq_core.plan.gates import GateVerdict
from kdq_core.plan.view import RunView
from kdq_core.store.records import TEACHER_GAIN, Anomaly, Checkpoint, EvaluationReport, Metric
from kdq_flows.facts.coverage import coverage_of
from kdq_flows.facts.parts import GainFacts
from kdq_flows.facts.result import gain_in_words

NAMES = {"top1": "top-1"}
"""How the line calls a metric, where its name reads badly."""


def verdict_of(view: RunView, gains: Sequence[GainFacts], gates: Sequence[GateVerdict]) -> str:
    """The verdict; empty for a run that measured no int8 file beside a float student.

    If the models cannot be compared, it says why in place of a comparison.

    Args:
        view: the run.
        gains: what the teacher brought, by stage.
        gates: the verdicts of the gates.
    """
    ours, theirs = view.metrics.get("int8", ()), view.metrics.get("student", ())
    report = view.record("report", EvaluationReport)
    if report is not None and report.anomalies:
        return f"NOT COMPARABLE: {'; '.join(map(in_words, report.anomalies))}"
    quality = quality_in_words(ours, theirs)
    if not quality:
        return ""
    title = next((model.title for model in view.plan.models if model.slot == "int8"), "int8").removesuffix(" student")
    parts = ", ".join([quality, *_size(ours, theirs), *_speed(ours, _batch_size(view))])
    unmet = sum(not gate.met for gate in gates)
    more = [
        *_placed(view),
        *_teacher(gains),
        *_chosen(view),
        *_untrained(view),
        *([f"{unmet} of {len(gates)} gates not met"] if unmet else []),
    ]
    return f"{title}: {'; '.join([parts, *more])}"


def in_words(odd: Anomaly) -> str:
    """What forbids a comparison, such as `student top1 on 'test' is 0.1, bound 0.83`."""
    return f"{odd.rule} is {odd.value:.4g}, bound {odd.bound:.4g}"


def main_metric(ours: Sequence[Metric], theirs: Sequence[Metric]) -> str | None:
    """Name of the metric that a run is judged by: the first whose difference is measured, or else the first of both."""
    names = {metric.name for metric in ours}
    others = {metric.name for metric in theirs}
    shared = [metric.name for metric in ours if metric.name in others and metric.direction != "neither"]
    paired = [name for name in shared if f"{name}_difference" in names]
    free = [m.name for m in ours if m.name in shared and m.unit not in ("bytes", "ms", "count", "lsb", "macs", "ratio")]
    return next(iter([*paired, *free]), None)


def quality_in_words(ours: Sequence[Metric], theirs: Sequence[Metric]) -> str:
    """How the int8 file answers against the float student, such as `+0.2 points top-1 against float (-0.4 to 0.8)`."""
    name = main_metric(ours, theirs)
    if name is None:
        return ""
    mine, base = _named(ours)[name], _named(theirs)[name]
    difference = _named(ours).get(f"{name}_difference")
    word = words_of(name)
    percent = mine.unit == "fraction"
    scale, unit = (100.0, f" points {word}") if percent else (1.0, f" {word}")
    value = mine.value - base.value if difference is None else difference.value
    said = f"{scale * value + 0.0:+.1f}" if percent else f"{value:+.3g}"
    interval = "" if difference is None else between(difference.low, difference.high, scale, 1 if percent else None)
    return f"{said}{unit} against float{interval}"


def words_of(metric: str) -> str:
    """A metric's name in words."""
    first, _, rest = metric.partition("_")
    return " ".join([NAMES.get(first, first), *rest.split("_")]).strip()


def between(low: float | None, high: float | None, scale: float = 1.0, digits: int | None = None) -> str:
    """An interval in brackets, ` (-0.4 to 0.8)`; empty if an end is missing."""
    if low is None or high is None:
        return ""
    ends = [f"{scale * end:.3g}" if digits is None else f"{scale * end + 0.0:.{digits}f}" for end in (low, high)]
    return f" ({ends[0]} to {ends[1]})"


def _size(ours: Sequence[Metric], theirs: Sequence[Metric]) -> Iterator[str]:
    mine, base = _named(ours).get("bytes"), _named(theirs).get("bytes")
    if mine is not None and base is not None and mine.value > 0 and base.value > 0:
        ratio = base.value / mine.value
        yield f"{ratio:.1f}x smaller" if ratio >= 1 else f"{1 / ratio:.1f}x LARGER"


def _speed(ours: Sequence[Metric], batch_size: int) -> Iterator[str]:
    """Faster or slower is said only if the whole interval is on one side of 1."""
    found = _named(ours).get("speedup")
    if found is None:
        return
    where = f" at batch {batch_size}" if batch_size else ""
    interval = between(found.low, found.high)
    if found.low is not None and found.high is not None and found.low <= 1 <= found.high:
        yield f"no difference in speed shown{interval}{where}"
    elif found.value < 1:
        yield f"SLOWER than float, {found.value:.3g}x its speed{interval}{where}"
    else:
        yield f"{found.value:.3g}x the speed{interval}{where}"


def _batch_size(view: RunView) -> int:
    """Samples in a call of the evaluator `latency`, its own or the target's; 0 if the recipe does not ask for it."""
    recipe = view.plan.recipe
    found = [use for use in recipe.evaluate if use.use.rpartition("/")[2] == "latency"]
    size = (found[0].options.get("batch_size") or recipe.target.options.get("batch_size", 1)) if found else 0
    return size if isinstance(size, int) else 0


def _placed(view: RunView) -> Iterator[str]:
    """How much of the work is in float because int8 was measured slower."""
    floats = sum(one.macs_share for one in coverage_of(view) if one.by_choice)
    if floats:
        yield f"{100 * floats:.0f} % of the MACs in float by choice"


def _teacher(gains: Sequence[GainFacts]) -> Iterator[str]:
    """What the teacher brought the quantized student, or else the float one."""
    if not gains:
        return
    worse = [gain for gain in gains if gain.verdict == "worse"]
    better = [gain for gain in gains if gain.verdict == "better"]
    if worse:
        yield f"WORSE with the teacher ({worse[-1].stage}: {gain_in_words(worse[-1])})"
    elif better:
        yield f"the teacher brought {gain_in_words(better[-1])}"
    else:
        yield "the teacher did not help: no gain is shown"


def _chosen(view: RunView) -> Iterator[str]:
    """The quantizer that the run chose, and why."""
    record = view.record("quantized", Checkpoint)
    if record is not None and record.choice is not None:
        yield f"chosen: {record.choice.why}"


def _untrained(view: RunView) -> Iterator[str]:
    """What post-training quantization alone would give, on the split where the training was watched."""
    record = view.record("quantized", Checkpoint)
    if record is not None and record.choice is not None:
        return
    name = next((name for name in (record.untrained if record else {}) if "/top1" in name), None)
    ends = [point.values[name] for point in record.history if name in point.values] if record and name else []
    if record and name and ends:
        alone = f"post-training alone would give {100 * record.untrained[name]:.1f} % top-1"
        yield f"{alone} on validation, and trained it has {100 * ends[-1]:.1f} %"


def _named(metrics: Sequence[Metric]) -> Mapping[str, Metric]:
    return {metric.name: metric for metric in metrics if not metric.name.startswith(TEACHER_GAIN)}
