"""Checks and reshaping that the distillers on features share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kdq_core.api import Outputs, Shapes, StageError

if TYPE_CHECKING:
    from torch import Tensor, nn

LEAST_SQUARE = 1e-12


def pairs(name: str, student: Outputs, teacher: Outputs) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield each pair's name, the student's tensor and the teacher's, in float32; the teacher's has no gradient.

    Args:
        name: of the distiller, for messages.
        student: features `[B, ...]`, any floating type.
        teacher: features `[B, ...]` under the same names.

    Raises:
        StageError: there is no pair, a name is missing on one side, the samples differ, or the teacher's features are
            not finite.
    """
    if not student.features or student.features.keys() != teacher.features.keys():
        raise StageError(
            f"distiller {name!r} needs the same named features of both models, but the student gives "
            f"{_listed(student)} and the teacher {_listed(teacher)}; write 'taps' for it in the recipe"
        )
    for pair, ours in student.features.items():
        theirs = teacher.features[pair].detach()
        if ours.ndim < 2 or theirs.ndim < 2 or len(ours) != len(theirs):
            raise StageError(
                f"distiller {name!r} needs features [samples, ...] of the same samples, but for the pair {pair!r} the "
                f"student's are {tuple(ours.shape)} and the teacher's {tuple(theirs.shape)}; tap other modules"
            )
        if not theirs.isfinite().all():
            wrong = int((~theirs.isfinite()).sum())
            raise StageError(
                f"distiller {name!r} needs finite teacher features, but {wrong} of {theirs.numel()} of the pair "
                f"{pair!r} are NaN or infinite; train the teacher with a lower learning rate or with 'clip_norm', or "
                "check the file it was read from"
            )
        yield pair, ours.float(), theirs.float()


def channels_last(features: Tensor) -> Tensor:
    """Positions by channels: maps `[B, C, H, W]` give `[B, HW, C]`, `[B, L, C]` stays, `[B, C]` gives `[B, 1, C]`."""
    if features.ndim == 2:
        return features[:, None]
    return features if features.ndim == 3 else features.flatten(2).transpose(1, 2)


def pooled(features: Tensor) -> Tensor:
    """One vector per sample, `[B, C]`: the mean over positions."""
    return channels_last(features).mean(dim=1)


def same_places(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Pool maps `[B, C, H, W]` to the smaller resolution of both by averaging; other features stay as they are."""
    import torch.nn.functional as F

    if ours.ndim != 4 or theirs.ndim != 4 or ours.shape[2:] == theirs.shape[2:]:
        return ours, theirs
    size = (min(ours.shape[2], theirs.shape[2]), min(ours.shape[3], theirs.shape[3]))
    return F.adaptive_avg_pool2d(ours, size), F.adaptive_avg_pool2d(theirs, size)


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1 along the last axis; those shorter than 1e-6 become zero, with a gradient of zero."""
    import torch

    square = vectors.square().sum(dim=-1, keepdim=True)
    long = square > LEAST_SQUARE
    return vectors * torch.where(long, square.clamp(min=LEAST_SQUARE).rsqrt(), torch.zeros_like(square))


def channels(shape: tuple[int, ...]) -> int:
    """Channels of maps `(C, H, W)`, sequences `(L, C)` and vectors `(C,)`."""
    return shape[-1] if len(shape) < 3 else shape[0]


def channel_maps(student: Shapes, teacher: Shapes) -> dict[str, nn.Module]:
    """A linear map of the student's channels at each position, for each pair whose channels differ."""
    from torch import nn

    made: dict[str, nn.Module] = {}
    for name, shape in student.items():
        ours, theirs = channels(shape), channels(teacher[name])
        if ours != theirs:
            kernels = {3: nn.Conv2d, 4: nn.Conv3d}
            made[name] = nn.Linear(ours, theirs) if len(shape) < 3 else kernels[len(shape)](ours, theirs, 1)
    return made


def _listed(outputs: Outputs) -> str:
    return ", ".join(map(repr, outputs.features)) or "none"
