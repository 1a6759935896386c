"""Close the MLflow runs that a killed process left RUNNING."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from kdq_registry.environment import client, local_database, mlflow_errors, read_only
from kdq_registry.spool import OWNER_TAG

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kdq_core.recipe.spec import Site


def reconcile(site: Site, is_alive: Callable[[str], bool]) -> list[str]:
    """Set every RUNNING run whose owner is dead to KILLED, nested runs too.

    The function reads a local SQLite file directly: if no run is dead, it takes milliseconds and imports no MLflow.

    Args:
        site: where MLflow is.
        is_alive: says whether the process of a `kdq.owner` tag lives; `True` for owners on other hosts.

    Returns:
        The ids of the runs that were closed.

    Raises:
        TransientError: the tracking server cannot be reached.
        StageError: the database is unreadable.
    """
    database = local_database(site.mlflow_uri)
    if database is not None and not database.exists():
        return []
    with mlflow_errors(site):
        running = _running_remotely(site) if database is None else _running_locally(database)
        verdicts: dict[str, bool] = {}
        for _, owner in running:
            if owner not in verdicts:
                verdicts[owner] = is_alive(owner)
        dead = [run_id for run_id, owner in running if not verdicts[owner]]
        for run_id in dead:
            client(site).set_terminated(run_id, "KILLED")
    return dead


def _running_locally(database: Path) -> list[tuple[str, str]]:
    query = (
        "select r.run_uuid, t.value from runs r join tags t on t.run_uuid = r.run_uuid and t.key = ? "
        "where r.status = 'RUNNING' and r.lifecycle_stage = 'active'"
    )
    with contextlib.closing(read_only(database)) as connection:
        return [(str(run_id), str(owner)) for run_id, owner in connection.execute(query, (OWNER_TAG,))]


def _running_remotely(site: Site) -> list[tuple[str, str]]:
    mlflow = client(site)
    experiments = [e.experiment_id for e in mlflow.search_experiments()]
    found: list[tuple[str, str]] = []
    token: str | None = None if experiments else ""
    while token != "":
        page = mlflow.search_runs(experiments, "attributes.status = 'RUNNING'", max_results=1000, page_token=token)
        found += [(run.info.run_id, run.data.tags[OWNER_TAG]) for run in page if OWNER_TAG in run.data.tags]
        token = page.token or ""
    return found
