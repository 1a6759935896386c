"""`kdq models`, `kdq promote` and `kdq history`."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from kdq_flows.cli import common
from kdq_flows.cli.common import JsonFlag

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kdq_registry.promotion import PromotionResult


def models(as_json: JsonFlag = False) -> None:
    """List the registered models: versions, aliases, quality, size."""
    from kdq_registry.listing import list_models

    site = common.site()
    rows, notes = list_models(site)
    _note(notes)
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
    _note(result.notes)
    if as_json:
        typer.echo(json.dumps(result.model_dump(mode="json"), indent=2))
    else:
        _tell(result)
    if not result.promoted:
        raise typer.Exit(1)


def history(
    name: Annotated[str, typer.Argument(help="Name of the registered model.")],
    verify: Annotated[bool, typer.Option("--verify", help="Check every entry of the chain.")] = False,
    head: Annotated[
        str | None, typer.Option(metavar="DIGEST", help="With --verify: an entry that the chain must have.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List who promoted what, when and why, refusals and lost races included."""
    from kdq_core.errors import RecipeError
    from kdq_registry.history import history as entries_of
    from kdq_registry.history import verify_history

    if head and not verify:
        raise RecipeError("--head names an entry to look for, and only --verify looks for it; add --verify")
    if verify:
        last, wrong = verify_history(common.site(), name, head)
        if as_json:
            typer.echo(json.dumps({"head": last, "wrong": wrong}, indent=2))
        else:
            typer.echo("\n".join(wrong) or f"the chain of {name!r} is whole; its head is {last}")
        raise typer.Exit(1 if wrong else 0)
    rows, notes = entries_of(common.site(), name)
    _note(notes)
    if rows or as_json:
        common.show(rows if as_json else _shown(rows), title=f"History of {name}", as_json=as_json)
    else:
        typer.echo(f"nothing was promoted in {name!r} yet; `kdq promote {name} VERSION` does")


def register_commands(app: typer.Typer) -> None:
    """Add the commands of the registry."""
    app.command("models", rich_help_panel="Registry")(models)
    app.command("promote", rich_help_panel="Registry")(promote)
    app.command("history", rich_help_panel="Registry")(history)


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
    before = f"version {result.before}" if result.before else "nothing"
    if result.promoted and result.already:
        typer.echo(f"'champion' of {result.name!r} is version {result.version} already; nothing was changed")
    elif result.promoted:
        typer.echo(f"'champion' of {result.name!r} is now version {result.version}; before: {before}")
    else:
        typer.echo(f"not promoted: 'champion' of {result.name!r} stays at {before}")


def _note(notes: Iterable[str]) -> None:
    for note in notes:
        common.say(f"note: {note}", err=True)


def _shown(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """The columns of a history that fit a terminal."""
    return [
        {
            "#": row["sequence"],
            "time": str(row["time"])[:19],
            "actor": row["actor"],
            "kind": row["kind"] if row["lost_to"] is None else f"lost to {row['lost_to']}",
            "alias": row["alias"],
            "from": row["from"],
            "to": row["to"],
            "reason": row["reason"],
            "digest": str(row["digest"])[:12],
        }
        for row in rows
    ]
