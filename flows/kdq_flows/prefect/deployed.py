"""The schedules that `kdq deploy` made: lists them, pauses and resumes them, removes them, and runs one at once."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import AwareDatetime

from kdq_core.errors import RecipeError, did_you_mean
from kdq_core.frozen import Frozen
from kdq_core.recipe.spec import Site
from kdq_flows.prefect.due import deployments, policy_of, runs_of
from kdq_flows.prefect.news import LOOK
from kdq_flows.prefect.policy import Missed, Overlap
from kdq_flows.prefect.pools import name_out
from kdq_flows.prefect.schedules import on_news
from kdq_flows.servers.environment import apply_environment
from kdq_flows.servers.servers import ensure_prefect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse


class LastRun(Frozen):
    """The newest run of a schedule that has begun or was skipped."""

    run: str
    state: str
    time: AwareDatetime


class Scheduled(Frozen):
    """A schedule.

    Attributes:
        name: its name.
        recipe: name of the recipe that it runs.
        schedule: when, in words.
        next_run: when the next run is due; `None` while it is paused, or until Prefect has planned it.
        paused: whether it is paused.
        last_run: `None` before the first.
        missed: what becomes of missed runs.
        overlap: what becomes of a run that is due while the one before still runs.
    """

    name: str
    recipe: str
    schedule: str
    next_run: AwareDatetime | None
    paused: bool
    last_run: LastRun | None
    missed: Missed
    overlap: Overlap


@contextmanager
def connected(site: Site) -> Iterator[SyncPrefectClient]:
    """A client of the site's Prefect server, which KDQ starts if needed.

    Raises:
        RecipeError: the configured server does not answer.
        StageError: the site's own server does not start.
    """
    api, _ = ensure_prefect(site)
    apply_environment(site, api)
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield client


def schedules(client: SyncPrefectClient, pool: str) -> list[Scheduled]:
    """The schedules of a pool, by name."""
    return [_facts(client, pool, one) for one in deployments(client, pool)]


def pause(client: SyncPrefectClient, pool: str, name: str) -> None:
    """Let no run begin by the clock, and resume none.

    Raises:
        RecipeError: there is no such schedule.
    """
    client.pause_deployment(_named(client, pool, name).id)


def resume(client: SyncPrefectClient, pool: str, name: str) -> None:
    """End a pause.

    Raises:
        RecipeError: there is no such schedule.
    """
    client.resume_deployment(_named(client, pool, name).id)


def remove(client: SyncPrefectClient, pool: str, name: str) -> None:
    """Remove a schedule with the runs that have not begun; a run that is at work ends as it would.

    Raises:
        RecipeError: there is no such schedule.
    """
    client.delete_deployment(_named(client, pool, name).id)


def run_now(client: SyncPrefectClient, pool: str, name: str) -> str:
    """Ask for a run at once, which `kdq serve` begins; gives the run's name for now.

    Raises:
        RecipeError: there is no such schedule.
    """
    return client.create_flow_run_from_deployment(_named(client, pool, name).id).name


def _named(client: SyncPrefectClient, pool: str, name: str) -> DeploymentResponse:
    known = {name_out(pool, one.name): one for one in deployments(client, pool)}
    if name not in known:
        hint = did_you_mean(name, known) or ("; 'kdq schedules ls' lists them" if known else "; there is none yet")
        raise RecipeError(f"no schedule named {name!r}{hint}")
    return known[name]


def _facts(client: SyncPrefectClient, pool: str, deployment: DeploymentResponse) -> Scheduled:
    policy, paused = policy_of(deployment.parameters), deployment.paused
    return Scheduled(
        name=name_out(pool, deployment.name),
        recipe=deployment.parameters.get("recipe", {}).get("name", deployment.name),
        schedule=", ".join([*(_text(one.schedule) for one in deployment.schedules), *_news(deployment)]) or "none",
        next_run=None if paused else _next(client, deployment),
        paused=paused,
        last_run=_last(client, deployment),
        missed=policy.missed,
        overlap=policy.overlap,
    )


def _news(deployment: DeploymentResponse) -> list[str]:
    look = deployment.parameters.get(LOOK)
    return [] if look is None else [on_news(look)]


def _text(schedule: object) -> str:
    """A schedule in the words of `kdq deploy`."""
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

    if isinstance(schedule, CronSchedule):
        return f"cron '{schedule.cron}', {schedule.timezone or 'UTC'}"
    if isinstance(schedule, IntervalSchedule):
        return f"every {schedule.interval.total_seconds():g} s, {schedule.timezone or 'UTC'}"
    return type(schedule).__name__


def _next(client: SyncPrefectClient, deployment: DeploymentResponse) -> datetime | None:
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId, FlowRunFilter
    from prefect.client.schemas.sorting import FlowRunSort

    planned = client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate(
            {"expected_start_time": {"after_": datetime.now(UTC)}, "state": {"type": {"any_": ["SCHEDULED"]}}}
        ),
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        limit=1,
    )
    return planned[0].expected_start_time if planned else None


def _last(client: SyncPrefectClient, deployment: DeploymentResponse) -> LastRun | None:
    for run in runs_of(client, deployment.id):
        time = run.start_time or run.end_time
        if run.state is not None and time is not None:
            return LastRun(run=run.name, state=run.state.name or run.state.type.value, time=time)
    return None
