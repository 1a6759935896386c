"""Runs a stage that computes nothing, such as `register`, in the process of the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdq_core.errors import KdqError
from kdq_core.plugins.catalog import Catalog
from kdq_core.store.records import ModelVersion
from kdq_core.store.store import Entry, Store
from kdq_flows.run.logs import logged


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
