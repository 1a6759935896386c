"""Which code a plug-in is: what its key holds of it. Nothing is imported."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from kdq_core.errors import PluginError
from kdq_core.frozen import Frozen
from kdq_core.plugins import sources
from kdq_core.plugins.imports import Import
from kdq_core.plugins.installed import installed, version_of
from kdq_core.plugins.reach import OWN, reached


class Code(Frozen):
    """Code that a result depends on.

    Attributes:
        text: a hash of all sources, behind name and version of the distribution of a guest.
        libraries: versions of the installed distributions that a guest imports, by name.
    """

    text: str
    libraries: dict[str, str]


def code_of(target: str, distribution: str) -> Code:
    """The code of a plug-in, as it lies on the disk at this moment.

    Of KDQ's own packages the files count that the module can reach through its imports. Of a guest the whole top-level
    package counts, data files too, wherever it is installed, and all that it imports: modules of KDQ as above, packages
    outside of `site-packages` whole, and of installed distributions the version.

    Limits: KDQ does not see imports whose names are computed, what an installed distribution imports in its turn, files
    outside of the package that the code opens, and the environment that it reads.

    Args:
        target: `package.module:Class`, or `package.module`.
        distribution: which brought it; empty where that is not known.

    Raises:
        PluginError: there is no such package, or no such module of KDQ.
    """
    module = target.partition(":")[0]
    top = module.partition(".")[0]
    if top in OWN:
        found = reached([Import(module)])
        if module not in found:
            raise PluginError(f"module {module!r} is not there, though a plug-in names it; reinstall 'kdq'")
        return Code(text=_sha256(found.items()), libraries={})
    contents, libraries = _of_guest(top)
    version = version_of(distribution)
    named = f"{distribution}=={version} " if version else ""
    return Code(text=named + _sha256(contents), libraries=libraries)


def _of_guest(top: str) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Name and sha256 of each file that a package consists of or imports, and the versions of what is installed."""
    if not sources.places(top):
        raise PluginError(f"package {top!r} is not installed, though a plug-in names it; reinstall its distribution")
    contents: list[tuple[str, str]] = []
    libraries: dict[str, str] = {}
    of_kdq: set[Import] = set()
    seen, asked = set(OWN | sys.stdlib_module_names) - {top}, [top]
    while asked:
        name = asked.pop()
        if name in seen:
            continue
        seen.add(name)
        for place in sources.places(name):
            versions = installed(name, place) if name != top else {}
            libraries |= versions
            for path, file in () if versions else sources.files(place):
                contents.append((f"{name}/{path}", file.sha256))
                of_kdq |= {one for one in file.imports if one.top in OWN}
                asked += {one.top for one in file.imports if one.top}
    return [*contents, *reached(of_kdq).items()], libraries


def _sha256(contents: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.sha256(
        "".join(f"{name}\0{sha256}\0" for name, sha256 in sorted(contents)).encode(errors="surrogateescape")
    )
    return f"sha256:{digest.hexdigest()[:16]}"


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


def reached_hash(top: str) -> str:
    """sha256 over the package or module `top` and all that it imports, wherever in its code; imports nothing.

    What lies with the standard library is left out, and of what is installed the version stands for the code.
    """
    digest, found = hashlib.sha256(), _reached(top)
    installed = _distributions() if None in found.values() else {}
    for name, code in sorted(found.items()):
        versions = [f"{one}=={importlib.metadata.version(one)}" for one in sorted(set(installed.get(name, ())))]
        digest.update(f"{name} {code or versions}\0".encode())
    return digest.hexdigest()


_distributions = functools.cache(importlib.metadata.packages_distributions)


def _reached(top: str) -> dict[str, str | None]:
    """Digests of top-level packages and modules by name; `None` for what is installed."""
    found: dict[str, str | None] = {}
    asked = [top]
    while asked:
        name = asked.pop()
        place = _place(name)
        if name in found or place is None:
            continue
        if name != top and {"site-packages", "dist-packages"}.intersection(place.parts):
            found[name] = None
            continue
        found[name] = source_hash(name)
        asked += [word for _, path in _sources(name) for word in _imports(path)]
    return found


def _place(name: str) -> Path | None:
    """The file or folder of a top-level package or module; `None` for the standard library, and what is not there."""
    if name in sys.stdlib_module_names:
        return None
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    places = [] if spec is None else [*(spec.submodule_search_locations or ()), *filter(None, [spec.origin])]
    return Path(places[0]) if places else None


def _imports(path: Path) -> set[str]:
    """Top-level names that a source file imports, wherever in it."""
    try:
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
    except (SyntaxError, ValueError):
        return set()  # whoever imports it is told
    whole = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    whole |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in whole if name}


def _sources(top: str) -> list[tuple[str, Path]]:
    """Source files as (path inside the package, file), sorted."""
    spec = importlib.util.find_spec(top)
    if spec is None:
        raise PluginError(f"package {top!r} is not installed, though a plug-in names it; reinstall its distribution")
    if spec.submodule_search_locations is None:
        return [(top, Path(spec.origin))] if spec.origin else []
    folders = map(Path, spec.submodule_search_locations)
    return sorted((path.relative_to(folder).as_posix(), path) for folder in folders for path in folder.rglob("*.py"))
