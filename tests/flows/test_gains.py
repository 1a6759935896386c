"""The teacher's gains on their way from a stage's record to the user and to MLflow."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdq_core.recipe.spec import Recipe, Site, Use
from kdq_core.store.records import Checkpoint, Gain
from kdq_flows.cli.run import _closing
from kdq_flows.facts.parts import GainFacts
from kdq_flows.facts.result import line_of
from kdq_flows.run.pipeline import Pipeline

TRY = "; try another 'alpha' or 'temperature', 'taught_by: student' for the quantized student, or no teacher"
SHOWN = Gain(metric="top1", taught=0.9, control=0.888, difference=0.012, low=0.004, high=0.02, samples=900)


def told(**changed: Any) -> str:
    gain = SHOWN.model_copy(update=changed)
    return line_of(GainFacts(stage="distill", verdict=gain.verdict, **gain.model_dump()))


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({}, "distill: with the teacher +1.2 points top-1 (0.4 to 2)"),
        ({"low": 0.00004}, "distill: with the teacher +1.2 points top-1 (0.004 to 2)"),
        ({"low": -0.006}, "distill: no gain of the teacher shown: +1.2 points top-1 (-0.6 to 2)"),
        ({"difference": -0.012, "low": -0.02, "high": -0.004},
         f"distill: WORSE with the teacher: -1.2 points top-1 (-2 to -0.4){TRY}"),
        ({"metric": "loss", "difference": -0.0123, "low": -0.02, "high": -0.004},
         "distill: with the teacher -0.0123 hard loss (-0.02 to -0.004)"),
        ({"metric": "loss"}, f"distill: WORSE with the teacher: +0.012 hard loss (0.004 to 0.02){TRY}"),
        ({"metric": "loss/age", "low": -0.004},
         "distill: no gain of the teacher shown: +0.012 hard loss of 'age' (-0.004 to 0.02)"),
    ],
)  # fmt: skip
def test_a_gain_is_called_one_only_where_its_interval_is_on_the_better_side(changed: dict[str, Any], line: str) -> None:
    assert told(**changed) == line


class Heard:
    """Stands for MLflow: keeps what it is told."""

    def __init__(self) -> None:
        self.gains_of: dict[str, Any] = {}

    def stage_started(self, node: Any, _key: str, _at: float | None) -> str:
        return str(node.name)

    def gave(self, run: str, student: Checkpoint) -> None:
        if student.gains:
            self.gains_of[run] = student.gains

    def __getattr__(self, _name: str) -> Any:
        return lambda *_words, **_named: None


def test_a_stages_gains_reach_the_facts_the_page_and_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = Pipeline(Recipe(name="x", workload=Use(use="digits")), Site(home=tmp_path / "home"))
    heard = Heard()

    def in_worker(node: Any, key: str, parents: dict[str, str], hearing: Any) -> Any:
        hearing.begun()
        gains = (SHOWN,) if node.name == "distill" else ()
        record = Checkpoint(slot="student", weights="w", parameters=1, gains=gains)
        with pipeline.store.draft(key) as draft:
            (draft / "w").write_bytes(node.name.encode())
            return pipeline.store.commit(draft, stage=node.use, key=key, parts={}, record=record)

    monkeypatch.setattr(pipeline, "tracking", heard)
    pipeline._ears = replace(pipeline._ears, tracking=heard)  # type: ignore[arg-type]
    monkeypatch.setattr(pipeline, "_in_worker", in_worker)
    for node in pipeline.plan.nodes[:4]:
        digests = {name: pipeline.entries[name].digest for name in node.parents.values()}
        assert pipeline.run_stage(node.name, digests)[1] is False
    facts = pipeline.facts()
    (found,) = facts.model_dump(mode="json")["gains"]
    assert found == {"stage": "distill", **SHOWN.model_dump(mode="json"), "verdict": "better"}
    assert heard.gains_of == {"distill": (SHOWN,)}
    _closing(facts)
    assert "\ndistill: with the teacher +1.2 points top-1 (0.4 to 2)\n" in capsys.readouterr().out
    again = Pipeline(pipeline.plan.recipe, pipeline.plan.site)
    for node in again.plan.nodes[:4]:
        digests = {name: again.entries[name].digest for name in node.parents.values()}
        assert again.run_stage(node.name, digests)[1] is True
    assert again.facts().gains == facts.gains
    again.finish()
