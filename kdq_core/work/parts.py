"""Which classes and which slices of the data the int8 file answers worse: than the float file, or than the others.

What: a slice is the samples with one value in a column of the data, such as a speaker. A column of more than `VALUES`
    numbers is cut at its quartiles; of more than `VALUES` texts, the most frequent ones are looked at.
Formula: `lost` is shown by McNemar's exact test of the two files on the samples of the part; `weak` by Fisher's exact
    test of the int8 file's right answers in the part and in the rest. Each two-sided p-value is multiplied by the
    number of parts (Bonferroni), because some of many parts look bad by chance.
Source: McNemar 1947; Fisher 1934; the interval of the difference: Bonett and Price 2012.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kdq_core.errors import PluginError, RecipeError, did_you_mean, listing
from kdq_core.intervals import mcnemar, paired
from kdq_core.work.effects import Files, Flip, Part
from kdq_core.work.samples import flipped

if TYPE_CHECKING:
    from kdq_core.plugins.kinds import Workload
    from kdq_core.tensors import Split

VALUES, FEWEST, LISTED = 20, 5, 20
"""Values of a column that are looked at one by one; samples of the smallest part; flips that are listed."""
LEVEL = 0.05
CLASS = "class"


def columns_of(workload: Workload, split: Split, samples: int, asked: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The columns that the data have beside the inputs, each `[N]`; only those that were asked for, if any were.

    Args:
        workload: names the columns.
        split: whose columns.
        samples: how many the split has.
        asked: names of columns.

    Raises:
        RecipeError: the data have no column of that name.
        PluginError: a column has not one value for each sample.
    """
    found = {str(name): np.asarray(values) for name, values in workload.columns(split).items()}
    for name in asked:
        if name not in found:
            if not found:
                raise RecipeError(
                    f"--slice {name!r}: the workload names no columns of its data; give it a method columns(split), or "
                    "leave --slice out"
                )
            near = did_you_mean(name, list(found)) or "."
            raise RecipeError(f"--slice {name!r}: the data have no such column{near} They have {listing(list(found))}")
    for name, values in found.items():
        if values.shape != (samples,):
            raise PluginError(
                f"the workload's column {name!r} has the shape {values.shape}, but the split {split!r} has {samples} "
                "samples; columns(split) must give one value for each, in the order of batches(split)"
            )
    return {name: found[name] for name in asked or found}


def files_of(student: np.ndarray, int8: np.ndarray, truth: np.ndarray, columns: Mapping[str, np.ndarray]) -> Files:
    """Compare the answers of two files, by class and by slice.

    Args:
        student: logits of the float file, `[N, C]`.
        int8: logits of the int8 file, `[N, C]`.
        truth: classes `[N]`; below 0 where a sample has none.
        columns: values `[N]` by name.
    """
    known = truth >= 0
    ours, theirs = (given.argmax(1) == truth for given in (int8, student))
    masks = [(name, value, mask & known) for name, value, mask in _parts(truth, columns)]
    masks = [one for one in masks if one[2].sum() >= FEWEST]
    parts = [_part(*one, ours & known, theirs & known, known, len(masks)) for one in masks]
    order = {"lost": 0, "weak": 1, "": 2}
    parts.sort(key=lambda part: (order[part.verdict], part.in_int8 - part.in_float, part.in_int8))
    kinds = flipped(student, int8, truth)
    flips = [
        Flip.model_validate({
            "row": row, "kind": kind, "label": int(truth[row]), "in_float": int(student[row].argmax()),
            "in_int8": int(int8[row].argmax()),
        })
        for kind, rows in kinds.items() for row in rows[:LISTED]
    ]  # fmt: skip
    return Files(
        samples=int(known.sum()), in_float=float(theirs[known].mean()), in_int8=float(ours[known].mean()),
        parts=tuple(parts), lost=len(kinds["lost"]), gained=len(kinds["gained"]), flips=tuple(flips[:LISTED]),
    )  # fmt: skip


def _parts(truth: np.ndarray, columns: Mapping[str, np.ndarray]) -> Iterator[tuple[str, str, np.ndarray]]:
    for one in np.unique(truth[truth >= 0]):
        yield CLASS, str(one), truth == one
    for name, values in columns.items():
        yield from ((name, value, mask) for value, mask in groups(values))


def groups(values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the groups of a column `[N]`: the value or the range, and whether each sample is in it."""
    numbers = values.dtype.kind in "fiub"
    missing = np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), bool)
    if not numbers:
        values = values.astype(str)
    there, counts = np.unique(values[~missing], return_counts=True)
    if numbers and len(there) > VALUES:
        ends = np.quantile(values[~missing], (0, 0.25, 0.5, 0.75, 1))
        for low, high in itertools.pairwise(ends):
            last = high == ends[-1]
            if low < high or last:
                inside = (values >= low) & ((values <= high) if last else (values < high))
                yield f"{low:.4g} to {high:.4g}", inside
    else:
        for one in there[np.argsort(-counts, kind="stable")][:VALUES]:
            yield (f"{one:g}" if numbers else str(one)), values == one
    if missing.any():
        yield "missing", missing


def _part(
    column: str, value: str, mask: np.ndarray, ours: np.ndarray, theirs: np.ndarray, known: np.ndarray, tests: int
) -> Part:
    from scipy.stats import fisher_exact

    count, gained, lost = (int(one.sum()) for one in (mask, mask & ours & ~theirs, mask & theirs & ~ours))
    low, high = paired(gained, lost, count)
    inside, outside = int(ours[mask].sum()), int(ours[known & ~mask].sum())
    rest = int((known & ~mask).sum())
    verdict = ""
    if lost > gained and mcnemar(gained, lost) * tests < LEVEL:
        verdict = "lost"
    elif rest:
        table = [[inside, count - inside], [outside, rest - outside]]
        verdict = "weak" if fisher_exact(table, alternative="less").pvalue * 2 * tests < LEVEL else ""
    return Part.model_validate({
        "column": column, "value": value, "samples": count, "in_float": float(theirs[mask].mean()),
        "in_int8": inside / count, "low": low, "high": high, "verdict": verdict,
    })  # fmt: skip
