"""`kdq validate` and `kdq plan`: what KDQ says of a recipe before a stage runs."""

from __future__ import annotations

from typing import Annotated

import typer

from kdq_flows.cli.common import JsonFlag, RecipeFile, load_any, say, show, site
from kdq_flows.cli.studies import numbered, plan_rows
from kdq_flows.facts.mermaid import mermaid


def register_commands(app: typer.Typer) -> None:
    """Add `validate` and `plan`."""
    app.command("validate", rich_help_panel="Inspect")(validate)
    app.command("plan", rich_help_panel="Inspect")(plan)


def validate(file: RecipeFile, as_json: JsonFlag = False) -> None:
    """Check a recipe, the options of every plug-in it names, and that the files and factories it names are there."""
    from kdq_core.plugins.named import named_plugins
    from kdq_core.plugins.wiring import listed
    from kdq_core.recipe.spec import Recipe

    found = load_any(file, files=True)
    recipes = [found] if isinstance(found, Recipe) else [branch.recipe for branch in found.known]
    named: dict[str, list[str]] = {}
    for recipe in recipes:
        for kind, name, _, _ in named_plugins(recipe.model_copy(update={"stages": listed(recipe)})):
            if name not in named.setdefault(kind, []):
                named[kind].append(name)
    if as_json:
        more = {} if isinstance(found, Recipe) else {"branches": [branch.name for branch in found.branches]}
        show([{"file": str(file), "recipe": found.name, "valid": True, **named, **more}], title="", as_json=True)
        return
    words = "; ".join(f"{kind}{'s' if len(names) > 1 else ''} {', '.join(names)}" for kind, names in named.items())
    several = "" if isinstance(found, Recipe) else f"{numbered(found)}; "
    say(f"{file} is valid: {several}{words}")


def plan(
    file: RecipeFile,
    as_json: JsonFlag = False,
    as_mermaid: Annotated[bool, typer.Option("--mermaid", help="Print the graph in Mermaid's language.")] = False,
) -> None:
    """Show the stages of a recipe: what is cached, what will run, and why; of a study, each shared stage once."""
    found, here = load_any(file), site()
    from kdq_core.plan.machine import check_devices
    from kdq_core.plan.study import groups_of
    from kdq_core.plugins.catalog import Catalog
    from kdq_core.recipe.spec import Recipe
    from kdq_core.store import open_store
    from kdq_core.store.store import check_writable
    from kdq_flows.planning import hints_of, planned
    from kdq_flows.preflight.rules import check_rules

    check_devices(here)
    check_writable(here.home)
    study = planned(found, here, lambda text: say(text, err=True))
    if as_mermaid:
        typer.echo(mermaid(study))
        return
    for branch, *_ in groups_of(study.branches):
        check_rules(branch.plan.recipe, here, Catalog.load())
    title, rows = f"Plan of {found.name!r}", plan_rows(study, open_store(here), as_json=as_json)
    if isinstance(found, Recipe):
        rows = [{name: cell for name, cell in row.items() if name != "branches"} for row in rows]
    else:
        title += f": {numbered(found)}, {len(study.nodes)} stages"
    show(rows, title=title, as_json=as_json)
    for note in dict.fromkeys(one.plan.note for one in study.branches if one.plan.note):
        say(note, err=True)
    for hint in hints_of(study, here):
        say(f"hint: {hint}", err=True)
