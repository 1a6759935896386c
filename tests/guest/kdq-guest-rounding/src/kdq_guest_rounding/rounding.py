"""Quantizer `guest-rounding`: the widest range seen, times a margin.

What: rounds weights and activations to the place's grid. The range is the widest that was ever observed.
Formula: scale = margin * max|x| / qmax for symmetric places; (max - min) * margin / (qmax - qmin) for affine ones.
Source: Jacob et al. 2018, arXiv:1712.05877, section 2, without its moving average.
Defaults: margin 1, which clips nothing that was observed.
Costs: one pass for the range and one for rounding.
Limits: one outlier widens the range for good.
"""

import torch

from kdq_core.api import FakeQuantize, Field, Grid, Place, Quantizer


class WidestRange(FakeQuantize):
    """Rounds to a grid that spans everything seen, with the straight-through gradient inside it."""

    def __init__(self, place: Place, margin: float) -> None:
        super().__init__(place)
        self.margin = margin
        shape = () if place.axis is None else (place.channels,)
        self.register_buffer("low", torch.zeros(shape))
        self.register_buffer("high", torch.zeros(shape))

    @torch.no_grad()
    def observe(self, x: torch.Tensor) -> None:
        """Widen the range so that it contains `x`."""
        axis = self.place.axis
        dims = [dim for dim in range(x.dim()) if dim != axis]
        self.low.copy_(torch.minimum(self.low, x.amin(dims).float()))
        self.high.copy_(torch.maximum(self.high, x.amax(dims).float()))

    def grid(self) -> Grid:
        """The grid of the range observed so far."""
        place, tiny = self.place, torch.finfo(torch.float32).eps
        if place.symmetric:
            scale = (torch.maximum(-self.low, self.high) * self.margin / place.qmax).clamp(min=tiny)
            zero = torch.zeros_like(scale)
        else:
            scale = ((self.high - self.low) * self.margin / (place.qmax - place.qmin)).clamp(min=tiny)
            zero = (place.qmin - self.low * self.margin / scale).round().clamp(place.qmin, place.qmax)
        return Grid(scale, zero.to(torch.int32), place.qmin, place.qmax, place.axis)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Observe if `observing`, round if `quantizing`."""
        if self.observing:
            self.observe(x.detach())
        if not self.quantizing:
            return x
        grid = self.grid()
        shape = [-1 if dim == grid.axis else 1 for dim in range(x.dim())] if grid.axis is not None else []
        scale, zero = grid.scale.reshape(shape), grid.zero_point.reshape(shape)
        inside = x.clamp((grid.qmin - zero) * scale, (grid.qmax - zero) * scale)
        rounded = ((x / scale).round().clamp(grid.qmin - zero, grid.qmax - zero)) * scale
        return inside + (rounded - inside).detach()


class GuestRounding(Quantizer):
    """The plug-in, with one option."""

    margin: float = Field(default=1.0, ge=0.5, le=2, description="factor on the observed range")

    def fake_quantizer(self, place: Place) -> WidestRange:
        """A new fake-quantizer for `place`."""
        return WidestRange(place, self.margin)
