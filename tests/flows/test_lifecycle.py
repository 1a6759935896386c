"""Plug-ins that watch runs hear of stages with their files and of the end, and one that raises stops nothing."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kdq_core.errors import StageError
from kdq_core.plan.view import FinishedRun
from kdq_core.plugins.catalog import Catalog
from kdq_core.recipe.spec import Recipe, Site
from kdq_flows.facts.result import RunResult
from kdq_flows.observer import Silent
from kdq_flows.run import pipeline
from kdq_flows.run.lifecycle import Lifecycle
from kdq_flows.run.node import Heard
from kdq_flows.run.pipeline import Pipeline


class Watching(Silent):
    """A catalog of one plug-in that raises, and an observer."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self.said: list[str] = []

    def each(self, hook: str, **facts: Any) -> Any:
        self.heard.append((hook, facts))
        yield "guest", [], f"plug-in 'guest' failed in {hook}: OSError: disk"

    def message(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def watching() -> Watching:
    return Watching()


@pytest.fixture
def lifecycle(watching: Watching) -> Lifecycle:
    return Lifecycle(cast(Catalog, watching), watching, "digits")


def test_a_plugin_hears_of_the_files_of_a_stage_and_one_that_raises_is_reported(
    lifecycle: Lifecycle, watching: Watching
) -> None:
    entry: Any = SimpleNamespace(
        manifest=SimpleNamespace(key="k", files=[SimpleNamespace(path="int8.onnx")]),
        digest="d",
        file="/store/{}".format,
    )
    lifecycle.stage_finished("export", entry, 2.0)
    facts = {"recipe": "digits", "stage": "export", "key": "k", "digest": "d", "seconds": 2.0}
    assert watching.heard == [("kdq_stage_finished", facts | {"files": {"int8.onnx": "/store/int8.onnx"}})]
    assert watching.said == ["plug-in 'guest' failed in kdq_stage_finished: OSError: disk; the run goes on without it"]


def test_a_plugin_hears_of_the_end_of_a_run_that_failed(
    site: Site, watching: Watching, lifecycle: Lifecycle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_executor: object, _request: object, heard: Heard) -> None:
        heard({"event": "begun", "at": 0.0})
        raise StageError("no data")

    monkeypatch.setattr(pipeline, "answer_of", fail)
    run = Pipeline(Recipe.model_validate({"name": "digits", "workload": "digits"}), site, tracked=False)
    run._lifecycle, run._ears = lifecycle, replace(run._ears, lifecycle=lifecycle)
    run.run_inline()
    run.finish()
    assert [hook for hook, _ in watching.heard] == ["kdq_stage_started", "kdq_stage_failed", "kdq_run_finished"]
    told: FinishedRun = watching.heard[-1][1]["run"]
    assert (told.name, told.recipe, told.status, told.error) == (run.name, "digits", "failed", "no data")
    assert told.view.plan is run.plan


def test_facts_that_cannot_be_gathered_cost_a_message(lifecycle: Lifecycle, watching: Watching) -> None:
    def broken() -> RunResult:
        raise OSError("disk")

    lifecycle.finished(broken, cast(Any, None))
    assert watching.heard == []
    assert watching.said == ["plug-ins that watch runs do not hear of the end of this one: disk"]
