"""Lets a worker process answer a request about a stage, with the leases that the stage needs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kdq_core.plan.plan import Node, Plan
from kdq_core.recipe.gpus import CPU
from kdq_core.store.claims import Claim
from kdq_flows.observer import Observer
from kdq_flows.run.leases import lease
from kdq_flows.run.supervisor import refuse_cancelled, run_child
from kdq_flows.run.warm import WarmWorker


def in_worker(
    plan: Plan,
    node: Node,
    request: dict[str, Any],
    heard: Callable[[dict[str, Any]], None],
    *,
    observer: Observer,
    logs: Path,
    cancelled: threading.Event,
    warm: WarmWorker | None,
    claim: Claim | None,
) -> None:
    """Wait for what the stage needs of the machine, and for the worker's answer.

    Args:
        plan: gives the site and the time limits.
        node: the stage.
        request: what the worker shall do.
        heard: called with each event.
        observer: hears what KDQ waits for.
        logs: folder of the stage's log.
        cancelled: if it is set, KDQ ends the worker.
        warm: forks the worker, if there is one.
        claim: the claim of the stage's key, if it writes an entry; the worker holds it too.

    Raises:
        KdqError: see `run_child`.
    """
    site, retry = plan.site, plan.recipe.retry_of(node.name)

    check = partial(refuse_cancelled, cancelled)
    check()
    with lease(
        site, node.needs, on_wait=lambda why: observer.message(f"{node.name} waits: {why}"), check=check
    ) as leased:
        there = site.at(*leased.devices)
        run_child(
            request | {"site": there.model_dump(mode="json")},
            site=there,
            descriptors=(*leased.descriptors, *(claim.descriptors if claim else ())),
            timeout_seconds=retry.stage_timeout_seconds,
            stall_seconds=retry.stall_seconds,
            on_event=heard,
            log=logs / f"{node.name}.log",
            cancelled=cancelled,
            starter=warm if leased.device == CPU else None,
            measures=node.needs.alone,
        )
