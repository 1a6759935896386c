"""Run a recipe from this process: with Prefect, or inline."""

from __future__ import annotations

import tempfile
from pathlib import Path

from kdq_core.errors import KdqError
from kdq_core.plan.machine import check_gpu
from kdq_core.reading.checks import load_recipe
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.store import Store, explained
from kdq_flows.facts.result import RunResult
from kdq_flows.observer import Observer, Silent
from kdq_flows.run.pipeline import Pipeline
from kdq_flows.servers.environment import apply_environment


def run_recipe(
    recipe: Recipe | str | Path, site: Site | None = None, *, server: bool = True, observer: Observer | None = None
) -> tuple[RunResult, KdqError | None]:
    """Run a recipe; gives the facts and, if a stage failed, its error.

    Args:
        recipe: a recipe, or the path of its file.
        site: where to run it; by default the site that the environment describes.
        server: run as a Prefect flow; false runs it inline.
        observer: hears of stages, progress and messages.

    Raises:
        KdqError: the request is wrong, or a server does not start.
    """
    site = site or Site.from_environment()
    observer = observer or Silent()
    checked = recipe if isinstance(recipe, Recipe) else load_recipe(Path(recipe))
    check_gpu(site.device)
    check_home(site)
    Store(site.store).sweep()
    pipeline = Pipeline(checked, site, observer)
    links: dict[str, str] = {}
    try:
        pipeline.warm_up()
        if server:
            links = _run_with_server(pipeline)
        else:
            _reconcile(site)
            pipeline.run_inline()
        pipeline.write_page()
    finally:
        pipeline.finish()
    return pipeline.facts(links), pipeline.error


def _run_with_server(pipeline: Pipeline) -> dict[str, str]:
    """Run as a Prefect flow; gives the addresses of the Prefect and MLflow pages."""
    from kdq_flows.servers.servers import ensure_mlflow_ui, ensure_prefect
    from kdq_registry.page import training_page

    site = pipeline.plan.site
    api, started = ensure_prefect(site)
    if started:
        pipeline.observer.message(
            f"started the site's Prefect server at {api}; it stays up for the next run, `kdq down` ends it"
        )
    apply_environment(site, api)
    _reconcile(site)
    from kdq_flows.prefect.flow import run_as_flow

    run_as_flow(pipeline)
    page = ensure_mlflow_ui(site)
    return {"prefect": api.removesuffix("/api"), "mlflow": pipeline.tracking.page(page) or training_page(page)}


def check_home(site: Site) -> None:
    """Make the site's home and try to write there, so that KDQ computes no result that it could not store.

    Raises:
        StoreError: KDQ cannot write to the home.
    """
    with explained(site.home, "write to KDQ_HOME"):
        site.store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=site.home) as file:
            file.write(b"\0" * 4096)
            file.flush()


def _reconcile(site: Site) -> None:
    from kdq_flows.prefect.reconcile import reconcile

    reconcile(site)
