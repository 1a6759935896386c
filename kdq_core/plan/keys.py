"""What a stage's key is made of: what it reads, and the code and libraries that read it.

The digests of the entries it stands on join later.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdq_core.plan.sections import shown
from kdq_core.plugins.asked import Asked
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.contract import Reads
from kdq_core.plugins.kinds import Kind
from kdq_core.plugins.named import named_plugins
from kdq_core.plugins.stage import Stage
from kdq_core.plugins.wiring import Wired
from kdq_core.recipe.spec import Site
from kdq_core.store.store import sha256_file

_ISA = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16", "asimddp", "i8mm"}


class KeyParts:
    """Makes the parts of the keys of one plan; what several stages share is computed once."""

    def __init__(self, asked: Asked, catalog: Catalog) -> None:
        self._asked, self._catalog = asked, catalog
        self._code: dict[tuple[Kind, str], str] = {}
        self._data = ""

    def of(self, wired: Wired, before: dict[str, Wired]) -> dict[str, Any]:
        """The parts of one stage's key.

        Args:
            wired: the stage.
            before: the stages before it, by title.
        """
        stage, asked = wired.stage, self._asked
        reads = stage.reads(asked, wired.ports)
        parts: dict[str, Any] = {
            "code": {f"{kind} {name}": self._code_of(kind, name) for kind, name in self._named(wired, reads, before)},
            "recipe": shown(asked, reads.sections),
            "libraries": {name: importlib.metadata.version(name) for name in reads.libraries},
            "options": stage.model_dump(mode="json"),
            "files": [sha256_file(Path(name)) for name in reads.files],
            "others": dict(reads.others),
        }
        parts = {name: part for name, part in parts.items() if part}
        if reads.data:
            parts["data"] = self._data = self._data or asked.workload.fingerprint()
        if reads.seeded:
            parts["seed"] = asked.recipe.seed
        if reads.device:
            parts["device"] = device_class(asked.site)
        return parts

    def _named(self, wired: Wired, reads: Reads, before: dict[str, Wired]) -> Iterator[tuple[Kind, str]]:
        """The plug-ins whose code the stage runs: itself, those it names, and those that rebuild its models."""
        yield "stage", wired.use
        for kind, name, _, _ in named_plugins(self._asked.recipe):
            if kind in reads.plugins:
                yield kind, name
        for one in ancestors(wired, before):
            if type(one.stage).operate is not Stage.operate:
                yield "stage", one.use

    def _code_of(self, kind: Kind, name: str) -> str:
        if (kind, name) not in self._code:
            self._code[kind, name] = self._catalog.code_version(self._catalog.find(kind, name))
        return self._code[kind, name]


def ancestors(wired: Wired, before: dict[str, Wired]) -> list[Wired]:
    """All stages that a stage stands on, nearest first, each once."""
    found: dict[str, Wired] = {}
    asked = list(wired.parents.values())
    while asked:
        title = asked.pop(0)
        if title not in found:
            found[title] = before[title]
            asked += before[title].parents.values()
    return list(found.values())


def device_class(site: Site) -> str:
    """What results may depend on: device, precision, thread count, instruction set."""
    kind = site.device.partition(":")[0]
    return f"{kind} {site.precision}, {site.threads} threads, {platform.machine()} {_isa()}".strip()


def _isa() -> str:
    try:
        return " ".join(sorted(_ISA & set(Path("/proc/cpuinfo").read_text().split())))
    except OSError:
        return ""
