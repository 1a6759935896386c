"""The branches of a study as the user sees them: messages with the name of the branch, and the facts of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from kdq_core.plan.study import PlannedBranch
from kdq_flows.facts.study import BranchFacts
from kdq_flows.observer import Observer, Silent

if TYPE_CHECKING:
    from kdq_flows.run.branch import BranchPipeline

OF_BRANCH = frozenset(BranchFacts.model_fields) - {"branch", "axes", "run"}
OF_STUDY = frozenset({"run", "status", "seconds", "stages", "error", "links", "report", "branches", "selected"})


def facts_of(planned: PlannedBranch, pipeline: BranchPipeline) -> BranchFacts:
    """The facts of one branch so far."""
    if not pipeline.complete and not pipeline.errors:
        status: Literal["interrupted", "skipped"] = "interrupted" if pipeline.stopped else "skipped"
        return BranchFacts(branch=planned.name, axes=planned.axes, status=status)
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
