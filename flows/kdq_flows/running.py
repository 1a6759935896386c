"""Run a recipe from this process: with Prefect, or inline."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kdq_core.errors import KdqError, NoCandidateError, RecipeError, StoreError
from kdq_core.plan.machine import check_devices
from kdq_core.plan.part import Part
from kdq_core.reading.studies import Study, load
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store import open_store
from kdq_core.store.store import explained
from kdq_flows.facts.result import RunResult
from kdq_flows.observer import Observer
from kdq_flows.report.numbers import number
from kdq_flows.run.diary import Diary
from kdq_flows.run.executors import Executor, executor_of
from kdq_flows.run.pipeline import Pipeline
from kdq_flows.run.search import study_run
from kdq_flows.run.shared import Shared
from kdq_flows.run.tidy import tidied

if TYPE_CHECKING:
    from kdq_flows.run.study import StudyRun
from kdq_flows.servers.environment import apply_environment

LEAST_BYTES = 1e9
"""A home with less free space is called full: a store entry is written before an old one goes."""


def run_recipe(
    recipe: Recipe | Study | str | Path,
    site: Site | None = None,
    *,
    server: bool = True,
    observer: Observer | None = None,
    part: Part | None = None,
) -> tuple[RunResult, KdqError | None]:
    """Run a recipe; gives the facts and, if a stage failed, its error.

    Args:
        recipe: a recipe with or without branches, or the path of its file.
        site: where to run it; by default the site that the environment describes.
        server: run as a Prefect flow; false runs it inline.
        observer: hears of stages, progress and messages.
        part: the stages to run; by default all.

    Raises:
        KdqError: the request is wrong, or a server does not start.
    """
    site = site or Site.from_environment()
    checked = load(Path(recipe)) if isinstance(recipe, str | Path) else recipe
    check_devices(site)
    if site.executor == "pool" and not server:
        raise RecipeError(
            "the executor 'pool' runs stages in a work pool of Prefect, and --no-server was given; leave that out, or "
            "choose another executor"
        )
    check_home(site)
    with tidied(site):
        if isinstance(checked, Study):
            run, error = run_study(checked, site, server=server, observer=observer, part=part)
            return run.facts(), error
        with Diary(site, checked.name, observer) as diary, executor_of(site, diary.message) as executor:
            return _run_recipe(checked, site, diary, executor, server=server, part=part)


def _run_recipe(
    recipe: Recipe, site: Site, diary: Diary, executor: Executor, *, server: bool, part: Part | None
) -> tuple[RunResult, KdqError | None]:
    pipeline = Pipeline(recipe, site, diary, diary.run, shared=Shared(executor=executor))
    diary.facts, diary.ended = pipeline.facts, pipeline.stages.values
    if part is not None:
        part.check({"": pipeline.plan})
        pipeline.take_part(part)
    links: dict[str, str] = {}
    try:
        pipeline.warm_up()
        if server:
            links = _run_with_server(pipeline)
        else:
            _reconcile(site, diary)
            pipeline.run_inline()
        pipeline.write_page()
    except KeyboardInterrupt:
        pipeline.stop()
        raise
    finally:
        pipeline.finish()
    _upload_left(site, diary)
    return pipeline.facts(links), pipeline.error


def run_study(
    study: Study,
    site: Site,
    *,
    server: bool = True,
    observer: Observer | None = None,
    part: Part | None = None,
) -> tuple[StudyRun, KdqError | None]:
    """Run all branches of a study; its error says which failed, or that none meets the goals.

    Args:
        study: what to run.
        site: where.
        server: run as a Prefect flow; false runs it inline.
        observer: hears of stages, progress and messages.
        part: the stages to run; by default all.

    Raises:
        KdqError: a branch cannot be planned, or a server does not start.
    """
    with Diary(site, study.name, observer) as diary, executor_of(site, diary.message) as executor:
        return _run_study(study, site, diary, executor, server=server, part=part)


def _run_study(
    study: Study, site: Site, diary: Diary, executor: Executor, *, server: bool, part: Part | None
) -> tuple[StudyRun, KdqError | None]:
    run = study_run(study, site, diary, diary.run, executor)
    diary.facts, diary.ended = run.facts, run.stages.values
    if part is not None:
        run.take_part(part)
    try:
        run.warm_up()
        run.check()
        if server:
            api = _with_server(site, run.observer)
            from kdq_flows.prefect.study_flow import run_study_as_flow
            from kdq_flows.servers.servers import ensure_mlflow_ui
            from kdq_registry.page import training_page

            run_study_as_flow(run)
            run.links = {"prefect": api.removesuffix("/api"), "mlflow": training_page(ensure_mlflow_ui(site))}
        else:
            _reconcile(site, run.observer)
            run.run_inline()
    except KeyboardInterrupt:
        run.stop(interrupted=True)
        raise
    finally:
        run.finish()
    _upload_left(site, diary)
    return run, run.error or no_candidate(run)


def no_candidate(run: StudyRun) -> KdqError | None:
    """The error of a study whose goals no branch meets."""
    return None if run.unmet is None else NoCandidateError(run.unmet)


def _run_with_server(pipeline: Pipeline) -> dict[str, str]:
    """Run as a Prefect flow; gives the addresses of the Prefect and MLflow pages."""
    site = pipeline.plan.site
    api = _with_server(site, pipeline.observer)
    from kdq_flows.prefect.flow import run_as_flow
    from kdq_flows.servers.servers import ensure_mlflow_ui
    from kdq_registry.page import training_page

    run_as_flow(pipeline)
    page = ensure_mlflow_ui(site)
    return {"prefect": api.removesuffix("/api"), "mlflow": pipeline.tracking.page(page) or training_page(page)}


def _with_server(site: Site, observer: Observer) -> str:
    """Bring the site's Prefect server up, and let this process use it; gives the address of its API."""
    from kdq_flows.servers.servers import ensure_prefect

    api, started = ensure_prefect(site)
    if started:
        observer.message(
            f"started the site's Prefect server at {api}; it stays up for the next run, `kdq down` ends it"
        )
    apply_environment(site, api)
    _reconcile(site, observer)
    return api


