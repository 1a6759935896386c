"""Sends a run to MLflow from a separate thread, so that importing and calling MLflow delays no stage.

The tracking run starts with the first stage that is not cached. A run with "no news" costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from kdq_core.plan.plan import Node, Plan
from kdq_core.store.records import Checkpoint, EpochRecord, EvaluationReport
from kdq_flows.owner import owner_tag

if TYPE_CHECKING:
    from kdq_registry.tracking import Tracker


class RunTracking:
    """One tracking run for the pipeline, and a nested one for each stage that is not cached; thread-safe.

    The thread makes the calls in order. If one fails, the next `check` or `wait` raises its error.
    """

    def __init__(self, plan: Plan, name: str, tags: Mapping[str, str]) -> None:
        self._plan = plan
        self._tags = tags
        self._name = name
        self._calls = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kdq-tracking")
        self._pending: list[Future[Any]] = []
        self._tracker: Tracker | None = None

    def stage_started(self, node: Node, key: str) -> Future[str]:
        """Open the stage's nested run; the future gives its id."""
        asked: dict[str, Any] = {name: node.parts[name] for name in ("recipe", "options") if name in node.parts}
        return self._later(lambda: self._begun().stage_run(node.name, key, asked))

    def epoch(self, run: Future[str], record: dict[str, Any]) -> None:
        """Add one point to the stage's curves."""
        point = EpochRecord.model_validate(record)
        self._later(lambda: self._begun().log_epochs(run.result(), [point]))

    def report(self, run: Future[str], report: EvaluationReport) -> None:
        """Log every metric of the evaluation, in the stage's run and in the pipeline's."""

        def log() -> None:
            for run_id in (run.result(), self._begun().run_id):
                for role, metrics in report.models.items():
                    self._begun().log_metrics(run_id, role, metrics)

        self._later(log)

    def checkpoint(self, run: Future[str], student: Checkpoint) -> None:
        """Log the gains from the teacher and the compared layers in the stage's run."""
        if student.gains:
            self._later(lambda: self._begun().log_gains(run.result(), student.gains))
        met = {name: ", ".join(" ~ ".join(pair) for pair in pairs) for name, pairs in student.compared.items()}
        found = {"compared": met, "transferred": ", ".join(student.transferred)}
        if met or student.transferred:
            self._later(lambda: self._begun().log_params(run.result(), {k: v for k, v in found.items() if v}))

    def page(self, html: str) -> None:
        """Add the page of the run to the pipeline's run, if one was opened."""
        if self._tracker or self._pending:
            self._later(lambda: self._begun().log_page(html))

    def stage_ended(self, run: Future[str], *, failed: bool) -> None:
        """Close the stage's nested run."""
        self._later(lambda: self._begun().finish(run.result(), "FAILED" if failed else "FINISHED"))

    def check(self) -> None:
        """Raise the error of a call that has already failed, so that KDQ notices a dead server early."""
        for call in self._pending:
            if call.done():
                call.result()

    def wait(self) -> str | None:
        """Wait for all calls so far; gives MLflow's id of the pipeline's run, or `None` if no stage has run.

        Raises:
            KdqError: a call to MLflow failed.
        """
        pending, self._pending = self._pending, []
        for call in pending:
            call.result()
        return self._tracker.run_id if self._tracker else None

    def end(self, *, failed: bool) -> None:
        """Close the pipeline's run, if one was opened, and end the thread."""
        if self._tracker or self._pending:
            self._later(lambda: self._begun().end("FAILED" if failed else "FINISHED")).exception()
        self._calls.shutdown()

    def _later(self, call: Callable[[], Any]) -> Future[Any]:
        future = self._calls.submit(call)
        self._pending.append(future)
        return future

    def _begun(self) -> Tracker:
        """The tracker, opened at the first call; only the thread of the calls may call this."""
        if self._tracker is None:
            from kdq_registry.tracking import Tracker

            data = next((str(node.parts["data"]) for node in self._plan.nodes if "data" in node.parts), None)
            tags = ({} if data is None else {"kdq.data": data}) | dict(self._tags)
            self._tracker = Tracker.begin(
                self._plan.site, self._plan.recipe, owner=owner_tag(), plan_tags=tags, name=self._name
            )
        return self._tracker
