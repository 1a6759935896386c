"""How flow runs ended, for a Prefect server that was away at that moment: KDQ keeps it, and tells it later."""

from __future__ import annotations

import contextlib
import queue
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from kdq_core.frozen import Frozen
from kdq_core.recipe.spec import Site
from kdq_flows.facts.parts import StageFacts
from kdq_flows.owner import is_alive, owner_tag
from kdq_flows.run.logs import keep
from kdq_flows.servers.environment import apply_environment
from kdq_flows.servers.servers import running_prefect

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

AWAY = "Prefect's server is away; `kdq up`, `kdq reconcile` or the next `kdq run` tells it how this run ended"
Kind = Literal["COMPLETED", "FAILED"]
OPEN_TASKS = ["RUNNING", "PENDING", "CANCELLING", "SCHEDULED"]  # scheduled: it waited for its next try


class Owed(Frozen):
    """How a flow run ended.

    Attributes:
        run: the flow run.
        owner: its process, which may still tell Prefect itself.
        api: the configured server; `None` for the home's own.
        name: the run's name.
        type: type of its last state.
        message: text of that state.
        tasks: type and name of the last state of each task, by the task's name.
    """

    run: uuid.UUID
    owner: str
    api: str | None
    name: str
    type: Kind
    message: str
    tasks: dict[str, tuple[Kind, str]]

    def of(self, task: str) -> tuple[Kind, str]:
        """Type and name of the last state of a task; one that Prefect never saw begin is named `<stage>-<random>`."""
        unknown: tuple[Kind, str] = ("COMPLETED", "Completed") if self.type == "COMPLETED" else ("FAILED", "NotReady")
        return self.tasks.get(task) or self.tasks.get(task.rpartition("-")[0]) or unknown


def owe(site: Site, run: uuid.UUID, name: str, error: str | None, message: str, stages: Iterable[StageFacts]) -> None:
    """Keep how a flow run has ended just now.

    Args:
        site: the home, and its Prefect server.
        run: the flow run.
        name: its name.
        error: why it failed, if it did.
        message: text of its state if it did not.
        stages: how its stages ended.

    Raises:
        StoreError: the home cannot be written.
    """
    shown: dict[str, tuple[Kind, str]] = {"ran": ("COMPLETED", "Completed"), "failed": ("FAILED", "Failed")}
    told = f"{error or message} (ended at {time.strftime('%Y-%m-%d %H:%M:%S %z')})"
    owed = Owed(
        run=run, owner=owner_tag(), api=site.prefect_api, name=name, type="FAILED" if error else "COMPLETED",
        message=told,
        tasks={stage.name: shown.get(stage.state, ("COMPLETED", "Cached")) for stage in stages},
    )  # fmt: skip
    keep(owed.model_dump_json(), _shelf(site) / f"{run}.json")


def heard(site: Site, run: uuid.UUID | None) -> None:
    """Forget what was kept about a flow run; Prefect has its state."""
    (_shelf(site) / f"{run}.json").unlink(missing_ok=True)


def settle(site: Site) -> list[str]:
    """Tell Prefect what this process and dead ones owe to it, if it answers; gives a line for each flow run."""
    files = sorted(_shelf(site).glob("*.json"))
    api = running_prefect(site) if files else None
    if api is None:
        return []
    apply_environment(site, api)
    from prefect.client.orchestration import get_client

    lines = []
    with get_client(sync_client=True) as client:
        for file in files:
            owed = _read(file)
            if owed is None or owed.api != site.prefect_api:
                continue
            if owed.owner == owner_tag() or not is_alive(owed.owner):
                lines += _told(client, owed)
                file.unlink(missing_ok=True)
    return lines


def drop_events() -> None:
    """Let Prefect's client forget events and logs that it could not send; it would try each for seconds at the exit."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for service in [*EventsWorker._instances.values(), *APILogWorker._instances.values()]:
        with contextlib.suppress(queue.Empty):
            while True:
                service._queue.get_nowait()
                service._queue.task_done()


def _shelf(site: Site) -> Path:
    return site.home / "prefect" / "owed"


def _read(file: Path) -> Owed | None:
    try:
        return Owed.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):  # another command was faster, or another version of KDQ wrote it
        return None


def _told(client: SyncPrefectClient, owed: Owed) -> list[str]:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, TaskRunFilter, TaskRunFilterState
    from prefect.exceptions import ObjectNotFound

    found = {"flow_run_filter": FlowRunFilter(id=FlowRunFilterId(any_=[owed.run]))}
    waiting = TaskRunFilter(state=TaskRunFilterState.model_validate({"type": {"any_": OPEN_TASKS}}))
    try:
        for task in client.read_task_runs(**found, task_run_filter=waiting, limit=200):
            client.set_task_run_state(task.id, _state(*owed.of(task.name), ""), force=True)
        name = owed.type.capitalize()
        if client.read_flow_run(owed.run).state_type == owed.type:
            return []  # Prefect has heard it
        client.set_flow_run_state(owed.run, _state(owed.type, name, owed.message), force=True)
    except ObjectNotFound:
        return []  # somebody deleted the run, or the database
    return [f"flow run {owed.name!r} is {name} in Prefect too, which was away when the run ended"]


def _state(kind: Kind, name: str, message: str) -> Any:
    from prefect.client.schemas.objects import State, StateType

    return State(type=StateType(kind), name=name, message=message or None)
