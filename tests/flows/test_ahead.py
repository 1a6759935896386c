"""One stage of a run makes the checks; others wait until it has."""

import threading

import pytest

from kdq_core.errors import StageError
from kdq_flows.run.ahead import ChecksAhead
from kdq_flows.run.supervisor import StageCancelledError

SOON = 10.0


def never() -> None:
    """A run that nobody cancels."""


def cancelled() -> None:
    raise StageCancelledError("cancelled")


def begun(ahead: ChecksAhead, *, waits: bool = True) -> tuple[threading.Thread, list[bool]]:
    """A stage in a thread of its own, and whether the checks were done when it began."""
    found: list[bool] = []

    def work() -> None:
        with ahead.turn(lambda _: None, never, waits=waits):
            found.append(ahead.done)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, found


def test_the_second_stage_begins_when_the_first_has_made_the_checks_and_still_runs() -> None:
    ahead, heard = ChecksAhead(), list[str]()
    with ahead.turn(lambda event: heard.append(event["event"]), never, waits=True) as hear:
        thread, found = begun(ahead)
        thread.join(0.3)
        assert not found
        hear({"event": "begun"})
        hear({"event": "checked"})
        thread.join(SOON)
        assert found == [True]
    assert heard == ["begun"]


def test_after_checks_that_failed_the_next_stage_makes_them() -> None:
    ahead = ChecksAhead()

    def refused() -> None:
        with ahead.turn(lambda _: None, never, waits=True):
            started.append(begun(ahead))
            raise StageError("refused")

    started: list[tuple[threading.Thread, list[bool]]] = []
    with pytest.raises(StageError, match="refused"):
        refused()
    ((thread, found),) = started
    thread.join(SOON)
    assert found == [False]


def test_a_stage_whose_checks_are_made_beside_it_does_not_wait_where_events_come_late() -> None:
    ahead = ChecksAhead()
    with ahead.turn(lambda _: None, never, waits=False):
        thread, found = begun(ahead, waits=False)
        thread.join(SOON)
        assert found == [False]
    assert ahead.done


def test_a_cancelled_run_does_not_wait() -> None:
    ahead = ChecksAhead()
    with (
        ahead.turn(lambda _: None, never, waits=True),
        pytest.raises(StageCancelledError),
        ahead.turn(lambda _: None, cancelled, waits=True),
    ):
        pass
