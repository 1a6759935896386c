"""The catalog: finds the installed plug-ins, and builds one from a recipe's options.

It finds and lists plug-ins without importing their classes; to build one, it imports that class.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue, PydanticUserError, ValidationError

from kdq_core.errors import KdqError, PluginError, RecipeError, did_you_mean
from kdq_core.plugins.bases import BASES
from kdq_core.plugins.code_version import Code, code_of
from kdq_core.plugins.kinds import Kind, Plugin
from kdq_core.plugins.loading import (
    HOUSE,
    CatalogEntry,
    LoadedPlugin,
    Quarantined,
    describe,
    load_entry_point,
    names_of,
    own_stdout,
    usable_names,
)
from kdq_core.plugins.user_code import user_module
from kdq_core.recipe.explain import Where, problems, summary

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


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
        """Load the entry points of group `kdq`; one that fails is quarantined and stops no other.

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
        """The names that a recipe may write for `kind`, each with its entry."""
        return usable_names(self.of_kind(kind))

    def find(self, kind: Kind, name: str) -> CatalogEntry:
        """The entry a recipe means by `name`, which may be `distribution/name`, or `path/to/file.py:Class`.

        Raises:
            PluginError: there is none, or several distributions bring one.
            RecipeError: the file does not exist.
        """
        if ".py:" in name:
            module, path = user_module(name), name.rpartition(":")[0]
            target = f"{module}:{name.rpartition(':')[2]}"
            return CatalogEntry(kind=kind, name=name, target=target, distribution=path, version="", house=False)
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
            f"Installed: {names_of(entries)}.{self.quarantine_hint()}"
        )

    def shadow(self, entry: CatalogEntry) -> str:
        """Why a recipe cannot mean `entry` by its name alone, and what to write; empty if it can."""
        if self.names(entry.kind).get(entry.name) == entry:
            return ""
        twins = [one for one in self.of_kind(entry.kind) if one.name == entry.name and one != entry]
        if any(one.house for one in twins):
            return f"{entry.name!r} alone means that of {HOUSE!r}; write {entry.full_name!r}"
        others = " and ".join(repr(one.distribution) for one in twins)
        return f"{others} {'brings' if len(twins) == 1 else 'bring'} one of this name too; write {entry.full_name!r}"

    def quarantine_hint(self) -> str:
        """` Quarantined: ...` with each reason, to end a message; empty if nothing is."""
        if not self.quarantined:
            return ""
        reasons = "; ".join(sorted(f"{one.distribution} ({one.reason})" for one in self.quarantined))
        return f" Quarantined: {reasons}."

    def load_class(self, entry: CatalogEntry) -> type[Plugin]:
        """Import the class of a plug-in.

        Raises:
            PluginError: the class cannot be imported, or is not a complete plug-in of its kind.
        """
        module_name, _, class_name = entry.target.partition(":")
        try:
            with own_stdout():
                found = getattr(importlib.import_module(module_name), class_name)
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:
            remedy = f"reinstall or upgrade {entry.distribution!r}" if entry.version else "correct the file or the name"
            raise PluginError(f"{_title(entry)} cannot be loaded: {describe(error)}; {remedy}") from error
        base = BASES[entry.kind]
        if not (isinstance(found, type) and issubclass(found, base)):
            raise PluginError(f"{_title(entry)} is broken: {entry.target!r} is no subclass of {base.__name__}")
        if inspect.isabstract(found):
            missing = ", ".join(sorted(found.__abstractmethods__))
            raise PluginError(f"{_title(entry)} is incomplete: {entry.target!r} lacks {missing}")
        taken = sorted(found.model_fields.keys() & declared(base))
        if taken:
            name = taken[0]
            raise PluginError(
                f"{_title(entry)} is broken: {entry.target!r} makes {name!r} an option; write `{name} = ...` or "
                f"`{name}: ClassVar[...] = ...`"
            )
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
            options: the plug-in's fields; KDQ converts no types.
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

    def code_of(self, entry: CatalogEntry, *, also: Sequence[str] = (), without: Sequence[str] = ()) -> Code:
        """Hash the code that a plug-in reaches, as the files are now; imports nothing.

        Args:
            entry: the plug-in.
            also: modules of KDQ that run with it, although it does not import them.
            without: modules of KDQ that change no result.
        """
        return code_of(entry.target, entry.distribution, also=also, without=without)

    def lifecycle(self, hook_name: str, **kwargs: Any) -> list[Any]:
        """Call a lifecycle hook of every plug-in; one that fails stops no other.

        Args:
            hook_name: such as `kdq_stage_started`.
            **kwargs: what the hook takes.

        Returns:
            The answers of the plug-ins, iterables as lists. KDQ logs a plug-in that fails and leaves it out. In
            `kdq_before_promotion` the failure is a reason against the promotion, because the plug-in did not agree.
        """
        answers: list[Any] = []
        for _, given, reason in self.each(hook_name, **kwargs):
            answers += given
            if reason and hook_name == "kdq_before_promotion":
                answers.append([reason])
        return answers

    def each(self, hook_name: str, **kwargs: Any) -> Iterator[tuple[str, list[Any], str]]:
        """Call a hook of every plug-in: its distribution, its answers, and why it failed, or an empty text."""
        for plugin in self.plugins:
            answers, reason = [], ""
            try:
                answers = [_listed(answer) for answer in getattr(plugin.manager.hook, hook_name)(**kwargs)]
            except (KeyboardInterrupt, MemoryError):
                raise
            except BaseException as error:
                reason = f"plug-in {plugin.distribution!r} failed in {hook_name}: {describe(error)}"
                log.warning(reason)
            yield plugin.distribution, answers, reason


def declared(base: type[Plugin]) -> set[str]:
    """Names that a plug-in declares for its class, and that are no options."""
    return {name for one in base.__mro__ if issubclass(one, Plugin) for name in one.__class_vars__}


def _title(entry: CatalogEntry) -> str:
    of = f" of {entry.distribution} {entry.version}" if entry.version else ""
    return f"{entry.kind} {entry.name!r}{of}"


def _order(entry: CatalogEntry) -> tuple[str, str, str]:
    return (entry.kind, entry.name, entry.distribution)


def _listed(answer: Any) -> Any:
    return list(answer) if isinstance(answer, Iterable) and not isinstance(answer, str | bytes) else answer
