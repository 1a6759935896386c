"""Checks a recipe against the installed plug-ins: every name and option, and whether they fit together.

Importable without torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kdq_core.errors import PluginError, RecipeError, UnusedError, did_you_mean, listing
from kdq_core.plugins.asked import Asked
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.kinds import Distiller, Evaluator, Plugin, Quantizer
from kdq_core.plugins.named import named_plugins
from kdq_core.reading.given import check_code, check_files
from kdq_core.reading.recipe_file import read_document, recipe_from_document
from kdq_core.reading.stages import check_options, check_stages, options_at
from kdq_core.reading.teachers import check_teachers
from kdq_core.recipe.site import Site
from kdq_core.recipe.study import FIELDS
from kdq_core.store.records import gain_metrics

if TYPE_CHECKING:
    from kdq_core.recipe.spec import Recipe
    from kdq_core.recipe.strict_yaml import Document, Loc


def load_recipe(path: Path, *, files: bool = False) -> Recipe:
    """Read a recipe file and check it with every plug-in it names.

    Args:
        path: path of the file.
        files: also look for the files and factories that it names; a plan always does so.

    Raises:
        RecipeError: the file or a value in it is wrong; the message names file and line.
        PluginError: a plug-in that it names is missing or broken.
    """
    lines = read_document(path)
    section = study_section(lines)
    if section:
        raise RecipeError(
            f"{lines.where((section,))}: the recipe has branches ({section!r}), and this command takes one recipe; "
            "'kdq run', 'kdq plan' and 'kdq validate' take all branches, or write a file without that section"
        )
    return checked_recipe(lines, Catalog.load(), files=files)


def study_section(document: Document) -> str:
    """The first section that is about branches; empty in a recipe without branches."""
    return min(FIELDS & document.value.keys(), default="")


def checked_recipe(
    document: Document, catalog: Catalog, built: dict[str, Plugin] | None = None, *, files: bool = False
) -> Recipe:
    """Make the recipe of a document without branches, and check it with every plug-in that it names.

    Args:
        document: a parsed file.
        catalog: the installed plug-ins.
        built: plug-ins that several recipes share; by default none.
        files: also look for the files and factories that it names.

    Raises:
        KdqError: see `load_recipe`.
    """
    recipe = recipe_from_document(document, catalog)
    check_recipe(recipe, catalog, document, built)
    if files:
        check_files(recipe, document)
        check_code(catalog.build("workload", recipe.workload.use, recipe.workload.options), document)
    return recipe


def check_recipe(
    recipe: Recipe, catalog: Catalog, lines: Document | None = None, built: dict[str, Plugin] | None = None
) -> None:
    """Build every plug-in that a recipe names, so that KDQ reports a wrong name or option before anything runs.

    Args:
        recipe: a valid `Recipe`.
        catalog: the installed plug-ins.
        lines: the document of the recipe, for file and line in messages.
        built: plug-ins that several recipes share; by default none.

    Raises:
        RecipeError: an option is unknown or out of range, or parts of the recipe do not fit together.
        PluginError: a plug-in is missing or broken.
    """
    _check_factory_alone(recipe, catalog, lines)
    found: dict[Loc, Plugin] = {}
    asked = Asked(recipe, Site(home=Path()), catalog.build, built)
    for kind, name, options, loc in named_plugins(recipe):

        def where(inside: Loc, at: Loc = loc) -> str:
            if lines and at[0] == "stages":
                return lines.where((*options_at(recipe, int(at[1]), lines.value), *inside))
            return lines.where((*at, "options", *inside)) if lines else ""

        try:
            if kind == "stage" and options:
                check_options(recipe, int(loc[1]), catalog, lines)
            found[loc] = asked.plugin(kind, name, options, where)
        except PluginError as error:
            place = lines.where((*loc, "use")) if lines else ""
            raise PluginError(f"{place}: {error}" if place else str(error)) from error
    check_teachers(recipe, {loc: plugin for loc, plugin in found.items() if isinstance(plugin, Distiller)}, lines)
    _check_quantize(recipe, found, lines)
    check_stages(asked, catalog, lines)
    _check_gates(recipe, [p for p in found.values() if isinstance(p, Evaluator)], lines)


def _check_factory_alone(recipe: Recipe, catalog: Catalog, lines: Document | None) -> None:
    """Refuse a factory for the student where the workload lacks its option `model`, which is the one that names it."""
    use, factory = recipe.workload, recipe.student.factory
    if factory is None or "model" in use.options:
        return
    if "model" in catalog.options_schema(catalog.find("workload", use.use)).get("required", ()):
        place = f"{lines.where(('student', 'factory'))}: " if lines else ""
        raise RecipeError(
            f"{place}workload {use.use!r} makes the student by its option 'model', which is missing; write model: "
            f"{factory!r} in 'workload.options', and leave 'factory' out of 'student'"
        )


def _check_quantize(recipe: Recipe, built: Mapping[Loc, Plugin], lines: Document | None) -> None:
    """Refuse settings that the quantizer ignores, because the user expects an effect."""
    quantizer, name = built[("quantize",)], recipe.quantize.use
    assert isinstance(quantizer, Quantizer)
    unused: dict[str, str] = {}
    if not quantizer.trains:
        why = f"quantizer {name!r} does not train, so {{!r}} means nothing to it; leave it out, or use one that trains"
        unused |= dict.fromkeys(
            ("fit", "taught_by", "freeze_observers", "freeze_batch_norm", "weight_loss", "control"), why
        )
    if quantizer.activations == "dynamic":
        unused["activations"] = f"quantizer {name!r} has activations of 8 bits, always; leave {{!r}} out"
    elif quantizer.activations == "none":
        unused["activations"] = f"quantizer {name!r} leaves activations in float, so {{!r}} means nothing; leave it out"
    for field, why in unused.items():
        if field in recipe.quantize.model_fields_set:
            place = lines.where(("quantize", field)) if lines else ""
            text = (f"{place}: " if place else "") + why.format(f"quantize.{field}")
            raise UnusedError(text, ("quantize", field))


def _check_gates(recipe: Recipe, evaluators: list[Evaluator], lines: Document | None) -> None:
    """Refuse a written gate on a metric that no evaluator of the recipe gives, if all evaluators declare theirs."""
    given = given_metrics(recipe, evaluators)
    if "gates" not in recipe.model_fields_set or given is None:
        return
    for index, gate in enumerate(recipe.gates):
        check_metric(gate.metric, given, "a gate", lines.where(("gates", index, "metric")) if lines else "")


def check_metric(metric: str, given: Collection[str], what: str, where: str = "") -> None:
    """Refuse a metric that no evaluator gives.

    Args:
        metric: its name; after a slash, that of one of several outputs.
        given: metrics of the recipe's evaluators.
        what: what names the metric, such as `a gate`.
        where: file and line, if there is a file.

    Raises:
        RecipeError: with the nearest name.
    """
    if metric.partition("/")[0] not in given:
        raise RecipeError(
            f"{where + ': ' if where else ''}no evaluator of the recipe gives the metric {metric!r} of {what}"
            f"{did_you_mean(metric, given) or '.'} Given: {listing(given)}."
        )


def given_metrics(recipe: Recipe, evaluators: Iterable[Evaluator]) -> set[str] | None:
    """The metrics of the report: those of the evaluators, and the teacher's gains if the recipe asks for a control.

    `None` if an evaluator does not declare its metrics.
    """
    found = [evaluator.metrics for evaluator in evaluators]
    if not all(found):
        return None
    gains = gain_metrics(recipe.distill.control, recipe.quantize.control)
    return gains | {name for names in found for name in names}
