"""The servers of a site: Prefect's, and MLflow's web page.

KDQ uses a configured server (`Site.prefect_api`) as it is. Without one the site has its own server on the loopback
interface. KDQ starts it when a command first needs it, and leaves it running for the next; `down` ends it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from kdq_core.errors import RecipeError
from kdq_core.recipe.spec import Site
from kdq_flows.servers import processes
from kdq_flows.servers.environment import prefect_environment
from kdq_flows.servers.guard import origins
from kdq_flows.servers.processes import LOOPBACK, Managed
from kdq_flows.servers.versions import check_version

PREFECT = "prefect"
MLFLOW = "mlflow"
WORKER = "worker"
NODES = "nodes"


@dataclass(frozen=True)
class Servers:
    """Addresses of the servers; `mlflow_ui` is `None` if the caller did not ask for it."""

    prefect_api: str
    prefect_ui: str
    mlflow_ui: str | None


def ensure_prefect(site: Site) -> tuple[str, bool]:
    """Start the Prefect server if needed; gives the address of its API, and whether this call started it.

    Raises:
        RecipeError: the configured server does not answer, or a server is of another version.
        StageError: the site's own server does not start.
    """
    if site.prefect_api is not None:
        address = site.prefect_api.rstrip("/")
        if not processes.answers(f"{address}/health", seconds=5):
            raise RecipeError(
                f"the configured Prefect server {site.prefect_api!r} does not answer; start it, or unset "
                "PREFECT_API_URL to let KDQ start its own, or use --no-server"
            )
        check_version(address, "install one version on both, or unset PREFECT_API_URL to let KDQ start its own")
        return address, False
    record, started = processes.ensure(site, _prefect(site))
    if not started:
        check_version(f"{record.url}/api", "end it with 'kdq down', and the next command starts one of this version")
    return f"{record.url}/api", started


def running_prefect(site: Site) -> str | None:
    """Address of the Prefect API if it answers now, else `None`; starts no server."""
    if site.prefect_api is not None:
        address = site.prefect_api.rstrip("/")
        return address if processes.answers(f"{address}/health") else None
    record = processes.read_record(site, PREFECT)
    if record is None or not processes.is_running(record) or not processes.answers(f"{record.url}/api/health"):
        return None
    return f"{record.url}/api"


def ensure_mlflow_ui(site: Site, *, wait: bool = False) -> str:
    """Start MLflow's web page if needed; gives its address, by default without waiting until it answers."""
    if site.mlflow_uri.startswith(("http://", "https://")):
        return site.mlflow_uri
    record, _ = processes.ensure(site, _mlflow(site), wait=wait)
    return str(record.url)


def up(site: Site, *, mlflow_ui: bool = True) -> Servers:
    """Start the servers that do not run; waits until Prefect answers, but not for the MLflow page.

    Raises:
        RecipeError: a configured Prefect server does not answer.
        StageError: a server does not start.
    """
    if site.prefect_api is None:
        processes.ensure(site, _prefect(site), wait=False)  # it starts while KDQ prepares the MLflow page
    page = ensure_mlflow_ui(site) if mlflow_ui else None
    api, _ = ensure_prefect(site)
    return Servers(prefect_api=api, prefect_ui=api.removesuffix("/api"), mlflow_ui=page)


def down(site: Site) -> list[str]:
    """End the site's workers and servers; gives the names of those that ran."""
    return [name for name in (NODES, WORKER, MLFLOW, PREFECT) if processes.stop(site, name)]


def status(site: Site) -> list[dict[str, object]]:
    """One row for each server and the worker: name, state (`running`, `silent`, `stopped`), url, pid, log.

    A configured server, which KDQ does not start, has no pid and no log.
    """
    rows: list[dict[str, object]] = []
    configured = {
        PREFECT: site.prefect_api and site.prefect_api.rstrip("/").removesuffix("/api"),
        MLFLOW: site.mlflow_uri.rstrip("/") if site.mlflow_uri.startswith(("http://", "https://")) else None,
    }
    for name, health in ((PREFECT, "/api/health"), (MLFLOW, "/health"), (WORKER, None)):
        url = configured.get(name)
        if url:
            there = "running" if processes.answers(f"{url}{health}") else "silent"
            rows.append({"name": name, "state": there, "url": url, "pid": None, "log": None})
            continue
        record = processes.read_record(site, name)
        if record is None or not processes.is_running(record):
            rows.append({"name": name, "state": "stopped", "url": None, "pid": None, "log": None})
            continue
        well = health is None or processes.answers(f"{record.url}{health}")
        rows.append(
            {
                "name": name,
                "state": "running" if well else "silent",
                "url": record.url,
                "pid": record.pid,
                "log": record.log,
            }
        )
    return rows


def _prefect(site: Site) -> Managed:
    def command(port: int) -> list[str]:
        return [sys.executable, "-P", "-m", "kdq_flows.servers.guard", str(port)]

    def environment(port: int) -> dict[str, str]:
        return prefect_environment(site, f"http://{LOOPBACK}:{port}/api") | {
            "PREFECT_SERVER_API_HOST": LOOPBACK,
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(origins(port)),
            "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        }

    return Managed(PREFECT, command, environment, health="/api/health")


def _mlflow(site: Site) -> Managed:
    from kdq_registry.environment import client, follow_home, local_database
    from kdq_registry.server import server_command

    def command(port: int) -> list[str]:
        database = local_database(site.mlflow_uri)
        if database is not None and not database.exists():
            client(site)  # creates the database schema, under its lock
        follow_home(site)
        return server_command(site, port)[0]

    def environment(port: int) -> dict[str, str]:
        return server_command(site, port)[1]

    return Managed(MLFLOW, command, environment, health="/health")
