"""Run one stage of a plan and commit its entry to the store."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, JsonValue

from kdq_core.errors import StageError
from kdq_core.frozen import Frozen
from kdq_core.plan.keys import KeyParts
from kdq_core.plan.plan import asked_of
from kdq_core.plugins.asked import Asked
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.wiring import Wired, wire
from kdq_core.recipe.gpus import CPU
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store import drafts, open_store
from kdq_core.store.store import Entry
from kdq_core.work.outcome import outcome
from kdq_core.work.shown import Emit
from kdq_core.work.work import StageWork


class StageRequest(Frozen):
    """A request to compute one stage of a plan, as KDQ sends it to a worker.

    Attributes:
        title: title of the stage in the plan.
        key: key of its entry.
        parts: the values that the key is a hash of.
        parents: keys of the entries that it reads, by port.
        recipe: the recipe, with default gates that fit it.
        site: where it runs.
        checks: titles of the stages that KDQ checks first: those that this run will compute.
        only_checks: whether KDQ stops after the checks.
        lineage: digests of the entries of all earlier stages, by title.
        tracking_run: MLflow's id of the run.
        lock: the lock of the run so far, as JSON.
    """

    title: str
    key: str
    parts: dict[str, JsonValue]
    parents: dict[str, str]
    recipe: Recipe
    site: Site
    checks: tuple[str, ...] = ()
    only_checks: bool = False
    lineage: dict[str, str] = Field(default={})
    tracking_run: str | None = None
    lock: str | None = None


def run_stage(request: StageRequest, emit: Emit, catalog: Catalog | None = None) -> Entry:
    """Compute the stage and write its entry. The caller holds the claim of the key, and has found no entry.

    Args:
        request: the stage.
        emit: receives progress events.
        catalog: the plug-ins; by default those installed.

    Raises:
        KdqError: the stage failed, or its code, files or settings changed since KDQ planned it.
    """
    store, catalog = open_store(request.site), catalog or Catalog.load()
    asked = asked_of(request.recipe, request.site, catalog)
    before = {one.title: one for one in wire(asked, catalog)}
    wired = before[request.title]
    _check_unchanged(request, wired, before, KeyParts(asked, catalog))
    parents = {port: store.get(key) for port, key in request.parents.items()}
    scratch = request.site.home / "scratch" / request.key
    (scratch / "tmp").mkdir(parents=True, exist_ok=True)
    remembered = request.site.home / "micro-batches" / request.key
    if not any(scratch.glob("*.micro")):
        _remember(remembered, scratch)
    with _own_process(wired, request.site, scratch):
        _check(request, before, asked, scratch, emit)
        with store.draft(request.key) as draft:
            work = StageWork(
                wired=wired,
                _asked=asked,
                parents=parents,
                draft=draft,
                scratch=scratch,
                emit=emit,
                lineage=request.lineage,
                tracking_run=request.tracking_run,
                lock=request.lock,
            )
            record = outcome(work, catalog)
            _check_unchanged(request, wired, before, KeyParts(asked, catalog))
            entry = store.commit(draft, stage=wired.use, key=request.key, parts=request.parts, record=record)
    _remember(scratch, remembered)
    shutil.rmtree(scratch, ignore_errors=True)
    return entry


def run_share(request: StageRequest, folder: Path, catalog: Catalog | None = None) -> None:
    """Compute the stage beside the process that runs `run_stage`, and keep nothing: their fits share each batch.

    Args:
        request: the stage.
        folder: for what this process writes.
        catalog: the plug-ins; by default those installed.

    Raises:
        KdqError: the stage failed.
    """
    store, catalog = open_store(request.site), catalog or Catalog.load()
    asked = asked_of(request.recipe, request.site, catalog)
    wired = {one.title: one for one in wire(asked, catalog)}[request.title]
    parents = {port: store.get(key) for port, key in request.parents.items()}
    (folder / "tmp").mkdir()
    (folder / "draft").mkdir()
    with _own_process(wired, request.site, folder):
        scratch = request.site.home / "scratch" / request.key
        work = StageWork(wired, asked, parents, folder / "draft", scratch, lambda _event: None)
        outcome(work, catalog)


def check_ahead(request: StageRequest, emit: Emit, catalog: Catalog | None = None) -> None:
    """Run the checks of a request, and compute nothing.

    Raises:
        KdqError: a stage refuses the recipe, the data or the models.
    """
    catalog = catalog or Catalog.load()
    asked = asked_of(request.recipe, request.site, catalog)
    before = {one.title: one for one in wire(asked, catalog)}
    with drafts.place(request.site.home / "scratch", "checks") as scratch:
        (scratch / "tmp").mkdir(parents=True)
        with _own_process(before[request.title], request.site, scratch):
            _check(request, before, asked, scratch, emit)


def _remember(source: Path, target: Path) -> None:
    """Copy the sizes of micro-batches that fits found, so that the next fit of this key begins with them."""
    for file in source.glob("*.micro"):
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / file.name)


@contextlib.contextmanager
def _own_process(wired: Wired, site: Site, scratch: Path) -> Iterator[None]:
    """Set what belongs to a process: torch's switches, and a folder in the home for temporary files of libraries.

    A stage that computes nothing runs in the process of the run, and leaves both as they are.
    """
    if wired.stage.needs.device == "none":
        yield
        return
    from kdq_core.training.backend import plain_torch

    plain_torch(site.threads)
    share = wired.stage.needs.memory or site.gpu_share
    if site.device != CPU and share < 1 and not site.devices:  # several devices are leased whole
        import torch

        torch.cuda.set_per_process_memory_fraction(share)
    before, tempfile.tempdir = tempfile.tempdir, str(scratch / "tmp")
    try:
        yield
    finally:
        tempfile.tempdir = before


def _check(request: StageRequest, before: dict[str, Wired], asked: Asked, scratch: Path, emit: Emit) -> None:
    if request.checks:
        from kdq_core.work.checking import check_all

        check_all(before.values(), asked, scratch, emit, titles=request.checks)
        emit({"event": "checked"})


def _check_unchanged(request: StageRequest, wired: Wired, before: dict[str, Wired], parts: KeyParts) -> None:
    """Refuse to store a result whose code, files or settings do not match its key: later runs would reuse it."""
    now: dict[str, JsonValue] = parts.of(wired, before)
    now |= {name: part for name, part in request.parts.items() if name in ("parents", "device")}  # as planned
    changed = sorted(_different(now, request.parts))
    if changed:
        raise StageError(
            f"stage {request.title!r} was planned with other code, files or settings than are there now "
            f"({', '.join(changed)}); nothing was stored; run again: KDQ plans it with what is there now"
        )


def _different(now: object, then: object, name: str = "") -> set[str]:
    if isinstance(now, dict) and isinstance(then, dict):
        inside = now.keys() | then.keys()
        found = (_different(now.get(k), then.get(k), f"{name}.{k}" if name else str(k)) for k in inside)
        return set().union(*found)
    return set() if now == then else {name}
