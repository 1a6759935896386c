"""Applies the policies of schedules to their runs in Prefect, and resumes runs whose process died.

Call `apply_environment` first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kdq_flows.owner import PREFECT_TAG, host, is_alive
from kdq_flows.prefect.policy import LATE, OVERLAP, Due, Policy, Skip, overlapped, skipping

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import DeploymentResponse

TAG = "kdq"
"""Tag of the deployments that `kdq deploy` makes."""
RESUMED = "kdq-resumed"
"""Tag of a run that KDQ resumed; it does so once."""
_NEWEST = 100
_PAGE = 200


def policy_of(parameters: dict[str, Any]) -> Policy:
    """The policy in the parameters of a deployment; those made before there were policies skip missed runs."""
    return Policy(
        missed=parameters.get("missed", "none"),
        overlap=parameters.get("overlap", "skip"),
        allowed_lag_seconds=parameters.get("allowed_lag_seconds"),
    )


def skipped(client: SyncPrefectClient, run_id: UUID) -> Skip | None:
    """Whether a run that has just begun must not work, and why.

    A run that a user asked for works, and so does one that KDQ resumed.
    """
    run = client.read_flow_run(run_id)
    if run.deployment_id is None or not _by_clock(run):
        return None
    others = [as_due(other) for other in runs_of(client, run.deployment_id) if other.id != run.id]
    return skipping(_waiting(run), others, policy_of(run.parameters), datetime.now(UTC))


def look(
    client: SyncPrefectClient, pool: str, *, outage: bool = False, alive: Callable[[str], bool] = is_alive
) -> list[str]:
    """Apply the policies of a pool's schedules, and resume what died; gives a line for each run that this changed.

    Args:
        client: of the server.
        pool: name of the work pool.
        outage: nothing could run until now.
        alive: whether the process with this owner tag still runs.
    """
    lines = []
    for deployment in deployments(client, pool):
        runs = runs_of(client, deployment.id)
        resumed = _resume(client, deployment, runs, alive)
        runs = runs_of(client, deployment.id) if resumed else runs
        lines += resumed
        lines += _skip_missed(client, deployment, runs) if outage else []
        lines += _end_overlapped(client, deployment, runs)
    return lines


def deployments(client: SyncPrefectClient, pool: str) -> list[DeploymentResponse]:
    """The deployments that `kdq deploy` made in a pool, by name."""
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterTags,
        WorkPoolFilter,
        WorkPoolFilterName,
    )

    asked = {
        "deployment_filter": DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG])),
        "work_pool_filter": WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
    }
    found: list[DeploymentResponse] = []
    while True:
        page = client.read_deployments(**asked, limit=_PAGE, offset=len(found))
        found += page
        if len(page) < _PAGE:
            return sorted(found, key=lambda one: one.name)


def runs_of(client: SyncPrefectClient, deployment: UUID) -> list[FlowRun]:
    """The runs of a deployment that are due by now, newest first."""
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId, FlowRunFilter
    from prefect.client.schemas.sorting import FlowRunSort

    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate({"expected_start_time": {"before_": datetime.now(UTC)}}),
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=_NEWEST,
    )


def as_due(run: FlowRun) -> Due:
    """A flow run as the policies see it."""
    state, began = run.state_type, run.start_time if run.run_count else None
    name = None if run.state is None else run.state.name
    final = run.state is not None and run.state.is_final()
    return Due(
        name=run.name,
        due=run.expected_start_time or run.created or datetime.now(UTC),
        began=None if name in (LATE, OVERLAP) else began,
        ended=run.end_time if final else None,
        given_up=str(getattr(state, "value", state)) in ("CANCELLED", "CANCELLING", "CRASHED"),
    )


def _waiting(run: FlowRun) -> Due:
    return as_due(run).model_copy(update={"began": None, "ended": None, "given_up": False})


def _by_clock(run: FlowRun) -> bool:
    return run.auto_scheduled and RESUMED not in run.tags


def _skip_missed(client: SyncPrefectClient, deployment: DeploymentResponse, runs: Iterable[FlowRun]) -> list[str]:
    """Skip the runs that were missed in an outage, so that no process starts for them."""
    from prefect.states import Cancelled

    lines, known, policy = [], {run.id: as_due(run) for run in runs}, policy_of(deployment.parameters)
    for run in runs:
        if not (known[run.id].waits and run.state is not None and run.state.is_scheduled() and _by_clock(run)):
            continue
        others = [other for identity, other in known.items() if identity != run.id]
        why = skipping(known[run.id], others, policy, datetime.now(UTC), outage=True)
        if why is not None:
            client.set_flow_run_state(run.id, Cancelled(name=why.name, message=why.message), force=True)
            known[run.id] = known[run.id].model_copy(update={"given_up": True})
            lines.append(f"run {run.name!r} of {deployment.name!r} is skipped: {why.message}")
    return lines


def _end_overlapped(client: SyncPrefectClient, deployment: DeploymentResponse, runs: Iterable[FlowRun]) -> list[str]:
    from prefect.states import Cancelling

    runs = list(runs)
    if not overlapped(map(as_due, runs), policy_of(deployment.parameters), datetime.now(UTC)):
        return []
    lines = []
    for run in runs:
        if as_due(run).runs:
            client.set_flow_run_state(run.id, Cancelling(message="the next run of the schedule is due"))
            lines.append(f"run {run.name!r} of {deployment.name!r} is cancelled: the next one is due")
    return lines


def _resume(
    client: SyncPrefectClient, deployment: DeploymentResponse, runs: Iterable[FlowRun], alive: Callable[[str], bool]
) -> list[str]:
    """Run the newest run again if its process died. The store has the stages that it finished."""
    from prefect.states import AwaitingRetry

    last = max((run for run in runs if run.start_time), key=_began, default=None)
    if last is None or last.state is None or not last.state.is_crashed() or RESUMED in last.tags or deployment.paused:
        return []
    owners = [tag.removeprefix(PREFECT_TAG) for tag in last.tags if tag.startswith(PREFECT_TAG)]
    elsewhere = any(not owner.startswith(f"{host()}:") for owner in owners)
    if elsewhere or any(map(alive, owners)) or last.parameters.get("recipe") != deployment.parameters.get("recipe"):
        return []  # the machine that ran it resumes it; and a recipe that was deployed anew is another one
    client.update_flow_run(last.id, tags=[*last.tags, RESUMED])
    again = AwaitingRetry(scheduled_time=datetime.now(UTC), message="KDQ resumes it, because its process died.")
    client.set_flow_run_state(last.id, again, force=False)
    return [f"run {last.name!r} of {deployment.name!r} is resumed: its process died"]


def _began(run: FlowRun) -> datetime:
    assert run.start_time is not None
    return run.start_time
