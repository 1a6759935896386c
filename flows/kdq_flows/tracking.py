"""Tells MLflow of a run. The tracking run begins with the first stage that is not cached, so that "no news" is free."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from kdq_core.plan import Plan, StageNode
from kdq_core.records import EpochRecord, EvaluationReport
from kdq_flows.owner import owner_tag

if TYPE_CHECKING:
    from kdq_registry.tracking import Tracker


class RunTracking:
    """One tracking run for the pipeline, one nested for each stage that really runs; safe in threads."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._tracker: Tracker | None = None

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the pipeline's run, once a stage has run."""
        return self._tracker.run_id if self._tracker else None

    def stage_started(self, node: StageNode, key: str) -> str:
        """Open the stage's nested run; gives its id."""
        return self._begun().stage_run(node.name, key, _options(node.parts.get("recipe")))

    def epoch(self, run_id: str, record: dict[str, Any]) -> None:
        """Add one point to the stage's curves."""
        self._begun().log_epochs(run_id, [EpochRecord.model_validate(record)])

    def report(self, run_id: str, report: EvaluationReport) -> None:
        """Log every metric of the evaluation, with the stage and with the pipeline."""
        tracker = self._begun()
        for target in (run_id, tracker.run_id):
            for role, metrics in report.models.items():
                tracker.log_metrics(target, role, metrics)

    def stage_ended(self, run_id: str, *, failed: bool) -> None:
        """Close the stage's nested run."""
        self._begun().finish(run_id, "FAILED" if failed else "FINISHED")

    def end(self, *, failed: bool) -> None:
        """Close the pipeline's run, if one was begun."""
        if self._tracker:
            self._tracker.end("FAILED" if failed else "FINISHED")

    def _begun(self) -> Tracker:
        with self._lock:
            if self._tracker is None:
                from kdq_registry.tracking import Tracker

                plan = self._plan
                data = str(plan.node("train_teacher").parts["data"])
                self._tracker = Tracker.begin(plan.site, plan.recipe, owner=owner_tag(), plan_tags={"kdq.data": data})
            return self._tracker


def _options(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested options as `a.b: value`."""
    if isinstance(value, dict):
        parts = [_options(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in value.items()]
        return {name: leaf for part in parts for name, leaf in part.items()}
    return {prefix: value}
