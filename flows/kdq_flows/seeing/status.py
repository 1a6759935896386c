"""What happens now in a home: `kdq status`."""

from __future__ import annotations

import datetime
import re
from typing import Any

from kdq_core.recipe.spec import Site
from kdq_flows.facts.state import RunState, StageNow, running
from kdq_flows.run.holders import holders
from kdq_flows.seeing.logs import logs_of
from kdq_flows.servers.servers import status as servers_of

_EPOCH = re.compile(rb" epoch (\d+): ")
_TAIL = 8192


def status(site: Site) -> dict[str, list[dict[str, Any]]]:
    """Runs that are running and the servers of a home, and the devices of the machine with who holds them."""
    runs = running(site)
    by_owner = {one.owner: one.run for one in runs}
    devices = [
        {
            "device": one.device,
            "state": "free" if one.owner is None else "held",
            "share": one.share,
            "pid": pid_of(one.owner or ""),
            "run": by_owner.get(one.owner or ""),
        }
        for one in holders(site)
    ]
    return {"runs": [_run(site, one) for one in runs], "devices": devices, "servers": servers_of(site)}


def pid_of(owner: str) -> int | None:
    """The number of the process that an owner's tag names; `None` if the tag is no such one."""
    parts = owner.split(":")
    return int(parts[1]) if len(parts) == 4 and parts[1].isdigit() else None


def _run(site: Site, state: RunState) -> dict[str, Any]:
    logs = logs_of(site, state.run)
    return {
        "run": state.run,
        "recipe": state.recipe,
        "pid": pid_of(state.owner),
        "host": state.owner.partition(":")[0],
        "since": _utc(state.began),
        "device": state.device,
        "ended": [one.name for one in state.stages],
        "now": [_stage(one, _epoch(logs.get(one.name))) for one in state.now],
    }


def _stage(stage: StageNow, epoch: int | None) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "since": _utc(stage.since),
        "progress": round(stage.done / stage.total, 3) if stage.total else None,
        "epoch": epoch,
        "note": stage.note,
    }


def _epoch(log: Any) -> int | None:
    """The last epoch that the log of a stage tells of."""
    if log is None:
        return None
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - _TAIL))
        found = _EPOCH.findall(file.read())
    return int(found[-1]) if found else None


def _utc(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
