"""Keeps beside the predictions of the test split what a reader needs to judge them: labels, and a few samples.

The samples are those that the float student answers right and the int8 file wrong, then those the other way round,
then the closest calls of the int8 file. Without classes they are those whose outputs the int8 file changed most.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdq_core.store.predictions import opened, write_array
from kdq_core.store.records import ShownSamples, StoredArray, StoredPredictions

if TYPE_CHECKING:
    from torch import Tensor

    from kdq_core.tensors import Batches

MOST, ENOUGH = 24, 12
"""The most samples that are kept; and below how many close calls are kept beside those whose answer changed."""
MOST_BYTES = 32 * 2**20
"""The most that one input of the kept samples may take."""
FOLDER = "samples"
BLOCK = 16_384
"""Rows that are computed with at once."""


def labels_of(batches: Batches, outputs: Sequence[str], draft: Path) -> tuple[StoredArray, ...]:
    """Keep the classes of the test split, for each output that has one label a sample.

    Args:
        batches: gives the test split.
        outputs: names of the outputs of the files.
        draft: folder of the entry.
    """
    parts: dict[str, list[np.ndarray]] = {}
    lengths: list[int] = []
    for batch in batches():
        given = dict(batch.tasks) if batch.tasks else {} if batch.targets is None else {outputs[0]: batch.targets}
        for name, values in given.items():
            if values.ndim == 1 and not values.is_floating_point():
                found = parts.setdefault(name, [np.full(size, -1, np.int64) for size in lengths])
                found.append(values.numpy().astype(np.int64))
        lengths.append(len(batch.ids))
        for found in parts.values():
            if len(found) < len(lengths):
                found.append(np.full(lengths[-1], -1, np.int64))
    if parts:
        (draft / FOLDER).mkdir(exist_ok=True)
    return tuple(
        write_array(draft, name, f"{FOLDER}/labels-{number}.bin", np.concatenate(parts[name]))
        for number, name in enumerate(outputs)
        if name in parts
    )


def shown_of(
    batches: Batches,
    inputs: Sequence[str],
    predictions: Sequence[StoredPredictions],
    labels: Sequence[StoredArray],
    draft: Path,
    text_of: Callable[[tuple[Tensor, ...]], str],
) -> ShownSamples | None:
    """Keep the inputs of a few samples; `None` if the predictions of both student files are not kept.

    Args:
        batches: gives the test split.
        inputs: names of the inputs of the files.
        predictions: as an evaluation report lists them.
        labels: from `labels_of`.
        draft: folder of the entry.
        text_of: the workload's; gives the text of one sample, or nothing.
    """
    first = {one.model: opened(draft, one) for one in reversed(predictions)}
    if not {"student", "int8"} <= first.keys() or first["student"].shape != first["int8"].shape:
        return None
    name = next(one.output for one in predictions if one.model == "int8")
    truth = {one.name: opened(draft, one) for one in labels}.get(name)
    rows = chosen(first["student"], first["int8"], truth)
    found: dict[int, tuple[np.ndarray, ...]] = {}
    texts: dict[int, str] = {}
    start = 0
    for batch in batches():
        for row in rows:
            if start <= row < start + len(batch.ids):
                inputs_of = tuple(x[row - start] for x in batch.inputs)
                found[row], texts[row] = tuple(x.numpy() for x in inputs_of), _told(text_of, inputs_of)
        start += len(batch.ids)
    rows = [row for row in rows if row in found]
    alike = [row for row in rows if [x.shape for x in found[row]] == [x.shape for x in found[rows[0]]]]
    most = max((x.nbytes for row in alike[:1] for x in found[row]), default=1)
    kept = alike[: max(1, MOST_BYTES // max(1, most))]
    if not kept:
        return None
    (draft / FOLDER).mkdir(exist_ok=True)
    arrays = [np.stack(parts) for parts in zip(*(found[row] for row in kept))]
    stored = (write_array(draft, name, f"{FOLDER}/input-{n}.bin", x) for n, (name, x) in enumerate(zip(inputs, arrays)))
    told = tuple(texts[row] for row in kept)
    return ShownSamples(rows=tuple(kept), inputs=tuple(stored), texts=told if any(told) else ())


def _told(text_of: Callable[[tuple[Tensor, ...]], str], inputs: tuple[Tensor, ...]) -> str:
    """The text of a sample; a workload that cannot tell it must not cost the evaluation."""
    try:
        return str(text_of(inputs))
    except Exception:
        traceback.print_exc()
        return ""


def chosen(student: np.ndarray, int8: np.ndarray, truth: np.ndarray | None) -> list[int]:
    """Choose the rows to show, at most `MOST`.

    Args:
        student: outputs of the float student, `[N, ...]`.
        int8: outputs of the int8 file, `[N, ...]`.
        truth: classes `[N]`, below 0 where a sample has none; `None` if the labels are no classes.
    """
    if truth is None or int8.ndim != 2 or int8.shape[1] < 2:
        parts = [np.square(int8[at].astype(np.float64) - student[at]) for at in blocks(len(int8))]
        change = np.concatenate([part.reshape(len(part), -1).mean(1) for part in parts])
        return [int(row) for row in np.argsort(-change, kind="stable")[:ENOUGH]]
    flips = flipped(student, int8, truth)
    tops = [np.partition(int8[at].astype(np.float64), -2, axis=1)[:, -2:] for at in blocks(len(int8))]
    margins = np.where(truth >= 0, np.concatenate([top[:, 1] - top[:, 0] for top in tops]), np.inf)
    close = [int(row) for row in np.argsort(margins, kind="stable")[: 2 * MOST] if np.isfinite(margins[row])]
    changed = [row for kind in ("lost", "gained") for row in flips[kind]][:MOST]
    return changed + [row for row in close if row not in changed][: max(0, ENOUGH - len(changed))]


def blocks(rows: int) -> list[slice]:
    """Slices that cover so many rows; outputs are memory-mapped, and may be larger than the memory."""
    return [slice(start, start + BLOCK) for start in range(0, rows, BLOCK)]


def flipped(student: np.ndarray, int8: np.ndarray, truth: np.ndarray) -> Mapping[str, list[int]]:
    """Rows that only the float student answers right (`lost`), and rows that only the int8 file does (`gained`)."""
    ours, theirs = int8.argmax(1) == truth, student.argmax(1) == truth
    rows = {"lost": theirs & ~ours, "gained": ours & ~theirs}
    return {kind: [int(row) for row in np.flatnonzero(which & (truth >= 0))] for kind, which in rows.items()}
