"""Quantizer `guest-rounding`: the widest range seen, times a margin.

What: rounds weights and activations to the place's grid. The range is the widest that was ever observed.
Formula: scale = margin * max|x| / qmax for symmetric places; margin * (max - min) / (qmax - qmin) for affine ones.
Source: Jacob et al. 2018, arXiv:1712.05877, section 2, without its moving average.
Defaults: margin 1, which clips nothing that was observed.
Limits: one outlier widens the range for good.
"""

import torch

from kdq_core.api import FakeQuantize, Field, Quantizer


class WidestRange(FakeQuantize):
    def __init__(self, place, margin):
        super().__init__(place)
        self.margin, shape = margin, () if place.axis is None else (place.channels,)
        self.register_buffer("low", torch.zeros(shape))
        self.register_buffer("high", torch.zeros(shape))

    def observe(self, x):
        dims = [dim for dim in range(x.dim()) if dim != self.place.axis]
        self.low.copy_(torch.minimum(self.low, x.amin(dims)))
        self.high.copy_(torch.maximum(self.high, x.amax(dims)))

    def scale_and_zero(self):
        low, high, place = self.margin * self.low, self.margin * self.high, self.place
        scale = torch.maximum(-low, high) / place.qmax if place.symmetric else (high - low) / (place.qmax - place.qmin)
        zero = 0 * scale if place.symmetric else place.qmin - low / scale.clamp(min=1e-7)
        return scale.clamp(min=1e-7), zero.round().clamp(place.qmin, place.qmax)


class GuestRounding(Quantizer):
    margin: float = Field(default=1.0, ge=0.5, le=2, description="factor on the observed range")

    def fake_quantizer(self, place):
        return WidestRange(place, self.margin)
