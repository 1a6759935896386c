"""The recipe as a DAG of stages, and the key of each: the sha256 of its parts and of its parents' digests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Literal

from pydantic import JsonValue

from kdq_core.errors import PluginError, StoreError
from kdq_core.frozen import Frozen
from kdq_core.plan.gates import with_fitting_gates
from kdq_core.plan.keys import KeyParts
from kdq_core.plan.notes import without_effect
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.code_version import kdq_code_version
from kdq_core.plugins.kinds import takes_views
from kdq_core.reading.teachers import check_fused
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.hashing import canonical, sha256_of
from kdq_core.store.store import Store

StageName = Literal["train_teacher", "cache_teacher", "distill", "quantize", "export", "evaluate", "register"]


NAMED = 8
"""How many changed parts of a key `kdq plan` names: where there are more, it compares with another recipe's run."""

COMPARED = 16
"""How many entries of a stage, the newest ones, `kdq plan` compares a key with."""


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
    """The DAG in topological order, and what it was made from; `note` tells the user where defaults were fitted."""

    recipe: Recipe
    site: Site
    nodes: tuple[StageNode, ...]
    note: str = ""

    def node(self, name: str) -> StageNode:
        """The node of that name."""
        return next(node for node in self.nodes if node.name == name)


class Forecast(Frozen):
    """What a run would do with one stage, and why."""

    stage: str
    state: Literal["cached", "run", "damaged"]
    key: str | None
    why: str


def make_plan(recipe: Recipe, site: Site, catalog: Catalog) -> Plan:
    """Build every plug-in the recipe names once, and make the DAG. Imports no torch for house plug-ins."""
    recipe, note = with_fitting_gates(recipe, catalog)
    parts = KeyParts(recipe, site, catalog)
    kept = _kept(recipe, parts)
    taught: tuple[StageName, ...] = ("train_teacher", *(node.name for node in kept))
    beside = ("views",)  # what the answers of a teacher that runs beside a student depend on
    views = () if kept else beside
    own = beside if recipe.quantize.taught_by == "student" else views
    nodes = (
        StageNode(name="train_teacher", parents=(), parts=parts.of("teacher", workload="taught")),
        *kept,
        StageNode(name="distill", parents=taught, parts=parts.of("distill", *views, plugins=("distiller",))),
        StageNode(
            name="quantize",
            parents=(*taught, "distill"),
            parts=parts.of("quantize", "soft", "target", *own, plugins=("distiller", "quantizer", "target")),
        ),
        StageNode(
            name="export",
            parents=("train_teacher", "distill", "quantize"),
            parts=parts.of("grid", "target", plugins=("quantizer", "target")),
        ),
        StageNode(
            name="evaluate",
            parents=("distill", "quantize", "export"),
            parts=parts.of("evaluate", "grid", "target", plugins=("quantizer", "target", "evaluator")),
        ),
        StageNode(
            name="register",
            parents=("export", "evaluate"),
            heavy=False,
            parts={
                "code": {"kdq": kdq_code_version()},
                "recipe": {"name": recipe.model_name, "gates": recipe.model_dump(mode="json")["gates"]},
                "tracking": site.mlflow_uri if site.tracking_uri else "the site's own",
            },
        ),
    )
    notes = (note, *without_effect(recipe, [use.title for use in parts.tapping]))
    return Plan(recipe=recipe, site=site, nodes=nodes, note="; ".join(filter(None, notes)))


def _kept(recipe: Recipe, parts: KeyParts) -> tuple[StageNode, ...]:
    """The stage that keeps the teacher's outputs, where the recipe wants it and all that the distillers read is kept.

    Raises:
        RecipeError: the mean over kept views is asked for, and none are kept.
        PluginError: the workload cannot give the same view of a sample twice.
    """
    cache, features = recipe.teacher.cache, bool(parts.tapping)
    check_fused(recipe, features=features)
    if not cache.enabled or (features and not cache.features):
        return ()
    if not takes_views(parts.workload):
        raise PluginError(
            f"workload {recipe.workload.use!r} cannot be asked for the same view of a sample twice, so a teacher's "
            "outputs cannot be kept: its batches() takes no 'view'; add `view: View | None = None`, which decides the "
            "augmentation, or write teacher: {cache: {enabled: false}}"
        )
    # `auto` finds pairs by the shapes of both models, so what is kept then follows from the student's options too.
    workload = "workload" if any(use.taps == "auto" for use in parts.tapping) else "taught"
    made_of = parts.of("tapped" if features else "outputs", workload=workload, seeded=False)
    return (StageNode(name="cache_teacher", parents=("train_teacher",), parts=made_of),)


def forecast(plan: Plan, store: Store) -> Iterator[Forecast]:
    """Say for each stage whether it is cached; for a miss, which part of its key changed."""
    digests: dict[str, str] = {}
    for node in plan.nodes:
        waiting: list[str] = [name for name in node.parents if name not in digests]
        if waiting:
            yield Forecast(stage=node.name, state="run", key=None, why=_why(node, None, store, waiting))
            continue
        key = node.key(digests)
        try:
            entry = store.lookup(key)
        except StoreError as error:
            yield Forecast(stage=node.name, state="damaged", key=key, why=str(error))
            continue
        if entry is None:
            why = _why(node, node.full_parts(digests), store, [])
            yield Forecast(stage=node.name, state="run", key=key, why=why)
        else:
            digests[node.name] = entry.digest
            yield Forecast(stage=node.name, state="cached", key=key, why="")


def _why(node: StageNode, parts: dict[str, JsonValue] | None, store: Store, waiting: list[str]) -> str:
    changed = _changed(node, parts, store)
    if changed is None:
        return "never run before"
    after = [f"after {', '.join(waiting)}"] if waiting else []
    more = [f"{len(changed) - NAMED} more"] if len(changed) > NAMED else []
    return "; ".join([*(f"{name} changed" for name in changed[:NAMED]), *more, *after])


def _changed(node: StageNode, parts: dict[str, JsonValue] | None, store: Store) -> list[str] | None:
    """Names of the parts that differ from the most alike newer entry of the stage; `None` where there is none."""
    mine = _flat(parts if parts is not None else node.parts)
    best: list[str] | None = None
    for kept in islice(store.parts(node.name), COMPARED):
        theirs = _flat({k: v for k, v in kept.items() if parts is not None or k != "parents"})
        differ = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        if best is None or len(differ) < len(best):
            best = differ
        if len(best) <= (parts is not None):  # none can be more alike
            break
    return best


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted name."""
    found: dict[str, Any] = {}
    for name, inner in value.items():
        where = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(inner, dict):
            found |= _flat(inner, where)
        else:
            found[where] = inner
    return found
