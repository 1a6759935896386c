"""Which code a plug-in is: what its key holds of it. Nothing is imported."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Collection, Iterable

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


def code_of(target: str, distribution: str, *, also: Iterable[str] = (), without: Collection[str] = ()) -> Code:
    """The code of a plug-in, as it lies on the disk at this moment.

    Of KDQ's own packages the files count that the module can reach through its imports. Of a guest the whole top-level
    package counts, data files too, wherever it is installed, and all that it imports: modules of KDQ as above, packages
    outside of `site-packages` whole, and of installed distributions the version.

    Limits: KDQ does not see imports whose names are computed, what an installed distribution imports in its turn, files
    outside of the package that the code opens, and the environment that it reads. A package that writes into its own
    folder changes its own code. `pip install --target` makes no `site-packages`: what lies there is read whole.

    Args:
        target: `package.module:Class`, or `package.module`.
        distribution: which brought it; empty where that is not known.
        also: modules of KDQ that run with it, though it does not import them.
        without: modules of KDQ that change no result.

    Raises:
        PluginError: there is no such package, or no such module of KDQ.
    """
    module = target.partition(":")[0]
    top = module.partition(".")[0]
    if top in OWN:
        found = reached([Import(module), *map(Import, also)], without)
        if module not in found:
            raise PluginError(f"module {module!r} is not there, though a plug-in names it; reinstall 'kdq'")
        return Code(text=_sha256(found.items()), libraries={})
    contents, libraries = _of_guest(top, also, without)
    version = version_of(distribution)
    named = f"{distribution}=={version} " if version else ""
    return Code(text=named + _sha256(contents), libraries=libraries)


def _of_guest(top: str, also: Iterable[str], without: Collection[str]) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Name and sha256 of each file that a package consists of or imports, and the versions of what is installed."""
    if not sources.places(top):
        raise PluginError(f"package {top!r} is not installed, though a plug-in names it; reinstall its distribution")
    contents: list[tuple[str, str]] = []
    libraries: dict[str, str] = {}
    of_kdq = set(map(Import, also))
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
    return [*contents, *reached(of_kdq, without).items()], libraries


def _sha256(contents: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.sha256(
        "".join(f"{name}\0{sha256}\0" for name, sha256 in sorted(contents)).encode(errors="surrogateescape")
    )
    return f"sha256:{digest.hexdigest()[:16]}"
