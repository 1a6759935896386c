"""Flows: KDQ's plan as a Prefect flow, its servers and schedules, and the `kdq` command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdq_core.recipe.spec import Recipe, Site
    from kdq_flows.facts.result import RunResult
    from kdq_flows.observer import Observer


def compress(
    recipe: Recipe | str | Path,
    site: Site | None = None,
    *,
    server: bool = True,
    observer: Observer | None = None,
) -> RunResult:
    """Run a recipe as `kdq run` does, and return the same facts.

    Args:
        recipe: a recipe, or the path of its file.
        site: where to run it; by default the site that the environment describes.
        server: run it as a Prefect flow, and start the site's own server if none is configured; false runs it inline.
        observer: hears of stages, progress and messages.

    Raises:
        KdqError: the request is wrong or a stage failed; the message says what to do.
    """
    from kdq_flows.running import run_recipe

    result, error = run_recipe(recipe, site, server=server, observer=observer)
    if error is not None:
        raise error
    return result
