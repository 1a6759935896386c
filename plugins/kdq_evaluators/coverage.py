"""Evaluator `coverage`: how much of the work really runs in int8 kernels.

What: the share of the multiply-accumulates that int8 kernels do (`int8_macs`), over products with weights:
    convolutions, linear, bilinear and recurrent layers, products with constants. The same without the operators that
    the stage `place` left in float because it measured int8 to be slower (`coverage_macs`): less than 1 means that
    something is in float that nobody chose. Over all products (attention and other products between activations count
    too), and over linear layers alone; the share of the weight bytes that belong to int8 operators; the number of
    operators in float.
Formula: sum over int8 operators / sum over all operators, for one sample. `coverage_macs` is 1 if all is chosen float.
Source: the target reads it from the runtime's own optimised graph, because a quantized file may still run in float
    silently.
Defaults and where they come from: no options. The default gate is on `coverage_macs`, because products between
    activations stay float by design: quantizing them costs more time than int8 kernels gain.
Costs: none, because the target has counted already.
Limits: gives nothing for a float model. A model without such operators has no share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Batches, Column, Evaluator, Metric, OperatorCoverage, Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COMPUTING = ("conv", "linear", "lstm", "gru", "rnn", "bilinear", "matmul")


class Coverage(Evaluator):
    """Share of the work in int8 kernels."""

    metrics: ClassVar[tuple[str, ...]] = (
        "coverage_macs", "coverage_all_macs", "coverage_linear_macs", "coverage_weight_bytes", "int8_macs",
        "float_operators",
    )  # fmt: skip
    columns: ClassVar[tuple[Column, ...]] = (
        Column(heading="int8 MACs", metric="int8_macs", form="{:.0%}"),
        Column(heading="of all", metric="coverage_all_macs", form="{:.0%}"),
    )

    def evaluate(self, candidate: Subject, baseline: Subject, batches: Batches) -> tuple[Metric, ...]:  # noqa: ARG002
        """Return five shares from 0 to 1, and `float_operators`; `()` for a float file."""
        if not candidate.operators:
            return ()
        computing = [o for o in candidate.operators if o.operator.startswith(COMPUTING)]
        everything = share("coverage_all_macs", list(candidate.operators), lambda o: o.macs + o.activation_macs)
        note = note_of(candidate.operators, *everything)
        floats = sum(not o.int8 for o in candidate.operators)
        covered = share("coverage_macs", [o for o in computing if not o.by_choice], lambda o: o.macs)
        if not covered and any(o.by_choice and o.macs for o in computing):
            covered = (Metric(name="coverage_macs", value=1.0, unit="fraction", direction="higher"),)
        return (
            *(one.model_copy(update={"note": note}) for one in covered),
            *share("int8_macs", computing, lambda o: o.macs),
            *everything,
            *share("coverage_linear_macs", [o for o in computing if o.operator == "linear"], lambda o: o.macs),
            *share("coverage_weight_bytes", list(candidate.operators), lambda o: o.weight_bytes),
            Metric(name="float_operators", value=floats, unit="count", direction="lower"),
        )


def share(
    name: str, operators: list[OperatorCoverage], amount: Callable[[OperatorCoverage], int]
) -> tuple[Metric, ...]:
    """Return the int8 share of `amount`, or `()` if the total is zero."""
    total = sum(amount(o) for o in operators)
    if not total:
        return ()
    int8 = sum(amount(o) for o in operators if o.int8)
    return (Metric(name=name, value=int8 / total, unit="fraction", direction="higher"),)


def note_of(operators: Sequence[OperatorCoverage], everything: Metric | None = None) -> str:
    """Tell the share of all products, if products between activations run in float; else empty."""
    floats = [o for o in operators if o.activation_macs and not o.int8]
    if everything is None or not floats:
        return ""
    kinds = ", ".join(dict.fromkeys(o.operator for o in floats))
    return f"of all products, with those between activations ({kinds}), int8 kernels compute {everything.value:.1%}"
