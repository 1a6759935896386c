"""Conformance kit for distillers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from kdq_core.kinds import Distiller
from kdq_core.tensors import Batch, LossTerms, Outputs

TOLERANCE = 1e-5
EXTREME = 1e4
STEP = 1e-6
FEATURES: dict[str, tuple[int, ...]] = {"map": (6, 4, 4), "sequence": (5, 6), "vector": (6,)}
NARROW: dict[str, tuple[int, ...]] = {"map": (4, 4, 4), "sequence": (5, 4), "vector": (4,)}
DTYPES = (
    (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float16, torch.float16),
    (torch.float64, torch.float64),
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A distiller under test, and the form of the logits it is tried on: `[B, C]`, or `[B, places, C]`."""

    distiller: Distiller
    places: int = 0


def check_distiller(distiller: Distiller, *, places: int = 0) -> None:
    """Check the promises of a distiller.

    Equal models give zero soft loss; for others the soft terms alone, without the loss on hard labels, give the
    student's logits (of a distiller of features: its features) a gradient that is not zero; gradients are finite, for
    logits and features of up to 1e4 and in bf16 too; none reaches the teacher; the loss is continuous in every field
    that is a number, at both ends of its range; the order of the samples does not matter; a batch of one sample and a
    problem of one class work; models of other dtypes, and of a GPU where there is one, work; the hard weight is finite
    and not negative. A distiller that works without labels says so, by `needs_labels`.

    A distiller of features is tried on a map `[B, C, H, W]`, a sequence `[B, L, C]` and a vector `[B, C]` at once. Its
    projectors, where student and teacher differ in channels, get finite gradients that are not all zero.

    A loss that is above zero for equal models by its nature, such as cross entropy with the teacher's answer, says so
    with the class attribute `zero_for_equal_models: ClassVar[bool] = False`. Its terms must then be finite and not
    negative for equal models.

    Args:
        distiller: the plug-in, with the options to check.
        places: positions of a sequence; 0 means logits `[B, C]`.

    Raises:
        AssertionError: a promise is broken; the text says which.
    """
    for check in CHECKS:
        check(Subject(distiller, places))


def made(subject: Subject, samples: int, classes: int, seed: int, scale: float = 3.0) -> Outputs:
    """Reproducible outputs of a model that leave torch's global generator alone."""
    generator = torch.Generator().manual_seed(seed)
    places = (subject.places,) if subject.places else ()
    shapes = FEATURES if subject.distiller.features == "pairs" else {}
    logits = scale * torch.randn(samples, *places, classes, generator=generator)
    return Outputs(logits, {n: scale * torch.randn(samples, *s, generator=generator) for n, s in shapes.items()})


def changed(outputs: Outputs, change: Callable[[Tensor], Tensor]) -> Outputs:
    """The same outputs with every tensor changed."""
    return Outputs(change(outputs.logits), {name: change(value) for name, value in outputs.features.items()})


def moved(outputs: Outputs, to: torch.dtype | str, scale: float = 1.0) -> Outputs:
    """The same outputs times `scale`, of another dtype or on another device."""
    return changed(outputs, lambda x: x.mul(scale).to(to))


def learning(outputs: Outputs) -> Outputs:
    """A copy whose tensors are leaves that ask for a gradient."""
    return changed(outputs, lambda x: x.detach().clone().requires_grad_())


def leaves(outputs: Outputs) -> Iterator[tuple[str, Tensor]]:
    """All tensors by name."""
    yield "logits", outputs.logits
    yield from outputs.features.items()


def targets(logits: Tensor) -> Tensor:
    """Labels `[B]` for logits `[B, C]`, `[B, L]` for `[B, L, C]`: i modulo C."""
    shape = logits.shape[:-1]
    return (torch.arange(shape.numel(), device=logits.device) % logits.shape[-1]).reshape(shape)


def soft(subject: Subject, student: Outputs, teacher: Outputs, labels: Tensor | None = None) -> LossTerms:
    """The terms for one batch."""
    labels = targets(student.logits) if labels is None else labels
    ids = torch.arange(len(labels), device=labels.device)
    return subject.distiller.loss(student, teacher, Batch((student.logits.detach(),), labels, ids))


def total(subject: Subject, student: Outputs, teacher: Outputs) -> Tensor:
    """The whole loss for one batch: all soft terms, and cross entropy with its weight."""
    terms = soft(subject, student, teacher)
    classes = student.logits.shape[-1]
    hard = F.cross_entropy(student.logits.float().reshape(-1, classes), targets(student.logits).reshape(-1))
    return summed(terms) + terms.hard_weight * hard


def summed(terms: LossTerms) -> Tensor:
    """All soft terms in one, without the hard loss."""
    return torch.stack([term.float() for term in terms.terms.values()]).sum()


def backward(loss: Tensor) -> None:
    """Fill the gradients of leaves."""
    loss.backward()  # type: ignore[no-untyped-call]


