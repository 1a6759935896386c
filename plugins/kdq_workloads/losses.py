"""Hard losses by name, for workloads that take the user's own models.

Formula: cross-entropy -log softmax(z)_y; bce -y log s(z) - (1-y) log(1-s(z)); mse (z - y)^2; ctc the negative log
    likelihood of a label sequence over all alignments. Each is the mean over the samples.
Source: Graves et al. 2006, "Connectionist Temporal Classification", for ctc; the others are PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from kdq_core.api import StageError

if TYPE_CHECKING:
    from torch import Tensor

Named = Literal["auto", "cross-entropy", "bce", "mse", "ctc"]
BLANK = 0
"""The class of ctc that means "no label"."""


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of logits against class numbers `[B, ...]`; a label of -100 does not count.

    The logits are `[B, ..., C]`, as those of transformers are, or `[B, C, ...]`. If both fit, they are `[B, ..., C]`.
    """
    import torch.nn.functional as F

    if targets.is_floating_point():
        raise StageError(
            "loss 'cross-entropy' needs class numbers as labels, and these are floating-point numbers; write loss: mse "
            "for numbers, or loss: bce for labels of 0 and 1"
        )
    if outputs.ndim > 2 and outputs.shape[:-1] == targets.shape:
        outputs = outputs.movedim(-1, 1)
    return F.cross_entropy(outputs.float(), targets)


def bce(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross entropy of logits `[B, ...]` against labels of 0 and 1 of the same shape."""
    import torch.nn.functional as F

    return F.binary_cross_entropy_with_logits(_like(outputs, targets, "bce"), targets.float())


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of numbers `[B, ...]` against targets of the same shape."""
    import torch.nn.functional as F

    return F.mse_loss(_like(outputs, targets, "mse"), targets.float())


def ctc(outputs: Tensor, targets: Tensor) -> Tensor:
    """CTC of logits `[B, T, C]` against labels `[B, S]`, in which a label below 0 is padding; class 0 is the blank."""
    import torch
    import torch.nn.functional as F

    steps = outputs.float().log_softmax(-1).transpose(0, 1)
    lengths = torch.full((outputs.shape[0],), outputs.shape[1], dtype=torch.long)
    return F.ctc_loss(steps, targets.clamp(min=0), lengths, (targets >= 0).sum(1), blank=BLANK, zero_infinity=True)


def auto(outputs: Tensor, targets: Tensor) -> Tensor:
    """`mse` for floating-point targets, else `cross_entropy`."""
    return mse(outputs, targets) if targets.is_floating_point() else cross_entropy(outputs, targets)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "auto": auto, "cross-entropy": cross_entropy, "bce": bce, "mse": mse, "ctc": ctc,
}  # fmt: skip


def _like(outputs: Tensor, targets: Tensor, name: str) -> Tensor:
    """The outputs in the shape of the targets; `[B, 1]` fits `[B]`."""
    if outputs.shape == targets.shape:
        return outputs.float()
    if outputs.numel() == targets.numel():
        return outputs.float().reshape(targets.shape)
    raise StageError(
        f"loss {name!r} needs one number of the model for each label: the model gave {tuple(outputs.shape)}, and the "
        f"labels are {tuple(targets.shape)}; give one of both the shape of the other"
    )
