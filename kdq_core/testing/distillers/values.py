"""Checks of the value of a distiller's loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdq_core.tensors import Batch, Outputs
from kdq_core.testing.distillers.calls import asked, check_terms, soft, told, total
from kdq_core.testing.distillers.models import Subject, changed, learning, made, targets
from kdq_core.testing.distillers.options import ends, lifted, with_fields, written

TOLERANCE = 1e-5
MOST_OF_TWICE = 1.5
"""Largest ratio of the loss of a batch given twice to the loss of the batch. A mean has 1, a sum 2; a contrastive loss
grows with the logarithm of the batch size."""


def usable_terms(subject: Subject) -> None:
    """Check that terms are scalars, and that the hard weight is finite and not negative."""
    soft(subject, learning(made(subject, 8, 10, seed=0)), made(subject, 8, 10, seed=1), "a batch of 8")


def zero_for_equal_models(subject: Subject) -> None:
    """Check that equal models give soft terms of zero, or of at least zero if the class says they are not zero."""
    same = made(subject, 8, 10, seed=0)
    exact = getattr(type(subject.distiller), "zero_for_equal_models", True)
    for name, term in soft(subject, learning(same), same, "equal models").terms.items():
        value = float(term.detach())
        if exact:
            assert abs(value) <= TOLERANCE, f"equal models should give zero soft loss, but term {name!r} is {value:g}"
        else:
            assert 0 <= value < math.inf, (
                f"equal models should give a finite soft loss of at least zero, but term {name!r} is {value:g}"
            )


def distances(subject: Subject) -> None:
    """Check that unequal models give soft terms of at least zero, so that descent leads towards the teacher."""
    for one in lifted(subject):
        for samples in (8, 1):
            student, case = made(subject, samples, 10, seed=0), f"unequal models and a batch of {samples}"
            for seed in range(1, 5):
                for name, term in soft(one, student, made(subject, samples, 10, seed=seed), case).terms.items():
                    assert float(term) >= -TOLERANCE, (
                        "a soft term should be a distance, at least zero where student and teacher differ, but "
                        f"{name!r} is {float(term):g} for {case}; look for its sign"
                    )


def order_does_not_matter(subject: Subject) -> None:
    """Check that the same samples in another order, each with its label and number, give the same soft loss."""
    student, teacher = made(subject, 8, 10, seed=0), made(subject, 8, 10, seed=1)
    there = soft(subject, student, teacher, "a batch of 8").terms
    ours, theirs = (changed(outputs, lambda x: x.flip(0)) for outputs in (student, teacher))
    back = soft(subject, ours, theirs, "a batch of 8 in another order", targets(student.logits).flip(0)).terms
    for name in there:
        gap = abs(float(there[name]) - float(back[name]))
        limit = TOLERANCE * (1 + abs(float(there[name])))
        assert gap <= limit, f"the order of samples should not matter, but term {name!r} moves by {gap:g}"


def mean_over_the_batch(subject: Subject) -> None:
    """Check that a batch given twice has about the same loss as once, so that the batch size is no hidden weight."""
    student, teacher = made(subject, 16, 10, seed=0), made(subject, 16, 10, seed=1)
    labels = targets(student.logits)
    ours, theirs = (changed(outputs, _twice) for outputs in (student, teacher))
    for one in lifted(subject):
        once = soft(one, student, teacher, "a batch of 16", labels).terms
        both = soft(one, ours, theirs, "a batch of 16 given twice", _twice(labels)).terms
        for name in once.keys() & both.keys():
            before, after = float(once[name]), float(both[name])
            assert after <= MOST_OF_TWICE * before + TOLERANCE, (
                f"a soft term should be a mean over the batch, but {name!r} is {before:g} for a batch of 16 and "
                f"{after:g} for the same batch given twice; divide by the number of samples"
            )


def _twice(values: Tensor) -> Tensor:
    return torch.cat((values, values))


def top_k_is_enough(subject: Subject) -> None:
    """Check that a constant added to rows of the teacher's logits changes nothing, if `takes_top_k()` gives true."""
    for one in lifted(subject):
        with asked(one, f"{one.name}.takes_top_k should say yes or no", "takes_top_k"):
            enough = one.distiller.takes_top_k()
        if not enough:
            continue
        student, teacher = made(subject, 8, 10, seed=0), made(subject, 8, 10, seed=1)
        rows = teacher.logits.shape[:-1]
        constants = (2.0 * (torch.arange(rows.numel()) % 8) - 7).reshape(*rows, 1)
        raised = Outputs(teacher.logits + constants, teacher.features)
        there = float(total(one, student, teacher, "a batch of 8"))
        then = float(total(one, student, raised, "teacher logits with a constant added to each row"))
        assert abs(there - then) <= 1e-3 * abs(there) + TOLERANCE, (
            "takes_top_k() says that softmax distributions are compared, so a constant added to each row of the "
            f"teacher's logits should change nothing, but the loss goes from {there:g} to {then:g}; give False from "
            "takes_top_k(), or compare softmax probabilities"
        )


def says_whether_it_needs_labels(subject: Subject) -> None:
    """Check that unlabelled batches work, unless the class says `needs_labels = True`."""
    if subject.distiller.needs_labels:
        return
    student, teacher = made(subject, 8, 10, seed=0), made(subject, 8, 10, seed=1)
    try:
        given = subject.distiller.loss(student, teacher, Batch((student.logits,), None, torch.arange(8)))
    except Exception as error:
        raise AssertionError(
            "a batch without labels should work, or the class should say needs_labels = True, but it raises "
            f"{told(subject, error)}"
        ) from error
    check_terms(subject, given, "a batch without labels")


def continuous_at_the_ends(subject: Subject) -> None:
    """Check that the loss hardly changes between an end of an option's range and a number just inside."""
    student, teacher = made(subject, 8, 10, seed=0), made(subject, 8, 10, seed=1)
    for name, end, near in ends(subject):
        both = [(with_fields(subject, {name: at}), f"a batch of 8 with {written({name: at})}") for at in (end, near)]
        values = [float(total(one, student, teacher, case)) for one, case in both if one]
        if len(values) < 2:  # the other options do not allow this end
            continue
        gap = abs(values[0] - values[1])
        limit = 1e-3 * (1 + abs(values[0]))
        assert gap <= limit, f"the loss should be continuous in {name!r}, but it jumps by {gap:g} at {end:g}"