def zero_for_equal_models(subject: Subject) -> None:
    """Equal models give soft terms of zero, or of at least zero where the class says they are not zero."""
    same = made(subject, 8, 10, seed=0)
    exact = getattr(type(subject.distiller), "zero_for_equal_models", True)
    for name, term in soft(subject, learning(same), same).terms.items():
        value = float(term.detach())
        if exact:
            assert abs(value) <= TOLERANCE, f"equal models should give zero soft loss, but term {name!r} is {value:g}"
        else:
            assert 0 <= value < float("inf"), (
                f"equal models should give a finite soft loss of at least zero, but term {name!r} is {value:g}"
            )


def scalar_terms(subject: Subject) -> None:
    """Terms are scalars, and the hard weight is a usable number."""
    terms = soft(subject, learning(made(subject, 8, 10, seed=0)), made(subject, 8, 10, seed=1))
    assert terms.terms, "a distiller should give at least one soft term, but it gave none"
    for name, term in terms.terms.items():
        assert term.ndim == 0, f"a soft term should be a scalar, but {name!r} has shape {tuple(term.shape)}"
    weight = terms.hard_weight
    assert 0 <= weight < float("inf"), f"the hard weight should be finite and not negative, but it is {weight!r}"


def soft_terms_teach(subject: Subject) -> None:
    """The soft terms alone move the student: the hard loss, which always does, is left out.

    Weights that are 0 are lifted, since without them nothing is taught. Labels that are the teacher's own answers are
    tried too: some distillers leave out what it gets wrong. A hard weight that follows the teacher teaches as well.
    """
    student = made(subject, 8, 10, seed=0)
    what = "features" if subject.distiller.features == "pairs" else "logits"
    for distiller in lifted(subject.distiller):
        weights = set()
        for seed in range(1, 5):
            teacher, ours = made(subject, 8, 10, seed=seed), learning(student)
            for labels in (targets(student.logits), teacher.logits.argmax(-1)):
                terms = soft(replace(subject, distiller=distiller), ours, teacher, labels)
                weights.add(float(terms.hard_weight))
                loss = summed(terms)
                if loss.requires_grad:
                    backward(loss)
                grads = [leaf.grad for name, leaf in leaves(ours) if (name == "logits") == (what == "logits")]
                if len(weights) > 1 or any(grad is not None and grad.any() for grad in grads):
                    return
    raise AssertionError(
        f"the soft terms alone should give the student's {what} a gradient that is not zero where student and teacher "
        "differ, but they give none; compute them from the student's tensors, without detach"
    )


def lifted(distiller: Distiller) -> Iterator[Distiller]:
    """The plug-in, and the same with its numbers that are 0 at their default, or where that is 0 too, above 0."""
    yield distiller
    raised = {}
    for name, (_, top) in numbers(distiller).items():
        if getattr(distiller, name) == 0:
            default = type(distiller).model_fields[name].default
            usual = isinstance(default, int | float) and default != 0
            raised[name] = default if usual else min(1.0, top)
    if raised:
        yield with_fields(distiller, raised)


def finite_gradients(subject: Subject) -> None:
    """Loss and gradient are finite for ordinary, extreme, single-sample and single-class models, in fp32 and bf16."""
    for samples, classes in ((8, 10), (1, 10), (8, 1)):
        for scale in (3.0, EXTREME):
            for dtype in (torch.float32, torch.bfloat16):
                case = f"{samples} samples, {classes} classes, logits of about {scale:g}, {dtype}"
                student, teacher = (made(subject, samples, classes, seed) for seed in (0, 1))
                ours, theirs = (moved(changed(x, torch.sign), dtype, scale) for x in (student, teacher))
                _check_gradients(subject, learning(ours), theirs, case)


def other_dtypes_and_devices(subject: Subject) -> None:
    """Models of other dtypes than float32, unlike each other, and on a GPU where there is one, work."""
    student, teacher = made(subject, 8, 10, seed=0), made(subject, 8, 10, seed=1)
    for ours, theirs in DTYPES:
        case = f"a student in {ours} and a teacher in {theirs}"
        _check_gradients(subject, learning(moved(student, ours)), moved(teacher, theirs), case)
    if torch.cuda.is_available():
        _check_gradients(subject, learning(moved(student, "cuda")), moved(teacher, "cuda"), "models on a GPU")


def _check_gradients(subject: Subject, student: Outputs, teacher: Outputs, case: str) -> None:
    loss = total(subject, student, teacher)
    assert loss.isfinite(), f"the loss should be finite, but it is {float(loss.detach())} for {case}"
    backward(loss)
    grads = {name: leaf.grad for name, leaf in leaves(student) if leaf.grad is not None}
    assert grads, f"the student should get a gradient, but it gets none for {case}"
    for name, grad in grads.items():
        assert grad.isfinite().all(), f"the gradient of the {name} should be finite, but it is not for {case}"


