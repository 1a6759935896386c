"""Evaluator `coverage`: how much of the work really runs in int8 kernels.

What: share of the multiply-accumulates of convolutions, linear and recurrent layers that int8 kernels do, and of those
    of linear layers alone; share of the weight bytes that belong to int8 operators; number of operators in float.
Formula: sum over int8 operators / sum over all operators, for one sample.
Source: the target reads it from the runtime's own optimised graph: a quantized file may still run in float, silently.
Defaults and where they come from: no options.
Costs: none; the target has counted before.
Limits: says nothing of a float model, and has no share where a model has no such operator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Batches, Column, Evaluator, Metric, OperatorCoverage, Subject

if TYPE_CHECKING:
    from collections.abc import Callable

COMPUTING = ("conv", "linear", "lstm", "gru")


class Coverage(Evaluator):
    """Share of the work in int8 kernels."""

    metrics: ClassVar[tuple[str, ...]] = (
        "coverage_macs", "coverage_linear_macs", "coverage_weight_bytes", "float_operators",
    )  # fmt: skip
    columns: ClassVar[tuple[Column, ...]] = (Column(heading="int8 MACs", metric="coverage_macs", form="{:.0%}"),)

    def evaluate(self, candidate: Subject, baseline: Subject, batches: Batches) -> tuple[Metric, ...]:  # noqa: ARG002
        """Three shares from 0 to 1, and `float_operators`; `()` for a float file."""
        if not candidate.operators:
            return ()
        computing = [o for o in candidate.operators if o.operator.startswith(COMPUTING)]
        floats = sum(not o.int8 for o in candidate.operators)
        return (
            *share("coverage_macs", computing, lambda o: o.macs),
            *share("coverage_linear_macs", [o for o in computing if o.operator == "linear"], lambda o: o.macs),
            *share("coverage_weight_bytes", list(candidate.operators), lambda o: o.weight_bytes),
            Metric(name="float_operators", value=floats, unit="count", direction="lower"),
        )


def share(
    name: str, operators: list[OperatorCoverage], amount: Callable[[OperatorCoverage], int]
) -> tuple[Metric, ...]:
    """The int8 share of `amount`, or nothing where there is none to share."""
    total = sum(amount(o) for o in operators)
    if not total:
        return ()
    int8 = sum(amount(o) for o in operators if o.int8)
    return (Metric(name=name, value=int8 / total, unit="fraction", direction="higher"),)
