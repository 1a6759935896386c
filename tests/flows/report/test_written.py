"""A run writes its record and its page at its end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from kdq_core.errors import StageError
from kdq_core.recipe.spec import Recipe, Site, Use
from kdq_flows.observer import Silent
from kdq_flows.report import kept
from kdq_flows.run.pipeline import Pipeline


class Heard(Silent):
    """Keeps messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.fixture
def failed(tmp_path: Path) -> tuple[Pipeline, Heard]:
    """A run whose first stage failed."""
    heard = Heard()
    pipeline = Pipeline(Recipe(name="x", workload=Use(use="digits")), Site(home=tmp_path / "home"), heard, "x-1")
    pipeline._ended(pipeline.plan.nodes[0], "0" * 64, "failed", time.monotonic())
    pipeline.errors["train_teacher"] = StageError("the loss is NaN; lower the learning rate")
    heard.messages.clear()
    return pipeline, heard


def test_a_failed_run_has_a_page_with_its_error(failed: tuple[Pipeline, Heard]) -> None:
    pipeline, heard = failed
    pipeline.write_page()
    html = (kept.folder(pipeline.plan.site, "x-1") / kept.PAGE).read_text()
    assert '<p class="verdict">failed: the loss is NaN; lower the learning rate</p>' in html
    assert pipeline.facts().report == str(kept.folder(pipeline.plan.site, "x-1") / kept.PAGE)
    record = kept.find(pipeline.plan.site, "x-1")
    assert (record.result.status, record.recipe) == ("failed", "name: x\nworkload: {use: digits}\n")
    assert heard.messages == []
    pipeline.finish()


def test_a_page_that_cannot_be_made_is_told_and_costs_no_run(
    failed: tuple[Pipeline, Heard], monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(*_words: Any) -> str:
        raise ValueError("odd")

    pipeline, heard = failed
    monkeypatch.setattr("kdq_flows.report.page.page", raises)
    pipeline.write_page()
    assert heard.messages == ["the report could not be written: odd; 'kdq report x-1' tries again"]
    assert pipeline.facts().report is None
    assert kept.find(pipeline.plan.site, "x-1").result.run == "x-1"  # `kdq report` has what it needs
    assert "ValueError: odd" in (pipeline.logs / "report.log").read_text()
    pipeline.finish()


def test_a_run_that_reached_no_stage_writes_nothing(tmp_path: Path) -> None:
    pipeline = Pipeline(Recipe(name="x", workload=Use(use="digits")), Site(home=tmp_path / "home"))
    pipeline.write_page()
    assert not (tmp_path / "home" / "runs").exists()
    pipeline.finish()
