"""The parts of a stage's key: what the stage reads, and the code and libraries that it runs.

The digests of its parents' entries join when they are known.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from pydantic import JsonValue

from kdq_core.errors import PluginError, RecipeError
from kdq_core.plan.machine import machine_parts
from kdq_core.plan.precision import precision_of
from kdq_core.plan.sections import shown
from kdq_core.plugins.asked import Asked
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.code_version import Code, code_of
from kdq_core.plugins.contract import Needs, Reads
from kdq_core.plugins.kinds import Kind, Plugin
from kdq_core.plugins.named import named_plugins
from kdq_core.plugins.stage import Stage
from kdq_core.plugins.user_code import user_module
from kdq_core.plugins.wiring import Wired
from kdq_core.recipe.spec import Site
from kdq_core.store.hashing import sha256_file

VERBS = ("kdq_core.training.backend", "kdq_core.work.data", "kdq_core.work.fitting", "kdq_core.work.models")
"""Modules behind `Work` that run with every stage that computes: data, fits, models."""
QUANTIZED = ("kdq_core.work.quantized",)
"""Modules that also run if a stage asks for the quantized student."""
CHECKS = ("kdq_core.work.checking", "kdq_core.work.rehearsal")
"""Modules that only check: no result depends on them."""


@dataclass(frozen=True)
class Memo:
    """What several stages, or the plans of a study, have in common: KDQ computes each of these once.

    Attributes:
        plugins: plug-ins with their options, by what was asked.
        code: the code that a plug-in or a module of the user reaches.
        versions: versions of distributions.
        data: fingerprints of the workloads' data.
        machines: what keys hold of a machine, by device and precision.
    """

    plugins: dict[str, Plugin] = field(default_factory=dict)
    code: dict[tuple[str, str, tuple[str, ...]], Code] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    machines: dict[str, dict[str, JsonValue]] = field(default_factory=dict)


class KeyParts:
    """Makes the parts of the keys of one plan; it computes what several stages share once."""

    def __init__(self, asked: Asked, catalog: Catalog, memo: Memo | None = None) -> None:
        self._asked, self._catalog, self._memo = asked, catalog, memo or Memo()
        self._sections: dict[str, Any] = {}
        named = named_plugins(asked.recipe)
        self._all = [(kind, name, asked.plugin(kind, name, options)) for kind, name, options, _ in named]
        self._all += [("quantizer", name, asked.plugin("quantizer", name, {})) for name in asked.ways]

    def of(self, wired: Wired, before: dict[str, Wired]) -> dict[str, Any]:
        """The parts of one stage's key.

        Args:
            wired: the stage.
            before: the stages before it, by title.
        """
        stage, asked = wired.stage, self._asked
        reads = stage.reads(asked, wired.ports)
        code = {f"stage {wired.use}": self._code_of("stage", wired.use, _verbs(stage, reads))}
        if stage.needs.device == "none":
            _check_imported(wired, code[f"stage {wired.use}"])
        code |= {f"{kind} {name}": self._code_of(kind, name) for kind, name in self._named(wired, reads, before)}
        code |= {f"code {module}": self._code_of_user(module) for module in self._run_by(reads)}
        imported = {name: version for one in code.values() for name, version in one.libraries.items()}
        parts: dict[str, Any] = {
            "code": {name: one.text for name, one in code.items()},
            "recipe": shown(asked, reads.sections, self._sections),
            "libraries": imported | {name: self._version(name) for name in reads.libraries},
            "options": stage.model_dump(mode="json"),
            "files": [_sha256(wired.title, name) for name in reads.files],
            "others": dict(reads.others),
            "environment": {name: os.environ.get(name) for name in self._variables(stage, reads)},
        }
        parts = {name: part for name, part in parts.items() if part}
        if reads.data:
            parts["data"] = self._data()
        if reads.seeded:
            parts["seed"] = asked.recipe.seed
        if reads.device:
            parts["device"] = self._machine(site_of(stage.needs, asked.site))
        return parts

    def _named(self, wired: Wired, reads: Reads, before: dict[str, Wired]) -> Iterator[tuple[Kind, str]]:
        """The plug-ins whose code the stage runs: those that `reads()` names, and stages that rebuild its models."""
        for kind, name, _ in self._all:
            if kind in reads.plugins:
                yield kind, name
        for one in ancestors(wired, before):
            if type(one.stage).operate is not Stage.operate:
                yield "stage", one.use

    def _run_by(self, reads: Reads) -> list[str]:
        """Modules of the user that the stage's plug-ins run."""
        return sorted({user_module(target) for plugin in self._plugins(reads) for target in plugin.runs()})

    def _plugins(self, reads: Reads) -> list[Plugin]:
        return [plugin for kind, _, plugin in self._all if kind in reads.plugins]

    def _variables(self, stage: Stage, reads: Reads) -> list[str]:
        """Environment variables that the stage and its plug-ins say they read."""
        return sorted({name for plugin in (stage, *self._plugins(reads)) for name in plugin.environment})

    def _code_of(self, kind: Kind, name: str, also: tuple[str, ...] = ()) -> Code:
        asked, known = (kind, name, also), self._memo.code
        if asked not in known:
            entry = self._catalog.find(kind, name)
            known[asked] = self._catalog.code_of(entry, also=also, without=CHECKS)
        return known[asked]

    def _code_of_user(self, module: str) -> Code:
        asked, known = ("code", module, ()), self._memo.code
        if asked not in known:
            known[asked] = code_of(module, "")
        return known[asked]

    def _data(self) -> str:
        workload, known = self._asked.workload, self._memo.data
        asked = f"{self._asked.recipe.workload.use} {workload.model_dump_json()}"
        if asked not in known:
            known[asked] = workload.fingerprint()
        return known[asked]

    def _machine(self, site: Site) -> dict[str, JsonValue]:
        known, asked = self._memo.machines, f"{site.device} {site.precision}"
        if asked not in known:
            known[asked] = machine_parts(site)
        return known[asked]

    def _version(self, distribution: str) -> str:
        known = self._memo.versions
        if distribution not in known:
            try:
                known[distribution] = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                raise PluginError(
                    f"a stage's reads() names the library {distribution!r}, which is not installed; install it, or "
                    "write the name of its distribution as pip shows it"
                ) from None
        return known[distribution]


