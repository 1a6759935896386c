"""`kdq validate` and `kdq plan`: what KDQ says of a recipe before a stage runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from kdq_flows.cli.common import JsonFlag, RecipeFile, load_recipe, say, show, site

if TYPE_CHECKING:
    from kdq_registry.fetching import Fetched


def register_commands(app: typer.Typer) -> None:
    """Add `validate` and `plan`."""
    app.command("validate", rich_help_panel="Inspect")(validate)
    app.command("plan", rich_help_panel="Inspect")(plan)


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
    say(f"{file} is valid: {words}")


def plan(file: RecipeFile, as_json: JsonFlag = False) -> None:
    """Show the stages of a recipe: what is cached, what will run, and why."""
    recipe, here = load_recipe(file), site()
    from kdq_core.plan.forecast import forecast
    from kdq_core.plan.machine import check_gpu
    from kdq_core.plan.plan import make_plan
    from kdq_core.plugins.catalog import Catalog
    from kdq_core.store.store import Store, check_writable
    from kdq_flows.preflight.rules import check_rules
    from kdq_flows.run.teachers import resolved

    check_gpu(here.device)
    check_writable(here.home)

    def tell(model: str, found: Fetched) -> None:
        say(f"teacher {model} is {found.said}", err=True)

    recipe = resolved(recipe, here, tell)
    made = make_plan(recipe, here, Catalog.load())
    check_rules(recipe, here, Catalog.load())
    rows: list[dict[str, object]] = [
        {
            "stage": line.stage,
            "after": ", ".join(made.node(line.stage).parents.values()),
            "state": line.state,
            "key": line.key if as_json or line.key is None else line.key[:12],
            "why": line.why,
        }
        for line in forecast(made, Store(here.store))
    ]
    show(rows, title=f"Plan of {recipe.name!r}", as_json=as_json)
    if made.note:
        say(made.note, err=True)
