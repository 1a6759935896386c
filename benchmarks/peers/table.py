"""The page of results: one table for each net with the same columns, training steps, refusals, versions, machine."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from benchmarks.machine import machine
from benchmarks.peers.cases import FLOAT, Case
from benchmarks.peers.environments import pins
from benchmarks.peers.nets import NETS, Budget
from benchmarks.peers.results import Record, case_of

PACKAGES = ("kdq", "torch", "onnxruntime", "openvino")
T_975 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""97.5 % quantiles of Student's t, from one degree of freedom."""
NOTHING = "-"
HEAD = (
    "tool", "recipe", "bits", "teacher", "seeds", "float", "shipped", "minus KDQ", "simulated", "flips", "ties", "int8",
    "kB", "stripped", "batch 1", "batch 32", "CPU s", "MB", "lines",
)  # fmt: skip
ABOUT = """\
# KDQ beside its peers

Written by `python benchmarks/peers/run.py`. All tools have the same nets, data, teachers, seeds and numbers of epochs,
and one thread. A plain PyTorch loop trains the float students that the peers quantize; KDQ trains its own. Figures are
means over the seeds, with 95 % intervals by Student's t.

- *float*: the float student that was quantized. *shipped*: the file in its runtime. Both are top-1 in %, for ratings
  RMSE in stars (less is better), on the whole test split. *minus KDQ*: this file minus that of KDQ's `ptq` or `qat`
  with the same bits and teacher, paired over the seeds.
- *simulated*: the model in PyTorch that was exported, for ONNX Runtime's quantizer the same file with all optimisations
  off, for KDQ the trained model. *flips*: test samples, seed by seed, in which it names another class than the file,
  where neither side has a tie. *ties*: samples in which the two largest logits of the file are equal.
- *int8*: share of the convolutions and matrix products that int8 kernels compute, read from the runtime's own graph.
- *kB*: the file; *stripped*: without the exporter's metadata and annotations.
- *batch 1*, *batch 32*: time of the float student's file over time of this one in the same runtime, by `kdq bench`,
  with its 99 % interval: above 1 is faster. Measured for the first seed, without a teacher.
- *CPU s*: to the file, with the float student, without the teacher's training. *MB*: the largest process on the way.
- *lines*: what a user writes for the recipe: lines of code without data, training loop and evaluation, or of KDQ's
  recipe.
- The runtime is OpenVINO for recipes in `-openvino` and for NNCF's `ptq`, `ptq-uncorrected` and `qat`; else ONNX
  Runtime."""


def page(records: Sequence[Record], budget: Budget) -> str:
    """Format the records as Markdown."""
    parts = [ABOUT]
    if budget.tiny:
        parts.append("**A trial of one epoch over 2,000 samples: the figures mean nothing.**")
    for net in dict.fromkeys(record["net"] for record in records):
        own = [record for record in records if record["net"] == net]
        rows = table(own)
        if rows:
            epochs = "{} epochs in float, {} quantized; the teacher {}".format(*budget.epochs(NETS[net]))
            parts += [f"## {NETS[net].title}", f"{epochs}{_teacher(own)}.", grid(HEAD, rows)]
    parts += steps(records) + refusals(records)
    installed = ", ".join(sorted({name for names in pins().values() for name in names}))
    return "\n\n".join([*parts, f"Installed for the peers: {installed}.", machine(PACKAGES)]) + "\n"


def table(records: Sequence[Record]) -> list[list[str]]:
    """Make the rows of one net: a row for each tool, recipe, bits and teacher."""
    groups: dict[tuple[str, bool, str, str], list[Record]] = {}
    for record in records:
        if record["peer"] != "teacher" and record["recipe"] != "step" and (record["peer"], record["recipe"]) != OWN:
            groups.setdefault((record["bits"], record["taught"], record["recipe"], record["peer"]), []).append(record)
    order = sorted(groups.values(), key=lambda rows: _place(case_of(rows[0])))
    by_name = {case_of(record).name: record for record in records}
    return [row(group, by_name) for group in order]


OWN = ("kdq", FLOAT)
PLACES = ("float", "W8A8", "W4A8", "W4A4", "W2A2"), ("ptq", "qat")


def _place(case: Case) -> tuple[object, ...]:
    bits, methods = PLACES
    method = methods.index(case.method) if case.method in methods else -1
    return bits.index(case.bits), case.taught, method, case.peer != "kdq", case.peer, case.recipe


