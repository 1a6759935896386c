"""A layer that a recipe leaves in float: the gate names it, before the first fit and at the end."""

import pytest

from kdq_core.errors import StageError
from kdq_core.plan.gates import check_required
from kdq_core.recipe.spec import Recipe
from kdq_core.store.records import Artifact, EvaluationReport

FIT = {"epochs": 1, "batch_size": 48}


def test_a_required_gate_names_the_layer_that_a_rule_skips_whatever_a_later_rule_says_of_its_bits(
    stages_of, tiny, tmp_path
):
    rules = [{"match": "head", "skip": True}, {"match": "linear", "weights": 6}]
    gate = {"metric": "coverage_macs", "at_least": 1.0, "required": True}
    run = stages_of(
        tmp_path, tiny, trial=True, workload={"use": "digits"}, teacher={"fit": FIT}, distill={"fit": FIT},
        quantize={"use": "minmax-qat", "fit": FIT, "rules": rules}, evaluate=[{"use": "coverage"}], gates=[gate],
    )  # fmt: skip
    run.recipe = Recipe.model_validate(run.recipe.model_dump(mode="json"))  # as a worker gets it
    with pytest.raises(StageError) as early:
        run.stage("train_teacher")
    run.checked = True
    for stage in ("train_teacher", "cache_teacher", "distill", "quantize", "export", "evaluate"):
        run.stage(stage)
    artifact, report = run.entries["export"].record, run.entries["evaluate"].record
    assert isinstance(artifact, Artifact)
    assert isinstance(report, EvaluationReport)
    assert [(row.path, row.operator, row.int8) for row in artifact.operators] == [
        ("conv", "conv", True), ("head", "linear", False),
    ]  # fmt: skip
    assert report.value("int8", "coverage_macs") == pytest.approx(256 / (256 + 48))
    with pytest.raises(StageError) as caught:
        check_required(run.recipe.gates, report, artifact.operators)
    assert str(caught.value) == (
        "required gates are not met: int8 coverage_macs ≥ 1: 0.842105, bound 1; in float: head (left in float by a "
        "rule of the recipe); nothing was registered. Mend the model or the recipe, or drop 'required' from the gate"
    )
    assert str(early.value) == str(caught.value)
