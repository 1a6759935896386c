"""Runs the conformance kit of a plug-in's kind, with small files, recipes and targets of KDQ's own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from kdq_core.errors import PluginError
from kdq_core.plan.plan import asked_of
from kdq_core.plugins.bases import BASES
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.kinds import Distiller, Evaluator, Kind, Plugin, Quantizer, Target, Workload
from kdq_core.plugins.stage import Stage
from kdq_core.plugins.user_code import user_object
from kdq_core.recipe.spec import Recipe, Site

FIT = {"fit": {"epochs": 2, "batch_size": 256}}
TINY: dict[str, Any] = {
    "name": "kit",
    "workload": {"use": "digits", "options": {"teacher_width": 4, "student_width": 4}},
    "teacher": FIT,
    "distill": FIT,
    "quantize": FIT,
}
"""The recipe in which the kit tries a stage."""
BEFORE = {
    "train_teacher": "teacher",
    "cache_teacher": "outputs",
    "distill": "student",
    "quantize": "quantized",
    "export": "artifact",
    "evaluate": "report",
}
"""KDQ's own stages in order, each with the slot that it gives."""


def kind_of(target: str) -> Kind:
    """The kind of a class in a file.

    Args:
        target: `path/to/file.py:Class`.

    Raises:
        RecipeError: the file or the class is not there, or importing it fails.
        PluginError: the class is no plug-in.
    """
    given = user_object(target)
    for kind, base in BASES.items():
        if isinstance(given, type) and issubclass(given, base):
            return kind
    raise PluginError(
        f"{target!r} is no plug-in; make it a class that inherits from one of "
        f"{', '.join(base.__name__ for base in BASES.values())} of kdq_core.api"
    )


def try_plugin(
    plugin: Plugin,
    tell: Callable[[str], None],
    *,
    target: str = "onnxruntime-cpu",
    timed: Collection[str] = (),
    catalog: Catalog | None = None,
) -> None:
    """Run the kit of the plug-in's kind.

    Args:
        plugin: with the options to check.
        tell: hears of each promise that is kept.
        target: runs the files of quantizers and evaluators.
        timed: metrics of an evaluator that measure time.
        catalog: the plug-ins; by default those installed.

    Raises:
        AssertionError: a promise is broken; the text says which.
        KdqError: a stage refused the plug-in.
    """
    from kdq_core import testing

    catalog = catalog or Catalog.load()
    runtime = catalog.build("target", target)
    assert isinstance(runtime, Target)
    if isinstance(plugin, Workload):
        testing.check_workload(plugin, tell=tell)
    elif isinstance(plugin, Distiller):
        testing.check_distiller(plugin, tell=tell)
    elif isinstance(plugin, Quantizer):
        testing.check_quantizer(plugin, target=runtime, tell=tell)
    elif isinstance(plugin, Target):
        testing.check_target(plugin, tell=tell)
    elif isinstance(plugin, Stage):
        testing.check_stage(plugin, recipe_for(plugin, catalog), tell=tell)
    elif isinstance(plugin, Evaluator):
        with tempfile.TemporaryDirectory() as folder:
            int8, baseline, batches = testing.toy_subjects(runtime, Path(folder))
            testing.check_evaluator(plugin, int8, baseline, batches, timed=timed, tell=tell)


def recipe_for(stage: Stage, catalog: Catalog) -> Mapping[str, Any]:
    """A small recipe whose stages give every slot that `stage` needs."""
    asked = asked_of(Recipe.model_validate(TINY), Site(home=Path(), threads=1), catalog)
    needed = {port.slot for port in stage.inputs(asked).values() if not port.optional}
    slots = list(BEFORE.values())
    last = max((slots.index(slot) for slot in needed if slot in slots), default=-1)
    stages = [use for use, slot in list(BEFORE.items())[: last + 1] if slot != "outputs" or slot in needed]
    return {**TINY, "stages": stages}
