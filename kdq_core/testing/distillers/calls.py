"""Calls the plug-in's own code, and turns its exceptions and wrong results into a sentence."""

from __future__ import annotations

import contextlib
import inspect
import math
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import replace
from numbers import Real
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from kdq_core.distillation.combining import TAKEN
from kdq_core.tensors import Batch, LossTerms, Outputs
from kdq_core.testing.distillers.models import Subject, targets

NOT_THE_PLUGINS = {"abc", "builtins", "kdq_core", "pydantic", "typing"}
"""Top-level packages of the base classes of every distiller."""


class Unasked(Mapping[str, Tensor]):
    """Empty features for a distiller that asks for none; it remembers whether the distiller reads them anyway."""

    def __init__(self) -> None:
        self.read = False

    def __getitem__(self, name: str) -> Tensor:
        self.read = True
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        self.read = True
        return iter(())

    def __len__(self) -> int:
        self.read = True
        return 0


@contextlib.contextmanager
def asked(subject: Subject, promise: str, method: str = "loss") -> Iterator[None]:
    """Turn whatever the plug-in raises into a sentence.

    Args:
        subject: the plug-in whose code the body calls.
        promise: what the plug-in should do, and in which case.
        method: the method of the plug-in that is called; empty if it is none of its own.

    Raises:
        AssertionError: the plug-in raised an exception; the text says which, and where.
    """
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{promise}, but it raises {told(subject, error, method)}") from error


def told(subject: Subject, error: Exception, method: str = "loss") -> str:
    """Give type and first line of an exception, and the line of the plug-in that raised it."""
    text, _, _ = str(error).strip().partition("\n")
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        text = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    place = raised_at(subject, error) or (f"{method} is at {defined_at(subject, method)}" if method else "")
    return type(error).__name__ + (f": {text}" if text else "") + (f" ({place})" if place else "")


def raised_at(subject: Subject, error: Exception) -> str:
    """Find file and line of the innermost frame in the plug-in's own package; empty if there is none."""
    own = {base.__module__.partition(".")[0] for base in type(subject.distiller).__mro__} - NOT_THE_PLUGINS
    found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__")).partition(".")[0] in own:
            found = f"{Path(frame.f_code.co_filename).name}:{line}"
    return found


def defined_at(subject: Subject, method: str) -> str:
    """Give file and line of a method of the plug-in, or the plug-in's module if the method is no plain function."""
    code = getattr(inspect.unwrap(getattr(type(subject.distiller), method)), "__code__", None)
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}" if code else type(subject.distiller).__module__


def soft(subject: Subject, student: Outputs, teacher: Outputs, case: str, labels: Tensor | None = None) -> LossTerms:
    """Call the plug-in's `loss` for one batch, and give its terms.

    Args:
        subject: the plug-in.
        student: outputs of the student.
        teacher: outputs of the teacher.
        case: the case in words, for messages, such as "a batch of 1".
        labels: labels of the batch; by default, the labels that `targets` makes.

    Raises:
        AssertionError: `loss` raised an exception, or did not give scalar terms and a usable weight.
    """
    labels = targets(student.logits) if labels is None else labels
    batch = Batch((student.logits.detach(),), labels, torch.arange(len(labels), device=labels.device))
    unasked = Unasked()
    if subject.distiller.features == "none":
        student, teacher = replace(student, features=unasked), replace(teacher, features=unasked)
    try:
        with asked(subject, f"{subject.name}.loss should work for {case}"):
            terms = subject.distiller.loss(student, teacher, batch)
    except AssertionError as error:
        if unasked.read:
            raise AssertionError(
                f'{error}; it reads features, which only a class that says `features = "pairs"` is given'
            ) from error.__cause__
        raise
    check_terms(subject, terms, case)
    return terms


def check_terms(subject: Subject, given: object, case: str) -> None:
    """Check that `given` has scalar tensors by name, and a weight that is a number.

    Raises:
        AssertionError: `given` is something else; the text says what it is and what is expected.
    """
    if not isinstance(given, LossTerms) or not isinstance(given.terms, Mapping):
        inner = "" if not isinstance(given, LossTerms) else f" with terms of type {type(given.terms).__name__}"
        raise AssertionError(
            f"{subject.name}.loss should return `LossTerms(terms={{...}}, hard_weight=...)` with scalar tensors by "
            f"name, but for {case} it returned a value of type {type(given).__name__}{inner} "
            f"({defined_at(subject, 'loss')})"
        )
    assert given.terms, f"a distiller should give at least one soft term, but it gave none for {case}"
    taken = next((name for name in TAKEN if name in given.terms), None)
    assert taken is None, f"a soft term should not be called {taken!r}: that is a curve of the training itself"
    for name, term in given.terms.items():
        kind = type(term).__name__
        assert isinstance(term, Tensor), (
            f"a soft term should be a scalar tensor, but {name!r} is of type {kind} for {case}"
        )
        shape = tuple(term.shape)
        assert term.ndim == 0, f"a soft term should be a scalar, but {name!r} has shape {shape} for {case}"
    weight = given.hard_weight
    number = isinstance(weight, Real) or (isinstance(weight, Tensor) and weight.ndim == 0)
    assert number, f"the hard weight should be a number, but it is {weight!r} for {case}"
    assert 0 <= weight < math.inf, f"the hard weight should be finite and not negative, but it is {weight!r} for {case}"


def total(subject: Subject, student: Outputs, teacher: Outputs, case: str) -> Tensor:
    """Compute the whole loss for one batch: all soft terms, and cross entropy times the hard weight."""
    terms = soft(subject, student, teacher, case)
    classes = student.logits.shape[-1]
    hard = F.cross_entropy(student.logits.float().reshape(-1, classes), targets(student.logits).reshape(-1))
    return summed(terms) + terms.hard_weight * hard


def summed(terms: LossTerms) -> Tensor:
    """Sum all soft terms, without the hard loss."""
    return torch.stack([term.float() for term in terms.terms.values()]).sum()


def backward(subject: Subject, loss: Tensor, case: str) -> None:
    """Compute the gradients of the loss."""
    with asked(subject, f"the loss of {subject.name} should have a gradient for {case}"):
        loss.backward()  # type: ignore[no-untyped-call]