def no_gradient_into_the_teacher(subject: Subject) -> None:
    """The teacher is never trained, even if its tensors ask for a gradient."""
    teacher = learning(made(subject, 8, 10, seed=1))
    backward(total(subject, learning(made(subject, 8, 10, seed=0)), teacher))
    for name, leaf in leaves(teacher):
        assert leaf.grad is None, (
            f"no gradient should reach the teacher, but one did reach its {name}; detach its tensors"
        )


def order_does_not_matter(subject: Subject) -> None:
    """The same samples in another order, each with its label and number, give the same soft loss."""
    student, teacher = made(subject, 8, 10, seed=0), made(subject, 8, 10, seed=1)
    there = soft(subject, student, teacher).terms
    ours, theirs = (changed(outputs, lambda x: x.flip(0)) for outputs in (student, teacher))
    back = soft(subject, ours, theirs, targets(student.logits).flip(0)).terms
    for name in there:
        gap = abs(float(there[name]) - float(back[name]))
        limit = TOLERANCE * (1 + abs(float(there[name])))
        assert gap <= limit, f"the order of samples should not matter, but term {name!r} moves by {gap:g}"


def says_whether_it_needs_labels(subject: Subject) -> None:
    """Without labels it works, or its class says that it does not."""
    if subject.distiller.needs_labels:
        return
    student, teacher = made(subject, 8, 10, seed=0), made(subject, 8, 10, seed=1)
    try:
        subject.distiller.loss(student, teacher, Batch((student.logits,), None, torch.arange(8)))
    except Exception as error:
        raise AssertionError(
            f"a batch without labels should work, or the class should say needs_labels = True, but it raises {error!r}"
        ) from error


def continuous_at_the_ends(subject: Subject) -> None:
    """A number that is almost at an end of its range does almost what it does there."""
    student, teacher = made(subject, 8, 10, seed=0), made(subject, 8, 10, seed=1)
    for name, end, near in ends(subject.distiller):
        try:
            both = [with_fields(subject.distiller, {name: at}) for at in (end, near)]
        except ValidationError:  # the other options do not allow this end
            continue
        values = [float(total(replace(subject, distiller=one), student, teacher)) for one in both]
        gap = abs(values[0] - values[1])
        limit = 1e-3 * (1 + abs(values[0]))
        assert gap <= limit, f"the loss should be continuous in {name!r}, but it jumps by {gap:g} at {end:g}"


def trained_projectors(subject: Subject) -> None:
    """Projectors are for pairs that are there, and learn."""
    if subject.distiller.features == "none":
        return
    generator = torch.Generator().manual_seed(2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        projectors = subject.distiller.projectors(NARROW, FEATURES)
    strange = sorted(set(projectors) - set(NARROW))
    assert not strange, f"projectors should be for the pairs {', '.join(NARROW)}, but one is for {strange[0]!r}"
    student = {name: torch.randn(8, *shape, generator=generator) for name, shape in NARROW.items()}
    given = {name: projectors[name](value) if name in projectors else value for name, value in student.items()}
    teacher = made(subject, 8, 10, seed=1)
    loss = torch.stack(list(soft(subject, Outputs(teacher.logits, given), teacher).terms.values())).sum()
    if loss.requires_grad:
        backward(loss)
    for name, projector in projectors.items():
        grads = [p.grad for p in projector.parameters() if p.grad is not None]
        assert all(grad.isfinite().all() for grad in grads), f"the projector of {name!r} should get finite gradients"
        taught = float(loss.detach()) == 0 or any(grad.any() for grad in grads)
        assert taught, f"the projector of {name!r} should get a gradient that is not zero, but it gets none"


def ends(distiller: Distiller) -> Iterator[tuple[str, float, float]]:
    """Each finite end of the range of a field that is a number: its name, the end, and a number just inside."""
    for name, (low, high) in numbers(distiller).items():
        for end, inwards in ((low, 1), (high, -1)):
            if math.isfinite(end):
                yield name, end, end + inwards * min(STEP * (abs(end) or 1.0), (high - low) / 2)


def numbers(distiller: Distiller) -> dict[str, tuple[float, float]]:
    """The smallest and the largest value of each field that is a number; infinite where it may not be reached."""
    found = {}
    for name, field in type(distiller).model_json_schema(by_alias=False).get("properties", {}).items():
        forms = [form for form in (field, *field.get("anyOf", ())) if form.get("type") == "number"]
        if forms:
            found[name] = (forms[0].get("minimum", -math.inf), forms[0].get("maximum", math.inf))
    return found


def with_fields(distiller: Distiller, values: Mapping[str, float]) -> Distiller:
    """The same plug-in with some options changed, validated anew."""
    return type(distiller).model_validate({**distiller.model_dump(), **values})


CHECKS: tuple[Callable[[Subject], None], ...] = (
    scalar_terms,
    zero_for_equal_models,
    soft_terms_teach,
    finite_gradients,
    other_dtypes_and_devices,
    no_gradient_into_the_teacher,
    order_does_not_matter,
    says_whether_it_needs_labels,
    continuous_at_the_ends,
    trained_projectors,
)
