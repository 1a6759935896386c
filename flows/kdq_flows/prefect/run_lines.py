"""What `kdq serve` says of scheduled runs: one line when one starts, one when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

_PAGE = 50


class RunLines:
    """Asks Prefect for the runs of a work pool that started since it was made; says each thing once.

    On a server that several hosts share, the runs of all of them are told.

    Args:
        pool: name of the work pool.
        say: told line by line.
    """

    def __init__(self, pool: str, say: Callable[[str], None]) -> None:
        self._pool, self._say, self._since = pool, say, datetime.now(UTC)
        self._started: set[UUID] = set()
        self._ended: set[UUID] = set()

    def look(self) -> None:
        """Say what is new. The environment must be applied; a server that does not answer is asked again next time."""
        try:
            runs = self._read()
        except Exception:  # these lines are a courtesy: no trouble with them may end what they tell of
            return
        self.tell(runs)

    def tell(self, runs: Iterable[FlowRun]) -> None:
        """Say what is new of `runs`, oldest first."""
        for run in sorted(runs, key=lambda run: str(run.start_time)):
            if run.start_time is None:
                continue
            final = run.state is not None and run.state.is_final()
            began = run.run_count > 0 or not final  # one that is cancelled at once has a start time as well
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

        wanted = FlowRunFilter.model_validate({"start_time": {"after_": self._since, "is_null_": False}})
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
