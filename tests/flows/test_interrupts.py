"""An interrupt reaches the stages, and everybody is told of it: the user, Prefect and MLflow."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, cast

import pytest

from kdq_core.errors import ErrorRecord, StageError, TransientError
from kdq_core.recipe.spec import Recipe, Site
from kdq_flows import running
from kdq_flows.run import node, signals
from kdq_flows.run.executors import Here
from kdq_flows.run.leases import lease
from kdq_flows.run.node import Heard
from kdq_flows.run.pipeline import Pipeline
from kdq_flows.run.supervisor import StageCancelledError
from tests.flows.leasing import ALONE, CPU, within

MESSAGE = "interrupted in train_teacher; run the same command to resume"


class Tracker:
    """Keeps how the runs were closed; opens none."""

    run_id = "run"

    def __init__(self) -> None:
        self.closed: dict[str, str] = {}

    def finish(self, run_id: str, status: str) -> None:
        self.closed[run_id] = status

    def end(self, status: str) -> None:
        self.closed[self.run_id] = status

    def stage_run(self, stage: str, *_: object) -> str:
        return stage

    def log_papers(self, *_: object) -> None:
        pass


@pytest.fixture
def tracker() -> Tracker:
    return Tracker()


@pytest.fixture
def run(site: Site, tracker: Tracker) -> Pipeline:
    target = {"use": "onnxruntime-cpu", "options": {"placement": "smallest"}}  # so one stage begins
    made = Pipeline(Recipe.model_validate({"name": "x", "workload": "digits", "target": target}), site)
    made.tracking._tracker = cast(Any, tracker)
    return made


class Acting(Here):
    """Says that a stage begins, and then does in this process what it was given."""

    def __init__(self, site: Site, act: Callable[[threading.Event], None]) -> None:
        super().__init__(site)
        self._act = act

    def submit(self, request: dict[str, Any], heard: Heard) -> Future[dict[str, Any]]:
        heard({"event": "begun", "at": time.time()})
        done = Future[dict[str, Any]]()
        try:
            self._act(self._cancelled)
        except StageError as error:
            cancelled = isinstance(error, StageCancelledError)
            why = ErrorRecord.of(error).model_dump()
            done.set_result({"key": "", "by": "", "state": "failed", "error": why, "cancelled": cancelled})
        return done


def interrupt(_cancelled: threading.Event) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_run_says_where_and_is_killed_in_mlflow(
    run: Pipeline, tracker: Tracker, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.executor = Acting(site, interrupt)
    monkeypatch.setattr(running, "Pipeline", lambda *_, **__: run)
    monkeypatch.setattr(run, "warm_up", lambda: None)
    with pytest.raises(KeyboardInterrupt):
        running.run_recipe(run.plan.recipe, site, server=False)
    facts = run.facts()
    assert (facts.status, facts.error) == ("interrupted", MESSAGE)
    assert [(stage.name, stage.state) for stage in facts.stages] == [("train_teacher", "interrupted")]
    assert tracker.closed == {"train_teacher": "KILLED", "run": "KILLED"}


@pytest.mark.parametrize("held", ["device", "machine"])
def test_a_stage_that_waits_for_a_lease_is_interrupted_too(
    run: Pipeline, site: Site, held: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "run_child", lambda *_, **__: pytest.fail("it has begun"))
    threading.Timer(0.2, run.stop).start()
    with (
        lease(site, CPU if held == "device" else ALONE),
        pytest.raises(StageCancelledError, match="the stage was cancelled before it began"),
    ):
        run.check_ahead()
    with lease(site, ALONE, check=within(0.5)):
        pass  # all is free again


def test_an_interrupt_ends_the_wait_for_the_next_try(run: Pipeline, site: Site) -> None:
    tries: list[int] = []

    def fail(cancelled: threading.Event) -> None:
        tries.append(len(tries))
        if cancelled.is_set():
            raise StageCancelledError("the stage was cancelled before it began")
        threading.Timer(0.1, run.stop).start()  # while KDQ waits for the second try
        raise TransientError("busy")

    run.executor = Acting(site, fail)
    began = time.monotonic()
    with pytest.raises(StageCancelledError):
        run.try_stage("train_teacher", {})
    assert time.monotonic() - began < 1.5  # the wait is 2 s
    assert tries == [0, 1]


def test_the_checks_before_a_run_are_tried_again_when_their_worker_was_killed(
    run: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def killed_once(*_: object) -> None:
        tries.append(len(tries))
        if len(tries) == 1:
            raise TransientError("the stage's worker was killed by SIGKILL")

    monkeypatch.setattr(run, "_work", killed_once)
    monkeypatch.setattr(run.cancelled, "wait", lambda _seconds: False)
    run.check_ahead()
    assert tries == [0, 1]


@pytest.fixture
def busy(run: Pipeline, site: Site) -> Iterator[Pipeline]:
    """A run whose first stage works until it is cancelled."""

    def work(cancelled: threading.Event) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        assert cancelled.wait(30)
        raise StageCancelledError("the stage was cancelled and its worker ended")

    run.executor = Acting(site, work)
    yield run
    run.finish()


@pytest.mark.usefixtures("prefect_site")
def test_a_flow_that_gets_sigterm_is_cancelled_and_its_caller_interrupted(
    busy: Pipeline, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "LEAVE_SECONDS", 60.0)  # the process to leave is that of all tests
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

    from kdq_flows.prefect.flow import run_as_flow

    busy.name = f"interrupted-{time.time_ns()}"
    with pytest.raises(KeyboardInterrupt):
        run_as_flow(busy)
    with get_client(sync_client=True) as client:
        wanted = FlowRunFilter(name=FlowRunFilterName(any_=[busy.name]))
        (flow_run,) = client.read_flow_runs(flow_run_filter=wanted)
    assert flow_run.state is not None
    assert (flow_run.state.type.value, flow_run.state.message) == ("CANCELLED", MESSAGE)
    assert tracker.closed == {"train_teacher": "KILLED"}
