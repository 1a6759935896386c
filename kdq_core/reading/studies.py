"""Reads a recipe file that may have branches: a matrix, or a space to search. All branches are checked at once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from kdq_core.errors import KdqError, RecipeError, UnusedError, did_you_mean, listing
from kdq_core.plugins.asked import Asked
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.wiring import models_of, wire
from kdq_core.reading.checks import check_metric, checked_recipe, given_metrics, study_section
from kdq_core.reading.matrix import branch_document, combinations, names_of
from kdq_core.reading.recipe_file import read_document
from kdq_core.recipe.explain import problems, summary
from kdq_core.recipe.site import Site
from kdq_core.recipe.study import FIELDS, Axes, Range, SelectSpec, StudySpec

if TYPE_CHECKING:
    from kdq_core.plugins.kinds import Plugin
    from kdq_core.recipe.spec import Recipe
    from kdq_core.recipe.strict_yaml import Document, Loc


@dataclass(frozen=True)
class Branch:
    """One point of a matrix or a search.

    Attributes:
        name: such as `use=lsq,weights=4`.
        axes: its values by dotted name of the recipe's field.
        recipe: an ordinary recipe.
    """

    name: str
    axes: Axes
    recipe: Recipe


@dataclass(frozen=True)
class Study:
    """A recipe with branches.

    Attributes:
        document: the file.
        branches: those of the matrix; a search adds more while it runs.
        spec: the sections of the study.
        example: a branch of a search, with the first value of each axis, to check and to plan; `None` for a matrix.
    """

    document: Document
    branches: tuple[Branch, ...]
    spec: StudySpec
    example: Branch | None = None

    @property
    def known(self) -> tuple[Branch, ...]:
        """The branches that can be shown before anything runs."""
        return self.branches if self.example is None else (self.example,)

    @property
    def name(self) -> str:
        """The recipe's name."""
        return str(self.document.value.get("name"))


def load(path: Path, *, files: bool = False) -> Recipe | Study:
    """Read a recipe file with or without branches, and check each branch with every plug-in that it names.

    Args:
        path: path of the file.
        files: also look for the files and factories that it names; a plan always does so.

    Raises:
        RecipeError: the file or a value in it is wrong; the message names file and line, and the branch.
        PluginError: a plug-in that it names is missing or broken.
    """
    document, catalog = read_document(path), Catalog.load()
    if study_section(document):
        return read_study(document, catalog, files=files)
    return checked_recipe(document, catalog, files=files)


def read_study(document: Document, catalog: Catalog, *, files: bool = False) -> Study:
    """Make the study of a document; see `load`."""
    spec = _spec(document)
    found = combinations(spec.matrix, spec.limits, document) if spec.matrix is not None else []
    names = names_of(found)
    built: dict[str, Plugin] = {}
    wrong: list[tuple[str, KdqError]] = []
    branches: list[Branch] = []
    for name, axes in zip(names, found, strict=True):
        try:
            branches.append(Branch(name, axes, branch_recipe(document, axes, catalog, built, files=files)))
        except KdqError as error:
            wrong.append((name, error))
    if wrong:
        name, first = wrong[0]
        more = f"\n{len(wrong) - 1} more of {len(found)} branches have mistakes" if len(wrong) > 1 else ""
        raise type(first)(f"branch {name}: {first}{more}")
    example = None
    if spec.search is not None:
        space = spec.search.space
        start: Axes = {axis: one.low if isinstance(one, Range) else one[0] for axis, one in space.items()}
        recipe = branch_recipe(document, start, catalog, built, files=files, section="search")
        example = Branch(names_of([start])[0], start, recipe)
    study = Study(document, tuple(branches), spec, example)
    if spec.select is not None:
        _check_select(spec.select, study.known[0].recipe, catalog, document)
    return study


def branch_recipe(
    document: Document,
    axes: Axes,
    catalog: Catalog,
    built: dict[str, Plugin] | None = None,
    *,
    files: bool = False,
    section: str = "matrix",
) -> Recipe:
    """The recipe of one branch, checked.

    A setting of the file that the branch's quantizer ignores is left out of the branch: the file has it for others.

    Args:
        document: the file with the sections of the study.
        axes: values of the branch.
        catalog: the installed plug-ins.
        built: plug-ins that the branches share; by default none.
        files: also look for the files and factories that it names.
        section: where the axes stand.

    Raises:
        KdqError: the branch is no valid recipe.
    """
    branch = branch_document(document, axes, section)
    while True:
        try:
            return checked_recipe(branch, catalog, built, files=files)
        except UnusedError as error:
            path = ".".join(error.loc)
            if not isinstance(branch.value.get(error.loc[0]), dict) or any(_meets(axis, path) for axis in axes):
                raise
            del branch.value[error.loc[0]][error.loc[1]]


def _meets(axis: str, path: str) -> bool:
    return f"{path}.".startswith(f"{axis}.") or f"{axis}.".startswith(f"{path}.")


def _spec(document: Document) -> StudySpec:
    raw = {name: part for name, part in document.value.items() if name in FIELDS}
    try:
        return StudySpec.model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        lines = problems(error, StudySpec, where=document.where)
        raise RecipeError(summary(lines, f"recipe '{document.name}'")) from None


def _check_select(select: SelectSpec, recipe: Recipe, catalog: Catalog, document: Document) -> None:
    """Refuse a goal or an objective on a metric that no evaluator gives, or on a model that no stage gives."""
    asked = Asked(recipe, Site(home=Path()), catalog.build)
    given = given_metrics(recipe, asked.evaluators)
    models = [model.slot for model in models_of(wire(asked, catalog), asked)]
    named: list[tuple[str, Loc]] = [(goal.metric, ("goals", i, "metric")) for i, goal in enumerate(select.goals)]
    named += [(metric, ("minimise", i)) for i, metric in enumerate(select.minimise)]
    named += [(metric, ("maximise", i)) for i, metric in enumerate(select.maximise)]
    for metric, loc in named:
        if given is not None:
            check_metric(metric, given, "'select'", document.where(("select", *loc)))
    meant: list[tuple[str, Loc]] = [(select.of, ("of",))]
    for i, goal in enumerate(select.goals):
        meant.append((goal.of, ("goals", i, "of")))
        meant += [(goal.relative_to, ("goals", i, "relative_to"))] if goal.relative_to else []
    for model, loc in meant:
        if model not in models:
            raise RecipeError(
                f"{document.where(('select', *loc))}: 'select' names the model {model!r}, but the recipe's stages "
                f"give: {listing(models)}{did_you_mean(model, models)}"
            )