def row(group: Sequence[Record], by_name: dict[str, Record]) -> list[str]:
    """Make one row from the records of its seeds."""
    first, whole = case_of(group[0]), [record for record in group if "quality" in record]
    digits = 4 if NETS[first.net].ratings else 2
    below = [_below(record, by_name) for record in group]
    cells = [first.peer, first.recipe, first.bits, "yes" if first.taught else "no", str(len(whole) or len(group))]
    cells.append(mean([value for value in map(_float, group, below) if value is not None], digits))
    refused = "refuses" if any("refused" in record for record in group) else NOTHING
    cells.append(mean([record["quality"] for record in whole], digits) if whole else refused)
    cells.append(_minus(whole, by_name, digits))
    cells.append(mean([record["simulated"] for record in group if "simulated" in record], digits))
    cells += [_each(whole, name) for name in ("flips", "ties")]
    cells.append(_average(whole, "int8", "{:.0%}", 1.0))
    cells += [_average(whole, name, "{:.0f}", 1e3) for name in ("bytes", "stripped")]
    cells += [_latency(first, by_name, batch) for batch in (1, 32)]
    pairs = [(record, on) for record, on in zip(group, below, strict=True) if "cpu" in record]
    spent = [record["cpu"] + on.get("cpu", 0) for record, on in pairs]
    peaks = [max(record["peak"], on.get("peak", 0)) for record, on in pairs]
    cells += [f"{statistics.mean(spent):.0f}", f"{max(peaks) / 1e6:.0f}"] if pairs else [NOTHING, NOTHING]
    return [*cells, str(group[0].get("lines", NOTHING))]


def _below(record: Record, by_name: dict[str, Record]) -> Record:
    on = case_of(record).stands_on()
    return by_name.get(on.name, {}) if on is not None and on.peer != "teacher" else {}


def _float(record: Record, below: Record) -> float | None:
    found: float | None = record.get("student", below.get("quality"))
    return found


def mean(values: Sequence[float], digits: int = 2, sign: str = "") -> str:
    """Format the mean of values and its 95 % interval."""
    if not values:
        return NOTHING
    middle = f"{statistics.mean(values):{sign}.{digits}f}"
    if len(values) < 2:
        return middle
    half = T_975[min(len(values) - 1, len(T_975)) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{middle} ± {half:.{digits}f}"


def _minus(group: Iterable[Record], by_name: dict[str, Record], digits: int) -> str:
    differences = []
    for record in group:
        case = case_of(record)
        if case.method in ("ptq", "qat") and (case.peer, case.recipe) not in (("kdq", "ptq"), ("kdq", "qat")):
            ours = by_name.get(Case(case.net, "kdq", case.method, case.bits, case.taught, case.seed).name, {})
            if "quality" in ours:
                differences.append(record["quality"] - ours["quality"])
    return mean(differences, digits, "+")


def _each(group: Sequence[Record], name: str) -> str:
    return "/".join(str(record[name]) for record in group if name in record) or NOTHING


def _average(group: Sequence[Record], name: str, form: str, unit: float) -> str:
    values = [record[name] / unit for record in group if name in record]
    return form.format(statistics.mean(values)) if values else NOTHING


def _latency(case: Case, by_name: dict[str, Record], batch: int) -> str:
    measured = [
        record["latency"] for record in by_name.values() if case_of(record).asked == case.asked and "latency" in record
    ]
    for found in measured:
        if "refused" in found:
            return "refuses"
        for at in found["batches"]:
            if at["batch"] == batch:
                return f"{at['ratio']:.2f} ({at['low']:.2f}-{at['high']:.2f}) {at['verdict']}"
    return NOTHING


def steps(records: Sequence[Record]) -> list[str]:
    """Make the section on training steps."""
    rows = [
        [
            NETS[one["net"]].title, one["peer"], f"{one['step']['float_ms']:.1f}", f"{one['step']['qat_ms']:.1f}",
            f"{one['step']['ratio']:.2f} ({one['step']['low']:.2f}-{one['step']['high']:.2f})",
        ]
        for one in records
        if "step" in one
    ]  # fmt: skip
    text = (
        "A step with fake quantization at 8 bits and the float step of the same net in turns, in the tool's own "
        "process: milliseconds, and the median of their ratio with its quartiles. KDQ lays out images channels last, in both "
        "steps, as its fits do."
    )
    return ["## Training step", text, grid(("net", "tool", "float ms", "QAT ms", "ratio"), rows)] if rows else []


def refusals(records: Sequence[Record]) -> list[str]:
    """Make the section on what a tool refuses, each request once."""
    told: dict[tuple[str, ...], str] = {}
    for record in records:
        if "refused" in record and record.get("as") != "below":
            told.setdefault(case_of(record).asked, _cell(record["refused"]))
        elif "refused" in record.get("latency", {}):
            told.setdefault(case_of(record).asked, _cell(f"kdq bench: {record['latency']['refused']}"))
    rows = [[*asked, message] for asked, message in told.items()]
    return ["## Refusals and crashes", grid(("net", "tool", "recipe", "bits", "message"), rows)] if rows else []


def _teacher(records: Sequence[Record]) -> str:
    found = [record["quality"] for record in records if record["peer"] == "teacher" and "quality" in record]
    return f" ({found[0]:.4g})" if found else ""


def _cell(text: str) -> str:
    return text[:400].replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table in Markdown."""
    return "\n".join([f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)])
