"""The work pools of Prefect that KDQ uses: one for the schedules of a site, and one for nodes (executor `pool`).

A deployment belongs to one pool, and its name in Prefect holds that of the pool. So two sites with one server keep
apart, unless they name one pool: KDQ_POOL, or `--pool` of `kdq deploy` and `kdq serve`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from kdq_core.recipe.spec import Site
from kdq_flows.owner import host
from kdq_flows.servers import processes
from kdq_flows.servers.servers import PREFECT

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

POOL = "kdq"
"""The pool of a home with its own server."""


def site_here() -> Site:
    """The site that the environment of a worker describes; the address of the home's own server counts as none."""
    site = Site.from_environment()
    return site.model_copy(update={"prefect_api": None}) if _has_own_server(site) else site


def _has_own_server(site: Site) -> bool:
    """Whether the home's own server is used; KDQ tells its address to other processes as if it were configured."""
    record = processes.read_record(site, PREFECT)
    return site.prefect_api is None or (record is not None and site.prefect_api.rstrip("/") == f"{record.url}/api")


def pool_of(site: Site) -> str:
    """The pool of a site's schedules. On a server that others may use too, its default holds machine and home."""
    if site.pool:
        return site.pool
    home = hashlib.sha256(str(site.home).encode()).hexdigest()[:6]
    return POOL if _has_own_server(site) else f"{POOL}-{host()}-{home}"


def nodes_of(site: Site) -> str:
    """The pool of nodes, which workers on any machine serve with the same KDQ_POOL."""
    return f"{site.pool or POOL}-nodes"


def name_in(pool: str, recipe: str) -> str:
    """The name in Prefect of the deployment of a recipe."""
    return recipe if pool == POOL else f"{recipe}@{pool}"


def name_out(pool: str, deployment: str) -> str:
    """The schedule's name for the user, which is that of the recipe."""
    return deployment.removesuffix(f"@{pool}")


def ensure_pool(pool: str) -> None:
    """Create a pool of processes if there is none of that name. Call `apply_environment` first."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    client: SyncPrefectClient
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(pool)
        except ObjectNotFound:
            try:
                client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
            except ObjectAlreadyExists:
                return  # another process was faster
