"""Quantizer `my-plugin`: the widest range seen, times a margin.

What: rounds weights and activations to the grid of their place. The range is the widest that was ever observed.
Formula: scale = margin * max|x| / qmax for symmetric places; margin * (max - min) / (qmax - qmin) for affine ones.
Source: Jacob et al. 2018, arXiv:1712.05877, section 2, without its moving average.
Defaults: margin 1, which clips nothing that was observed.
Costs: one pass for the range and one for rounding.
Limits: one outlier widens the range for good.
"""

import torch

from kdq_core.api import FakeQuantize, Field, Quantizer


class WidestRange(FakeQuantize):
    """Follows the range of the data; the base class rounds, with the straight-through gradient."""

    def __init__(self, place, margin):
        super().__init__(place)
        self.margin = margin
        shape = () if place.axis is None else (place.channels,)
        self.register_buffer("low", torch.zeros(shape))  # buffers, so that they are saved with the model
        self.register_buffer("high", torch.zeros(shape))

    def observe(self, x):
        """Widen the range so that it contains `x`."""
        dims = [dim for dim in range(x.dim()) if dim != self.place.axis]
        self.low.copy_(torch.minimum(self.low, x.amin(dims)))
        self.high.copy_(torch.maximum(self.high, x.amax(dims)))

    def scale_and_zero(self):
        """Scale and zero point of the range; the zero point is a whole number."""
        low, high, place = self.margin * self.low, self.margin * self.high, self.place
        if place.symmetric:
            scale = (torch.maximum(-low, high) / place.qmax).clamp(min=1e-7)
            return scale, torch.zeros_like(scale)
        scale = ((high - low) / (place.qmax - place.qmin)).clamp(min=1e-7)
        return scale, (place.qmin - low / scale).round().clamp(place.qmin, place.qmax)


class MyPlugin(Quantizer):
    """Its fields are the options of a recipe."""

    margin: float = Field(default=1.0, ge=0.5, le=2, description="factor on the observed range")

    def fake_quantizer(self, place):
        """Make a fake-quantizer for one place; the target decides which tensors are places."""
        return WidestRange(place, self.margin)
