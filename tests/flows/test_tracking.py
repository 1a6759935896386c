"""What a run tells MLflow goes to disk; a thread uploads it, and an outage stops no stage."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from kdq_core.errors import KdqError, StageError, TransientError
from kdq_core.recipe.spec import Recipe, Site
from kdq_flows.facts import uploader as module
from kdq_flows.facts.tracking import RunTracking
from kdq_flows.facts.uploader import Uploader
from kdq_flows.run.pipeline import Pipeline
from kdq_flows.seeing.doctor import _check_events
from kdq_registry import uploading
from kdq_registry.spool import Event, Spool

AWAY = "the tracking server at 'http://mlflow:5000' does not answer"


class Server:
    """Stands for MLflow: takes events once each, and raises while it is away."""

    def __init__(self) -> None:
        self.taken: list[Event] = []
        self.error: KdqError | None = None
        self.tries = 0

    def send(self, upload: uploading.Upload, _refused: Callable[[str], None]) -> int:
        self.tries += 1
        for event, end in upload.spool.events(upload.spool.sent):
            if self.error:
                raise self.error
            if event["do"] == "open":
                upload.runs[event["run"]] = f"mlflow's {event['name']}"
            self.taken.append(event)
            upload.spool.mark(end)
        return 0

    def epochs(self) -> list[int]:
        return [step for event in self.taken for _, _, step in event.get("points", ())]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    found = Server()
    monkeypatch.setattr(uploading.Upload, "send", lambda upload, refused: found.send(upload, refused))
    monkeypatch.setattr(module, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.05)
    monkeypatch.setattr(module, "CLOSING_SECONDS", 0.1)
    monkeypatch.setattr(module, "_POLL", 0.01)
    return found


@pytest.fixture
def away(server: Server) -> None:
    """MLflow is away before the run begins: ask for it before `run`."""
    server.error = TransientError(AWAY)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def uploader(site: Site, said: list[str]) -> Iterator[Uploader]:
    site = site.model_copy(update={"tracking_uri": "http://mlflow:5000", "tracking_wait": 0.2})
    found = Uploader(site, said.append)
    yield found
    found.close()


@pytest.fixture
def pipeline(uploader: Uploader) -> Pipeline:
    return Pipeline(Recipe.model_validate({"name": "x", "workload": "digits"}), uploader.site, tracked=False)


@pytest.fixture
def tracking(uploader: Uploader, pipeline: Pipeline) -> RunTracking:
    return RunTracking(pipeline.plan, "x-1", {}, uploader)


@pytest.fixture
def run(tracking: RunTracking, pipeline: Pipeline) -> str:
    return tracking.stage_started(pipeline.plan.nodes[0], "c" * 64)


def epoch(number: int) -> dict[str, Any]:
    return {"epoch": number, "values": {"train/loss": 0.5}}


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_training_goes_on_while_mlflow_is_away_and_each_epoch_is_uploaded_once(
    server: Server, tracking: RunTracking, run: str, site: Site, said: list[str]
) -> None:
    tracking.epoch(run, epoch(1))
    until(lambda: server.epochs() == [1])
    server.error = TransientError(AWAY)
    told = []
    for number in (2, 3, 4):
        told.append(int(time.time() * 1000))
        tracking.epoch(run, epoch(number))
        tracking.check()
    until(lambda: server.tries > 5)
    assert server.epochs() == [1]
    server.error = None
    until(lambda: server.epochs() == [1, 2, 3, 4])
    times = [event["at"] for event in server.taken if "points" in event][1:]
    assert times == pytest.approx(told, abs=200)
    until(lambda: len(said) == 2)
    folder = site.home / "tracking"
    assert said[0] == f"the run continues; its events for MLflow wait in {str(folder)!r}: {AWAY}"
    assert said[1].startswith("MLflow answers again; its events are uploaded, ")
    tracking.end(lambda: "# report", "lock", failed=False)
    until(lambda: not (folder / "x-1").exists())
    assert server.taken[-1]["status"] == "FINISHED"


def test_a_run_ends_without_mlflow_and_says_what_waits_where(
    away: None, uploader: Uploader, tracking: RunTracking, run: str, site: Site, said: list[str]
) -> None:
    tracking.end(lambda: "# report", None, failed=False)
    uploader.close()
    spool = Spool(site.home / "tracking" / "x-1")
    assert said[-1] == (
        f"{spool.waiting()} events for MLflow wait in {str(site.home / 'tracking')!r}; the next `kdq run` of this home "
        f"uploads them, or `kdq reconcile`: {AWAY}"
    )
    assert spool.ended
    with pytest.raises(StageError) as caught:
        _check_events(site)
    assert str(caught.value) == (
        f"{spool.waiting()} events wait for http://mlflow:5000; start MLflow if it is away, then run `kdq reconcile`, "
        "with its KDQ_TRACKING_URI"
    )


def test_a_registration_waits_for_mlflow_and_gets_the_run(
    server: Server, tracking: RunTracking, run: str, said: list[str]
) -> None:
    server.error = TransientError(AWAY)
    until(lambda: server.tries > 1)
    threading.Timer(0.05, lambda: setattr(server, "error", None)).start()
    assert tracking.settled(said.append, threading.Event()) == "mlflow's x-1"
    assert "the registration waits for MLflow, at most 0.2 s (KDQ_TRACKING_WAIT_SECONDS)" in said


def test_a_registration_that_waited_for_nothing_says_what_is_kept_and_what_to_run(
    away: None, tracking: RunTracking, run: str, site: Site
) -> None:
    with pytest.raises(StageError) as caught:
        tracking.settled(lambda _text: None, threading.Event())
    assert not isinstance(caught.value, TransientError)  # KDQ has waited: a retry would wait again
    left = Spool(next((site.home / "tracking").iterdir())).waiting()
    assert left == 6
    assert str(caught.value) == (
        f"the model is not registered: {AWAY}. KDQ waited 0.2 s (KDQ_TRACKING_WAIT_SECONDS). Every finished stage is "
        f"kept in the store, and {left} events for MLflow wait in {str(site.home / 'tracking')!r}; the next `kdq run` "
        "of this home uploads them, or `kdq reconcile`. Run the same command again: it registers the model and trains "
        "nothing"
    )


def test_a_cancelled_registration_waits_no_longer(away: None, tracking: RunTracking, run: str) -> None:
    cancelled = threading.Event()
    cancelled.set()
    assert tracking.settled(lambda _text: None, cancelled) is None


def test_an_mlflow_that_does_not_open_the_run_stops_the_first_stage_but_later_none(
    server: Server, uploader: Uploader, tracking: RunTracking, pipeline: Pipeline
) -> None:
    server.error = StageError("the tracking server does not allow this to 'me'")
    run = tracking.stage_started(pipeline.plan.nodes[0], "c" * 64)
    until(lambda: uploader.refusal)
    with pytest.raises(StageError, match="does not allow this to 'me'"):
        tracking.check()
    server.error = None
    until(lambda: tracking.run_id)
    server.error = StageError("the tracking server asks for credentials")  # they have expired
    tracking.epoch(run, epoch(1))
    until(lambda: uploader.refusal)
    tracking.check()
    server.error = None


def test_a_run_knows_its_page_only_if_it_was_tracked(server: Server, tracking: RunTracking) -> None:
    assert tracking.page("http://mlflow:5000") is None


def test_tracking_that_is_off_writes_nothing(pipeline: Pipeline, site: Site) -> None:
    run = pipeline.tracking.stage_started(pipeline.plan.nodes[0], "c" * 64)
    pipeline.tracking.epoch(run, epoch(1))
    assert pipeline.tracking.settled(cast(Any, None), threading.Event()) is None
    pipeline.tracking.end(lambda: pytest.fail("there is no run to report"), None, failed=False)
    assert not (site.home / "tracking").exists()


def test_an_event_is_on_the_disk_before_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    sizes: list[int] = []
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        sizes.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    spool = Spool(tmp_path / "x-1")
    for number in (1, 2):
        spool.append({"do": "log", "run": "a", "points": [["loss", 0.5, number]]})
        assert spool.file.stat().st_size in sizes
