"""The evaluator `coverage` on lists of operators."""

from kdq_core.api import OperatorCoverage
from kdq_evaluators.coverage import Coverage


def operator(kind, int8, macs=0, weight_bytes=0, activation_macs=0):
    reason = "" if int8 else "no kernel"
    return OperatorCoverage(
        path="p",
        operator=kind,
        kernel="K",
        int8=int8,
        reason=reason,
        macs=macs,
        weight_bytes=weight_bytes,
        activation_macs=activation_macs,
    )


def measured(subject, *operators):
    candidate = subject("int8", operators=operators)
    return {m.name: m.value for m in Coverage().evaluate(candidate, subject("student"), lambda: ())}


def test_shares_are_of_multiply_accumulates_and_of_weight_bytes(subject):
    found = measured(
        subject,
        operator("conv", True, macs=700, weight_bytes=10),
        operator("linear", False, macs=300, weight_bytes=40),
        operator("add", False),
    )
    shares = {"coverage_macs": 0.7, "coverage_all_macs": 0.7, "coverage_linear_macs": 0.0, "coverage_weight_bytes": 0.2}
    assert found == shares | {"int8_macs": 0.7, "float_operators": 2}


def test_linear_layers_have_a_share_of_their_own(subject):
    linears = operator("linear", True, macs=30), operator("linear", False, macs=10)
    found = measured(subject, operator("conv", False, macs=60), operator("lstm", False, macs=100), *linears)
    assert (found["coverage_macs"], found["coverage_linear_macs"]) == (0.15, 0.75)


def test_only_products_with_weights_count_as_computing(subject):
    found = measured(subject, operator("conv", True, macs=700), operator("attention", False, activation_macs=2100))
    assert (found["coverage_macs"], found["coverage_all_macs"]) == (1.0, 0.25)
    kinds = ("conv_transpose", "rnn", "bilinear", "matmul")
    found = measured(subject, operator("conv", True, macs=600), *(operator(kind, False, macs=50) for kind in kinds))
    assert found["coverage_macs"] == 0.75


def test_there_is_no_share_of_nothing(subject):
    assert measured(subject, operator("add", True)) == {"float_operators": 0}


def test_a_float_file_has_no_coverage(subject):
    assert measured(subject) == {}


def test_products_between_activations_are_told_beside_the_share_of_products_with_weights(subject):
    def note(*operators):
        metrics = Coverage().evaluate(subject("int8", operators=operators), subject("student"), lambda: ())
        return {m.name: m.note for m in metrics}["coverage_macs"]

    linear = operator("linear", True, macs=300)
    products = [operator(kind, False, activation_macs=50) for kind in ("attention", "matmul", "attention")]
    assert note(linear, *products) == (
        "of all products, with those between activations (attention, matmul), int8 kernels compute 66.7%"
    )
    assert note(linear, operator("add", False)) == ""
    assert note(linear, operator("matmul", True, activation_macs=50)) == ""


def test_what_is_float_by_choice_is_no_silent_float(subject):
    chosen = operator("conv", False, macs=300).model_copy(update={"by_choice": True})
    found = measured(subject, chosen, operator("linear", True, macs=100))
    assert (found["coverage_macs"], found["int8_macs"], found["float_operators"]) == (1.0, 0.25, 1)
    found = measured(subject, chosen, operator("linear", False, macs=100))
    assert (found["coverage_macs"], found["int8_macs"]) == (0.0, 0.0)
    assert measured(subject, chosen)["coverage_macs"] == 1.0
