"""A quantizer that leaves the choice among others to the run. Importable without torch."""

from __future__ import annotations

import abc

from pydantic import Field

from kdq_core.plugins.kinds import Quantizer


class Choosing(Quantizer):
    """Names quantizers that a run chooses among, by what they lose on held-out data.

    The run calibrates the first, if that does not train, and measures it beside the float student. If it loses too
    much, the run trains the next one and keeps the better of both.
    """

    tolerance: float = Field(
        default=0.005,
        ge=0,
        le=1,
        description="top-1 that calibration may lose against the float student on the validation split, as a share; "
        "more, and shown by the 95 % interval, calls for training",
    )
    loss_tolerance: float = Field(
        default=0.02,
        ge=0,
        le=100,
        description="where labels are no classes: by how much the hard loss may rise there, as a share of it",
    )

    @abc.abstractmethod
    def ways(self, bits: int) -> tuple[str, ...]:
        """Names of the quantizers to choose among, the first to try first; the last one trains.

        Args:
            bits: the fewest that the recipe asks for, of weights or activations of any layer.
        """
