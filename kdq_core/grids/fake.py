"""The fake-quantizer: what a quantizer plug-in hands out for each place."""

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
    """Where real numbers meet integers: `q = clamp(round(x / scale) + zero_point, qmin, qmax)`.

    Attributes:
        scale: float32, shape `[]`, or `[C]` with `axis`; for weights whose activations stay float also `[C, G]`, with
            axis 0: each channel's values, in the order of the tensor, in G parts of equal length.
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
        """The scales, shaped so that they multiply values of the shape of `like`."""
        if self.scale.dim() == 2:
            return self.scale.repeat_interleave(like[0].numel() // self.scale.shape[1], 1).reshape(like.shape)
        shape = [-1 if dim == self.axis else 1 for dim in range(like.dim())] if self.scale.dim() else []
        return self.scale.reshape(shape)


class FakeQuantize(nn.Module, abc.ABC):
    """Rounds a tensor to the grid in float arithmetic, with a gradient.

    The usual case gives `observe` and `scale_and_zero`; the rounding itself is `round_to_grid` for all. Levels that are
    not evenly spaced override `forward` and `integers`. Ranges live in buffers or parameters that exist from the start,
    so that they are saved with the model. The switches are host-side bools: `observing` lets ranges follow the data
    (training and calibration only), `quantizing` turns rounding on. While `observing` without `quantizing` the model
    is being calibrated.

    Attributes:
        place: where it stands.
        relu: a relu before this place was merged into it: `x` comes without it. Never so where `forward` is overridden.
        clip_only: rounding inside the range gives `scale` no gradient; see `round_to_grid`.
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
        """Let the ranges follow `x`; called with no gradient."""

    def scale_and_zero(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point in force: float32 `[]`, or `[C]` with `place.axis`; the zero point in whole numbers.

        They carry a gradient where they are learned.
        """
        raise NotImplementedError(f"{type(self).__name__} gives neither scale_and_zero() nor forward() and grid()")

    def grid(self) -> Grid:
        """The grid in force, detached.

        Raises:
            StageError: no data was observed, or it was not finite.
        """
        scale, zero = self.scale_and_zero()
        place = self.place
        return Grid(scale.detach(), zero.detach().to(torch.int32), place.qmin, place.qmax, place.axis)

    def integers(self, x: Tensor) -> Tensor:
        """The integers of a weight `x`, less the zero point, as float32 of its shape; what is shipped."""
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
        """Observe what the place holds: `x` behind the merged relu, if there is one."""
        self.observe(x.relu() if self.relu else x)
