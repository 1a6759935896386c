"""`kdq report` and `kdq compare`: the page of a run, and runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdq_flows.cli import common

if TYPE_CHECKING:
    from kdq_core.recipe.spec import Site
    from kdq_flows.report.compare import Compared

RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="Name of a run, as its closing lines have it; or a recipe, its last run.")
]


def register_commands(app: typer.Typer) -> None:
    """Add `report` and `compare`."""
    app.command("report", rich_help_panel="Inspect")(report)
    app.command("compare", rich_help_panel="Inspect")(compare)


def report(
    run: RunName,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file; default: beside the run's record, below KDQ_HOME.")
    ] = None,
) -> None:
    """Write the page of a run or study anew: one HTML file with verdict, charts, samples, layers, gates, recipe."""
    from kdq_flows.report import kept
    from kdq_flows.seeing.studies import page_of_study

    site = common.site()
    place, html = page_of_study(site, run) or _page_of_run(site, run)
    path = output or place
    with common.writing(path):
        kept.write(path, html)
    typer.echo(path)


def _page_of_run(site: Site, run: str) -> tuple[Path, str]:
    import contextlib
    import sys

    from kdq_core.plugins.catalog import Catalog
    from kdq_core.store import open_store
    from kdq_flows.report import kept
    from kdq_flows.report.page import page

    record = kept.find(site, run)
    with contextlib.redirect_stdout(sys.stderr):  # what a plug-in prints
        html = page(record, record.view(open_store(site)), Catalog.load(), kept.explained(site, record.result.run))
    return kept.folder(site, record.result.run) / kept.PAGE, html


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN|VERSION...", help="Runs as for kdq report, or NAME/NUMBER, NAME@ALIAS.")
    ],
    csv: Annotated[Path | None, typer.Option("--csv", help="Also write all metrics to this CSV file.")] = None,
    parquet: Annotated[Path | None, typer.Option("--parquet", help="Also write them to this Parquet file.")] = None,
    as_json: common.JsonFlag = False,
) -> None:
    """Put runs side by side: quality, size and speed, the Pareto front, and paired tests on the same samples."""
    from kdq_core.store import open_store
    from kdq_flows.report import kept
    from kdq_flows.report.compare import compare as compared

    site = common.site()
    found = {record.result.run: record for record in (kept.find(site, run) for run in runs)}
    result = compared([(name, record.view(open_store(site))) for name, record in found.items()])
    for path, write in ((csv, result.frame.to_csv), (parquet, result.frame.to_parquet)):
        if path is not None:
            with common.writing(path):
                write(path, index=False)
    if as_json:
        typer.echo(result.frame.to_json(orient="records", indent=2))
        return
    common.show(_rows(result), title=f"Models of {len(found)} runs", as_json=False)
    for note in result.notes:
        common.say(note)
    common.say("front: no other file is both smaller and better; paired: against the first run's int8 file, 95 %")


def _rows(result: Compared) -> list[dict[str, object]]:
    """The table for the terminal: the main figures with their intervals."""
    from kdq_flows.facts.verdict import between, words_of
    from kdq_flows.report.compare import PAIRED
    from kdq_flows.report.numbers import number

    rows = []
    times = [name for name, unit in result.units.items() if unit == "ms"][:1]
    for cells in result.frame.to_dict("records"):
        row: dict[str, object] = {"run": cells["run"], "model": cells["model"]}
        for name in (result.metric, "bytes", *times, "speedup"):
            value, low, high = (float(cells.get(f"{name}{end}", "nan")) for end in ("", "_low", "_high"))
            if value == value:
                unit = result.units[name]
                ends = f" ({100 * low:.2f} to {100 * high:.2f})" if unit == "fraction" and low == low else ""
                row[words_of(name)] = f"{number(value, unit)}{ends}"
        row["front"] = "*" if cells["front"] else ""
        value, low, high, p = (float(cells.get(name, "nan")) for name in PAIRED)
        if value == value and result.units[result.metric] == "fraction":
            row["paired"] = f"{100 * value:+.2f} points{between(low, high, 100, 2)}{f', p {p:.2g}' if p == p else ''}"
        elif value == value:
            row["paired"] = f"{value:+.3g}{between(low, high)}"
        rows.append(row)
    return rows
