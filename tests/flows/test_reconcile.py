import subprocess
import sys
from uuid import UUID

import httpx
import pytest

from kdq_core.recipe.spec import Recipe, Site
from kdq_flows.owner import PREFECT_TAG, host, owner_tag, prefect_tag
from kdq_flows.prefect.reconcile import claim, close_unbegun, reconcile_prefect
from kdq_flows.prefect.schedules import deploy

KILLED = """
import os, signal, sys
from prefect import flow, tags, task
from kdq_flows.owner import prefect_tag

@task
def stage():
    os.kill(os.getpid(), signal.SIGKILL)

@flow(name="killed", flow_run_name="killed-run")
def pipeline():
    stage()

with tags(prefect_tag()):
    pipeline()
"""


def test_a_flow_run_of_a_killed_process_is_closed_with_its_tasks(prefect_site: Site) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterName
    from prefect.client.schemas.objects import StateType

    child = subprocess.run([sys.executable, "-c", KILLED], check=False, capture_output=True)
    assert child.returncode == -9, child.stderr
    with get_client(sync_client=True) as client:
        wanted = FlowRunFilter(name=FlowRunFilterName(any_=["killed-run"]))
        (run,) = client.read_flow_runs(flow_run_filter=wanted)
        assert run.state_type == StateType.RUNNING
        pid = next(tag for tag in run.tags if tag.startswith(PREFECT_TAG)).split(":")[1]
        assert reconcile_prefect(prefect_site) == [
            f"flow run 'killed-run' of process {pid} is closed: its process is gone"
        ]
        assert client.read_flow_run(run.id).state_type == StateType.CRASHED
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
        assert all(task.state_type == StateType.CRASHED for task in tasks)
    assert reconcile_prefect(prefect_site) == []


def test_runs_of_living_processes_of_other_hosts_and_of_nobody_are_left_alone(prefect_site: Site) -> None:
    from prefect import flow, tags
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import StateType
    from prefect.states import Running

    @flow(name="left-alone")
    def pipeline() -> None:
        pass

    dead_elsewhere = f"{PREFECT_TAG}elsewhere:1:2:3"
    with get_client(sync_client=True) as client:
        runs: list[UUID] = []
        for owner in ([prefect_tag()], [dead_elsewhere], ["no-owner"], []):
            with tags(*owner):
                runs.append(client.create_flow_run(pipeline, state=Running(), tags=owner).id)
        assert reconcile_prefect(prefect_site) == []
        assert [client.read_flow_run(run).state_type for run in runs] == [StateType.RUNNING] * 4
        for run in runs:
            client.delete_flow_run(run)


def test_a_run_that_a_worker_started_is_claimed_by_its_process(prefect_site: Site) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.states import Running

    @flow(name="claimed")
    def pipeline() -> None:
        pass

    before = f"{PREFECT_TAG}{host()}:1:2:3"
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(pipeline, state=Running(), tags=["mine", before])
        claim(run.id)
        assert sorted(client.read_flow_run(run.id).tags) == sorted(["mine", PREFECT_TAG + owner_tag()])
        client.delete_flow_run(run.id)


def test_a_server_that_dies_meanwhile_is_told_and_stops_no_run(
    prefect_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_client: object) -> None:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr("kdq_flows.prefect.reconcile._open_flow_runs", gone)
    (line,) = reconcile_prefect(prefect_site)
    assert line.startswith("Prefect at http")
    assert line.endswith(" does not answer any more (refused); the next run closes what dead runs left")


def test_without_a_server_nothing_is_started(site: Site) -> None:
    assert reconcile_prefect(site) == []
    assert not site.home.exists()


def test_a_scheduled_run_that_its_worker_never_began_is_closed(prefect_site: Site, tiny_flow: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import StateType
    from prefect.states import Pending

    facts = deploy(prefect_site, Recipe(name="unbegun", workload="digits"), interval_seconds=9e5, module_path=tiny_flow)
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(f"tiny/{facts['deployment'].rpartition('/')[2]}").id
        try:
            taken = client.create_flow_run_from_deployment(deployment, state=Pending(name="Submitting"), name="taken")
            begun = client.create_flow_run_from_deployment(deployment, state=Pending(), tags=[prefect_tag()])
            assert close_unbegun(prefect_site, facts["pool"]) == [
                "flow run 'taken' is closed: its worker ended before it began"
            ]
            assert client.read_flow_run(taken.id).state_type == StateType.CRASHED
            assert client.read_flow_run(begun.id).state_type == StateType.PENDING
            configured = prefect_site.model_copy(update={"prefect_api": "http://127.0.0.1:9/api"})
            assert close_unbegun(configured, facts["pool"]) == []
        finally:
            client.delete_deployment(deployment)
