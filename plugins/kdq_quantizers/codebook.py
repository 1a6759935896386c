"""Quantizer `codebook`: the weights of a layer share 2^bits values, found by k-means and then trained.

What
    When a weight tensor is first observed, k-means finds 2^bits centroids for it. From then on every weight counts as
    the nearest centroid, and the centroids are trained. They are rounded to the integers of the int8 kernels, so that
    the shipped layer runs in int8 like any other. Activations: min-max ranges by moving average, as in `minmax-qat`.
Formula
    With m the largest absolute weight of the channel (or of the tensor), u = w / m and centroids c_1 < ... < c_K:
    w' = m / top * round(top * c_k), k = argmin |u - c_k|, top the largest integer of the kernels (127, or 63).
    k-means minimises sum of m^2 (u - c_k)^2 = sum of (w - m c_k)^2. Gradients: to c_k, the sum over its weights of
    their gradients times m; to w, straight through, so that weights may change to another centroid.
Source
    Han, Mao and Dally 2016, Deep Compression, https://arxiv.org/abs/1510.00149, section 3: linear initialisation, and
    the gradient of a centroid. Training the weights beside their centroids: Cardinaux et al. 2018, LUT-Q,
    https://arxiv.org/abs/1811.05355.
Defaults and where they come from
    scope `channel`: KDQ's own. A scale per channel costs nothing in int8 kernels and saves a codebook per channel.
    `tensor` is the paper's. iterations 300: 16 levels of 100,000 normal values then reach the least error possible;
    after 50 iterations the error is 6 % larger. averaging 0.05 as in `minmax-qat`.
Costs
    One sort per tensor at the start; one binary search per weight forward, and one sum per centroid backward.
Limits
    KDQ leaves out two stages of the paper: Huffman coding and pruning. The paper keeps each weight with its first
    centroid. At 8 bits there are about as many centroids as integers, and the result is no better than `minmax-qat`. If
    a layer has few weights, the codebook overfits them. m does not change after the first data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from kdq_core.api import Field, Place, Quantizer

if TYPE_CHECKING:
    from kdq_core.api import FakeQuantize


class Codebook(Quantizer):
    """Training with shared weights."""

    scope: Literal["channel", "tensor"] = Field(
        default="channel", description="whose largest weight the weights are divided by before they share a codebook"
    )
    iterations: int = Field(
        default=300, ge=0, le=10_000, description="of k-means, at most; 0 keeps evenly spaced values"
    )
    averaging: float = Field(
        default=0.05, gt=0, le=1, description="weight of the newest batch in an activation's range; 1 keeps no past"
    )

    def fake_quantizer(self, place: Place) -> FakeQuantize:
        """Return a codebook for a weight, a min-max range for an activation."""
        from kdq_core.api import MinMaxFakeQuantize
        from kdq_quantizers.uneven import CodebookFakeQuantize

        if place.role == "weight":
            return CodebookFakeQuantize(place, per_channel=self.scope == "channel", iterations=self.iterations)
        return MinMaxFakeQuantize(place, averaging=self.averaging)
