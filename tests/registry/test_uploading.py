"""Events go from the spool to MLflow once only, with their own times, whatever happens on the way."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdq_core.errors import TransientError
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.records import EpochRecord, Metric
from kdq_registry import spool
from kdq_registry.environment import client
from kdq_registry.spool import Spool
from kdq_registry.tracking import Tracker
from kdq_registry.uploading import Upload, upload_left
from tests.registry.tracked import run_id

BEGAN = 1_700_000_000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time of the events, in seconds after `BEGAN`."""

    def set_to(seconds: float) -> None:
        monkeypatch.setattr(spool.time, "time", lambda: BEGAN + seconds)

    set_to(0)
    return set_to


@pytest.fixture
def tracker(site: Site, recipe: Recipe, clock: Callable[[float], None]) -> Tracker:
    return Tracker.begin(site, recipe, owner="dead", plan_tags={}, name="digits-1", data="f" * 64)


@pytest.fixture
def stage(tracker: Tracker, clock: Callable[[float], None]) -> str:
    """A stage of 28 seconds with three epochs; one loss comes twice, and one is no number."""
    clock(2)
    stage = tracker.stage_run("distill", "c" * 64, {"use": "logit-kd"})
    for epoch, loss in ((1, 0.5), (2, 0.5), (3, float("nan"))):
        clock(2 + 9 * epoch)
        tracker.log_epochs(stage, [EpochRecord(epoch=epoch, values={"train/loss": loss})])
    clock(30)
    tracker.finish(stage, "FINISHED")
    return stage


def milliseconds(seconds: float) -> int:
    return int((BEGAN + seconds) * 1000)


def curve(site: Site, run: str) -> list[tuple[int, int]]:
    return [(point.step, point.timestamp) for point in client(site).get_metric_history(run, "train/loss")]


def all_runs(site: Site, view: int = 1) -> list[Any]:
    mlflow = client(site)
    return list(mlflow.search_runs([mlflow.get_experiment_by_name("digits").experiment_id], run_view_type=view))


def test_runs_and_points_have_the_times_at_which_they_happened(
    site: Site, tracker: Tracker, stage: str, clock: Callable[[float], None]
) -> None:
    clock(31)
    tracker.log_metrics(tracker.run, "int8", [Metric(name="top1", value=0.9, unit="", direction="higher")])
    tracker.end("FINISHED")
    clock(5000)
    runs = [client(site).get_run(run_id(site, tracker, run)) for run in ("", stage)]
    times = [(run.info.start_time, run.info.end_time) for run in runs]
    assert times == [(milliseconds(0), milliseconds(31)), (milliseconds(2), milliseconds(30))]
    assert curve(site, runs[1].info.run_id) == [(1, milliseconds(11)), (2, milliseconds(20)), (3, milliseconds(29))]
    (point,) = client(site).get_metric_history(runs[0].info.run_id, "int8/top1")
    assert point.timestamp == milliseconds(31)


class KilledError(BaseException):
    """Stands for SIGKILL."""


