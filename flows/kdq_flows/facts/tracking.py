"""Sends a run to MLflow from a separate thread, so that importing and calling MLflow delays no stage.

The tracking run starts with the first stage that is not cached. A run with "no news" costs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from kdq_core.plan.plan import Node, Plan
from kdq_core.store.records import Checkpoint, EpochRecord, EvaluationReport
from kdq_flows.owner import owner_tag

if TYPE_CHECKING:
    from kdq_registry.tracking import Status, Tracker


class RunTracking:
    """One tracking run for the pipeline, and a nested one for each stage that is not cached; thread-safe.

    The thread makes the calls in order. If one fails, the next `check` or `wait` raises its error.

    Attributes:
        prefect: address of the flow run's page in Prefect, if there is one; set it before the first stage.
        killed: whether the run was interrupted; what did not finish then is `KILLED`, not `FAILED`.
    """

    def __init__(self, plan: Plan, name: str, tags: Mapping[str, str], *, on: bool = True) -> None:
        """Track the run of a plan; if not `on`, all calls do nothing."""
        self._on = on
        self._plan = plan
        self._tags = tags
        self._name = name
        self.prefect: str | None = None
        self.killed = False
        self._calls = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kdq-tracking")
        self._pending: list[Future[Any]] = []
        self._tracker: Tracker | None = None

    def stage_started(self, node: Node, key: str) -> Future[str]:
        """Open the stage's nested run; the future gives its id."""
        asked: dict[str, Any] = {name: node.parts[name] for name in ("recipe", "options") if name in node.parts}
        return self._later(lambda: self._begun().stage_run(node.name, key, asked))

    def epoch(self, run: Future[str], record: dict[str, Any]) -> None:
        """Add one point to the stage's curves, with the time of this call."""
        point, now = EpochRecord.model_validate(record), time.time()
        self._later(lambda: self._begun().log_epochs(run.result(), [point], now))

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

    def add_page(self, html: str) -> None:
        """Add the page of the run to the pipeline's run, if one was opened."""
        if self._tracker or self._pending:
            self._later(lambda: self._begun().log_page(html))

    def stage_ended(self, run: Future[str], *, failed: bool) -> None:
        """Close the stage's nested run."""
        self._later(lambda: self._begun().finish(run.result(), self._status(failed=failed)))

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

    def page(self, server: str) -> str | None:
        """Address of the pipeline's run on the MLflow server at `server`, or `None` if no stage has run."""
        return self._tracker.page(server) if self.wait() and self._tracker else None

    def end(self, report: Callable[[], str], lock: str | None, *, failed: bool) -> None:
        """Close the pipeline's run, if one was opened, and end the thread.

        Args:
            report: makes the report in Markdown.
            lock: the lock of the run, if it finished.
            failed: whether it failed.
        """
        if self._tracker or self._pending:
            self._later(lambda: self._begun().log_papers(report(), lock)).exception()
            self._later(lambda: self._begun().end(self._status(failed=failed))).exception()
        self._calls.shutdown()

    def _status(self, *, failed: bool) -> Status:
        return "FINISHED" if not failed else "KILLED" if self.killed else "FAILED"

    def _later(self, call: Callable[[], Any]) -> Future[Any]:
        if not self._on:
            nothing: Future[Any] = Future()
            nothing.set_result("")
            return nothing
        future = self._calls.submit(call)
        self._pending.append(future)
        return future

    def _begun(self) -> Tracker:
        """The tracker, opened at the first call; only the thread of the calls may call this."""
        if self._tracker is None:
            from kdq_registry.tracking import Tracker

            data = next((str(node.parts["data"]) for node in self._plan.nodes if "data" in node.parts), None)
            self._tracker = Tracker.begin(
                self._plan.site, self._plan.recipe, owner=owner_tag(), plan_tags=dict(self._tags), name=self._name,
                data=data, prefect=self.prefect,
            )  # fmt: skip
        return self._tracker
