"""The executor `pool`: each node is a flow run in a work pool of Prefect, whose workers may be on any machine.

`kdq serve --nodes` is such a worker. Each machine needs a store that all see, and the same KDQ_POOL.
"""

from __future__ import annotations

import importlib
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import UUID

from kdq_core.errors import TransientError
from kdq_core.recipe.spec import Site
from kdq_flows.prefect.pools import ensure_pool, nodes_of
from kdq_flows.run.node import Heard
from kdq_flows.servers.environment import apply_environment
from kdq_flows.servers.servers import ensure_prefect

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

LOOK_SECONDS = 1.0
UNTAKEN_SECONDS = 15.0
"""KDQ says so if no worker takes a node for so long."""


class OnPool:
    """Runs nodes in a work pool; see `kdq_flows.run.executors.Executor`."""

    def __init__(self, site: Site, say: Callable[[str], None]) -> None:
        """Find the pool and its deployment, or make them.

        Raises:
            RecipeError: the configured server does not answer.
            StageError: the site's server does not start.
        """
        self._say, self.pool = say, nodes_of(site)
        self._over, self._runs, self._told = threading.Event(), set[UUID](), False
        api, _ = ensure_prefect(site)
        apply_environment(site, api)
        ensure_pool(self.pool)
        self._deployment = deployed(self.pool)
        self.width = site.workers or self._slots()

    def warm_up(self, *_: object) -> None:
        """Do nothing: the workers of the pool are there or not."""

    def submit(self, request: dict[str, Any], heard: Heard) -> Future[dict[str, Any]]:  # noqa: ARG002
        """Create a flow run, and a thread that looks how it ends; its events come with the answer."""
        done, name = Future[dict[str, Any]](), request["log"].removesuffix(".log")
        listening = threading.Thread(target=self._follow, args=(request, name, done), name="kdq-pool", daemon=True)
        listening.start()
        return done

    def cancel(self) -> None:
        """Cancel the flow runs; their worker ends them."""
        from prefect.states import Cancelling

        self._over.set()
        with suppress(Exception), _client() as client:
            for run in list(self._runs):
                client.set_flow_run_state(run, Cancelling(message="the run that asked for it was interrupted"))

    def close(self) -> None:
        """Do nothing: pool, deployment and workers stay."""

    def _slots(self) -> int:
        """How many nodes the pool takes at once, by its own limit; 8 if it has none."""
        with _client() as client:
            return client.read_work_pool(self.pool).concurrency_limit or 8

    def _follow(self, request: dict[str, Any], name: str, done: Future[dict[str, Any]]) -> None:
        try:
            with _client() as client:
                run = client.create_flow_run_from_deployment(
                    self._deployment, parameters={"request": request | {"site": None}}, name=name
                )
            self._runs.add(run.id)
            if self._over.is_set():
                self.cancel()
            done.set_result(self._answer(run.id, name))
        except BaseException as error:
            done.set_exception(
                error if isinstance(error, TransientError) else TransientError(f"Prefect did not take {name}: {error}")
            )

    def _answer(self, run: UUID, name: str) -> dict[str, Any]:
        began = time.monotonic()
        while True:
            time.sleep(LOOK_SECONDS)
            found = None
            with suppress(Exception), _client() as client:  # a server that is away for a while is back at a later look
                found = client.read_flow_run(run)
                if found.state is not None and found.state.is_final():
                    answer = _artifact(client, run)
                    self._runs.discard(run)
                    if answer is not None:
                        return answer
                    break
            if found is not None:
                self._tell_untaken(found, time.monotonic() - began)
        state = found.state
        if self._over.is_set() or state.is_cancelled():
            return {
                "key": "", "by": "", "state": "failed", "cancelled": True,
                "error": {"type": "StageError", "message": "the stage was cancelled in the pool"},
            }  # fmt: skip
        raise TransientError(f"the worker of the pool {self.pool!r} lost {name}: {state.name}: {state.message or ''}")

    def _tell_untaken(self, run: FlowRun, seconds: float) -> None:
        waits = run.state is not None and (run.state.is_scheduled() or run.state.is_pending())
        if waits and seconds > UNTAKEN_SECONDS and not self._told:
            self._told = True
            self._say(
                f"no worker of the pool {self.pool!r} has taken {run.name!r} for {seconds:.0f} s; 'kdq serve --nodes' "
                "starts one, on this machine or on another with the same Prefect server, store and KDQ_POOL"
            )


def deployed(pool: str) -> UUID:
    """Make the deployment of nodes for a pool, or bring it up to date. Call `apply_environment` first."""
    from prefect.deployments.runner import EntrypointType

    module, _, name = "kdq_flows.prefect.node_flow:node_flow".partition(":")
    flow = getattr(importlib.import_module(module), name)
    deployment = flow.to_deployment(name=pool, work_pool_name=pool, entrypoint_type=EntrypointType.MODULE_PATH)
    return UUID(str(deployment.apply()))


def _client() -> SyncPrefectClient:
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def _artifact(client: SyncPrefectClient, run: UUID) -> dict[str, Any] | None:
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    from kdq_flows.prefect.node_flow import ANSWER

    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
    for artifact in client.read_artifacts(artifact_filter=wanted):
        if artifact.type == ANSWER:
            answer: dict[str, Any] = json.loads(str(artifact.data))
            return answer
    return None
