"""`kdq plugins` and `kdq schema`: which plug-ins are installed, and their options. The commands import no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdq_flows.cli.common import JsonFlag, console, show, writing
from kdq_flows.cli.completion import kinds, shown
from kdq_flows.cli.tables import Pairs, print_docstring, print_lists

if TYPE_CHECKING:
    from kdq_core.plugins.catalog import Catalog
    from kdq_core.plugins.kinds import Kind
    from kdq_core.plugins.loading import CatalogEntry


KindOption = Annotated[
    str | None,
    typer.Option("--kind", help="workload, distiller, quantizer, target, evaluator or stage.", autocompletion=kinds),
]

plugins = typer.Typer(help="The plug-ins that are installed.", no_args_is_help=True)


def register_commands(app: typer.Typer) -> None:
    """Add `schema` and `plugins`."""
    app.command("schema", rich_help_panel="Extend")(schema)
    app.add_typer(plugins, name="plugins", rich_help_panel="Extend")


def schema(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file.")] = None,
) -> None:
    """Print the JSON Schema of a recipe, with the options of the plug-ins installed."""
    from kdq_core.plugins.catalog import Catalog
    from kdq_core.reading.schema import recipe_schema

    text = json.dumps(recipe_schema(Catalog.load()), indent=2, ensure_ascii=False) + "\n"
    if output is None:
        typer.echo(text, nl=False)
        return
    with writing(output):
        output.write_text(text, encoding="utf-8")


@plugins.command("list")
def list_plugins(kind: KindOption = None, as_json: JsonFlag = False) -> None:
    """Show the plug-ins installed, and those in quarantine with the reason."""
    from kdq_core.plugins.catalog import Catalog

    catalog, wanted = Catalog.load(), _kinds(kind)
    if as_json:
        show([*_rows(catalog, wanted)], title="", as_json=True)
        return
    print_lists(console(), _lists(catalog, wanted))


def _rows(catalog: Catalog, wanted: tuple[Kind, ...]) -> Iterator[dict[str, object]]:
    """One JSON object for each plug-in, and for each module in quarantine; `reason` says why one is not `ok`."""
    for entry in catalog.entries:
        if entry.kind in wanted:
            why = catalog.shadow(entry)
            row: dict[str, object] = {
                "name": entry.name,
                "kind": entry.kind,
                "distribution": entry.distribution,
                "version": entry.version,
                "state": "shadowed" if why else "ok",
                "summary": entry.summary,
            }
            yield row | {"reason": why} if why else row
    for one in catalog.quarantined:
        yield {
            "name": one.entry_point,
            "kind": "",
            "distribution": one.distribution,
            "version": one.version,
            "state": "quarantined",
            "summary": "",
            "reason": one.reason,
        }


def _lists(catalog: Catalog, wanted: tuple[Kind, ...]) -> Iterator[tuple[str, Pairs]]:
    """A list for each kind, and one of the modules in quarantine; a guest's line ends with its distribution."""
    for kind in wanted:
        pairs = []
        for entry in catalog.of_kind(kind):
            guest = "" if entry.house else f"({entry.distribution} {entry.version})"
            why = catalog.shadow(entry)
            text = " ".join(filter(None, (entry.summary, guest)))
            pairs.append((entry.name, f"{text}; {why}" if why else text))
        if pairs:
            yield f"{kind}s", pairs
    if catalog.quarantined:
        reasons = [(one.entry_point, f"{one.reason} ({one.distribution} {one.version})") for one in catalog.quarantined]
        yield "in quarantine", reasons


@plugins.command("show")
def show_plugin(
    name: Annotated[str, typer.Argument(help="The plug-in's name.", autocompletion=shown)],
    kind: KindOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show a plug-in's method card and its options."""
    import sys

    from kdq_core.plugins.catalog import Catalog

    catalog = Catalog.load()
    entry = _find(catalog, name, _kinds(kind))
    found = catalog.load_class(entry)
    card = (sys.modules[found.__module__].__doc__ or found.__doc__ or "").strip()
    rows = _options(catalog.options_schema(entry))
    if as_json:
        typer.echo(json.dumps({**entry.model_dump(), "card": card, "options": rows}, indent=2, ensure_ascii=False))
        return
    out = console()
    out.print(f"{entry.kind} {entry.name}, {entry.distribution} {entry.version}\n", style="bold")
    print_docstring(out, card + "\n\n")
    if rows:
        show(rows, title="options", as_json=False)
    else:
        typer.echo("It has no options.")


def _kinds(kind: str | None) -> tuple[Kind, ...]:
    """The kind that the user asks for, or all kinds."""
    from kdq_core.errors import RecipeError, did_you_mean, listing
    from kdq_core.plugins.bases import KINDS

    if kind is None:
        return KINDS
    found = tuple(known for known in KINDS if known == kind)
    if not found:
        raise RecipeError(
            f"no kind of plug-in named {kind!r}{did_you_mean(kind, KINDS) or '.'} Kinds: {listing(KINDS)}."
        )
    return found


def _find(catalog: Catalog, name: str, kinds: tuple[Kind, ...]) -> CatalogEntry:
    """The only plug-in of these kinds with this name.

    Raises:
        PluginError: there is none, several kinds have one, or its module is in quarantine.
    """
    from kdq_core.errors import PluginError, did_you_mean, listing

    fitting = [kind for kind in kinds if any(name in (e.name, e.full_name) for e in catalog.of_kind(kind))]
    if len(fitting) == 1:
        return catalog.find(fitting[0], name)
    if fitting:
        raise PluginError(f"{name!r} names a {' and a '.join(fitting)}; say which with --kind")
    for one in catalog.quarantined:
        if name in (one.entry_point, one.distribution, f"{one.distribution}/{one.entry_point}"):
            raise PluginError(f"{one.title} is in quarantine: {one.reason}; reinstall or upgrade {one.distribution!r}")
    known = {known for kind in kinds for known in catalog.names(kind)}
    raise PluginError(
        f"no plug-in named {name!r}{did_you_mean(name, known) or '.'} "
        f"Installed: {listing(known)}.{catalog.quarantine_hint()}"
    )


def _options(root: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each option."""
    from kdq_core.recipe.explain import bounds, type_name

    return [
        {
            "option": name,
            "type": type_name(field, root).removeprefix("a "),
            "default": repr(field["default"]) if "default" in field else "required",
            "bounds": bounds(field, root),
            "description": field.get("description", ""),
        }
        for name, field in root.get("properties", {}).items()
    ]
