"""Finds the modules of KDQ that some code reaches through its imports, and theirs. KDQ imports nothing for this.

`from kdq_core.api import X` reaches the module that defines X, and no other that `kdq_core.api` names. So an edit in a
room that a plug-in does not use leaves the plug-in's code version as it is.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from kdq_core.plugins import sources
from kdq_core.plugins.imports import Import, parsed
from kdq_core.plugins.sources import File

OWN = frozenset({
    "kdq", "kdq_core", "kdq_flows", "kdq_registry", "kdq_workloads", "kdq_distillers", "kdq_quantizers", "kdq_targets",
    "kdq_evaluators", "kdq_stages",
})  # fmt: skip
"""The packages of the distribution `kdq`."""
API = "kdq_core.api"

_edges: dict[str, tuple[File, tuple[str, ...]]] = {}
_table: dict[str, tuple[File, dict[str, Import]]] = {}


def reached(starts: Iterable[Import], without: Collection[str] = ()) -> dict[str, str]:
    """Give the sha256 of every module of KDQ that the imports reach, by name; its packages count too.

    Args:
        starts: absolute imports; imports of other packages are ignored.
        without: modules to leave out, with all that only they reach.
    """
    found: dict[str, str] = {}
    seen: set[str] = set()
    asked = [node for one in starts for node in _nodes(one)]
    while asked:
        node = asked.pop()
        if node in seen:
            continue
        seen.add(node)
        module, _, name = node.partition(":")
        if module in without:
            continue
        if name:
            asked += _defining(name)
            continue
        path, file = _source(module)
        if file is None:
            continue  # Python reports it on import
        found[module] = file.sha256
        asked += [*filter(None, [module.rpartition(".")[0]]), *_following(module, path, file)]
    return found


def _following(module: str, path: str, file: File) -> tuple[str, ...]:
    """The nodes that a module of KDQ imports; read once for each content of its file."""
    known = _edges.get(path)
    if known is None or known[0] is not file:
        package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
        nodes = [node for one in file.imports for node in _nodes(_absolute(one, package))]
        if module == API:
            nodes += [f"{API}:{name}" for name in _api()]
        known = _edges[path] = (file, tuple(nodes))
    return known[1]


def _nodes(one: Import) -> Iterator[str]:
    """Yield what an import reaches: modules of KDQ, and `kdq_core.api:<name>` for a name from there."""
    if one.top not in OWN:
        return
    if one.module == API and one.names and "*" not in one.names:
        yield from (f"{API}:{name}" for name in one.names)
        return
    inner = [f"{one.module}.{name}" for name in one.names]
    modules = [name for name in inner if _source(name)[1]]
    yield from modules
    if not inner or len(modules) < len(inner):
        yield one.module


def _absolute(one: Import, package: str) -> Import:
    """A relative import of a module in `package` without its dots."""
    if not one.level:
        return one
    parts = package.split(".")
    above = parts[: len(parts) - one.level + 1]
    return Import(".".join([*above, *filter(None, [one.module])]), one.names)


def _source(module: str) -> tuple[str, File | None]:
    """The file of a module, or of the `__init__` of a package."""
    top, *rest = module.split(".")
    for place in sources.places(top):
        stem = "/".join([place, *rest])
        for path in (f"{stem}/__init__.py", f"{stem}.py"):
            file = sources.read(path)
            if file is not None:
                return path, file
    return "", None


def _defining(name: str) -> Iterator[str]:
    """Yield the module that `kdq_core.api` imports a name from; `kdq_core.api` itself if it imports no such name."""
    one = _api().get(name)
    return _nodes(one) if one else iter([API])


def _api() -> dict[str, Import]:
    """The names of `kdq_core.api`, each with the import behind it: those at its top, and those of its table `_LAZY`."""
    path, file = _source(API)
    if file is None:
        return {}
    known = _table.get(path)
    if known is None or known[0] is not file:
        known = _table[path] = (file, _named(parsed(Path(path).read_bytes())))
    return known[1]


def _named(tree: ast.Module | None) -> dict[str, Import]:
    table: dict[str, Import] = {}
    for node in tree.body if tree else ():
        if isinstance(node, ast.ImportFrom):
            table |= {alias.asname or alias.name: Import(node.module or "", (alias.name,)) for alias in node.names}
        elif isinstance(node, ast.Assign) and "_LAZY" in {getattr(target, "id", "") for target in node.targets}:
            table |= {name: Import(module, (name,)) for name, module in ast.literal_eval(node.value).items()}
    return table
