"""`kdq report`: the page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdq_flows.cli import common

RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="Name of a run, as its closing lines have it; or a recipe, its last run.")
]


def register_commands(app: typer.Typer) -> None:
    """Add `report`."""
    app.command("report", rich_help_panel="Inspect")(report)


def report(
    run: RunName,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file; default: beside the run's record, below KDQ_HOME.")
    ] = None,
) -> None:
    """Write the page of a run anew: one HTML file with verdict, charts, samples, layers, gates and the recipe."""
    import contextlib
    import sys

    from kdq_core.errors import RecipeError
    from kdq_core.plugins.catalog import Catalog
    from kdq_core.store.store import Store
    from kdq_flows.report import kept
    from kdq_flows.report.page import page

    site = common.site()
    record = kept.find(site, run)
    with contextlib.redirect_stdout(sys.stderr):  # what a plug-in prints
        html = page(record, record.view(Store(site.store)), Catalog.load())
    path = output or kept.folder(site, record.result.run) / kept.PAGE
    try:
        kept.write(path, html)
    except OSError as error:
        raise RecipeError(f"'{path}' cannot be written: {str(error.strerror).lower()}") from None
    typer.echo(path)
