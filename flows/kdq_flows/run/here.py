"""Runs a stage that computes nothing, such as `register`, in the process of the run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdq_core.errors import KdqError
from kdq_core.plan.plan import Node
from kdq_core.plugins.catalog import Catalog
from kdq_core.store.records import ModelVersion
from kdq_core.store.store import Entry, Store
from kdq_flows.facts.tracking import RunTracking
from kdq_flows.observer import Observer
from kdq_flows.run.logs import logged
from kdq_flows.run.supervisor import StageCancelledError


def here(
    request: dict[str, Any], heard: Callable[[dict[str, Any]], None], *, catalog: Catalog, store: Store, log: Path
) -> Entry:
    """Run the stage; gives its entry.

    Args:
        request: what the stage shall do.
        heard: called with each event.
        catalog: the plug-ins.
        store: takes the entry.
        log: gets the traceback of an unexpected error.

    Raises:
        KdqError: the stage failed.
    """
    from kdq_core.work.run import StageRequest, run_stage

    try:
        entry = run_stage(StageRequest.model_validate(request), heard, catalog)
    except KdqError:
        raise
    except Exception as error:
        raise logged(error, log) from error
    if isinstance(entry.record, ModelVersion):
        # A version has the newest gates and report. With an older entry, a later run would not update them.
        for manifest in list(store.manifests(entry.manifest.stage)):
            if manifest.record == entry.record and manifest.key != entry.manifest.key:
                store.discard(manifest.key)
    return entry


def tracked_run(tracking: RunTracking, node: Node, observer: Observer, cancelled: threading.Event) -> str | None:
    """MLflow's id of the run; before a registration, KDQ waits until MLflow has all that was told to it.

    Raises:
        KdqError: MLflow did not answer, or the run was cancelled meanwhile.
    """
    if node.gives != "version":
        return tracking.run_id
    run = tracking.settled(observer.message, cancelled)
    if cancelled.is_set():
        raise StageCancelledError("the run was cancelled before it registered its model")
    return run
