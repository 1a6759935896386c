"""The recipe as a DAG of stages, and the key of each.

A key is the sha256 of its parts: the code version of KDQ and of the plug-ins the stage names, the library versions,
the recipe sections it reads, the digests of its parents, the data's fingerprint, the seed and the device class.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue

from kdq_core.catalog import Catalog, kdq_code_version
from kdq_core.errors import StoreError
from kdq_core.frozen import Frozen
from kdq_core.kinds import Kind, Target, Workload
from kdq_core.spec import Recipe, Site
from kdq_core.store import Entry, Store, canonical, sha256_of

StageName = Literal["train_teacher", "distill", "quantize", "export", "evaluate", "register"]


class StageNode(Frozen):
    """One stage: what it stands on, and the parts of its key but for the parents' digests."""

    name: StageName
    parents: tuple[StageName, ...]
    parts: dict[str, JsonValue]
    heavy: bool = True

    def full_parts(self, digests: Mapping[str, str]) -> dict[str, JsonValue]:
        """All parts of the key."""
        return {**self.parts, "parents": {name: digests[name] for name in self.parents}}

    def key(self, digests: Mapping[str, str]) -> str:
        """The key, given the digests of the parents' entries."""
        return sha256_of(canonical({"stage": self.name, **self.full_parts(digests)}))


class Plan(Frozen):
    """The DAG in topological order, and what it was made from."""

    recipe: Recipe
    site: Site
    nodes: tuple[StageNode, ...]

    def node(self, name: str) -> StageNode:
        """The node of that name."""
        return next(node for node in self.nodes if node.name == name)


class Forecast(Frozen):
    """What a run would do with one stage, and why."""

    stage: str
    state: Literal["cached", "run"]
    key: str | None
    why: str


def make_plan(recipe: Recipe, site: Site, catalog: Catalog) -> Plan:
    """Build every plug-in the recipe names once, and make the DAG. Imports no torch for house plug-ins."""
    workload = catalog.build("workload", recipe.workload.use, recipe.workload.options)
    target = catalog.build("target", recipe.target.use, recipe.target.options)
    assert isinstance(workload, Workload)
    assert isinstance(target, Target)
    parts = _Parts(recipe, site, catalog, workload.fingerprint(), dict(target.resolved()))
    evaluators: list[tuple[Kind, str]] = [("evaluator", use.use) for use in recipe.evaluate]
    distiller: tuple[Kind, str] = ("distiller", recipe.distill.use)
    quantizer: tuple[Kind, str] = ("quantizer", recipe.quantize.use)
    how = {"use": recipe.quantize.use, "options": recipe.quantize.options}
    soft = {"use": recipe.distill.use, "options": recipe.distill.options}
    nodes = (
        StageNode(name="train_teacher", parents=(), parts=parts.of("teacher")),
        StageNode(name="distill", parents=("train_teacher",), parts=parts.of("distill", plugins=[distiller])),
        StageNode(
            name="quantize",
            parents=("train_teacher", "distill"),
            parts=parts.of("quantize", plugins=[distiller, quantizer], distill=soft, **parts.target),
        ),
        StageNode(
            name="export",
            parents=("train_teacher", "distill", "quantize"),
            parts=parts.of(plugins=[quantizer], quantize=how, **parts.target),
        ),
        StageNode(
            name="evaluate",
            parents=("distill", "quantize", "export"),
            parts=parts.of("evaluate", plugins=[quantizer, *evaluators], quantize=how, **parts.target),
        ),
        StageNode(
            name="register",
            parents=("export", "evaluate"),
            heavy=False,
            parts={
                "code": {"kdq": kdq_code_version()},
                "recipe": {"name": recipe.model_name, "gates": _dump(recipe)["gates"]},
                "tracking": site.mlflow_uri if site.tracking_uri else "the site's own",
            },
        ),
    )
    return Plan(recipe=recipe, site=site, nodes=nodes)


def forecast(plan: Plan, store: Store) -> Iterator[Forecast]:
    """Say for each stage whether it is cached; for a miss, which part of its key changed."""
    digests: dict[str, str] = {}
    for node in plan.nodes:
        waiting: list[str] = [name for name in node.parents if name not in digests]
        if waiting:
            yield Forecast(stage=node.name, state="run", key=None, why=_why(node, None, store, waiting))
            continue
        key, entry = node.key(digests), None
        try:
            entry = store.lookup(key)
            why = "" if entry else _why(node, node.full_parts(digests), store, [])
        except StoreError as error:
            why = str(error)
        if entry:
            digests[node.name] = entry.digest
        yield Forecast(stage=node.name, state="cached" if entry else "run", key=key, why=why)


def lookup_all(plan: Plan, store: Store) -> dict[str, Entry] | None:
    """The entries of all stages, or `None` if one is missing."""
    entries: dict[str, Entry] = {}
    for node in plan.nodes:
        entry = store.lookup(node.key({name: entries[name].digest for name in node.parents}))
        if entry is None:
            return None
        entries[node.name] = entry
    return entries


def _why(node: StageNode, parts: dict[str, JsonValue] | None, store: Store, waiting: list[str]) -> str:
    changed = _changed(node, parts, store)
    if changed is None:
        return "never run before"
    after = [f"after {', '.join(waiting)}"] if waiting else []
    return "; ".join([*(f"{name} changed" for name in changed), *after])


def _changed(node: StageNode, parts: dict[str, JsonValue] | None, store: Store) -> list[str] | None:
    """Names of the parts that differ from the most alike entry of the same stage; `None` where there is none."""
    mine = _flat(parts if parts is not None else node.parts)
    best: list[str] | None = None
    for manifest in store.manifests(node.name):
        theirs = _flat({k: v for k, v in manifest.parts.items() if parts is not None or k != "parents"})
        differ = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        if best is None or len(differ) < len(best):
            best = differ
    return best


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        items = {k: _flat(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in value.items()}
        return {name: leaf for part in items.values() for name, leaf in part.items()}
    return {prefix: value}


def _dump(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json")


class _Parts:
    """Makes the parts of the keys of one plan."""

    def __init__(
        self, recipe: Recipe, site: Site, catalog: Catalog, fingerprint: str, resolved: dict[str, str | int | bool]
    ) -> None:
        self.recipe, self.site, self.catalog, self.fingerprint = recipe, site, catalog, fingerprint
        self.target: dict[str, Any] = {"target": {**_dump(recipe)["target"], "resolved": resolved}}

    def of(self, section: str = "", plugins: list[tuple[Kind, str]] | None = None, **extra: Any) -> dict[str, Any]:
        """The parts of a stage that reads `section` of the recipe besides workload and seed, and names `plugins`."""
        recipe = _dump(self.recipe)
        named: list[tuple[Kind, str]] = [("workload", self.recipe.workload.use), *(plugins or [])]
        if "target" in extra:
            named.append(("target", self.recipe.target.use))
        code = {f"{kind} {name}": self.catalog.code_version(self.catalog.find(kind, name)) for kind, name in named}
        sections = {"workload": recipe["workload"], **({section: recipe[section]} if section else {}), **extra}
        return {
            "code": {"kdq": kdq_code_version(), **code},
            "libraries": {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxruntime")},
            "recipe": sections,
            "data": self.fingerprint,
            "seed": self.recipe.seed,
            "device": device_class(self.site),
        }


def device_class(site: Site) -> str:
    """What results may depend on: device, precision, thread count, instruction set."""
    return (
        f"{site.device.split(':')[0]} {site.precision}, {site.threads} threads, {platform.machine()} {_isa()}".strip()
    )


def _isa() -> str:
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return ""
    return " ".join(sorted(flags & {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}))
