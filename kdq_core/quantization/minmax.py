"""Fake quantization with ranges from the least and the largest observed value.

The range of a weight is the current absolute maximum of each channel. The range of an activation is an exponential
moving average of each batch's least and largest value, starting from the first batch (Jacob et al. 2018,
https://arxiv.org/abs/1712.05877, section 3.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdq_core.errors import StageError
from kdq_core.grids.fake import FakeQuantize, Grid

if TYPE_CHECKING:
    from kdq_core.grids.place import Place

LEAST_SCALE = torch.finfo(torch.float32).eps
"""Scale of a tensor that is constantly zero."""


class MinMaxFakeQuantize(FakeQuantize):
    """Symmetric or affine, per channel or per tensor, as the place asks: usually symmetric for weights, per channel.

    Args:
        place: the place that it quantizes; `symmetric`, `axis` and `channels` decide the form of the grid.
        averaging: weight of the newest batch in the moving average of an activation's range; weights ignore it.
    """

    low: Tensor
    high: Tensor

    def __init__(self, place: Place, averaging: float = 0.05) -> None:
        super().__init__(place)
        self.averaging = averaging
        shape = () if place.axis is None else (place.channels or 1,)
        self.register_buffer("low", torch.full(shape, float("inf")))
        self.register_buffer("high", torch.full(shape, float("-inf")))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Let the range follow `x`.

        Raises:
            StageError: `x` holds a value that is not finite (checked here on the CPU, and in `grid` on other devices).
        """
        self._follow(*self._range(x), x.device.type)

    def watch(self, x: Tensor) -> None:
        """Observe `x`; a merged relu is applied to the range instead of to all of `x`."""
        low, high = self._range(x)
        self._follow(*((low.relu(), high.relu()) if self.relu else (low, high)), x.device.type)

    def _follow(self, low: Tensor, high: Tensor, device: str) -> None:
        if device == "cpu" and not bool((low.isfinite() & high.isfinite()).all()):
            raise self._not_finite()
        if self.place.role == "activation":
            rate = torch.where(self.low.isinf(), 1.0, self.averaging)
            low = torch.where(self.low.isinf(), low, self.low + rate * (low - self.low))
            high = torch.where(self.high.isinf(), high, self.high + rate * (high - self.high))
        self.low.copy_(low)
        self.high.copy_(high)

    def _range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.place.axis is not None:
            others = [dim for dim in range(x.dim()) if dim != self.place.axis]
            low, high = x.amin(others), x.amax(others)  # aminmax over some dimensions is 50 times slower
        else:
            # aminmax copies a channels_last tensor; its permuted view is contiguous.
            nhwc = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
            low, high = (x.permute(0, 2, 3, 1) if nhwc else x).aminmax()
        return low.to(torch.float32), high.to(torch.float32)

    def _not_finite(self) -> StageError:
        return StageError(
            f"place {self.place.name!r} saw a value that is not finite; look for NaN or infinity in the data, "
            "or lower the learning rate"
        )

    def scale_and_zero(self) -> tuple[Tensor, Tensor]:
        """Compute scale and zero point from the range, which is widened to include zero."""
        place = self.place
        low, high = self.low.clamp(max=0.0), self.high.clamp(min=0.0)
        if place.symmetric:
            scale = torch.maximum(-low, high).div(place.qmax).clamp(min=LEAST_SCALE)
            return scale, torch.zeros_like(scale)
        scale = (high - low).div(place.qmax - place.qmin).clamp(min=LEAST_SCALE)
        return scale, (place.qmin - low.div(scale).round()).clamp(place.qmin, place.qmax)

    def grid(self) -> Grid:
        """Give the current grid.

        Raises:
            StageError: no data was observed, or it was not finite.
        """
        if bool((self.low.isinf() & self.high.isinf() & (self.low > self.high)).any()):
            raise StageError(f"place {self.place.name!r} has seen no data; observe at least one batch before rounding")
        if not bool((self.low.isfinite() & self.high.isfinite()).all()):
            raise self._not_finite()
        return super().grid()
