"""Fake quantization with ranges from the least and the largest value seen.

Weights: the current absolute maximum of each channel. Activations: an exponential moving average of each batch's least
and largest value, starting from the first batch (Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from kdq_core.errors import StageError
from kdq_core.quantization.fake import FakeQuantize, Grid

if TYPE_CHECKING:
    from kdq_core.kinds import Place

LEAST_SCALE = torch.finfo(torch.float32).eps
"""Scale of a tensor that is constantly zero."""


class RoundToGrid(torch.autograd.Function):
    """`scale * clamp(round(x / scale), low, high)`, with the straight-through gradient inside the clipping range.

    Four vectorised operations forward; one backward. Bengio et al. 2013, https://arxiv.org/abs/1308.3432.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Round `x`; `scale`, `low`, `high` (float32, in integers less the zero point) broadcast against it."""
        ctx.save_for_backward(x, scale, low, high)
        y = x.to(torch.float32).div(scale).round_()
        y = y.clamp_(low, high) if low.dim() else y.clamp_(float(low), float(high))
        return y.mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Pass the gradient where nothing was clipped."""
        x, scale, low, high = ctx.saved_tensors
        grad = grads[0]
        if scale.dim():
            q = x.div(scale).round_()
            return grad * (q.ge(low) & q.le(high)), None, None, None
        least, largest = float((low - 0.5) * scale), float((high + 0.5) * scale)
        return torch.ops.aten.hardtanh_backward(grad, x, least, largest), None, None, None


class MinMaxFakeQuantize(FakeQuantize):
    """Symmetric per channel for weights, affine per tensor for activations: whatever the place asks for.

    Args:
        place: where it stands; its `symmetric`, `axis` and `channels` decide the form.
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
            StageError: `x` holds a value that is not finite (checked at once on the CPU, in `grid` elsewhere).
        """
        low, high = self._range(x.detach())
        if x.device.type == "cpu" and not bool((low.isfinite() & high.isfinite()).all()):
            raise self._not_finite()
        if self.place.role == "activation":
            rate = torch.where(self.low.isinf(), 1.0, self.averaging)
            low = torch.where(self.low.isinf(), low, self.low + rate * (low - self.low))
            high = torch.where(self.high.isinf(), high, self.high + rate * (high - self.high))
        self.low.copy_(low)
        self.high.copy_(high)

    def _range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.place.axis is not None:
            flat = x.transpose(0, self.place.axis).flatten(1)
            low, high = flat.aminmax(dim=1)
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

    def _scale_and_zero(self) -> tuple[Tensor, Tensor]:
        place = self.place
        low, high = self.low.clamp(max=0.0), self.high.clamp(min=0.0)
        if place.symmetric:
            scale = torch.maximum(-low, high).div(place.qmax).clamp(min=LEAST_SCALE)
            return scale, torch.zeros_like(scale)
        scale = (high - low).div(place.qmax - place.qmin).clamp(min=LEAST_SCALE)
        return scale, (place.qmin - low.div(scale).round()).clamp(place.qmin, place.qmax)

    def grid(self) -> Grid:
        """The grid in force.

        Raises:
            StageError: no data was observed, or it was not finite.
        """
        if bool((self.low.isinf() & self.high.isinf() & (self.low > self.high)).any()):
            raise StageError(f"place {self.place.name!r} has seen no data; observe at least one batch before rounding")
        if not bool((self.low.isfinite() & self.high.isfinite()).all()):
            raise self._not_finite()
        scale, zero = self._scale_and_zero()
        return Grid(scale, zero.to(torch.int32), self.place.qmin, self.place.qmax, self.place.axis)

    def forward(self, x: Tensor) -> Tensor:
        """Observe if `observing`, round if `quantizing`; `x` keeps its shape and dtype."""
        if self.observing:
            self.observe(x)
        if not self.quantizing:
            return x
        scale, zero = self._scale_and_zero()
        low, high = self.place.qmin - zero, self.place.qmax - zero
        if self.place.axis is not None:
            shape = [-1 if dim == self.place.axis else 1 for dim in range(x.dim())]
            scale, low, high = scale.reshape(shape), low.reshape(shape), high.reshape(shape)
        return cast(Tensor, RoundToGrid.apply(x, scale, low, high))  # type: ignore[no-untyped-call]
