"""Conformance kit for distillers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from kdq_core.kinds import Distiller
from kdq_core.tensors import Batch, LossTerms, Outputs

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-5
EXTREME = 1e4


def check_distiller(distiller: Distiller) -> None:
    """Check the promises of a distiller that needs logits alone, with logits `[B, C]`.

    Equal models give zero soft loss; gradients are finite, for logits of up to 1e4 and in bf16 too; none reaches the
    teacher; the loss is continuous in every field that is a number from 0 to 1, at 0 and at 1; the order of the samples
    does not matter; a batch of one sample and a problem of one class work; the hard weight is finite and not negative.

    A loss that is above zero for equal models by its nature, such as cross entropy with the teacher's answer, says so
    with the class attribute `zero_for_equal_models: ClassVar[bool] = False`. Its terms must then be finite and not
    negative for equal models.

    Args:
        distiller: the plug-in, with the options to check.

    Raises:
        AssertionError: a promise is broken; the text says which.
    """
    for check in CHECKS:
        check(distiller)


def total(distiller: Distiller, student: Tensor, teacher: Tensor) -> Tensor:
    """The whole loss for one batch: all soft terms, and cross entropy with its weight."""
    terms = soft(distiller, student, teacher)
    hard = F.cross_entropy(student.float(), targets(student))
    return torch.stack([term.float() for term in terms.terms.values()]).sum() + terms.hard_weight * hard


def soft(distiller: Distiller, student: Tensor, teacher: Tensor, *, reverse: bool = False) -> LossTerms:
    """The terms for one batch, last sample first if `reverse`; sample i has class i modulo the number of classes."""
    labels, ids = targets(student), torch.arange(len(student))
    if reverse:
        student, teacher, labels, ids = student.flip(0), teacher.flip(0), labels.flip(0), ids.flip(0)
    batch = Batch(inputs=(student.detach(),), targets=labels, ids=ids)
    return distiller.loss(Outputs(student), Outputs(teacher), batch)


def targets(logits: Tensor) -> Tensor:
    """Labels `[B]` for logits `[B, C]`."""
    return torch.arange(len(logits)) % logits.shape[1]


def logits(samples: int, classes: int, seed: int, scale: float = 3.0) -> Tensor:
    """Reproducible logits `[samples, classes]` that leave torch's global generator alone."""
    return scale * torch.randn(samples, classes, generator=torch.Generator().manual_seed(seed))


def zero_for_equal_models(distiller: Distiller) -> None:
    """Equal logits give soft terms of zero, or of at least zero where the class says they are not zero."""
    same = logits(8, 10, seed=0)
    exact = getattr(type(distiller), "zero_for_equal_models", True)
    for name, term in soft(distiller, same.clone().requires_grad_(), same).terms.items():
        value = float(term.detach())
        if exact:
            assert abs(value) <= TOLERANCE, f"equal models should give zero soft loss, but term {name!r} is {value:g}"
        else:
            assert 0 <= value < float("inf"), (
                f"equal models should give a finite soft loss of at least zero, but term {name!r} is {value:g}"
            )


def scalar_terms(distiller: Distiller) -> None:
    """Terms are scalars, and the hard weight is a usable number."""
    terms = soft(distiller, logits(8, 10, seed=0).requires_grad_(), logits(8, 10, seed=1))
    assert terms.terms, "a distiller should give at least one soft term, but it gave none"
    for name, term in terms.terms.items():
        assert term.ndim == 0, f"a soft term should be a scalar, but {name!r} has shape {tuple(term.shape)}"
    weight = terms.hard_weight
    assert 0 <= weight < float("inf"), f"the hard weight should be finite and not negative, but it is {weight!r}"


def finite_gradients(distiller: Distiller) -> None:
    """Loss and gradient are finite for ordinary, extreme, single-sample and single-class logits, in fp32 and bf16."""
    for samples, classes in ((8, 10), (1, 10), (8, 1)):
        for scale in (3.0, EXTREME):
            for dtype in (torch.float32, torch.bfloat16):
                case = f"{samples} samples, {classes} classes, logits of about {scale:g}, {dtype}"
                student = logits(samples, classes, 0).sign().mul(scale).to(dtype).requires_grad_()
                loss = total(distiller, student, logits(samples, classes, 1).sign().mul(scale).to(dtype))
                assert loss.isfinite(), f"the loss should be finite, but it is {float(loss.detach())} for {case}"
                loss.backward()  # type: ignore[no-untyped-call]
                assert student.grad is not None, f"the student should get a gradient, but it gets none for {case}"
                assert student.grad.isfinite().all(), f"the gradient should be finite, but it is not for {case}"


def no_gradient_into_the_teacher(distiller: Distiller) -> None:
    """The teacher is never trained, even if its tensors ask for a gradient."""
    teacher = logits(8, 10, seed=1).requires_grad_()
    total(distiller, logits(8, 10, seed=0).requires_grad_(), teacher).backward()  # type: ignore[no-untyped-call]
    assert teacher.grad is None, "no gradient should reach the teacher, but one did; detach its tensors"


def order_does_not_matter(distiller: Distiller) -> None:
    """The same samples in another order, each with its label and number, give the same soft loss."""
    student, teacher = logits(8, 10, seed=0), logits(8, 10, seed=1)
    there = soft(distiller, student, teacher).terms
    back = soft(distiller, student, teacher, reverse=True).terms
    for name in there:
        gap = abs(float(there[name]) - float(back[name]))
        limit = TOLERANCE * (1 + abs(float(there[name])))
        assert gap <= limit, f"the order of samples should not matter, but term {name!r} moves by {gap:g}"


def continuous_at_the_ends(distiller: Distiller) -> None:
    """A weight of almost 0 (or 1) does almost what 0 (or 1) does."""
    student, teacher = logits(8, 10, seed=0), logits(8, 10, seed=1)
    step = 1e-6
    for name in weights(distiller):
        for end, near in ((0.0, step), (1.0, 1 - step)):
            values = [float(total(with_field(distiller, name, at), student, teacher)) for at in (end, near)]
            gap = abs(values[0] - values[1])
            limit = 1e-3 * (1 + abs(values[0]))
            assert gap <= limit, f"the loss should be continuous in {name!r}, but it jumps by {gap:g} at {end:g}"


def weights(distiller: Distiller) -> list[str]:
    """Names of the fields that are numbers bounded to 0..1, both ends allowed."""
    schema = type(distiller).model_json_schema().get("properties", {})
    return [
        name
        for name, field in schema.items()
        if field.get("type") == "number" and field.get("minimum") == 0 and field.get("maximum") == 1
    ]


def with_field(distiller: Distiller, name: str, value: float) -> Distiller:
    """The same plug-in with one option changed, validated anew."""
    return type(distiller).model_validate({**distiller.model_dump(), name: value})


CHECKS: tuple[Callable[[Distiller], None], ...] = (
    scalar_terms,
    zero_for_equal_models,
    finite_gradients,
    no_gradient_into_the_teacher,
    order_does_not_matter,
    continuous_at_the_ends,
)
