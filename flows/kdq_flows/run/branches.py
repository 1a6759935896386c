"""The branches of a study as the user sees them: messages with the name of the branch, and the facts of all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kdq_core.plan.study import PlannedBranch
from kdq_flows.facts.result import RunResult
from kdq_flows.facts.study import BranchFacts
from kdq_flows.observer import Observer, Silent

if TYPE_CHECKING:
    from kdq_core.errors import KdqError
    from kdq_flows.facts.parts import StageFacts
    from kdq_flows.facts.study import SelectedFacts
    from kdq_flows.run.pipeline import Pipeline


class SoFar(Protocol):
    """A study so far; see `kdq_flows.run.study.StudyRun`."""

    name: str
    pipelines: dict[str, Pipeline]
    planned: list[PlannedBranch]
    stages: dict[str, StageFacts]
    refused: dict[str, BranchFacts]
    selected: SelectedFacts | None
    links: dict[str, str]

    @property
    def seconds(self) -> float:
        """Wall-clock time so far."""

    @property
    def error(self) -> KdqError | None:
        """Which branches failed."""

    @property
    def page(self) -> Path:
        """The page of the study."""


OF_BRANCH = frozenset(BranchFacts.model_fields) - {"branch", "axes", "run"}
OF_STUDY = frozenset({"run", "status", "seconds", "stages", "error", "links", "report", "branches", "selected"})


def facts_of(run: SoFar) -> RunResult:
    """The facts of a study so far; what is about one model comes from the selected branch."""
    branches = (*(_facts(planned, run.pipelines[planned.name]) for planned in run.planned), *run.refused.values())
    best = None if run.selected is None else run.selected.branch
    base = {} if best is None else dict(run.pipelines[best].facts())
    stages, error = tuple(run.stages.values()), run.error
    quiet = bool(stages) and all(stage.state == "cached" for stage in stages)
    return RunResult(
        **({"models": {}} | {name: value for name, value in base.items() if name not in OF_STUDY}),
        run=run.name,
        status="failed" if error else "no-news" if quiet else "completed",
        seconds=run.seconds,
        stages=stages,
        error=str(error) if error else None,
        links=run.links,
        report=str(run.page),
        branches=branches,
        selected=run.selected,
    )


def _facts(planned: PlannedBranch, pipeline: Pipeline) -> BranchFacts:
    if not pipeline.complete and not pipeline.errors:
        return BranchFacts(branch=planned.name, axes=planned.axes, status="skipped")
    facts = {name: value for name, value in dict(pipeline.facts()).items() if name in OF_BRANCH}
    return BranchFacts(branch=planned.name, axes=planned.axes, run=pipeline.name, **facts)


class BranchObserver(Silent):
    """Tells an observer of the stages of one branch; a message that another branch told already is dropped."""

    def __init__(self, observer: Observer, title: Callable[[str], str], said: set[str]) -> None:
        """Tell `observer`, with the name that `title` gives to a stage; `said` holds the messages so far."""
        self._observer, self._title, self._said = observer, title, said

    def stage_started(self, stage: str) -> None:
        """Tell it."""
        self._observer.stage_started(self._title(stage))

    def progress(self, event: dict[str, Any]) -> None:
        """Tell it."""
        named = {"stage": self._title(event["stage"])} if "stage" in event else {}
        self._observer.progress(event | named)

    def stage_ended(self, stage: str, state: str, seconds: float) -> None:
        """Tell it."""
        self._observer.stage_ended(self._title(stage), state, seconds)

    def message(self, text: str) -> None:
        """Tell it once."""
        if text not in self._said:
            self._said.add(text)
            self._observer.message(text)
