"""Checks a recipe's stages: earlier stages give the slots that a stage reads, and gates name models of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kdq_core.errors import RecipeError, did_you_mean, listing
from kdq_core.plugins.asked import Asked
from kdq_core.plugins.wiring import models_of, wire
from kdq_core.recipe.register import CHAMPION

if TYPE_CHECKING:
    from kdq_core.plugins.catalog import Catalog
    from kdq_core.recipe.spec import Recipe
    from kdq_core.recipe.stages import StageUse
    from kdq_core.recipe.strict_yaml import Document, Loc


def check_stages(asked: Asked, catalog: Catalog, lines: Document | None = None) -> None:
    """Refuse a list of stages that does not fit together, and gates on models that no stage gives.

    Args:
        asked: the recipe with its plug-ins.
        catalog: the installed plug-ins.
        lines: the document of the recipe, for file and line in messages.

    Raises:
        RecipeError: a stage or a gate does not fit; the message names it.
        PluginError: a stage refuses the workload.
    """

    def where(use: StageUse) -> str:
        stages = asked.recipe.stages
        written = lines is not None and "stages" in asked.recipe.model_fields_set and use in stages
        return f"{lines.where(('stages', stages.index(use)))}: " if lines and written else ""

    wired = wire(asked, catalog, where)
    models = [model.slot for model in models_of(wired, asked)]
    for index, gate in enumerate(asked.recipe.gates if "gates" in asked.recipe.model_fields_set else ()):
        for field, model in (("of", gate.of), ("relative_to", gate.relative_to)):
            if model is not None and model not in models and (field, model) != ("relative_to", CHAMPION):
                place = f"{lines.where(('gates', index, field))}: " if lines else ""
                raise RecipeError(
                    f"{place}a gate on {gate.metric!r} names the model {model!r}, but the "
                    f"recipe's stages give: {listing(models)}{did_you_mean(model, models)}"
                )


def options_at(recipe: Recipe, index: int, document: Mapping[str, object]) -> Loc:
    """The location of the options of stage `index`: in the list, or in a section of the stage's name."""
    title = recipe.stages[index].title
    return (title,) if title in document else ("stages", index, "options")


def check_options(recipe: Recipe, index: int, catalog: Catalog, lines: Document | None = None) -> None:
    """Refuse options for a stage without options that reads a section of its own name: its settings belong there.

    Args:
        recipe: a valid `Recipe`.
        index: number of the stage in the list, from 0.
        catalog: the installed plug-ins.
        lines: the document of the recipe, for file and line in messages.

    Raises:
        RecipeError: the recipe gives such a stage options.
        PluginError: there is no such stage.
    """
    use = recipe.stages[index]
    fields = {field.alias or name for name, field in type(recipe).model_fields.items()}
    if use.stage_name in fields and not catalog.load_class(catalog.find("stage", use.use)).model_fields:
        place = f"{lines.where(('stages', index, 'options'))}: " if lines else ""
        raise RecipeError(
            f"{place}stage {use.title!r} has no options; its settings stand in the section {use.stage_name!r} of the "
            "recipe"
        )
