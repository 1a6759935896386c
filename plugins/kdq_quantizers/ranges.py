"""Searches for ranges and scales that the quantizers of this package share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdq_core.api import StageError

if TYPE_CHECKING:
    from kdq_core.api import Place

BINS = 2048
LEAST_SCALE = torch.finfo(torch.float32).eps
"""Scale of a tensor that is constantly zero."""
SHARES = 100
"""Candidates of a search: 1/100, 2/100 .. 1 of the largest value seen."""


def not_finite(place: Place) -> StageError:
    """Make the error for a `place` that saw NaN or infinity."""
    return StageError(
        f"place {place.name!r} saw a value that is not finite; look for NaN or infinity in the data, "
        "or lower the learning rate"
    )


def no_data(place: Place) -> StageError:
    """Make the error for a `place` that must round before it has seen data."""
    return StageError(f"place {place.name!r} has seen no data; observe at least one batch before rounding")


def affine(low: Tensor, high: Tensor, place: Place) -> tuple[Tensor, Tensor]:
    """Scale and zero point of ranges, which are widened to hold zero first; float, of the shape of `low`."""
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    if place.symmetric:
        scale = torch.maximum(-low, high).div(place.qmax).clamp(min=LEAST_SCALE)
        return scale, torch.zeros_like(scale)
    scale = (high - low).div(place.qmax - place.qmin).clamp(min=LEAST_SCALE)
    return scale, (place.qmin - low.div(scale).round()).clamp(place.qmin, place.qmax)


@torch.no_grad()
def mse_scale(weight: Tensor, place: Place) -> Tensor:
    """The scale with the least squared error of rounding: float32 `[C]` with `place.axis`, else `[]`.

    The search tries 100 candidates, evenly spaced up to the largest absolute value. Any scale fits a channel of zeros;
    it takes the mean of the others' scales.
    """
    flat = (weight.reshape(1, -1) if place.axis is None else weight.transpose(0, place.axis).flatten(1)).float()
    most = flat.abs().amax(1, keepdim=True).clamp(min=LEAST_SCALE)
    best, least = most / place.qmax, torch.full_like(most, float("inf"))
    for share in range(1, SHARES + 1):
        scale = most * (share / SHARES / place.qmax)
        rounded = flat.div(scale).round_().clamp_(place.qmin, place.qmax).mul_(scale)
        error = rounded.sub_(flat).square_().sum(1, keepdim=True)
        best, least = torch.where(error <= least, scale, best), torch.minimum(error, least)
    empty = flat.abs().amax(1, keepdim=True) == 0
    others = torch.where(empty, 0.0, best).sum() / (~empty).sum().clamp(min=1)
    best = torch.where(empty, others, best).clamp(min=LEAST_SCALE)
    return best.reshape(()) if place.axis is None else best.reshape(-1)


class Histogram(nn.Module):
    """Counts values in bins of equal width. For data beyond the bins it doubles the width: bins merge in pairs.

    Counts stay exact.

    Attributes:
        counts: int64 `[2048]`; bin i holds the values in `[origin + i * width, origin + (i + 1) * width)`.
        origin: lower end, float64 `[]`.
        width: of one bin, float64 `[]`; 0 before the first data.
        least: least value seen, at most 0; float32 `[]`.
        largest: largest value seen, at least 0; float32 `[]`.
    """

    counts: Tensor
    origin: Tensor
    width: Tensor
    least: Tensor
    largest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(BINS, dtype=torch.int64))
        for name in ("origin", "width"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))
        for name in ("least", "largest"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def add(self, x: Tensor, place: Place) -> None:
        """Count the values of `x`.

        Raises:
            StageError: one of them is not finite.
        """
        x = x.float()
        ends = torch.stack(x.aminmax())
        if not bool(ends.isfinite().all()):
            raise not_finite(place)
        self.least.copy_(torch.minimum(self.least, ends[0]))
        self.largest.copy_(torch.maximum(self.largest, ends[1]))
        self._grow(float(self.least), float(self.largest))
        bins = x.reshape(-1).sub(float(self.origin)).div_(float(self.width)).long().clamp_(0, BINS - 1)
        self.counts.add_(torch.bincount(bins, minlength=BINS))

    def _grow(self, low: float, high: float) -> None:
        if not float(self.width):
            self.origin.fill_(low)
            self.width.fill_(max(high - low, LEAST_SCALE) / BINS)
        while low < float(self.origin) or high > float(self.origin + BINS * self.width):
            pairs = self.counts.reshape(-1, 2).sum(1)
            nothing = torch.zeros_like(pairs)
            if low < float(self.origin):
                self.counts.copy_(torch.cat((nothing, pairs)))
                self.origin.sub_(BINS * self.width)
            else:
                self.counts.copy_(torch.cat((pairs, nothing)))
            self.width.mul_(2)

    def centres(self) -> Tensor:
        """The middle of each bin, float64 `[2048]`, on the CPU."""
        return float(self.origin) + float(self.width) * (torch.arange(BINS, dtype=torch.float64) + 0.5)

    def weights(self) -> Tensor:
        """Share of each bin, float64 `[2048]`, on the CPU."""
        counts = self.counts.cpu().double()
        return counts / counts.sum()


Range = tuple[float, float]
Search = Callable[[Histogram, "Place"], Range]
"""A function that takes the range to keep from a histogram."""


def minmax_range(seen: Histogram, place: Place) -> Range:  # noqa: ARG001
    """The least and the largest value."""
    return float(seen.least), float(seen.largest)


def percentile_range(seen: Histogram, place: Place, percentile: float) -> Range:  # noqa: ARG001
    """Between the percentile and its mirror image at the lower end, in steps of a bin."""
    total = seen.weights().cumsum(0)
    upper = int((total < percentile / 100 - 1e-12).sum())
    lower = int((total <= 1 - percentile / 100 + 1e-12).sum())
    edges = float(seen.origin) + float(seen.width) * torch.arange(BINS + 1, dtype=torch.float64)
    low, high = max(float(edges[lower]), float(seen.least)), min(float(edges[upper + 1]), float(seen.largest))
    return min(low, 0.0), max(high, 0.0)


def _errors(low: Tensor, high: Tensor, seen: Histogram, place: Place) -> Tensor:
    """Mean squared error of rounding for each of K ranges, float64 `[K]`."""
    scale, zero = (value.unsqueeze(1) for value in affine(low, high, place))
    values = seen.centres()
    rounded = values.div(scale).round_().add_(zero).clamp_(place.qmin, place.qmax).sub_(zero).mul_(scale)
    return rounded.sub_(values).square_() @ seen.weights()


def mse_range(seen: Histogram, place: Place) -> Range:
    """Shrink both ends by one share: the one with the least squared error of rounding."""
    shares = torch.arange(1, SHARES + 1, dtype=torch.float64) / SHARES
    low, high = shares * float(seen.least), shares * float(seen.largest)
    best = int(_errors(low, high, seen, place).flip(0).argmin())  # of equals the widest
    return float(low[SHARES - 1 - best]), float(high[SHARES - 1 - best])


def two_ended_range(seen: Histogram, place: Place, rounds: int = 2) -> Range:
    """Shrink each end on its own: starting from `mse_range`, both ends take their best value in turn."""
    low, high = mse_range(seen, place)
    shares = torch.arange(SHARES, -1, -1, dtype=torch.float64) / SHARES
    for _ in range(rounds):
        highs = torch.cat((torch.tensor([high], dtype=torch.float64), shares * float(seen.largest)))
        high = float(highs[int(_errors(torch.full_like(highs, low), highs, seen, place).argmin())])
        lows = torch.cat((torch.tensor([low], dtype=torch.float64), shares * float(seen.least)))
        low = float(lows[int(_errors(lows, torch.full_like(lows, high), seen, place).argmin())])
    return low, high


def entropy_range(seen: Histogram, place: Place) -> Range:
    """The clipping, symmetric about zero, whose rounded distribution has the least Kullback-Leibler divergence."""
    levels = place.qmax - place.qmin + 1
    width, origin = float(seen.width), float(seen.origin)
    zero = min(int(-origin / width), BINS - 1)
    counts = seen.counts.cpu().double()
    counts[zero] = counts[zero + 1] if zero + 1 < BINS else counts[zero - 1]  # zero itself costs nothing
    widest, step = max(zero + 1, BINS - zero), BINS // 128
    best, reach = float("inf"), widest
    first = levels if zero == 0 else levels // 2
    for reached in range(widest, first - 1, -step):
        divergence = _divergence(counts, max(0, zero + 1 - reached), min(BINS, zero + reached), levels)
        if divergence < best:
            best, reach = divergence, reached
    low, high = origin + width * max(0, zero + 1 - reach), origin + width * min(BINS, zero + reach)
    return min(max(low, float(seen.least)), 0.0), max(min(high, float(seen.largest)), 0.0)


def _divergence(counts: Tensor, low: int, high: int, levels: int) -> float:
    """KL between the clipped distribution and its rounding to `levels` groups, each spread over its filled bins."""
    inside = counts[low:high]
    clipped = inside.clone()
    clipped[0] += counts[:low].sum()
    clipped[-1] += counts[high:].sum()
    group = torch.arange(high - low) * levels // (high - low)
    filled = (inside > 0).double()
    totals = torch.zeros(levels, dtype=torch.float64).index_add_(0, group, inside)
    members = torch.zeros(levels, dtype=torch.float64).index_add_(0, group, filled)
    spread = (totals / members.clamp(min=1))[group] * filled
    p, q = clipped / clipped.sum().clamp(min=1), spread / spread.sum().clamp(min=1)
    held = p > 0
    return float((p[held] * (p[held] / q[held].clamp(min=1e-9)).log()).sum())
