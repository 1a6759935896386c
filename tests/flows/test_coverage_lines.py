"""What a run says about operators that run in float."""

from __future__ import annotations

from kdq_flows.facts.coverage import OperatorFacts, float_lines


def operator(path: str, kind: str, reason: str = "", macs: float = 0.0) -> OperatorFacts:
    return OperatorFacts(
        path=path, operator=kind, kernel="K", int8=not reason, reason=reason, macs_share=macs, weight_share=0.0
    )


def test_float_operators_are_told_by_kind_and_reason_where_they_matter_the_largest_share_first() -> None:
    found = [
        operator("stem", "conv", macs=0.5),
        *(operator(f"block{n}", "add", "its result goes to float operators only") for n in range(4)),
        operator("head", "linear", "a rule of the recipe", macs=0.5),
        operator("", "gelu", "ONNX Runtime has no int8 kernel for gelu"),
    ]
    assert float_lines(found) == [
        "1 linear at 'head', 50.0% of the MACs: a rule of the recipe",
        "4 add, 1 gelu: each kind under 1% of the MACs and of the weights",
    ]
    assert float_lines(found[:1]) == []
