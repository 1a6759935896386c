"""Reasons why the models of a run cannot be compared: a test split that was trained on, a model that lost its quality.

What: a sample of the test split is shared if the training split has one with the same inputs, bit by bit, apart from
    zeros at the end, since a workload may pad each batch to the length of its longest text. A model is lost if its file
    is far worse on the test split than the end of its training curve on the validation split.
Formula: the share s of shared test samples must be at most d + z sqrt(d (1 - d) / n) + t, where d is the share of
    training samples with a twin in the training split, and n the number of test samples: data may have twins by nature,
    and an honest split has as many of them across as within. Top-1 must be at least v - t - z sqrt(p (1 - p) (1 / m +
    1 / n)), where v is the top-1 at the end of the curve, on m validation samples, and p the mean of both. A loss must
    be at most twice that of the curve, plus z standard errors of its mean over the batches.
Source: t is 0.01 for shared samples: they change the measured top-1 by at most their share, and a point is what a
    compressed model may lose. It is 0.15 for top-1: new test sets of CIFAR-10 and ImageNet, collected anew in the same
    way, cost up to 15 points (Recht et al. 2019, "Do ImageNet Classifiers Generalize to ImageNet?", arXiv:1902.10811),
    so a larger drop is not the draw of the test set. z is 3.29: sound data raise a false alarm once in 2,000 runs.
Limits: a training split that is augmented at random has no sample of the test split bit by bit, so that nothing shared
    is found; nor in batches that are padded to different lengths with another value than 0. A model that was read from
    a file has no curve.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from kdq_core.store.records import Anomaly, Checkpoint, EvaluationReport
from kdq_core.training.losses import loss_of, outputs_of
from kdq_core.work.data import EVALUATION_BATCH, checked

if TYPE_CHECKING:
    from kdq_core.plugins.kinds import Subject, Workload
    from kdq_core.tensors import Batch, Batches

Z = 3.29
"""99.95 % quantile of the normal distribution."""
SHARED, LOST, WORSE = 0.01, 0.15, 2.0
"""The tolerances for shared samples, for top-1, and for a loss (a factor)."""


def shared(workload: Workload, tolerance: float) -> tuple[Anomaly, ...]:
    """Look for samples of the test split in the training split; both are read once."""
    train, test = (hashes(workload.batches(split, batch_size=EVALUATION_BATCH)) for split in ("train", "test"))
    _, place, count = np.unique(train, return_inverse=True, return_counts=True)
    twins, samples = float((count[place] > 1).mean()), len(test)
    found = int(np.isin(test, train).sum())
    bound = min(1.0, twins + Z * math.sqrt(twins * (1 - twins) / samples) + tolerance)
    if found / samples <= bound:
        return ()
    note = (
        f"{found:,} of {samples:,} test samples are in the training split too, so every figure of quality is too good; "
        "split the data anew. If equal samples are no leak here, raise the option 'shared' of the stage 'evaluate'"
    )
    return (Anomaly(rule="share of test samples in 'train'", value=found / samples, bound=bound, note=note),)


def hashes(batches: Iterable[Batch]) -> np.ndarray:
    """64-bit hash of the inputs of each sample, uint64 `[N]`; zeros at the end of an input count as padding."""
    found: list[int] = []
    for batch in batches:
        rows = [np.ascontiguousarray(x.numpy()).reshape(len(batch.ids), -1) for x in batch.inputs]
        for inputs in zip(*rows, strict=True):
            parts = [row.tobytes().rstrip(b"\0") for row in inputs]
            whole = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
            found.append(int.from_bytes(hashlib.blake2b(whole, digest_size=8).digest(), "little"))
    return np.array(found, np.uint64)


def lost(
    report: EvaluationReport,
    curves: Mapping[str, Checkpoint],
    subjects: Mapping[str, Subject],
    batches: Batches,
    workload: Workload,
    tolerance: float,
) -> Iterator[Anomaly]:
    """Compare the files of models with the ends of their training curves.

    Args:
        report: what evaluators measured.
        curves: the records of the models, by slot.
        subjects: the files by slot.
        batches: gives the test split.
        workload: of the recipe.
        tolerance: how much top-1 may be lower.
    """
    for slot in sorted(curves.keys() & subjects.keys()):
        ends = ends_of(curves[slot], all_fits=slot == "teacher")
        tasks = [name for name in ends if name.startswith("top1")]
        for name in tasks:
            metric = next((m for m in report.models.get(slot, ()) if m.name in (name, "top1")), None)
            if metric is not None and metric.samples:
                yield from _fallen(slot, metric.value, metric.samples, ends[name], workload, tolerance)
        if not tasks and ends.get("loss", 0.0) > 0:
            yield from _risen(slot, ends["loss"], subjects[slot], batches, workload)


def ends_of(record: Checkpoint, *, all_fits: bool) -> dict[str, float]:
    """The last values of the validation curves by name; of several fits, the worst if `all_fits`, else the first."""
    found: dict[str, dict[str, float]] = {}
    for point in record.history:
        for curve, value in point.values.items():
            match = re.fullmatch(r"((?:\d+/)?)validation/(.+)", curve)
            if match and (all_fits or not match[1]):
                found.setdefault(match[2], {})[match[1]] = value
    return {name: (max if name == "loss" else min)(values.values()) for name, values in found.items()}


def _fallen(
    slot: str, value: float, samples: int, end: float, workload: Workload, tolerance: float
) -> Iterator[Anomaly]:
    validation = workload.samples("validation")
    middle = (value + end) / 2
    bound = end - tolerance - Z * math.sqrt(middle * (1 - middle) * (1 / validation + 1 / samples))
    if value < bound:
        yield Anomaly(
            model=slot, rule=f"{slot} top1 on 'test'", value=value, bound=bound,
            note=f"its training ended at {end:.4g} on {validation:,} validation samples; {_remedy('lost')}",
        )  # fmt: skip


def _risen(slot: str, end: float, subject: Subject, batches: Batches, workload: Workload) -> Iterator[Anomaly]:
    value, error = _test_loss(subject, batches, workload)
    bound = WORSE * end + Z * error
    if value > bound:
        yield Anomaly(
            model=slot, rule=f"{slot} loss on 'test'", value=value, bound=bound,
            note=f"its training ended at a loss of {end:.4g} on the validation split; {_remedy('lost')}",
        )  # fmt: skip


def _remedy(option: str) -> str:
    return (
        "the test split is prepared in another way, or the file answers in another way than the model; mend that. If "
        f"the test split is harder by design, raise the option {option!r} of the stage 'evaluate'"
    )


def _test_loss(subject: Subject, batches: Batches, workload: Workload) -> tuple[float, float]:
    """The mean loss over labelled test samples, and its standard error from the batches."""
    names = [output.name for output in subject.target.signature(subject.path)[1]]
    replay = _Replay(subject.predict(batches), names)
    losses, sizes = [], []
    for given in batches():
        batch = checked(given, "test")
        outputs = outputs_of(replay, batch)
        if batch.labelled:
            losses.append(loss_of(workload, outputs, batch, "test").item())
            sizes.append(len(batch.ids))
    if not losses:
        return 0.0, 0.0
    each, weight = np.array(losses), np.array(sizes) / sum(sizes)
    mean = float((each * weight).sum())
    return mean, float(np.sqrt(((each - mean) ** 2 * weight**2).sum() * len(each) / max(1, len(each) - 1)))


class _Replay(nn.Module):
    """Gives kept predictions for the batches that they were made of, in order."""

    def __init__(self, outputs: tuple[np.ndarray, ...], names: list[str]) -> None:
        super().__init__()
        self._outputs, self._names, self._done = outputs, names, 0

    def forward(self, *inputs: torch.Tensor) -> Any:
        at = slice(self._done, self._done + len(inputs[0]))
        self._done = at.stop
        given = {n: torch.from_numpy(np.array(x[at])) for n, x in zip(self._names, self._outputs, strict=True)}
        return given if len(given) > 1 else next(iter(given.values()))
