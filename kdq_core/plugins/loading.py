"""Loads plug-in modules from entry points, so that one broken plug-in never stops another.

Each module has its own pluggy manager, so KDQ calls its hooks alone, and a misspelt hook quarantines that module only.
Pluggy's own loading would stop at the first plug-in that raises.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pluggy

from kdq_core.errors import PluginError, did_you_mean, listing
from kdq_core.frozen import Frozen
from kdq_core.plugins import hookspecs
from kdq_core.plugins.bases import KINDS
from kdq_core.plugins.hookspecs import API_VERSION, PluginSpec
from kdq_core.plugins.kinds import Kind

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

HOUSE = "kdq"
HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("kdq_"))

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_STAGE_NAME = re.compile(r"[a-z0-9]+([-_][a-z0-9]+)*")
_NAMES = {"stage": (_STAGE_NAME, "in lower case with '-' or '_' between words, such as 'prune-channels'")}
_one_at_a_time = threading.RLock()
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class CatalogEntry(Frozen):
    """An installed plug-in: the path of its class, and its distribution. The class is not imported."""

    kind: Kind
    name: str
    target: str
    distribution: str
    version: str
    house: bool
    summary: str = ""

    @property
    def full_name(self) -> str:
        """`distribution/name`, which is never ambiguous."""
        return f"{self.distribution}/{self.name}"


class Quarantined(Frozen):
    """An entry point that could not be used, and why."""

    entry_point: str
    distribution: str
    version: str
    reason: str

    @property
    def title(self) -> str:
        """How a message names it."""
        return f"plug-in module {self.entry_point!r} of {self.distribution} {self.version}"


class LoadedPlugin:
    """A plug-in module that passed all checks: its entries, and the manager that calls its hooks only."""

    def __init__(self, manager: pluggy.PluginManager, entries: tuple[CatalogEntry, ...], distribution: str) -> None:
        self.manager = manager
        self.entries = entries
        self.distribution = distribution


def load_entry_point(entry: EntryPoint) -> LoadedPlugin | Quarantined:
    """Import a plug-in module, check it, and read its plug-ins."""
    distribution = entry.dist.name if entry.dist else "unknown"
    version = entry.dist.version if entry.dist else "0"
    try:
        with own_stdout():
            module = entry.load()
            _check_api(module)
            manager = _manager(module)
            entries = _entries(manager, distribution, version)
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:
        return Quarantined(entry_point=entry.name, distribution=distribution, version=version, reason=describe(error))
    return LoadedPlugin(manager, entries, distribution)


@contextlib.contextmanager
def own_stdout() -> Iterator[None]:
    """Send to stderr what plug-ins print meanwhile: stdout is KDQ's, and a script may read JSON from it.

    One thread at a time, so that each finds the stdout that it must put back.
    """
    with _one_at_a_time, contextlib.redirect_stdout(sys.stderr):
        yield


def describe(error: BaseException) -> str:
    """Describe an error in one line: its type and text, or the text alone for a `PluginError`."""
    text = " ".join(str(error).split())
    if isinstance(error, PluginError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _check_api(module: Any) -> None:
    wanted = getattr(module, "KDQ_PLUGIN_API", None)
    if wanted is None:
        return
    from packaging.specifiers import InvalidSpecifier, SpecifierSet  # most modules state no range

    try:
        fits = SpecifierSet(wanted).contains(str(API_VERSION))
    except (InvalidSpecifier, TypeError, AttributeError):
        raise PluginError(f"KDQ_PLUGIN_API is {wanted!r}, not a version range such as '>=1,<2'") from None
    if not fits:
        raise PluginError(f"written for plug-in API {wanted!r}; this is {API_VERSION}; install a matching version")


def _manager(module: Any) -> pluggy.PluginManager:
    manager = pluggy.PluginManager("kdq")
    manager.add_hookspecs(hookspecs)
    manager.register(module)
    callers = manager.get_hookcallers(module) or []
    for caller in callers:
        if caller.name not in HOOKS:
            raise PluginError(f"no hook {caller.name!r}{did_you_mean(caller.name, HOOKS)}")
    manager.check_pending()
    if not callers:
        raise PluginError("names no hook; mark a function with '@hookimpl', which kdq_core.api has")
    return manager


def _entries(manager: pluggy.PluginManager, distribution: str, version: str) -> tuple[CatalogEntry, ...]:
    found: dict[tuple[str, str], CatalogEntry] = {}
    for kind in KINDS:
        for answer in getattr(manager.hook, f"kdq_{kind}s")():
            for spec in answer:
                entry = _entry(kind, spec, distribution, version)
                if (kind, entry.name) in found:
                    raise PluginError(f"names {kind} {entry.name!r} twice")
                found[kind, entry.name] = entry
    return tuple(found.values())


def _entry(kind: Kind, spec: object, distribution: str, version: str) -> CatalogEntry:
    if not isinstance(spec, PluginSpec):
        raise PluginError(f"hook 'kdq_{kind}s' gives {spec!r}, not a PluginSpec")
    pattern, named = _NAMES.get(kind, (_NAME, "in kebab-case, such as 'minmax-qat'"))
    if not pattern.fullmatch(spec.name):
        raise PluginError(f"{kind} {spec.name!r} is not named {named}")
    if not _TARGET.fullmatch(spec.target):
        raise PluginError(f"{kind} {spec.name!r} has target {spec.target!r}, not 'package.module:Class'")
    return CatalogEntry(
        kind=kind,
        name=spec.name,
        target=spec.target,
        distribution=distribution,
        version=version,
        house=distribution == HOUSE,
        summary=spec.summary,
    )


def names_of(entries: list[CatalogEntry]) -> str:
    """List names for a message; `distribution/name` if the name alone is ambiguous or a house name's twin."""
    return listing(set(usable_names(entries)))


def usable_names(entries: list[CatalogEntry]) -> dict[str, CatalogEntry]:
    """The names that a recipe may write for these entries of one kind, each with its entry."""
    names: dict[str, CatalogEntry] = {}
    for entry in entries:
        twins = [other for other in entries if other.name == entry.name]
        alone = len(twins) == 1 or entry.house
        names[entry.name if alone else entry.full_name] = entry
    return names
