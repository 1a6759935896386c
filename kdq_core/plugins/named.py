"""Lists the plug-ins that a recipe names. Importable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import JsonValue

if TYPE_CHECKING:
    from kdq_core.plugins.kinds import Kind
    from kdq_core.recipe.spec import Recipe
    from kdq_core.recipe.strict_yaml import Loc


def named_plugins(recipe: Recipe) -> list[tuple[Kind, str, Mapping[str, JsonValue], Loc]]:
    """Give kind, name, options and location of every plug-in that a recipe names.

    A distiller whose options have schedules comes twice: with its options at the start of a fit, and at the end.
    """
    distillers: list[tuple[Kind, str, Mapping[str, JsonValue], Loc]] = []
    for index, use in enumerate(recipe.distill.distillers):
        loc: Loc = ("distill", "losses", index) if recipe.distill.losses else ("distill",)
        distillers += [("distiller", use.use, use.options_at(end), loc) for end in ((0, -1) if use.schedules else (0,))]
    return [
        ("workload", recipe.workload.use, recipe.workload.options, ("workload",)),
        *distillers,
        ("quantizer", recipe.quantize.use, recipe.quantize.options, ("quantize",)),
        ("target", recipe.target.use, recipe.target.options, ("target",)),
        *(("evaluator", use.use, use.options, ("evaluate", index)) for index, use in enumerate(recipe.evaluate)),
        *(("stage", use.use, use.options, ("stages", index)) for index, use in enumerate(recipe.stages)),
    ]
