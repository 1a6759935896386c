"""Ranges for post-training quantization, searched once in the calibration data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdq_core.api import FakeQuantize, Grid
from kdq_quantizers.ranges import Histogram, affine, mse_scale, no_data, not_finite

if TYPE_CHECKING:
    from kdq_core.api import Place
    from kdq_quantizers.ranges import Search


class SearchedRange(FakeQuantize):
    """An activation's range, searched in the histogram of all observed values.

    Args:
        place: where it stands.
        search: returns the range for a histogram.
    """

    def __init__(self, place: Place, search: Search) -> None:
        super().__init__(place)
        self.search = search
        self.histogram = Histogram()
        self._found: tuple[Tensor, Tensor] | None = None  # a function of the histogram

    def observe(self, x: Tensor) -> None:
        """Count the values of `x`.

        Raises:
            StageError: one of them is not finite.
        """
        self.histogram.add(x, self.place)
        self._found = None

    @torch.no_grad()
    def scale_and_zero(self) -> tuple[Tensor, Tensor]:
        """Return scale and zero point of the range that was found.

        Raises:
            StageError: no data was observed.
        """
        if self._found is None:
            if not float(self.histogram.width):
                raise no_data(self.place)
            low, high = (torch.tensor(end) for end in self.search(self.histogram, self.place))
            scale, zero = affine(low, high, self.place)
            self._found = scale.to(self.histogram.least), zero.to(self.histogram.least)
        return self._found

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._found = None
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._found = None
        super()._load_from_state_dict(*args, **kwargs)


class SearchedScale(FakeQuantize):
    """A weight's scale with the least squared error; it searches again only if the weight has changed."""

    scale: Tensor

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.register_buffer("scale", torch.zeros(() if place.axis is None else (place.channels or 1,)))
        self._last: tuple[Tensor, int] | None = None

    def observe(self, x: Tensor) -> None:
        """Search the scale for the weight `x`.

        Raises:
            StageError: `x` holds a value that is not finite.
        """
        if self._last is not None and (self._last[0].data_ptr(), self._last[1]) == (x.data_ptr(), x._version):
            return
        if not bool(x.isfinite().all()):
            raise not_finite(self.place)
        self.scale.copy_(mse_scale(x, self.place))
        self._last = x, x._version

    def scale_and_zero(self) -> tuple[Tensor, Tensor]:
        """Return the scale that was found, and zero."""
        return self.scale, torch.zeros_like(self.scale)

    def grid(self) -> Grid:
        """Return the grid in force.

        Raises:
            StageError: the weight was not observed.
        """
        if not bool((self.scale > 0).all()):
            raise no_data(self.place)
        return super().grid()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._last = None
        super()._load_from_state_dict(*args, **kwargs)
