"""Checks that distillers of outputs can learn from a model that gives one number per sample."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from kdq_core.distillation.parts import Part
from kdq_core.distillation.tasks import of_task
from kdq_core.errors import StageError
from kdq_core.plugins.kinds import Distiller
from kdq_core.tensors import Batch, Outputs


def check_numbers(parts: Iterable[Part], student: Outputs, batch: Batch) -> None:
    """Refuse a distiller of classes for a student that gives one number per sample: a softmax of one value is always 1.

    Each distiller is tried with a teacher that differs from the student. If its loss has no gradient, it is tried again
    with two classes: without a gradient there too, an option has switched the distiller off, and that is allowed.

    Raises:
        StageError: a distiller learns from two classes but not from one number.
    """
    for part in parts:
        if part.distiller.features != "none":
            continue
        named = student.tasks if part.task is None else (part.task,)
        for task in named if student.tasks else ("",):
            where, seen = (f" for the task {task!r}", batch.task(task)) if task else ("", batch)
            _check(part, of_task(student, task).logits, seen, where)


def _check(part: Part, logits: Tensor, batch: Batch, where: str) -> None:
    if not (logits.ndim == 1 or logits.shape[-1] == 1) or _moves(part.distiller, logits, batch):
        return
    one = logits.reshape(*logits.shape[: max(1, logits.ndim - 1)], 1)
    if _moves(part.distiller, torch.cat([one, -one], dim=-1), batch):
        raise StageError(
            f"distiller {part.name!r} learns nothing{where} from outputs of shape {tuple(logits.shape)}: it compares "
            "classes, and one number per sample has no classes; use a distiller of numbers, such as 'regression-kd', "
            "or of independent labels, such as 'multi-label-kd'"
        )


def _moves(distiller: Distiller, logits: Tensor, batch: Batch) -> bool:
    """Tell whether the soft terms have a gradient to `logits` for a teacher that differs; true if `loss` raises."""
    ours = logits.detach().float().requires_grad_()
    shift = torch.linspace(1.0, 2.0, ours.numel(), device=ours.device).reshape(ours.shape)
    with torch.enable_grad():
        try:
            terms = distiller.loss(Outputs(ours), Outputs(ours.detach() + shift), batch).terms.values()
            (gradient,) = torch.autograd.grad(torch.stack(list(terms)).sum(), ours, allow_unused=True)
        except Exception:  # the fit will raise it again and report it
            return True
    return gradient is not None and bool(gradient.any())