def test_a_kill_between_upload_and_mark_doubles_nothing(
    site: Site, tracker: Tracker, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.entities import ViewType

    tracker.log_papers("# report", "lock")
    tracker.end("FINISHED")
    kills, mark = 0, Spool.mark

    def killed(self: Spool, sent: int) -> None:
        nonlocal kills
        kills += 1
        if kills % 2 == 0:  # the second try of each event gets as far as the mark
            mark(self, sent)
        raise KilledError

    monkeypatch.setattr(Spool, "mark", killed)
    while tracker.spool.waiting():
        with pytest.raises(KilledError):
            Upload(site, tracker.spool).send(pytest.fail)
    assert kills == 2 * (sum(1 for _ in tracker.spool.events()) - 2)  # three epochs are one upload
    assert sorted(run.info.run_name for run in all_runs(site, ViewType.ALL)) == ["digits-1", "distill"]
    assert [step for step, _ in curve(site, run_id(site, tracker, stage))] == [1, 2, 3]
    assert {run.info.status for run in all_runs(site)} == {"FINISHED"}
    assert len(client(site).get_run(run_id(site, tracker)).inputs.dataset_inputs) == 1


def test_an_answer_that_was_lost_on_its_way_leaves_one_run(
    site: Site, tracker: Tracker, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's client repeats a call to a proxy that gave up, though the server has done it."""
    from mlflow import MlflowClient

    create = MlflowClient.create_run

    def twice(*words: Any, **named: Any) -> Any:
        create(*words, **named)
        return create(*words, **named)

    monkeypatch.setattr(MlflowClient, "create_run", twice)
    run_id(site, tracker)
    assert sorted(run.info.run_name for run in all_runs(site)) == ["digits-1", "distill"]
    assert len(curve(site, run_id(site, tracker, stage))) == 3


def test_events_wait_for_a_server_that_is_away_and_are_uploaded_once(
    site: Site, tracker: Tracker, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import requests
    from mlflow import MlflowClient

    log, calls = MlflowClient.log_batch, 0

    def away(*words: Any, **named: Any) -> None:
        nonlocal calls
        calls += 1
        if 3 <= calls < 6:
            raise requests.ConnectionError("away")
        log(*words, **named)
        if calls == 6:
            raise requests.ConnectionError("the answer was lost")

    monkeypatch.setattr(MlflowClient, "log_batch", away)
    upload, failed = Upload(site, tracker.spool), 0
    while tracker.spool.waiting():
        try:
            upload.send(pytest.fail)
        except TransientError:
            failed += 1
    assert failed == 4
    assert [step for step, _ in curve(site, run_id(site, tracker, stage))] == [1, 2, 3]


def test_epochs_that_waited_take_one_call_and_keep_their_times(
    site: Site, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    calls: list[int] = []
    log = MlflowClient.log_batch

    def counted(self: MlflowClient, run: str, metrics: Any = (), *rest: Any, **named: Any) -> None:
        calls.append(len(metrics))
        log(self, run, metrics, *rest, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    Upload(site, tracker.spool).send(pytest.fail)
    calls.clear()
    for epoch in range(1, 2003):
        tracker.log_epochs(tracker.run, [EpochRecord(epoch=epoch, values={"train/loss": 1.0})], at=epoch)
    Upload(site, tracker.spool).send(pytest.fail)
    assert calls == [1000, 1000, 2]
    points = client(site).get_metric_history(run_id(site, tracker), "train/loss")
    assert sorted((one.step, one.timestamp) for one in points) == [(n, 1000 * n) for n in range(1, 2003)]


def test_an_event_that_mlflow_does_not_take_is_told_and_stops_no_other(site: Site, tracker: Tracker) -> None:
    tracker.log_epochs(tracker.run, [EpochRecord(epoch=1, values={"n" * 300: 1.0})])
    tracker.log_epochs(tracker.run, [EpochRecord(epoch=1, values={"train/loss": 1.0})])
    refused: list[str] = []
    Upload(site, tracker.spool).send(refused.append)
    (text,) = refused
    assert text.startswith(f"MLflow at {site.mlflow_uri!r} refused: ")
    assert len(curve(site, run_id(site, tracker))) == 1


def test_a_run_that_somebody_deleted_takes_no_more_and_stops_nothing(site: Site, tracker: Tracker) -> None:
    client(site).delete_run(run_id(site, tracker))
    tracker.end("FINISHED")
    refused: list[str] = []
    Upload(site, tracker.spool).send(refused.append)
    assert (len(refused), tracker.spool.waiting()) == (1, 0)
    assert all_runs(site) == []


def test_the_next_command_uploads_what_a_killed_run_left_and_closes_it(
    site: Site, tracker: Tracker, stage: str, clock: Callable[[float], None]
) -> None:
    left = tracker.stage_run("quantize", "d" * 64, {})
    with tracker.spool.file.open("ab") as file:
        file.write(b'{"at": 17, "do": "lo')  # the kill came in the middle of a line
    (tracker.spool.folder.parent / "half").mkdir()
    (tracker.spool.folder.parent / "half" / "events.jsonl").write_bytes(b"\0\0\n\0")  # a disk that lost its power
    clock(9999)
    number = tracker.spool.waiting()
    assert upload_left(site, lambda _owner: True) == []
    assert upload_left(site, lambda owner: owner != "dead") == [
        f"{number} events of run 'digits-1' that had waited are in MLflow now"
    ]
    ends = {run.info.run_name: (run.info.status, run.info.end_time) for run in all_runs(site)}
    assert ends == {
        "digits-1": ("KILLED", milliseconds(30)), "distill": ("FINISHED", milliseconds(30)),
        "quantize": ("KILLED", milliseconds(30)),
    }  # fmt: skip
    assert left
    assert not tracker.spool.folder.exists()
    assert upload_left(site, lambda _owner: False) == []


def test_what_a_finished_run_left_is_uploaded_while_its_process_lives(site: Site, tracker: Tracker, stage: str) -> None:
    tracker.end("FINISHED")
    assert len(upload_left(site, lambda _owner: True)) == 1
    assert {run.info.status for run in all_runs(site)} == {"FINISHED"}


def test_what_is_left_stays_while_the_server_is_away_and_where_it_is_another(tmp_path: Path, recipe: Recipe) -> None:
    site = Site(home=tmp_path / "home", tracking_uri="http://127.0.0.1:9")
    tracker = Tracker.begin(site, recipe, owner="dead", plan_tags={}, name="digits-1")
    (line,) = upload_left(site, lambda _owner: False)
    told = "3 events of run 'digits-1' still wait for MLflow: the tracking server at 'http://127.0.0.1:9' does not "
    assert line.startswith(f"{told}answer (")
    assert upload_left(site.model_copy(update={"tracking_uri": "http://127.0.0.1:10"}), lambda _owner: False) == []
    assert tracker.spool.waiting() == 4  # the end has come in between


def test_a_spool_holds_no_password(tmp_path: Path, recipe: Recipe) -> None:
    site = Site(home=tmp_path / "home", tracking_uri="http://me:secret@127.0.0.1:9")
    tracker = Tracker.begin(site, recipe, owner="me", plan_tags={})
    assert "secret" not in tracker.spool.file.read_text()
    assert json.loads(tracker.spool.file.read_text().splitlines()[0])["place"] == "http://me:***@127.0.0.1:9"
