"""Checks of the gradients of a distiller's loss."""

from __future__ import annotations

import math

import torch

from kdq_core.tensors import Outputs
from kdq_core.testing.distillers.calls import backward, soft, summed, total
from kdq_core.testing.distillers.models import Subject, changed, learning, leaves, made, moved, targets
from kdq_core.testing.distillers.options import lifted, with_fields, within

EXTREME = 1e4
SOFTER, TIMES, LEAST = 40.0, 4.0, 8.0
"""The kit compares the gradients at a temperature of at most `SOFTER` and at a part of it: below `LEAST`, a softmax of
the kit's logits is not yet flat, so that its gradient says little."""
DTYPES = (
    (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float16, torch.float16),
    (torch.float64, torch.float64),
)  # fmt: skip


def soft_terms_teach(subject: Subject) -> None:
    """Check that the soft terms alone, without the hard loss, give the student a gradient.

    Options that are 0 are also tried above 0, since a weight of 0 teaches nothing. The teacher's own answers are also
    tried as labels, since some distillers skip samples that the teacher gets wrong. A hard weight that depends on the
    teacher counts as teaching too.
    """
    student = made(subject, 8, 10, seed=0)
    what = "features" if subject.distiller.features == "pairs" else "logits"
    for one in lifted(subject):
        weights = set()
        for seed in range(1, 5):
            teacher, ours = made(subject, 8, 10, seed=seed), learning(student)
            for labels in (targets(student.logits), teacher.logits.argmax(-1)):
                terms = soft(one, ours, teacher, "a batch of 8", labels)
                weights.add(float(terms.hard_weight))
                loss = summed(terms)
                if loss.requires_grad:
                    backward(one, loss, "a batch of 8")
                grads = [leaf.grad for name, leaf in leaves(ours) if (name == "logits") == (what == "logits")]
                if len(weights) > 1 or any(grad is not None and grad.any() for grad in grads):
                    return
    raise AssertionError(
        f"the soft terms alone should give the student's {what} a gradient that is not zero where student and teacher "
        "differ, but they give none; compute them from the student's tensors, without detach"
    )


def not_lost_with_temperature(subject: Subject) -> None:
    """Check that a distiller with an option `temperature` multiplies its soft terms by T^2.

    With that factor, the gradient of a divergence is the same for all large T (Hinton et al. 2015). Without it, the
    gradient falls to a sixteenth from T = 10 to 40. It may grow: correlations do not shrink with T.
    """
    low, high = within(subject, "temperature") or (math.inf, 0.0)
    top = min(SOFTER, high)
    if subject.distiller.features != "none" or top < max(LEAST, TIMES * low):
        return
    for one in lifted(subject):
        warm, hot = (_size_at(one, temperature) for temperature in (top / TIMES, top))
        assert hot >= warm / 3, (
            f"a temperature should soften without taking the teacher away, but from temperature {top / TIMES:g} to "
            f"{top:g} the gradient of the soft terms falls to {hot / warm:.3f} of itself; multiply them by "
            "temperature^2 (Hinton et al. 2015)"
        )


def _size_at(subject: Subject, temperature: float) -> float:
    one, case = with_fields(subject, {"temperature": temperature}), f"a temperature of {temperature:g}"
    if one is None:
        return 0.0
    student, teacher = learning(made(one, 8, 10, seed=0)), made(one, 8, 10, seed=1)
    loss = summed(soft(one, student, teacher, case, targets(student.logits)))
    if not loss.requires_grad:
        return 0.0
    backward(one, loss, case)
    grad = student.logits.grad
    return 0.0 if grad is None else float(grad.norm())


def finite_gradients(subject: Subject) -> None:
    """Check that loss and gradient are finite in fp32 and bf16, for extreme logits, one sample and one class too."""
    for samples, classes, batch in ((8, 10, "a batch of 8"), (1, 10, "a batch of 1"), (8, 1, "a single class")):
        for scale in (3.0, EXTREME):
            for dtype in (torch.float32, torch.bfloat16):
                case = f"{batch}, logits of about {scale:g}, {dtype}"
                student, teacher = (made(subject, samples, classes, seed) for seed in (0, 1))
                ours, theirs = (moved(changed(x, torch.sign), dtype, scale) for x in (student, teacher))
                _check_gradients(subject, learning(ours), theirs, case)


def other_dtypes_and_devices(subject: Subject) -> None:
    """Check that models of other and of different dtypes work, and models on a GPU if there is one."""
    student, teacher = made(subject, 8, 10, seed=0), made(subject, 8, 10, seed=1)
    for ours, theirs in DTYPES:
        case = f"a student in {ours} and a teacher in {theirs}"
        _check_gradients(subject, learning(moved(student, ours)), moved(teacher, theirs), case)
    if torch.cuda.is_available():
        _check_gradients(subject, learning(moved(student, "cuda")), moved(teacher, "cuda"), "models on a GPU")


def _check_gradients(subject: Subject, student: Outputs, teacher: Outputs, case: str) -> None:
    loss = total(subject, student, teacher, case)
    assert loss.isfinite(), f"the loss should be finite, but it is {float(loss.detach())} for {case}"
    backward(subject, loss, case)
    grads = {name: leaf.grad for name, leaf in leaves(student) if leaf.grad is not None}
    assert grads, f"the student should get a gradient, but it gets none for {case}"
    for name, grad in grads.items():
        assert grad.isfinite().all(), f"the gradient of the {name} should be finite, but it is not for {case}"


def no_gradient_into_the_teacher(subject: Subject) -> None:
    """Check that the teacher gets no gradient, even if its tensors require one."""
    teacher, case = learning(made(subject, 8, 10, seed=1)), "a teacher that asks for a gradient"
    backward(subject, total(subject, learning(made(subject, 8, 10, seed=0)), teacher, case), case)
    for name, leaf in leaves(teacher):
        assert leaf.grad is None, (
            f"no gradient should reach the teacher, but one did reach its {name}; detach its tensors"
        )
