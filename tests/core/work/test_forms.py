"""The stage `place`: which form of a file is chosen, from scripted times; and what stands on the choice."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdq_core.plan.forecast import forecast
from kdq_core.plan.gates import judge
from kdq_core.plugins.forms import Form
from kdq_core.recipe.spec import DEFAULT_GATES
from kdq_core.store.records import Artifact, ChosenForm, EvaluationReport
from kdq_core.timing.times import Times
from kdq_core.work import forms as forms_module
from kdq_core.work.forms import fastest
from kdq_evaluators.coverage import Coverage

GROUPED = Form(name="grouped convs in float", options={"weight_only": ["a:conv"]}, floats=("a:conv",))
FIRST = Form(name="first conv in float", options={"weight_only": ["b:conv"]}, floats=("b:conv",))
ALL = Form(name="all layers in float", options={"weight_only": ["a:conv", "b:conv"]}, floats=("a:conv", "b:conv"))
TOGETHER = "grouped convs in float, first conv in float"


def times(milliseconds: float, noise: float = 0.01) -> Times:
    """Ten rounds whose medians differ by `noise`, in turns upwards and downwards."""
    rounds = [milliseconds * 1e-3 * (1 + (noise if index % 2 else -noise)) for index in range(10)]
    return Times(tuple(np.full((2, 3), seconds) for seconds in rounds))


@dataclass
class Script:
    """A bench with known times of each form; keeps which forms were measured together."""

    forms_named: tuple[Form, ...]
    known: dict[str, Times]
    batch_size: int = 1
    asked: list[list[str]] = field(default_factory=list)
    longer: list[int] = field(default_factory=list)
    graph: Any = None

    @property
    def target(self) -> Any:
        return type("Named", (), {"forms": lambda _self, _graph, keep_float: self.forms_named})()

    def placed(self, target: Any) -> Any:
        return type("Placed", (), {"keep_float": ()})()

    def timed(self, forms: list[Form], longer: int = 1) -> tuple[Times, dict[str, Times]]:
        self.asked.append([form.name for form in forms])
        self.longer.append(longer)
        return self.known["float"], {form.name: self.known[form.name] for form in forms}


def chosen(named: tuple[Form, ...], **known: Any) -> tuple[ChosenForm, list[list[str]]]:
    script = Script(named, {name: one if isinstance(one, Times) else times(one) for name, one in known.items()})
    return fastest(script, lambda *_: None), script.asked  # type: ignore[arg-type]


def test_a_net_in_which_nothing_is_in_doubt_is_measured_once_and_stays_int8() -> None:
    found, asked = chosen((ALL,), **{"float": 3.0, "int8": 1.0})
    assert (found.form, found.options, found.floats, asked) == ("int8", {}, (), [["int8"]])
    assert found.said() == "all int8, 3x the speed of float (3 to 3) at batch 1; nothing is in doubt"


def test_all_layers_are_float_if_int8_is_slower_and_nothing_else_was_in_doubt() -> None:
    found, asked = chosen((ALL,), **{"float": 1.0, "int8": 1.5, ALL.name: 1.0})
    assert asked == [["int8"], ["int8", ALL.name]]
    assert (found.form, found.floats) == (ALL.name, ALL.floats)
    assert found.said() == (
        "all layers in float: 1x the speed of float (1 to 1) at batch 1, all int8 0.667x the speed of float "
        "(0.667 to 0.667)"
    )


def test_the_family_that_is_slower_in_int8_is_left_in_float() -> None:
    known = {"float": 2.0, "int8": 1.5, GROUPED.name: 1.0, FIRST.name: 1.6, ALL.name: 2.0}
    found, asked = chosen((GROUPED, FIRST, ALL), **known)
    assert (found.form, found.options, len(asked)) == (GROUPED.name, GROUPED.options, 1)
    assert [one.name for one in found.timings] == ["int8", GROUPED.name, FIRST.name]


def test_all_layers_in_float_are_measured_beside_the_families_if_int8_is_not_shown_faster_than_float() -> None:
    known = {"float": 1.0, "int8": 1.5, GROUPED.name: 1.3, FIRST.name: 1.4, TOGETHER: 1.2, ALL.name: 1.0}
    found, asked = chosen((GROUPED, FIRST, ALL), **known)
    names = ["int8", GROUPED.name, FIRST.name]
    assert asked == [names, [*names, ALL.name], [*names, TOGETHER, ALL.name]]
    assert found.form == ALL.name


def test_several_such_families_are_measured_together_too() -> None:
    known = {"float": 2.0, "int8": 1.5, GROUPED.name: 1.2, FIRST.name: 1.3, TOGETHER: 1.0, ALL.name: 2.0}
    found, asked = chosen((GROUPED, FIRST, ALL), **known)
    assert asked[1] == ["int8", GROUPED.name, FIRST.name, TOGETHER]
    assert (found.form, found.options) == (TOGETHER, {"weight_only": ["a:conv", "b:conv"]})
    assert found.floats == ("a:conv", "b:conv")


def test_a_tie_goes_to_int8() -> None:
    noisy = times(0.97, noise=0.2)
    others = {GROUPED.name: noisy, FIRST.name: 1.0, ALL.name: 2.0}
    found, asked = chosen((GROUPED, FIRST, ALL), float=2.0, int8=1.0, **others)
    assert (found.form, len(asked)) == ("int8", 2)  # measured again, longer
    assert found.said().endswith("; no faster: grouped convs in float, first conv in float")


def test_it_says_if_no_form_is_as_fast_as_float() -> None:
    found, _ = chosen((ALL,), **{"float": 1.0, "int8": 1.5, ALL.name: 1.2})
    assert found.form == ALL.name
    assert found.said().endswith("; no form is as fast as float")


@pytest.fixture(scope="module")
def placed_run(stages_of: Any, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run whose int8 conv is said to be four times as slow as in float."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms_module, "measure_times", scripted)
        run = stages_of(
            home, tiny, workload="digits", quantize={"use": "static"}, target="onnxruntime-cpu",
            teacher={"fit": {"epochs": 1}},
            distill={"fit": {"epochs": 1}},
            stages=["train_teacher", "distill", "place", "quantize", "export", "evaluate"],
        )  # fmt: skip
        for stage in ("place", "train_teacher", "distill", "quantize", "export"):
            run.stage(stage)
    return run


def scripted(openers: Any, batches: Any, **_: Any) -> Any:
    """Times by the name of the file: the form with the conv in float is the fastest."""
    for opener in openers:
        opener().run(batches[0])
    names = [opener.args[0].stem for opener in openers]
    known = {"float file": 2.0, "convs of few channels in float": 1.0}
    return (tuple(times(known.get(name, 4.0)) for name in names),)


def test_what_the_stage_chose_is_how_the_student_is_quantized_and_exported(placed_run: Any) -> None:
    record = placed_run.entries["place"].record_as(ChosenForm)
    assert (record.form, record.floats) == ("convs of few channels in float", ("conv:conv",))
    rows = {row.path: row for row in placed_run.entries["export"].record_as(Artifact).operators}
    assert (rows["conv"].int8, rows["conv"].by_choice, rows["conv"].weight_bits) == (False, True, 8)
    assert rows["conv"].reason == "float by choice: int8 measured slower at batch 1"
    assert (rows["head"].int8, rows["head"].by_choice) == (True, False)


def test_float_by_choice_meets_the_gate_on_coverage_and_silent_float_does_not(placed_run: Any) -> None:
    rows = placed_run.entries["export"].record_as(Artifact).operators
    silent = tuple(row.model_copy(update={"by_choice": False}) for row in rows)
    met = []
    for operators in (rows, silent):
        subject: Any = type("Subject", (), {"operators": operators})()
        report = EvaluationReport(models={"int8": Coverage().evaluate(subject, subject, tuple)})
        met += [judge((gate,), report)[0].met for gate in DEFAULT_GATES if gate.metric == "coverage_macs"]
    assert met == [True, False]
    assert 0 < report.value("int8", "int8_macs") < 1  # type: ignore[operator]


def test_the_plan_says_what_was_chosen(placed_run: Any) -> None:
    from kdq_core.store.store import Store

    lines = {line.stage: line for line in forecast(placed_run.plan, Store(placed_run.site.store))}
    assert lines["place"].why == (
        "convs of few channels in float: 2x the speed of float (2 to 2) at batch 1, all int8 0.5x the speed of float "
        "(0.5 to 0.5)"
    )


def test_measured_times_do_not_count_for_the_digest_but_the_choice_does(placed_run: Any) -> None:
    entry = placed_run.entries["place"]

    def digest(**changed: Any) -> str:
        manifest = entry.manifest.model_copy(update={"record": entry.record.model_copy(update=changed)})
        return type(entry)(entry.folder, manifest).digest

    assert digest(timings=entry.record.timings[:1]) == entry.digest
    assert digest(form="int8", options={}, floats=()) != entry.digest


def test_smallest_and_a_quantizer_without_static_ranges_leave_the_stage_out(
    stages_of: Any, tiny: Any, tmp_path: Path
) -> None:
    def names(**recipe: Any) -> list[str]:
        return [node.name for node in stages_of(tmp_path, tiny, workload="digits", **recipe).plan.nodes]

    fastest_one = {"use": "onnxruntime-cpu", "options": {"placement": "fastest"}}
    assert "place" in names(target=fastest_one)
    assert "place" not in names(target={"use": "onnxruntime-cpu", "options": {"placement": "smallest"}})
    assert "place" not in names(target=fastest_one, quantize={"use": "weight-only"})


def test_the_batch_size_is_in_the_key_of_the_choice_alone(stages_of: Any, tiny: Any, tmp_path: Path) -> None:
    def parts(size: int) -> dict[str, Any]:
        target = {"use": "onnxruntime-cpu", "options": {"batch_size": size}}
        return {n.name: n.parts for n in stages_of(tmp_path, tiny, workload="digits", target=target).plan.nodes}

    one, many = parts(1), parts(32)
    assert [name for name in one if one[name] != many[name]] == ["place", "evaluate"]
