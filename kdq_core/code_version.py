"""Which code computed something: the distribution's version, and a hash of the package's source files."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from pathlib import Path

from kdq_core.errors import PluginError


def package_version(module: str, distribution: str) -> str:
    """`<distribution>==<version> sha256:<16 hex>`, the hash over every *.py of the top-level package of `module`.

    Imports nothing.

    Raises:
        PluginError: the package is not installed.
    """
    top = module.partition(".")[0]
    version = importlib.metadata.version(distribution)
    return f"{distribution}=={version} sha256:{source_hash(top)[:16]}"


def kdq_code_version() -> str:
    """The same for `kdq_core`, whose code is part of every stage's key."""
    return package_version("kdq_core", "kdq")


def source_hash(top: str) -> str:
    """sha256 over every *.py of the top-level package or module `top`; imports nothing."""
    digest = hashlib.sha256()
    for name, path in _sources(top):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _sources(top: str) -> list[tuple[str, Path]]:
    """Source files as (path inside the package, file), sorted."""
    spec = importlib.util.find_spec(top)
    if spec is None:
        raise PluginError(f"package {top!r} is not installed, though a plug-in names it; reinstall its distribution")
    if spec.submodule_search_locations is None:
        return [(top, Path(spec.origin))] if spec.origin else []
    folders = map(Path, spec.submodule_search_locations)
    return sorted((path.relative_to(folder).as_posix(), path) for folder in folders for path in folder.rglob("*.py"))
