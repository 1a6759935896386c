"""Measure a registered version in this environment, as the stage that measured it did.

If the store has the models that the version was made of, the whole stage runs again in a worker, parity included.
Otherwise the evaluators run on the file alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from kdq_core.errors import KdqError, StageError
from kdq_core.plan.lock import Lock, LockedStage, lock_of
from kdq_core.plan.plan import asked_of
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.contract import Needs
from kdq_core.plugins.kinds import Subject
from kdq_core.recipe.spec import Site
from kdq_core.store import open_store
from kdq_core.store.records import EvaluationReport, Metric
from kdq_core.store.store import Entry, Store
from kdq_flows.observer import Observer
from kdq_flows.run.leases import lease
from kdq_flows.run.pipeline import Pipeline

if TYPE_CHECKING:
    from kdq_core.tensors import Batch
    from kdq_registry.watch import Champion

MODEL = "int8"


def measure(
    site: Site, version: Champion, folder: Path, observer: Observer
) -> tuple[tuple[Metric, ...], str, frozenset[str] | None]:
    """Measure a version anew; the store keeps nothing of it.

    Args:
        site: its store may have the models that the version was made of.
        version: the version.
        folder: a folder for what is measured; it goes afterwards.
        observer: hears of stages.

    Returns:
        The metrics of the int8 file, what was measured in words, and the names of the metrics that were asked for;
        `None` for all that the report has.

    Raises:
        StageError: the version cannot be measured here.
    """
    lock = None if version.lock is None else lock_of(version.lock, f"the lock of {version.name}/{version.version}")
    entries = {} if lock is None else _entries(lock, open_store(site))
    with lease(site, Needs(device="cpu", alone=True)):
        if lock is not None and entries:
            return _whole(site, lock, entries, folder, observer), "the models and the file", None
        metrics = _file_alone(site, version)
    return (
        metrics,
        "the file alone; this home has not the models that it was made of",
        frozenset(m.name for m in metrics),
    )


def _entries(lock: Lock, store: Store) -> dict[str, Entry]:
    """The entries that the measuring stage reads, by stage; none if one is missing."""
    measuring = _measuring(lock)
    found: dict[str, Entry] = {}
    stages = {stage.name: stage for stage in lock.stages}
    waiting = list(measuring.parents.values()) if measuring else []
    while waiting:
        stage = stages[waiting.pop()]
        if stage.name in found:
            continue
        entry = None
        with contextlib.suppress(KdqError):  # a damaged entry is as good as none
            entry = store.lookup(stage.key) if stage.key else None
        if entry is None:
            return {}
        found[stage.name] = entry
        waiting += stage.parents.values()
    return found


def _measuring(lock: Lock) -> LockedStage | None:
    """The last stage that gives a report."""
    return next((stage for stage in reversed(lock.stages) if stage.use == "evaluate" and stage.heavy), None)


def _whole(site: Site, lock: Lock, entries: dict[str, Entry], folder: Path, observer: Observer) -> tuple[Metric, ...]:
    """Run the measuring stage again in an empty store that has links to the entries it reads."""
    here = Site(home=folder / "home", device="cpu", precision=lock.precision, threads=site.threads)
    for entry in entries.values():
        place = open_store(here).folder(entry.manifest.key)
        shutil.copytree(entry.folder, place, copy_function=_linked)
    measuring = _measuring(lock)
    assert measuring is not None
    pipeline = Pipeline(lock.recipe, here, observer, tracked=False)
    pipeline.entries |= {name: open_store(here).get(entry.manifest.key) for name, entry in entries.items()}
    try:
        pipeline.run_inline({measuring.name})
    finally:
        pipeline.finish()
    if pipeline.error is not None:
        raise pipeline.error
    record = pipeline.entries[measuring.name].record
    assert isinstance(record, EvaluationReport)
    return record.models.get(MODEL, ())


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def _file_alone(site: Site, version: Champion) -> tuple[Metric, ...]:
    """Run the evaluators on the file; those that need its simulation give nothing."""
    from kdq_core.work.data import EVALUATION_BATCH, checked

    asked = asked_of(version.recipe, site, Catalog.load())

    def batches() -> Iterable[Batch]:
        return (checked(one, "test") for one in asked.workload.batches("test", batch_size=EVALUATION_BATCH))

    subject = Subject(role=MODEL, path=version.model, target=asked.target, threads=site.threads)
    found: list[Metric] = []
    for use, evaluator in zip(version.recipe.evaluate, asked.evaluators, strict=True):
        try:
            found += evaluator.evaluate(subject, subject, batches)
        except KdqError:
            raise
        except Exception as error:
            raise StageError(
                f"evaluator {use.use!r} cannot measure version {version.version} of {version.name!r} from its file "
                f"alone ({type(error).__name__}: {error}); run `kdq watch` in the home that made it"
            ) from error
    return tuple(found)
