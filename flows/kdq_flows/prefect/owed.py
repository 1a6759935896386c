"""How flow runs ended, for a Prefect server that was away at that moment: KDQ keeps it, and tells it later."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import AwareDatetime, ValidationError

from kdq_core.frozen import Frozen
from kdq_core.recipe.spec import Site
from kdq_flows.facts.parts import StageFacts
from kdq_flows.run.logs import keep
from kdq_flows.servers.environment import apply_environment
from kdq_flows.servers.servers import running_prefect

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

Kind = Literal["COMPLETED", "FAILED"]
OPEN_TASKS = ["RUNNING", "PENDING", "CANCELLING", "SCHEDULED"]  # scheduled: it waited for its next try


class Owed(Frozen):
    """How a flow run ended.

    Attributes:
        run: the flow run.
        api: the configured server; `None` for the home's own.
        name: the run's name.
        type: type of its last state.
        message: text of that state.
        ended: when.
        tasks: type and name of the last state of each task, by the task's name.
    """

    run: uuid.UUID
    api: str | None
    name: str
    type: Kind
    message: str
    ended: AwareDatetime
    tasks: dict[str, tuple[Kind, str]]


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
    owed = Owed(
        run=run, api=site.prefect_api, name=name, type="FAILED" if error else "COMPLETED", message=error or message,
        ended=datetime.now().astimezone(),
        tasks={stage.name: shown.get(stage.state, ("COMPLETED", "Cached")) for stage in stages},
    )  # fmt: skip
    keep(owed.model_dump_json(), _shelf(site) / f"{run}.json")


def heard(site: Site, run: uuid.UUID | None) -> None:
    """Forget what was kept about a flow run; Prefect has its state."""
    (_shelf(site) / f"{run}.json").unlink(missing_ok=True)


def settle(site: Site) -> list[str]:
    """Tell Prefect what is owed to it, if it answers; gives a line for each flow run."""
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
            if owed is not None and owed.api == site.prefect_api:
                lines += _told(client, owed)
                file.unlink(missing_ok=True)
    return lines


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
            if task.name in owed.tasks:
                kind, name = owed.tasks[task.name]
                client.set_task_run_state(task.id, _state(kind, name, "", owed.ended), force=True)
        name = owed.type.capitalize()
        if client.read_flow_run(owed.run).state_type == owed.type:
            return []  # Prefect has heard it
        client.set_flow_run_state(owed.run, _state(owed.type, name, owed.message, owed.ended), force=True)
    except ObjectNotFound:
        return []  # somebody deleted the run, or the database
    return [f"flow run {owed.name!r} is {name} in Prefect too, which was away when the run ended"]


def _state(kind: Kind, name: str, message: str, ended: datetime) -> Any:
    from prefect.client.schemas.objects import State, StateType

    return State(type=StateType(kind), name=name, message=message or None, timestamp=ended)
