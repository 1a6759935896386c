"""How far student and teacher are apart, as one number from 0 to 1, for schedules that follow it."""

from __future__ import annotations

import torch
from torch import Tensor

from kdq_core.errors import StageError
from kdq_core.plugins.kinds import TakenFor


@torch.no_grad()
def distance(student: Tensor, teacher: Tensor, reads: TakenFor = "classes") -> float:
    """What student and teacher disagree in: 0 where they agree, 1 where they share nothing.

    For logits of classes `[B, ..., C]` it is the mean total variation distance of their softmax, `sum |p - q| / 2`; for
    those of independent labels the mean distance of their sigmoids, `|p - q|`. For numbers, and always for one number
    a sample, `[B]` or `[B, 1]`, it is `e / (e + v)` with the mean squared difference e and the teacher's variance v
    over the samples, each the mean over the numbers of a sample: 1/2 for a student that gives the teacher's mean. The
    definition is our own. It is that of the batch at hand and has no memory, so that a resumed fit has the bits of one
    that was never stopped. Padding counts like any other place, since it knows no mask.

    Args:
        student: logits, any floating type.
        teacher: logits of the same shape.
        reads: what they are.

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
