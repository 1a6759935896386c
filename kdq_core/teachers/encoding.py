"""How a teacher's logits become rows of a file, and how rows become logits again.

What: a file keeps whole rows in fp16 or fp32, or only the k largest logits of each row and one value for all others.
    Features are always whole rows. With several tasks, each task has its own files.
Formula: with top-k, `rest = logsumexp(the other C - k logits) - log(C - k)` stands for each of the others, so that the
    softmax of a row keeps the probabilities of the k largest and the sum of the others.
Limits: with top-k, temperatures other than 1 see the others as equal; fp16 has 11 bits, a relative error of 2^-11.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from kdq_core.errors import StageError
from kdq_core.recipe.teacher import CacheSpec
from kdq_core.store.records import StoredTensor
from kdq_core.tensors import Outputs

LOGITS, TOP, INDEX, REST = "logits", "top", "top_index", "top_rest"
FEATURES = "features/"
"""Prefix in the name of a tapped module's features; the module's path follows."""
TASKS = "tasks/"
"""Prefix in the name of a task's tensors; the task's name and `/` follow."""
DTYPES = {"fp16": "<f2", "fp32": "<f4"}


def layout(outputs: Outputs, spec: CacheSpec) -> tuple[StoredTensor, ...]:
    """List the files for a teacher's logits `[B, ..., C]`, or for the logits of each of its tasks.

    Raises:
        StageError: `top_k` is not smaller than the number of classes.
    """
    if not outputs.tasks:
        return _layout(tuple(outputs.logits.shape[1:]), spec, "", "")
    each = enumerate(outputs.tasks.items())
    return tuple(
        tensor
        for number, (task, logits) in each
        for tensor in _layout(tuple(logits.shape[1:]), _fitting(spec, logits), f"{TASKS}{task}/", f"task-{number}-")
    )


def _fitting(spec: CacheSpec, logits: Tensor) -> CacheSpec:
    """Give the form of one of several tasks: a task of `top_k` classes or fewer is kept as whole rows."""
    whole = spec.top_k is not None and class_count(logits) <= spec.top_k
    return spec.model_copy(update={"top_k": None}) if whole else spec


def class_count(logits: Tensor) -> int:
    """Give the length of the last axis of logits `[B, ..., C]`; 1 for one number per sample, `[B]`."""
    return logits.shape[-1] if logits.ndim > 1 else 1


def _layout(shape: tuple[int, ...], spec: CacheSpec, prefix: str, stem: str) -> tuple[StoredTensor, ...]:
    *outer, classes = shape or (1,)
    kind = DTYPES[spec.form]
    files = [(LOGITS, kind, shape)]
    if spec.top_k is not None:
        if spec.top_k >= classes:
            raise StageError(
                f"'teacher.cache.top_k' is {spec.top_k}, but the teacher's logits have {classes} classes; "
                "ask for fewer, or leave top_k out"
            )
        kept = (*outer, spec.top_k)
        index = "<u2" if classes <= 1 << 16 else "<i4"
        files = [(TOP, kind, kept), (INDEX, index, kept), (REST, kind, tuple(outer))]
    return tuple(StoredTensor(name=prefix + n, path=f"{stem}{n}.bin", dtype=d, shape=s) for n, d, s in files)


def feature_layout(features: Mapping[str, Tensor], spec: CacheSpec) -> tuple[StoredTensor, ...]:
    """List the files for features `[B, ...]` by path; `top_k` does not apply to them."""
    return tuple(
        StoredTensor(
            name=f"{FEATURES}{path}",
            path=f"features-{number}.bin",
            dtype=DTYPES[spec.form],
            shape=tuple(features[path].shape[1:]),
        )
        for number, path in enumerate(sorted(features))
    )


def encode_features(features: Mapping[str, Tensor], spec: CacheSpec) -> dict[str, np.ndarray]:
    """Encode float32 features `[B, ...]` by path as rows by name of the tensor."""
    with np.errstate(over="ignore"):  # the caller looks for infinities
        return {f"{FEATURES}{path}": x.cpu().numpy().astype(DTYPES[spec.form]) for path, x in features.items()}


def decode_feature(rows: np.ndarray, device: torch.device) -> Tensor:
    """Decode rows to float32 features `[B, ...]` on `device`."""
    return torch.from_numpy(rows).to(device, non_blocking=True).float()


def encode_outputs(outputs: Outputs, spec: CacheSpec) -> dict[str, np.ndarray]:
    """Encode a teacher's logits and features for a batch as rows by name of the tensor."""
    rows = encode_features(outputs.features, spec)
    if not outputs.tasks:
        return rows | encode(outputs.logits, spec)
    for task, logits in outputs.tasks.items():
        rows |= {f"{TASKS}{task}/{name}": values for name, values in encode(logits, _fitting(spec, logits)).items()}
    return rows


def decode_outputs(
    rows: Mapping[str, np.ndarray], classes: int, tasks: Mapping[str, int], device: torch.device
) -> Outputs:
    """Decode rows to float32 outputs on `device`, without features.

    Args:
        rows: by name of the tensor.
        classes: number of classes of the logits.
        tasks: number of classes by task; empty for a teacher with one output.
        device: where the outputs go.
    """
    if not tasks:
        return Outputs(decode(rows, classes, device))
    found: dict[str, Tensor] = {}
    for task, count in tasks.items():
        prefix = f"{TASKS}{task}/"
        mine = {name.removeprefix(prefix): values for name, values in rows.items() if name.startswith(prefix)}
        found[task] = decode(mine, count, device)
    return Outputs(next(iter(found.values())), tasks=found)


def encode(logits: Tensor, spec: CacheSpec) -> dict[str, np.ndarray]:
    """Encode float32 logits `[B, ..., C]` as rows by name of the tensor."""
    kind = DTYPES[spec.form]
    with np.errstate(over="ignore"):  # the caller looks for infinities
        if spec.top_k is None:
            return {LOGITS: logits.cpu().numpy().astype(kind)}
        top, index = logits.topk(spec.top_k, dim=-1)
        others = logits.scatter(-1, index, -math.inf)
        rest = others.logsumexp(-1) - math.log(logits.shape[-1] - spec.top_k)
        rows = {TOP: top.cpu().numpy().astype(kind), REST: rest.cpu().numpy().astype(kind)}
    return rows | {INDEX: index.cpu().numpy()}


def decode(rows: Mapping[str, np.ndarray], classes: int, device: torch.device) -> Tensor:
    """Decode rows to float32 logits `[B, ..., C]` on `device`."""
    if LOGITS in rows:
        return torch.from_numpy(rows[LOGITS]).to(device, non_blocking=True).float()
    top, rest = (torch.from_numpy(rows[name]).to(device).float() for name in (TOP, REST))
    index = torch.from_numpy(rows[INDEX].astype(np.int64)).to(device)
    return rest[..., None].repeat(*[1] * rest.ndim, classes).scatter_(-1, index, top)
