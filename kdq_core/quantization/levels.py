"""Rounds weights to levels that need not be evenly spaced, with a gradient."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from kdq_core.grids.fake import FakeQuantize, Grid

if TYPE_CHECKING:
    from kdq_core.grids.place import Place


def nearest(x: Tensor, levels: Tensor) -> Tensor:
    """Find the index of the nearest level; of two equally near levels, the lower.

    Args:
        x: any shape.
        levels: ascending, `[K]`.

    Returns:
        int64 of the shape of `x`.
    """
    return torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)


def round_to_levels(x: Tensor, scale: Tensor, levels: Tensor, axis: int | None, *, clip: bool) -> Tensor:
    """Compute `levels[nearest(x / scale)] * scale`, with a gradient.

    `x` gets the straight-through gradient; with `clip`, only between the outer levels. `scale` gets level - x / scale
    between the outer levels and the outer level beyond (the reparameterized clipping function of Li et al. 2020,
    https://arxiv.org/abs/1909.13144). A level gets the sum of the gradients of its values, times their scale (Han et
    al. 2016, https://arxiv.org/abs/1510.00149, section 3.3).

    Args:
        x: float, any shape.
        scale: float32 `[]`, or `[C]` along `axis`.
        levels: float32 `[K]`, ascending.
        axis: channel axis of `scale`.
        clip: whether values of `x` beyond the outer levels get no gradient.

    Returns:
        A tensor of the shape and type of `x`.
    """
    if axis is not None:
        scale = scale.reshape([-1 if dim == axis else 1 for dim in range(x.dim())])
    return cast(Tensor, _RoundToLevels.apply(x, scale, levels, clip))  # type: ignore[no-untyped-call]


class _RoundToLevels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, levels: Tensor, clip: bool) -> Tensor:
        unit = x.to(torch.float32).div(scale)
        index = nearest(unit, levels)
        ctx.save_for_backward(unit, scale, levels, index)
        ctx.clip = clip
        return levels[index].mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        unit, scale, levels, index = ctx.saved_tensors
        grad = grads[0].to(torch.float32)
        inside = unit.ge(levels[0]).logical_and_(unit.le(levels[-1])) if ctx.clip else torch.ones_like(unit)
        to_scale = to_levels = None
        if ctx.needs_input_grad[1]:
            change = grad * (levels[index] - unit * inside)
            dims = [dim for dim in range(unit.dim()) if not scale.dim() or scale.shape[dim] == 1]
            to_scale = change.sum(dims, keepdim=bool(scale.dim())).reshape(scale.shape)
        if ctx.needs_input_grad[2]:
            to_levels = torch.zeros_like(levels).index_add_(0, index.reshape(-1), (grad * scale).reshape(-1))
        return (grad * inside).to(grads[0].dtype), to_scale, to_levels, None


class LevelsFakeQuantize(FakeQuantize):
    """Rounds a weight to the nearest of at most 2 ** bits integers within the range of the kernels.

    A subclass gives `levels` and `unit_scale`, and decides which of them are learned.

    Attributes:
        clip: whether weights beyond the outer levels get no gradient.
    """

    clip = True

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.qmin, self.qmax = place.kernel_range

    @abc.abstractmethod
    def levels(self) -> Tensor:
        """Give the integers a weight may have: whole numbers within the kernel's range, float32 `[K]`, ascending."""

    @abc.abstractmethod
    def unit_scale(self) -> Tensor:
        """Give the weight that the integer 1 stands for: float32 `[]`, or `[C]` with `place.axis`."""

    def scale_and_zero(self) -> tuple[Tensor, Tensor]:
        """Give `unit_scale` and zero."""
        scale = self.unit_scale()
        return scale, torch.zeros_like(scale)

    def grid(self) -> Grid:
        """Give the grid that the levels lie on, with the range of the kernels."""
        scale, zero = self.scale_and_zero()
        return Grid(scale.detach(), zero.detach().to(torch.int32), self.qmin, self.qmax, self.place.axis)

    def integers(self, x: Tensor) -> Tensor:
        """Give the nearest levels, float32 of the shape of `x`."""
        levels = self.levels().detach()
        return levels[nearest(x.to(torch.float32).div(self.grid().spread(x)), levels)]

    def forward(self, x: Tensor) -> Tensor:
        """Observe if `observing`, round if `quantizing`."""
        if self.observing:
            with torch.no_grad():
                self.observe(x.detach())
        if not self.quantizing:
            return x
        return round_to_levels(x, self.unit_scale(), self.levels(), self.place.axis, clip=self.clip)
