"""The version of a plug-in's code, as keys hold it. KDQ reads the files and imports nothing."""

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
    """The code that a result depends on.

    Attributes:
        text: a hash of all sources; for a guest, after name and version of its distribution.
        libraries: versions of the installed distributions that a guest imports, by name.
    """

    text: str
    libraries: dict[str, str]


def code_of(target: str, distribution: str, *, also: Iterable[str] = (), without: Collection[str] = ()) -> Code:
    """Hash the code of a plug-in, as the files are now.

    For KDQ's own plug-ins, the hash covers the files that the module reaches through its imports. For a guest, it
    covers the whole top-level package with its data files, wherever it is installed, and what the package imports:
    modules of KDQ by the rule above, and whole packages outside of `site-packages`. Installed distributions count by
    version.

    Limits: KDQ does not see imports whose names are computed, the imports of an installed distribution, files that the
    code opens outside of its package, and the environment that it reads. A package that writes into its own folder
    changes its own code. `pip install --target` makes no `site-packages`, so KDQ reads such packages whole.

    Args:
        target: `package.module:Class`, or `package.module`.
        distribution: the distribution that brings it; empty if that is not known.
        also: modules of KDQ that run with it, although it does not import them.
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
    """Name and sha256 of each file of a package and of what it imports, and the versions of installed distributions."""
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
