"""`kdq models` and `kdq promote`."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from kdq_flows.cli import common
from kdq_flows.cli.common import JsonFlag

if TYPE_CHECKING:
    from kdq_registry.promotion import PromotionResult


def models(as_json: JsonFlag = False) -> None:
    """List the registered models: versions, aliases, quality, size."""
    from kdq_registry.promotion import list_models

    site = common.site()
    rows = list_models(site)
    if rows or as_json:
        shown = rows if as_json else [row | {"aliases": ", ".join(row["aliases"])} for row in rows]
        common.show(shown, title="Registered models", as_json=as_json)
    else:
        typer.echo(f"no registered model in {str(site.home)!r}; register one with `kdq run FILE`")


def promote(
    name: Annotated[str, typer.Argument(help="Name of the registered model.")],
    version: Annotated[int, typer.Argument(min=1, help="Number of the version.")],
    as_json: JsonFlag = False,
) -> None:
    """Make a version `champion` if its recipe's gates are met; list every gate."""
    from kdq_core.plugins.catalog import Catalog
    from kdq_core.store.records import EvaluationReport
    from kdq_registry.promotion import promote as promote_version

    def vetoes(name: str, version: int, report: EvaluationReport) -> list[str]:
        with contextlib.redirect_stdout(sys.stderr):  # what a plug-in prints
            answers = Catalog.load().lifecycle("kdq_before_promotion", name=name, version=version, report=report)
        return [str(reason) for reasons in answers for reason in reasons or ()]

    result = promote_version(common.site(), name, version, vetoes=vetoes)
    if as_json:
        typer.echo(json.dumps(result.model_dump(mode="json"), indent=2))
    else:
        _tell(result)
    if not result.promoted:
        raise typer.Exit(1)


def register_commands(app: typer.Typer) -> None:
    """Add `kdq models` and `kdq promote`."""
    app.command("models", rich_help_panel="Registry")(models)
    app.command("promote", rich_help_panel="Registry")(promote)


def _tell(result: PromotionResult) -> None:
    rows: list[dict[str, object]] = [
        {
            "gate": v.rule,
            "value": v.value,
            "bound": v.note if v.bound is None else v.bound,
            "verdict": "met" if v.met else "not met",
        }
        for v in result.verdicts
    ]
    rows += [{"gate": reason, "verdict": "veto"} for reason in result.vetoes]
    if rows:
        common.show(rows, title=f"Gates of {result.name} version {result.version}", as_json=False)
    before = f"version {result.previous}" if result.previous else "nothing"
    if result.promoted and result.already:
        typer.echo(f"'champion' of {result.name!r} is version {result.version} already; nothing was changed")
    elif result.promoted:
        typer.echo(f"'champion' of {result.name!r} is now version {result.version}; before: {before}")
    else:
        typer.echo(f"not promoted: 'champion' of {result.name!r} stays at {before}")
