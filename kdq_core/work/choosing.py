"""Quantizes the student; where the recipe leaves the quantizer to KDQ, by what calibration loses on held-out data.

What: KDQ calibrates the float student first and compares both on the labelled samples of the validation split, which
    no model was trained on. If calibration loses no more than the tolerance, it stays. If it loses more, KDQ trains
    with the next quantizer, compares that too, and takes the better of both. A recipe with few bits is trained at once.
Formula: of classes, the difference of top-1, with the 95 % interval of `kdq_core.intervals.paired`; a loss counts only
    if the whole interval is below zero. Without classes, the hard loss of the one over that of the other, minus 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from kdq_core.intervals import paired
from kdq_core.plugins.choosing import Choosing
from kdq_core.store.records import Checkpoint, Choice
from kdq_core.training.losses import by_task, has_classes, loss_of, outputs_of
from kdq_core.training.rows import to_device
from kdq_core.work.budget import shared
from kdq_core.work.data import EVALUATION_BATCH
from kdq_core.work.quantizing import Trained, calibrated, trained
from kdq_core.work.shown import request_of

if TYPE_CHECKING:
    from kdq_core.plugins.kinds import Workload
    from kdq_core.work.work import StageWork

FLOAT = "float"


@dataclass(frozen=True)
class Compared:
    """Two models on the same labels: how much the second loses.

    Attributes:
        metric: `top1`, `loss`, or empty if there are no labels.
        values: of the first and of the second.
        samples: number of labels.
        lost: by how much the second is worse: top-1 as a share, or the hard loss relative to that of the first.
        shown: whether the interval shows that it is worse.
    """

    metric: str
    values: tuple[float, float]
    samples: int
    lost: float
    shown: bool


def quantized(work: StageWork) -> Checkpoint:
    """Quantize the student with the recipe's quantizer, or with the one that its data speaks for."""
    ways = request_of(work).ways
    if not ways:
        return _written(work, _made(work))
    if len(ways) == 1:
        found = _made(replace(work, way=ways[0]))
        return _written(work, found, _at_once(work, ways[0]))
    first, then = ways[0], ways[-1]
    device = work.accelerator().device
    student = work.model("student").to(device).eval()
    found = _made(replace(work, way=first))
    seen = compared(student, found.model, work.workload, device)
    if not _too_much(work, seen):
        return _written(work, found, _choice(work, first, seen, {FLOAT: seen.values[0], first: seen.values[1]}))
    work.emit({"event": "note", "text": f"{first} loses {_points(seen)} on validation; {then} trains"})
    other = _made(replace(work, way=then))
    both = compared(found.model, other.model, work.workload, device)
    values = {FLOAT: seen.values[0], first: seen.values[1], then: both.values[1]}
    if both.lost > 0:
        return _written(work, found, _choice(work, first, seen, values))
    return _written(work, other, _choice(work, then, seen, values))


def _made(work: StageWork) -> Trained:
    return (trained if work.quantizer.trains else calibrated)(work)


def _written(work: StageWork, found: Trained, choice: Choice | None = None) -> Checkpoint:
    return work.checkpoint(found.model, found.history, choice=choice, **found.told)


def _too_much(work: StageWork, seen: Compared) -> bool:
    return seen.shown and seen.lost > _tolerance(work, seen.metric)


def _tolerance(work: StageWork, metric: str) -> float:
    quantizer = request_of(work).quantizer
    assert isinstance(quantizer, Choosing)
    return quantizer.loss_tolerance if metric == "loss" else quantizer.tolerance


def _at_once(work: StageWork, use: str) -> Choice:
    spec = work.section("quantize")
    asked = "control" if spec.control else "weight_loss" if spec.weight_loss else ""
    why = f"{asked!r} asks for training" if asked else f"{spec.fewest_bits} bits are too few to calibrate"
    return Choice(use=use, why=f"{use}: {why}; it trained {_tail(work)}", metric="", tolerance=_tolerance(work, ""))


def _choice(work: StageWork, use: str, seen: Compared, values: Mapping[str, float]) -> Choice:
    """What was taken, with both figures and the reason."""
    tolerance = _tolerance(work, seen.metric)
    first, *others = [name for name in values if name != FLOAT]
    allowed = f"{100 * tolerance:.3g} points" if seen.metric == "top1" else f"{100 * tolerance:.3g} %"
    if not seen.metric:
        why = f"{use}: the validation split has no labels, so nothing was compared"
    elif not others:
        unsure = seen.lost > tolerance
        why = f"{use}: it loses {_points(seen)} against float, " + (
            f"which {seen.samples} labels do not show to be a loss" if unsure else f"at most {allowed} may be lost"
        )
    else:
        scale, unit = (100.0, " %") if seen.metric == "top1" else (1.0, "")
        figures = ", ".join(f"{name} {scale * value:.4g}{unit}" for name, value in values.items())
        lost = f"{first} loses {_points(seen)} against float, and at most {allowed} may be lost"
        trains = f"{others[0]} trained {_tail(work)} and is {'no ' if use == first else ''}better"
        why = f"{use}: {lost}; {trains} ({figures} {'top-1' if seen.metric == 'top1' else 'hard loss'})"
    told = {name: value for name, value in values.items() if seen.metric}
    return Choice(use=use, why=why, metric=seen.metric, values=told, samples=seen.samples, tolerance=tolerance)


def _tail(work: StageWork) -> str:
    """Which epochs of the budget the training took."""
    schedule = shared(work)
    if schedule is None:
        return f"{work.section('quantize').fit.epochs} epochs of its own"
    return f"the last {schedule.tail} of {schedule.epochs} epochs"


def _points(seen: Compared) -> str:
    """What is lost, in words."""
    lost = 100 * max(seen.lost, 0.0)
    return f"{lost:.2g} points" if seen.metric == "top1" else f"{lost:.2g} % of hard loss"


@torch.no_grad()
def compared(first: nn.Module, second: nn.Module, workload: Workload, device: torch.device) -> Compared:
    """Compare two models, in eval mode on `device`, on the labelled samples of the validation split.

    With classes it compares right answers, of all tasks that have classes; without, the hard loss.
    """
    hits = torch.zeros(2, 0, dtype=torch.bool)
    losses, seen = [0.0, 0.0], 0
    for given in workload.batches("validation", batch_size=EVALUATION_BATCH):
        batch = to_device(given, device)
        if not batch.labelled:
            continue
        outputs = [outputs_of(model, batch) for model in (first, second)]
        seen += len(batch.ids)
        for index, one in enumerate(outputs):
            losses[index] += loss_of(workload, one, batch, "validation").item() * len(batch.ids)
        for (logits, labels), (others, _) in zip(*(by_task(one, batch).values() for one in outputs), strict=True):
            if labels is not None and has_classes(logits, labels):
                right = torch.stack([logits.argmax(1) == labels, others.argmax(1) == labels])
                hits = torch.cat([hits, right[:, labels >= 0].cpu()], dim=1)
    if count := hits.shape[1]:
        ours, theirs = hits.double().mean(1).tolist()
        gained, lost = int((hits[1] & ~hits[0]).sum()), int((hits[0] & ~hits[1]).sum())
        return Compared("top1", (ours, theirs), count, ours - theirs, shown=paired(gained, lost, count)[1] < 0)
    if not seen:
        return Compared("", (0.0, 0.0), 0, 0.0, shown=False)
    ours, theirs = (value / seen for value in losses)
    lost_share = (theirs - ours) / abs(ours) if ours else 0.0
    return Compared("loss", (ours, theirs), seen, lost_share, shown=True)
