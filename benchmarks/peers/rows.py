"""The rows of the table: one for each tool, recipe, bits and teacher, from the records of all seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.peers.cases import BITS, FLOAT, Case
from benchmarks.peers.nets import NETS
from benchmarks.peers.results import Record, case_of

T_975 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""97.5 % quantiles of Student's t, from one degree of freedom."""
NOTHING = "-"
ORDER = (FLOAT, *BITS), (FLOAT, "ptq", "qat")
COMPARED = "ptq", "qat"
"""KDQ's recipes that all others are compared with."""

ByName = Mapping[str, Record]


def table(records: Sequence[Record]) -> list[list[str]]:
    """Make the rows of one net: first by bits and teacher, so that what competes stands together."""
    by_name = {case_of(record).name: record for record in records}
    return [_row(group, by_name) for group in groups(records)]


def groups(records: Iterable[Record]) -> list[list[Record]]:
    """Return the records of each tool, recipe, bits and teacher, in the order of the table."""
    found: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        case = case_of(record)
        if case.peer != "teacher" and case.method != "step" and (case.peer, case.method) != ("kdq", FLOAT):
            found.setdefault(_place(case), []).append(record)
    return [found[place] for place in sorted(found)]


def _place(case: Case) -> tuple[int | str | bool, ...]:
    bits, methods = ORDER
    method = methods.index(case.method)
    return bits.index(case.bits), case.taught, method, case.peer != "kdq", case.peer, case.recipe


def _row(group: Sequence[Record], by_name: ByName) -> list[str]:
    first, shipped = case_of(group[0]), [record for record in group if "quality" in record]
    digits = 4 if NETS[first.net].ratings else 2
    below = [_below(record, by_name) for record in group]
    plain = [record.get("student", on.get("quality")) for record, on in zip(group, below, strict=True)]
    refused = "refuses" if any("refused" in record for record in group) else NOTHING
    return [
        first.peer,
        first.recipe,
        first.bits,
        "yes" if first.taught else "no",
        str(len(shipped) or len(group)),
        mean([value for value in plain if value is not None], digits),
        mean([record["quality"] for record in shipped], digits) if shipped else refused,
        mean(_minus(shipped, by_name), digits, "+"),
        mean([record["simulated"] for record in group if "simulated" in record], digits),
        *("/".join(str(record[name]) for record in shipped if name in record) or NOTHING for name in ("flips", "ties")),
        _average(shipped, "int8", "{:.0%}", 1.0),
        *(_average(shipped, name, "{:.0f}", 1e3) for name in ("bytes", "stripped")),
        *(_latency(first, by_name, batch) for batch in (1, 32)),
        *_spent(group, below),
        str(group[0].get("lines", NOTHING)),
    ]


def _below(record: Record, by_name: ByName) -> Record:
    """The record of the float student that was quantized."""
    on = case_of(record).stands_on()
    return by_name.get(on.name, {}) if on is not None and on.peer != "teacher" else {}


def mean(values: Sequence[float], digits: int = 2, sign: str = "") -> str:
    """Format the mean of values and its 95 % interval."""
    if not values:
        return NOTHING
    middle = f"{statistics.mean(values):{sign}.{digits}f}"
    if len(values) < 2:
        return middle
    half = T_975[min(len(values) - 1, len(T_975)) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{middle} ± {half:.{digits}f}"


def _minus(shipped: Iterable[Record], by_name: ByName) -> list[float]:
    """Subtract KDQ's file with the same method, bits, teacher and seed."""
    found = []
    for record in shipped:
        case = case_of(record)
        ours = by_name.get(Case(case.net, "kdq", case.method, case.bits, case.taught, case.seed).name, {})
        if "quality" in ours and ours is not record:
            found.append(record["quality"] - ours["quality"])
    return found


def _average(shipped: Sequence[Record], name: str, form: str, unit: float) -> str:
    values = [record[name] / unit for record in shipped if name in record]
    return form.format(statistics.mean(values)) if values else NOTHING


def _latency(case: Case, by_name: ByName, batch: int) -> str:
    """Format what was measured for any seed: the time of a file does not depend on its weights."""
    alike = (record for record in by_name.values() if case_of(record).asked == case.asked and "latency" in record)
    found = next(alike, {}).get("latency", {})
    at = next((at for at in found.get("batches", ()) if at["batch"] == batch), None)
    return f"{at['ratio']:.2f} ({at['low']:.2f}-{at['high']:.2f}) {at['verdict']}" if at else NOTHING


def _spent(group: Sequence[Record], below: Sequence[Record]) -> tuple[str, str]:
    """CPU seconds and memory to the file, with the float student."""
    pairs = [(record, on) for record, on in zip(group, below, strict=True) if "cpu" in record]
    if not pairs:
        return NOTHING, NOTHING
    seconds = statistics.mean(record["cpu"] + on.get("cpu", 0.0) for record, on in pairs)
    return f"{seconds:.0f}", f"{max(max(record['peak'], on.get('peak', 0)) for record, on in pairs) / 1e6:.0f}"


def best(records: Sequence[Record]) -> list[list[str]]:
    """Set the best file of KDQ beside the best of all peers, for each width and with and without a teacher."""
    rows = []
    found: dict[tuple[str, bool], list[list[Record]]] = {}
    for group in groups(record for record in records if "quality" in record):
        first = case_of(group[0])
        if first.method in COMPARED:
            found.setdefault((first.bits, first.taught), []).append(group)
    for (bits, taught), rivals in found.items():
        ranked = sorted(rivals, key=_rank)
        ours = next((group for group in ranked if group[0]["peer"] == "kdq"), None)
        theirs = next((group for group in ranked if group[0]["peer"] != "kdq"), None)
        if ours and theirs:
            rows.append([bits, "yes" if taught else "no", *_title(ours), *_title(theirs), _paired(theirs, ours)])
    return rows


def _rank(group: Sequence[Record]) -> float:
    middle: float = statistics.mean(record["quality"] for record in group)
    return middle if NETS[group[0]["net"]].ratings else -middle


def _title(group: Sequence[Record]) -> tuple[str, str]:
    first = case_of(group[0])
    digits = 4 if NETS[first.net].ratings else 2
    return f"{first.peer} {first.recipe}", mean([record["quality"] for record in group], digits)


def _paired(theirs: Sequence[Record], ours: Sequence[Record]) -> str:
    by_seed = {record["seed"]: record["quality"] for record in ours}
    differences = [record["quality"] - by_seed[record["seed"]] for record in theirs if record["seed"] in by_seed]
    return mean(differences, 4 if NETS[ours[0]["net"]].ratings else 2, "+")
