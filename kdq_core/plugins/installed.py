"""Finds the installed distribution that a module comes from, without importing anything."""

from __future__ import annotations

import importlib.metadata
import os
import re
from importlib.metadata import Distribution

from kdq_core.plugins.sources import settled

_FOLDERS = {"site-packages", "dist-packages"}
_known: dict[tuple[str, str], tuple[int, dict[str, str]]] = {}


def installed(top: str, place: str) -> dict[str, str]:
    """Find name and version of every distribution that brings the package or module `top`.

    Args:
        top: its name.
        place: its folder or file, as `sources.places` gives it.

    Returns:
        An empty dict if it is outside of `site-packages` and `dist-packages`, or only linked from there, or if no
        distribution there lists it.
    """
    if _FOLDERS.isdisjoint((os.path.realpath(place) if os.path.islink(place) else place).split(os.sep)):
        return {}
    folder = os.path.dirname(place)
    try:
        changed = os.stat(folder).st_mtime_ns
    except OSError:
        return {}
    known = _known.get((folder, top))
    if known and known[0] == changed:
        return known[1]
    found = _bringing(top, place)
    if settled(changed):
        _known[folder, top] = (changed, found)
    return found


def version_of(distribution: str) -> str | None:
    """The version of a distribution; `None` if it is not installed, or the name is empty."""
    try:
        return importlib.metadata.version(distribution) if distribution else None
    except importlib.metadata.PackageNotFoundError:
        return None


def _bringing(top: str, place: str) -> dict[str, str]:
    """The distributions that list a file of `top`. Unless several may share `top`, the one of that name comes first."""
    line = re.compile(rf"^{re.escape(top)}(?:[/.]|$)", re.MULTILINE)
    shared = os.path.isdir(place) and not os.path.isfile(os.path.join(place, "__init__.py"))
    for name in (None,) if shared else (top, None):
        among = importlib.metadata.distributions(name=name, path=[os.path.dirname(place)])
        found = {one.name: one.version for one in among if line.search(_files(one))}
        if found:
            return found
    return {}


def _files(distribution: Distribution) -> str:
    """The files and top-level packages that a distribution lists, one a line."""
    return "\n".join(filter(None, (distribution.read_text(name) for name in ("top_level.txt", "RECORD"))))
