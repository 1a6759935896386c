"""Runs of a schedule that begin because the data changed.

`kdq serve` asks a process of its own for the fingerprint of the data, because that runs the user's code: the process
imports it as it is now, and may hang or crash. Prefect keeps for which fingerprints a deployment has run, as the
idempotency keys of its runs. So a change is one run, whatever dies meanwhile and whoever else looks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kdq_core.errors import KdqError
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.hashing import canonical, sha256_of
from kdq_flows.prefect.due import deployments
from kdq_flows.prefect.pools import name_out, site_here

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

LOOK = "look_seconds"
"""Parameter of a deployment that runs on news: how often KDQ looks."""
LOOK_SECONDS = 300.0
"""How often it looks by default."""
LIMIT_SECONDS = 900.0
"""KDQ ends a process that takes longer for a fingerprint."""
COMMAND = (sys.executable, "-P", "-m", "kdq_flows.prefect.news")


def fingerprint(recipe: dict[str, Any]) -> str:
    """The sha256 of the fingerprints of the data that a deployed recipe reads; with branches, of all of them.

    Raises:
        KdqError: the recipe is wrong by now, or its data cannot be read.
    """
    from kdq_core.plugins.asked import Asked
    from kdq_core.plugins.catalog import Catalog

    catalog, site = Catalog.load(), site_here()
    asked = (Asked(one, site, catalog.build) for one in _branches(recipe))
    return sha256_of(canonical(sorted({one.workload.fingerprint() for one in asked})))


def _branches(recipe: dict[str, Any]) -> Iterator[Recipe]:
    """The recipes of all branches whose workloads differ."""
    from kdq_core.plugins.catalog import Catalog
    from kdq_core.reading.recipe_file import document_from_text
    from kdq_core.reading.studies import read_study
    from kdq_core.recipe.study import FIELDS
    from kdq_flows.facts.report import yaml_of

    if not FIELDS & recipe.keys():
        yield Recipe.model_validate(recipe)
        return
    study = read_study(document_from_text(yaml_of(recipe), "the deployed recipe"), Catalog.load())
    yield from {branch.recipe.workload.model_dump_json(): branch.recipe for branch in study.known}.values()


@dataclass
class _Looking:
    """A process that computes the fingerprint for a deployment, or the time of the next one."""

    due: float = 0.0
    child: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    failed: str = ""


@dataclass
class News:
    """What `kdq serve` knows about the data of its deployments.

    Attributes:
        site: its home has the log.
        command: gives a fingerprint; it reads the recipe as JSON from stdin.
        clock: seconds, never set back.
    """

    site: Site
    command: tuple[str, ...] = COMMAND
    clock: Callable[[], float] = time.monotonic
    _all: dict[UUID, _Looking] = field(default_factory=dict)

    def look(self, client: SyncPrefectClient, pool: str) -> list[str]:
        """Begin and end looks that are due, and ask for the runs that they give reason to; gives a line for each.

        A look that fails is told once, and the next one is made at its time.
        """
        lines, found = [], deployments(client, pool)
        for gone in self._all.keys() - {one.id for one in found}:
            self._drop(gone)
        for deployment in found:
            every = deployment.parameters.get(LOOK)
            if every is None or deployment.paused:
                self._drop(deployment.id)
                continue
            looking = self._all.setdefault(deployment.id, _Looking())
            if looking.child is None and self.clock() >= looking.due:
                self._begin(looking, deployment.parameters["recipe"])
            elif looking.child is not None and (answer := self._ended(looking)):
                looking.due = self.clock() + float(every)
                lines += self._told(client, deployment, name_out(pool, deployment.name), looking, *answer)
        return lines

    def close(self) -> None:
        """End all looks."""
        for deployment in list(self._all):
            self._drop(deployment)

    def _drop(self, deployment: UUID) -> None:
        looking = self._all.pop(deployment, None)
        if looking is not None and looking.child is not None:
            looking.child.kill()
            looking.child.communicate()

    def _begin(self, looking: _Looking, recipe: dict[str, Any]) -> None:
        log = self.site.home / "logs" / "news.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile() as asked, log.open("ab") as errors:
            asked.write(json.dumps(recipe).encode())
            asked.seek(0)
            variables = os.environ | {"KDQ_PARENT_PID": str(os.getpid())}
            looking.began = self.clock()
            looking.child = subprocess.Popen(
                self.command, stdin=asked, stdout=subprocess.PIPE, stderr=errors, cwd=self.site.home, env=variables
            )

    def _ended(self, looking: _Looking) -> tuple[str, str] | None:
        """The fingerprint, or why there is none; `None` while the process works."""
        assert looking.child is not None
        if looking.child.poll() is None:
            if self.clock() < looking.began + LIMIT_SECONDS:
                return None
            looking.child.kill()
        said, _ = looking.child.communicate()  # it is shorter than what a pipe holds
        code, looking.child = looking.child.returncode, None
        try:
            answer = json.loads(said)
        except ValueError:
            log = str(self.site.home / "logs" / "news.log")
            answer = {"error": f"its process ended with code {code}; its log is {log!r}"}
        return answer.get("fingerprint", ""), answer.get("error", "")

    def _told(
        self,
        client: SyncPrefectClient,
        deployment: DeploymentResponse,
        name: str,
        looking: _Looking,
        found: str,
        error: str,
    ) -> list[str]:
        if error:
            known, looking.failed = looking.failed, error
            return [] if known == error else [f"KDQ cannot look at the data of {name!r}: {error}"]
        looking.failed = ""
        run = run_once(client, deployment, found)
        return [] if run is None else [f"the data of {name!r} are new; run {run!r} begins"]


def run_once(client: SyncPrefectClient, deployment: DeploymentResponse, found: str) -> str | None:
    """Ask for a run unless the deployment has one for this fingerprint; gives the run's name for now."""
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterId,
        FlowRunFilter,
        FlowRunFilterIdempotencyKey,
    )

    key = f"kdq-data-{deployment.id}-{found}"
    known = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[key])),
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
        limit=1,
    )
    if known:
        return None
    return client.create_flow_run_from_deployment(deployment.id, idempotency_key=key).name


def main() -> int:
    """Print the fingerprint of the data of the recipe on stdin, or an error, as JSON."""
    from kdq_core.worker.main import die_with_parent

    die_with_parent()
    sys.stdout, own = sys.stderr, sys.stdout  # plug-ins print too
    try:
        answer = {"fingerprint": fingerprint(json.load(sys.stdin))}
    except KdqError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), file=own)
    return 0


if __name__ == "__main__":
    sys.exit(main())
