"""The distance between student and teacher as one number from 0 to 1, for schedules of the kind `gap`."""

from __future__ import annotations

import torch
from torch import Tensor

from kdq_core.errors import StageError
from kdq_core.plugins.kinds import TakenFor


@torch.no_grad()
def distance(student: Tensor, teacher: Tensor, reads: TakenFor = "classes") -> float:
    """Measure how far student and teacher disagree on a batch: 0 if they agree, 1 if they share nothing.

    For logits of classes `[B, ..., C]` it is the mean total variation distance of their softmax, `sum |p - q| / 2`. For
    logits of independent labels it is the mean distance of their sigmoids, `|p - q|`. For numbers, and always for one
    number per sample, `[B]` or `[B, 1]`, it is `e / (e + v)`. There e is the mean squared difference, and v is the
    teacher's variance over the samples, each averaged over the numbers of a sample. A student that always gives the
    teacher's mean has the distance 1/2.

    The definition is our own. It depends on one batch alone, so that a resumed fit gives the same bits as a fit without
    interruption. It knows no mask: padding counts like any other position.

    Args:
        student: logits, any floating type.
        teacher: logits of the same shape.
        reads: what the logits are: `classes`, `labels` or `numbers`.

    Raises:
        StageError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise StageError(
            f"the gap of a schedule is between outputs of one shape, but the student's are {tuple(student.shape)} and "
            f"the teacher's {tuple(teacher.shape)}; give both models the same classes"
        )
    ours, theirs = student.detach().float(), teacher.detach().float()
    if reads == "numbers" or ours.ndim == 1 or ours.shape[-1] == 1:
        error = (ours - theirs).square().mean()
        return float(error / (error + theirs.var(dim=0, correction=0).mean()).clamp(min=1e-12))
    if reads == "labels":
        return float((ours.sigmoid() - theirs.sigmoid()).abs().mean())
    variation = (ours.softmax(-1) - theirs.softmax(-1)).abs().sum(-1).mean() / 2
    return float(variation.clamp(0, 1))
