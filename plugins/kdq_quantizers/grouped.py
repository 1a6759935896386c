"""Weights with a scale for each group of inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdq_core.api import FakeQuantize, Grid, StageError, round_to_grid

if TYPE_CHECKING:
    from kdq_core.api import Place

LEAST_SCALE = torch.finfo(torch.float32).eps


def groups_of(place: Place, size: int | None) -> int:
    """Count the groups of `size` inputs per channel of a weight `[C, I, ...]`; 1 if `size` does not divide I."""
    if size is None or place.axis != 0 or place.operator not in ("conv", "linear") or place.shape is None:
        return 1
    inputs = place.shape[1]
    return inputs // size if inputs % size == 0 else 1


class GroupedFakeQuantize(FakeQuantize):
    """A symmetric fake-quantizer that takes its scales from the maximum of each group of consecutive inputs.

    Args:
        place: of the weight of a conv or linear, `[C, I, ...]`, with channel axis 0.
        groups: number of groups in each channel; it divides the number of inputs.
    """

    scale: Tensor

    def __init__(self, place: Place, groups: int) -> None:
        super().__init__(place)
        self.register_buffer("scale", torch.zeros(place.channels or 1, groups))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Measure the scales.

        Raises:
            StageError: `x` holds a value that is not finite.
        """
        most = x.reshape(*self.scale.shape, -1).abs().amax(2).to(torch.float32)
        if not bool(most.isfinite().all()):
            raise StageError(
                f"place {self.place.name!r} saw a value that is not finite; look for NaN or infinity in the weights"
            )
        self.scale.copy_(most.div(self.place.qmax).clamp(min=LEAST_SCALE))

    def scale_and_zero(self) -> tuple[Tensor, Tensor]:
        """Return the scales `[C, G]`, and zero."""
        return self.scale, torch.zeros_like(self.scale)

    def grid(self) -> Grid:
        """Return the grid in force.

        Raises:
            StageError: no weight was observed.
        """
        if not bool((self.scale > 0).all()):
            raise StageError(f"place {self.place.name!r} has seen no data; observe at least one batch before rounding")
        return super().grid()

    def forward(self, x: Tensor) -> Tensor:
        """Observe if `observing`, round if `quantizing`."""
        if self.observing:
            self.observe(x.detach())
        if not self.quantizing:
            return x
        scale, zero = (value.reshape(-1) for value in self.scale_and_zero())
        place, rows = self.place, x.reshape(len(scale), -1)
        return round_to_grid(rows, scale, zero, place.qmin, place.qmax, 0).reshape(x.shape)
