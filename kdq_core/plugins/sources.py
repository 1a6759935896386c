"""Finds and reads the files of packages and modules, without importing anything."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from kdq_core.plugins.imports import Import, imports_of

_BY_TOOLS = {"__pycache__", ".git", ".hg", ".svn", ".ipynb_checkpoints", ".mypy_cache", ".pytest_cache", ".ruff_cache"}


@dataclass(frozen=True)
class File:
    """The content of a file: its sha256, and its imports if it is Python source."""

    sha256: str
    imports: tuple[Import, ...]


_Stamp = tuple[int, int, int, int]
_known: dict[str, tuple[_Stamp, File]] = {}


def read(path: str) -> File | None:
    """Read a file; `None` if it does not exist, is not readable, or is no plain file.

    KDQ reads each file once a process, and again if its size, times or inode have changed.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return None
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        known = _known.get(path)
        if known and known[0] == stamp:
            return known[1]
        file = _read(path)
    except OSError:
        return None
    if settled(max(status.st_mtime_ns, status.st_ctime_ns)):
        _known[path] = (stamp, file)
    return file


def _read(path: str) -> File:
    if path.endswith(".py"):
        content = Path(path).read_bytes()
        return File(hashlib.sha256(content).hexdigest(), imports_of(content))
    with open(path, "rb") as data:
        return File(hashlib.file_digest(data, "sha256").hexdigest(), ())


def settled(changed_ns: int) -> bool:
    """Whether the last change is over two seconds ago, so that the next one will have another time stamp."""
    return time.time_ns() - changed_ns > 2_000_000_000


def places(top: str) -> list[str]:
    """The folders of a top-level package, or the file of a top-level module; empty if there is neither."""
    spec = _spec(top)
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [os.fspath(place) for place in spec.submodule_search_locations]  # transformers sets paths
    return [spec.origin] if spec.has_location and spec.origin else []


def module_file(module: str) -> str | None:
    """The file of a module, or of the `__init__` of a package; `None` if there is none."""
    top, *rest = module.split(".")
    spec = _spec(top)
    for name in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{name}", list(spec.submodule_search_locations))
    return spec.origin if spec and spec.origin and os.path.isfile(spec.origin) else None


def _spec(top: str) -> ModuleSpec | None:
    if top == "__main__":
        return None  # the script that runs, which differs from process to process
    try:
        return importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None


def files(place: str) -> Iterator[tuple[str, File]]:
    """Every file of a package by its path inside of it, or the one file of a module.

    KDQ leaves out what Python and tools write there: compiled code, caches, version control. It follows links. A module
    in an archive counts as the whole archive, and KDQ does not see its imports.
    """
    if not os.path.isdir(place):
        while not os.path.exists(place) and os.path.dirname(place) != place:
            place = os.path.dirname(place)
        file = read(place)
        yield from [(os.path.basename(place), file)] if file else []
        return
    for path in _walk(place, frozenset()):
        file = read(path)
        if file is not None:
            yield os.path.relpath(path, place).replace(os.sep, "/"), file


def _walk(folder: str, above: frozenset[str]) -> Iterator[str]:
    """The files of a folder and its subfolders; KDQ does not follow a link to a folder above it."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_dir():
            if entry.name not in _BY_TOOLS:
                yield from _walk(entry.path, above | {real})
        elif not entry.name.endswith((".pyc", ".pyo")):
            yield entry.path