def check_home(site: Site) -> None:
    """Make the site's home, and try to write there and to the store, so that KDQ computes no result in vain.

    Raises:
        KdqError: KDQ cannot write to the home, or cannot use the store.
    """
    with explained(site.home, "write to KDQ_HOME"):
        site.store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=site.home) as file:
            file.write(b"\0" * 4096)
            file.flush()
    open_store(site).check()


def check_disk(site: Site) -> str:
    """Say how much space the home has.

    Raises:
        StoreError: less than `LEAST_BYTES`.
    """
    there = next(path for path in (site.home, *site.home.parents) if path.is_dir())
    usage = shutil.disk_usage(there)
    told = f"{number(usage.free, 'bytes')} free of {number(usage.total, 'bytes')}"
    if usage.free < LEAST_BYTES:
        raise StoreError(
            f"the home {str(site.home)!r} has {told}; `kdq cache gc --older 30d` shows what may go, or set KDQ_HOME to "
            "a larger disk"
        )
    return told


def _upload_left(site: Site, diary: Diary) -> None:
    """Upload what killed runs left and MLflow did not take when this run began, if it took all of this run."""
    from kdq_flows.owner import is_alive
    from kdq_registry.spool import spools
    from kdq_registry.uploading import upload_left

    if not any(spool.folder.name.startswith(diary.run) for spool in spools(site)):
        for line in upload_left(site, is_alive):
            diary.message(line)


def _reconcile(site: Site, observer: Observer) -> None:
    from kdq_flows.prefect.reconcile import reconcile
    from kdq_registry.environment import is_server
    from kdq_registry.schema import check_schema

    if is_server(site.mlflow_uri):
        check_schema(site)
    for line in reconcile(site):
        observer.message(line)
