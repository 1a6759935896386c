"""`quantize.taught_by: student`: the float student teaches its quantized self."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from kdq_core.errors import RecipeError

FIT = {"epochs": 2, "batch_size": 32, "learning_rate": 0.01}


def ran(stages_of: Any, home: Path, catalog: Any, by: str, **distill: Any) -> Any:
    run = stages_of(
        home,
        catalog,
        workload="digits",
        teacher={"fit": FIT, "cache": {"views": 1}},
        distill={"fit": FIT, **distill},
        quantize={"use": "minmax-qat", "fit": FIT, "taught_by": by},
    )
    for node in run.plan.nodes:
        run.stage(node.name)
        if node.name == "quantize":
            return run
    raise AssertionError(run.plan)


def test_the_quantized_student_learns_from_its_float_self_and_nothing_else_changes(
    stages_of: Any, tiny: Any, tmp_path: Path
) -> None:
    own, others = (ran(stages_of, tmp_path / by, tiny, by, options={"alpha": 1.0}) for by in ("student", "teachers"))
    first = [run.entries["quantize"].record.history[0].values["train/loss"] for run in (own, others)]
    assert 0 < first[0] < first[1] / 3  # it is nearer to itself than to the teacher
    parts = [{node.name: node.parts for node in run.plan.nodes} for run in (own, others)]
    assert [name for name in parts[0] if parts[0][name] != parts[1][name]] == ["quantize"]


def test_a_tap_that_only_the_teacher_has_is_told_before_a_teacher_is_trained(
    stages_of: Any, installed: Any, tiny: Any, tmp_path: Path
) -> None:
    class Other(type(tiny.build("workload", "digits", {}))):  # type: ignore[misc]
        def teacher(self) -> nn.Module:
            return nn.Sequential(super().teacher())

    losses = [{"use": "fitnet", "taps": [["conv", "0.conv"]]}]
    ran(stages_of, tmp_path / "fits", installed(Other), "teachers", losses=losses)
    with pytest.raises(RecipeError) as caught:
        ran(stages_of, tmp_path / "not", installed(Other), "student", losses=losses)
    assert str(caught.value) == (
        "taps of distiller 'fitnet': no module of the teacher (Sequential) matches the tap '0.conv'; nearest: 'conv'"
    )
    assert not any((tmp_path / "not").rglob("*.safetensors"))


def test_its_layers_are_compared_with_its_own(stages_of: Any, tiny: Any, tmp_path: Path) -> None:
    run = ran(stages_of, tmp_path, tiny, "student", losses=["fitnet"])
    compared = dict(run.entries["quantize"].record.compared)["fitnet"]
    assert compared
    assert all(ours == theirs for ours, theirs in compared)
