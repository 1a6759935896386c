"""`kdq validate`, `kdq schema`, `kdq plugins`: commands about recipes that run no stage and import no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdq_flows.cli.common import JsonFlag, console, load_recipe, show

if TYPE_CHECKING:
    from kdq_core.plugins.catalog import Catalog
    from kdq_core.plugins.kinds import Kind
    from kdq_core.plugins.loading import CatalogEntry

RecipeFile = Annotated[Path, typer.Argument(metavar="FILE", help="The recipe, a YAML file.")]
KindOption = Annotated[
    str | None, typer.Option("--kind", help="workload, distiller, quantizer, target, evaluator or stage.")
]

plugins = typer.Typer(help="The plug-ins that are installed.", no_args_is_help=True)


def register_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("validate")(validate)
    app.command("schema")(schema)
    app.add_typer(plugins, name="plugins")


def validate(file: RecipeFile, as_json: JsonFlag = False) -> None:
    """Check a recipe, the options of every plug-in it names, and that the files and factories it names are there."""
    from kdq_core.plugins.named import named_plugins
    from kdq_core.plugins.wiring import listed

    recipe = load_recipe(file, files=True)
    named: dict[str, list[str]] = {}
    recipe = recipe.model_copy(update={"stages": listed(recipe)})
    for kind, name, _, _ in named_plugins(recipe):
        if name not in named.setdefault(kind, []):
            named[kind].append(name)
    if as_json:
        show([{"file": str(file), "recipe": recipe.name, "valid": True, **named}], title="", as_json=True)
        return
    words = "; ".join(f"{kind}{'s' if len(names) > 1 else ''} {', '.join(names)}" for kind, names in named.items())
    typer.echo(f"{file} is valid: {words}")


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
    from kdq_core.errors import RecipeError

    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"'{output}' cannot be written: {str(error.strerror).lower()}") from None


@plugins.command("list")
def list_plugins(kind: KindOption = None, as_json: JsonFlag = False) -> None:
    """Show the plug-ins installed, and those in quarantine with the reason."""
    from kdq_core.plugins.catalog import Catalog

    catalog = Catalog.load()
    wanted = _kinds(kind)
    rows: list[dict[str, object]] = [
        {
            "name": entry.name,
            "kind": entry.kind,
            "distribution": entry.distribution,
            "version": entry.version,
            "state": "ok",
            "summary": entry.summary,
        }
        for entry in catalog.entries
        if entry.kind in wanted
    ]
    rows += [
        {
            "name": one.entry_point,
            "kind": "",
            "distribution": one.distribution,
            "version": one.version,
            "state": "quarantined",
            "summary": "",
            "reason": one.reason,
        }
        for one in catalog.quarantined
    ]
    show(rows, title="plug-ins", as_json=as_json)


@plugins.command("show")
def show_plugin(
    name: Annotated[str, typer.Argument(help="The plug-in's name.")],
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
    out.print(f"{entry.kind} {entry.name}, {entry.distribution} {entry.version}\n", style="bold", markup=False)
    out.print(card + "\n", markup=False)
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
        PluginError: there is none, or several kinds have one.
    """
    from kdq_core.errors import PluginError, did_you_mean, listing

    fitting = [kind for kind in kinds if any(name in (e.name, e.full_name) for e in catalog.of_kind(kind))]
    if len(fitting) == 1:
        return catalog.find(fitting[0], name)
    if fitting:
        raise PluginError(f"{name!r} names a {' and a '.join(fitting)}; say which with --kind")
    known = {known for kind in kinds for known in catalog.names(kind)}
    raise PluginError(f"no plug-in named {name!r}{did_you_mean(name, known) or '.'} Installed: {listing(known)}.")


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
