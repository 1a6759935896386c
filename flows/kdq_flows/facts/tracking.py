"""What KDQ tells MLflow about a run: events on disk, which a thread uploads, so that MLflow stops no stage.

The tracking run starts with the first stage that is not cached. A run with "no news" costs nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kdq_core.errors import StageError, TransientError
from kdq_core.plan.plan import Node, Plan
from kdq_core.store.family import Record
from kdq_core.store.records import Checkpoint, ChosenForm, EpochRecord, EvaluationReport
from kdq_flows.facts.uploader import Uploader, left
from kdq_flows.owner import owner_tag

if TYPE_CHECKING:
    from kdq_registry.tracking import Status, Tracker
    from kdq_registry.uploading import Upload


class RunTracking:
    """One tracking run for the pipeline, and a nested one for each stage that is not cached; thread-safe.

    Attributes:
        prefect: address of the flow run's page in Prefect, if there is one; set it before the first stage.
        killed: whether the run was interrupted; what did not finish then is `KILLED`, not `FAILED`.
    """

    def __init__(self, plan: Plan, name: str, tags: Mapping[str, str], uploader: Uploader | None) -> None:
        """Track the run of a plan; without an uploader, all calls do nothing."""
        self._plan = plan
        self._tags = tags
        self._name = name
        self.prefect: str | None = None
        self.killed = False
        self._uploader = uploader
        self._lock = threading.Lock()
        self._tracker: Tracker | None = None
        self._upload: Upload | None = None

    def stage_started(self, node: Node, key: str, at: float | None = None) -> str:
        """Open the stage's nested run, since `at` (seconds since 1970) or now; gives its id for the other calls."""
        if self._uploader is None:
            return ""
        asked: dict[str, Any] = {name: node.parts[name] for name in ("recipe", "options") if name in node.parts}
        run = self._begun().stage_run(node.name, key, asked, at)
        self._news()
        return run

    def epoch(self, run: str, record: dict[str, Any], at: float | None = None) -> None:
        """Add one point to the stage's curves; the epoch ended at `at` (seconds since 1970) or now."""
        if self._tracker:
            self._tracker.log_epochs(run, [EpochRecord.model_validate(record)], at)
            self._news()

    def gave(self, run: str, record: Record) -> None:
        """Log what the stage gave, if it is a report, a checkpoint or the form of a file."""
        if isinstance(record, EvaluationReport):
            self.report(run, record)
        elif isinstance(record, Checkpoint):
            self.checkpoint(run, record)
        elif isinstance(record, ChosenForm):
            self.placement(run, record)

    def placement(self, run: str, chosen: ChosenForm) -> None:
        """Log the chosen form of the file and its speed-up, in the stage's run and in the pipeline's."""
        if self._tracker:
            for run_id in (run, self._tracker.run):
                self._tracker.log_params(run_id, {"placement": chosen.said()})
            self._news()

    def report(self, run: str, report: EvaluationReport) -> None:
        """Log every metric of the evaluation, in the stage's run and in the pipeline's."""
        if self._tracker:
            for run_id in (run, self._tracker.run):
                for role, metrics in report.models.items():
                    self._tracker.log_metrics(run_id, role, metrics)
            self._news()

    def checkpoint(self, run: str, student: Checkpoint) -> None:
        """Log gains from the teacher and compared layers in the stage's run; a choice also in the pipeline's."""
        if self._tracker is None:
            return
        if student.gains:
            self._tracker.log_gains(run, student.gains)
        if student.choice:
            for run_id in (run, self._tracker.run):
                self._tracker.log_choice(run_id, student.choice)
        met = {name: ", ".join(" ~ ".join(pair) for pair in pairs) for name, pairs in student.compared.items()}
        found = {"compared": met, "transferred": ", ".join(student.transferred)}
        if met or student.transferred:
            self._tracker.log_params(run, {k: v for k, v in found.items() if v})
        self._news()

    def add_page(self, html: str) -> None:
        """Add the page of the run to the pipeline's run, if one was opened."""
        if self._tracker:
            self._tracker.log_page(html)
            self._news()

    def stage_ended(self, run: str, error: BaseException | None = None) -> None:
        """Close the stage's nested run; an interrupt that ended the stage interrupted the whole run."""
        self.killed = self.killed or isinstance(error, KeyboardInterrupt)
        if self._tracker:
            self._tracker.finish(run, self._status(failed=error is not None))
            self._news()

    def check(self) -> None:
        """Raise the error of an MLflow that refuses to open the run at all; an outage is no error.

        Raises:
            KdqError: waiting does not help against it: no rights, a deleted experiment, a full disk.
        """
        if self._uploader and self._upload and self._upload.run_id is None and self._uploader.refusal:
            raise self._uploader.refusal

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the pipeline's run, if MLflow has it by now."""
        return self._upload.run_id if self._upload else None

    def settled(self, say: Callable[[str], None], cancelled: threading.Event) -> str | None:
        """Wait until MLflow has all events so far, and so answers.

        Args:
            say: hears that KDQ waits.
            cancelled: set it to end the waiting.

        Returns:
            MLflow's id of the pipeline's run, or `None` if no stage has run or nothing is tracked.

        Raises:
            StageError: MLflow did not answer for as long as the site says, or refuses.
        """
        if self._uploader is None or self._upload is None:
            return None
        if self._uploader.settle(0):
            bound = self._uploader.site.tracking_wait
            say(f"the registration waits for MLflow, at most {bound:g} s (KDQ_TRACKING_WAIT_SECONDS)")
            if error := self._uploader.settle(bound, cancelled):
                waited = (
                    f" KDQ waited {bound:g} s (KDQ_TRACKING_WAIT_SECONDS)." if isinstance(error, TransientError) else ""
                )
                raise StageError(
                    f"the model is not registered: {error}.{waited} Every finished stage is kept in the store, and "
                    f"{left(self._uploader.site)}. Run the same command again: it "
                    "registers the model and trains nothing"
                ) from error
        return self.run_id

    def page(self, server: str) -> str | None:
        """Address of the pipeline's run on the MLflow server at `server`; `None` if MLflow has no such run."""
        if self._uploader is None or self._upload is None:
            return None
        self._uploader.settle(0)
        return self._upload.page(server)

    def end(self, report: Callable[[], str], lock: str | None, *, failed: bool) -> None:
        """Close the pipeline's run, if one was opened.

        Args:
            report: makes the report in Markdown.
            lock: the lock of the run, if it finished.
            failed: whether it failed.
        """
        if self._tracker:
            self._tracker.log_papers(report(), lock)
            self._tracker.end(self._status(failed=failed))
            self._news()

    def _status(self, *, failed: bool) -> Status:
        return "FINISHED" if not failed else "KILLED" if self.killed else "FAILED"

    def _news(self) -> None:
        if self._uploader and self._upload:
            self._uploader.tell(self._upload)

    def _begun(self) -> Tracker:
        """The tracker, opened at the first call."""
        with self._lock:
            if self._tracker is None:
                from kdq_registry.tracking import Tracker
                from kdq_registry.uploading import Upload

                data = next((str(node.parts["data"]) for node in self._plan.nodes if "data" in node.parts), None)
                tracker = Tracker.begin(
                    self._plan.site, self._plan.recipe, owner=owner_tag(), plan_tags=self._tags, name=self._name,
                    data=data, prefect=self.prefect,
                )  # fmt: skip
                self._upload = Upload(self._plan.site, tracker.spool)
                self._tracker = tracker
            return self._tracker
