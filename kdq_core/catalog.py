"""The catalog: which plug-ins are installed, under which names, and how one is built from a recipe's options.

Finding and listing import no plug-in class; building imports the one that is asked for.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import json
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue, PydanticUserError, ValidationError

from kdq_core.code_version import kdq_code_version, package_version
from kdq_core.errors import KdqError, PluginError, RecipeError, did_you_mean, listing
from kdq_core.explain import Where, problems, summary
from kdq_core.kinds import BASES, Distiller, Evaluator, Kind, Plugin, Quantizer
from kdq_core.plugin_loading import (
    CatalogEntry,
    LoadedPlugin,
    Quarantined,
    describe,
    load_entry_point,
    names_of,
    usable_names,
)
from kdq_core.teachers.checks import check_files, check_teachers

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint
    from pathlib import Path

    from kdq_core.spec import Recipe
    from kdq_core.strict_yaml import Document, Loc

__all__ = ["Catalog", "CatalogEntry", "Quarantined", "check_recipe", "kdq_code_version", "load_recipe"]

GROUP = "kdq"
log = logging.getLogger("kdq")


class Catalog:
    """The plug-ins of this environment."""

    def __init__(self, plugins: Iterable[LoadedPlugin], quarantined: Iterable[Quarantined]) -> None:
        self.plugins = tuple(plugins)
        self.quarantined = tuple(quarantined)
        self.entries = tuple(sorted((e for p in self.plugins for e in p.entries), key=_order))

    @classmethod
    def load(cls, entry_points: Iterable[EntryPoint] | None = None) -> Catalog:
        """Load the entry points of group `kdq`, each in its own guard.

        Args:
            entry_points: those to load; by default all that are installed.
        """
        if entry_points is None:
            entry_points = importlib.metadata.entry_points(group=GROUP)
        loaded = [load_entry_point(entry) for entry in entry_points]
        return cls(
            (one for one in loaded if isinstance(one, LoadedPlugin)),
            (one for one in loaded if isinstance(one, Quarantined)),
        )

    def of_kind(self, kind: Kind) -> list[CatalogEntry]:
        """The entries of one kind, sorted by name."""
        return [entry for entry in self.entries if entry.kind == kind]

    def names(self, kind: Kind) -> dict[str, CatalogEntry]:
        """What a recipe may write for `kind`, and what it means."""
        return usable_names(self.of_kind(kind))

    def find(self, kind: Kind, name: str) -> CatalogEntry:
        """The entry a recipe means by `name`, which may be `distribution/name`.

        Raises:
            PluginError: there is none, or several distributions bring one.
        """
        entries = self.of_kind(kind)
        fitting = [entry for entry in entries if name in (entry.name, entry.full_name)]
        house = [entry for entry in fitting if entry.house]
        if len(house or fitting) == 1:
            return (house or fitting)[0]
        if fitting:
            both = " and ".join(sorted(repr(entry.full_name) for entry in fitting))
            raise PluginError(f"{kind} {name!r} comes from {len(fitting)} distributions; write one of {both}.")
        raise PluginError(
            f"no {kind} named {name!r}{did_you_mean(name, self.names(kind)) or '.'} "
            f"Installed: {names_of(entries)}.{self._quarantine_hint()}"
        )

    def _quarantine_hint(self) -> str:
        if not self.quarantined:
            return ""
        reasons = "; ".join(sorted(f"{one.distribution} ({one.reason})" for one in self.quarantined))
        return f" Quarantined: {reasons}."

    def load_class(self, entry: CatalogEntry) -> type[Plugin]:
        """Import the class of a plug-in.

        Raises:
            PluginError: it cannot be imported, or is not a complete plug-in of its kind.
        """
        module_name, _, class_name = entry.target.partition(":")
        try:
            found = getattr(importlib.import_module(module_name), class_name)
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:
            raise PluginError(
                f"{_title(entry)} cannot be loaded: {describe(error)}; reinstall or upgrade {entry.distribution!r}"
            ) from error
        base = BASES[entry.kind]
        if not (isinstance(found, type) and issubclass(found, base)):
            raise PluginError(f"{_title(entry)} is broken: {entry.target!r} is no subclass of {base.__name__}")
        if inspect.isabstract(found):
            missing = ", ".join(sorted(found.__abstractmethods__))
            raise PluginError(f"{_title(entry)} is incomplete: {entry.target!r} lacks {missing}")
        return found

    def options_schema(self, entry: CatalogEntry) -> dict[str, Any]:
        """JSON Schema of a plug-in's options; imports its class.

        Raises:
            PluginError: it cannot be imported, or an option has a type that YAML cannot write.
        """
        found = self.load_class(entry)
        try:
            return found.model_json_schema()
        except PydanticUserError as error:
            raise PluginError(f"{_title(entry)} is broken: {' '.join(error.message.split())}") from error

    def build(
        self, kind: Kind, name: str, options: Mapping[str, JsonValue] | None = None, *, where: str | Where = ""
    ) -> Plugin:
        """Find, import and make a plug-in with a recipe's options.

        Args:
            kind: one of `KINDS`.
            name: as the recipe writes it.
            options: the plug-in's fields; types are taken as written.
            where: `file:line` for messages, or a function that gives it for a location within the options.

        Raises:
            RecipeError: an option is unknown or out of range.
            PluginError: the plug-in is missing or broken.
        """
        entry = self.find(kind, name)
        found = self.load_class(entry)
        place: Where = where if callable(where) else lambda _loc: where
        try:
            return found.model_validate_json(json.dumps(options or {}), strict=True)
        except ValidationError as error:
            lines = problems(error, found, where=place, key="option", of=f"of {kind} {name!r}")
            raise RecipeError(summary(lines, f"{kind} {name!r}")) from None
        except KdqError:
            raise
        except Exception as error:
            raise PluginError(f"{_title(entry)} failed on its options: {describe(error)}") from error

    def code_version(self, entry: CatalogEntry) -> str:
        """`<distribution>==<version> sha256:<16 hex>` of the package that holds the plug-in; imports nothing."""
        return package_version(entry.target.partition(":")[0], entry.distribution)

    def lifecycle(self, hook_name: str, **kwargs: Any) -> list[Any]:
        """Call a lifecycle hook of every plug-in, each in its own guard.

        Args:
            hook_name: such as `kdq_stage_started`.
            **kwargs: what the hook takes.

        Returns:
            What the plug-ins gave, iterables as lists. A plug-in that fails is logged and left out; one that fails in
            `kdq_before_promotion` gives its failure as a reason: what could not be asked is not a yes.
        """
        answers: list[Any] = []
        for plugin in self.plugins:
            try:
                given = getattr(plugin.manager.hook, hook_name)(**kwargs)
                answers += [_listed(answer) for answer in given]
            except (KeyboardInterrupt, MemoryError):
                raise
            except BaseException as error:
                reason = f"plug-in {plugin.distribution!r} failed in {hook_name}: {describe(error)}"
                log.warning(reason)
                if hook_name == "kdq_before_promotion":
                    answers.append([reason])
        return answers


def load_recipe(path: Path, *, files: bool = False) -> Recipe:
    """Read a recipe file and check it with every plug-in it names.

    Args:
        path: of the file.
        files: look for the teachers' files and factories too; a plan does so in any case.

    Raises:
        RecipeError: the file or a value in it is wrong; the message names file and line.
        PluginError: it names a plug-in that is missing or broken.
    """
    from kdq_core.recipe_file import read_document, recipe_from_document

    lines, catalog = read_document(path), Catalog.load()
    recipe = recipe_from_document(lines, catalog)
    check_recipe(recipe, catalog, lines=lines)
    if files:
        check_files(recipe, lines)
    return recipe


def check_recipe(recipe: Recipe, catalog: Catalog, lines: Document | None = None) -> None:
    """Build every plug-in a recipe names, so that a wrong name or option is told before anything runs.

    Args:
        recipe: checked in itself already.
        catalog: the plug-ins installed.
        lines: the document it was read from, for file and line in messages.

    Raises:
        RecipeError: an option is unknown or out of range.
        PluginError: a plug-in is missing or broken.
    """
    built: dict[Loc, Plugin] = {}
    for kind, name, options, loc in named_plugins(recipe):

        def where(inside: Loc, at: Loc = loc) -> str:
            return lines.where((*at, "options", *inside)) if lines else ""

        try:
            built[loc] = catalog.build(kind, name, options, where=where)
        except PluginError as error:
            place = lines.where((*loc, "use")) if lines else ""
            raise PluginError(f"{place}: {error}" if place else str(error)) from error
    check_teachers(recipe, {loc: plugin for loc, plugin in built.items() if isinstance(plugin, Distiller)}, lines)
    _check_quantize(recipe, built, lines)
    _check_gates(recipe, [p for p in built.values() if isinstance(p, Evaluator)], lines)


def _check_quantize(recipe: Recipe, built: Mapping[Loc, Plugin], lines: Document | None) -> None:
    """Refuse what the quantizer has no use for: the user expects something of it."""
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
            raise RecipeError((f"{place}: " if place else "") + why.format(f"quantize.{field}"))


def _check_gates(recipe: Recipe, evaluators: list[Evaluator], lines: Document | None) -> None:
    """Refuse a written gate on a metric that no evaluator of the recipe gives, where all say what they give."""
    if "gates" not in recipe.model_fields_set or not all(evaluator.metrics for evaluator in evaluators):
        return
    given = {name for evaluator in evaluators for name in evaluator.metrics}
    for index, gate in enumerate(recipe.gates):
        if gate.metric.partition("/")[0] not in given:  # behind the slash: which of several outputs
            place = lines.where(("gates", index, "metric")) if lines else ""
            near = did_you_mean(gate.metric, given)
            raise RecipeError(
                f"{place + ': ' if place else ''}no evaluator of the recipe gives the metric {gate.metric!r} of a gate"
                f"{near or '.'} Given: {listing(given)}."
            )


def named_plugins(recipe: Recipe) -> list[tuple[Kind, str, Mapping[str, JsonValue], Loc]]:
    """Kind, name, options and location of every plug-in a recipe names.

    A distiller whose options have schedules comes twice: as it is at the start of a fit, and as it is at the end.
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
    ]


def _title(entry: CatalogEntry) -> str:
    return f"{entry.kind} {entry.name!r} of {entry.distribution} {entry.version}"


def _order(entry: CatalogEntry) -> tuple[str, str, str]:
    return (entry.kind, entry.name, entry.distribution)


def _listed(answer: Any) -> Any:
    return list(answer) if isinstance(answer, Iterable) and not isinstance(answer, str | bytes) else answer
