"""A flow run whose end Prefect did not hear, because its server was away, and hears when it is back."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from kdq_core.recipe.spec import Site
from kdq_flows.facts.parts import StageFacts
from kdq_flows.owner import PREFECT_TAG, host
from kdq_flows.prefect.owed import heard, owe, settle
from kdq_flows.prefect.reconcile import reconcile_prefect

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
        assert (found.state.name, found.state.message) == (state, error or "completed: version 1")
        assert found.end_time is not None
        assert datetime.now(UTC) - found.end_time < timedelta(seconds=60)
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
