"""A recipe's stages held against what is installed: each slot is given, each gate is about a model there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kdq_core.errors import RecipeError, did_you_mean, listing
from kdq_core.plugins.asked import Asked
from kdq_core.plugins.wiring import models_of, wire

if TYPE_CHECKING:
    from kdq_core.plugins.catalog import Catalog
    from kdq_core.recipe.spec import Recipe
    from kdq_core.recipe.stages import StageUse
    from kdq_core.recipe.strict_yaml import Document, Loc


def check_stages(asked: Asked, catalog: Catalog, lines: Document | None = None) -> None:
    """Refuse a list of stages that does not fit together, and gates about models that it does not give.

    Args:
        asked: the recipe with its plug-ins, each of which was built already.
        catalog: the plug-ins installed.
        lines: the document it was read from, for file and line in messages.

    Raises:
        RecipeError: with the stage or the gate.
        PluginError: as a stage says of the workload.
    """

    def where(use: StageUse) -> str:
        stages = asked.recipe.stages
        written = lines is not None and "stages" in asked.recipe.model_fields_set and use in stages
        return f"{lines.where(('stages', stages.index(use)))}: " if lines and written else ""

    wired = wire(asked, catalog, where)
    models = [model.slot for model in models_of(wired, asked)]
    for index, gate in enumerate(asked.recipe.gates if "gates" in asked.recipe.model_fields_set else ()):
        for field, model in (("of", gate.of), ("relative_to", gate.relative_to)):
            if model is not None and model not in models:
                place = f"{lines.where(('gates', index, field))}: " if lines else ""
                raise RecipeError(
                    f"{place}a gate on {gate.metric!r} names the model {model!r}, but the "
                    f"recipe's stages give: {listing(models)}{did_you_mean(model, models)}"
                )


def options_at(recipe: Recipe, index: int, document: Mapping[str, object]) -> Loc:
    """Where the options of the stage `index` of the list were written: in the list, or in a section of its name."""
    title = recipe.stages[index].title
    return (title,) if title in document else ("stages", index, "options")


def check_options(recipe: Recipe, index: int, catalog: Catalog, lines: Document | None = None) -> None:
    """Refuse options of a stage that has none but reads a section of its name: its settings belong there.

    Args:
        recipe: checked in itself already.
        index: of the stage in the list.
        catalog: the plug-ins installed.
        lines: the document it was read from, for file and line in messages.

    Raises:
        RecipeError: it has options.
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
