"""Fake-quantizers whose step is a stated number, or a power of two."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdq_core.api import FakeQuantize, Grid, MinMaxFakeQuantize, StageError

if TYPE_CHECKING:
    from kdq_core.api import Place

LEAST_SCALE = torch.finfo(torch.float32).eps
"""Step of a tensor that is constantly zero; a power of two."""


def no_data(place: Place) -> StageError:
    """Make the error for a `place` that must round before it has seen data."""
    return StageError(f"place {place.name!r} has seen no data; observe at least one batch before rounding")


class FixedStepFakeQuantize(FakeQuantize):
    """Rounds a weight to multiples of one step for the whole tensor. The step never changes once it is set.

    Args:
        place: of a weight.
        step: the step. `None` takes the step with which the largest absolute value of the first data just fits.
    """

    step: Tensor

    def __init__(self, place: Place, step: float | None = None) -> None:
        super().__init__(place)
        self.register_buffer("step", torch.tensor(0.0 if step is None else step))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Set the step if it is not set yet.

        Raises:
            StageError: `x` holds a value that is not finite.
        """
        if bool(self.step > 0):
            return
        if not bool(x.isfinite().all()):
            raise StageError(
                f"place {self.place.name!r} saw a value that is not finite; look for NaN or infinity in the data, "
                "or lower the learning rate"
            )
        self.step.copy_(x.abs().max().to(torch.float32).div(self.place.qmax).clamp(min=LEAST_SCALE))

    def scale_and_zero(self) -> tuple[Tensor, Tensor]:
        """Return the step, the same for every channel, and zero."""
        scale = self.step if self.place.axis is None else self.step.expand(self.place.channels or 1)
        return scale, torch.zeros_like(scale)

    def grid(self) -> Grid:
        """Return the grid in force.

        Raises:
            StageError: the step is to come from data, and there was none.
        """
        if not bool(self.step > 0):
            raise no_data(self.place)
        return super().grid()


class PowerOfTwoFakeQuantize(MinMaxFakeQuantize):
    """Min-max ranges on grids whose step is a power of two, and whose zero point is the least integer or the middle.

    Args:
        place: where it stands.
        rounding: `up` lets the range fit; `nearest` may clip it by a factor of sqrt(2) at most.
        averaging: weight of the newest batch in the moving average of an activation's range.
    """

    def __init__(self, place: Place, rounding: str = "up", averaging: float = 0.05) -> None:
        super().__init__(place, averaging=averaging)
        self.rounding = rounding

    def scale_and_zero(self) -> tuple[Tensor, Tensor]:
        """Return the power of two that fits the range, and the zero point: `qmin` if there are no negative values."""
        place = self.place
        low, high = self.low.clamp(max=0.0), self.high.clamp(min=0.0)
        if place.symmetric:
            zero, step = torch.zeros_like(low), torch.maximum(-low, high).div(place.qmax)
        else:
            middle = (place.qmin + place.qmax + 1) // 2
            zero = torch.where(low < 0, float(middle), float(place.qmin))
            step = torch.maximum(-low / max(middle - place.qmin, 1), high / (place.qmax - zero))
        return power_of_two(step.clamp(min=LEAST_SCALE), up=self.rounding == "up"), zero


def power_of_two(x: Tensor, *, up: bool) -> Tensor:
    """The power of two for `x > 0`: the least that is not below `x` (`up`), or the nearest by ratio; exact."""
    mantissa, _ = torch.frexp(x)  # x = mantissa * 2^e, 0.5 <= mantissa < 1
    above = x / mantissa
    return torch.where(mantissa > (0.5 if up else 0.5**0.5), above, above / 2)
