"""Runs one heavy stage on this machine, from a request of plain data; every executor calls `run_node`.

The order for each node: claim of its key, second look-up, lease of the device, child process. So two runs, threads or
machines that want one key compute it once; the second waits, and computes it if the first dies.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import JsonValue

from kdq_core.errors import ErrorRecord, StageError
from kdq_core.frozen import Frozen
from kdq_core.plan.keys import site_of
from kdq_core.plan.machine import machine_parts
from kdq_core.plugins.contract import Needs
from kdq_core.recipe.gpus import CPU
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store import open_store
from kdq_core.store.claims import Claim
from kdq_flows.owner import host, owner_tag
from kdq_flows.run.leases import lease
from kdq_flows.run.logs import failure
from kdq_flows.run.supervisor import StageCancelledError, Starter, refuse_cancelled, run_child

Event = dict[str, Any]
Heard = Callable[[Event], None]
NOTHING = Claim()


class NodeRequest(Frozen):
    """A request to run a node, as an executor passes it on.

    Attributes:
        stage: the fields of `kdq_core.work.run.StageRequest` but `site`.
        needs: what the stage needs of the machine.
        log: the stage's log, below `logs` in the home of the machine that works.
        store: the address of the run's store, if it has one.
        site: where it runs; `None` means the site that the environment of the working machine describes.
    """

    stage: dict[str, JsonValue]
    needs: Needs
    log: str
    store: str | None = None
    site: Site | None = None


class NodeAnswer(Frozen):
    """What became of a node.

    Attributes:
        key: key of its entry.
        by: owner tag of the process that ran it.
        state: it `ran` here, or another process had computed the entry (`shared`), or it failed.
        events: those that the driving process has not heard yet, in order, each with its time (`at`); no progress.
        error: why it failed.
        cancelled: it failed because somebody cancelled it.
        store: the folder of the store that has the entry.
    """

    key: str
    by: str
    state: str
    events: tuple[dict[str, JsonValue], ...] = ()
    error: ErrorRecord | None = None
    cancelled: bool = False
    store: str = ""

    def raise_error(self) -> None:
        """Raise why the node failed, if it did.

        Raises:
            KdqError: the node failed or was cancelled.
        """
        if self.cancelled:
            raise StageCancelledError("" if self.error is None else self.error.message)
        if self.error is not None:
            raise self.error.to_error()


@dataclass(frozen=True)
class Driving:
    """What a node has besides its request if it runs in the process that drives the run.

    Attributes:
        hear: called with each event as it happens.
        cancelled: if it is set, KDQ ends the node.
        warm: forks the child, if there is one.
    """

    hear: Heard | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    warm: Starter | None = None


def run_node(request: dict[str, Any], driving: Driving | None = None) -> dict[str, Any]:
    """Run a node; gives a `NodeAnswer` as plain data, whether it failed or not.

    Args:
        request: a `NodeRequest` as plain data.
        driving: what the driving process adds; elsewhere nothing is needed.
    """
    driving = driving or Driving()
    kept: list[Event] = []
    hear = driving.hear or kept.append

    def tell(event: Event) -> None:
        hear({"at": time.time(), **event})

    answer: dict[str, Any] = {"key": request["stage"]["key"], "by": owner_tag()}
    try:
        asked = NodeRequest.model_validate(request)
        site = asked.site or Site.from_environment()
        answer |= {"store": site.store_address or str(site.store), "state": _ran(asked, site, tell, driving)}
    except Exception as error:
        failed = failure(error)
        cancelled = isinstance(error, StageCancelledError)
        answer |= {"state": "failed", "error": ErrorRecord.of(failed).model_dump(), "cancelled": cancelled}
    return answer | {"events": [event for event in kept if event["event"] != "progress"]}


def _ran(asked: NodeRequest, site: Site, tell: Heard, driving: Driving) -> str:
    """Bring the entry into the store; gives the answer's state."""
    title, key = str(asked.stage["title"]), str(asked.stage["key"])

    check = partial(refuse_cancelled, driving.cancelled)
    waits = partial(tell, {"event": "message", "text": f"{title} waits: another run computes it"})
    check()
    _check_machine(asked, site)
    if asked.store != site.store_address:
        raise StageError(
            f"the worker on {host()!r} cannot compute {title!r}, because it has the store {_store(site.store_address)} "
            f"and the run has {_store(asked.store)}; set KDQ_STORE alike on both"
        )
    if asked.stage.get("only_checks"):
        _in_child(asked, site, tell, driving)
        return "ran"
    store = open_store(site)
    with store.claim(key, on_wait=waits, check=check) as claim:
        existing = store.lookup_or_discard(key, lambda text: tell({"event": "message", "text": text}))
        if existing is not None:
            tell({"event": "shared"})
            return "shared"
        tell({"event": "begun"})
        _in_child(asked, site, tell, driving, claim)
    return "ran"


def _in_child(asked: NodeRequest, site: Site, tell: Heard, driving: Driving, claim: Claim = NOTHING) -> None:
    """Wait for what the stage needs of the machine, and for the answer of its child process.

    Raises:
        KdqError: see `run_child`.
    """
    title, check = str(asked.stage["title"]), partial(refuse_cancelled, driving.cancelled)
    retry = Recipe.model_validate(asked.stage["recipe"]).retry_of(title)

    def waits(why: str) -> None:
        tell({"event": "message", "text": f"{title} waits: {why}"})

    with lease(site, asked.needs, on_wait=waits, check=check) as leased:
        there = site.at(*leased.devices)
        run_child(
            asked.stage | {"site": there.model_dump(mode="json")},
            site=there,
            descriptors=(*leased.descriptors, *claim.descriptors),
            timeout_seconds=retry.stage_timeout_seconds,
            stall_seconds=retry.stall_seconds,
            on_event=tell,
            log=site.home / "logs" / asked.log,
            cancelled=driving.cancelled,
            starter=driving.warm if leased.device == CPU else None,
            measures=asked.needs.alone,
        )


def _check_machine(asked: NodeRequest, site: Site) -> None:
    """Refuse a machine whose results would differ from those that the key means.

    Raises:
        StageError: it differs; the message names what both have.
    """
    parts = asked.stage.get("parts")
    planned = parts.get("device") if isinstance(parts, dict) else None
    if not isinstance(planned, dict):
        return
    here = machine_parts(site_of(asked.needs, site))
    names = [name for name in (*planned, *(here.keys() - planned.keys())) if here.get(name) != planned.get(name)]
    if names:
        differ = "; ".join(
            f"{name}: {_short(here.get(name))} here, {_short(planned.get(name))} planned" for name in names
        )
        raise StageError(
            f"the worker on {host()!r} cannot compute {asked.stage['title']!r}, because its results would differ from "
            f"those of the machine that planned the run ({differ}); set KDQ_THREADS and the other variables alike on "
            "both, or use a worker on such a machine"
        )


def _store(address: str | None) -> str:
    return "in its home" if address is None else repr(address)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
