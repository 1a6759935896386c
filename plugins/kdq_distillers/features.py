"""What the distillers on features share: checks, and shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kdq_core.api import Outputs, StageError

if TYPE_CHECKING:
    from torch import Tensor


def pairs(name: str, student: Outputs, teacher: Outputs) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, student's and teacher's tensor of each pair in float32, the teacher's without gradient.

    Args:
        name: of the distiller, for messages.
        student: features `[B, ...]`, any floating type.
        teacher: features `[B, ...]` under the same names.

    Raises:
        StageError: there is no pair, a name is missing on one side, the samples differ, or the teacher's are not
            finite.
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
                f"{pair!r} are NaN or infinite; train the teacher with a lower learning rate or with 'clip_norm'"
            )
        yield pair, ours.float(), theirs.float()


def channels_last(features: Tensor) -> Tensor:
    """Positions by channels: maps `[B, C, H, W]` give `[B, HW, C]`, sequences `[B, L, C]` stay, `[B, C]` give one."""
    if features.ndim == 2:
        return features[:, None]
    return features if features.ndim == 3 else features.flatten(2).transpose(1, 2)


def pooled(features: Tensor) -> Tensor:
    """One vector a sample, `[B, C]`: the mean over positions."""
    return channels_last(features).mean(dim=1)


def same_places(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Maps `[B, C, H, W]` at the smaller resolution of both, by average pooling; others as they are."""
    import torch.nn.functional as F

    if ours.ndim != 4 or theirs.ndim != 4 or ours.shape[2:] == theirs.shape[2:]:
        return ours, theirs
    size = (min(ours.shape[2], theirs.shape[2]), min(ours.shape[3], theirs.shape[3]))
    return F.adaptive_avg_pool2d(ours, size), F.adaptive_avg_pool2d(theirs, size)


def _listed(outputs: Outputs) -> str:
    return ", ".join(map(repr, outputs.features)) or "none"
