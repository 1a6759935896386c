"""Lines that `kdq serve` prints about scheduled runs: one when a run starts, one when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from kdq_flows.prefect.due import RESUMED

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

_PAGE = 50


class RunLines:
    """Asks Prefect for the runs of a work pool, and reports each start and each end once.

    It reports runs that started, or were resumed, after this object was made. On a server that several hosts share, it
    reports the runs of all hosts.

    Args:
        pool: name of the work pool.
        say: called with each line.
    """

    def __init__(self, pool: str, say: Callable[[str], None]) -> None:
        self._pool, self._say, self._since = pool, say, datetime.now(UTC)
        self._started: set[UUID] = set()
        self._ended: set[UUID] = set()

    def look(self) -> None:
        """Report what is new; does nothing if the server does not answer. Call `apply_environment` first."""
        try:
            runs = self._read()
        except Exception:  # the lines are a courtesy: an error here must not end `kdq serve`
            return
        self.tell(runs)

    def tell(self, runs: Iterable[FlowRun]) -> None:
        """Report the new starts and ends among `runs`, oldest first."""
        for run in sorted(runs, key=lambda run: str(run.start_time)):
            state = run.state
            if run.start_time is None or state is None or state.is_scheduled() or state.is_pending():
                continue
            final = state.is_final()
            if final and state.timestamp < self._since:
                continue  # it was resumed and has ended before this `kdq serve`
            began = run.run_count > 0 or not final  # Prefect gives a start time to a run that it cancels at once, too
            if began and run.id not in self._started:
                self._started.add(run.id)
                self._say(f"run {run.name!r} started")
            if final and run.id not in self._ended:
                self._ended.add(run.id)
                self._say(_end_of(run) if began else f"run {run.name!r} did not start{_reason(run)}")

    def _read(self) -> list[FlowRun]:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
        from prefect.client.schemas.sorting import FlowRunSort

        asked = {"start_time": {"after_": self._since, "is_null_": False}, "tags": {"any_": [RESUMED]}}
        wanted = FlowRunFilter.model_validate({"operator": "or_", **asked})  # a resumed run keeps its time
        pool = WorkPoolFilter.model_validate({"name": {"any_": [self._pool]}})
        with get_client(sync_client=True) as client:
            return client.read_flow_runs(
                flow_run_filter=wanted, work_pool_filter=pool, sort=FlowRunSort.START_TIME_DESC, limit=_PAGE
            )


def _end_of(run: FlowRun) -> str:
    assert run.state is not None
    assert run.start_time is not None
    seconds = ((run.end_time or run.state.timestamp) - run.start_time).total_seconds()
    reason = "" if run.state.is_completed() else _reason(run)
    return f"run {run.name!r} ended as {run.state.name} in {seconds:.1f} s{reason}"


def _reason(run: FlowRun) -> str:
    text = (run.state.message or "" if run.state else "").partition("\n")[0]
    return f": {text}" if text else ""
