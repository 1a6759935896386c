"""A stage that computes nothing runs in the process of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdq_core.errors import KdqError
from kdq_core.plan.plan import Node
from kdq_core.plugins.catalog import Catalog
from kdq_core.store.records import ModelVersion
from kdq_core.store.store import Entry, Store
from kdq_flows.observer import Observer
from kdq_flows.run.logs import logged


def here(request: dict[str, Any], node: Node, store: Store, catalog: Catalog, observer: Observer, log: Path) -> Entry:
    """Run a stage with `device="none"`, and give its entry.

    Raises:
        KdqError: the stage failed; the traceback of an unexpected error is in `log`.
    """
    from kdq_core.work.run import StageRequest, run_stage

    try:
        entry = run_stage(StageRequest.model_validate(request), observer.progress, catalog)
    except KdqError:
        raise
    except Exception as error:
        raise logged(error, log) from error
    if isinstance(entry.record, ModelVersion):
        # A version has the newest gates and report. With an older entry, a later run would not update them.
        for manifest in list(store.manifests(node.use)):
            if manifest.record == entry.record and manifest.key != request["key"]:
                store.discard(manifest.key)
    return entry
