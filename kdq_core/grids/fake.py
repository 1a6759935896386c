"""The fake-quantizer that a quantizer plug-in gives for each place."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from kdq_core.grids.rounding import round_to_grid

if TYPE_CHECKING:
    from torch import Tensor

    from kdq_core.grids.place import Place


@dataclass(frozen=True)
class Grid:
    """Maps real numbers to integers: `q = clamp(round(x / scale) + zero_point, qmin, qmax)`.

    Attributes:
        scale: float32, shape `[]`, or `[C]` with `axis`. A weight whose activations stay float may also have `[C, G]`
            with axis 0: the values of each channel, in the order of the tensor, are split into G parts of equal length.
        zero_point: int32, same shape as `scale`.
        qmin: least integer.
        qmax: largest integer.
        axis: channel axis of a per-channel grid.
    """

    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int
    axis: int | None

    def spread(self, like: Tensor) -> Tensor:
        """Reshape the scales so that they multiply values of the shape of `like`."""
        if self.scale.dim() == 2:
            return self.scale.repeat_interleave(like[0].numel() // self.scale.shape[1], 1).reshape(like.shape)
        shape = [-1 if dim == self.axis else 1 for dim in range(like.dim())] if self.scale.dim() else []
        return self.scale.reshape(shape)


class FakeQuantize(nn.Module, abc.ABC):
    """Rounds a tensor to the grid in float arithmetic, with a gradient.

    A subclass usually implements `observe` and `scale_and_zero`; `forward` then rounds with `round_to_grid`. A subclass
    whose levels are not evenly spaced overrides `forward` and `integers`. Keep ranges in buffers or parameters that
    exist from the start, so that they are saved with the model. Two switches are plain bools: `observing` lets ranges
    follow the data (only in training and calibration), and `quantizing` turns rounding on. Calibration has `observing`
    on and `quantizing` off.

    Attributes:
        place: the place that it quantizes.
        relu: whether a relu before this place is merged into it, so that `forward` applies it to `x`. Always false if
            `forward` is overridden.
        clip_only: whether rounding inside the range gives `scale` no gradient; see `round_to_grid`.
    """

    clip_only: ClassVar[bool] = False

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.observing = True
        self.quantizing = True
        self.relu = False

    @abc.abstractmethod
    def observe(self, x: Tensor) -> None:
        """Let the ranges follow `x`; called without gradients."""

    def scale_and_zero(self) -> tuple[Tensor, Tensor]:
        """Give the current scale and zero point: float32 `[]`, or `[C]` with `place.axis`.

        The zero point holds whole numbers. Learned values carry a gradient.
        """
        raise NotImplementedError(f"{type(self).__name__} gives neither scale_and_zero() nor forward() and grid()")

    def grid(self) -> Grid:
        """Give the current grid, detached.

        Raises:
            StageError: no data was observed, or it was not finite.
        """
        scale, zero = self.scale_and_zero()
        place = self.place
        return Grid(scale.detach(), zero.detach().to(torch.int32), place.qmin, place.qmax, place.axis)

    def integers(self, x: Tensor) -> Tensor:
        """Round a weight `x` to the integers that are shipped, without the zero point, as float32 of its shape."""
        grid = self.grid()
        return x.to(torch.float32).div(grid.spread(x)).round_().clamp_(grid.qmin, grid.qmax)

    def forward(self, x: Tensor) -> Tensor:
        """Observe if `observing`, round if `quantizing`; `x` keeps its shape and type."""
        if self.observing:
            with torch.no_grad():
                self.watch(x.detach())
        if not self.quantizing:
            return x.relu() if self.relu else x
        scale, zero = self.scale_and_zero()
        place = self.place
        return round_to_grid(
            x, scale, zero, place.qmin, place.qmax, place.axis, relu=self.relu, clip_only=self.clip_only
        )

    def watch(self, x: Tensor) -> None:
        """Observe the values of the place: `x`, or the relu of `x` if a relu is merged."""
        self.observe(x.relu() if self.relu else x)
