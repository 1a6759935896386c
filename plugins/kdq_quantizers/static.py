"""Quantizer `static`: post-training quantization with ranges from calibration.

What
    Nothing is trained. Calibration batches fill a histogram for each activation, and `observer` takes a range
    from it. A weight's scale comes from the weight itself. Afterwards scales and ranges are fixed.
Formula
    q = clamp(round(x / s) + z, qmin, qmax), s = (high - low) / (qmax - qmin), z = qmin - round(low / s), with
    low <= 0 <= high. minmax: least and largest value. percentile: the p-th percentile above, its mirror image below.
    mse: both ends times the share k / 100 with the least squared rounding error. histogram: each end takes its own
    share, in turn, starting from mse. entropy: of 128 clippings, equally wide to both sides of zero, the one with the
    least KL(P || Q). P is the clipped histogram, with the clipped values in its outer bins; Q is P with as many groups
    of bins as there are levels. Weights, per channel: s = max|w| / qmax (minmax), or k / 100 of that, with the k that
    gives the least squared error (mse).
Source
    minmax: Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3. entropy: Migacz 2017, 8-bit Inference with
    TensorRT (GTC 2017); as there, the bin that holds zero counts like its neighbour. histogram: the idea of torch's
    HistogramObserver (least squared error over both ends), with another search: torch's greedy walk can stop early.
    mse: Banner et al. 2019, https://arxiv.org/abs/1810.05723, by search in place of their closed form.
Defaults
    observer histogram: its rounding error over the calibration data is never larger than that of mse or minmax.
    percentile 99.99: cuts one value in 10,000 at each end. weights mse: no worse than minmax at 8 bits, and much better
    below 5.
Costs
    A pass over each activation for every calibration batch; a search of some milliseconds for each place.
Limits
    Histograms have 2,048 bins. For data beyond them the bins merge in pairs and double their width, so that a single
    extreme value makes all bins coarse. Rounding errors are measured at the middle of each bin, and not by the loss.
    Below 8 bits quantizers that train keep more quality. entropy looks for distributions of many levels and clips too
    much below 8 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from kdq_core.api import Field, Place, Quantizer

if TYPE_CHECKING:
    from kdq_core.api import FakeQuantize


class Static(Quantizer):
    """Post-training quantization."""

    trains: ClassVar[bool] = False
    observer: Literal["minmax", "percentile", "entropy", "mse", "histogram"] = Field(
        default="histogram", description="how an activation's range follows from the calibration data"
    )
    percentile: float = Field(default=99.99, gt=50, le=100, description="for observer percentile: the upper end")
    weights: Literal["minmax", "mse"] = Field(default="mse", description="how a weight's scale is found")

    def fake_quantizer(self, place: Place) -> FakeQuantize:
        """Return a range from calibration for an activation, a scale from the weight itself for a weight."""
        from functools import partial

        from kdq_core.api import MinMaxFakeQuantize
        from kdq_quantizers import ranges
        from kdq_quantizers.fixed_ranges import SearchedRange, SearchedScale

        if place.role == "weight":
            return SearchedScale(place) if self.weights == "mse" else MinMaxFakeQuantize(place)
        searches: dict[str, ranges.Search] = {
            "minmax": ranges.minmax_range,
            "percentile": partial(ranges.percentile_range, percentile=self.percentile),
            "entropy": ranges.entropy_range,
            "mse": ranges.mse_range,
            "histogram": ranges.two_ended_range,
        }
        return SearchedRange(place, searches[self.observer])
