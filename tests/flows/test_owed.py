"""A flow run whose end Prefect did not hear, because its server was away, and hears when it is back."""

import time
from typing import Any
from uuid import UUID, uuid4

import pytest

from kdq_core.errors import StoreError
from kdq_core.reading.studies import Study, load
from kdq_core.recipe.spec import Recipe, Site, Use
from kdq_core.store.records import Checkpoint
from kdq_flows.facts.parts import StageFacts
from kdq_flows.owner import PREFECT_TAG, host
from kdq_flows.prefect.owed import heard, owe, settle
from kdq_flows.prefect.reconcile import reconcile_prefect
from kdq_flows.run.pipeline import Pipeline
from kdq_flows.run.study import StudyRun

STAGES = [
    StageFacts(name="train_teacher", key="a" * 64, state="cached", seconds=0),
    StageFacts(name="distill", key="b" * 64, state="ran", seconds=1),
    StageFacts(name="quantize", key="c" * 64, state="failed", seconds=1),
]


def left_running(site: Site) -> UUID:
    """A flow run with three tasks, all Running, of a process that is gone."""
    from prefect import flow, task
    from prefect.client.orchestration import get_client
    from prefect.states import Running

    @flow(name="owed")
    def pipeline() -> None:
        pass

    @task(name="stage")
    def stage() -> None:
        pass

    with get_client(sync_client=True) as client:
        run = client.create_flow_run(pipeline, name="owed-1", state=Running(), tags=[f"{PREFECT_TAG}{host()}:1:2:3"])
        for one in STAGES:
            client.create_task_run(stage, run.id, dynamic_key=one.name, name=one.name, state=Running())
        return run.id


@pytest.mark.parametrize("error", [None, "the stage was too slow"])
def test_a_flow_run_gets_the_state_that_it_ended_with(prefect_site: Site, error: str | None) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    run = left_running(prefect_site)
    owe(prefect_site, run, "owed-1", error, "completed: version 1", STAGES)
    state = "Failed" if error else "Completed"
    assert reconcile_prefect(prefect_site) == [
        f"flow run 'owed-1' is {state} in Prefect too, which was away when the run ended"
    ]
    with get_client(sync_client=True) as client:
        found = client.read_flow_run(run)
        assert found.state is not None
        assert found.state.name == state
        told = str(found.state.message)
        assert told.startswith((error or "completed: version 1") + f" (ended at {time.strftime('%Y-%m-%d %H:')}")
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))
        assert {task.name: task.state_name for task in tasks} == {
            "train_teacher": "Cached", "distill": "Completed", "quantize": "Failed"
        }  # fmt: skip
        assert reconcile_prefect(prefect_site) == []
        owe(prefect_site, run, "owed-1", error, "completed: version 1", STAGES)
        assert settle(prefect_site) == []  # Prefect knows it
        client.delete_flow_run(run)
    owe(prefect_site, run, "owed-1", error, "completed: version 1", STAGES)
    assert settle(prefect_site) == []  # somebody deleted it
    assert list((prefect_site.home / "prefect" / "owed").iterdir()) == []


def test_what_is_owed_stays_while_no_server_answers_and_is_not_told_to_another(site: Site, prefect_site: Site) -> None:
    run = uuid4()
    owe(site, run, "owed-1", None, "completed", STAGES)
    assert settle(site) == []
    assert (site.home / "prefect" / "owed" / f"{run}.json").exists()
    heard(site, run)
    assert list((site.home / "prefect" / "owed").iterdir()) == []
    elsewhere = prefect_site.model_copy(update={"prefect_api": "http://127.0.0.1:9/api"})
    owe(elsewhere, run, "owed-1", None, "completed", STAGES)
    assert settle(prefect_site) == []
    assert (prefect_site.home / "prefect" / "owed" / f"{run}.json").exists()
    heard(prefect_site, run)


@pytest.fixture
def pipeline(prefect_site: Site, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """A run of one stage, which is done at once."""
    run = Pipeline(Recipe(name="lost", workload=Use(use="digits")), prefect_site, tracked=False, name=f"lost-{uuid4()}")

    def in_worker(node: Any, key: str, parents: dict[str, str], _run: Any) -> Any:
        with run.store.draft(key) as draft:
            (draft / "w").write_bytes(b"weights")
            record = Checkpoint(slot="teacher", weights="w", parameters=1)
            return run.store.commit(draft, stage=node.use, key=key, parts={}, record=record)

    monkeypatch.setattr(run, "_in_worker", in_worker)
    run.left_out = frozenset(node.name for node in run.plan.nodes[1:])
    run.store.discard(run.plan.nodes[0].key({}))
    return run


def state_of(name: str) -> str | None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

    with get_client(sync_client=True) as client:
        (found,) = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))
        return found.state_name


@pytest.mark.parametrize("back", [False, True])
def test_a_server_that_is_lost_at_the_end_of_a_run_hears_of_it_later(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    """It is away until the run has ended, or back in time to hear that its own absence was an error."""
    import httpx
    from prefect import flow_engine

    from kdq_flows.prefect import flow as module

    propose = flow_engine.propose_state_sync

    def away(client: Any, state: Any, **named: Any) -> Any:
        if state.is_completed() or (state.is_failed() and not back):
            raise httpx.ConnectError("refused")
        return propose(client, state, **named)

    monkeypatch.setattr(flow_engine, "propose_state_sync", away)
    with monkeypatch.context() as patched:
        patched.setattr("kdq_flows.prefect.owed.running_prefect", lambda _site: None)
        module.run_as_flow(pipeline)
        assert state_of(pipeline.name) == ("Failed" if back else "Running")
    assert (pipeline.error, pipeline.failed, pipeline.facts().status) == (None, False, "completed")
    monkeypatch.undo()
    assert len(settle(pipeline.plan.site)) == 1
    assert state_of(pipeline.name) == "Completed"


def test_a_server_that_is_lost_while_a_run_is_set_up_leaves_the_run_to_this_process(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    from kdq_flows.prefect import flow as module

    said: list[str] = []
    monkeypatch.setattr(pipeline.observer, "message", said.append)

    def lost(*_words: Any, **_named: Any) -> Any:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(module, "stage_task", lost)
    module.run_as_flow(pipeline)
    assert said[0] == "the Prefect server was lost (ConnectError); KDQ continues without it"
    assert [stage.state for stage in pipeline.stages.values()] == ["ran"]
    assert state_of(pipeline.name) == "Completed"


@pytest.mark.parametrize("error", [ConnectionError("refused"), StoreError("the disk is full"), KeyboardInterrupt()])
def test_only_a_lost_server_leaves_the_stages_of_a_study_running(site: Site, error: BaseException) -> None:
    """The study then goes on in this process; cancelled stages could not."""
    file = site.home.parent / "study.yaml"
    file.write_text("name: study\nworkload: digits\nmatrix: {over: {quantize.weights: [8, 4]}}\n")
    study = load(file)
    assert isinstance(study, Study)
    run = StudyRun(study, site)

    def start(*_words: Any) -> Any:
        raise error

    with pytest.raises(type(error)):
        run.run(start)
    cancelled = {pipeline.cancelled.is_set() for pipeline in run.pipelines.values()}
    assert cancelled == {not isinstance(error, ConnectionError)}
