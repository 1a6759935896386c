"""The quantizer that a run chose, on its way from the record to the user, the JSON and MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.records import Checkpoint, Choice, EpochRecord, EvaluationReport, Metric
from kdq_flows.facts.result import choice_of, notes_of
from kdq_flows.facts.tracking import RunTracking
from kdq_flows.facts.verdict import verdict_of
from kdq_registry.tracking import Tracker

CHOICE = Choice(
    use="static", why="static: it loses 0.1 points", metric="top1", values={"float": 0.9, "static": 0.899},
    samples=1000, tolerance=0.005,
)  # fmt: skip


def quantized() -> Checkpoint:
    return Checkpoint(slot="quantized", weights="w", parameters=1, choice=CHOICE)


def test_verdict_notes_and_json_say_what_was_chosen(view_of: Any) -> None:
    top1 = Metric(name="top1", value=0.9, unit="fraction", direction="higher")
    report = EvaluationReport(models={"int8": (top1,), "student": (top1,)})
    view = view_of(quantize=quantized(), evaluate=report)
    assert verdict_of(view, (), ()) == "int8: +0.0 points top-1 against float; chosen: static: it loses 0.1 points"
    assert notes_of(view) == ("quantizer static: it loses 0.1 points",)
    assert choice_of(view) == CHOICE
    assert choice_of(view_of()) is None


def test_a_teacher_with_nothing_to_teach_is_noted_after_the_run(view_of: Any) -> None:
    history = (EpochRecord(epoch=1, values={"validation/top1": 0.9}),)
    both = {slot: Checkpoint(slot=slot, weights="w", parameters=1, history=history) for slot in ("teacher", "student")}
    (note,) = notes_of(view_of(train_teacher=both["teacher"], distill=both["student"]))
    assert note.startswith("nothing to teach: the teacher has 90.0 % top-1 on the validation split and its student")


def test_mlflow_has_the_choice_as_tags_and_metrics_of_stage_and_pipeline(tmp_path: Path, view_of: Any) -> None:
    recipe = Recipe.model_validate({"name": "x", "workload": "digits"})
    tracker = Tracker.begin(Site(home=tmp_path), recipe, owner="me", plan_tags={})
    run = tracker.stage_run("quantize", "key", {})
    tracking = RunTracking(view_of().plan, "x", {}, None)
    tracking._tracker = tracker
    tracking.checkpoint(run, quantized())
    told = [json.loads(line) for line in tracker.spool.file.read_text(encoding="utf-8").splitlines()]
    events = [one for one in told if "kdq.quantizer" in (one.get("tags") or {})]
    assert [one["run"] for one in events] == [run, tracker.run]
    for event in events:
        assert event["tags"] == {"kdq.quantizer": "static", "kdq.quantizer.why": "static: it loses 0.1 points"}
        assert event["points"] == [["quantizer/float/top1", 0.9, 0], ["quantizer/static/top1", 0.899, 0]]
