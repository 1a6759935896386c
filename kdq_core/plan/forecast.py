"""A forecast: what a run of a plan would do with each stage, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Literal

from pydantic import JsonValue

from kdq_core.errors import StoreError
from kdq_core.frozen import Frozen
from kdq_core.plan.plan import Node, Plan
from kdq_core.plan.study import SharedNode, StudyPlan
from kdq_core.store.records import ChosenForm
from kdq_core.store.store import Store

NAMED = 8
"""How many changed parts of a key `kdq plan` names; with more, the nearest entry is probably of another recipe."""

COMPARED = 16
"""With how many of a stage's newest entries `kdq plan` compares a key."""


class Forecast(Frozen):
    """What a run would do with one stage, and why; of a cached choice, what was chosen."""

    stage: str
    state: Literal["cached", "run", "damaged"]
    key: str | None
    why: str


def forecast(plan: Plan, store: Store) -> Iterator[Forecast]:
    """Say for each stage whether it is cached; for a miss, which part of its key changed."""
    digests: dict[str, str] = {}
    for node in plan.nodes:
        found, digest = foresee(node, digests, store)
        yield found
        if digest is not None:
            digests[node.name] = digest


def foresee(node: Node, digests: Mapping[str, str], store: Store) -> tuple[Forecast, str | None]:
    """What a run would do with one stage, and the digest of its entry if it is cached.

    Args:
        node: the stage.
        digests: digests of the cached entries before it, by name of the stage.
        store: where entries are.
    """
    waiting = [name for name in node.parents.values() if name not in digests]
    if waiting:
        return Forecast(stage=node.name, state="run", key=None, why=_why(node, None, store, waiting)), None
    key = node.key(digests)
    try:
        entry = store.lookup(key)
    except StoreError as error:
        return Forecast(stage=node.name, state="damaged", key=key, why=str(error)), None
    if entry is None:
        why = _why(node, node.full_parts(digests), store, [])
        return Forecast(stage=node.name, state="run", key=key, why=why), None
    said = entry.record.said() if isinstance(entry.record, ChosenForm) else ""
    return Forecast(stage=node.name, state="cached", key=key, why=said), entry.digest


def forecast_study(plan: StudyPlan, store: Store) -> Iterator[tuple[SharedNode, Forecast]]:
    """The same for each node of a study, once."""
    digests: dict[str, str] = {}
    for identity, one in plan.nodes.items():
        names = dict(zip(one.node.parents.values(), one.parents, strict=True))
        known = {name: digests[parent] for name, parent in names.items() if parent in digests}
        found, digest = foresee(one.node, known, store)
        yield one, found
        if digest is not None:
            digests[identity] = digest


def _why(node: Node, parts: dict[str, JsonValue] | None, store: Store, waiting: list[str]) -> str:
    changed = _changed(node, parts, store)
    if changed is None:
        return "never run before"
    after = [f"after {', '.join(waiting)}"] if waiting else []
    more = [f"{len(changed) - NAMED} more"] if len(changed) > NAMED else []
    return "; ".join([*(f"{name} changed" for name in changed[:NAMED]), *more, *after])


def _changed(node: Node, parts: dict[str, JsonValue] | None, store: Store) -> list[str] | None:
    """Names of the parts that differ from the most similar recent entry of the stage; `None` if it has no entry."""
    mine = _flat(parts if parts is not None else node.parts)
    best: list[str] | None = None
    for kept in islice(store.parts(node.use), COMPARED):
        theirs = _flat({k: v for k, v in kept.items() if parts is not None or k != "parents"})
        differ = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        if best is None or len(differ) < len(best):
            best = differ
        if len(best) <= (parts is not None):  # no entry can be more similar
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
