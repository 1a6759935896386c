"""Weights through tanh before they are rounded: DoReFa."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdq_core.api import FakeQuantize, Grid, round_to_grid
from kdq_quantizers.ranges import LEAST_SCALE, no_data, not_finite

if TYPE_CHECKING:
    from kdq_core.api import Place


class TanhFakeQuantize(FakeQuantize):
    """Rounds `tanh(w) * m / tanh(m)`, m the largest absolute weight of the channel.

    If `odd`, the 2^b levels are the odd integers from -(2^b - 1) to 2^b - 1 and the scale is m / (2^b - 1): zero is no
    level. Otherwise the levels are the integers of the place and the scale is m / qmax.

    Attributes:
        odd: whether the odd integers fit the kernels.
        most: m, float32 `[]`, or `[C]` with `place.axis`; 0 before the first weight.
    """

    most: Tensor

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.outer = 2**place.bits - 1
        self.odd = place.bits < 8 and self.outer <= place.kernel_range[1]
        self.register_buffer("most", torch.full(() if place.axis is None else (place.channels or 1,), -1.0))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Set m to the largest absolute weight.

        Raises:
            StageError: `x` holds a value that is not finite (checked at once on the CPU, in `grid` elsewhere).
        """
        axis = self.place.axis
        flat = x.reshape(1, -1) if axis is None else x.transpose(0, axis).flatten(1)
        most = flat.float().abs().amax(1).reshape(self.most.shape)
        if x.device.type == "cpu" and not bool(most.isfinite().all()):
            raise not_finite(self.place)
        self.most.copy_(most.clamp(min=LEAST_SCALE))

    def scale_and_zero(self) -> tuple[Tensor, Tensor]:
        """Return the scale, and zero."""
        scale = self.most / (self.outer if self.odd else self.place.qmax)
        return scale, torch.zeros_like(scale)

    def grid(self) -> Grid:
        """Return the grid in force; for odd levels it is as wide as the kernel's range.

        Raises:
            StageError: no weight was observed, or the weight was not finite.
        """
        if bool((self.most < 0).any()):
            raise no_data(self.place)
        if not bool(self.most.isfinite().all()):
            raise not_finite(self.place)
        scale, zero = self.scale_and_zero()
        low, high = self.place.kernel_range if self.odd else (self.place.qmin, self.place.qmax)
        return Grid(scale, zero.to(torch.int32), low, high, self.place.axis)

    def integers(self, x: Tensor) -> Tensor:
        """Return the integers of a weight, float32 of its shape."""
        with torch.no_grad():
            return self._rounded(x, *self._spread(x))

    def forward(self, x: Tensor) -> Tensor:
        """Observe if `observing`, round if `quantizing`."""
        if self.observing:
            with torch.no_grad():
                self.observe(x.detach())
        if not self.quantizing:
            return x
        most, scale = self._spread(x)
        return (self._rounded(x, most, scale) * scale).to(x.dtype)

    def _spread(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = [-1 if dim == self.place.axis else 1 for dim in range(x.dim())] if self.place.axis is not None else []
        return self.most.reshape(shape), self.scale_and_zero()[0].reshape(shape)

    def _rounded(self, x: Tensor, most: Tensor, scale: Tensor) -> Tensor:
        """The integers, with a straight-through gradient for rounding and the true gradient of tanh."""
        units = x.float().tanh() * (most / most.tanh()) / scale
        one, none = torch.ones((), device=x.device), torch.zeros((), device=x.device)
        if not self.odd:
            return round_to_grid(units, one, none, self.place.qmin, self.place.qmax)
        half = (self.outer + 1) // 2
        return 2 * round_to_grid((units + 1) / 2, one, none, 1 - half, half) - 1
