"""Closes runs in Prefect and MLflow whose owning process died."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import UUID

from kdq_core.recipe.spec import Site
from kdq_flows.owner import PREFECT_TAG, is_alive, prefect_tag
from kdq_flows.prefect.owed import OPEN_TASKS, settle
from kdq_flows.servers.environment import apply_environment
from kdq_flows.servers.servers import running_prefect

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

_PAGE = 200
_OPEN = ["RUNNING", "PENDING", "CANCELLING"]


def reconcile(site: Site) -> list[str]:
    """Upload what earlier runs of the home could not tell MLflow, and close runs of dead processes of this host.

    They become Crashed in Prefect and KILLED in MLflow. KDQ asks Prefect only if its server answers, and starts no
    server.

    Returns:
        One line for each run.

    Raises:
        KdqError: MLflow does not answer, or refuses.
    """
    from kdq_registry.reconcile import reconcile as reconcile_tracking
    from kdq_registry.uploading import upload_left

    tracked = upload_left(site, is_alive)
    tracked += [f"MLflow run {run!r} is closed: its process is gone" for run in reconcile_tracking(site, is_alive)]
    return reconcile_prefect(site) + tracked


def reconcile_prefect(site: Site, alive: Callable[[str], bool] = is_alive) -> list[str]:
    """Tell Prefect what it did not hear, and mark runs of dead processes of this host as Crashed.

    This is the Prefect half of `reconcile`.

    Args:
        site: the site whose server KDQ asks.
        alive: whether the process with this owner tag still runs.
    """
    api = running_prefect(site)
    if api is None:
        return []
    import httpx
    from prefect.client.orchestration import get_client

    lines: list[str] = []
    try:
        lines += settle(site)
        apply_environment(site, api)
        with get_client(sync_client=True) as client:
            lines += _crashed(client, alive)
    except httpx.TransportError as error:
        lines.append(f"Prefect at {api} does not answer any more ({error}); the next run closes what dead runs left")
    return lines


def _crashed(client: SyncPrefectClient, alive: Callable[[str], bool]) -> list[str]:
    lines = []
    for run in _open_flow_runs(client):
        owners = [tag.removeprefix(PREFECT_TAG) for tag in run.tags if tag.startswith(PREFECT_TAG)]
        if owners and not any(alive(owner) for owner in owners):
            owner = owners[-1]
            _crash(client, run, owner)
            lines.append(f"flow run {run.name!r} of process {owner.split(':')[1]} is closed: its process is gone")
    return lines


def close_unbegun(site: Site, pool: str) -> list[str]:
    """Close runs of a pool that a worker took but never started; they would block their deployment's only slot.

    Call it while no worker of the pool is alive. KDQ leaves a configured server alone, as it may have other workers.
    """
    api = running_prefect(site) if site.prefect_api is None else None
    if api is None:
        return []
    apply_environment(site, api)
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, WorkPoolFilter, WorkPoolFilterName
    from prefect.states import Crashed

    state = FlowRunFilterState.model_validate({"type": {"any_": ["PENDING"]}})
    of_pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
    lines = []
    with get_client(sync_client=True) as client:
        wanted = FlowRunFilter(state=state)
        for run in client.read_flow_runs(flow_run_filter=wanted, work_pool_filter=of_pool, limit=_PAGE):
            if run.deployment_id is not None and not any(tag.startswith(PREFECT_TAG) for tag in run.tags):
                client.set_flow_run_state(run.id, Crashed(message="Its worker ended before it began."), force=True)
                lines.append(f"flow run {run.name!r} is closed: its worker ended before it began")
    return lines


def claim(flow_run_id: UUID | str) -> None:
    """Tag a flow run of a worker as owned by this process. Call `apply_environment` first."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        tags = [tag for tag in client.read_flow_run(UUID(str(flow_run_id))).tags if not tag.startswith(PREFECT_TAG)]
        client.update_flow_run(UUID(str(flow_run_id)), tags=[*tags, prefect_tag()])


def _open_flow_runs(client: SyncPrefectClient) -> list[FlowRun]:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterTags

    state = FlowRunFilterState.model_validate({"type": {"any_": _OPEN}})
    wanted = FlowRunFilter(state=state, tags=FlowRunFilterTags(is_null_=False))
    runs: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(flow_run_filter=wanted, limit=_PAGE, offset=len(runs))
        runs += page
        if len(page) < _PAGE:
            return runs


def _crash(client: SyncPrefectClient, run: FlowRun, owner: str) -> None:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, TaskRunFilter, TaskRunFilterState
    from prefect.states import Crashed

    state = Crashed(message=f"The process that ran this, {owner}, is gone.")
    tasks = client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])),
        task_run_filter=TaskRunFilter(state=TaskRunFilterState.model_validate({"type": {"any_": OPEN_TASKS}})),
        limit=_PAGE,
    )
    for task in tasks:
        client.set_task_run_state(task.id, state, force=True)
    client.set_flow_run_state(run.id, state, force=True)
