"""`kdq synergy`: {no KD, each distiller} x {float, PTQ, QAT} as a study, with equal epochs for every student."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from kdq_core.errors import RecipeError
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.choosing import Choosing
from kdq_core.plugins.kinds import Quantizer
from kdq_core.reading.recipe_file import recipe_from_document
from kdq_core.reading.studies import Branch, Study, branch_recipe
from kdq_core.recipe.spec import DistillSpec, Recipe
from kdq_core.recipe.study import Axes, MatrixSpec, StudySpec
from kdq_core.store.records import EvaluationReport, Metric
from kdq_flows.facts.synergy import Path, Synergy, synergy
from kdq_flows.facts.verdict import main_metric, words_of

if TYPE_CHECKING:
    from kdq_core.recipe.strict_yaml import Document
    from kdq_flows.run.study import StudyRun

NONE = "none"
PTQ, QAT = "static", "minmax-qat"


def synergy_study(document: Document, *, seeds: int, bits: Sequence[int], distillers: Sequence[str]) -> Study:
    """Make the study.

    Each student trains for the recipe's epochs of `distill` and `quantize` together. On the path of QAT the last ones
    are QAT; on that of PTQ all are in float. Without KD, students train on the labels alone.

    Args:
        document: a recipe without branches.
        seeds: number of seeds, from the recipe's on.
        bits: bits of the weights.
        distillers: further distillers, with their defaults, beside the recipe's own.

    Raises:
        KdqError: the recipe, or a branch of it, is wrong.
    """
    catalog = Catalog.load()
    recipe = recipe_from_document(document, catalog)
    quantizer = _trained(recipe, catalog)
    epochs, tail = recipe.distill.fit.epochs, recipe.quantize.fit.epochs
    paths: dict[str, Axes] = {
        "ptq": {"distill.fit.epochs": epochs + tail, "quantize.use": PTQ},
        "qat": {"distill.fit.epochs": epochs, "quantize.use": quantizer},
    }
    common: Axes = {"evaluate": ["quality"], "gates": []}
    named = {use.title for use in recipe.stages} - Recipe.model_fields.keys()
    document = replace(document, value={name: part for name, part in document.value.items() if name not in named})
    branches = []
    for seed in range(recipe.seed, recipe.seed + seeds):
        for name, section in methods(document, recipe, distillers, catalog).items():
            for path, axes in paths.items():
                for number in bits:
                    stages = _stages(recipe, ["student"] if (path, number) == ("ptq", bits[0]) else [])
                    own: Axes = {"distill": section, **axes, "quantize.weights": number, "seed": seed, **common}
                    own |= {"stages": stages}
                    told: Axes = {"distiller": name, "path": path, "bits": number, "seed": seed}
                    title = ",".join(f"{key}={value}" for key, value in told.items())
                    branches.append(Branch(title, told, branch_recipe(document, own, catalog, files=True)))
    return Study(document, tuple(branches), StudySpec(matrix=MatrixSpec(over={"seed": (recipe.seed,)})))


def _stages(recipe: Recipe, beside: Sequence[str]) -> list[JsonValue]:
    """The recipe's stages; beside the int8 file, KDQ exports only the float models that are read from the branch."""
    listed: list[JsonValue] = []
    for use in recipe.stages:
        options = use.options | ({"beside": [*beside]} if use.use == "export" else {})
        listed.append(use.model_copy(update={"options": options}).model_dump(mode="json", exclude_defaults=True))
    return listed


def methods(document: Document, recipe: Recipe, more: Sequence[str], catalog: Catalog) -> dict[str, Any]:
    """The section `distill` of each method, by its name; `none` has a distiller whose teacher weighs nothing.

    Raises:
        RecipeError: a distiller is named twice.
        PluginError: there is no such distiller.
    """
    written = dict(document.value.get("distill") or {})
    kept = {name: part for name, part in written.items() if name not in ("use", "options", "losses")}
    own = "+".join(use.title for use in recipe.distill.distillers)
    first = recipe.distill.distillers[0].use
    fields = catalog.options_schema(catalog.find("distiller", first)).get("properties", {})
    silent = first if "alpha" in fields else DistillSpec().use
    found: dict[str, Any] = {NONE: {**kept, "use": silent, "options": {"alpha": 0.0}}, own: written or {"use": own}}
    for name in more:
        if name in found:
            raise RecipeError(f"distiller {name!r} is asked for twice; the recipe's own is {own!r}")
        catalog.find("distiller", name)
        found[name] = {**kept, "use": name}
    return found


def _trained(recipe: Recipe, catalog: Catalog) -> str:
    """The quantizer of the QAT path: the recipe's if it names one that trains, or else `minmax-qat`."""
    built = catalog.build("quantizer", recipe.quantize.use, recipe.quantize.options)
    assert isinstance(built, Quantizer)
    return recipe.quantize.use if built.trains and not isinstance(built, Choosing) else QAT


def synergy_of(run: StudyRun, bits: Sequence[int]) -> Synergy:
    """The effects, from the reports of a finished run.

    Raises:
        RecipeError: the runs measured no common metric.
    """
    cells: dict[tuple[str, Path, int], list[float]] = {}
    reports = dict(_reports(run))
    if not reports:
        raise RecipeError("no branch was measured, so there is nothing to compare")
    first = next(iter(reports.values()))
    metric = _judged_by(first)
    for planned in run.planned:
        report = reports[planned.name]
        distiller, path, number = (planned.axes[axis] for axis in ("distiller", "path", "bits"))
        assert isinstance(distiller, str)
        assert isinstance(number, int)
        reached: Path = "ptq" if path == "ptq" else "qat"
        cells.setdefault((distiller, reached, number), []).append(_value(report, "int8", metric.name))
        if reached == "ptq" and number == bits[0]:
            cells.setdefault((distiller, "float", 0), []).append(_value(report, "student", metric.name))
    spec = run.planned[0].plan.recipe
    epochs = spec.distill.fit.epochs
    return synergy(
        cells, recipe=spec.name, metric=words_of(metric.name), unit=metric.unit, direction=metric.direction,
        epochs=epochs, bits=bits,
    )  # fmt: skip


def _reports(run: StudyRun) -> Iterator[tuple[str, EvaluationReport]]:
    for name, pipeline in run.pipelines.items():
        report = pipeline.view.record("report", EvaluationReport)
        if report is not None:
            yield name, report


def _judged_by(report: EvaluationReport) -> Metric:
    ours, theirs = report.models.get("int8", ()), report.models.get("student", ())
    name = main_metric(ours, theirs)
    if name is None:
        raise RecipeError("the evaluator 'quality' measured no metric that int8 and float student share")
    return next(one for one in ours if one.name == name)


def _value(report: EvaluationReport, model: str, metric: str) -> float:
    value = report.value(model, metric)
    if value is None:
        raise RecipeError(f"{metric!r} of {model} was not measured in every branch")
    return value
