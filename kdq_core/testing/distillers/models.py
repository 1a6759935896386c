"""Makes the outputs of two models that a distiller is tried on: reproducible, of any dtype, on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kdq_core.plugins.kinds import Distiller
from kdq_core.tensors import Outputs

FEATURES: dict[str, tuple[int, ...]] = {"map": (6, 4, 4), "sequence": (5, 6), "vector": (6,)}
NARROW: dict[str, tuple[int, ...]] = {"map": (4, 4, 4), "sequence": (5, 4), "vector": (4,)}


@dataclass(frozen=True)
class Subject:
    """A distiller under test, and the form of the logits it is tried on: `[B, C]`, or `[B, places, C]`."""

    distiller: Distiller
    places: int = 0

    @property
    def name(self) -> str:
        """Name of the distiller's class, for messages."""
        return type(self.distiller).__name__


def made(subject: Subject, samples: int, classes: int, seed: int, scale: float = 3.0) -> Outputs:
    """Make reproducible outputs of a model, without torch's global generator."""
    generator = torch.Generator().manual_seed(seed)
    places = (subject.places,) if subject.places else ()
    shapes = FEATURES if subject.distiller.features == "pairs" else {}
    logits = scale * torch.randn(samples, *places, classes, generator=generator)
    return Outputs(logits, {n: scale * torch.randn(samples, *s, generator=generator) for n, s in shapes.items()})


def changed(outputs: Outputs, change: Callable[[Tensor], Tensor]) -> Outputs:
    """Give the same outputs with `change` applied to every tensor."""
    return Outputs(change(outputs.logits), {name: change(value) for name, value in outputs.features.items()})


def moved(outputs: Outputs, to: torch.dtype | str, scale: float = 1.0) -> Outputs:
    """Give the same outputs times `scale`, in another dtype or on another device."""
    return changed(outputs, lambda x: x.mul(scale).to(to))


def learning(outputs: Outputs) -> Outputs:
    """Copy outputs so that their tensors are leaves that require a gradient."""
    return changed(outputs, lambda x: x.detach().clone().requires_grad_())


def leaves(outputs: Outputs) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of the outputs by name."""
    yield "logits", outputs.logits
    yield from outputs.features.items()


def targets(logits: Tensor) -> Tensor:
    """Make labels `[B]` for logits `[B, C]`, or `[B, L]` for `[B, L, C]`: i modulo C."""
    shape = logits.shape[:-1]
    return (torch.arange(shape.numel(), device=logits.device) % logits.shape[-1]).reshape(shape)
