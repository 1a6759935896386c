"""The fake-quantizer: what a quantizer plug-in hands out for each place."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

    from kdq_core.kinds import Place


@dataclass(frozen=True)
class Grid:
    """Where real numbers meet integers: `q = clamp(round(x / scale) + zero_point, qmin, qmax)`.

    Attributes:
        scale: float32, shape `[]`, or `[C]` with `axis`.
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


class FakeQuantize(nn.Module, abc.ABC):
    """Rounds a tensor to the grid in float arithmetic, with a gradient.

    Ranges live in buffers or parameters, so that they are saved with the model. Both switches are host-side bools:
    `observing` lets ranges follow the data (training and calibration only), `quantizing` turns rounding on.
    """

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.observing = True
        self.quantizing = True

    @abc.abstractmethod
    def observe(self, x: Tensor) -> None:
        """Let the ranges follow `x`; called with no gradient."""

    @abc.abstractmethod
    def grid(self) -> Grid:
        """The grid in force, detached."""

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Observe if `observing`, round if `quantizing`."""
