"""What `kdq explain` finds: the effect of each layer's rounding, and rules against the worst. Imports no torch."""

from __future__ import annotations

from typing import Literal

from kdq_core.frozen import Frozen
from kdq_core.recipe.spec import Rule

WIDE = 16.0
"""From this ratio on, a channel's weights are an outlier: four of eight bits are lost for the others' results."""


class Effect(Frozen):
    """What one group of fake-quantizers does.

    Attributes:
        layer: module path of the operator; its type for operators of the model's own forward.
        role: `weights`, or `activations` for what the layer gives.
        bits: fewest bits in the group.
        sqnr_db: of the tensor itself.
        clipped: share of its values outside of the grid.
        outliers: range of the widest channel over the median channel's; 1 for a tensor without channels.
        calibrated: ends of the grid.
        seen: least and largest value in these samples.
        alone_db: SQNR of the outputs, if nothing else is quantized.
        alone: share of right answers then; null without classes.
        without_db: SQNR of the outputs, if all else is quantized.
        without: share of right answers then.
    """

    layer: str
    role: str
    bits: int
    sqnr_db: float
    clipped: float
    outliers: float
    calibrated: tuple[float, float]
    seen: tuple[float, float]
    alone_db: float
    alone: float | None
    without_db: float
    without: float | None

    @property
    def beyond(self) -> float:
        """How far values reach, as a multiple of the calibrated range: above 1, the samples leave it."""
        ends = [seen / end for seen, end in zip(self.seen, self.calibrated, strict=True) if seen * end > 0]
        return max(ends, default=0.0)


class Part(Frozen):
    """A class, or the samples with one value in a column of the data, as the float file and the int8 file answer them.

    Attributes:
        column: name of the column; `class` for the label.
        value: the value, or the range of values.
        samples: how many there are.
        in_float: share of right answers of the float file.
        in_int8: share of right answers of the int8 file.
        low: lower end of the 95 % interval of the difference, int8 minus float.
        high: upper end of it.
        verdict: `lost`: int8 answers fewer of them right than float. `weak`: int8 answers fewer of them right than of
            all other samples, and so does float. Empty: neither is shown at 5 %, for all parts together.
    """

    column: str
    value: str
    samples: int
    in_float: float
    in_int8: float
    low: float
    high: float
    verdict: Literal["lost", "weak", ""] = ""


class Flip(Frozen):
    """A sample of the test split that only one of the two files answers right.

    Attributes:
        row: its number in the split.
        kind: `lost` if int8 is wrong, `gained` if float is wrong.
        label: its class.
        in_float: the answer of the float file.
        in_int8: the answer of the int8 file.
    """

    row: int
    kind: Literal["lost", "gained"]
    label: int
    in_float: int
    in_int8: int


class Files(Frozen):
    """How the float file and the int8 file answer the test split, in the runtime.

    Attributes:
        samples: number of labelled samples.
        in_float: share of right answers of the float file.
        in_int8: share of right answers of the int8 file.
        parts: classes and slices: first those that int8 lost, then weak ones, then by the difference.
        lost: number of samples that only the float file answers right.
        gained: number of samples that only the int8 file answers right.
        flips: the first of them.
    """

    samples: int
    in_float: float
    in_int8: float
    parts: tuple[Part, ...] = ()
    lost: int = 0
    gained: int = 0
    flips: tuple[Flip, ...] = ()


class Patched(Frozen):
    """What the proposed rules give: the file that they make of the same trained weights, measured in the runtime.

    Attributes:
        quality: share of right answers on the test split; null without classes.
        db: SQNR of the outputs on the test split, against the float file.
        low: lower end of the 95 % interval of the difference of quality from the float file; null without classes.
        high: upper end of it.
        bytes: size of the file.
        ms: median time of a call with one sample and one thread, in milliseconds.
        shipped_ms: that of the int8 file without the rules, measured beside it.
        speedup: median time of the float file over that of this file.
        speedup_low: lower end of its 95 % interval.
        speedup_high: upper end of it.
    """

    quality: float | None
    db: float
    low: float | None = None
    high: float | None = None
    bytes: int
    ms: float
    shipped_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float


class Explained(Frozen):
    """The effects of all groups, worst first, and rules that would mend the worst of them.

    Attributes:
        samples: number of samples.
        in_float: share of right answers without any rounding; null without classes.
        quantized: share of right answers as shipped.
        quantized_db: SQNR of the outputs as shipped.
        effects: the groups; those that hurt the answers most when quantized alone come first.
        rules: further `quantize.rules`; empty if none would help.
        predicted: share of right answers with these rules, in the simulation.
        predicted_db: SQNR of the outputs with them.
        flips: samples that the shipped file answers otherwise than the simulation; null without classes.
        files: the files on the test split; null without classes.
        patched: the file with the rules, as it was run; null without rules.
        note: why there is no such file although there are rules.
    """

    samples: int
    in_float: float | None
    quantized: float | None
    quantized_db: float
    effects: tuple[Effect, ...]
    rules: tuple[Rule, ...] = ()
    predicted: float | None = None
    predicted_db: float | None = None
    flips: int | None = None
    files: Files | None = None
    patched: Patched | None = None
    note: str = ""

    @property
    def origin(self) -> Effect | None:
        """The weights with the widest outliers, if they are wide: layers behind them inherit these outliers."""
        weights = [effect for effect in self.effects if effect.role == "weights"]
        widest = max(weights, key=lambda effect: effect.outliers, default=None)
        return widest if widest is not None and widest.outliers >= WIDE else None
