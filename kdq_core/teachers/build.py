"""Run a teacher on every training sample in every view, and keep its outputs. KDQ resumes a killed build."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from kdq_core.errors import StageError
from kdq_core.recipe.teacher import CacheSpec
from kdq_core.store.records import StoredTensor
from kdq_core.teachers.encoding import FEATURES, TASKS, class_count, encode_outputs, feature_layout, layout
from kdq_core.teachers.rows import Rows, reserve, row_bytes
from kdq_core.tensors import Batch, Outputs

RECORD_SECONDS = 2.0
PROGRESS = "progress.json"


@dataclass
class Build:
    """The files of a build, and its progress.

    Attributes:
        folder: the folder of the files.
        tensors: what is kept, one tensor in each file.
        rows: the files, open for writing, by name of the tensor.
        classes: length of the last axis of the logits.
        tasks: that length by task; empty for a teacher with one output.
        views: number of views that are done.
        batches: number of batches of the next view that are done.
    """

    folder: Path
    tensors: tuple[StoredTensor, ...]
    rows: dict[str, Rows]
    classes: int
    tasks: dict[str, int]
    views: int = 0
    batches: int = 0

    def record(self) -> None:
        """Write all rows to the disk, then record the progress."""
        for rows in self.rows.values():
            rows.flush()
        said = {"classes": self.classes, "tasks": self.tasks, "views": self.views, "batches": self.batches}
        draft = self.folder / f"{PROGRESS}.{os.getpid()}"
        with draft.open("w") as file:
            file.write(json.dumps(said | {"tensors": [t.model_dump(mode="json") for t in self.tensors]}))
            file.flush()
            os.fsync(file.fileno())
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
    """Run the teacher and keep its outputs in the files in `folder`.

    Args:
        teacher: gives float32 logits for a batch, and the features to be kept, by path.
        batches: gives the batches of one view by its number; the same number must give the same batches.
        spec: views, form, limit.
        samples: number of samples of one view.
        folder: where the files are; a build resumes from what a killed build left there.
        on_batch: called with rows done and rows in all.

    Raises:
        StageError: a value is not finite, outputs of two samples differ in shape, the samples are not 0 to N-1, or the
            cache would be too large.
    """
    build = _found(folder, spec.views * samples)
    for view in range(build.views if build else 0, spec.views):
        seen, told = np.zeros(samples, bool), time.monotonic()
        for number, batch in enumerate(batches(view)):
            _mark(seen, batch)
            if build is not None and number < build.batches:
                continue
            said = teacher(batch)
            build = build or _made(folder, said, spec, samples)
            _put(build, said, batch, spec, view, samples)
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
    """Open what a killed build left, if all of it can be read; a power cut may have cut files short."""
    try:
        said = json.loads((folder / PROGRESS).read_text())
        tensors = tuple(StoredTensor.model_validate_json(json.dumps(t)) for t in said["tensors"])
        rows = {t.name: Rows(folder / t.path, t, count, writable=True) for t in tensors}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Build(folder, tensors, rows, said["classes"], said["tasks"], said["views"], said["batches"])


def _made(folder: Path, said: Outputs, spec: CacheSpec, samples: int) -> Build:
    tensors, count = (*layout(said, spec), *feature_layout(said.features, spec)), spec.views * samples
    sizes = {tensor.name: count * row_bytes(tensor) for tensor in tensors}
    if sum(sizes.values()) > spec.limit_gb * 1e9:
        raise StageError(_too_large(sizes, spec, samples))
    folder.mkdir(parents=True, exist_ok=True)
    for tensor in tensors:
        reserve(folder / tensor.path, sizes[tensor.name])
    rows = {tensor.name: Rows(folder / tensor.path, tensor, count, writable=True) for tensor in tensors}
    tasks = {name: class_count(logits) for name, logits in said.tasks.items()}
    return Build(folder, tensors, rows, classes=class_count(said.logits), tasks=tasks)


def _too_large(sizes: Mapping[str, int], spec: CacheSpec, samples: int) -> str:
    largest = sorted((name for name in sizes if name.startswith(FEATURES)), key=lambda name: -sizes[name])
    total, words = sum(sizes.values()), [f"{name.removeprefix(FEATURES)!r} {sizes[name] / 1e9:.3g}" for name in largest]
    features = f" (features of {', '.join(words)})" if words else ""
    ask, off = ("fewer views or fewer taps", "features") if words else ("fewer views, fp16 or a top_k", "enabled")
    return (
        f"the teacher's outputs for {samples} samples in {spec.views} views take {total / 1e9:.3g} GB{features}, more "
        f"than 'teacher.cache.limit_gb', {spec.limit_gb:g}; ask for {ask}, raise the limit, or run the teacher beside "
        f"the student with teacher: {{cache: {{{off}: false}}}}"
    )


def _put(build: Build, said: Outputs, batch: Batch, spec: CacheSpec, view: int, samples: int) -> None:
    for name, values in encode_outputs(said, spec).items():
        kept = next(tensor.shape for tensor in build.tensors if tensor.name == name)
        if values.shape != (len(batch.ids), *kept):
            raise StageError(
                f"{_called(name)} have the shape {values.shape} for a batch of {len(batch.ids)} samples, where "
                f"{(len(batch.ids), *kept)} was expected from the first batch; what is kept has one shape for every "
                "sample: pad the inputs to one length, or run the teacher beside the student with "
                f"teacher: {{cache: {{{'features' if name.startswith(FEATURES) else 'enabled'}: false}}}}"
            )
        finite = np.isfinite(values).reshape(len(values), -1).all(1)
        if not finite.all():
            row = int(finite.argmin())
            value = _told(said, name)[row]
            raise StageError(_not_finite(name, value, f"sample {int(batch.ids[row])} in view {view}"))
        build.rows[name].write(view * samples + batch.ids.cpu().numpy(), values)


def _told(said: Outputs, name: str) -> Tensor:
    """Give the output of the teacher that is kept under `name`."""
    if name.startswith(FEATURES):
        return said.features[name.removeprefix(FEATURES)]
    return said.tasks[_task(name)] if said.tasks else said.logits


def _task(name: str) -> str:
    return name.removeprefix(TASKS).rpartition("/")[0]


def _called(name: str) -> str:
    if name.startswith(FEATURES):
        return f"the teacher's features of {name.removeprefix(FEATURES)!r}"
    return f"the teacher's logits of {_task(name)!r}" if name.startswith(TASKS) else "the teacher's logits"


def _not_finite(name: str, value: Tensor, where: str) -> str:
    """Word the error for the output `value` of one sample that is not finite, or does not fit into fp16."""
    what, _, of = _called(name).removeprefix("the teacher's ").partition(" ")
    one = f"{what.removesuffix('s')} {of}".strip()
    wrong = value[~value.isfinite()]
    if not wrong.numel():
        return (
            f"the teacher's largest {one} for {where} is {float(value.abs().max()):g}, beyond fp16, which ends at "
            "65504; write teacher: {cache: {form: fp32}}, or check the teacher"
        )
    return (
        f"the teacher gave a {one} of {float(wrong.flatten()[0])} for {where}, so no student can learn from it; "
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
