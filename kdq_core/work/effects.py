"""What `kdq explain` finds: the effect of each layer's rounding, and rules against the worst. Imports no torch."""

from __future__ import annotations

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


class Explained(Frozen):
    """The effects of all groups, worst first, and rules that would mend the worst of them.

    Attributes:
        samples: number of samples.
        in_float: share of right answers without any rounding; null without classes.
        quantized: share of right answers as shipped.
        quantized_db: SQNR of the outputs as shipped.
        effects: the groups; those that hurt the answers most when quantized alone come first.
        rules: further `quantize.rules`; empty if none would help.
        predicted: share of right answers with these rules.
        predicted_db: SQNR of the outputs with them.
    """

    samples: int
    in_float: float | None
    quantized: float | None
    quantized_db: float
    effects: tuple[Effect, ...]
    rules: tuple[Rule, ...] = ()
    predicted: float | None = None
    predicted_db: float | None = None

    @property
    def origin(self) -> Effect | None:
        """The weights with the widest outliers, if they are wide: layers behind them inherit these outliers."""
        weights = [effect for effect in self.effects if effect.role == "weights"]
        widest = max(weights, key=lambda effect: effect.outliers, default=None)
        return widest if widest is not None and widest.outliers >= WIDE else None
