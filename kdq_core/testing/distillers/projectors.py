"""Checks of the projectors of a distiller of features."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kdq_core.tensors import Outputs
from kdq_core.testing.distillers.calls import asked, backward, defined_at, soft, summed
from kdq_core.testing.distillers.models import FEATURES, NARROW, Subject, made

WIDTHS = "features of other widths than the teacher's"


def trained_projectors(subject: Subject) -> None:
    """Check that projectors belong to existing pairs, accept the student's features, and learn."""
    if subject.distiller.features == "none":
        return
    projectors = _projectors(subject)
    generator = torch.Generator().manual_seed(2)
    student = {name: torch.randn(8, *shape, generator=generator) for name, shape in NARROW.items()}
    given = {name: _projected(subject, projectors, name, value) for name, value in student.items()}
    teacher = made(subject, 8, 10, seed=1)
    case = WIDTHS + _unlike(given)
    loss = summed(soft(subject, Outputs(teacher.logits, given), teacher, case))
    if loss.requires_grad:
        backward(subject, loss, case)
    for name, projector in projectors.items():
        grads = [p.grad for p in projector.parameters() if p.grad is not None]
        assert all(grad.isfinite().all() for grad in grads), f"the projector of {name!r} should get finite gradients"
        taught = float(loss.detach()) == 0 or any(grad.any() for grad in grads)
        assert taught, f"the projector of {name!r} should get a gradient that is not zero, but it gets none"


def _projectors(subject: Subject) -> Mapping[str, nn.Module]:
    with (
        torch.random.fork_rng(devices=[]),
        asked(subject, f"{subject.name}.projectors should work for {WIDTHS}", "projectors"),
    ):
        torch.manual_seed(0)
        made: object = subject.distiller.projectors(NARROW, FEATURES)
    where = f"({defined_at(subject, 'projectors')})"
    assert isinstance(made, Mapping), (
        f"{subject.name}.projectors should return modules by name of the pair, but it returned a value of type "
        f"{type(made).__name__} {where}"
    )
    strange = sorted(set(made) - set(NARROW))
    assert not strange, f"projectors should be for the pairs {', '.join(NARROW)}, but one is for {strange[0]!r}"
    for name, module in made.items():
        assert isinstance(module, nn.Module), (
            f"the projector of {name!r} should be a torch.nn.Module, but it is of type {type(module).__name__} {where}"
        )
    return made


def _projected(subject: Subject, projectors: Mapping[str, nn.Module], name: str, features: Tensor) -> Tensor:
    if name not in projectors:
        return features
    promise = f"the projector of {name!r} from {subject.name}.projectors should take features {list(features.shape)}"
    with asked(subject, promise, "projectors"):
        projected: object = projectors[name](features)
    assert isinstance(projected, Tensor), f"{promise} and give a tensor, but it gives {type(projected).__name__}"
    return projected


def _unlike(given: Mapping[str, Tensor]) -> str:
    """Word which pairs differ in shape behind the projectors, for messages."""
    shapes = {name: (list(value.shape[1:]), list(FEATURES[name])) for name, value in given.items()}
    apart = [f"{name} {ours} and {theirs}" for name, (ours, theirs) in shapes.items() if ours != theirs]
    return f" (behind its projectors: {'; '.join(apart)})" if apart else ""
