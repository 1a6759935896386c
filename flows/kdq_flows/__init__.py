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
    """Run a recipe; does what `kdq run` does and gives the same facts.

    Args:
        recipe: a recipe, or the path of its file.
        site: where to run it; by default what the environment says.
        server: run it as a Prefect flow, starting the site's own server where none is configured; otherwise inline.
        observer: is told what happens.

    Raises:
        KdqError: the request was wrong or a stage failed; the text says what to do.
    """
    from kdq_flows.running import run_recipe

    result, error = run_recipe(recipe, site, server=server, observer=observer)
    if error is not None:
        raise error
    return result
