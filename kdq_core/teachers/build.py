"""Ask a teacher for every training sample in every view, and keep what it says; a build that was killed goes on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from kdq_core.errors import StageError
from kdq_core.records import StoredTensor
from kdq_core.teachers.encoding import encode, layout
from kdq_core.teachers.rows import Rows, reserve, row_bytes
from kdq_core.teachers.spec import CacheSpec
from kdq_core.tensors import Batch, Outputs

RECORD_SECONDS = 2.0
PROGRESS = "progress.json"


@dataclass
class Build:
    """The files of a build, and how far it came.

    Attributes:
        folder: where they lie.
        tensors: one a file.
        rows: the files, open for writing, by name.
        classes: length of the last axis of the logits.
        views: views that are done.
        batches: batches of the next view that are done.
    """

    folder: Path
    tensors: tuple[StoredTensor, ...]
    rows: dict[str, Rows]
    classes: int
    views: int = 0
    batches: int = 0

    def record(self) -> None:
        """Bring all rows to the disk, then say how far it came."""
        for rows in self.rows.values():
            rows.flush()
        said = {"classes": self.classes, "views": self.views, "batches": self.batches}
        draft = self.folder / f"{PROGRESS}.{os.getpid()}"
        draft.write_text(json.dumps(said | {"tensors": [t.model_dump(mode="json") for t in self.tensors]}))
        draft.replace(self.folder / PROGRESS)


def build_outputs(
    teacher: Callable[[Batch], Outputs],
    batches: Callable[[int], Iterable[Batch]],
    spec: CacheSpec,
    *,
    samples: int,
    folder: Path,
    on_batch: Callable[[int, int], None] = lambda _done, _total: None,
) -> Build:
    """Fill the files in `folder`.

    Args:
        teacher: gives float32 logits for a batch.
        batches: gives the batches of one view, by its number; the same ones each time.
        spec: views, form, limit.
        samples: number of samples of one view.
        folder: what a killed build left there is used.
        on_batch: called with rows done and rows in all.

    Raises:
        StageError: a logit is no finite number, the samples are not 0 to N-1, or the cache would be too large.
    """
    build = _found(folder, spec.views * samples)
    for view in range(build.views if build else 0, spec.views):
        seen, told = np.zeros(samples, bool), time.monotonic()
        for number, batch in enumerate(batches(view)):
            _mark(seen, batch)
            if build is not None and number < build.batches:
                continue
            logits = teacher(batch).logits
            build = build or _made(folder, tuple(logits.shape[1:]), spec, samples)
            _put(build, logits, batch, spec, view, samples)
            build.batches = number + 1
            on_batch(view * samples + int(seen.sum()), spec.views * samples)
            if time.monotonic() - told > RECORD_SECONDS:
                build.record()
                told = time.monotonic()
        if build is None or not seen.all():
            raise StageError(
                f"the workload gave {int(seen.sum())} of the {samples} training samples it says it has; "
                "each sample number from 0 to N-1 must come once"
            )
        build.views, build.batches = view + 1, 0
        build.record()
    assert build is not None
    return build


def _found(folder: Path, count: int) -> Build | None:
    """What a killed build left, if all of it is there."""
    try:
        said = json.loads((folder / PROGRESS).read_text())
        tensors = tuple(StoredTensor.model_validate_json(json.dumps(t)) for t in said["tensors"])
        rows = {t.name: Rows(folder / t.path, t, count, writable=True) for t in tensors}
    except OSError:
        return None
    return Build(folder, tensors, rows, said["classes"], said["views"], said["batches"])


def _made(folder: Path, shape: tuple[int, ...], spec: CacheSpec, samples: int) -> Build:
    tensors, count = layout(shape, spec), spec.views * samples
    size = count * sum(row_bytes(tensor) for tensor in tensors)
    if size > spec.limit_gb * 1e9:
        raise StageError(
            f"the teacher's outputs for {samples} samples in {spec.views} views take {size / 1e9:.3g} GB, more than "
            f"'teacher.cache.limit_gb', {spec.limit_gb:g}; ask for fewer views, fp16 or a top_k, raise the limit, or "
            "run the teacher beside the student with teacher: {cache: {enabled: false}}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for tensor in tensors:
        reserve(folder / tensor.path, count * row_bytes(tensor))
    rows = {tensor.name: Rows(folder / tensor.path, tensor, count, writable=True) for tensor in tensors}
    return Build(folder, tensors, rows, classes=shape[-1])


def _put(build: Build, logits: Tensor, batch: Batch, spec: CacheSpec, view: int, samples: int) -> None:
    encoded = encode(logits, spec)
    for name, values in encoded.items():
        finite = np.isfinite(values).reshape(len(values), -1).all(1)
        if not finite.all():
            raise StageError(_not_finite(logits, batch, int(finite.argmin()), view))
        build.rows[name].write(view * samples + batch.ids.cpu().numpy(), values)


def _not_finite(logits: Tensor, batch: Batch, row: int, view: int) -> str:
    where = f"sample {int(batch.ids[row])} in view {view}"
    wrong = logits[row][~logits[row].isfinite()]
    if not wrong.numel():
        largest = float(logits[row].abs().max())
        return (
            f"the teacher's largest logit for {where} is {largest:g}, beyond fp16, which ends at 65504; "
            "write teacher: {cache: {form: fp32}}, or check the teacher"
        )
    return (
        f"the teacher gave a logit of {float(wrong.flatten()[0])} for {where}, so no student can learn from it; "
        "check the teacher's weights and the data for NaN"
    )


def _mark(seen: np.ndarray, batch: Batch) -> None:
    ids = batch.ids.cpu().numpy()
    outside = ids[(ids < 0) | (ids >= len(seen))]
    if len(outside):
        raise StageError(
            f"the workload gave a sample numbered {outside[0]}, but says it has {len(seen)} training samples; "
            "each sample number from 0 to N-1 must come once"
        )
    if seen[ids].any():
        raise StageError(
            f"the workload gave sample {ids[seen[ids]][0]} twice in one pass; "
            "each sample number from 0 to N-1 must come once"
        )
    seen[ids] = True
