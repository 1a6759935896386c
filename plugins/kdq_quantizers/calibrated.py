"""Fake-quantizers that start from calibration or from the first batch, and that data does not move afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdq_core.api import FakeQuantize, Grid
from kdq_quantizers.ranges import Histogram, affine, mse_range, mse_scale, no_data, not_finite

if TYPE_CHECKING:
    from kdq_core.api import Place


class Calibrated(FakeQuantize):
    """Finds the grid to start from; the range does not move after the first rounding.

    Activations: each calibration batch gives the range with the least squared error; each end is the mean over the
    batches. Weights: the scale with the least squared error, found once.

    `start` gets the resulting `scale`, float32 `[]` or `[C]` with `place.axis`, and `zero` of the same shape.

    Attributes:
        seen: batches calibrated with, int64 `[]`.
        low, high: the range of an activation so far, float32 `[]`.
    """

    seen: Tensor
    low: Tensor
    high: Tensor
    zero: Tensor

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.shape = () if place.axis is None else (place.channels or 1,)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        if place.role == "activation":
            self.register_buffer("low", torch.zeros(()))
            self.register_buffer("high", torch.zeros(()))
        self.register_buffer("zero", torch.zeros(self.shape))
        self.ready = False  # `seen` on the host: reading a GPU's tensor would make each step wait

    def start(self, scale: Tensor, zero: Tensor) -> None:
        """Take the calibrated scale and zero point. KDQ calls it after each calibration batch."""
        raise NotImplementedError

    def watch(self, x: Tensor) -> None:
        """Observe `x` until training begins; do nothing afterwards."""
        if not (self.ready and (self.quantizing or self.place.role == "weight")):
            super().watch(x)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Calibrate with `x`.

        Raises:
            StageError: `x` holds a value that is not finite.
        """
        self.seen.add_(1)
        if self.place.role == "weight":
            if not bool(x.isfinite().all()):
                raise not_finite(self.place)
            scale, zero = mse_scale(x, self.place), torch.zeros_like(self.zero)
        else:
            batch = Histogram().to(x.device)
            batch.add(x, self.place)
            low, high = mse_range(batch, self.place)
            self.low.add_((low - self.low) / self.seen)
            self.high.add_((high - self.high) / self.seen)
            scale, zero = affine(self.low, self.high, self.place)
        self.ready = True
        self.zero.copy_(zero)
        self.start(scale, zero)

    def grid(self) -> Grid:
        """Return the grid in force.

        Raises:
            StageError: no data was observed.
        """
        if not self.ready:
            raise no_data(self.place)
        return super().grid()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.ready = bool(self.seen > 0)


class FixedScale(Calibrated):
    """A calibrated scale that never changes."""

    scale: Tensor

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.register_buffer("scale", torch.ones(self.shape))

    def start(self, scale: Tensor, zero: Tensor) -> None:  # noqa: ARG002
        """Keep the calibrated scale."""
        self.scale.copy_(scale)

    def scale_and_zero(self) -> tuple[Tensor, Tensor]:
        """Return the calibrated scale and zero point."""
        return self.scale, self.zero
