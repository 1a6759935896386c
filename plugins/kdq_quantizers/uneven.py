"""Weights on levels that are not evenly spaced: sums of powers of two, and trained centroids."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdq_core.api import Grid, LevelsFakeQuantize, StageError

if TYPE_CHECKING:
    from kdq_core.api import Place

LEAST = torch.finfo(torch.float32).eps


def magnitudes(bits: int) -> list[int]:
    """List the non-negative levels of weights of `bits` bits as whole numbers: `[2 ** (bits - 1)]`, ascending.

    A level is a sum of (bits - 1) // 2 terms of four values each: 0 and three powers of two. For even `bits` one term
    of two values is added. The terms take the falling powers of two in turn; the term of two values takes its one in
    the third round.
    """
    terms: list[list[int]] = [[0] for _ in range(bits // 2)]
    power = 3 * ((bits - 1) // 2) + (bits - 1) % 2
    for turn in range(3):
        order = list(range((bits - 1) // 2))
        if turn == 2 and (bits - 1) % 2:
            order.insert(0, len(terms) - 1)
        for term in order:
            power -= 1
            terms[term].append(2**power)
    return sorted({sum(parts) for parts in itertools.product(*terms)})


class _Uneven(LevelsFakeQuantize):
    """Base of both fake-quantizers, which set their levels when they first see data."""

    begun: Tensor

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.top = min(-self.qmin, self.qmax)
        self.register_buffer("begun", torch.tensor(False))

    def _channels(self, x: Tensor) -> Tensor:
        """`x` as `[C, N]`, or `[1, N]` without a channel axis.

        Raises:
            StageError: `x` holds a value that is not finite.
        """
        if not bool(x.isfinite().all()):
            raise StageError(
                f"place {self.place.name!r} saw a value that is not finite; look for NaN or infinity in the data, "
                "or lower the learning rate"
            )
        axis = self.place.axis
        return (x.reshape(1, -1) if axis is None else x.transpose(0, axis).flatten(1)).to(torch.float32)

    def _shape(self) -> tuple[int, ...]:
        return () if self.place.axis is None else (self.place.channels or 1,)

    def grid(self) -> Grid:
        """Return the grid that the levels lie on.

        Raises:
            StageError: no data was observed.
        """
        if not bool(self.begun):
            raise StageError(f"place {self.place.name!r} has seen no data; observe at least one batch before rounding")
        return super().grid()


class ApotFakeQuantize(_Uneven):
    """Additive powers of two with a learned clipping threshold.

    Args:
        place: of a weight.
        sigmas: where the threshold starts, in root mean squares of the channel.
    """

    steps: Tensor

    def __init__(self, place: Place, sigmas: float) -> None:
        super().__init__(place)
        self.sigmas = sigmas
        self.threshold = nn.Parameter(torch.ones(self._shape()))
        positive = torch.tensor(magnitudes(place.bits), dtype=torch.float64)
        if float(positive[-1]) > self.top:  # finer than the kernels' integers: take the nearest
            positive = (positive * (self.top / positive[-1])).round()
        self.register_buffer("steps", torch.unique(torch.cat([-positive, positive])).float(), persistent=False)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Set the threshold at the first call."""
        if bool(self.begun):
            return
        rows = self._channels(x)
        start = torch.minimum(rows.abs().amax(1), self.sigmas * rows.square().mean(1).sqrt()).clamp(min=LEAST)
        self.threshold.copy_(start.reshape(self._shape()))
        self.begun.fill_(True)

    def levels(self) -> Tensor:
        """Return the levels, which never change."""
        return self.steps

    def unit_scale(self) -> Tensor:
        """Return the threshold divided by the largest level."""
        return self.threshold.clamp(min=LEAST) / self.steps[-1]


class CodebookFakeQuantize(_Uneven):
    """Centroids from k-means, then trained.

    Args:
        place: of a weight.
        per_channel: divide weights by the largest absolute value of their channel, not of the tensor.
        iterations: most iterations of k-means.
    """

    clip = False
    unit: Tensor

    def __init__(self, place: Place, *, per_channel: bool, iterations: int) -> None:
        super().__init__(place)
        self.per_channel, self.iterations = per_channel, iterations
        self.centroids = nn.Parameter(torch.linspace(-1.0, 1.0, 2**place.bits))
        self.register_buffer("unit", torch.ones(self._shape()))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Measure the largest weights and find the centroids, at the first call."""
        if bool(self.begun):
            return
        rows = self._channels(x)
        unit = rows.abs().amax(1) if self.per_channel else rows.abs().max().expand(len(rows))
        unit = unit.clamp(min=LEAST)
        self.unit.copy_(unit.reshape(self._shape()))
        share = rows.div(unit[:, None])
        weights = unit.square()[:, None].expand_as(rows)
        self.centroids.copy_(k_means(share.reshape(-1), weights.reshape(-1), len(self.centroids), self.iterations))
        self.begun.fill_(True)

    def levels(self) -> Tensor:
        """Return the centroids, rounded to the kernels' integers; gradients pass straight through the rounding."""
        exact = self.centroids.sort().values.clamp(-1.0, 1.0) * self.top
        return exact + (exact.round() - exact).detach()

    def unit_scale(self) -> Tensor:
        """Return the unit scale, which never changes after the first data."""
        return self.unit / self.top


def k_means(x: Tensor, weights: Tensor, count: int, iterations: int) -> Tensor:
    """Find centroids that make the weighted squared distance of `x` to the nearest one small.

    Lloyd's iteration starts from evenly spaced centroids between the least and the greatest value. A centroid without
    values stays where it is.

    Args:
        x: `[N]`.
        weights: `[N]`, weights of the squared distances.
        count: number of centroids.
        iterations: most iterations; the search ends earlier when nothing changes.

    Returns:
        The centroids, float32 `[count]`, ascending.
    """
    x, order = x.double().sort()
    mass = weights.double()[order]
    zero = torch.zeros(1, dtype=torch.float64, device=x.device)
    masses, sums = torch.cat([zero, mass.cumsum(0)]), torch.cat([zero, (mass * x).cumsum(0)])
    centroids = torch.lerp(x[0], x[-1], torch.linspace(0, 1, count, dtype=torch.float64, device=x.device))
    for _ in range(iterations):
        bounds = torch.searchsorted(x, (centroids[1:] + centroids[:-1]) / 2, right=True)
        ends = torch.cat([bounds.new_zeros(1), bounds, bounds.new_full((1,), len(x))])
        held, total = masses[ends].diff(), sums[ends].diff()
        moved = torch.where(held > 0, total / held, centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved.sort().values
    return centroids.float()