_imported: WeakKeyDictionary[type[Stage], Code] = WeakKeyDictionary()
"""The code of stages that run in this process, as it was when KDQ first planned with the class."""


def _check_imported(wired: Wired, code: Code) -> None:
    """Refuse a stage whose code was edited after this process imported it.

    Raises:
        PluginError: this process would run the old code, and store its result under the key of the new code.
    """
    if _imported.setdefault(type(wired.stage), code) != code:
        raise PluginError(
            f"stage {wired.title!r} runs in this process, which imported its code before that was edited; start KDQ "
            "in a new process"
        )


def _sha256(title: str, name: str) -> str:
    """Digest of a file that a stage reads.

    Raises:
        RecipeError: it is not there.
    """
    path = Path(name)
    if not path.is_file():
        raise RecipeError(
            f"stage {title!r} reads the file {name!r}, which is not there, seen from {str(Path.cwd())!r}; correct its "
            "path, or give its whole path"
        )
    return sha256_file(path)


def _verbs(stage: Stage, reads: Reads) -> tuple[str, ...]:
    """Modules of KDQ that a stage runs through `Work` without importing them."""
    if stage.needs.device == "none":
        return ()
    return (*VERBS, *QUANTIZED) if "quantizer" in reads.plugins else VERBS


def ancestors(wired: Wired, before: dict[str, Wired]) -> list[Wired]:
    """All stages whose results a stage builds on, nearest first, each once."""
    found: dict[str, Wired] = {}
    asked = list(wired.parents.values())
    while asked:
        title = asked.pop(0)
        if title not in found:
            found[title] = before[title]
            asked += before[title].parents.values()
    return list(found.values())


def site_of(needs: Needs, site: Site) -> Site:
    """The site as a stage sees it: in the precision it computes in, on the CPU if it needs that alone."""
    seen = site if needs.device == "site" else site.at("cpu")
    precision = precision_of(site) if needs.precision == "site" else "fp32"
    return seen.model_copy(update={"precision": precision})
