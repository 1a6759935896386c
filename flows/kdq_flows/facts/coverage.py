"""How each operator of the int8 file runs: facts for the result of a run, and lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import Field

from kdq_core.frozen import Frozen
from kdq_core.plan.view import RunView
from kdq_core.store.records import Artifact, OperatorCoverage


class OperatorFacts(Frozen):
    """One operator of the model, in the runtime's own optimised graph."""

    path: str = Field(description="module path in the PyTorch model; empty for the model itself")
    operator: str = Field(description="conv, linear, add, ...")
    kernel: str = Field(description="operator type in the optimised graph")
    int8: bool
    reason: str = Field(description="why it is float; empty for int8")
    by_choice: bool = Field(default=False, description="whether it is float because int8 was measured slower")
    macs_share: float = Field(description="share of the multiply-accumulates of all products, 0 to 1")
    weight_share: float = Field(description="share of the bytes of all weights in the file, 0 to 1")


def coverage_of(view: RunView) -> tuple[OperatorFacts, ...]:
    """The operators of the int8 file; none before it is exported."""
    artifact = view.record("artifact", Artifact)
    return facts_of(() if artifact is None else artifact.operators)


def facts_of(operators: Sequence[OperatorCoverage]) -> tuple[OperatorFacts, ...]:
    """Each operator with its shares of the whole."""
    macs = sum(o.macs + o.activation_macs for o in operators) or 1
    weights = sum(o.weight_bytes for o in operators) or 1
    return tuple(
        OperatorFacts(
            **operator.model_dump(include={"path", "operator", "kernel", "int8", "reason", "by_choice"}),
            macs_share=(operator.macs + operator.activation_macs) / macs,
            weight_share=operator.weight_bytes / weights,
        )
        for operator in operators
    )


MATTERS = 0.01
"""KDQ names a group of float operators if it has at least this share of the work or of the weights."""


def float_lines(operators: Iterable[OperatorFacts], *, every: bool = False) -> list[str]:
    """One line for each kind of operator that runs in float and each reason; most multiply-accumulates first.

    Groups without a share in work and weights that matters are one line at the end, unless `every` is true.
    """
    groups: dict[tuple[str, str], list[OperatorFacts]] = {}
    for operator in operators:
        if not operator.int8:
            groups.setdefault((operator.operator, operator.reason), []).append(operator)
    lines: list[str] = []
    small: dict[str, int] = {}
    for (kind, reason), found in sorted(groups.items(), key=lambda one: -sum(o.macs_share for o in one[1])):
        where = ", ".join(repr(o.path) for o in found[:3] if o.path) + (", ..." if len(found) > 3 else "")
        share = sum(o.macs_share for o in found)
        if not every and max(share, sum(o.weight_share for o in found)) < MATTERS:
            small[kind] = small.get(kind, 0) + len(found)
        else:
            lines.append(f"{len(found)} {kind}{f' at {where}' if where else ''}, {share:.1%} of the MACs: {reason}")
    if small:
        listed = ", ".join(f"{count} {kind}" for kind, count in small.items())
        lines.append(f"{listed}: each kind under {MATTERS:.0%} of the MACs and of the weights")
    return lines
