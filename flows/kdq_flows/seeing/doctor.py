"""`kdq doctor`: checks whether the installation works, so that a user can rule it out as the cause of an error."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from kdq_core.errors import KdqError, StageError
from kdq_core.recipe.spec import Site
from kdq_flows.owner import is_alive
from kdq_flows.running import check_disk
from kdq_flows.seeing.installation import (
    check_clock,
    check_devices,
    check_leases,
    check_store,
    check_versions,
)
from kdq_flows.servers import processes
from kdq_flows.servers.environment import apply_environment
from kdq_flows.servers.servers import PREFECT, ensure_prefect
from kdq_registry.spool import left

SCHEDULER_SECONDS = 90.0
"""Time limit: the scheduler looks at new deployments every few seconds, and at all deployments once a minute."""


def doctor(site: Site) -> list[dict[str, object]]:
    """Run every check, also after one that fails; end a server that KDQ started for them.

    Returns:
        Rows of `check`, `verdict` (`ok`, `broken` or `not checked`) and `detail`.
    """
    from kdq_registry.schema import check_schema

    rows = [
        _row("home can be written", lambda: _check_home(site)),
        _row("versions", check_versions),
        _row("disk", lambda: check_disk(site)),
        _row("store", lambda: check_store(site)),
        _row("devices", lambda: check_devices(site)),
        _row("leases", lambda: check_leases(site)),
        _row("MLflow's schema", lambda: check_schema(site)),
        _row("MLflow has the events of all runs", lambda: _check_events(site)),
    ]
    started, api = False, ""

    def server() -> str:
        nonlocal started, api
        api, started = ensure_prefect(site)
        apply_environment(site, api)
        return f"{api} answers"

    scheduling = "an interval deployment gets scheduled runs"
    try:
        rows.append(_row("Prefect server starts and answers", server))
        up = rows[-1]["verdict"] == "ok"
        for check, run in ((scheduling, check_scheduler), ("clock", lambda: check_clock(api))):
            needs: dict[str, object] = {"check": check, "verdict": "not checked", "detail": "needs the server"}
            rows.append(_row(check, run) if up else needs)
    finally:
        if started:
            processes.stop(site, PREFECT)
    return rows


def _row(check: str, run: Callable[[], str]) -> dict[str, object]:
    try:
        return {"check": check, "verdict": "ok", "detail": run()}
    except KdqError as error:
        return {"check": check, "verdict": "broken", "detail": str(error)}
    except Exception as error:
        return {"check": check, "verdict": "broken", "detail": f"{type(error).__name__}: {error}"}


def _check_home(site: Site) -> str:
    site.home.mkdir(parents=True, exist_ok=True)
    probe = site.home / f".probe-{uuid.uuid4().hex}"
    probe.write_bytes(b"kdq")
    probe.unlink()
    return str(site.home)


def _check_events(site: Site) -> str:
    waiting: dict[str, int] = {}
    for spool in left(site, is_alive):
        place = spool.first["place"]
        waiting[place] = waiting.get(place, 0) + spool.waiting()
    if not waiting:
        return "none wait"
    told = ", ".join(f"{number} events wait for {place}" for place, number in waiting.items())
    raise StageError(f"{told}; start MLflow if it is away, then run `kdq reconcile`, with its KDQ_TRACKING_URI")


def check_scheduler(seconds: float = SCHEDULER_SECONDS) -> str:
    """Create an interval deployment, wait until Prefect schedules its runs, remove it. Call `apply_environment` first.

    Raises:
        TimeoutError: no run appeared; with an incompatible SQLAlchemy, the scheduler fails without a message.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import IntervalSchedule

    with get_client(sync_client=True) as client:
        flow = client.create_flow_from_name("kdq-doctor")
        hourly = DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(hours=1)), active=True)
        deployment = client.create_deployment(flow, f"check-{uuid.uuid4().hex[:8]}", schedules=[hourly])
        try:
            found, waited = _await_runs(client, deployment, seconds)
        finally:
            client.delete_deployment(deployment)
            client.delete_flow(flow)
    if not found:
        raise TimeoutError(
            f"no run was scheduled within {seconds:g} s; install the versions of constraints.txt "
            "(SQLAlchemy below 2.1 above all)"
        )
    return f"{found} runs after {waited:.1f} s"


def _await_runs(client: Any, deployment: uuid.UUID, seconds: float) -> tuple[int, float]:
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    wanted = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        runs = client.read_flow_runs(deployment_filter=wanted)
        if runs:
            return len(runs), time.monotonic() - began
        time.sleep(0.5)
    return 0, seconds
