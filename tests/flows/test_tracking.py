"""A thread sends a run to MLflow; here the tracker only keeps a list of the calls."""

import time
from concurrent.futures import Future
from typing import Any, cast

import pytest

from kdq_flows.facts.tracking import RunTracking

PLAN = cast(Any, None)


class Noting:
    """A tracker that is slow."""

    run_id = "run"

    def __init__(self) -> None:
        self.times: list[float] = []
        self.papers: tuple[str, str | None] | None = None
        self.status = ""

    def log_epochs(self, run_id: str, records: list[Any], at: float) -> None:
        time.sleep(0.05)
        self.times.append(at)

    def log_papers(self, report: str, lock: str | None) -> None:
        self.papers = report, lock

    def end(self, status: str) -> None:
        self.status = status

    def page(self, server: str) -> str:
        return f"{server}/#/run"


def tracked(tracker: Noting) -> RunTracking:
    tracking = RunTracking(PLAN, "digits-1", {})
    tracking._tracker = cast(Any, tracker)
    return tracking


def test_points_of_a_curve_have_the_times_of_their_epochs_however_late_they_are_sent() -> None:
    tracker, run = Noting(), cast("Future[str]", Future())
    tracking, told = tracked(tracker), []
    for epoch in (1, 2, 3):
        told.append(time.time())
        tracking.epoch(run, {"epoch": epoch, "values": {"train/loss": 0.5}})
    run.set_result("stage")
    tracking.wait()
    assert tracker.times == pytest.approx(told, abs=0.02)
    tracking.end(lambda: "# report", "lock", failed=False)
    assert (tracker.papers, tracker.status) == (("# report", "lock"), "FINISHED")


def test_a_run_knows_its_page_only_if_it_was_tracked() -> None:
    assert tracked(Noting()).page("http://mlflow:5000") == "http://mlflow:5000/#/run"
    assert RunTracking(PLAN, "digits-1", {}).page("http://mlflow:5000") is None


def test_tracking_that_is_off_calls_nothing() -> None:
    tracking = RunTracking(PLAN, "digits-1", {}, on=False)
    tracking.epoch(cast("Future[str]", Future()), {"epoch": 1, "values": {}})  # would wait for ever
    assert tracking.wait() is None
    tracking.end(lambda: pytest.fail("there is no run to report"), None, failed=False)
